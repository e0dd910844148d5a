"""Runs: their folders, costs and records, sweeps, and what an interrupt leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steca_gym.cli import EXIT_CODES, USAGE, main
from steca_gym.compare import compare, compose
from steca_gym.errors import AgentError, ConfigError, StecaError
from steca_gym.phases import _train_settings, drawn
from steca_gym.run import Run, check_turns, settings_digest

ROOT = Path(__file__).resolve().parents[1]
CONF = ["--config-dir", str(ROOT / "tests" / "conf")]
# Small enough for a whole run in a few seconds, trained enough to say something.
TINY = [
    "env=corridor",
    "agent.build.num_layers=1",
    "agent.build.hidden_size=32",
    "agent.max_new_tokens=12",
    "++agent.engine.kv_cache_gib=0.1",
    "agent.warm_up.per_device_batch_size=2",
    "agent.reinforce.max_steps=3",
    "preset.calibration.max_steps=2",
    "preset.step_rewards.estimator=fixed",
    "preset.step_rewards.num_samples=1",
    "preset.step_rewards.max_steps=2",
    "evaluation.stress=false",
]


def open_run(folder: Path, *overrides: str) -> Run:
    return Run.open(compose([f"run_dir={folder}", *overrides]), overrides=list(overrides))


def records(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return state


def test_the_folder_follows_from_the_settings(tmp_path: Path) -> None:
    first = Run.open(compose([f"runs_root={tmp_path}"]), overrides=[])
    again = Run.open(compose([f"runs_root={tmp_path}", "logger=wandb"]), overrides=[])
    other = Run.open(compose([f"runs_root={tmp_path}", "env.kwargs.horizon=9"]), overrides=[])
    assert first.folder == again.folder != other.folder
    assert first.folder.name.startswith("household-steca-s0-")
    assert settings_digest({"a": 1, "run_dir": "x"}) == settings_digest({"a": 1, "run_dir": "y"})


def test_a_phase_is_recorded_with_the_cost_of_all_its_attempts(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    with pytest.raises(RuntimeError), run.phase("demonstrations", "title"):
        run.ledger.cost.num_env_steps += 5
        raise RuntimeError("the world fell down")
    assert run.done("demonstrations") is None
    assert records(tmp_path)["unfinished"]["demonstrations"]["num_env_steps"] == 5
    resumed = open_run(tmp_path)
    with resumed.phase("demonstrations", "title") as record:
        resumed.ledger.cost.num_env_steps += 2
        record["num_won"] = 3
    done = resumed.done("demonstrations")
    assert done is not None and done["num_won"] == 3
    assert done["cost"]["num_env_steps"] == 7
    assert records(tmp_path)["unfinished"] == {}
    assert resumed.total_cost()["demonstrations"]["num_env_steps"] == 7


def test_an_agent_that_said_something_is_not_broken(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    with run.phase("demonstrations", "title"):
        run.ledger.cost.num_turns, run.ledger.cost.num_empty_turns = 10, 9
    with pytest.raises(AgentError, match="got 3 turns, 1 of them empty and 2 over"), run.ledger.phase("x") as cost:
        cost.num_turns, cost.num_empty_turns, cost.num_overlong_turns = 3, 1, 2
        check_turns(cost)


def test_every_error_has_an_exit_code_that_the_help_explains() -> None:
    known = [kind for kind, _ in EXIT_CODES]
    assert all(any(issubclass(kind, k) for k in known) for kind in _leaves(StecaError))
    told = USAGE.split("Exit codes:")[1] + str(compose([]))
    assert all(f"{code} " in told for _, code in EXIT_CODES)


def _leaves(kind: type[StecaError]) -> list[type[StecaError]]:
    below = [k for k in kind.__subclasses__() if k.__module__ == "steca_gym.errors"]
    return [leaf for k in below for leaf in _leaves(k)] if below else [kind]


def test_an_interrupt_ends_with_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, tests.worlds as w\n"
        "from steca_gym.cli import main\n"
        # a gate in the background of a shell hands on that SIGINT is ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "act = w.SplitCorridor.act\n"
        "seen = []\n"
        "def once(self, action):\n"
        "    seen.append(action)\n"
        "    if len(seen) == 20: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return act(self, action)\n"
        "w.SplitCorridor.act = once\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = ["collect", *CONF, "env=corridor", "agent=expert", "collector.num_envs=1", f"run_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONFAULTHANDLER": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert "steca: interrupted; the same command goes on from here" in done.stderr
    assert "Traceback" not in done.stderr
    assert "demonstrations" in records(tmp_path)["unfinished"]
    assert main(command) == 0
    assert records(tmp_path)["phases"]["demonstrations"]["num_won"] == 8


def test_a_sweep_shares_its_warm_up_and_each_run_carries_its_cost(tmp_path: Path) -> None:
    assert main(["run", "-m", *CONF, *TINY, "method=sft,steca", "seed=0", f"runs_root={tmp_path}"]) == 0
    runs = {p.parent.name.split("-")[1]: p.parent for p in tmp_path.glob("*/evaluation.json")}
    assert set(runs) == {"sft", "steca"}
    assert len(list(tmp_path.glob("warm-up/*"))) == 1
    warm_ups = [records(folder)["phases"]["warm_up"] for folder in runs.values()]
    assert warm_ups[0]["num_steps"] == warm_ups[1]["num_steps"]
    assert all(w["seconds"] > 0 for w in warm_ups)
    assert [bool(w.get("shared")) for w in warm_ups].count(True) == 1
    costs = [json.loads((f / "evaluation.json").read_text())["cost"] for f in runs.values()]
    assert all(cost["warm_up"]["seconds"] > 0 and "reinforce" in cost for cost in costs)


def test_a_failing_job_of_a_sweep_does_not_stop_its_siblings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["collect", "-m", *CONF, "env=corridor", "agent=expert", "env.train_split=empty,train"]
    assert main([*command, f"runs_root={tmp_path}"]) == 3
    assert "has no tasks" in capsys.readouterr().err
    # Hydra's note of the sweep lies beside the runs, not in the user's folder.
    assert (tmp_path / "multirun.yaml").exists() and not Path("multirun.yaml").exists()
    finished = [f for f in tmp_path.glob("*/run.json") if "demonstrations" in json.loads(f.read_text())["phases"]]
    assert len(finished) == 1


def test_a_sweep_without_m_is_told_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "method=sft,steca"]) == 2
    assert "put -m first: steca run -m method=sft,steca" in capsys.readouterr().err


def test_methods_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    small = [o for o in TINY if not o.startswith("env=")]
    world = [
        "env.kwargs.num_receptacles=3",
        "env.kwargs.num_objects=3",
        "env.kwargs.horizon=8",
        "env.num_train_tasks=8",
        "env.num_eval_tasks=4",
    ]
    reports = compare([*small, *world, f"runs_root={tmp_path}"], ["sft", "rft"])
    assert set(reports) == {"sft", "rft"}
    (table,) = tmp_path.glob("comparison-sft-rft-s0.md")
    text = table.read_text()
    assert "| sft |" in text and "| rft - sft |" in text and "s in all" in text
    assert str(tmp_path) in "".join(capsys.readouterr().out.split())


def test_settings_that_do_not_resolve_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'agent.model' has no value; add agent.model=..."):
        open_run(tmp_path, "agent=transformers")


def test_a_part_of_the_trajectories_is_drawn_and_not_the_first_kind_of_task(tmp_path: Path) -> None:
    run = open_run(tmp_path, "seed=3")
    ids = [f"{kind}/{i}" for kind in ("clean", "heat", "look") for i in range(100)]
    some = drawn(run, ids, 30)
    assert len(set(some)) == 30 and some == drawn(run, ids, 30)
    assert all(5 <= sum(i.startswith(kind) for i in some) <= 15 for kind in ("clean", "heat", "look"))
    assert drawn(run, ids, None) == drawn(run, ids, 1000) == ids


def test_a_run_measures_its_precision_once(tmp_path: Path) -> None:
    run = Run.open(compose([f"run_dir={tmp_path}/run", "env=household"]), overrides=[])
    raw = {"max_steps": 1, "precision": "auto"}
    assert _train_settings(run, raw).precision == "auto"
    with run.phase("warm_up", "warm-up") as record:
        record["precision"] = "bf16"
    assert _train_settings(run, raw).precision == "bf16"
    assert _train_settings(run, {"max_steps": 1, "precision": "fp32"}).precision == "fp32"
    run.close()


class MeasuringAgent:
    """Takes the number type that it is given; "auto" measures, and finds another one each time."""

    found = ("float32", "bfloat16")
    num_measured = 0

    def __init__(self, model: Path, dtype: str) -> None:
        self.dtype = dtype
        if dtype == "auto":
            self.dtype = self.found[MeasuringAgent.num_measured]
            MeasuringAgent.num_measured += 1


def test_a_run_measures_the_engines_number_type_once(tmp_path: Path) -> None:
    for _ in range(2):  # as after a restart
        run = Run.open(compose([f"run_dir={tmp_path}/run", "env=household"]), overrides=[])
        run.settings["agent"]["engine"] = {
            "_target_": "tests.test_run.MeasuringAgent",
            "_partial_": True,
            "dtype": "auto",
        }
        agents: list[Any] = [run.agent(tmp_path), run.agent(tmp_path)]
        assert [a.dtype for a in agents] == ["float32", "float32"]
        run.close()
