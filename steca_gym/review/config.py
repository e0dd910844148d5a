"""The settings of a review."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from steca_gym.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewConfig:
    """Who decides about calibrations before a training uses them."""

    mode: str = "auto"
    """``auto``: all count unless somebody refuses them; ``required``: training waits until every accepted calibration
    is decided; ``sample:P``, 0 < P <= 1: it waits for a part P of them, the same ones in every run, and the others
    count as with ``auto``"""
    own_edits: Literal["allowed", "refused"] = "allowed"
    """whether who edited a correction may approve it; ``refused``: it counts once another person has approved it"""

    def __post_init__(self) -> None:
        """Refuse another mode."""
        self.share  # noqa: B018 - raises
        if self.own_edits not in ("allowed", "refused"):
            raise ConfigError(f"review.own_edits must be 'allowed' or 'refused', got {self.own_edits!r}")

    @property
    def share(self) -> float:
        """The part of the accepted calibrations that somebody has to decide, in [0, 1]."""
        if self.mode in ("auto", "required"):
            return float(self.mode == "required")
        word, _, text = self.mode.partition(":")
        try:
            share = float(text) if word == "sample" else -1.0
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            raise ConfigError(
                f"review.mode must be auto, required or sample:P with 0 < P <= 1, got {self.mode!r}; e.g. sample:0.1"
            )
        return share

    def chosen(self, calibration_id: str) -> bool:
        """Whether a person has to decide about a calibration."""
        # A function of the id alone, so that a resumed run asks for the same ones.
        drawn = int.from_bytes(hashlib.sha256(calibration_id.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        return drawn < self.share * 2**64
