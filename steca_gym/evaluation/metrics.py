"""Evaluation of an agent: success with its interval, distance to the expert, robustness, cost; paired comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steca_gym.agent import GREEDY, Sampling
from steca_gym.collectors.episodes import EpisodeRequest
from steca_gym.env import TextEnv
from steca_gym.errors import DataError
from steca_gym.evaluation.panel import check_games
from steca_gym.evaluation.repeats import GameRepeats, all_pass_rates
from steca_gym.evaluation.stress import StressResult, stress_test
from steca_gym.files import parse_json
from steca_gym.seeding import evaluation_seed, repeat_seed
from steca_gym.settings import read_stored
from steca_gym.statistics import mcnemar_exact, paired_difference, wilson
from steca_gym.trajectory import Trajectory

if TYPE_CHECKING:
    from steca_gym.collectors import Collector
    from steca_gym.distances import Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """How to evaluate."""

    sampling: Sampling = GREEDY
    """greedy, as at test time"""
    stress: bool = True
    """play the deviated-history stress test as well (needs expert trajectories)"""
    num_stress_games: int | None = None
    """most games of the stress test, the first of the evaluation; None: all. Each is played on twice"""
    num_repeats: int = 0
    """sampled plays of each game beside the greedy one, for ``pass^k``; 0: none"""
    repeat_temperature: float = 1.0
    """of these plays, > 0"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GameResult:
    """One game."""

    task_id: str
    task_type: str
    won: bool
    score: float
    num_steps: int
    num_invalid: int
    """steps that the world refused or that could not be read"""
    dndtw: float | None = None
    """to the expert's actions; None without an expert trajectory or without steps"""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """What an agent reached. Rates are in [0, 1]."""

    games: tuple[GameResult, ...]
    stress: tuple[StressResult, ...] = ()
    repeats: tuple[GameRepeats, ...] = ()
    """sampled plays of each game; empty unless asked for"""
    cost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """counters by phase, see ``collectors.Ledger``"""

    @property
    def success(self) -> float:
        """Share of games won."""
        return sum(g.won for g in self.games) / len(self.games)

    @property
    def success_interval(self) -> tuple[float, float]:
        """Wilson, 95 %."""
        return wilson(sum(g.won for g in self.games), len(self.games))

    @property
    def mean_steps(self) -> float:
        """Environment steps per game, lost games included."""
        return float(np.mean([g.num_steps for g in self.games]))

    @property
    def mean_dndtw(self) -> float | None:
        """Mean distance to the expert over the games that have one."""
        values = [g.dndtw for g in self.games if g.dndtw is not None]
        return float(np.mean(values)) if values else None

    @property
    def invalid_rate(self) -> float:
        """Share of steps that the world refused or that could not be read."""
        return sum(g.num_invalid for g in self.games) / max(1, sum(g.num_steps for g in self.games))

    @property
    def robustness(self) -> float | None:
        """Success after a wrong action, in the stress test."""
        return sum(s.won_with for s in self.stress) / len(self.stress) if self.stress else None

    @property
    def robustness_interval(self) -> tuple[float, float] | None:
        """Of ``robustness``: Wilson, 95 %."""
        return wilson(sum(s.won_with for s in self.stress), len(self.stress)) if self.stress else None

    @property
    def robustness_loss(self) -> tuple[float, float, float] | None:
        """Success lost to the wrong action, with Newcombe's paired 95 % interval: (loss, low, high)."""
        if not self.stress:
            return None
        return paired_difference([s.won_with for s in self.stress], [s.won_without for s in self.stress])

    @property
    def robustness_reference(self) -> float | None:
        """Success from the same histories without the wrong action."""
        return sum(s.won_without for s in self.stress) / len(self.stress) if self.stress else None

    def by_type(self) -> dict[str, tuple[int, int]]:
        """(won, played) by task type."""
        table: dict[str, tuple[int, int]] = {}
        for g in self.games:
            won, played = table.get(g.task_type, (0, 0))
            table[g.task_type] = (won + g.won, played + 1)
        return dict(sorted(table.items()))

    def total(self, counter: str) -> float:
        """Sum of a counter over the phases."""
        return sum(phase.get(counter, 0) for phase in self.cost.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the figures stand beside what they are computed from."""
        low, high = self.success_interval
        figures = {
            "success": self.success,
            "success_low": low,
            "success_high": high,
            "mean_steps": self.mean_steps,
            "mean_dndtw": self.mean_dndtw,
            "invalid_rate": self.invalid_rate,
            "robustness": self.robustness,
            "robustness_low": self.robustness_interval[0] if self.robustness_interval else None,
            "robustness_high": self.robustness_interval[1] if self.robustness_interval else None,
            "robustness_reference": self.robustness_reference,
            "by_type": self.by_type(),
            "pass_rates": [dataclasses.asdict(r) for r in all_pass_rates(self.repeats)],
        }
        return {**figures, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> EvaluationReport:
        """Read what ``as_dict`` gave; raises DataError with what is missing."""
        if not isinstance(raw, Mapping):
            raise DataError("not an evaluation report: expected an object")
        stored = {f.name: raw[f.name] for f in dataclasses.fields(cls) if f.name in raw}
        try:
            report = read_stored(cls, stored, where="")
        except DataError as error:
            raise DataError(f"not an evaluation report: {error}") from error
        if not report.games:
            raise DataError("not an evaluation report: it holds no games")
        return report


def read_report(path: Path) -> EvaluationReport:
    """Read ``evaluation.json``; raises DataError with what is wrong and what to do."""
    try:
        return EvaluationReport.from_dict(parse_json(path.read_bytes()))
    except (OSError, ValueError, DataError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}; remove it and evaluate again") from error


def evaluate(
    collector: Collector,
    task_ids: Sequence[str],
    *,
    seed: int = 0,
    expert_trajectories: Sequence[Trajectory] = (),
    forbidden_task_ids: Collection[str] = (),
    played: Iterable[Trajectory] = (),
    settings: EvaluationSettings | None = None,
    make_env: Callable[[], TextEnv] | None = None,
    encoder: Encoder | None = None,
) -> EvaluationReport:
    """Let the collector's agent play games and measure it.

    Args:
        collector: plays episodes with the agent.
        task_ids: games, each at most once.
        seed: of the episodes and of the wrong actions.
        expert_trajectories: successful ones, for dnDTW and the stress test; games without one are left out of these.
        forbidden_task_ids: games that fed training or calibration.
        played: games that an interrupted evaluation of the same agent and seed has played already.
        settings: greedy with the stress test by default.
        make_env: makes an environment in which wrong actions are looked for; without it, no stress test is played.
        encoder: of actions, for dnDTW; the default hash encoder.

    Raises:
        ConfigError: no games, or a game twice.
        ContaminationError: a game is among the forbidden ones.
    """
    settings = settings or EvaluationSettings()
    check_games(task_ids, forbidden_task_ids)
    earlier = {(t.task_id, t.seed): t for t in played}
    known = {t: earlier[t, s] for t in task_ids if (t, s := evaluation_seed(seed, t)) in earlier}
    todo = [
        EpisodeRequest(task_id=t, seed=evaluation_seed(seed, t), sampling=settings.sampling)
        for t in task_ids
        if t not in known
    ]
    known.update({e.trajectory.task_id: e.trajectory for e in collector.run(todo)})
    games_played = [known[t] for t in task_ids]
    experts = {e.task_id: e for e in expert_trajectories}
    distances = _distances(games_played, experts, encoder)
    games = tuple(
        GameResult(
            task_id=t.task_id,
            task_type=t.task_type,
            won=t.won,
            score=t.score,
            num_steps=len(t),
            num_invalid=sum(not s.valid for s in t.steps),
            dndtw=distances.get(t.task_id),
            error=t.error,
        )
        for t in games_played
    )
    stress: tuple[StressResult, ...] = ()
    if settings.stress and make_env is not None and experts:
        chosen = [experts[t] for t in task_ids if t in experts][: settings.num_stress_games]
        stress = stress_test(collector, chosen, seed, settings.sampling, make_env)
    repeats = _repeat(collector, task_ids, seed, earlier, settings)
    return EvaluationReport(games=games, stress=stress, repeats=repeats, cost=collector.ledger.as_dict())


def _repeat(
    collector: Collector,
    task_ids: Sequence[str],
    seed: int,
    earlier: Mapping[tuple[str, int], Trajectory],
    settings: EvaluationSettings,
) -> tuple[GameRepeats, ...]:
    """Play each game with sampling, as often as asked for; plays that broke do not count."""
    sampling = dataclasses.replace(settings.sampling, temperature=settings.repeat_temperature)
    keys = [(t, repeat_seed(seed, t, i)) for t in task_ids for i in range(settings.num_repeats)]
    todo = [EpisodeRequest(task_id=t, seed=s, sampling=sampling) for t, s in keys if (t, s) not in earlier]
    found = dict(earlier) | {(e.request.task_id, e.request.seed): e.trajectory for e in collector.run(todo)}
    played: dict[str, list[bool]] = {}
    for key in keys:
        if found[key].status != "error":
            played.setdefault(key[0], []).append(found[key].won)
    return tuple(GameRepeats(task_id=t, num_won=sum(won), num_played=len(won)) for t, won in played.items())


def _distances(
    played: Sequence[Trajectory], experts: Mapping[str, Trajectory], encoder: Encoder | None
) -> dict[str, float]:
    from steca_gym.distances import dndtw_pairs

    pairs = [(t, experts[t.task_id]) for t in played if t.task_id in experts and len(t) and len(experts[t.task_id])]
    if not pairs:
        return {}
    values = dndtw_pairs([t.actions for t, _ in pairs], [e.actions for _, e in pairs], encoder=encoder)
    return {t.task_id: float(v) for (t, _), v in zip(pairs, values, strict=True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two agents on the same games."""

    num_games: int
    difference: float
    """success of the second minus the first"""
    low: float
    high: float
    """Newcombe's paired 95 % interval"""
    only_first: int
    only_second: int
    """games that only one of them won"""
    p_value: float
    """exact McNemar, two-sided"""


def compare(first: EvaluationReport, second: EvaluationReport) -> Comparison:
    """Paired comparison on the games that both played; raises DataError where there is none."""
    a, b = ({g.task_id: g.won for g in r.games} for r in (first, second))
    common = sorted(set(a) & set(b))
    if not common:
        raise DataError("the two reports share no game; evaluate both on the same split")
    x, y = [a[t] for t in common], [b[t] for t in common]
    difference, low, high = paired_difference(x, y)
    only_first = sum(i and not j for i, j in zip(x, y, strict=True))
    only_second = sum(j and not i for i, j in zip(x, y, strict=True))
    return Comparison(
        num_games=len(common),
        difference=difference,
        low=low,
        high=high,
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar_exact(only_first, only_second),
    )
