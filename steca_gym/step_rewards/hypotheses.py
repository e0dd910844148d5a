"""No drop or a drop that matters: two hypotheses about a pair of states, and the ratio of their probabilities.

Knows counts of successes and failures, and a distribution of values learnt from such counts. Knows no thresholds,
no queue and no agent; ``mixture`` says what the ratio is good for.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Counts = tuple[int, int, int, int]
"""successes and failures of the expert's state, successes and failures of the agent's"""

GRID: Array = np.linspace(0.02, 0.98, 25)
"""candidate values"""
_HOPELESS = 0.005
"""a value of a state from which nothing leads on"""
_HOPELESS_SHARE = 0.2
"""prior share of such states among the drops"""
_PSEUDO_STATES = 4.0
"""weight of the flat prior, in states"""


def fit_values(successes: Array, failures: Array, num_steps: int = 60) -> Array:
    """The distribution of the values behind binomial counts: weights on a grid, shape ``(25,)``, sum 1.

    Maximum likelihood of a mixing distribution by EM, with four states' worth of a flat prior. Stopping rules
    do not bias it: the likelihood of counts does not depend on when sampling was stopped.

    Args:
        successes: per state, shape ``(n,)``.
        failures: per state, shape ``(n,)``.
        num_steps: of EM; few enough to stay smooth.
    """
    logs = successes[:, None] * np.log(GRID) + failures[:, None] * np.log(1 - GRID)
    likelihood = np.exp(logs - logs.max(axis=1, keepdims=True)) if logs.size else logs
    weights = np.full(GRID.size, 1 / GRID.size)
    for _ in range(num_steps):
        joint = likelihood * weights
        members = joint / joint.sum(axis=1, keepdims=True)
        weights = members.sum(axis=0) + _PSEUDO_STATES / GRID.size
        weights /= weights.sum()
    return weights


class Hypotheses:
    """Both hypotheses with a fixed distribution of p, and the evidence that counts are between them.

    Args:
        weights: distribution of p on the grid, shape ``(25,)``.
        delta: boundary q = p + delta.
        min_effect: the drop below the boundary that matters.
        exact: the agent's value where it is known exactly; then only the expert's state is sampled.
    """

    def __init__(self, weights: Array, delta: float, min_effect: float, exact: float | None = None) -> None:
        """See the class."""
        p = np.concatenate([GRID, [min(0.98, max(0.02, exact - delta))]]) if exact is not None else GRID
        q = np.concatenate([[_HOPELESS], GRID])
        null = np.clip(p + delta, _HOPELESS, 1 - _HOPELESS)
        drop = np.zeros((p.size, q.size))
        prior = np.append(weights, 0.0) if exact is not None else weights
        if exact is not None:
            # The least favourable p of the null: just where the agent's value lies.
            self._prior0 = np.zeros(p.size)
            self._prior0[-1] = 1.0
            self._prior1_p = np.where(p + delta - min_effect >= exact - 1e-9, prior, 0.0)
            total = float(self._prior1_p.sum())
            self.can_drop = total > 0
            self._prior1_p = self._prior1_p / total if total > 0 else self._prior1_p
            drop[:, 0] = self._prior1_p
        else:
            self._prior0 = prior
            for i in range(p.size):
                below = q <= p[i] + delta - min_effect + 1e-9
                below[0] = p[i] + delta - min_effect > 0
                if below[1:].any():
                    drop[i, 0] = prior[i] * _HOPELESS_SHARE
                    drop[i, 1:] = below[1:] * prior[i] * (1 - _HOPELESS_SHARE) / below[1:].sum()
                elif below[0]:
                    drop[i, 0] = prior[i]
            total = float(drop.sum())
            self.can_drop = total > 0
            drop = drop / total if total > 0 else drop
        self.agent_is_exact = exact is not None
        self._drop = drop
        self._log_p, self._log_not_p = np.log(p), np.log(1 - p)
        self._log_q, self._log_not_q = np.log(q), np.log(1 - q)
        self._log_null, self._log_not_null = np.log(null), np.log(1 - null)
        self._p = p
        self._known: dict[Counts, tuple[float, float]] = {}

    def log_likelihoods(self, counts: Counts) -> tuple[float, float]:
        """Logarithms of the probabilities of the outcomes behind ``counts`` under H0 and H1 (one order of them)."""
        found = self._known.get(counts)
        if found is None:
            sx, fx, sy, fy = counts
            of_x = sx * self._log_p + fx * self._log_not_p
            top_x = float(of_x.max())
            if self.agent_is_exact:
                likely = np.exp(of_x - top_x)
                found = _log(float(self._prior0 @ likely)) + top_x, _log(float(self._prior1_p @ likely)) + top_x
            else:
                null = of_x + sy * self._log_null + fy * self._log_not_null
                of_y = sy * self._log_q + fy * self._log_not_q
                top, top_y = float(null.max()), float(of_y.max())
                drop = np.exp(of_x - top_x) @ self._drop @ np.exp(of_y - top_y)
                found = _log(float(self._prior0 @ np.exp(null - top))) + top, _log(float(drop)) + top_x + top_y
            self._known[counts] = found
        return found

    def log_ratio(self, counts: Counts) -> float:
        """Natural logarithm of Lambda; minus infinity where no drop is possible."""
        null, drop = self.log_likelihoods(counts)
        return drop - null

    def information(self, counts: Counts, arm: int) -> float:
        """Bits, times ln 2, that the next outcome of an arm (0: expert's, 1: agent's) says about H0 or H1."""
        null, drop = self.log_likelihoods(counts)
        null_up, drop_up = self.log_likelihoods(plus(counts, arm, success=True))
        if math.isinf(drop):
            return 0.0
        under_null, under_drop = math.exp(null_up - null), math.exp(drop_up - drop)
        weight = 1 / (1 + math.exp(max(-700.0, min(700.0, null - drop))))
        mean = weight * under_drop + (1 - weight) * under_null
        return _entropy(mean) - weight * _entropy(under_drop) - (1 - weight) * _entropy(under_null)

    def likely(self, counts: Counts, arm: int) -> bool:
        """Whether a success is the likelier next outcome of an arm, both hypotheses being weighed by the evidence."""
        now = self.log_likelihoods(counts)
        up = self.log_likelihoods(plus(counts, arm, success=True))
        top = max(now)
        return sum(math.exp(x - top) for x in up) >= 0.5 * sum(math.exp(x - top) for x in now)

    @property
    def mean(self) -> float:
        """Mean of p under H0."""
        return float(self._prior0 @ self._p)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _entropy(p: float) -> float:
    return 0.0 if p <= 0 or p >= 1 else -p * math.log(p) - (1 - p) * math.log(1 - p)


def plus(counts: Counts, arm: int, *, success: bool) -> Counts:
    """The counts with one more outcome of an arm (0: the expert's state, 1: the agent's)."""
    sx, fx, sy, fy = counts
    if arm == 0:
        return (sx + success, fx + (not success), sy, fy)
    return (sx, fx, sy + success, fy + (not success))
