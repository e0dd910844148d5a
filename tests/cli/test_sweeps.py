"""Sweeps on the real launchers: every job's outcome comes back, a killed worker costs nothing that was stored."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from steca_gym.cli import main
from steca_gym.errors import ConfigError
from steca_gym.runs import RunFolder
from steca_gym.runs.folder import find_runs
from steca_gym.sweeps.objective import check_objective, objective_of
from steca_gym.sweeps.optuna_sweeper import _process
from tests.runs.test_killed_runs import CONF

ROOT = Path(__file__).resolve().parents[2]
RANDOM = ["env=household", "agent=random", "method=none", "evaluation.stress=false", "env.num_eval_tasks=2"]
SMALL = ["env.kwargs.horizon=4", "env.kwargs.num_receptacles=3", "env.kwargs.num_objects=3"]


def sweep(root: Path, *args: str) -> int:
    return main(["run", "-m", *RANDOM, *SMALL, f"runs_root={root}", *args])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_failing_job_stops_no_other_and_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(here / "runs", "seed=0,1", "env.eval_split=nowhere,valid_seen") == 2
    told = capsys.readouterr().err
    assert "2 of 4 jobs failed" in told
    assert "#0 seed=0 env.eval_split=nowhere: no split 'nowhere'" in told and "#2 seed=1" in told
    done = [run for run in find_runs(here / "runs") if run.evaluation() is not None]
    assert len(done) == 2


@pytest.mark.slow
def test_folders_are_named_after_what_is_swept_and_found_by_a_single_command(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(here / "runs", "env.kwargs.num_distractors=0,1", "seed=3") == 0
    names = sorted(run.path.name for run in find_runs(here / "runs"))
    assert [n.rpartition("-")[0] for n in names] == [f"household-RandomAgent-s3-num_distractors-{n}" for n in (0, 1)]
    capsys.readouterr()
    assert main(["run", *RANDOM, *SMALL, f"runs_root={here / 'runs'}", "env.kwargs.num_distractors=1", "seed=3"]) == 0
    assert f"run: {here / 'runs' / names[1]}" in capsys.readouterr().err
    assert sorted(run.path.name for run in find_runs(here / "runs")) == names


def test_a_seed_is_no_path(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(here / "runs", "seed=../../escape,1") == 2
    assert "1 of 2 jobs failed" in capsys.readouterr().err
    assert [p.name for p in here.iterdir()] == ["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "ray", "submitit_local"])
def test_a_launcher_in_processes_brings_every_outcome_back(
    launcher: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip({"joblib": "joblib", "ray": "ray", "submitit_local": "submitit"}[launcher])
    args = [f"hydra/launcher={launcher}", "seed=0,1", "env.eval_split=nowhere,valid_seen"]
    assert sweep(here / "runs", *args) == 2
    told = capfd.readouterr().err
    assert "2 of 4 jobs failed" in told and "no split 'nowhere'" in told
    assert len([run for run in find_runs(here / "runs") if run.evaluation() is not None]) == 2


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="SKIPPED: only Linux tells a process that its parent died"
)
def test_no_worker_outlives_a_sweep_that_was_killed(here: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    command = [sys.executable, "-m", "steca_gym.cli", "run", "-m", *CONF, *RANDOM, "runs_root=runs", "seed=range(0,40)"]
    command += ["env.num_eval_tasks=200", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    with subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sweep:
        wait_for(lambda: len(list((here / "runs").glob("*/run.json"))) >= 2, sweep)
        workers = children(sweep.pid)
        assert len(workers) >= 2
        sweep.kill()
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))
    finished = [run for run in find_runs(here / "runs") if run.evaluation() is not None]
    assert len(finished) < 40


def children(pid: int) -> list[int]:
    """The processes that a process has started and that run steca's jobs."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return [p for p in found if b"loky" in Path(f"/proc/{p}/cmdline").read_bytes() and not is_tracker(p)]


def is_tracker(pid: int) -> bool:
    """Whether it is loky's resource tracker, which ends by itself."""
    return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until a condition holds; fails after two minutes, or where the process has ended before."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.05)


@pytest.mark.slow
def test_every_job_of_a_sweep_may_fail_and_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    args = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "env.eval_split=nowhere", "seed=0,1,2"]
    assert sweep(here / "runs", *args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "#" in line or "jobs failed" in line]
    assert lines[0].startswith("steca: 3 of 3 jobs failed")
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["#0 seed=0", "#1 seed=1", "#2 seed=2"]


@pytest.mark.slow
def test_a_worker_that_is_killed_in_a_sweep_of_twelve_costs_nothing(here: Path) -> None:
    """One of the workers is killed in the middle of collecting; the sweep ends with all twelve runs, none twice."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    command = [
        sys.executable,
        "-m",
        "steca_gym.cli",
        "run",
        "-m",
        *CONF,
        "env=corridor",
        "agent=stumbling",
        "method=none",
    ]
    command += ["evaluation.stress=false", "runs_root=runs", "seed=range(0,12)"]
    command += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    # Only the worker that draws the lock's file dies, once: the others see that it is taken.
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "STECA_TEST_KILL_AT": "act#40",
        "STECA_TEST_KILL_ONCE": str(here / "died"),
    }
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (here / "died").exists() and "a worker process died" in done.stderr
    runs = find_runs(here / "runs")
    assert len(runs) == 12
    for run in runs:
        report = run.evaluation()
        assert report is not None and len({g.task_id for g in report.games}) == len(report.games)
        assert len(json.loads((run.path / "run.json").read_text())["evaluations"]) == 1
        with RunFolder(run.path).buffer() as buffer:
            played = [t.task_id for t in buffer.trajectories(kind="evaluation")]
        assert len(played) == len(set(played)) == len(report.games)


def test_engines_that_are_missing_are_named_with_their_extra(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("steca_gym.sweeps.plugins.find_spec", lambda name: None)
    for asked, extra in (("hydra/launcher=joblib", "sweep"), ("hydra/sweeper=optuna", "optuna")):
        assert sweep(here / "runs", asked, "seed=0,1") == 2
        assert (
            f"{asked} needs packages that are not installed; pip install 'steca-gym[{extra}]'"
            in capsys.readouterr().err
        )


def test_a_launcher_that_cannot_start_ends_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("submitit")
    if shutil.which("srun"):
        pytest.skip("this is a SLURM cluster")
    assert sweep(here / "runs", "hydra/launcher=submitit", "seed=0,1") == 2
    assert "the launcher cannot run the jobs: RuntimeError: Could not detect" in capsys.readouterr().err


@pytest.mark.slow
def test_optuna_is_told_what_the_runs_reached(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{here}/study.db"
    args = ["hydra/sweeper=optuna", "hydra.sweeper.objective=mean_steps", "hydra.sweeper.direction=minimize"]
    args += [f"hydra.sweeper.storage='{storage}'", "hydra.sweeper.study_name=steps", "env.kwargs.horizon=range(2,9,2)"]
    small = [a for a in SMALL if "horizon" not in a]

    def go(num_trials: int) -> int:
        more = [*args, f"hydra.sweeper.n_trials={num_trials}"]
        return main(["run", "-m", *RANDOM, *small, f"runs_root={here / 'runs'}", *more])

    assert go(3) == 0
    # A trial of a live process is its own; one whose process is gone is played again, with its values.
    study = optuna.load_study(study_name="steps", storage=storage)
    space = {"env.kwargs.horizon": optuna.distributions.IntDistribution(2, 8, step=2)}
    for process in (_process(os.getpid()), f"{socket.gethostname()} 4194304 1", ""):
        study.ask(space).set_user_attr("steca_process", process)
    assert go(5) == 0  # plays the two that are missing
    said = capsys.readouterr().out
    assert "optuna: trials that another command plays in this study right now: 1\n" in said
    assert "optuna: best of 5 finished trials (2 failed and have no value) is #" in said
    states = [t.state.name for t in study.trials]
    assert states == ["COMPLETE"] * 3 + ["RUNNING", "FAIL", "FAIL"] + ["COMPLETE"] * 2
    lost = [t.params for t in study.trials if t.state.name == "FAIL"]
    assert [t.params for t in study.trials[-2:]] == lost
    for trial in (t for t in study.trials if t.state.name == "COMPLETE"):
        horizon = trial.params["env.kwargs.horizon"]
        assert horizon in (2, 4, 6, 8) and trial.value == horizon  # the random agent plays to the cap


def test_optuna_refuses_what_it_cannot_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    assert sweep(here / "runs", "hydra/sweeper=optuna", "hydra.sweeper.objective=succes", "seed=0,1") == 2
    assert "no objective 'succes'; did you mean 'success'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_plan_of_a_sweep_counts_what_is_shared_and_says_what_it_does_not_know(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["sweep-plan", "method=sft,rft", "seed=0,1", f"runs_root={here / 'runs'}"]
    assert main(plan) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {line[0]: line[1:5] for line in lines[2:-1]}
    assert lines[0] == ["4", "runs"]
    assert table["demonstrations"] == ["4", "2", "0", "2"] and table["train"] == ["4", "4", "0", "4"]
    assert lines[-1][:5] == ["time", "and", "tokens:", "not", "known,"]
    assert sweep(here / "runs", "seed=0") == 0
    capsys.readouterr()
    assert main([*plan, "jobs=2"]) == 0
    assert "2 at a time" in capsys.readouterr().out
    assert not list((here / "runs").glob("planned*"))


@pytest.mark.slow
def test_runs_of_other_worlds_are_no_seeds_of_one_another(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(here / "runs", "seed=0,1", "env.kwargs.num_distractors=2,10") == 0
    capsys.readouterr()
    assert main(["table", str(here / "runs")]) == 0
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head[0] == "environment"
    assert [row[0] for row in rows] == ["num_distractors=10", "num_distractors=2"] and {row[2] for row in rows} == {"2"}
    assert main(["table", str(here / "runs"), "by=env.kwargs.num_distractors"]) == 0
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head[0] == "method" and [row[1] for row in rows] == ["2", "10"]


@pytest.mark.slow
def test_what_optuna_cannot_open_or_sweep_ends_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    optimized = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=1"]
    for swept, told in (
        ("env.kwargs.horizon=int(interval(2,1))", "optuna cannot sweep env.kwargs.horizon"),
        ("env.kwargs.horizon=range(5,0,-1)", "optuna cannot sweep env.kwargs.horizon"),
    ):
        assert sweep(here / "runs", *optimized, swept) == 2
        assert told in capsys.readouterr().err
    assert sweep(here / "runs", *optimized, "env.kwargs.horizon=int(interval(2,5))") == 0
    storage = f"hydra.sweeper.storage='sqlite:///{here}/no/such/folder/a.db'"
    assert sweep(here / "runs", *optimized, "env.kwargs.horizon=range(2,5)", storage) == 2
    assert "optuna cannot open the study" in capsys.readouterr().err


def test_optuna_offers_every_value_of_a_range() -> None:
    pytest.importorskip("optuna")
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from steca_gym.sweeps.optuna_sweeper import distribution

    parser = OverridesParser.create()
    for text, low, high in (("a=range(0,1,0.3)", 0.0, 0.9), ("a=range(2,9,2)", 2, 8), ("a=range(2,8,2)", 2, 6)):
        found = distribution(parser.parse_override(text))
        assert found.low == low and found.high == pytest.approx(high)


@pytest.mark.parametrize("key", ["agent.engine.dtype=float32,bfloat16", "agent.train.precision=fp32,bf16"])
def test_a_sweep_never_compares_two_number_types(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", "method=sft", key]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert key.partition("=")[0] in line and "one number type" in line


def test_lists_that_are_swept_are_recognised_and_quoted_commas_are_not() -> None:
    from steca_gym.cli.jobs import swept_keys

    args = ["-m", "env.a=[1],[2]", "env.b='x,y'", "seed=range(3)", "c=tag(log,interval(1,2))", "d=[1,2]"]
    assert swept_keys(args) == {"env.a", "seed", "c"}
    assert swept_keys(["--cfg", "job", "seed=1,2"]) == {"seed"}  # a flag's value is no override


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("success_high", 0.75),
        ("success.pick", 0.25),
        ("success.look", math.nan),
        ("cost.evaluation.num_env_steps", 30.0),
        ("cost.train.seconds", math.nan),
        ("robustness", math.nan),
    ],
)
def test_any_figure_of_an_evaluation_is_an_objective(name: str, value: float) -> None:
    report = {
        "success_high": 0.75,
        "by_type": {"pick": (1, 4)},
        "cost": {"evaluation": {"num_env_steps": 30}},
        "robustness": None,
    }
    check_objective(name)
    assert objective_of(report, name) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("name", ["succes", "success.", "cost", "cost.train", "cost..seconds", "games"])
def test_what_no_evaluation_has_is_no_objective(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no objective .*cost\.PHASE\.FIGURE"):
        check_objective(name)
