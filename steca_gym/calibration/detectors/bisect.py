"""``detector=bisect``: the first irrecoverable step of the agent's own failed episode, in O(log K) probes.

After ELPO (arXiv 2602.09598): a state is recoverable if the agent still wins from it in one of a few sampled
continuations. Along a failed episode the last state is lost and the first is not; a binary search finds the step
between. The episode leaves the demonstration at its first differing action, so the step found may lie where no
demonstration leads: its correction then comes from an expert that can act there, or from the agent's own alternatives.

An agent that repeats a refused action still wins now and then after each repetition but the last. What it has to learn
is not to begin, so the correction starts at the first of them (``first_repetition``; this is not in ELPO).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from steca_gym.calibration.deviation import WON_ANYWAY, Detection, DetectionCase, Deviation, count_verdicts
from steca_gym.calibration.exploration import cost, sampling
from steca_gym.calibration.records import Counts, FatalReason, StepVerdict
from steca_gym.calibration.schedule import Gather, Procedure, SampleRequest
from steca_gym.collectors.episodes import Episode, EpisodeRequest, Fork
from steca_gym.step_rewards.values import Estimate, derive_seed, wilson
from steca_gym.trajectory import Step, Trajectory


@dataclass(slots=True)
class _Probes:
    """What is known about the states of one episode."""

    outcomes: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """scores of the continuations, by state"""
    unwinnable: set[int] = field(default_factory=set)
    counts: Counts = Counts()


class BisectDetector:
    """Probes states of the agent's own episode; assumes that what is lost stays lost."""

    def detect(self, case: DetectionCase) -> Procedure[Detection]:
        """See ``Detector``."""
        same = tuple(case.verdict(e, "same_action") for e in case.exploration.steps if e.same_action)
        if not case.differences:
            return Detection(verdicts=same, counts=count_verdicts(same))
        first = case.differences[0]
        before = tuple(v for v in same if v.step < first.step)
        probes = _Probes()
        states: list[Fork] = [case.exploration.forks[first.step], first.fork]
        own: Trajectory | None = first.trajectory
        if not first.over:
            own, more = yield from self._play_own(case, probes)
            states = [states[0], *more]
        if own is None:
            timeline = (*before, case.verdict(first, "undecided", note="the greedy rollout broke"))
            return Detection(verdicts=timeline, counts=probes.counts + count_verdicts(timeline))
        if own.won:
            timeline = (*before, case.verdict(first, "kept", rollout=own, note=WON_ANYWAY))
            return Detection(
                verdicts=timeline, rollouts={first.step: own}, counts=probes.counts + count_verdicts(timeline)
            )
        # The state before the first difference is the demonstration's, which wins; the last one lost the game.
        low, high = 0, len(states) - 1
        while high - low > 1:
            middle = (low + high) // 2
            recoverable = yield from self._probe(case, states[middle], first.step + middle, middle, probes)
            low, high = (middle, high) if recoverable else (low, middle)
        return self._detection(case, before, own, states, high, probes)

    def _play_own(self, case: DetectionCase, probes: _Probes) -> Procedure[tuple[Trajectory | None, list[Fork]]]:
        """The agent's own episode from its first difference to the end, with its states from there on."""
        first = case.differences[0]
        for attempt in range(case.settings.max_retries + 1):
            request = case.rollout_request(first, attempt=attempt)
            capturing = EpisodeRequest(
                task_id=request.task_id,
                seed=request.seed,
                sampling=request.sampling,
                start=request.start,
                capture=True,
            )
            episodes = yield from Gather([SampleRequest(request=capturing, priority=1.5)])
            probes.counts += cost(episodes)
            if episodes[0].trajectory.status != "error":
                return episodes[0].trajectory, list(episodes[0].forks)
        return None, []

    def _probe(self, case: DetectionCase, fork: Fork, step: int, number: int, probes: _Probes) -> Procedure[bool]:
        """Whether the agent still wins from a state; stops at the first win."""
        if case.settings.detect_fatal and case.winnable(fork) is False:
            probes.unwinnable.add(number)
            return False
        name = case.exploration.expert.trajectory_id
        requests = [
            EpisodeRequest(
                task_id=case.exploration.expert.task_id,
                seed=derive_seed(case.seed, name, case.settings.round, "probe", step, index),
                sampling=sampling(case.settings, case.reward_settings.temperature),
                start=fork,
            )
            for index in range(case.settings.num_probes)
        ]
        # All are played, so that what is stored does not depend on which came first.
        episodes: list[Episode] = yield from Gather(SampleRequest(request=r, priority=0.9) for r in requests)
        played = [e.trajectory for e in episodes if e.trajectory.status != "error"]
        probes.outcomes[number] = tuple(t.score for t in played)
        probes.counts += cost(episodes) + Counts(num_samples=len(episodes))
        return any(t.won for t in played) or not played

    def _detection(
        self,
        case: DetectionCase,
        before: tuple[StepVerdict, ...],
        own: Trajectory,
        states: list[Fork],
        found: int,
        probes: _Probes,
    ) -> Detection:
        first = case.differences[0]
        over = found == len(states) - 1
        fatal = self._fatal(case, own, found, over, probes)
        note = ""
        begun = _first_repetition(own, first.step, found) if case.settings.first_repetition else found
        if begun < found:
            # After the first repetition the game is not lost yet, so nothing there is fatal.
            note = f"the first of {found - begun + 1} in vain, after which the game is lost"
            found, over, fatal = begun, False, ""
        step = first.step + found - 1
        middle = [self._verdict(case, own, k, probes) for k in sorted(probes.outcomes) if k < found]
        last = self._verdict(case, own, found, probes, verdict="fatal" if fatal else "deviated", fatal=fatal, note=note)
        timeline = (*before, *middle, last)
        on_path = found == 1
        prefix = own.steps[: step + 1]
        deviation = Deviation(
            step=step,
            turn=own.steps[step],
            before=states[found - 1],
            after=states[found],
            trajectory=first.trajectory if on_path else _running(own, prefix),
            over=over,
            expert_steps=case.exploration.expert.steps[step:] if on_path else (),
            failed_continuation=own,
            fatal=fatal,
        )
        return Detection(
            verdicts=timeline,
            deviations=(deviation,),
            rollouts={first.step: own},
            counts=probes.counts + count_verdicts(timeline),
        )

    @staticmethod
    def _fatal(case: DetectionCase, own: Trajectory, found: int, over: bool, probes: _Probes) -> FatalReason:
        if not case.settings.detect_fatal:
            return ""
        if over:
            return "ended" if own.status == "terminated" else ""
        if found in probes.unwinnable:
            return "unwinnable"
        return "lost" if probes.outcomes.get(found) else ""

    @staticmethod
    def _verdict(
        case: DetectionCase,
        own: Trajectory,
        number: int,
        probes: _Probes,
        verdict: str = "kept",
        fatal: FatalReason = "",
        note: str = "",
    ) -> StepVerdict:
        step = case.differences[0].step + number - 1
        expert = case.exploration.expert
        outcomes, ahead = probes.outcomes.get(number), probes.outcomes.get(number - 1)
        turn = own.steps[step]
        return StepVerdict(
            step=step,
            expert_action=expert.steps[step].action if number == 1 and step < len(expert) else "",
            agent_action=turn.action,
            agent_observation=turn.observation,
            agent_valid=turn.valid,
            verdict=verdict,  # type: ignore[arg-type]
            expert_reward=None if not ahead else _estimate(ahead, case.reward_settings.level),
            agent_reward=None if not outcomes else _estimate(outcomes, case.reward_settings.level),
            explored_score=own.score,
            basis="world" if fatal in ("ended", "unwinnable") else "values" if ahead and outcomes else "agent_value",
            fatal=fatal,
            note=note,
        )


def _first_repetition(own: Trajectory, first_step: int, found: int) -> int:
    """The state after the first of the equal steps that end at the step found; ``found`` itself where none repeats."""
    while found > 1:
        here, ahead = own.steps[first_step + found - 1], own.steps[first_step + found - 2]
        if (here.action, here.observation) != (ahead.action, ahead.observation):
            break
        found -= 1
    return found


def _estimate(outcomes: tuple[float, ...], level: float) -> Estimate:
    mean = sum(outcomes) / len(outcomes)
    low, high = wilson(mean, len(outcomes), level)
    return Estimate(mean=mean, low=low, high=high, outcomes=outcomes)


def _running(own: Trajectory, steps: tuple[Step, ...]) -> Trajectory:
    return replace(own, steps=steps, score=steps[-1].score, won=False, status="running", trajectory_id="")
