"""IPR: iterative step-level process refinement (Xiong et al. 2024, arXiv 2406.11176)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steca_gym.agent import Sampling
from steca_gym.calibration import CalibrationSettings
from steca_gym.calibration.exploration import TURN_BROKE, Exploration, ExploredStep, explore_one, play_all
from steca_gym.calibration.schedule import Procedure, Scheduler
from steca_gym.collectors.episodes import EpisodeRequest, Fork
from steca_gym.errors import ConfigError
from steca_gym.methods.base import Stage, round_name
from steca_gym.methods.context import Context, Record, RunConfig, Stored
from steca_gym.methods.eto import check_sampling, outcome_pairs, own_episodes
from steca_gym.methods.stages import (
    Demonstrations,
    PreferenceConfig,
    SampleEpisodes,
    TrainOnPairs,
    WarmUp,
    demonstrations,
    engine_settings,
    report_broken,
    subsample,
)
from steca_gym.seeding import derive_draw
from steca_gym.trajectory import PreferencePair, Trajectory

_RETRIES = 2


class IPR:
    """Warm up; at each expert step compare Monte Carlo step rewards; DPO on step pairs and outcome pairs; repeat.

    The agent acts in the state before each expert step, and plays on. Where the expert's step reward is higher by more
    than ``threshold``, the expert's remaining steps are preferred to the agent's. Outcome pairs are those of ETO. The
    loss is DPO on both kinds of pairs, plus the negative log-likelihood of the chosen side.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Settings of IPR."""

        num_rounds: int = 1
        """rounds of exploration and training, >= 1"""
        num_experts: int | None = None
        """expert trajectories that are explored in each round, drawn with the seed; None: all"""
        num_episodes: int = 1
        """whole episodes per task and round for the outcome pairs, >= 1"""
        num_samples: int = 5
        """N: Monte Carlo continuations per step reward, >= 1"""
        temperature: float = 1.0
        """of all turns of the agent, > 0"""
        max_steps: int | None = None
        """agent turns per Monte Carlo continuation, >= 1; None: until the environment's horizon"""
        threshold: float = 0.0
        """a step pair needs an expert's step reward that is higher by more than this, in [0, 1)"""
        loss: PreferenceConfig = field(default_factory=lambda: PreferenceConfig(sft_weight=1.0))
        """settings of the preference loss"""

        def __post_init__(self) -> None:
            """Refuse what cannot work."""
            check_sampling(self.num_rounds, self.num_episodes, self.temperature, self.num_experts)
            if self.num_samples < 1 or (self.max_steps is not None and self.max_steps < 1):
                raise ConfigError(
                    f"num_samples and max_steps must be >= 1, got {self.num_samples} and {self.max_steps}"
                )
            if not self.temperature > 0:
                raise ConfigError(
                    f"temperature must be > 0, got {self.temperature}; greedy continuations are all equal"
                )
            if not 0 <= self.threshold < 1:
                raise ConfigError(f"threshold must lie in [0, 1), got {self.threshold}")

    def __init__(self, config: Config) -> None:
        """See the class."""
        self.config = config

    def stages(self) -> list[Stage]:
        """Demonstrations and warm-up, then own episodes, step pairs and training, once a round."""
        c = self.config
        stages: list[Stage] = [Demonstrations(), WarmUp()]
        for round_index in range(c.num_rounds):
            episodes = SampleEpisodes(
                num_samples=c.num_episodes,
                temperature=c.temperature,
                num_tasks=c.num_experts,
                keep_lost=True,
                same_start=True,
                round_index=round_index,
            )
            stages += [episodes, StepPairs(round_index, c), TrainOnStepPairs(round_index, c.loss)]
        return stages


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedStep:
    """The expert's and the agent's action in one state, with their step rewards."""

    step: int
    """t, 0-based"""
    expert_reward: float
    """mean outcome after the expert's action, in [0, 1]"""
    agent_reward: float
    """mean outcome after the agent's action, in [0, 1]"""
    continuation: Trajectory
    """the expert's steps before t, the agent's action, and the agent's own steps to the end"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedExpert:
    """All compared steps of an expert trajectory."""

    expert: Trajectory
    steps: tuple[ComparedStep, ...] = ()
    """steps at which the agent did something else than the expert"""
    error: str = ""
    """why the trajectory could not be explored"""


def compare_steps(
    expert: Trajectory, config: IPR.Config, *, round_index: int, max_new_tokens: int, seed: int
) -> Procedure[ComparedExpert]:
    """Explore along one expert trajectory and estimate the step rewards (a procedure for ``Scheduler``)."""
    settings = CalibrationSettings(
        explore_temperature=config.temperature, max_new_tokens=max_new_tokens, round=round_index, max_retries=_RETRIES
    )
    explored: Exploration = yield from explore_one(expert, settings, seed)
    if explored.error:
        return ComparedExpert(expert=expert, error=explored.error)
    sampling = Sampling(temperature=config.temperature, max_new_tokens=max_new_tokens)
    others = [s for s in explored.steps if not s.same_action]

    def requests(fork: Fork, what: str, count: int, max_turns: int | None) -> list[EpisodeRequest]:
        name = explored.expert.trajectory_id
        return [
            EpisodeRequest(
                task_id=expert.task_id,
                seed=derive_draw(seed, name, round_index, what, len(fork.prefix), i),
                sampling=sampling,
                start=fork,
                max_agent_turns=max_turns,
            )
            for i in range(count)
        ]

    wanted: list[EpisodeRequest] = []
    plan: list[tuple[ExploredStep, int, int, int]] = []  # continuations: own, of the expert's action, of the agent's
    for explored_step in others:
        own = [] if explored_step.over else requests(explored_step.fork, "own", 1, None)
        last = explored_step.step == len(expert) - 1
        fork = explored.forks[explored_step.step + 1]
        of_expert = [] if last else requests(fork, "expert", config.num_samples, config.max_steps)
        of_agent = (
            [] if explored_step.over else requests(explored_step.fork, "agent", config.num_samples, config.max_steps)
        )
        plan.append((explored_step, len(own), len(of_expert), len(of_agent)))
        wanted += [*own, *of_expert, *of_agent]
    played = yield from play_all(wanted, priority=1.0, retries=_RETRIES)
    failed = next((e.trajectory.error for e in played if e.trajectory.status == "error"), "")
    if failed:
        return ComparedExpert(expert=expert, error=f"{TURN_BROKE}: {failed}")
    compared: list[ComparedStep] = []
    rest = iter(e.trajectory for e in played)
    for explored_step, num_own, num_expert, num_agent in plan:
        own_rest = [next(rest) for _ in range(num_own)]
        scores_expert = [next(rest).score for _ in range(num_expert)]
        scores_agent = [next(rest).score for _ in range(num_agent)]
        # After the last step nothing follows: its reward is the outcome.
        outcome = explored_step.trajectory.score
        compared.append(
            ComparedStep(
                step=explored_step.step,
                expert_reward=sum(scores_expert) / num_expert if num_expert else expert.score,
                agent_reward=sum(scores_agent) / num_agent if num_agent else outcome,
                continuation=own_rest[0] if own_rest else explored_step.trajectory,
            )
        )
    return ComparedExpert(expert=expert, steps=tuple(compared))


def worse_continuations(compared: ComparedExpert, threshold: float) -> list[Trajectory]:
    """The agent's continuations whose first action is worth less than the expert's; trainable from that action on."""
    found = []
    for step in compared.steps:
        if step.expert_reward - step.agent_reward > threshold:
            steps = tuple(
                dataclasses.replace(s, trainable=index >= step.step) for index, s in enumerate(step.continuation.steps)
            )
            found.append(dataclasses.replace(step.continuation, steps=steps, trajectory_id=""))
    return found


def step_pairs(experts: Sequence[Trajectory], worse: Sequence[Trajectory]) -> list[PreferencePair]:
    """Pairs of an expert's remaining steps and a worse continuation from the same state."""
    by_task = {e.task_id: e for e in experts}
    pairs = []
    for continuation in worse:
        first = next(i for i, step in enumerate(continuation.steps) if step.trainable)
        expert = by_task[continuation.task_id]
        prefix = dataclasses.replace(
            expert, steps=expert.steps[:first], score=0.0, won=False, status="running", trajectory_id=""
        )
        pairs.append(PreferencePair(prefix=prefix, chosen=expert, rejected=continuation, kind="step"))
    return pairs


class StepPairs(Stage):
    """Explore along the expert trajectories, and store the continuations that step rewards find worse."""

    kind = "worse_continuation"

    def __init__(self, round_index: int, config: IPR.Config) -> None:
        """One stage a round: ``step_pairs``, ``step_pairs.1``, ..."""
        self.name = round_name("step_pairs", round_index)
        self.round_index = round_index
        self.config = config

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """How many steps are valued, how, and by which engine."""
        c = self.config
        return {
            "num_experts": c.num_experts,
            "num_samples": c.num_samples,
            "temperature": c.temperature,
            "max_steps": c.max_steps,
            "threshold": c.threshold,
            **engine_settings(config),
        }

    def run(self, context: Context, record: Record) -> None:
        """Explore what is not stored yet."""
        done = context.buffer.done(self.name)
        experts = subsample(context.config.seed, demonstrations(context), self.config.num_experts)
        todo = [e for e in experts if e.with_id().trajectory_id not in done]
        broken: list[str] = []
        procedures = (
            compare_steps(
                e,
                self.config,
                round_index=self.round_index,
                max_new_tokens=context.config.agent.max_new_tokens,
                seed=context.config.seed,
            )
            for e in todo
        )
        agent = context.agent(context.model)
        with context.collector(agent) as collector, context.progress("step rewards", len(todo)) as on_progress:
            num_done = 0

            def keep(_: int, result: object) -> None:
                nonlocal num_done
                assert isinstance(result, ComparedExpert)
                num_done += 1
                on_progress(num_done)
                if result.error:
                    broken.append(result.error)
                if result.error.startswith(TURN_BROKE):
                    return  # says nothing of the trajectory: the next attempt asks again
                worse = worse_continuations(result, self.config.threshold)
                key = result.expert.with_id().trajectory_id
                context.buffer.add_trajectories(
                    worse, kind=self.kind, round_index=self.round_index, done=(self.name, [key])
                )

            collector.drive(Scheduler(procedures, keep))
        report_broken(context, broken, len(todo), "expert trajectories")
        record.update(num_experts=len(experts), num_broken=len(broken), num_step_pairs=len(self.worse(context)))
        context.say(f"  {record['num_step_pairs']} step pairs along {len(experts)} expert trajectories")

    def worse(self, context: Context) -> list[Trajectory]:
        """The stored continuations of this round."""
        return context.buffer.trajectories(kind=self.kind, round_index=self.round_index)

    def adopt(self, context: Context, source: Stored) -> bool:
        """Copy the continuations."""
        with source.buffer() as other:
            found = other.trajectories(kind=self.kind, round_index=self.round_index)
            done = other.done(self.name)
        context.buffer.add_trajectories(found, kind=self.kind, round_index=self.round_index, done=(self.name, done))
        return True


class TrainOnStepPairs(TrainOnPairs):
    """Train on the step pairs and the outcome pairs of this round."""

    def pairs(self, context: Context) -> Sequence[PreferencePair]:
        """Outcome pairs first, then step pairs."""
        experts = demonstrations(context)
        worse = context.buffer.trajectories(kind=StepPairs.kind, round_index=self.round_index)
        return [*outcome_pairs(experts, own_episodes(context, self.round_index)), *step_pairs(experts, worse)]
