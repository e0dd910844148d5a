"""Bad input, through the real command line: one line with what was expected, what came and what to do; an exit code
that says whose fault it is; and what was collected before is still there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steca_gym import provenance
from steca_gym.agent import MAX_TURN_CHARS
from steca_gym.buffer import CalibrationBuffer
from steca_gym.cli import main
from steca_gym.env import INVALID_TURN_OBSERVATION
from tests.fakes import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CONF = ["--config-dir", str(ROOT / "tests" / "conf")]
CORRIDOR = [*CONF, "env=corridor"]
# A real model, made in a second; what is tested is never what it learns.
TINY = [
    *CORRIDOR,
    "agent=tiny",
    "agent.build.num_layers=1",
    "agent.build.hidden_size=32",
    "agent.warm_up.num_epochs=1",
    "++agent.engine.kv_cache_gib=0.1",
]
DEMONSTRATIONS = 8


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("steca: ")]
    assert len(lines) == 1, lines
    return lines[0]


def num_demonstrations(folder: Path) -> int:
    with CalibrationBuffer(folder / "buffer.sqlite") as buffer:
        return len(buffer.trajectories(kind="expert"))


# -- names and data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["env=coridor"], ["no env 'coridor'", "did you mean 'corridor'", "household"]),
        (["env=corridor", "agent=stumblng"], ["no agent 'stumblng'", "did you mean 'stumbling'", "transformers"]),
        (["env=corridor", "env.horizn=3"], ["no setting or group 'env.horizn'", "`steca run --help`"]),
        (["env=corridor", "env.id=tests.worlds:steca-test/Coridor-v0"], ["cannot make environment", "Coridor"]),
        (["env=corridor", "++env.kwargs.rooms=3"], ["does not take these kwargs", "rooms"]),
        (
            ["env=corridor", "agent=stumbling", "agent.engine._target_=tests.worlds.NoAgent"],
            ["cannot import agent", "NoAgent"],
        ),
        (
            ["env=corridor", "agent=stumbling", "++agent.engine.room=3"],
            ["no setting of agent", "'room'"],
        ),
        (["env=corridor", "reflector=openai"], ["no value", "add reflector."]),
        (["env=corridor", "method=none", "exploration=null"], ["exploration must be a group of settings, got None"]),
        (
            ["env=corridor", "method=none", "preset.calibration=3"],
            ["preset.calibration must be a group of settings, got 3"],
        ),
        (
            ["env=corridor", "agent=stumbling", "method=none", "+judge._target_=tests.worlds.NoJudge"],
            ["cannot import judge 'tests.worlds.NoJudge'"],
        ),
    ],
)
def test_unknown_names(args: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *CONF, *args, f"run_dir={tmp_path}"]) == 2
    line = told(capsys)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("method", ["sft", "none"])
@pytest.mark.parametrize("which", ["train_split", "eval_split"])
def test_a_mistyped_split(which: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*CORRIDOR, "agent=stumbling", f"method={method}", f"env.{which}=trian", f"run_dir={tmp_path}"]
    assert main(["run", *command]) in (2, 3)
    assert "split 'trian'" in told(capsys)
    assert not (tmp_path / "buffer.sqlite").exists()


def test_a_folder_that_hydra_cannot_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    command = [*CORRIDOR, "agent=stumbling", "method=none", f"hydra.run.dir={tmp_path / 'file' / 'x'}"]
    assert main(["run", *command, f"run_dir={tmp_path / 'run'}"]) == 5
    assert "choose another hydra.run.dir" in told(capsys)


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    command = [*CORRIDOR, "agent=stumbling", "method=none", "runs_root=~/my-runs"]
    assert main(["run", *command]) == 0
    assert len(list((tmp_path / "my-runs").glob("*/run.json"))) == 1


@pytest.mark.parametrize("which", ["train_split", "eval_split"])
def test_an_empty_split(which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*CORRIDOR, "agent=expert", f"env.{which}=empty", f"run_dir={tmp_path}"]
    assert main(["run", *command]) == 3
    line = told(capsys)
    assert "split 'empty'" in line and "has no tasks; choose another split" in line
    # Known at the start, and so said at the start.
    assert not (tmp_path / "buffer.sqlite").exists()


def test_a_missing_data_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    assert main(["run", "env=alfworld", f"run_dir={tmp_path / 'a'}"]) == 3
    assert "ALFWORLD_DATA is not set; run `alfworld-download`" in told(capsys)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "nothing"))
    assert main(["run", "env=alfworld", f"run_dir={tmp_path / 'b'}"]) == 3
    assert "it does not exist; run `alfworld-download`" in told(capsys)


# -- models ----------------------------------------------------------------------------------------------------


def a_model(folder: Path, *, chat_template: bool = True) -> Path:
    tokenizer = tiny_tokenizer() if chat_template else tiny_tokenizer(None)
    tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_model(model: Path, folder: Path) -> list[str]:
    return ["run", *CORRIDOR, "agent=transformers", f"agent.model={model}", f"run_dir={folder}"]


def test_a_model_without_a_chat_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = a_model(tmp_path / "model", chat_template=False)
    assert main(run_model(model, tmp_path / "run")) == 4
    line = told(capsys)
    assert "chat template" in line and str(model) in line
    assert num_demonstrations(tmp_path / "run") == DEMONSTRATIONS


def test_a_folder_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    assert main(run_model(tmp_path / "model", tmp_path / "run")) == 4
    assert "expected a folder" in told(capsys)


def test_a_checkpoint_of_another_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = a_model(tmp_path / "model")
    provenance.record(model, fingerprint="other-corridor/1+none", task_ids=["walk-0"])
    assert main(run_model(model, tmp_path / "run")) == 4
    line = told(capsys)
    assert "was trained in 'other-corridor/1+none', got environment 'corridor/1+none'" in line
    assert "use the environment it was trained in" in line
    assert num_demonstrations(tmp_path / "run") == DEMONSTRATIONS


def test_a_loss_that_is_not_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    broken = [*TINY, "agent.warm_up.learning_rate=1e30", "++agent.warm_up.max_grad_norm=0"]
    command = [*broken, "agent.warm_up.per_device_batch_size=2", f"run_dir={folder}"]
    assert main(["run", *command]) == 4
    line = told(capsys)
    assert "expected a finite number" in line and "lower the learning rate" in line
    assert num_demonstrations(folder) == DEMONSTRATIONS
    assert not (folder / "warm-up" / "training.json").exists()


# -- agents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "words"), [("empty", "of them empty"), ("long", f"over {MAX_TURN_CHARS} characters")]
)
def test_an_agent_that_says_nothing_usable(
    agent: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*CORRIDOR, f"agent={agent}", f"run_dir={tmp_path}"]
    assert main(["calibrate", *command]) == 4
    line = told(capsys)
    assert (
        words in line
        and "expected turns of 'Thought: ...' and 'Action: ...', got" in line
        and "check the agent" in line
    )
    assert num_demonstrations(tmp_path) == DEMONSTRATIONS
    assert main(["evaluate", *command]) == 4


def test_single_bad_turns_are_data(tmp_path: Path) -> None:
    assert main(["evaluate", *CORRIDOR, "agent=mixed", "evaluation.stress=false", f"run_dir={tmp_path}"]) == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["success"] == 1.0
    assert [g["num_invalid"] for g in report["games"]] == 4 * [2]
    (evaluation,) = json.loads((tmp_path / "run.json").read_text())["evaluations"].values()
    cost = evaluation["cost"]
    assert (cost["num_empty_turns"], cost["num_overlong_turns"], cost["num_unreadable_turns"]) == (4, 4, 8)
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        steps = buffer.trajectories(kind="evaluation")[0].steps
    assert [s.observation for s in steps[:2]] == 2 * [INVALID_TURN_OBSERVATION]
    assert len(steps[1].text) == MAX_TURN_CHARS


@pytest.mark.slow
@pytest.mark.parametrize(("command", "what"), [("calibrate", "8 trajectories"), ("evaluate", "4 games")])
def test_a_server_that_is_away(
    command: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [command, *CORRIDOR, "agent=broken", f"run_dir={tmp_path}"]
    assert main(args) == 4
    line = told(capsys)
    assert f"all {what} broke" in line and "no answer from the server" in line and "run the same command again" in line
    if command == "calibrate":
        assert num_demonstrations(tmp_path) == DEMONSTRATIONS
    monkeypatch.setenv("STECA_TEST_SERVER", "up")
    assert main(args) == 0
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        assert not any(r.error for r in buffer.results("calibration"))
        assert len(buffer.results("calibration")) == (8 if command == "calibrate" else 0)


# -- full disks ------------------------------------------------------------------------------------------------

# Behind RLIMIT_FSIZE a write fails as on a full disk, for this process alone. SIGXFSZ is ignored by Python.
LIMITED = """
import resource, sys
from steca_gym.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
sys.exit(main(sys.argv[2:]))
"""


def limited(num_bytes: int, *args: str) -> tuple[int, str]:
    """Exit code and error line of a process whose files cannot grow beyond a size."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(num_bytes), *args],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("steca: ")]
    assert "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    code, line = limited(1, "collect", *CORRIDOR, "agent=expert", f"run_dir={tmp_path / 'run'}")
    assert code == 5
    assert "cannot write" in line and "free space" in line


@pytest.mark.slow
def test_a_disk_that_fills_while_the_buffer_grows(tmp_path: Path) -> None:
    command = [*CORRIDOR, "agent=stumbling", "env.kwargs.num_tasks=40", "env.num_train_tasks=40", f"run_dir={tmp_path}"]
    assert main(["collect", *command]) == 0
    code, line = limited(300_000, "calibrate", *command)
    assert code == 5
    assert "cannot write buffer" in line and "free space and run the same command again" in line
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        kept = buffer.results("calibration")
        assert len(buffer.trajectories(kind="expert")) == 40
        assert {r.expert_id for r in kept} == buffer.done("calibration") and 0 < len(kept) < 40
    assert main(["calibrate", *command]) == 0  # space was freed
    with CalibrationBuffer(tmp_path / "buffer.sqlite") as buffer:
        results = {r.expert_id: r for r in buffer.results("calibration")}
    assert len(results) == 40 and all(results[r.expert_id] == r for r in kept)


@pytest.mark.slow
def test_a_disk_that_fills_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    command = [*TINY, "agent.build.hidden_size=96", f"run_dir={tmp_path / 'run'}"]
    assert main(["collect", *command]) == 0
    # The weights cannot be written, everything smaller can.
    code, line = limited(250_000, "train", "phase=warm_up", *command)
    assert code == 5
    assert "cannot write" in line and "free space" in line
    assert num_demonstrations(tmp_path / "run") == DEMONSTRATIONS
    assert not (tmp_path / "run" / "warm-up" / "training.json").exists()
    assert main(["train", "phase=warm_up", *command]) == 0
    assert (tmp_path / "run" / "warm-up" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_full_disk_where_the_report_goes(tmp_path: Path) -> None:
    command = [*CORRIDOR, "agent=stumbling", "evaluation.stress=false", f"run_dir={tmp_path}"]
    assert main(["evaluate", *command]) == 0
    before = (tmp_path / "evaluation.json").read_bytes()
    # Not even the smallest file fits: the old report stays whole.
    code, line = limited(10, "evaluate", *command, "env.num_eval_tasks=3")
    assert code == 5 and "free space" in line
    assert (tmp_path / "evaluation.json").read_bytes() == before
    assert not list(tmp_path.glob(".*.json.*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert main(["collect", *CORRIDOR, f"run_dir={tmp_path / 'run'}"]) == 5
    assert "cannot write the run's folder" in told(capsys)


def test_a_file_where_the_folder_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["collect", *CORRIDOR, f"run_dir={tmp_path / 'taken'}"]) == 5
    assert "choose a run_dir" in told(capsys)


def test_a_damaged_record_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["collect", *CORRIDOR, "agent=expert", f"run_dir={tmp_path}"]
    assert main(command) == 0
    (tmp_path / "run.json").write_text('{"version"')
    capsys.readouterr()
    assert main(command) == 5
    assert "expected the record of a run" in told(capsys)
    assert main(["evaluate", f"run={tmp_path}"]) == 3
