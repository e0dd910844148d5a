r"""E2CL: learn from refused actions what the world says and what to do instead (Wang et al. 2024, arXiv 2409.03256).

The agent explores twice. *Teacher-guided*, it is asked for its own turn in every state of the demonstrations;
*teacher-free*, it plays whole episodes. Each action that the world refuses gives two samples::

    feedback     state s, action a            -> what the world answers
    correction   state s, refused a, answer   -> the expert's turn

The loss is the negative log-likelihood of demonstrations, feedback and corrections together:
``L = L_plan + w_f * L_feedback + w_c * L_correction``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steca_gym.agent import Turn, find_turn_format
from steca_gym.errors import ConfigError
from steca_gym.methods.alternatives import AskAlongExperts, alternatives
from steca_gym.methods.base import Stage, round_name
from steca_gym.methods.context import Context, Record, RunConfig
from steca_gym.methods.dagger import DAgger, Relabel
from steca_gym.methods.early_experience import prediction_sample
from steca_gym.methods.eto import check_sampling
from steca_gym.methods.stages import Demonstrations, TrainOnTrajectories, WarmUp, demonstrations
from steca_gym.trajectory import Step, Trajectory, WeightedTrajectory


class E2CL:
    """Warm up; explore with and without the demonstrations; train on them, on feedback and on corrections.

    Departures from the paper: only actions that the world refuses count as errors; nothing is asked at inference, so
    that all methods are evaluated alike (the paper's *speculative inference* lets the agent predict the feedback
    before it acts); demonstrations, feedback and corrections are mixed in one training.

    Corrections off the demonstrations need an expert that can act from any state; where it has no turn, only the
    feedback is learnt.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Settings of E2CL."""

        num_rounds: int = 1
        """rounds of exploration and training, >= 1"""
        num_experts: int | None = None
        """demonstrations that are explored along, and tasks that are played freely, in each round, drawn with the
        seed; None: all"""
        num_samples: int = 1
        """own turns in each state of a demonstration, and free episodes of each task, >= 1"""
        temperature: float = 1.0
        """of the agent's turns, >= 0; 0 is greedy"""
        max_errors: int = 3
        """refused actions of one free episode that are learnt from, >= 1; an agent that repeats one would fill the
        training with it"""
        feedback_weight: float = 1.0
        """w_f, weight of a feedback sample in the loss, >= 0; a demonstration has 1; 0: leave them out"""
        correction_weight: float = 1.0
        """w_c, weight of a correction, >= 0"""

        def __post_init__(self) -> None:
            """Refuse what cannot work."""
            check_sampling(self.num_rounds, self.num_samples, self.temperature, self.num_experts)
            if self.max_errors < 1:
                raise ConfigError(f"max_errors must be >= 1, got {self.max_errors}")
            for name in ("feedback_weight", "correction_weight"):
                value = getattr(self, name)
                if not (value >= 0 and math.isfinite(value)):
                    raise ConfigError(f"{name} must be a finite number >= 0, got {value}")
            if self.feedback_weight == self.correction_weight == 0:
                raise ConfigError("feedback_weight and correction_weight are both 0; that is method=sft")

    def __init__(self, config: Config) -> None:
        """See the class."""
        self.config = config

    def stages(self) -> list[Stage]:
        """Demonstrations and warm-up, then both explorations and a training, once a round."""
        c = self.config
        free = DAgger.Config(
            num_rounds=c.num_rounds,
            num_experts=c.num_experts,
            num_samples=c.num_samples,
            beta=0.0,
            temperature=c.temperature,
        )
        stages: list[Stage] = [Demonstrations(), WarmUp()]
        for round_index in range(c.num_rounds):
            guided = AskAlongExperts(
                num_samples=c.num_samples,
                temperature=c.temperature,
                num_experts=c.num_experts,
                round_index=round_index,
            )
            stages += [guided, TeacherFree(round_index, free, c.max_errors), TrainOnErrors(round_index, c)]
        return stages


class TeacherFree(Relabel):
    """Let the agent play training tasks; store what its refused actions teach."""

    kind = "refused"

    def __init__(self, round_index: int, config: DAgger.Config, max_errors: int) -> None:
        """One stage a round: ``teacher_free``, ``teacher_free.1``, ..."""
        super().__init__(round_index, config)
        self.name = round_name("teacher_free", round_index)
        self.max_errors = max_errors

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """How the episodes are played, and how many errors of each count."""
        return {**super().depends_on(config), "max_errors": self.max_errors}

    def make_samples(
        self, played: Trajectory, labels: Sequence[Turn | None], turn_format: str | None
    ) -> list[Trajectory]:
        """The first refused actions of an episode; the expert's turn after each is its correction."""
        made: list[Trajectory] = []
        errors = [t for t, step in enumerate(played.steps) if not step.valid][: self.max_errors]
        for t in errors:
            beginning = dataclasses.replace(played, steps=played.steps[: t + 1], trajectory_id="")
            label = labels[t + 1] if t + 1 < len(labels) else None
            parsed = None if label is None else find_turn_format(turn_format).parse(label.text)
            right = None
            if label is not None and parsed is not None and parsed.action:
                right = Step(
                    thought=parsed.thought, action=parsed.action, observation="", source="expert", text=label.text
                )
            made += error_samples(beginning, right)
        return made

    def report(self, context: Context, record: Record, samples: Sequence[Trajectory]) -> None:
        """Say how many actions were refused; an agent without errors is no failure."""
        record["num_corrections"] = sum(is_correction(s) for s in samples)
        record["num_feedback"] = len(samples) - record["num_corrections"]
        context.say(f"  {record['num_feedback']} refused actions, {record['num_corrections']} with a correction")


def error_samples(refused: Trajectory, right: Step | None) -> list[Trajectory]:
    """What a refused action teaches.

    Args:
        refused: the history; its last step is the refused turn with the world's answer.
        right: the expert's turn in the state that the refusal left as it was; None: it has none.

    Returns:
        The feedback sample, then the correction where there is one.
    """
    made = [prediction_sample(refused)]
    if right is not None:
        history = [dataclasses.replace(s, trainable=False) for s in refused.steps]
        history[-1] = dataclasses.replace(history[-1], source="deviation")
        steps = (*history, dataclasses.replace(right, trainable=True, observation="", source="expert"))
        made.append(dataclasses.replace(refused, steps=steps, score=0.0, won=False, status="running", trajectory_id=""))
    return made


def is_correction(sample: Trajectory) -> bool:
    """Whether a sample teaches the expert's turn; otherwise it teaches the world's answer."""
    return sample.steps[-1].source == "expert"


class TrainOnErrors(TrainOnTrajectories):
    """Train on the demonstrations, and on feedback and corrections of this round."""

    def __init__(self, round_index: int, config: E2CL.Config) -> None:
        """``config``: for the weights."""
        super().__init__(round_index)
        self.config = config

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """The training and the weights."""
        c = self.config
        weights = {"feedback_weight": c.feedback_weight, "correction_weight": c.correction_weight}
        return {**super().depends_on(config), **weights}

    def samples(self, context: Context) -> Sequence[WeightedTrajectory]:
        """Demonstrations first, then samples of the kinds ``feedback`` and ``correction``."""
        experts = demonstrations(context)
        samples = [WeightedTrajectory(trajectory=e) for e in experts]
        by_task = {e.task_id: e for e in experts}
        made = [
            sample
            for tried in alternatives(context, self.round_index)
            if not tried.steps[-1].valid
            for sample in error_samples(tried, by_task[tried.task_id].steps[len(tried) - 1])
        ]
        made += context.buffer.trajectories(kind=TeacherFree.kind, round_index=self.round_index)
        for sample in made:
            corrects = is_correction(sample)
            weight = self.config.correction_weight if corrects else self.config.feedback_weight
            if weight > 0:
                kind = "correction" if corrects else "feedback"
                samples.append(WeightedTrajectory(trajectory=sample, weight=weight, kind=kind))
        return samples
