"""DAgger: the agent acts, the expert labels the states that it visits (Ross et al. 2011, arXiv 1011.0686)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steca_gym.agent import Agent, Need, Turn, TurnRequest, find_turn_format
from steca_gym.collectors.episodes import Episode
from steca_gym.errors import AgentError, ConfigError, DataError
from steca_gym.methods.base import Stage, round_name
from steca_gym.methods.context import Context, Record, RunConfig, Stored
from steca_gym.methods.stages import (
    Demonstrations,
    TrainOnTrajectories,
    WarmUp,
    demonstrations,
    engine_settings,
    report_broken,
    subsample,
)
from steca_gym.seeding import derive_draw
from steca_gym.trajectory import Step, Trajectory, WeightedTrajectory


class DAgger:
    """Warm up; let the agent act and the expert label; train on the demonstrations and all labels; repeat.

    In round i (from 1) each turn is the expert's with probability ``beta ** i``, otherwise the agent's. Every visited
    state gets the turn that the expert would have written there. The demonstrations are the paper's first iteration,
    in which the expert acts alone.

    Needs an expert that can act from any state, such as ``expert=planner`` or ``expert=searching``.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Settings of DAgger."""

        num_rounds: int = 1
        """rounds of acting, labelling and training after the demonstrations, >= 1"""
        num_experts: int | None = None
        """training tasks that the agent plays in each round, drawn with the seed; None: all with a demonstration"""
        num_samples: int = 1
        """episodes per task and round, >= 1"""
        beta: float = 0.5
        """base of the probability that the expert acts, in [0, 1); 0: the agent always acts, the parameter-free
        version of the paper"""
        temperature: float = 0.0
        """of the agent's turns, >= 0; 0 is greedy, as in the evaluation"""

        def __post_init__(self) -> None:
            """Refuse what cannot work."""
            if self.num_rounds < 1 or self.num_samples < 1:
                raise ConfigError(
                    f"num_rounds and num_samples must be >= 1, got {self.num_rounds} and {self.num_samples}"
                )
            if self.num_experts is not None and self.num_experts < 1:
                raise ConfigError(f"num_experts must be >= 1 or null, got {self.num_experts}")
            if not 0 <= self.beta < 1:
                raise ConfigError(
                    f"beta must lie in [0, 1), got {self.beta}; at 1 the agent would never act, which is method=sft"
                )
            if not self.temperature >= 0:
                raise ConfigError(f"temperature must be >= 0, got {self.temperature}")
            if self.num_samples > 1 and self.temperature == 0 and self.beta == 0:
                raise ConfigError(
                    f"num_samples={self.num_samples} at temperature 0 and beta 0 gives equal episodes; use "
                    "num_samples=1, a temperature above 0 or a beta above 0"
                )

    def __init__(self, config: Config) -> None:
        """See the class."""
        self.config = config

    def stages(self) -> list[Stage]:
        """Demonstrations and warm-up, then labelling and training, once a round."""
        stages: list[Stage] = [Demonstrations(), WarmUp()]
        for round_index in range(self.config.num_rounds):
            stages += [Relabel(round_index, self.config), TrainOnLabels(round_index)]
        return stages


class LabelledAgent:
    """Plays the student's turns, or the expert's with a probability, and keeps the expert's turn of every state.

    Args:
        student: the agent that learns.
        expert: labels every state; where it has no turn (it raises AgentError), the student acts and the state has no
            label.
        probability: that the expert acts, in [0, 1]; the episode's seed and the turn decide.
    """

    def __init__(self, student: Agent, expert: Agent, *, probability: float) -> None:
        """See the class."""
        self.name = student.name
        self.needs: frozenset[Need] = student.needs | expert.needs
        self._student, self._expert, self._probability = student, expert, probability
        self._labels: dict[tuple[int, str, int], Turn] = {}

    @property
    def model_seconds(self) -> float | None:
        """Seconds inside the student's model; None where it does not count them."""
        return getattr(self._student, "model_seconds", None)

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        """Answer each request, and keep the expert's answers."""
        turns: list[Turn | None] = []
        for request in requests:
            label = self._label(request)
            draw = derive_draw("dagger", request.seed, request.turn) / 2**31
            turns.append(label if label is not None and draw < self._probability else None)
        asked = [request for request, turn in zip(requests, turns, strict=True) if turn is None]
        own = iter(self._student.act(asked))
        return [next(own) if turn is None else turn for turn in turns]

    def release(self, episode_ids: Iterable[str]) -> None:
        """Release the episodes of both agents."""
        ids = list(episode_ids)
        self._student.release(ids)
        self._expert.release(ids)

    def take_labels(self, played: Trajectory) -> list[Turn | None]:
        """The expert's turn in the state before each step of an episode, None where it had none; forgets them."""
        keys = [(played.seed, played.first_observation, t) for t in range(len(played))]
        return [self._labels.pop(key, None) for key in keys]

    def _label(self, request: TurnRequest) -> Turn | None:
        try:
            label = self._expert.act([request])[0]
        except AgentError:
            return None
        # 2t messages come between the first observation and turn t.
        first = request.messages[len(request.messages) - 1 - 2 * request.turn].content
        self._labels[request.seed, first, request.turn] = label
        return label


def relabelled(played: Trajectory, labels: Sequence[Turn | None], turn_format: str | None = None) -> list[Trajectory]:
    """The training samples of an episode: each labelled state is trained on once, with the expert's turn.

    Turns that equal the expert's are trained where they were played. For every other labelled state there is one
    sample: the history as it was played, then the expert's turn. States without a label are history only.

    Args:
        played: the episode, n steps.
        labels: the expert's turn in the state before each step, n entries.
        turn_format: how turns are written; None: as ``Thought: ...`` and ``Action: ...``.
    """
    samples: list[Trajectory] = []
    history: list[Step] = []
    open_turns = False  # whether the history holds turns that no sample trains yet
    for step, label in zip(played.steps, labels, strict=True):
        if label is not None and label.text == step.turn_text():
            history.append(dataclasses.replace(step, trainable=True))
            open_turns = True
            continue
        if label is not None:
            parsed = find_turn_format(turn_format).parse(label.text)
            action = parsed.action or ""
            right = Step(thought=parsed.thought, action=action, observation="", source="expert", text=label.text)
            samples.append(_sample(played, [*history, right]))
            history, open_turns = [dataclasses.replace(s, trainable=False) for s in history], False
        source = step.source if label is None else "deviation"
        history.append(dataclasses.replace(step, source=source, trainable=False))
    if open_turns:
        samples.append(_sample(played, history))
    return samples


def _sample(played: Trajectory, steps: Sequence[Step]) -> Trajectory:
    last = max(i for i, step in enumerate(steps) if step.trainable)
    return dataclasses.replace(
        played, steps=tuple(steps[: last + 1]), score=0.0, won=False, status="running", trajectory_id=""
    )


class Relabel(Stage):
    """Let the agent, mixed with the expert, play training tasks; store the samples that the expert's labels make."""

    kind = "relabelled"

    def __init__(self, round_index: int, config: DAgger.Config) -> None:
        """One stage a round: ``relabel``, ``relabel.1``, ..."""
        self.name = round_name("relabel", round_index)
        self.round_index = round_index
        self.config = config

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """How the episodes are played; the expert is a setting of the demonstrations."""
        c = self.config
        return {
            "num_experts": c.num_experts,
            "num_samples": c.num_samples,
            "beta": c.beta,
            "temperature": c.temperature,
            **engine_settings(config),
        }

    def run(self, context: Context, record: Record) -> None:
        """Play what is not stored yet; raises DataError where the expert labels no state."""
        c = self.config
        done = context.buffer.done(self.name)
        task_ids = subsample(context.config.seed, [e.task_id for e in demonstrations(context)], c.num_experts)
        first = self.round_index * c.num_samples
        requests = {
            f"{t}#{i}": context.request(t, index=i, temperature=c.temperature)
            for t in task_ids
            for i in range(first, first + c.num_samples)
        }
        keys = {(r.task_id, r.seed): key for key, r in requests.items()}
        probability = c.beta ** (self.round_index + 1)
        agent = LabelledAgent(context.agent(context.model), context.expert(), probability=probability)
        broken: list[str] = []

        def keep(episode: Episode) -> None:
            played = episode.trajectory
            labels = agent.take_labels(played)
            if played.status == "error":
                broken.append(played.error)
                return
            samples = self.make_samples(played, labels, context.config.agent.turn_format)
            key = keys[played.task_id, played.seed]
            context.buffer.add_trajectories(
                samples, kind=self.kind, round_index=self.round_index, done=(self.name, [key])
            )

        todo = [r for key, r in requests.items() if key not in done]
        context.play(agent, todo, keep, "labelled episodes")
        report_broken(context, broken, len(todo), "episodes")
        record.update(num_episodes=len(requests), num_broken=len(broken))
        self.report(context, record, self.samples(context))

    def make_samples(
        self, played: Trajectory, labels: Sequence[Turn | None], turn_format: str | None
    ) -> list[Trajectory]:
        """What an episode and the expert's turn in each of its states are stored as."""
        return relabelled(played, labels, turn_format)

    def report(self, context: Context, record: Record, samples: Sequence[Trajectory]) -> None:
        """Say what came of it; raises DataError where the expert has labelled nothing."""
        if not samples:
            raise DataError(
                f"the expert labelled none of the states that the agent visited in {record['num_episodes']} episodes; "
                "DAgger needs an expert that acts from any state (expert_reach 'any'): choose another world or expert"
            )
        labelled = [step for sample in samples for step in sample.steps if step.trainable]
        record["num_labelled"] = len(labelled)
        record["num_corrected"] = sum(step.source == "expert" for step in labelled)
        context.say(f"  {record['num_labelled']} states labelled, {record['num_corrected']} with another turn")

    def samples(self, context: Context) -> list[Trajectory]:
        """The stored samples of this round."""
        return context.buffer.trajectories(kind=self.kind, round_index=self.round_index)

    def adopt(self, context: Context, source: Stored) -> bool:
        """Copy the samples."""
        with source.buffer() as other:
            found = other.trajectories(kind=self.kind, round_index=self.round_index)
            done = other.done(self.name)
        context.buffer.add_trajectories(found, kind=self.kind, round_index=self.round_index, done=(self.name, done))
        return True


class TrainOnLabels(TrainOnTrajectories):
    """Train on the demonstrations and the labels of all rounds so far (dataset aggregation)."""

    def samples(self, context: Context) -> Sequence[WeightedTrajectory]:
        """Demonstrations first, then labelled episodes of the kind ``relabelled``."""
        samples = [WeightedTrajectory(trajectory=e) for e in demonstrations(context)]
        for earlier in range(self.round_index + 1):
            labelled = context.buffer.trajectories(kind=Relabel.kind, round_index=earlier)
            samples += [WeightedTrajectory(trajectory=t, kind=Relabel.kind) for t in labelled]
        return samples
