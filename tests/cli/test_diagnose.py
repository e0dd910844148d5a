"""`steca diagnose` on the command line."""

import json

import pytest

from steca_gym.cli import main
from tests.methods.playing import SMALL, play
from tests.runs.test_runner import CONF


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnose") / "run"
    play(folder, "steca", "until=warm_up")
    return folder


@pytest.mark.slow
def test_a_run_is_diagnosed_and_left_as_it_was(run, capsys):
    before = sorted((p.name, p.stat().st_mtime_ns) for p in run.rglob("*"))
    assert main(["diagnose", f"run={run}", "num_tasks=8", "price=2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Verdict: not suited (agent too weak)") and "  change: more or longer warm-up" in out
    assert "money" in out and "calibrating" in out
    assert sorted((p.name, p.stat().st_mtime_ns) for p in run.rglob("*")) == before


@pytest.mark.slow
def test_a_model_without_a_run_and_json(run, capsys):
    args = ["diagnose", *CONF, *SMALL, f"model={run / 'warm-up'}", "agent=tiny", "num_tasks=4", "form=json"]
    assert main(args) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "not suited" and found["measures"]["expert_won"]["count"] == 4
    assert found["forecast"]["num_experts"] >= 1 and found["forecast"]["money"] is None


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["env=household"], "diagnose needs an agent that can act"),
        (["env=household", "agent=random", "form=xml"], "form must be text or json, got 'xml'"),
        (["env=household", "agent=random", "price=free"], "price must be a number > 0, got 'free'"),
        (["env=household", "agent=random", "num_tasks=1"], "num_tasks must be >= 2, got 1"),
        (["env=househld", "agent=random"], "household"),
        (["env=household", "agnt=random"], "agent"),
        (["run=/nowhere"], "no run in '/nowhere'"),
    ],
)
def test_bad_input_is_one_line(args, line, capsys):
    assert main(["diagnose", *args]) in (2, 3)
    (said,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("steca: ")]
    assert line in said
