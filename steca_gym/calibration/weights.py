"""Weights of the reinforced training: R(e) from the dnDTW distance, and the sets D_c, D_e, D_s and fatal actions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from steca_gym.calibration.records import Calibration, ExpertResult
from steca_gym.errors import ConfigError
from steca_gym.trajectory import Trajectory, WeightedTrajectory

Distance = Callable[[Sequence[str], Sequence[str]], float]
"""dnDTW of two action sequences, >= 0"""
SampleKind = Literal["calibrated", "explored", "expert_subtrajectory", "fatal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSettings:
    """R = 1 + w d for corrections and sub-trajectories of demonstrations, R = 1 - w d for explored successes.

    Raises:
        ConfigError: a value is out of range.
    """

    weight: float = 1.0
    """w, >= 0; 0 makes every R 1 (the ablation without reinforced training)"""
    max_distance: float | None = 0.5
    """d_max, >= 0: explored successes at this distance from the demonstration or more are dropped; None: no
    threshold"""
    max_distance_encoder: str | None = None
    """the encoder that ``max_distance`` was chosen for, by its name in ``conf/encoder``; None: it holds for any"""
    max_distance_quantile: float | None = None
    """quantile in (0, 1] of the run's own distances that takes the place of ``max_distance`` where another encoder than
    ``max_distance_encoder`` is used; None: ``max_distance`` is used all the same"""
    wrong_action_in_distance: bool = True
    """whether the failed side of D_c's distance begins with the wrong action (paper) or after it (the authors' code)"""
    calibrated: bool = True
    """use D_c, the calibrated trajectories"""
    explored: bool = True
    """use D_e, the explored successes"""
    expert_subtrajectories: bool = True
    """use D_s, the sub-trajectories of demonstrations"""
    fatal: bool = True
    """use the right actions in place of fatal ones"""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ConfigError(f"weight must be a number >= 0, got {self.weight}")
        if self.max_distance is not None and not self.max_distance >= 0:
            raise ConfigError(f"max_distance must be >= 0 (or null for no threshold), got {self.max_distance}")
        if self.max_distance_quantile is not None and not 0 < self.max_distance_quantile <= 1:
            raise ConfigError(f"max_distance_quantile must lie in (0, 1], got {self.max_distance_quantile}")

    @property
    def kinds(self) -> frozenset[SampleKind]:
        """The sets in use."""
        switches = {
            "calibrated": self.calibrated,
            "explored": self.explored,
            "expert_subtrajectory": self.expert_subtrajectories,
            "fatal": self.fatal,
        }
        return frozenset(kind for kind in get_args(SampleKind) if switches[kind])


@dataclass(frozen=True, slots=True, kw_only=True)
class ExploredThreshold:
    """The distance threshold of D_e as it was applied."""

    threshold: float | None
    """explored successes at this distance or more were dropped; None: no threshold"""
    num_kept: int
    num_dropped: int
    source: Literal["max_distance", "quantile", "none"]

    def line(self) -> str:
        """One line for a person."""
        total = self.num_kept + self.num_dropped
        if self.threshold is None:
            return f"D_e: all {total} explored successes, no distance threshold"
        how = "quantile of the run's own distances" if self.source == "quantile" else "max_distance"
        return (
            f"D_e: {self.num_kept} of {total} explored successes at dnDTW < {self.threshold:.4g} ({how}), "
            f"{self.num_dropped} dropped"
        )


def same_encoder(a: str, b: str) -> bool:
    """Whether two names mean one encoder: ``bert_cls`` (``conf/encoder``) is ``bert-cls`` (its ``name``)."""
    return a.replace("-", "_") == b.replace("-", "_")


def calibration_weight(distance: float, settings: WeightSettings) -> float:
    """R = 1 + w d, for d between a correction (or the demonstration) and the agent's own failed continuation.

    It is no sign error: the farther off the agent was, the more the correction counts.
    """
    return 1.0 + settings.weight * distance


def exploration_weight(distance: float, settings: WeightSettings, threshold: float | None = None) -> float | None:
    """R = 1 - w d (at least 0), for d between an explored success and the demonstration; None where it is dropped.

    Args:
        distance: dnDTW, >= 0.
        settings: weight and threshold.
        threshold: in place of the settings' ``max_distance``.
    """
    limit = settings.max_distance if threshold is None else threshold
    if limit is not None and distance >= limit:
        return None
    return max(0.0, 1.0 - settings.weight * distance)


def explored_threshold(
    distances: Sequence[float], settings: WeightSettings, encoder: str | None = None
) -> ExploredThreshold:
    """The threshold for explored successes, and how many it keeps and drops.

    Args:
        distances: dnDTW of every explored success to its demonstration.
        settings: fixed threshold, the encoder that it belongs to, and the quantile for others.
        encoder: the encoder behind ``distances``; None: unknown, taken for the settings' own.
    """
    own = settings.max_distance_encoder
    foreign = own is not None and encoder is not None and not same_encoder(own, encoder)
    limit, source = settings.max_distance, "none" if settings.max_distance is None else "max_distance"
    if foreign and settings.max_distance_quantile is not None and limit is not None:
        source = "quantile"
        # The smallest number above the quantile, so that the share itself is kept and ties with it are.
        q = float(np.quantile(distances, settings.max_distance_quantile, method="lower")) if len(distances) else limit
        limit = float(np.nextafter(q, np.inf))
    kept = sum(limit is None or d < limit for d in distances)
    return ExploredThreshold(
        threshold=limit,
        num_kept=kept,
        num_dropped=len(distances) - kept,
        source=source,  # type: ignore[arg-type]
    )


def _default_distance() -> Distance:
    from steca_gym.distances import dndtw

    return dndtw


def weighted_samples(
    results: Iterable[ExpertResult],
    experts: Iterable[Trajectory],
    settings: WeightSettings,
    *,
    kinds: frozenset[SampleKind] | None = None,
    distance: Distance | None = None,
    encoder: str | None = None,
    approved: Callable[[Calibration], bool] = lambda c: True,
    on_threshold: Callable[[ExploredThreshold], None] | None = None,
) -> list[WeightedTrajectory]:
    """D_c, D_e, D_s and the right actions in place of fatal ones, as training samples.

    Args:
        results: what ``calibrate`` found.
        experts: the demonstrations (with ids), for the distance of explored successes.
        settings: weights, and which sets to use.
        kinds: the sets to use, instead of the settings' switches.
        distance: dnDTW over actions; ``steca_gym.distances.dndtw`` by default.
        encoder: name of the encoder behind ``distance``, for thresholds that belong to one encoder.
        approved: a person's veto over accepted calibrations.
        on_threshold: called with the threshold that D_e had and what it dropped.
    """
    d = distance or _default_distance()
    use = kinds if kinds is not None else settings.kinds
    by_id = {e.trajectory_id or e.with_id().trajectory_id: e for e in experts}
    samples: list[WeightedTrajectory] = []
    explored: list[tuple[Trajectory, float]] = []
    for result in results:
        for c in result.calibrations:
            kind: SampleKind = "fatal" if c.kind == "fatal" else "calibrated"
            if kind in use and c.status == "accepted" and approved(c):
                weight = calibration_weight(_correction_distance(c, d, settings), settings)
                samples.append(
                    WeightedTrajectory(
                        trajectory=c.trajectory, weight=weight, kind=kind, calibration_id=c.calibration_id
                    )
                )
        if "expert_subtrajectory" in use:
            for part in result.expert_subtrajectories:
                gap = d(part.trajectory.actions[part.step :], part.failed_continuation.actions[part.step :])
                weight = calibration_weight(gap, settings)
                samples.append(
                    WeightedTrajectory(trajectory=part.trajectory, weight=weight, kind="expert_subtrajectory")
                )
        expert = by_id.get(result.expert_id)
        if "explored" in use and expert is not None:
            explored += [(own, d(own.actions, expert.actions)) for own in result.explored_successes]
    if "explored" in use:
        found = explored_threshold([gap for _, gap in explored], settings, encoder)
        for own, gap in explored:
            kept = exploration_weight(gap, settings, math.inf if found.threshold is None else found.threshold)
            if kept is not None:
                samples.append(WeightedTrajectory(trajectory=own, weight=kept, kind="explored"))
        if on_threshold is not None:
            on_threshold(found)
    return samples


def _correction_distance(c: Calibration, d: Distance, settings: WeightSettings) -> float:
    """Distance of what a calibration teaches to what the agent did: from the wrong action on, or from after it."""
    if c.kind == "fatal":
        return d(c.trajectory.actions[c.step :], (c.deviated.action,))
    right = c.trajectory.actions[c.step + 1 :]
    failed = (c.deviated.action,) if c.failed_continuation is None else c.failed_continuation.actions[c.step :]
    if not settings.wrong_action_in_distance and len(failed) > 1:
        failed = failed[1:]
    return d(right, failed)
