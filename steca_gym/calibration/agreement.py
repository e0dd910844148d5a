"""How often a run's verdicts are those of ``preset=paper``, as far as the run's own samples can tell.

Knows verdicts and their samples. Samples nothing: where a value was not estimated, nothing is claimed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from steca_gym.calibration.records import ExpertResult, StepVerdict
from steca_gym.statistics import wilson
from steca_gym.step_rewards.values import Estimate

PAPER_SAMPLES = 5
"""N of the paper"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperAgreement:
    """Counts over the steps at which the agent did something else than the expert."""

    num_told: int = 0
    """steps whose verdict of the paper follows from the run's samples: both values were estimated, or it is the first
    step, at which the paper has nothing to compare with"""
    num_same: int = 0
    """of these, steps with the paper's verdict (deviated or not)"""
    num_only_ours: int = 0
    """deviations here that the paper does not see"""
    num_only_paper: int = 0
    """deviations of the paper that are none here"""
    num_full: int = 0
    """of the told ones, steps for which both values had the paper's five samples, or are exact; the others were judged
    on fewer"""
    num_untold: int = 0
    """steps whose verdict did not need both values (e.g. the agent won all the same)"""
    num_trajectories_told: int = 0
    """expert trajectories with told steps, and without an untold one up to their end or to the first deviation here"""
    num_trajectories_same: int = 0
    """of these, trajectories with the same first deviation, or with none in both readings"""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``run.json``; the share and its Wilson interval stand beside the counts."""
        low, high = wilson(self.num_same, self.num_told)
        share = self.num_same / self.num_told if self.num_told else None
        return {**dataclasses.asdict(self), "share": share, "share_low": low, "share_high": high}

    def line(self) -> str:
        """One line for a person."""
        if not self.num_told:
            return f"preset=paper: the samples of this run cannot tell its verdicts ({self.num_untold} steps)"
        low, high = wilson(self.num_same, self.num_told)
        return (
            f"preset=paper: the same verdict at {self.num_same} of {self.num_told} steps that the samples tell "
            f"({100 * self.num_same / self.num_told:.0f} %, {100 * low:.0f} to {100 * high:.0f}; "
            f"{self.num_only_ours} deviations only here, {self.num_only_paper} only there; "
            f"{self.num_untold} steps untold), the same first deviation in {self.num_trajectories_same} of "
            f"{self.num_trajectories_told} trajectories"
        )


def paper_deviates(verdict: StepVerdict) -> bool | None:
    """The paper's verdict on a step: ``r_s(s_t, a_hat_t) - r_s(s_{t-1}, a_{t-1}) < 0``; None where it cannot be told.

    The first five outcomes of each value are taken, as many as the paper samples, or fewer where there are not more.
    """
    if verdict.step == 0:
        return False  # there is no step before it
    if verdict.expert_reward is None or verdict.agent_reward is None:
        return None
    return _mean(verdict.agent_reward) < _mean(verdict.expert_reward) - 1e-9


def paper_agreement(results: Iterable[ExpertResult]) -> PaperAgreement:
    """Compare every verdict with the paper's."""
    told = same = only_ours = only_paper = full = untold = trajectories = trajectories_same = 0
    for result in results:
        if result.error:
            continue
        whole, told_before, first_ours, first_paper = True, told, None, None
        for v in result.verdicts:
            if v.verdict == "same_action":
                continue
            ours, paper = v.verdict == "deviated", paper_deviates(v)
            if ours and first_ours is None:
                first_ours = v.step
            if paper is None:
                untold += 1
                whole = whole and first_ours is not None and first_ours < v.step
                continue
            told += 1
            full += v.step == 0 or (_is_full(v.expert_reward) and _is_full(v.agent_reward))
            same += ours == paper
            only_ours += ours and not paper
            only_paper += paper and not ours
            if paper and first_paper is None:
                first_paper = v.step
        whole = whole and told > told_before
        trajectories += whole
        trajectories_same += whole and first_ours == first_paper
    return PaperAgreement(
        num_told=told,
        num_same=same,
        num_only_ours=only_ours,
        num_only_paper=only_paper,
        num_full=full,
        num_untold=untold,
        num_trajectories_told=trajectories,
        num_trajectories_same=trajectories_same,
    )


def _mean(estimate: Estimate) -> float:
    first = estimate.outcomes[:PAPER_SAMPLES]
    return sum(first) / len(first) if first else estimate.mean


def _is_full(estimate: Estimate | None) -> bool:
    # An exact value (the episode was over) is one outcome with an interval of no width.
    return estimate is not None and (len(estimate.outcomes) >= PAPER_SAMPLES or estimate.low == estimate.high)
