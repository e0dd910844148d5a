"""Correction: the right action after a wrong one, executed, and repaired or refused where it does not win.

A thought does not move a world: a correction is executed first and gets its reflection once it is known to win.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from steca_gym.calibration.deviation import Deviation
from steca_gym.calibration.exploration import as_prefix, cost, normal_action, play_all, sampling
from steca_gym.calibration.records import Counts, Reflection
from steca_gym.calibration.repair import Repair, Repairer
from steca_gym.calibration.schedule import Collects, Procedure, drive_all
from steca_gym.calibration.settings import CalibrationSettings
from steca_gym.collectors.episodes import Episode, EpisodeRequest, Fork
from steca_gym.step_rewards.values import derive_seed
from steca_gym.trajectory import Step, Trajectory

_FATAL = {
    "ended": "the wrong action ended the episode",
    "unwinnable": "the task cannot be won any more after the wrong action",
    "lost": "every continuation after the wrong action was lost",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A corrected trajectory as executed, still without its reflection."""

    deviation: Deviation
    trajectory: Trajectory
    """corrected: trainable after the wrong action only, and there only what the world understood; fatal: the history
    and the right action"""
    accepted: bool
    kind: Literal["corrected", "fatal"] = "corrected"
    reason: str = ""
    """why it was refused, how it was repaired, or what makes it fatal"""
    repaired: bool = False
    expert_thought: str = ""
    """the expert's own thought for the right action, empty where it has none"""
    counts: Counts = Counts()

    @property
    def step(self) -> int:
        """Index t of the wrong action, 0-based; the right action is step t + 1, or t where it is fatal."""
        return self.deviation.step

    @property
    def right_step(self) -> int:
        """Index of the right action in the trajectory."""
        return self.step if self.kind == "fatal" else self.step + 1


def splice(deviation: Deviation, reflection: Reflection | None = None) -> tuple[Step, ...]:
    """The script ``e_{1:t-1}, a_hat_t, (reflection, a_t), e_{t+1:n}``, trainable after a_hat_t."""
    steps = deviation.trajectory.steps[: deviation.step + 1] + as_script(deviation.expert_steps)
    script = label(steps, deviation.step)
    return script if reflection is None else with_reflection(script, deviation.step + 1, reflection)


def label(steps: Sequence[Step], step: int, source: Literal["expert", "agent"] = "expert") -> tuple[Step, ...]:
    """Mark who chose each step of a corrected trajectory, and what is trained on.

    Args:
        steps: the whole trajectory.
        step: index of the wrong action.
        source: who chose the steps after the right action.
    """
    labelled = []
    for i, s in enumerate(steps):
        if i < step:
            labelled.append(as_prefix(s))
        elif i == step:
            labelled.append(replace(s, source="deviation", trainable=False))
        else:
            labelled.append(
                replace(s, source="reflection" if i == step + 1 else source, trainable=s.valid and s.parsed)
            )
    return tuple(labelled)


def with_reflection(steps: Sequence[Step], index: int, reflection: Reflection) -> tuple[Step, ...]:
    """Put the reflection into the thought of the right action, which is written again."""
    corrected = replace(steps[index], thought=reflection.text, text="", token_ids=None)
    return (*steps[:index], corrected, *steps[index + 1 :])


def as_script(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Steps to be played again."""
    # What a world said elsewhere means nothing here: it is filled in by the execution.
    return tuple(replace(s, observation="", score=0.0, valid=True, parsed=True) for s in steps)


def correct_one(
    deviation: Deviation,
    expert: Trajectory,
    repair: Repairer | None,
    settings: CalibrationSettings,
    *,
    seed: int = 0,
    temperature: float = 1.0,
) -> Procedure[Correction]:
    """Correct one deviation by the settings' rule (a procedure for the Scheduler).

    Args:
        deviation: the wrong action in its place.
        expert: the demonstration that it was found along.
        repair: finds a continuation where the demonstration does not fit; None: nothing is repaired.
        settings: where the right action comes from.
        seed: decides the agent's own alternatives.
        temperature: of these.
    """
    if settings.correction == "own":
        done = yield from _correct_by_own(deviation, expert, settings, seed, temperature)
        return done
    if deviation.fatal in ("ended", "unwinnable"):
        return _before_the_fact(deviation, expert, repair)
    done = yield from _correct_by_expert(deviation, expert, repair, settings.max_retries)
    if not done.accepted and deviation.fatal == "lost":
        instead = _before_the_fact(deviation, expert, repair)
        return replace(instead, counts=done.counts + instead.counts)
    return done


# -- by the expert ---------------------------------------------------------------------------------------------


def _refuse(deviation: Deviation, reason: str, counts: Counts | None = None) -> Correction:
    return Correction(
        deviation=deviation,
        trajectory=deviation.trajectory,
        accepted=False,
        reason=reason,
        counts=counts or Counts(),
    )


def _correct_by_expert(
    deviation: Deviation, expert: Trajectory, repair: Repairer | None, retries: int
) -> Procedure[Correction]:
    """Execute the splice, or a repair of it."""
    step, counts = deviation.step, Counts()
    if deviation.over:
        return _refuse(deviation, "the wrong action ended the episode: nothing can follow it")
    request = EpisodeRequest(task_id=expert.task_id, seed=expert.seed, start=deviation.after, max_agent_turns=0)
    done: Correction | None = None
    failed = "the agent's own episode has left the demonstration"
    if deviation.expert_steps:
        spliced = replace(request, script=splice(deviation)[step + 1 :])
        episode = (yield from play_all([spliced], priority=3.0, retries=retries))[0]
        counts += cost([episode])
        done = _finish(deviation, episode, deviation.expert_steps[0].thought)
        failed = f"as spliced it did not work ({_why_of(done)})"
        if done.accepted and all(s.valid for s in done.trajectory.steps[step + 1 :]):
            return replace(done, counts=counts)
    # Either it failed, or it won with steps that the world refused: the wrong action moved the state.
    found = Repair(reason="the demonstration no longer fits, and there is nobody to repair it")
    if repair is not None:
        found = repair(deviation.after)
    if found.steps:
        repairing = replace(request, script=as_script(found.steps))
        episode = (yield from play_all([repairing], priority=3.0, retries=retries))[0]
        counts += cost([episode]) + Counts(num_env_steps=len(found.steps))
        mended = _finish(deviation, episode, found.steps[0].thought)
        if mended.accepted:
            reason = "the demonstration no longer fits; an expert continued from the wrong action"
            return replace(mended, reason=reason, repaired=True, counts=counts)
        found = Repair(reason=f"the repair was executed and did not win ({_why(episode)})")
    if done is not None and done.accepted and done.trajectory.steps[step + 1].valid:
        reason = "won as spliced; steps that the world refused are not trained on"
        return replace(done, counts=counts, reason=reason)
    reason = f"{failed}; {found.reason}"
    return (
        _refuse(deviation, reason, counts)
        if done is None
        else replace(done, accepted=False, counts=counts, reason=reason)
    )


def _finish(
    deviation: Deviation, episode: Episode, thought: str, source: Literal["expert", "agent"] = "expert"
) -> Correction:
    steps = label(episode.trajectory.steps, deviation.step, source)
    accepted = episode.trajectory.won and len(steps) > deviation.step + 1
    return Correction(
        deviation=deviation,
        trajectory=replace(episode.trajectory, steps=steps),
        accepted=accepted,
        expert_thought=thought,
    )


def _before_the_fact(deviation: Deviation, expert: Trajectory, repair: Repairer | None) -> Correction:
    """Nothing can follow the wrong action: the right one is taught at the state before it."""
    reason = _FATAL[deviation.fatal]
    right: Step | None = deviation.expert_steps[0] if deviation.expert_steps else None
    counts = Counts()
    if right is None and repair is not None:
        found = repair(deviation.before)
        counts = Counts(num_env_steps=len(found.steps))
        right = found.steps[0] if found.steps else None
    if right is None:
        return replace(
            _refuse(deviation, f"{reason}; no expert knows the right action before it", counts), kind="fatal"
        )
    return _fatal_correction(deviation, right, right.thought, reason, counts)


def _fatal_correction(deviation: Deviation, right: Step, thought: str, reason: str, counts: Counts) -> Correction:
    history = tuple(as_prefix(s) for s in deviation.before.prefix.steps)
    step = replace(right, source="reflection", trainable=True, text="", token_ids=None)
    trajectory = replace(
        deviation.before.prefix, steps=(*history, step), score=right.score, status="running", won=False
    )
    return Correction(
        deviation=deviation,
        trajectory=trajectory,
        accepted=True,
        kind="fatal",
        reason=reason,
        expert_thought=thought,
        counts=counts,
    )


# -- by the agent's own alternatives ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Alternative:
    """A first action of the agent's own that led to a win, and how often it does."""

    episode: Episode
    """its shortest win"""
    fork: Fork
    """the state after the action"""
    value: float = 0.0
    """mean outcome of the verifying continuations, in [0, 1]"""


def _correct_by_own(
    deviation: Deviation, expert: Trajectory, settings: CalibrationSettings, seed: int, temperature: float
) -> Procedure[Correction]:
    """The best verified alternative of the agent's own (after CSO, arXiv 2602.03412).

    After the wrong action where something can follow it, else before it: then the alternative is taught in its place.
    """
    counts = Counts()
    hopeless = deviation.over or deviation.fatal in ("ended", "unwinnable")
    for place in () if hopeless else ("after",):
        best, more = yield from _best_alternative(
            deviation, deviation.after, place, expert, settings, seed, temperature
        )
        counts += more
        if best is not None:
            index = len(deviation.after.prefix)
            right = best.episode.trajectory.steps[index]
            done = _finish(deviation, best.episode, right.thought, "agent")
            reason = f"the agent's own alternative, which wins {100 * best.value:.0f} % of its continuations"
            return replace(done, reason=reason, counts=counts)
    best, more = yield from _best_alternative(
        deviation, deviation.before, "before", expert, settings, seed, temperature
    )
    counts += more
    if best is None:
        return _refuse(
            deviation, f"none of the agent's own {settings.num_alternatives} alternatives won and was verified", counts
        )
    right = best.episode.trajectory.steps[len(deviation.before.prefix)]
    why = _FATAL.get(deviation.fatal, "no alternative of the agent's own wins after the wrong action")
    reason = f"{why}; its own alternative before it wins {100 * best.value:.0f} % of its continuations"
    return _fatal_correction(deviation, right, right.thought, reason, counts)


def _best_alternative(
    deviation: Deviation,
    start: Fork,
    place: str,
    expert: Trajectory,
    settings: CalibrationSettings,
    seed: int,
    temperature: float,
) -> Procedure[tuple[_Alternative | None, Counts]]:
    """Sample alternatives, keep those that won, verify each by continuations; the best one, or None."""
    name = f"{expert.trajectory_id}/{deviation.step}/{place}"
    base = EpisodeRequest(
        task_id=expert.task_id,
        seed=0,
        sampling=sampling(settings, temperature),
        start=start,
        capture=True,
    )
    asked = [
        replace(base, seed=derive_seed(seed, name, settings.round, "alternative", i))
        for i in range(settings.num_alternatives)
    ]
    episodes = yield from play_all(asked, priority=2.5, retries=settings.max_retries)
    counts = cost(episodes)
    index, wrong = len(start.prefix), normal_action(deviation.turn.action)
    found: dict[str, _Alternative] = {}
    for episode in episodes:
        played = episode.trajectory
        if not played.won or len(played) <= index:
            continue
        turn = played.steps[index]
        action = normal_action(turn.action)
        if not turn.parsed or not turn.valid or (place == "before" and action == wrong):
            continue
        known = found.get(action)
        if known is None or len(played) < len(known.episode.trajectory):
            found[action] = _Alternative(episode, episode.forks[1])
    verified = [a for a in found.values() if a.episode.trajectory.won and len(a.episode.trajectory) > index + 1]
    for alternative in found.values():
        if alternative not in verified:
            alternative.value = 1.0  # it won at once: there is nothing to verify
    requests = [
        replace(
            base,
            start=alternative.fork,
            capture=False,
            seed=derive_seed(seed, name, settings.round, "verify", number, i),
        )
        for number, alternative in enumerate(verified)
        for i in range(settings.num_verifications)
    ]
    played_on = yield from play_all(requests, priority=2.5, retries=settings.max_retries)
    counts += cost(played_on) + Counts(num_samples=len(episodes) + len(played_on))
    for number, alternative in enumerate(verified):
        of_it = played_on[number * settings.num_verifications : (number + 1) * settings.num_verifications]
        alternative.value = sum(e.trajectory.score for e in of_it) / len(of_it)
    best = max(found.values(), key=lambda a: (a.value, -len(a.episode.trajectory)), default=None)
    return (best if best is not None and best.value > 0 else None), counts


def _why(episode: Episode) -> str:
    t = episode.trajectory
    if t.status == "error":
        return t.error
    return "the horizon cut it" if t.status == "truncated" else "the task was not solved"


def _why_of(done: Correction) -> str:
    t = done.trajectory
    refused = next((s.action for s in t.steps[done.step + 1 :] if not s.valid), None)
    if refused is not None:
        return f"the world refused {refused!r}"
    return "the horizon cut it" if t.status == "truncated" else t.error or "the task was not solved"


def execute(
    collector: Collects,
    deviations: Sequence[Deviation],
    experts: Sequence[Trajectory],
    settings: CalibrationSettings | None = None,
    *,
    repair: Repairer | None = None,
    seed: int = 0,
) -> list[Correction]:
    """Correct each deviation, all in one queue; one Correction each, in order.

    Args:
        collector: plays episodes with the agent.
        deviations: what a detector found.
        experts: the demonstration that each was found along.
        settings: where the right action comes from; the default preset.
        repair: finds a continuation where the demonstration does not fit.
        seed: decides the agent's own alternatives.
    """
    chosen = settings or CalibrationSettings()
    procedures = (correct_one(d, e, repair, chosen, seed=seed) for d, e in zip(deviations, experts, strict=True))
    return drive_all(collector, procedures)  # type: ignore[return-value]
