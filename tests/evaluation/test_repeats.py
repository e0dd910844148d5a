"""pass^k and pass@k: by hand, by enumeration, and through the command line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from steca_gym.buffer import CalibrationBuffer
from steca_gym.cli import main
from steca_gym.errors import ConfigError
from steca_gym.evaluation import GameRepeats, all_pass_rates, pass_lines, pass_rates, read_report

ROOT = Path(__file__).resolve().parents[2]


def games(*won: tuple[int, int]) -> list[GameRepeats]:
    return [GameRepeats(task_id=str(i), num_won=c, num_played=n) for i, (c, n) in enumerate(won)]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_they_are_the_shares_of_all_choices_of_k_plays(k: int) -> None:
    found = pass_rates(games((4, 4), (2, 4), (0, 4), (1, 4)), k)
    plays = [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    choices = [[list(c) for c in itertools.combinations(p, k)] for p in plays]
    assert found.all_won == pytest.approx(sum(sum(all(c) for c in cs) / len(cs) for cs in choices) / 4)
    assert found.any_won == pytest.approx(sum(sum(any(c) for c in cs) / len(cs) for cs in choices) / 4)
    low, high = found.all_won_interval
    assert 0 <= low <= found.all_won <= high <= 1
    assert pass_rates(games((4, 4), (2, 4), (0, 4), (1, 4)), k) == found  # the bootstrap draws the same again


def test_the_rates_of_one_play_are_success() -> None:
    (only,) = all_pass_rates(games((1, 1), (0, 1)))
    assert (only.k, only.all_won, only.any_won) == (1, 0.5, 0.5)
    assert all_pass_rates([]) == [] == pass_lines([])


def test_games_with_too_few_plays_are_left_out_and_counted() -> None:
    assert [r.num_games for r in all_pass_rates(games((2, 2), (0, 1)))] == [2, 1]
    with pytest.raises(ConfigError, match=r"k must lie between 1 and the plays of a game \(2\), got 3"):
        pass_rates(games((2, 2)), 3)


def test_an_evaluation_with_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    conf = ["--config-dir", str(ROOT / "tests" / "conf"), "env=corridor", "agent=stumbling", f"run_dir={folder}"]
    few = ["env.num_eval_tasks=6", "evaluation.stress=false"]
    assert main(["evaluate", *conf, *few, "evaluation.num_repeats=4"]) == 0
    said = capsys.readouterr().err
    assert "pass^1 " in said and "pass@4 " in said and "(6 games)" in said
    report = read_report(folder / "evaluation.json")
    assert len(report.games) == 6 and [g.num_played for g in report.repeats] == [4] * 6
    stored = json.loads((folder / "evaluation.json").read_text())["pass_rates"]
    assert [r["k"] for r in stored] == [1, 2, 3, 4]
    rates = [r["all_won"] for r in stored]
    assert rates == sorted(rates, reverse=True)
    with CalibrationBuffer(folder / "buffer.sqlite") as buffer:
        assert len(buffer.trajectories(kind="evaluation")) == 6
        repeats = buffer.trajectories(kind="repeat")
        assert len({(t.task_id, t.seed) for t in repeats}) == 24
        assert buffer.used_task_ids() == set()  # they have trained nothing
    # Without them it is another evaluation of the same games.
    assert main(["evaluate", *conf, *few, "evaluation.num_repeats=0"]) == 0
    again = read_report(folder / "evaluation.json")
    assert again.repeats == () and again.games == report.games


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("evaluation.num_repeats=-1", "num_repeats must be >= 0, got -1"),
        (
            "evaluation.repeat_temperature=0",
            "repeat_temperature must be > 0, got 0.0; greedy plays of a game are all equal",
        ),
    ],
)
def test_what_cannot_work(override: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "agent=random", f"run_dir={tmp_path / 'run'}", override]) == 2
    assert line in capsys.readouterr().err
