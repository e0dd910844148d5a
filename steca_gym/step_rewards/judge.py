"""Step rewards annotated by a judge (a language model), without any continuation.

Knows comparisons and a Judge. Knows no HTTP.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from steca_gym.errors import AgentError
from steca_gym.step_rewards.settings import StepRewardSettings
from steca_gym.step_rewards.values import Comparison, Decision, Estimate, StateValue

if TYPE_CHECKING:
    from steca_gym.step_rewards import Judge


class JudgeRewards:
    """Asks the judge for both states of every comparison, a trajectory's at once; equal values are a ``tie``.

    A judge states no uncertainty: its intervals are the points themselves.
    """

    def __init__(self, settings: StepRewardSettings, delta: float, judge: Judge) -> None:
        """See FixedRewards; ``judge`` annotates."""
        self._delta, self._judge = delta, judge
        self._values: weakref.WeakKeyDictionary[StateValue, float] = weakref.WeakKeyDictionary()

    def begin(self, comparisons: Sequence[Comparison]) -> None:
        """Annotate the states that have no value yet."""
        states = {id(v): v for c in comparisons for v in (c.expert, c.agent) if v.exact is None}
        todo = [v for v in states.values() if v not in self._values]
        if todo:
            values = self._judge.values([v.fork.prefix for v in todo])
            if len(values) != len(todo) or not all(0 <= x <= 1 for x in values):
                raise AgentError(
                    f"judge {self._judge.name!r} must give {len(todo)} values in [0, 1], got {values[:4]} "
                    f"({len(values)} of them)"
                )
            self._values.update(zip(todo, values, strict=True))

    def wanted(self, comparison: Comparison) -> tuple[int, int]:
        """No samples."""
        return 0, 0

    def priority(self, comparison: Comparison) -> tuple[float, float]:
        """No preference."""
        return 1.0, 0.5

    def observe(self, value: StateValue, outcome: float) -> None:
        """Nothing to learn."""

    def report(self) -> dict[str, float]:
        """States annotated."""
        return {"num_annotated": float(len(self._values))}

    def decide(self, comparison: Comparison) -> Decision | None:
        """At once."""
        if comparison.expert not in self._values and comparison.expert.exact is None:
            self.begin([comparison])
        expert, agent = self._estimate(comparison.expert), self._estimate(comparison.agent)
        gap = agent.mean - expert.mean - self._delta
        if abs(gap) < 1e-9:
            return Decision(verdict="tie", expert=expert, agent=agent)
        return Decision(verdict="deviated" if gap < 0 else "kept", expert=expert, agent=agent)

    def _estimate(self, value: StateValue) -> Estimate:
        known = value.exact if value.exact is not None else self._values[value]
        return Estimate(mean=known, low=known, high=known)
