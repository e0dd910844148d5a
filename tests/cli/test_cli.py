"""The command line: what a user sees of mistakes, and a whole loop on small household games."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steca_gym.buffer import CalibrationBuffer
from steca_gym.cli import main

# A loop of seconds: two-layer model, short games, few samples. What is tested is the way, not the success.
SMALL = [
    "env.kwargs.horizon=8",
    "env.kwargs.num_receptacles=3",
    "env.kwargs.num_objects=3",
    "env.num_train_tasks=12",
    "env.num_eval_tasks=3",
    "agent.build.num_layers=1",
    "agent.build.hidden_size=32",
    "agent.max_new_tokens=12",
    "++agent.engine.kv_cache_gib=0.1",
    # Enough that the model says something: an agent that never does ends a run.
    "agent.warm_up.num_epochs=4",
    "agent.warm_up.learning_rate=2.0e-3",
    "agent.warm_up.per_device_batch_size=2",
    "exploration.num_experts=6",
    "agent.train.max_steps=2",
    "preset.step_rewards.estimator=fixed",
    "preset.step_rewards.num_samples=1",
    "preset.step_rewards.max_steps=4",
    "preset.calibration.max_steps=4",
]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rnu"], ["no command 'rnu'", "did you mean 'run'"]),
        (["run", "method=steka"], ["no method 'steka'", "did you mean 'steca'"]),
        (["run", "env=houshold"], ["no env 'houshold'", "did you mean 'household'"]),
        (
            ["run", "env.kwargs.rooms=3"],
            [
                "no setting or group 'env.kwargs.rooms'",
                "+env.kwargs.rooms=3 adds an argument that its file does not list",
            ],
        ),
        (["run", "agnet=tiny"], ["no setting or group 'agnet'", "did you mean 'agent'"]),
        (["run", "env.num_train_task=3"], ["'env.num_train_task'", "did you mean 'env.num_train_tasks'"]),
        (["run", "-m", "method=sft,rtf"], ["no method 'rtf'", "did you mean 'rft'"]),
        (["evaluate", "run=/nowhere"], ["no run in '/nowhere'"]),
        (["fetch", "virtualhom"], ["no world to fetch 'virtualhom'"]),
    ],
)
def test_a_mistake_gets_one_line_with_the_nearest_name(
    args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) in (2, 3)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["env.id=steca/Nothing-v0"], ["cannot make environment", "Nothing"]),
        (["env.kwargs.num_receptacles=1"], ["num_receptacles must be >= 3, got 1"]),
        (["env.train_split=nowhere"], ["no split 'nowhere'"]),
        (["agent=transformers"], ["agent.model"]),
        (["agent=transformers", "agent.model=/nowhere"], ["/nowhere"]),
        (["env=alfworld", "env.kwargs.data=/nowhere"], ["does not exist", "alfworld-download"]),
        (["agent.warm_up.num_epochs=-1"], ["num_epochs must be a number > 0"]),
    ],
)
def test_bad_settings_end_with_one_line_and_a_code(
    overrides: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A chosen group brings its own keys; what the small settings say of them would not fit.
    chosen = tuple(f"{o.partition('=')[0]}." for o in overrides if o.startswith(("env=", "agent=")))
    given = {o.partition("=")[0] for o in overrides}
    args = [s for s in SMALL if s.partition("=")[0] not in given and not (chosen and s.startswith(chosen))]
    assert main(["run", f"runs_root={tmp_path}", *args, *overrides]) in (2, 3, 4)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("steca: ")]
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.slow
def test_a_whole_loop_goes_phase_by_phase_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["collect", f"run_dir={folder}", "method=steca", *SMALL]) == 0
    assert set(json.loads((folder / "run.json").read_text())["stages"]) == {"demonstrations"}
    assert main(["train", "phase=warm_up", f"run={folder}"]) == 0
    assert main(["calibrate", f"run={folder}"]) == 0
    buffer = CalibrationBuffer(folder / "buffer.sqlite")
    experts = buffer.trajectories(kind="expert")
    assert experts and all(e.won for e in experts)
    assert len(buffer.results("calibration")) == min(6, len(experts))
    accepted = buffer.calibrations(status="accepted")
    # Every accepted calibration was executed and won, and only what follows the wrong action is trained on.
    for c in accepted:
        assert c.trajectory.won
        assert not any(s.trainable for s in c.trajectory.steps[: c.step + 1])
        assert all(s.trainable for s in c.trajectory.steps[c.step + 1 :])
        assert c.trajectory.steps[c.step + 1].source == "reflection"
    buffer.close()
    assert main(["train", f"run={folder}"]) == 0
    assert main(["evaluate", f"run={folder}"]) == 0
    report = json.loads((folder / "evaluation.json").read_text())
    assert len(report["games"]) == 3
    assert report["success_low"] <= report["success"] <= report["success_high"]
    record = json.loads((folder / "run.json").read_text())
    phases = record["stages"]
    assert {"demonstrations", "warm_up", "calibration", "train"} == set(phases)
    # What each phase cost stands beside it, and what one accepted calibration cost.
    cost = phases["calibration"]["cost"]
    assert cost["num_sampled_tokens"] > 0 and cost["num_prompt_tokens_reused"] > 0 and cost["seconds_model"] > 0
    (evaluation,) = record["evaluations"].values()
    assert evaluation["cost"]["num_episodes"] >= 3
    if accepted:
        each = phases["calibration"]["result"]["cost_per_calibrated"]
        assert each["num_env_steps"] == pytest.approx(cost["num_env_steps"] / len(accepted))
    told = capsys.readouterr().err
    assert "environment steps" in told and "reused" in told and "blocks (each history is read once)" in told
    # The same command again finds everything done.
    before = (folder / "buffer.sqlite").stat().st_mtime_ns, (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert main(["calibrate", f"run={folder}"]) == 0
    assert before[1] == (folder / "model" / "model.safetensors").stat().st_mtime_ns


@pytest.mark.slow
def test_a_folder_of_other_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", f"run_dir={tmp_path}", *SMALL]) == 0
    assert main(["collect", f"run_dir={tmp_path}", *SMALL, "seed=5"]) == 2
    assert "holds a run with other settings" in capsys.readouterr().err
