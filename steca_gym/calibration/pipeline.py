"""The whole of calibration: explore, detect, correct and reflect, for many expert trajectories in one queue.

Each expert trajectory's result is handed out as soon as it stands, so that a killed run continues where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from steca_gym.agent import Agent
from steca_gym.calibration.correction import Correction, correct_one, with_reflection
from steca_gym.calibration.detection import detect_one, explored_success
from steca_gym.calibration.detectors import make_detector
from steca_gym.calibration.deviation import Detection, DetectionCase, Detector, Winnable
from steca_gym.calibration.exploration import Exploration, Similarity, as_prefix, explore_one, first_open_step
from steca_gym.calibration.records import (
    NO_REFLECTION,
    Calibration,
    CalibrationResult,
    Counts,
    ExpertResult,
    ExpertSubtrajectory,
    Reflection,
)
from steca_gym.calibration.repair import AgentRepair, LocalWorld, Repairer, make_repairer
from steca_gym.calibration.schedule import Collects, Procedure, Scheduler
from steca_gym.calibration.settings import CalibrationSettings, check_together
from steca_gym.env import TextEnv
from steca_gym.errors import ConfigError
from steca_gym.step_rewards import (
    Example,
    Judge,
    LearningRewards,
    StepRewards,
    StepRewardSettings,
    make_step_rewards,
)
from steca_gym.step_rewards.values import ValueCache
from steca_gym.trajectory import Step, Trajectory

if TYPE_CHECKING:
    from steca_gym.calibration.reflection import ReflectionCase, Reflector

OnResult = Callable[[ExpertResult], None]
OnProgress = Callable[[int, int, Counts], None]
"""expert trajectories done, their number, and the counts so far"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    exploration: Exploration
    detection: Detection
    corrections: tuple[Correction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What every expert trajectory of a call shares."""

    settings: CalibrationSettings
    reward_settings: StepRewardSettings
    rewards: StepRewards
    detector: Detector
    cache: ValueCache
    repair: Repairer | None
    similarity: Similarity | None
    winnable: Winnable
    judge: Judge | None
    seed: int


def _calibrate_one(expert: Trajectory, parts: _Parts) -> Procedure[_Draft]:
    settings = parts.settings
    exploration = yield from explore_one(expert, settings, parts.seed, parts.similarity)
    case = DetectionCase(
        exploration=exploration,
        settings=settings,
        reward_settings=parts.reward_settings,
        rewards=parts.rewards,
        cache=parts.cache,
        seed=parts.seed,
        winnable=parts.winnable,
        judge=parts.judge,
    )
    detection = yield from detect_one(parts.detector, case)
    corrections = []
    for deviation in detection.deviations:
        done = yield from correct_one(
            deviation,
            exploration.expert,
            parts.repair,
            settings,
            seed=parts.seed,
            temperature=parts.reward_settings.temperature,
        )
        corrections.append(done)
    return _Draft(exploration=exploration, detection=detection, corrections=tuple(corrections))


def reflection_case(correction: Correction) -> ReflectionCase:
    """What a reflector is asked about a correction: the history with the wrong turn, and the right action."""
    from steca_gym.calibration.reflection import ReflectionCase

    played, deviation = correction.trajectory, correction.deviation
    history = replace(
        played,
        steps=(*played.steps[: deviation.step], replace(deviation.turn, source="deviation", trainable=False)),
        score=0.0,
        won=False,
        status="running",
        trajectory_id="",
    )
    action = played.steps[correction.right_step].action
    return ReflectionCase(history=history, right_action=action, expert_thought=correction.expert_thought)


def reflect(corrections: Sequence[Correction], reflector: Reflector) -> list[Reflection]:
    """One thought per correction, in order; refused ones get none, fatal ones a thought before the fact."""
    from steca_gym.calibration.foresight import foresee

    after = [c for c in corrections if c.accepted and c.kind == "corrected"]
    before = [c for c in corrections if c.accepted and c.kind == "fatal"]
    written = {
        "corrected": iter(reflector.reflect([reflection_case(c) for c in after]) if after else []),
        "fatal": iter(foresee([reflection_case(c) for c in before], reflector)),
    }
    return [next(written[c.kind]) if c.accepted else NO_REFLECTION for c in corrections]


def _calibration(
    draft: _Draft, correction: Correction, reflection: Reflection, settings: CalibrationSettings
) -> Calibration:
    exploration, deviation, t = draft.exploration, correction.deviation, correction.step
    accepted, reason, steps = correction.accepted, correction.reason, correction.trajectory.steps
    if accepted and not reflection.text:
        accepted, reason = False, f"the reflector {reflection.source!r} wrote nothing"
    if accepted:
        steps = with_reflection(steps, correction.right_step, reflection)
    trajectory = replace(correction.trajectory, steps=steps).with_id()
    failed = deviation.failed_continuation
    known = deviation.expert_steps[0].action if deviation.expert_steps else ""
    identity = f"{exploration.expert.trajectory_id}/{t}/{settings.round}/{trajectory.trajectory_id}"
    return Calibration(
        calibration_id=hashlib.blake2b(identity.encode(), digest_size=12).hexdigest(),
        task_id=exploration.expert.task_id,
        expert_id=exploration.expert.trajectory_id,
        step=t,
        deviated=replace(deviation.turn, source="deviation", trainable=False),
        expert_action=steps[correction.right_step].action if accepted else known,
        reflection=reflection,
        verdicts=tuple(v for v in draft.detection.verdicts if v.step <= t),
        trajectory=trajectory,
        failed_continuation=failed if failed is not None and not failed.won else None,
        status="accepted" if accepted else "refused",
        reason=reason,
        kind=correction.kind,
        repaired=correction.repaired and accepted,
        round=settings.round,
    )


def _subtrajectory(expert: Trajectory, step: int, failed: Trajectory) -> ExpertSubtrajectory:
    steps: tuple[Step, ...] = tuple(
        as_prefix(s) if i < step else replace(s, source="expert", trainable=True) for i, s in enumerate(expert.steps)
    )
    return ExpertSubtrajectory(trajectory=replace(expert, steps=steps).with_id(), failed_continuation=failed, step=step)


def _expert_subtrajectories(draft: _Draft, settings: CalibrationSettings) -> tuple[ExpertSubtrajectory, ...]:
    """D_s: e_{t:n} where r_s(s_t, a_t) > r_s(s_t, a_hat_t) and the agent failed; whole demonstrations if asked for."""
    expert, detection = draft.exploration.expert, draft.detection
    failed = {d.step: d.failed_continuation for d in detection.deviations}
    failed = {**detection.rollouts, **{t: f for t, f in failed.items() if f is not None}}
    parts = []
    for t in detection.expert_better:
        rollout = failed.get(t)
        if rollout is not None and not rollout.won:
            parts.append(_subtrajectory(expert, t, rollout))
    own, first = draft.exploration.own_episode, first_open_step(expert)
    if settings.failed_demonstrations and own is not None and own.status != "error" and not own.won:
        parts.insert(0, _subtrajectory(expert, first, own))
    return tuple(parts)


def _explored_successes(draft: _Draft, settings: CalibrationSettings) -> tuple[Trajectory, ...]:
    """D_e: the agent's own wins, after actions of its own or as whole episodes."""
    if settings.explored == "episodes":
        own, first = draft.exploration.own_episode, first_open_step(draft.exploration.expert)
        return (explored_success(own, first),) if own is not None and own.won else ()
    rollouts = sorted(draft.detection.rollouts.items())
    return tuple(explored_success(rollout, t) for t, rollout in rollouts if rollout.won)


def _result(draft: _Draft, reflections: Sequence[Reflection], settings: CalibrationSettings) -> ExpertResult:
    exploration, detection = draft.exploration, draft.detection
    calibrations = tuple(
        _calibration(draft, c, r, settings) for c, r in zip(draft.corrections, reflections, strict=True)
    )
    counts = exploration.counts + detection.counts
    for correction in draft.corrections:
        counts += correction.counts
    counts += Counts(
        num_accepted=sum(c.status == "accepted" for c in calibrations),
        num_refused=sum(c.status == "refused" for c in calibrations),
        num_repaired=sum(c.repaired for c in calibrations),
    )
    return ExpertResult(
        expert_id=exploration.expert.trajectory_id,
        task_id=exploration.expert.task_id,
        verdicts=detection.verdicts,
        calibrations=calibrations,
        explored_successes=_explored_successes(draft, settings),
        expert_subtrajectories=_expert_subtrajectories(draft, settings),
        counts=counts,
        error=exploration.error,
    )


def examples(expert: Trajectory, result: ExpertResult) -> list[Example]:
    """The states of a result with their outcomes, for an estimator that learns; a function of what is stored."""
    found = []
    for v in result.verdicts:
        if v.expert_action == "" or v.step > len(expert):
            continue  # off the demonstration: the history is not the expert's
        prefix = replace(expert, steps=expert.steps[: v.step], status="running", won=False, score=0.0)
        if v.expert_reward is not None and v.expert_reward.outcomes:
            found.append(Example(prefix, v.expert_reward.outcomes))
        if v.agent_reward is not None and v.agent_reward.outcomes:
            turn = Step(action=v.agent_action, observation=v.agent_observation, valid=v.agent_valid)
            found.append(Example(replace(prefix, steps=(*prefix.steps, turn)), v.agent_reward.outcomes))
    return found


def calibrate(
    collector: Collects,
    experts: Sequence[Trajectory],
    *,
    settings: CalibrationSettings | None = None,
    reward_settings: StepRewardSettings | None = None,
    reflector: Reflector | None = None,
    seed: int = 0,
    make_env: Callable[[], TextEnv] | None = None,
    expert: Repairer | Agent | None = None,
    similarity: Similarity | None = None,
    judge: Judge | None = None,
    done: Collection[str] = (),
    earlier: Sequence[ExpertResult] = (),
    on_result: OnResult | None = None,
    on_progress: OnProgress | None = None,
) -> CalibrationResult:
    """Explore, detect, correct and reflect for every expert trajectory.

    The results depend on the arguments only: neither on how many episodes run at once nor on the order in which they
    finish, and a call with ``done`` continues as an uninterrupted one would have.

    Args:
        collector: plays episodes with the agent that is calibrated (``drive``).
        experts: successful expert trajectories; ids are given where they are missing.
        settings: what counts as a deviation and how it is corrected; the default preset.
        reward_settings: how step rewards are estimated; the default preset.
        reflector: writes the reflections; the template by default.
        seed: decides every sample.
        make_env: makes the environment that is asked whether a state can be won, and in which corrections are repaired;
            the collector's own by default.
        expert: repairs corrections that no longer fit: a Repairer, or an agent that plays well (e.g. one that acts on
            the conversation only); by default the world's own expert.
        similarity: cosine of two actions' encodings, for ``same_action="encoder"``.
        judge: for ``estimator="judge"``.
        done: expert ids to leave out, decided by an earlier, interrupted call.
        earlier: their results; needed by an estimator that learns (``critic``).
        on_result: called with each expert trajectory's result as soon as it stands, in the order of finishing.
        on_progress: called after each result.

    Returns:
        The results of this call's expert trajectories, in the order of ``experts``.

    Raises:
        ConfigError: settings that do not fit together, or a part that they need is missing.
    """
    from steca_gym.calibration.reflection import TemplateReflector

    settings = settings or CalibrationSettings()
    reward_settings = reward_settings or StepRewardSettings()
    check_together(settings, reward_settings)
    writer: Reflector = reflector if reflector is not None else TemplateReflector()
    make_env = make_env if make_env is not None else getattr(collector, "make_env", None)
    world = LocalWorld(make_env) if make_env is not None else None
    rewards = make_step_rewards(
        reward_settings, delta=settings.delta, ties_deviate=settings.tie_rule == "deviated", judge=judge
    )
    parts = _Parts(
        settings=settings,
        reward_settings=reward_settings,
        rewards=rewards,
        detector=make_detector(settings.detector),
        cache=ValueCache(),
        repair=make_repairer(
            expert,
            make_env,
            world=world,
            prompt=getattr(collector, "prompt", None),
            turn_format=getattr(collector, "turn_format", None),
        ),
        similarity=similarity,
        winnable=world.winnable if world is not None else lambda fork: None,
        judge=judge,
        seed=seed,
    )
    named = [e if e.trajectory_id else e.with_id() for e in experts]
    # The same demonstration twice is one: its results would be equal.
    distinct = list({e.trajectory_id: e for e in named}.values())
    todo = [e for e in distinct if e.trajectory_id not in done]
    results: dict[str, ExpertResult] = {}
    waiting: list[_Draft] = []
    total = Counts()

    def flush() -> None:
        nonlocal total
        drafts, waiting[:] = list(waiting), []
        reflections = iter(reflect([c for d in drafts for c in d.corrections], writer))
        for draft in drafts:
            result = _result(draft, [next(reflections) for _ in draft.corrections], settings)
            results[result.expert_id] = result
            total += result.counts
            if on_result is not None:
                on_result(result)
            if on_progress is not None:
                on_progress(len(results), len(todo), total)

    def returned(_: int, draft: object) -> None:
        assert isinstance(draft, _Draft)
        waiting.append(draft)
        asking = sum(c.accepted for d in waiting for c in d.corrections)
        if asking == 0 or asking >= writer.batch_size:
            flush()

    abandoned = Counts()
    try:
        for block in _blocks(distinct, rewards, done, earlier, results):
            scheduler = Scheduler((_calibrate_one(e, parts) for e in block), returned)
            try:
                collector.drive(scheduler)
            finally:
                # Also on an interrupt: what was decided is handed out, and not sampled again by the next call.
                if waiting:
                    flush()
            abandoned += Counts(
                num_samples=len(scheduler.abandoned),
                num_sampled_tokens=sum(tokens for tokens, _ in scheduler.abandoned),
                num_env_steps=sum(steps for _, steps in scheduler.abandoned),
            )
    finally:
        if world is not None:
            world.close()
        if isinstance(parts.repair, AgentRepair) and parts.repair is not expert:
            parts.repair.close()
    decided = tuple(results[e.trajectory_id] for e in todo if e.trajectory_id in results)
    return CalibrationResult(results=decided, abandoned=abandoned, estimator=rewards.report())


def _blocks(
    experts: Sequence[Trajectory],
    rewards: StepRewards,
    done: Collection[str],
    earlier: Sequence[ExpertResult],
    results: Mapping[str, ExpertResult],
) -> Iterator[list[Trajectory]]:
    """The expert trajectories that are left, in blocks between which an estimator learns; one block for the others."""
    if not isinstance(rewards, LearningRewards):
        yield [e for e in experts if e.trajectory_id not in done]
        return
    stored = {r.expert_id: r for r in earlier}
    missing = [e.trajectory_id for e in experts if e.trajectory_id in done and e.trajectory_id not in stored]
    if missing:
        raise ConfigError(
            f"an estimator that learns continues from stored results, and {len(missing)} of them are missing "
            f"(first: {missing[0]!r}); pass them as earlier="
        )
    for start in range(0, len(experts), rewards.block_size):
        known = {**stored, **results}
        before = [(e, known[e.trajectory_id]) for e in experts[:start] if e.trajectory_id in known]
        rewards.learn([example for e, r in before for example in examples(e, r)])
        yield [e for e in experts[start : start + rewards.block_size] if e.trajectory_id not in done]
