"""Runs: their folders, costs and records, sweeps, and what an interrupt leaves."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from steca_gym.agent import find_turn_format
from steca_gym.calibration import AgentRepair
from steca_gym.cli import EXIT_CODES, main, usage
from steca_gym.cli.compare import compare
from steca_gym.cli.composing import compose
from steca_gym.errors import AgentError, ConfigError, StecaError
from steca_gym.methods import RunConfig, Stage
from steca_gym.methods.stages import Demonstrations, subsample
from steca_gym.reports import collect_rows
from steca_gym.runs import RunContext, RunFolder, Runner
from steca_gym.runs.context import check_turns, read_config
from steca_gym.runs.state import RunState, SharedStages

ROOT = Path(__file__).resolve().parents[2]
CONF = ["--config-dir", str(ROOT / "tests" / "conf")]
# Small enough for a whole run in a few seconds, trained enough to say something.
TINY = [
    "env=corridor",
    "agent.build.num_layers=1",
    "agent.build.hidden_size=32",
    "agent.max_new_tokens=12",
    "++agent.engine.kv_cache_gib=0.1",
    "agent.warm_up.per_device_batch_size=2",
    "agent.warm_up.num_epochs=3",
    "agent.warm_up.learning_rate=2.0e-3",
    "agent.train.learning_rate=1.0e-3",
    "agent.train.max_steps=3",
    "preset.calibration.max_steps=2",
    "preset.step_rewards.estimator=fixed",
    "preset.step_rewards.num_samples=1",
    "preset.step_rewards.max_steps=2",
    "evaluation.stress=false",
]


def open_run(folder: Path, *overrides: str) -> Runner:
    return Runner.open(compose([f"run_dir={folder}", *overrides]), overrides=list(overrides))


def records(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return state


def folder_of(*overrides: str) -> Path:
    with Runner.open(compose(overrides)) as runner:
        return runner.folder


@pytest.mark.slow
def test_the_folder_follows_from_what_the_result_depends_on(tmp_path: Path) -> None:
    root = f"runs_root={tmp_path}"
    first = folder_of(root)
    assert first.name.startswith("household-steca-s0-")
    # Where it runs, how it is logged, and which games it is evaluated on do not change what is trained.
    same = [
        "logger=wandb",
        "executor=processes",
        "collector.num_envs=3",
        "env.num_eval_tasks=7",
        "evaluation.stress=false",
    ]
    assert all(folder_of(root, o) == first for o in same)
    other = ["env.kwargs.horizon=9", "seed=1", "agent.train.learning_rate=0.1", "preset.calibration.delta=0.1"]
    assert len({first, *(folder_of(root, o) for o in other)}) == 1 + len(other)
    # What a method does not use does not change its folder.
    assert folder_of(root, "method=sft") == folder_of(root, "method=sft", "preset.num_replayed=7", "encoder.dim=64")


class Costly(Stage):
    """A stage that fails at first."""

    name = "costly"
    title = "title"

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def depends_on(self, config: RunConfig) -> dict[str, Any]:
        return {}

    def run(self, context: Any, record: dict[str, Any]) -> None:
        context.ledger.cost.num_env_steps += 5 if self.fails else 2
        if self.fails:
            raise RuntimeError("the world fell down")
        record["num_won"] = 3


class CostlyMethod:
    """One costly stage."""

    @dataclass(frozen=True)
    class Config:
        pass

    fails = True

    def __init__(self, config: Config) -> None:
        self.config = config

    def stages(self) -> list[Stage]:
        return [Costly(self.fails)]


def test_a_stage_is_recorded_with_the_cost_of_all_its_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = "method=tests.runs.test_runner:CostlyMethod"
    with open_run(tmp_path, method) as runner, pytest.raises(RuntimeError):
        runner.play(until="costly")
    assert records(tmp_path)["stages"] == {}
    assert records(tmp_path)["unfinished"]["costly"]["num_env_steps"] == 5
    monkeypatch.setattr(CostlyMethod, "fails", False)
    with open_run(tmp_path, method) as runner:
        runner.play(until="costly")
    done = RunFolder(tmp_path).record.stages["costly"]
    assert done.result["num_won"] == 3 and done.cost["num_env_steps"] == 7
    assert records(tmp_path)["unfinished"] == {}
    assert RunFolder(tmp_path).cost()["costly"]["num_env_steps"] == 7


def test_an_agent_that_said_something_is_not_broken(tmp_path: Path) -> None:
    with open_run(tmp_path) as runner:
        with runner.accounting("demonstrations", "title"):
            runner.context.ledger.cost.num_turns, runner.context.ledger.cost.num_empty_turns = 10, 9
        with (
            pytest.raises(AgentError, match="got 3 turns, 1 of them empty and 2 over"),
            runner.context.ledger.phase("x") as cost,
        ):
            cost.num_turns, cost.num_empty_turns, cost.num_overlong_turns = 3, 1, 2
            check_turns(cost)


def test_every_error_has_an_exit_code_that_the_help_explains() -> None:
    known = [kind for kind, _ in EXIT_CODES]
    assert all(any(issubclass(kind, k) for k in known) for kind in _leaves(StecaError))
    told = usage().split("Exit codes:")[1]
    assert all(f"{code} " in told for _, code in EXIT_CODES)


def _leaves(kind: type[StecaError]) -> list[type[StecaError]]:
    below = [k for k in kind.__subclasses__() if k.__module__ == "steca_gym.errors"]
    return [leaf for k in below for leaf in _leaves(k)] if below else [kind]


@pytest.mark.slow
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
    assert "steca: interrupted; the same command continues from here" in done.stderr
    assert "Traceback" not in done.stderr
    assert "demonstrations" in records(tmp_path)["unfinished"]
    assert main(command) == 0
    assert records(tmp_path)["stages"]["demonstrations"]["result"]["num_won"] == 8


@pytest.mark.slow
def test_a_sweep_shares_what_depends_on_equal_settings(tmp_path: Path) -> None:
    sweep = ["method=sft,steca", "agent.train.learning_rate=0.001,0.002"]
    assert main(["run", "-m", *CONF, *TINY, *sweep, f"runs_root={tmp_path}"]) == 0
    runs = [RunFolder(p.parent) for p in sorted(tmp_path.glob("*/evaluation.json"))]
    assert [r.record.method for r in runs] == ["sft", "sft", "steca", "steca"]

    def own(stage: str) -> int:
        """Runs that did the stage themselves."""
        held = [r.record.stages[stage] for r in runs if stage in r.record.stages]
        assert len({s.key for s in held}) == 1 and all(s.seconds > 0 for s in held)
        return sum(not s.shared_from for s in held)

    assert own("demonstrations") == own("warm_up") == own("calibration") == 1
    assert len({r.record.stages["train"].key for r in runs}) == 4
    # Each run is whole: it holds the trajectories, the model and the costs of what it took over.
    for run in runs:
        with run.buffer() as buffer:
            assert len(buffer.trajectories(kind="expert")) == 8
            assert len(buffer.results("calibration")) == (8 if run.record.method == "steca" else 0)
        assert (run.path / "warm-up" / "model.safetensors").exists()
        cost = json.loads((run.path / "evaluation.json").read_text())["cost"]
        assert cost["warm_up"]["seconds"] > 0 and "train" in cost
    # Their evaluations stand in one table.
    rows = collect_rows([tmp_path], by="agent.train.learning_rate")
    assert [(r.method, r.value, r.num_runs) for r in rows] == [
        (m, v, 1) for m in ("sft", "steca") for v in ("0.001", "0.002")
    ]


@pytest.mark.slow
def test_another_evaluation_size_is_another_evaluation_of_the_same_model(tmp_path: Path) -> None:
    command = [*CONF, "env=corridor", "agent=stumbling", "evaluation.stress=false", f"run_dir={tmp_path}"]
    assert main(["evaluate", *command]) == 0
    first = (tmp_path / "evaluation.json").read_bytes()
    assert main(["evaluate", *CONF, f"run={tmp_path}", "env.num_eval_tasks=6"]) == 0
    run = RunFolder(tmp_path)
    assert len(run.record.evaluations) == 2
    four, six = (run.evaluation(key) for key in run.record.evaluations)
    assert four is not None and six is not None and (len(four.games), len(six.games)) == (4, 6)
    assert {g.task_id for g in four.games} < {g.task_id for g in six.games}
    # Four of the six games were played already.
    (_, entry) = run.record.evaluations.values()
    assert entry["cost"]["num_env_steps"] == sum(g.num_steps for g in six.games if g not in four.games)
    # The first one again is read, not played.
    assert main(["evaluate", *CONF, f"run={tmp_path}", "env.num_eval_tasks=4"]) == 0
    assert (tmp_path / "evaluation.json").read_bytes() == first


@pytest.mark.slow
def test_a_folder_that_does_not_fit_names_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["collect", *CONF, "env=corridor", "agent=expert", f"run_dir={tmp_path}"]
    assert main(command) == 0
    # Settings of stages that are still to come are free to change.
    assert main([*command, "preset.calibration.delta=0.1"]) == 0
    capsys.readouterr()
    assert main([*command, "env.num_train_tasks=5", "env.kwargs.horizon=9"]) == 2
    err = capsys.readouterr().err
    assert "env.num_train_tasks: 8, asked for 5" in err and "env.kwargs.horizon: 14, asked for 9" in err


def test_a_run_that_another_process_holds_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_run(tmp_path):
        assert main(["collect", f"run_dir={tmp_path}"]) == 2
    words = f"is being worked on by process {os.getpid()} on {socket.gethostname()} since 2"
    assert words in capsys.readouterr().err


def test_a_lock_whose_file_was_just_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened it before its holder let go would hold a file that nobody else finds."""
    lock, flock, taken = tmp_path / "run.lock", fcntl.flock, list[int]()

    def remove_first(file: Any, how: int) -> None:
        if not taken:
            lock.unlink()
        taken.append(how)
        flock(file, how)

    monkeypatch.setattr("fcntl.flock", remove_first)
    state = RunState(tmp_path, blank={"version": "x", "method": "m", "seed": 0, "overrides": [], "settings": {}})
    assert len(taken) == 2 and str(os.getpid()) in lock.read_text()
    with pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
        RunState(tmp_path, blank={})
    state.release()
    assert not lock.exists()


def test_who_waits_for_a_sibling_says_so(tmp_path: Path) -> None:
    mine, theirs = (SharedStages(tmp_path / name, tmp_path) for name in ("a", "b"))
    said: list[str] = []
    with theirs.holding("warm_up", "key", on_wait=lambda: said.append("theirs")):
        pass
    assert said == []

    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop  # instead of waiting

    with theirs.holding("warm_up", "key"), pytest.raises(Stop), mine.holding("warm_up", "key", on_wait=stop):
        pass


def test_evaluating_never_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", *CONF, *TINY, f"run_dir={tmp_path}"]) == 0
    capsys.readouterr()
    assert main(["evaluate", f"run={tmp_path}"]) == 2
    assert "the stage 'warm_up' is not done, and steca evaluate never trains" in capsys.readouterr().err
    assert not (tmp_path / "warm-up").exists()


def test_a_folder_whose_name_is_not_ascii(tmp_path: Path) -> None:
    folder = tmp_path / "実験 \\ä"
    assert main(["collect", *CONF, "env=corridor", "agent=expert", f"run_dir={folder}"]) == 0
    assert main(["evaluate", f"run={folder}"]) == 0
    assert [p.name for p in tmp_path.iterdir() if p.name != ".stages"] == [folder.name]
    assert (folder / "evaluation.json").exists()


@pytest.mark.parametrize("name", ["a ${x}", "\\${seed}", "null", "[a, b]", "'q' = 1"])
def test_a_folder_whose_name_means_something_to_hydra(name: str, tmp_path: Path) -> None:
    assert main(["collect", *CONF, "env=corridor", "agent=expert", f"run_dir={tmp_path / 'first'}"]) == 0
    (tmp_path / "first").rename(tmp_path / name)
    assert main(["evaluate", f"run={tmp_path / name}"]) == 0
    assert [p.name for p in tmp_path.iterdir() if p.name != ".stages"] == [name]


def test_no_run_dir_is_the_derived_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["collect", *CONF, "env=corridor", "agent=expert", "run_dir=null"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_the_record_names_the_seed_of_the_settings(tmp_path: Path) -> None:
    for seed in (5, 7):
        assert main(["evaluate", *CONF, "env=corridor", "agent=expert", f"seed={seed}", f"run_dir={tmp_path}"]) == 0
        assert records(tmp_path)["seed"] == seed


def test_stages_are_named_by_the_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "method=rft", "until=?", f"run_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out.split() == ["demonstrations", "warm_up", "own_episodes", "train", "evaluation"]
    assert main(["run", "method=rft", "until=calibration", f"run_dir={tmp_path}"]) == 2
    assert "no stage of method 'rft' 'calibration'" in capsys.readouterr().err


def test_a_failing_job_of_a_sweep_does_not_stop_its_siblings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["collect", "-m", *CONF, "env=corridor", "agent=expert", "env.train_split=empty,train"]
    assert main([*command, f"runs_root={tmp_path}"]) == 3
    assert "has no tasks" in capsys.readouterr().err
    # Hydra's note of the sweep lies beside the runs, not in the user's folder.
    assert (tmp_path / "multirun.yaml").exists() and not Path("multirun.yaml").exists()
    finished = [f for f in tmp_path.glob("*/run.json") if "demonstrations" in records(f.parent)["stages"]]
    assert len(finished) == 1


def test_a_sweep_without_m_is_told_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "method=sft,steca"]) == 2
    assert "put -m first: steca run -m method=sft,steca" in capsys.readouterr().err


@pytest.mark.slow
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


def test_a_subsample_is_not_the_first_kind_of_task() -> None:
    ids = [f"{kind}/{i}" for kind in ("clean", "heat", "look") for i in range(100)]
    some = subsample(3, ids, 30)
    assert len(set(some)) == 30 and some == subsample(3, ids, 30)
    assert all(5 <= sum(i.startswith(kind) for i in some) <= 15 for kind in ("clean", "heat", "look"))
    assert subsample(3, ids, None) == subsample(3, ids, 1000) == ids


class MeasuringAgent:
    """Takes the number type that it is given; "auto" measures, and finds another one each time."""

    found = ("float32", "bfloat16")
    num_measured = 0

    def __init__(self, model: Path, dtype: str) -> None:
        self.dtype = dtype
        if dtype == "auto":
            self.dtype = self.found[MeasuringAgent.num_measured]
            MeasuringAgent.num_measured += 1

    name = "measuring"
    needs: frozenset[str] = frozenset()

    def act(self, requests: Any) -> list[Any]:
        return []

    def release(self, episode_ids: Any) -> None:
        return None


def test_the_runs_of_a_folder_measure_the_engines_number_type_once(tmp_path: Path) -> None:
    config, _ = read_config(compose(["env=household"]))
    engine = {"_target_": "tests.runs.test_runner.MeasuringAgent", "_partial_": True, "dtype": "auto"}
    config = replace(config, runs_root=str(tmp_path), agent=replace(config.agent, engine=engine))
    for name in ("a", "b"):  # as of two runs of a sweep, or after a restart
        context = RunContext(config, tmp_path / name)
        agents: list[Any] = [context.agent(tmp_path), context.agent(tmp_path)]
        assert [a.dtype for a in agents] == ["float32", "float32"]


@pytest.mark.parametrize("name", ["react", "tools", "json", "xml"])
def test_the_expert_writes_in_the_turn_format_of_the_run(name: str, tmp_path: Path) -> None:
    overrides = ["env=corridor", "agent=expert", "method=none", f"agent.turn_format={name}", f"runs_root={tmp_path}"]
    folders = [str(ROOT / "tests" / "conf")]
    config, _ = read_config(compose(overrides, folders))
    context = RunContext(config, tmp_path)
    request = context.request("walk-1")
    fork = []
    for agent in (context.expert(), context.agent(None)):
        with context.collector(agent) as collector:
            (episode,) = collector.run([replace(request, capture=True)])
        assert episode.trajectory.won, name
        fork = [*episode.forks[:2]]
    repaired = AgentRepair(context.expert(), context.make_env, turn_format=name)(fork[1])
    parse = find_turn_format(name).parse
    assert repaired.steps and all(parse(s.turn_text()).action == s.action for s in repaired.steps)


def test_demonstrations_in_another_turn_format_are_others() -> None:
    keys = [
        Demonstrations().depends_on(read_config(compose(["method=sft", f"agent.turn_format={name}"]))[0])
        for name in ("react", "json")
    ]
    assert keys[0] != keys[1] and "turn_format" not in keys[0]  # folders of earlier versions are found again
