"""Estimators of step rewards behind one protocol: fixed N, racing, and the random ablation.

Knows comparisons and how many continuations they still need. Knows no queue: whoever drives it samples what
``wanted`` asks for, hands outcomes to the comparison's values, and asks ``decide`` again.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from steca_gym.step_rewards.sequential import Race, confidence_sequence
from steca_gym.step_rewards.settings import StepRewardSettings
from steca_gym.step_rewards.values import Comparison, Decision, Estimate, StateValue, derive_seed, wilson


class StepRewards(Protocol):
    """Decides comparisons.

    The loop that it serves::

        rewards.begin(comparisons_of_a_trajectory)
        while (decision := rewards.decide(comparison)) is None:
            num_expert, num_agent = rewards.wanted(comparison)
            ...                                   # sample continuations up to these counts
            rewards.observe(value, outcome)       # each new outcome, also told to value.add
    """

    def begin(self, comparisons: Sequence[Comparison]) -> None:
        """Meet a trajectory's comparisons, in the order of their steps."""
        ...

    def wanted(self, comparison: Comparison) -> tuple[int, int]:
        """Continuations that the expert's and the agent's state should have by now, counted from zero."""
        ...

    def decide(self, comparison: Comparison) -> Decision | None:
        """The decision, or None while outcomes are missing."""
        ...

    def priority(self, comparison: Comparison) -> tuple[float, float]:
        """How near the decision is, and the probability of ``deviated``; both in [0, 1], both rough."""
        ...

    def observe(self, value: StateValue, outcome: float) -> None:
        """Take note of a new outcome."""
        ...

    def report(self) -> dict[str, float]:
        """What it says about itself, e.g. a critic's calibration error; stored with the run."""
        ...


def exact_estimate(value: float) -> Estimate:
    """A value that is known."""
    return Estimate(mean=value, low=value, high=value, outcomes=(value,))


def race_estimate(value: StateValue, count: int, level: float, unknown: float = 0.5) -> Estimate:
    """A raced value by its first ``count`` outcomes, with a confidence sequence; ``unknown`` stands for no outcome."""
    if value.exact is not None:
        return exact_estimate(value.exact)
    outcomes = tuple(value.first(count))
    low, high = confidence_sequence(outcomes, level)
    mean = float(np.mean(outcomes)) if outcomes else unknown
    return Estimate(mean=mean, low=min(low, mean), high=max(high, mean), outcomes=outcomes)


def _plain_estimate(value: StateValue, count: int, level: float) -> Estimate:
    if value.exact is not None:
        return exact_estimate(value.exact)
    outcomes = tuple(value.first(count))
    mean = float(np.mean(outcomes)) if outcomes else 0.5
    low, high = wilson(mean, len(outcomes), level)
    return Estimate(mean=mean, low=low, high=high, outcomes=outcomes)


def broken_decision(comparison: Comparison) -> Decision | None:
    """Undecided, where a state's continuations kept failing."""
    if comparison.expert.broken or comparison.agent.broken:
        return Decision(verdict="undecided", expert=None, agent=None)
    return None


class FixedRewards:
    """N continuations of each state and a comparison of the means (the paper, N = 5).

    Means are compared exactly (they are sums of the same few numbers); equality is a ``tie``.
    """

    def __init__(self, settings: StepRewardSettings, delta: float, ties_deviate: bool = False) -> None:
        """``delta``: the agent's value must fall below the expert's by more than ``-delta``.

        ``ties_deviate``: equality is a deviation for the caller, which ``skip_decided`` may rely on.
        """
        self._settings, self._delta, self._ties_deviate = settings, delta, ties_deviate

    def begin(self, comparisons: Sequence[Comparison]) -> None:
        """Nothing to prepare."""

    def wanted(self, comparison: Comparison) -> tuple[int, int]:
        """N and N; with ``skip_decided`` the agent's state first."""
        n = self._settings.num_samples
        if self._settings.skip_decided and comparison.agent.available < n:
            return 0, n
        return n, n

    def _surely_deviated(self, comparison: Comparison) -> bool:
        # The expert's mean is 0 at least: nothing can lift the agent's above it.
        n = self._settings.num_samples
        if not (self._settings.skip_decided and self._ties_deviate) or comparison.agent.available < n:
            return False
        return sum(comparison.agent.first(n)) / n <= self._delta

    def priority(self, comparison: Comparison) -> tuple[float, float]:
        """No preference."""
        return 0.5, 0.3

    def observe(self, value: StateValue, outcome: float) -> None:
        """Nothing to learn."""

    def report(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def decide(self, comparison: Comparison) -> Decision | None:
        """Compare the means once both states have their N outcomes."""
        n = self._settings.num_samples
        if (failed := broken_decision(comparison)) is not None:
            return failed
        if comparison.expert.available < n and self._surely_deviated(comparison):
            alone = _plain_estimate(comparison.agent, n, self._settings.level)
            return Decision(verdict="deviated", expert=None, agent=alone)
        if min(comparison.expert.available, comparison.agent.available) < n:
            return None
        expert = _plain_estimate(comparison.expert, n, self._settings.level)
        agent = _plain_estimate(comparison.agent, n, self._settings.level)
        gap = agent.mean - expert.mean - self._delta
        verdict = "tie" if abs(gap) < 1e-9 else "deviated" if gap < 0 else "kept"
        return Decision(verdict=verdict, expert=expert, agent=agent)  # type: ignore[arg-type]


class RacingRewards:
    """Sample pair by pair until the comparison is decided at error rates that hold for every value; see ``sequential``.

    The reported intervals are confidence sequences, each valid at its level at any time.
    """

    def __init__(self, settings: StepRewardSettings, delta: float) -> None:
        """See FixedRewards."""
        self._settings, self._delta = settings, delta
        self._races: weakref.WeakKeyDictionary[Comparison, Race] = weakref.WeakKeyDictionary()

    def begin(self, comparisons: Sequence[Comparison]) -> None:
        """Nothing to prepare."""

    def _race(self, comparison: Comparison) -> Race:
        race = self._races.get(comparison)
        if race is None:
            s = self._settings
            race = self._races[comparison] = Race(
                delta=self._delta,
                alpha=s.alpha,
                beta=s.beta,
                min_effect=s.min_effect,
                max_pairs=s.max_samples,
                curtail=s.curtail,
            )
        # Pairs are taken in the order in which they were asked for, never in the order of finishing.
        ready = min(comparison.expert.available, comparison.agent.available)
        while race.decision is None and race.num_pairs < ready:
            i = race.num_pairs
            race.add(comparison.expert.first(i + 1)[i], comparison.agent.first(i + 1)[i])
        return race

    def wanted(self, comparison: Comparison) -> tuple[int, int]:
        """As many more pairs as even the best luck would need: none of them can turn out superfluous."""
        race = self._race(comparison)
        left = self._settings.max_samples - race.num_pairs
        more = 0 if race.decision is not None else min(left, max(1, race.fewest_pairs_left()))
        return race.num_pairs + more, race.num_pairs + more

    def priority(self, comparison: Comparison) -> tuple[float, float]:
        """From the evidences."""
        race = self._race(comparison)
        return race.progress, race.leans_lower

    def observe(self, value: StateValue, outcome: float) -> None:
        """Nothing to learn."""

    def report(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def decide(self, comparison: Comparison) -> Decision | None:
        """The race's decision; two exact values are compared at once."""
        if (failed := broken_decision(comparison)) is not None:
            return failed
        if comparison.expert.exact is not None and comparison.agent.exact is not None:
            return FixedRewards(self._settings, self._delta).decide(comparison)
        race = self._race(comparison)
        if race.decision is None:
            return None
        expert = race_estimate(comparison.expert, race.num_pairs, self._settings.level)
        agent = race_estimate(comparison.agent, race.num_pairs, self._settings.level)
        return Decision(verdict=race.decision, expert=expert, agent=agent)  # type: ignore[arg-type]


class RandomRewards:
    """The ablation "random deviation detection": one comparison of a trajectory, drawn evenly, deviates."""

    def __init__(self, settings: StepRewardSettings, delta: float, seed: int = 0) -> None:
        """``seed`` decides the draws."""
        self._seed = seed
        self._chosen: weakref.WeakSet[Comparison] = weakref.WeakSet()

    def begin(self, comparisons: Sequence[Comparison]) -> None:
        """Draw one."""
        if comparisons:
            draw = derive_seed(self._seed, "random", comparisons[0].token) % len(comparisons)
            self._chosen.add(comparisons[draw])

    def wanted(self, comparison: Comparison) -> tuple[int, int]:
        """No samples."""
        return 0, 0

    def priority(self, comparison: Comparison) -> tuple[float, float]:
        """No preference."""
        return 1.0, 0.5

    def observe(self, value: StateValue, outcome: float) -> None:
        """Nothing to learn."""

    def report(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def decide(self, comparison: Comparison) -> Decision | None:
        """At once, without estimates."""
        verdict = "deviated" if comparison in self._chosen else "kept"
        return Decision(verdict=verdict, expert=None, agent=None)  # type: ignore[arg-type]
