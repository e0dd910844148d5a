"""What a run has cost in money, by a price table that the user gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from steca_gym.errors import DataError
from steca_gym.settings import read_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """A price table."""

    currency: str = "USD"
    """shown after each amount"""
    sampled_tokens: float = 0.0
    """per million, >= 0"""
    prompt_tokens: float = 0.0
    """per million that were read (those reused from a cache are not counted), >= 0"""
    hour: float = 0.0
    """of the machine, by wall time, >= 0"""

    def __post_init__(self) -> None:
        """Refuse what is no price."""
        for name in ("sampled_tokens", "prompt_tokens", "hour"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise DataError(f"{name} must be a price >= 0, got {value}")

    def of(self, *, num_sampled_tokens: float, num_prompt_tokens_read: float, seconds: float) -> float:
        """What a piece of work has cost; ``seconds`` of wall time."""
        tokens = self.sampled_tokens * num_sampled_tokens + self.prompt_tokens * num_prompt_tokens_read
        return float(tokens / 1e6 + self.hour * seconds / 3600)

    def show(self, amount: float) -> str:
        """``0.42 USD``; small amounts keep two digits that say something."""
        digits = 2 if amount >= 0.1 or amount == 0 else 4
        return f"{amount:,.{digits}f} {self.currency}"


def read_prices(path: Path) -> Prices:
    """Read a YAML file such as ``{currency: EUR, sampled_tokens: 0.6, hour: 2.5}``; raises DataError or ConfigError."""
    import yaml  # type: ignore[import-untyped]

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"cannot read the prices in {str(path)!r}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(raw, dict):
        raise DataError(
            f"{str(path)!r} holds no price table: expected e.g. sampled_tokens: 0.6 (per million), prompt_tokens, "
            "hour, currency"
        )
    return read_settings(Prices, raw, where=str(path))
