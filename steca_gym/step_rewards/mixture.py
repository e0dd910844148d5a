"""Racing by a mixture SPRT: is the drop there, given what the values of the expert's states are like?

Knows which outcome to ask for next and when to stop. Knows no queue, no agent and no environment; the two
hypotheses' probabilities come from ``hypotheses``.

The two hypotheses about (p, q), the values of the expert's state and of the state behind the agent's action:

    H0: q = p + delta,                    p ~ pi                  (no drop)
    H1: q <= p + delta - min_effect,      p ~ pi where that can be, q even below     (a drop that matters)

Lambda is the ratio of the probabilities of all outcomes so far under H1 and under H0. It is a martingale under
H0 whichever arm is sampled next and however often one looks, so it ever reaches 1/alpha with probability at most
alpha (Ville 1939), and under H1 it ever falls to beta with probability at most beta: Wald's sequential
probability ratio test (1945), with mixtures for the unknown means as in Robbins, "Statistical methods related to
the law of the iterated logarithm" (1970). The rates are averages over p as pi has it; ``sequential`` has a test
that holds them for every single p and needs several times the samples (benchmarks/results/detector.md).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np

from steca_gym.step_rewards.estimators import FixedRewards, broken_decision, race_estimate
from steca_gym.step_rewards.hypotheses import GRID, Array, Counts, Hypotheses, fit_values, plus
from steca_gym.step_rewards.settings import StepRewardSettings
from steca_gym.step_rewards.values import Comparison, Decision, StateValue, derive_seed

_FIRST_FIT, _REFIT_GROWTH = 8, 1.25
"""states with outcomes before the first fit, and growth of their number before the next one"""


def successes(value: StateValue, limit: int) -> list[bool]:
    """Which of the first ``limit`` outcomes are successes.

    An outcome between 0 and 1 counts as a success with that probability, by a draw that the state's token and
    the outcome's index decide: the mean stays what it was, and the counts are binomial.
    """
    return [
        derive_seed(value.token, "success", i) < x * 2**31 if 0 < x < 1 else x >= 1
        for i, x in enumerate(value.outcomes[:limit])
    ]


class MixtureRace:
    """One comparison's test.

    ``deviated`` where Lambda reaches 1/alpha, ``kept`` where it falls to beta, ``undecided`` where each state has
    ``max_samples`` outcomes or the rest of them cannot decide any more. Outcomes are taken in the order in which
    they were asked for, whatever the order of finishing.
    """

    def __init__(self, hypotheses: Hypotheses, settings: StepRewardSettings, start: Counts = (0, 0, 0, 0)) -> None:
        """Start with the counts of what is known beforehand."""
        self.hypotheses, self._s = hypotheses, settings
        self._up, self._down = math.log(1 / settings.alpha), math.log(settings.beta)
        self._arms = (0,) if hypotheses.agent_is_exact else (0, 1)
        self._given = start
        self.counts = start
        self.plan: list[int] = []
        """arms in the order in which their outcomes were asked for"""
        self._num_taken = 0
        self.decision: str | None = None
        self._look()

    def take(self, expert: Sequence[bool], agent: Sequence[bool]) -> None:
        """Take what has come of the plan: successes of each arm's outcomes, from its first on."""
        known = (expert, agent)
        while self.decision is None and self._num_taken < len(self.plan):
            arm = self.plan[self._num_taken]
            if len(known[arm]) <= self.count(arm):
                break
            self.counts = plus(self.counts, arm, success=known[arm][self.count(arm)])
            self._num_taken += 1
            self._look()

    def count(self, arm: int) -> int:
        """Outcomes taken from an arm."""
        return sum(self.counts[2 * arm : 2 * arm + 2]) - sum(self._given[2 * arm : 2 * arm + 2])

    def _left(self, arm: int, asked: int) -> int:
        given = sum(self._given[2 * arm : 2 * arm + 2])
        return self._s.max_samples - asked - given if arm in self._arms else 0

    def _decided(self, counts: Counts) -> str | None:
        log = self.hypotheses.log_ratio(counts)
        return "deviated" if log >= self._up else "kept" if log <= self._down else None

    def _look(self) -> None:
        self.decision = self._decided(self.counts)
        left = [self._left(arm, self.count(arm)) for arm in (0, 1)]
        if self.decision is None and (max(left) <= 0 or (self._s.curtail and not self._can_decide(left))):
            self.decision = "undecided"

    def _can_decide(self, left: Sequence[int]) -> bool:
        sx, fx, sy, fy = self.counts
        x, y = left
        # What each arm can add to either side, alone and together.
        bad = [(sx + i, fx, sy, fy + j) for i, j in ((x, y), (x, 0), (0, y))]
        good = [(sx, fx + i, sy + j, fy) for i, j in ((x, y), (x, 0), (0, y))]
        return any(self._decided(c) == "deviated" for c in bad) or any(self._decided(c) == "kept" for c in good)

    @property
    def asked(self) -> tuple[int, int]:
        """Outcomes that each arm should have by now."""
        return self.plan.count(0), self.plan.count(1)

    def ask(self) -> bool:
        """Plan as many more outcomes as the shortest way to a decision needs; False where none are to be planned.

        They go to the arm whose next outcome says most about the two hypotheses, taking the likelier outcome for
        those that are under way. Nothing is planned before the earlier plan has been taken.
        """
        if self.decision is not None or self._num_taken < len(self.plan):
            return False
        counts, asked = self.counts, [self.count(0), self.count(1)]
        for _ in range(self._fewest()):
            arms = [a for a in self._arms if self._left(a, asked[a]) > 0]
            if not arms:
                break
            arm = max(arms, key=lambda a: self.hypotheses.information(counts, a))
            asked[arm] += 1
            self.plan.append(arm)
            counts = plus(counts, arm, success=self.hypotheses.likely(counts, arm))
        return True

    def _fewest(self) -> int:
        """Outcomes until the earliest decision, when the luckiest one comes each time."""
        fewest = 2 * self._s.max_samples
        for sign in (1.0, -1.0):
            counts = self.counts
            for number in range(1, fewest + 1):
                nexts = [plus(counts, a, success=(a == 0) == (sign > 0)) for a in self._arms]
                counts = max(nexts, key=lambda c: sign * self.hypotheses.log_ratio(c))
                if self._decided(counts) is not None:
                    fewest = number
                    break
        return max(1, fewest)

    @property
    def progress(self) -> float:
        """How near the nearer threshold is, in [0, 1]."""
        log = self.hypotheses.log_ratio(self.counts)
        return 1.0 if math.isinf(log) else min(1.0, max(0.0, log / self._up, log / self._down))

    @property
    def leans_lower(self) -> float:
        """Probability of H1, both hypotheses being equally likely beforehand."""
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, self.hypotheses.log_ratio(self.counts)))))


class MixtureRacing:
    """Races every comparison with what the queue's earlier ones taught about the values of the expert's states.

    A comparison keeps the distribution that was known when it began: later knowledge never re-weighs outcomes
    that were seen.
    """

    def __init__(self, settings: StepRewardSettings, delta: float) -> None:
        """See FixedRewards."""
        self._settings, self._delta = settings, delta
        self._races: weakref.WeakKeyDictionary[Comparison, MixtureRace] = weakref.WeakKeyDictionary()
        self._states: dict[int, StateValue] = {}
        self._sampled: dict[int, StateValue] = {}
        self._next_fit = _FIRST_FIT
        self.weights: Array = np.full(GRID.size, 1 / GRID.size)
        """distribution of the expert's states' values on the grid, as known now"""
        self._hypotheses: dict[float | None, Hypotheses] = {}

    def begin(self, comparisons: Sequence[Comparison]) -> None:
        """Nothing to prepare: a race begins when it is first asked about."""

    def observe(self, value: StateValue, outcome: float) -> None:
        """Learn what values are like; a new fit when the number of states grew by a quarter."""
        if id(value) in self._states and value.outcomes:
            self._sampled[id(value)] = value
        if len(self._sampled) >= self._next_fit:
            self._next_fit = math.ceil(len(self._sampled) * _REFIT_GROWTH)
            known = [successes(v, len(v.outcomes)) for v in self._sampled.values()]
            won = np.array([sum(k) for k in known], dtype=np.float64)
            self.weights = fit_values(won, np.array([len(k) for k in known]) - won)
            self._hypotheses = {}

    def report(self) -> dict[str, float]:
        """Mean and spread of the expert's states' values as learnt, and from how many states."""
        mean = float(self.weights @ GRID)
        spread = math.sqrt(max(0.0, float(self.weights @ (GRID - mean) ** 2)))
        return {"mean_value": mean, "spread_of_values": spread, "num_states": float(len(self._sampled))}

    def _race(self, comparison: Comparison) -> MixtureRace:
        race, s = self._races.get(comparison), self._settings
        expert, agent = comparison.expert, comparison.agent
        if race is None:
            hypotheses = self._hypotheses.get(agent.exact)
            if hypotheses is None:
                hypotheses = Hypotheses(self.weights, self._delta, s.min_effect, agent.exact)
                self._hypotheses[agent.exact] = hypotheses
            start = (0, 0, 0, 0)
            if expert.exact is not None:  # as good as all the samples that it could get
                won = round(expert.exact * s.max_samples)
                start = (won, s.max_samples - won, 0, 0)
            else:
                self._states[id(expert)] = expert
            race = self._races[comparison] = MixtureRace(hypotheses, s, start)
        # Some of what is asked for may be known already: it is used before anything is sampled.
        known = successes(expert, s.max_samples), successes(agent, s.max_samples)
        race.take(*known)
        while race.ask():
            race.take(*known)
        return race

    def wanted(self, comparison: Comparison) -> tuple[int, int]:
        """What the race wants."""
        return self._race(comparison).asked

    def priority(self, comparison: Comparison) -> tuple[float, float]:
        """From the evidence."""
        race = self._race(comparison)
        return race.progress, race.leans_lower

    def decide(self, comparison: Comparison) -> Decision | None:
        """The race's decision; two exact values are compared at once."""
        if (failed := broken_decision(comparison)) is not None:
            return failed
        if comparison.expert.exact is not None and comparison.agent.exact is not None:
            return FixedRewards(self._settings, self._delta).decide(comparison)
        race = self._race(comparison)
        if race.decision is None:
            return None
        expert = race_estimate(comparison.expert, race.count(0), self._settings.level, race.hypotheses.mean)
        agent = race_estimate(comparison.agent, race.count(1), self._settings.level, race.hypotheses.mean)
        return Decision(verdict=race.decision, expert=expert, agent=agent)  # type: ignore[arg-type]
