"""Evaluation: which games are played, how success is counted, and how two agents compare.

``evaluate`` plays a panel of games with an agent and returns an ``EvaluationReport``; ``compare`` tests two
reports on the games that both played. Tables of reports are in ``steca_gym.reports``.
"""

from steca_gym.evaluation.metrics import (
    Comparison,
    EvaluationReport,
    EvaluationSettings,
    GameResult,
    compare,
    evaluate,
    read_report,
)
from steca_gym.evaluation.panel import check_games, refuse_tainted
from steca_gym.evaluation.repeats import GameRepeats, PassRates, all_pass_rates, pass_lines, pass_rates
from steca_gym.evaluation.stress import StressResult, stress_test

__all__ = [
    "Comparison",
    "EvaluationReport",
    "EvaluationSettings",
    "GameRepeats",
    "GameResult",
    "PassRates",
    "StressResult",
    "all_pass_rates",
    "check_games",
    "compare",
    "evaluate",
    "pass_lines",
    "pass_rates",
    "read_report",
    "refuse_tainted",
    "stress_test",
]
