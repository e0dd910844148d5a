"""Playing each game several times with sampling: how reliably is it won?

``pass^k`` (Yao et al. 2024, arXiv 2406.12045) is the probability that k independent plays of a game are all won,
``pass@k`` (Chen et al. 2021, arXiv 2107.03374) that at least one of them is; both are means over the games.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steca_gym.errors import ConfigError

_NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class GameRepeats:
    """The sampled plays of one game."""

    task_id: str
    num_won: int
    num_played: int
    """without those that broke"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRates:
    """``pass^k`` and ``pass@k`` for one k, in [0, 1]."""

    k: int
    all_won: float
    """pass^k"""
    all_won_interval: tuple[float, float]
    """95 %, bootstrap over the games (2,000 resamples, a fixed seed)"""
    any_won: float
    """pass@k"""
    any_won_interval: tuple[float, float]
    num_games: int
    """games with at least k plays"""


def pass_rates(games: Sequence[GameRepeats], k: int) -> PassRates:
    """Unbiased estimates from n >= k plays of each game, c of them won.

    ``pass^k = mean C(c, k) / C(n, k)``, ``pass@k = mean 1 - C(n - c, k) / C(n, k)``.

    Raises:
        ConfigError: no game has been played k times.
    """
    enough = [g for g in games if g.num_played >= k >= 1]
    if not enough:
        most = max((g.num_played for g in games), default=0)
        raise ConfigError(f"k must lie between 1 and the plays of a game ({most}), got {k}")
    every = [math.comb(g.num_won, k) / math.comb(g.num_played, k) for g in enough]
    none = [math.comb(g.num_played - g.num_won, k) / math.comb(g.num_played, k) for g in enough]
    some = [1 - share for share in none]
    return PassRates(
        k=k,
        all_won=float(np.mean(every)),
        all_won_interval=_interval(every),
        any_won=float(np.mean(some)),
        any_won_interval=_interval(some),
        num_games=len(enough),
    )


def all_pass_rates(games: Sequence[GameRepeats]) -> list[PassRates]:
    """For each k up to the most plays of a game; empty without plays."""
    return [pass_rates(games, k) for k in range(1, max((g.num_played for g in games), default=0) + 1)]


def pass_lines(games: Sequence[GameRepeats]) -> list[str]:
    """For people: one line for each k."""
    return [
        f"pass^{r.k} {_percent(r.all_won, r.all_won_interval)}, pass@{r.k} {_percent(r.any_won, r.any_won_interval)} "
        f"({r.num_games} games)"
        for r in all_pass_rates(games)
    ]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    means = np.asarray(values)[rng.integers(len(values), size=(_NUM_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _percent(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
