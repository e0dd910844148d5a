"""Calibration as data: a deviation, its evidence, the corrected trajectory, its verdict; JSON and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from steca_gym.errors import DataError, shown
from steca_gym.files import parse_json
from steca_gym.settings import read_stored
from steca_gym.step_rewards.values import Estimate, Verdict
from steca_gym.trajectory import PreferencePair, Step, Trajectory, step_from_dict, trajectory_from_dict

Basis = Literal["values", "agent_value", "world", "none"]
"""what a verdict rests on: both values; the agent's value alone, the expert's state was not sampled; what the world
says (the episode is over, the task cannot be won); no value at all"""
FatalReason = Literal["", "ended", "unwinnable", "lost"]
"""the action ended the episode; the world says that the task cannot be won any more; every continuation after it was
lost while the state before it wins"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepVerdict:
    """What was found at one step of an expert trajectory."""

    step: int
    """t, 0-based: the agent acted in the state before expert step t"""
    expert_action: str
    """a_t; empty where the agent's own episode has left the demonstration"""
    agent_action: str
    """a_hat_t"""
    verdict: Verdict
    expert_reward: Estimate | None
    """r_s(s_{t-1}, a_{t-1}): value of the state before step t"""
    agent_reward: Estimate | None
    """r_s(s_t, a_hat_t): value of the state after the agent's action"""
    expert_step_reward: Estimate | None = None
    """r_s(s_t, a_t): value of the state after the expert's action, where D_s needed it; the last step's is the
    outcome"""
    agent_observation: str = ""
    """what the world answered to the agent's action"""
    agent_valid: bool = True
    """whether the world understood the agent's action"""
    explored_score: float | None = None
    """outcome of the agent's greedy rollout after its action, where it was played"""
    basis: Basis = "none"
    """what the verdict rests on"""
    fatal: FatalReason = ""
    """why the verdict is ``fatal``; empty for others"""
    note: str = ""
    """what decided, where it was not the estimates: e.g. "the agent won anyway" """

    @property
    def compared(self) -> bool:
        """Whether both values were estimated."""
        return self.basis == "values"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reflection:
    """The thought that notices a wrong action and leads to the right one."""

    text: str
    source: str
    """who wrote it: "template", "agent:NAME", "openai:MODEL", "person:NAME"; "none" for refused calibrations"""


NO_REFLECTION = Reflection(text="", source="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A correction with everything that led to it."""

    calibration_id: str
    task_id: str
    expert_id: str
    """trajectory_id of the expert trajectory"""
    step: int
    """t of the deviation, 0-based"""
    deviated: Step
    """the wrong turn and what the world answered"""
    expert_action: str
    """the right action: the expert's, or the agent's own where ``correction=own``"""
    reflection: Reflection
    verdicts: tuple[StepVerdict, ...]
    """the step-reward timeline up to the deviation"""
    trajectory: Trajectory
    """corrected: e_{1:t-1}, a_hat_t, (reflection, a_t), e_{t+1:n} as executed, trainable after the deviation only.
    fatal: e_{1:t-1}, (thought, a_t), only the last step trainable"""
    failed_continuation: Trajectory | None
    """the agent's own failed trajectory from the deviation on (whole, prefix included), for the weight"""
    status: Literal["accepted", "refused"]
    reason: str
    """why it was refused, how it was repaired, or what makes it fatal; empty when executed as spliced"""
    kind: Literal["corrected", "fatal"] = "corrected"
    """``fatal``: nothing can follow the wrong action, so the right one is taught at the state before it"""
    repaired: bool = False
    round: int = 0

    @property
    def pair(self) -> PreferencePair | None:
        """A fatal action as a step pair: the right action is preferred to the wrong one; None for others."""
        if self.kind != "fatal" or self.status != "accepted":
            return None
        history = self.trajectory.steps[:-1]
        wrong = dataclasses.replace(self.deviated, trainable=True)
        return PreferencePair(
            prefix=dataclasses.replace(self.trajectory, steps=history, trajectory_id=""),
            chosen=self.trajectory,
            rejected=dataclasses.replace(self.trajectory, steps=(*history, wrong)).with_id(),
            kind="fatal",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSubtrajectory:
    """A sample of D_s: the demonstration from a step on at which its action beats the agent's."""

    trajectory: Trajectory
    """the demonstration, only e_{t:n} trainable"""
    failed_continuation: Trajectory
    """the agent's own failed trajectory from the same step on (whole)"""
    step: int
    """t, 0-based; 0: the whole demonstration"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What exploration and detection met, and what they cost; addable."""

    num_steps: int = 0
    """expert steps at which the agent was asked"""
    num_same_action: int = 0
    num_won_anyway: int = 0
    """other actions after which the agent won anyway (kept without sampling, where failure is required)"""
    num_compared: int = 0
    """steps with another action at which both values were estimated"""
    num_decided: int = 0
    """of the compared steps, those that their values decided: neither a tie nor undecided"""
    num_not_compared: int = 0
    """steps with another action whose verdict did not rest on two values: the expert's state was never sampled, or no
    value was asked for (won anyway and fatal by the world's word are counted apart)"""
    num_not_compared_deviated: int = 0
    """of these, deviations"""
    num_first_step_deviated: int = 0
    """deviations at step 0, where the paper has no step before to compare with"""
    num_kept: int = 0
    num_ties: int = 0
    """equal values, whatever the tie rule made of them"""
    num_ties_deviated: int = 0
    """ties that the tie rule turned into deviations"""
    num_undecided: int = 0
    num_deviated: int = 0
    """deviations; fatal actions are counted apart"""
    num_fatal_ended: int = 0
    """actions that ended the episode lost"""
    num_fatal_unwinnable: int = 0
    """actions after which the world says that the task cannot be won"""
    num_fatal_lost: int = 0
    """actions after which every continuation was lost, against a state that wins"""
    num_samples: int = 0
    """Monte Carlo continuations played"""
    num_samples_shared: int = 0
    """continuations that were looked up instead of played"""
    num_cut: int = 0
    """continuations and greedy rollouts that a turn limit stopped: their outcome is not known"""
    num_played_on: int = 0
    """of these, those that were played to the episode's own end before a deviation was called"""
    num_sampled_tokens: int = 0
    """tokens sampled by the agent: turns asked, explorations and continuations"""
    num_env_steps: int = 0
    num_accepted: int = 0
    """calibrations that may train something, fatal ones included"""
    num_repaired: int = 0
    num_refused: int = 0
    num_failed_episodes: int = 0
    """episodes that broke (not: lost) and were played again or given up"""

    def __add__(self, other: Counts) -> Counts:
        """The sum, field by field."""
        names = Counts.__slots__  # looked up once per continuation: ``dataclasses.fields`` is too slow for that
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def num_fatal(self) -> int:
        """Fatal actions, for whatever reason."""
        return self.num_fatal_ended + self.num_fatal_unwinnable + self.num_fatal_lost

    def lines(self, tie_rule: str) -> tuple[str, ...]:
        """What was found, for a person: what was compared and what was not, what decided, what is fatal."""
        return (
            f"{self.num_deviated} deviations and {self.num_fatal} fatal actions at {self.num_steps} steps "
            f"({self.num_same_action} as the expert, {self.num_won_anyway} won anyway); "
            f"{self.num_accepted} calibrations accepted, {self.num_repaired} of them repaired, "
            f"{self.num_refused} refused",
            f"of {self.num_compared} compared steps, {self.num_decided} decided by samples, {self.num_ties} tied, "
            f"{self.num_undecided} undecided; {self.num_ties} ties, tie_rule={tie_rule}: "
            f"{self.num_ties_deviated} counted as deviations",
            f"{self.num_not_compared} steps not compared (the expert's state was not sampled), "
            f"{self.num_not_compared_deviated} of them deviations; {self.num_first_step_deviated} deviations at step 0",
            f"fatal: {self.num_fatal_ended} ended the episode, {self.num_fatal_unwinnable} left it unwinnable, "
            f"{self.num_fatal_lost} lost every continuation; {self.num_cut} continuations cut, "
            f"{self.num_played_on} of them played on",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertResult:
    """Everything that came of one expert trajectory."""

    expert_id: str
    task_id: str
    verdicts: tuple[StepVerdict, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    """accepted and refused, corrected and fatal"""
    explored_successes: tuple[Trajectory, ...] = ()
    """the agent's own wins (D_e): after other actions than the expert's, or whole episodes; only its part is
    trainable"""
    expert_subtrajectories: tuple[ExpertSubtrajectory, ...] = ()
    """D_s"""
    counts: Counts = field(default_factory=Counts)
    error: str = ""
    """why the expert trajectory could not be used: one line"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationResult:
    """What ``calibrate`` found, one entry per expert trajectory, in the order of the experts."""

    results: tuple[ExpertResult, ...] = ()
    abandoned: Counts = field(default_factory=Counts)
    """continuations under way when their comparison was no longer needed: their cost, part of ``counts``"""
    estimator: dict[str, float] = field(default_factory=dict)
    """what the estimator of step rewards says about itself, e.g. a critic's calibration error"""

    @property
    def calibrations(self) -> list[Calibration]:
        """Accepted and refused."""
        return [c for r in self.results for c in r.calibrations]

    @property
    def accepted(self) -> list[Calibration]:
        """Those that may train something."""
        return [c for c in self.calibrations if c.status == "accepted"]

    @property
    def verdicts(self) -> dict[str, tuple[StepVerdict, ...]]:
        """Step-reward timelines by expert trajectory id."""
        return {r.expert_id: r.verdicts for r in self.results}

    @property
    def explored_successes(self) -> list[Trajectory]:
        """D_e."""
        return [t for r in self.results for t in r.explored_successes]

    @property
    def expert_subtrajectories(self) -> list[ExpertSubtrajectory]:
        """D_s."""
        return [e for r in self.results for e in r.expert_subtrajectories]

    @property
    def counts(self) -> Counts:
        """The sum over the expert trajectories, and what was abandoned."""
        return sum((r.counts for r in self.results), self.abandoned)


def result_to_json(result: ExpertResult) -> str:
    """One line of JSON."""
    return json.dumps(dataclasses.asdict(result), ensure_ascii=False, sort_keys=True)


def calibration_to_json(calibration: Calibration) -> str:
    """One line of JSON."""
    return json.dumps(dataclasses.asdict(calibration), ensure_ascii=False, sort_keys=True)


def calibration_from_json(line: str) -> Calibration:
    """Read what ``calibration_to_json`` wrote; raises DataError with what is wrong."""
    try:
        return _calibration(parse_json(line), "calibration")
    except (ValueError, DataError) as error:
        raise DataError(f"not a calibration: {error} in {line[:120]!r}") from error


def result_from_json(line: str) -> ExpertResult:
    """Read what ``result_to_json`` wrote; raises DataError with what is wrong."""
    try:
        raw = parse_json(line)
        made = _with(raw, "result", verdicts=_verdict, calibrations=_calibration, expert_subtrajectories=_subtrajectory)
        made = _with(made, "result", explored_successes=lambda t, _: trajectory_from_dict(t))
        return read_stored(ExpertResult, made, where="result")
    except (ValueError, DataError) as error:
        raise DataError(f"not a calibration result: {error} in {line[:120]!r}") from error


def _with(raw: Any, where: str, **readers: Callable[[Any, str], Any]) -> dict[str, Any]:
    """An object with the items of some of its lists read."""
    if not isinstance(raw, dict):
        raise DataError(f"{where} must be an object, got {shown(raw)}")
    made = dict(raw)
    for name, read in readers.items():
        items = raw.get(name)
        if not isinstance(items, list):
            raise DataError(f"{where}.{name} must be a list, got {shown(items)}")
        made[name] = [read(item, f"{where}.{name}[{index}]") for index, item in enumerate(items)]
    return made


def _verdict(raw: Any, where: str) -> StepVerdict:
    return read_stored(StepVerdict, raw, where=where)


def _subtrajectory(raw: Any, where: str) -> ExpertSubtrajectory:
    made = _with(raw, where)
    for name in ("trajectory", "failed_continuation"):
        made[name] = trajectory_from_dict(raw.get(name))
    return read_stored(ExpertSubtrajectory, made, where=where)


def _calibration(raw: Any, where: str) -> Calibration:
    made = _with(raw, where, verdicts=_verdict)
    failed = raw.get("failed_continuation")
    made["deviated"] = step_from_dict(raw.get("deviated"))
    made["trajectory"] = trajectory_from_dict(raw.get("trajectory"))
    made["failed_continuation"] = None if failed is None else trajectory_from_dict(failed)
    return read_stored(Calibration, made, where=where)
