"""Which corrections wait for a person, and in which form each counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from steca_gym.buffer import Standing
from steca_gym.calibration import Calibration, ExpertResult
from steca_gym.calibration.records import calibration_from_json
from steca_gym.review.config import ReviewConfig

State = Literal["approved", "refused", "waiting", "free"]
"""free: nobody has to decide, and it counts"""


def standing_of(calibration_id: str, status: str, standings: Mapping[str, Standing], config: ReviewConfig) -> State:
    """Whether a calibration of a status ("accepted" or "refused") counts, does not, or waits for a person."""
    standing = standings.get(calibration_id, Standing())
    if standing.word == "refused":
        return "refused"
    if standing.word == "approved":
        return "approved"
    if config.own_edits == "refused" and standing.edit is not None:
        return "waiting"
    return "waiting" if status == "accepted" and config.chosen(calibration_id) else "free"


def waiting(
    results: Iterable[ExpertResult], standings: Mapping[str, Standing], config: ReviewConfig
) -> tuple[list[str], int]:
    """Ids of the accepted calibrations that wait for a decision, and how many need one at all."""
    ids, needed = [], 0
    for c in (c for r in results for c in r.calibrations if c.status == "accepted"):
        edited = standings.get(c.calibration_id, Standing()).edit is not None
        needed += config.chosen(c.calibration_id) or (edited and config.own_edits == "refused")
        if standing_of(c.calibration_id, c.status, standings, config) == "waiting":
            ids.append(c.calibration_id)
    return ids, needed


def effective(calibration: Calibration, standing: Standing | None) -> Calibration:
    """A calibration as its last edit made it."""
    return calibration if standing is None or standing.edit is None else calibration_from_json(standing.edit.after)


def effective_results(results: Iterable[ExpertResult], standings: Mapping[str, Standing]) -> list[ExpertResult]:
    """Results with each calibration as its last edit made it; refused ones are left out."""
    found = []
    for result in results:
        kept = [
            effective(c, standing)
            for c, standing in ((c, standings.get(c.calibration_id)) for c in result.calibrations)
            if standing is None or standing.word != "refused"
        ]
        found.append(replace(result, calibrations=tuple(kept)))
    return found
