"""Evaluation: what is measured, on which games, and what may never be among them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from steca_gym.agent import TurnRequest, render_turn
from steca_gym.cli import main
from steca_gym.collectors import Collector
from steca_gym.collectors.episodes import EpisodeRequest
from steca_gym.errors import ConfigError, ContaminationError, DataError
from steca_gym.evaluation import (
    EvaluationReport,
    EvaluationSettings,
    GameResult,
    compare,
    evaluate,
    read_report,
)
from steca_gym.reports import comparison_table, paired_table
from steca_gym.statistics import wilson
from steca_gym.trajectory import Trajectory
from tests.fakes import CorridorWorld, FakeAgent, corridor

CONF = ["--config-dir", str(Path(__file__).parents[1] / "conf")]
TASKS = [f"corridor-{n}" for n in (1, 2, 3, 4, 5)]


def walker(request: TurnRequest) -> str:
    """Walks right and opens the door where the goal says it is; after a wrong step it is lost."""
    goal = int(request.messages[0].content.split(" rooms away")[0].rsplit(" ", 1)[1])
    acted = [m.content for m in request.messages if m.role == "assistant"]
    if any("left" in a for a in acted):
        return render_turn("", "left")
    return render_turn("", "right" if len(acted) < goal else "open")


def lost_in_long_ones(request: TurnRequest) -> str:
    return walker(request) if "corridor" and int(request.messages[0].content.split(" rooms")[0][-1]) < 4 else "mumble"


def experts() -> list[Trajectory]:
    expert = FakeAgent(walker)
    with Collector(corridor(), expert) as collector:
        return [e.trajectory for e in collector.run([EpisodeRequest(task_id=t, seed=1) for t in TASKS])]


def report(won: list[bool], *, task: str = "t") -> EvaluationReport:
    games = tuple(
        GameResult(task_id=f"{task}{i}", task_type="", won=w, score=float(w), num_steps=4, num_invalid=1)
        for i, w in enumerate(won)
    )
    return EvaluationReport(games=games)


def test_success_steps_distance_and_invalid_turns() -> None:
    with Collector(corridor(horizon=6), FakeAgent(lost_in_long_ones)) as collector:
        got = evaluate(collector, TASKS, expert_trajectories=experts())
    assert got.success == 3 / 5
    assert got.success_interval == pytest.approx((0.2307, 0.8824), abs=1e-3)  # Wilson, 3 of 5
    assert got.by_type() == {"long": (0, 2), "short": (3, 3)}
    assert got.mean_steps == (2 + 3 + 4 + 6 + 6) / 5
    assert got.invalid_rate == 12 / 21
    distances = [g.dndtw for g in got.games]
    assert distances[:3] == pytest.approx([0, 0, 0], abs=1e-6)
    assert all(d is not None and d > 0.1 for d in distances[3:])
    again = EvaluationReport.from_dict(json.loads(json.dumps(got.as_dict())))
    assert again == got


def test_games_that_fed_training_are_refused_before_anything_is_played() -> None:
    agent = FakeAgent(walker)
    with (
        Collector(corridor(), agent) as collector,
        pytest.raises(ContaminationError, match="2 of 5 games.*another split"),
    ):
        evaluate(collector, TASKS, forbidden_task_ids={"corridor-2", "corridor-5", "elsewhere"})
    assert agent.batches == []


def test_no_games_or_a_game_twice_is_refused() -> None:
    with Collector(corridor(), FakeAgent(walker)) as collector:
        with pytest.raises(ConfigError, match="expected at least one game, got an empty list"):
            evaluate(collector, [])
        with pytest.raises(ConfigError, match="listed twice"):
            evaluate(collector, ["corridor-1", "corridor-1"])


def test_an_interrupted_evaluation_goes_on() -> None:
    with Collector(corridor(), FakeAgent(walker)) as collector:
        whole = evaluate(collector, TASKS, seed=3)
        first = []
        some = Collector(corridor(), FakeAgent(walker), on_progress=lambda p: first.append(p.last.trajectory))
        evaluate(some, TASKS[:2], seed=3)
    agent = FakeAgent(walker)
    with Collector(corridor(), agent) as collector:
        rest = evaluate(collector, TASKS, seed=3, played=first)
        assert rest.games == whole.games
        # Games of another seed are other games.
        assert evaluate(collector, TASKS, seed=4, played=first).success == 1.0
    assert sum(r.turn == 0 for batch in agent.batches for r in batch) == 3 + 5


def test_the_stress_test_pairs_histories_with_and_without_a_wrong_action() -> None:
    make = corridor(horizon=12)
    with Collector(make, FakeAgent(walker)) as collector:
        got = evaluate(collector, TASKS, expert_trajectories=experts(), make_env=make)
        few = evaluate(
            collector,
            TASKS,
            expert_trajectories=experts(),
            make_env=make,
            settings=EvaluationSettings(num_stress_games=2),
        )
    # The first room has no wrong action that can be undone ("jump" loses the game); all others have "left".
    assert {s.wrong_action for s in got.stress} == {"left"}
    assert got.robustness_reference == 1.0
    assert got.robustness == 0.0
    assert len(few.stress) == 2
    low, high = got.robustness_interval or (-1.0, -1.0)
    assert (low, high) == (0.0, pytest.approx(wilson(0, len(got.stress))[1]))
    loss, least, most = got.robustness_loss or (0.0, 0.0, 0.0)
    assert loss == 1.0 and least < 1.0 and most == pytest.approx(1.0)
    assert got.as_dict()["robustness_high"] == high and report([True]).as_dict()["robustness_high"] is None


def test_the_stress_tests_wrong_turn_has_the_form_that_training_shows() -> None:
    seen: list[str] = []

    def watching(request: TurnRequest) -> str:
        seen.extend(m.content for m in request.messages if m.role == "assistant" and "left" in m.content)
        return walker(request)

    make = corridor(horizon=12)
    with Collector(make, FakeAgent(watching)) as collector:
        evaluate(collector, TASKS, expert_trajectories=experts(), make_env=make)
    wrong = {text for text in seen if text.startswith("Thought:")}
    assert "Thought: I should left.\nAction: left" in wrong


def test_paired_comparison() -> None:
    a, b = report([True, True, False, False, False]), report([True, False, True, True, True])
    c = compare(a, b)
    assert (c.num_games, c.only_first, c.only_second) == (5, 1, 3)
    assert c.difference == pytest.approx(0.4)
    assert c.low < c.difference < c.high
    assert c.p_value == pytest.approx(0.625)  # binomial: 2 * (1 + 4) / 16
    with pytest.raises(DataError, match="share no game"):
        compare(a, report([True], task="other"))


def test_tables_for_people_and_for_markdown() -> None:
    reports = {"sft": report([True, False]), "steca": report([True, True])}
    _, markdown = comparison_table(reports)
    _, paired = paired_table(reports)
    assert "| sft | 50.0 % (9.5 to 90.5)" in markdown
    assert "| steca - sft | +50.0" in paired


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text("{}")
    with pytest.raises(DataError, match="evaluation.json.*remove it and evaluate again"):
        read_report(path)


# -- through the command line ----------------------------------------------------------------------------------


def test_a_run_never_evaluates_on_its_training_games(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*CONF, "env=corridor", "agent=stumbling", "env.eval_split=train", f"run_dir={tmp_path}"]
    assert main(["calibrate", *command]) == 0
    assert main(["evaluate", *CONF, f"run={tmp_path}"]) == 3
    assert "4 of 4 games fed training or calibration" in capsys.readouterr().err
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.slow
def test_a_model_is_never_evaluated_on_games_that_another_run_trained_it_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["agent.build.num_layers=1", "agent.build.hidden_size=32", "agent.warm_up.num_epochs=1"]
    first = tmp_path / "first" / "run"
    assert main(["train", "phase=warm_up", *CONF, "env=corridor", *tiny, f"run_dir={first}"]) == 0
    other = ["env.eval_split=train", "++agent.engine.kv_cache_gib=0.1", f"run_dir={tmp_path / 'second'}"]
    assert main(["evaluate", *CONF, "env=corridor", f"model={first / 'warm-up'}", *other]) == 3
    assert "4 of 4 games fed training" in capsys.readouterr().err


def test_an_agent_without_a_model_is_evaluated_as_it_is(tmp_path: Path) -> None:
    assert main(["evaluate", *CONF, "env=corridor", "agent=expert", f"run_dir={tmp_path}"]) == 0
    got = read_report(tmp_path / "evaluation.json")
    assert got.success == 1.0 and math.isclose(got.mean_dndtw or 0.0, 0.0, abs_tol=1e-6)


def test_the_fake_world_says_what_the_tests_rely_on() -> None:
    world = CorridorWorld()
    world.start("corridor-2", 0)
    assert world.admissible_actions() == ("right", "jump")
