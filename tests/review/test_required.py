"""A run whose training waits for people: what it says, what a decision changes, and what makes a model stale."""

import dataclasses
import json

import pytest

from steca_gym.buffer import CalibrationBuffer
from steca_gym.calibration.records import Reflection
from steca_gym.cli import main
from steca_gym.reports.trace import stale_models
from steca_gym.runs import RunFolder
from tests.methods.playing import SMALL, play
from tests.runs.test_runner import CONF

ERRING = ["preset.calibration.tie_rule=deviated"]
"""a base agent that has learnt nothing errs everywhere, with values of 0 on both sides"""
REVIEWED = ["review.mode=required"]


def command(folder, *overrides):
    return main(["run", *CONF, *SMALL, "method=steca", f"run_dir={folder}", *ERRING, *overrides])


def told(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("steca: ")]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """Accepted calibrations, found once."""
    folder = tmp_path_factory.mktemp("required")
    play(folder / "found", "steca", *ERRING, "until=calibration", f"runs_root={folder}")
    return folder


@pytest.mark.slow
def test_training_waits_says_for_what_and_continues(calibrated, capsys):
    folder = calibrated / "waits"
    shared = f"runs_root={calibrated}"
    assert command(folder, *REVIEWED, shared) == 6
    (line,) = told(capsys)
    with CalibrationBuffer(folder / "buffer.sqlite") as buffer:
        accepted = [c.calibration_id for c in buffer.calibrations(status="accepted")]
        assert len(accepted) >= 2
        assert f"{len(accepted)} of {len(accepted)} calibrations are not decided (review.mode=required)" in line
        assert f"`steca review {folder}`" in line
        for calibration_id in accepted[1:]:
            buffer.decide(calibration_id, "approved", who="Ada", why="")
        assert command(folder, *REVIEWED, shared) == 6 and "1 of" in told(capsys)[0]
        changed = buffer.calibration(accepted[1])
        buffer.decide(accepted[0], "refused", who="Ada", why="no")
        buffer.edit(
            dataclasses.replace(changed, reflection=Reflection(text="Better.", source="person:Ben")), who="Ben", why=""
        )
        assert command(folder, *REVIEWED, shared) == 6 and "1 of" in told(capsys)[0]
        buffer.decide(accepted[1], "approved", who="Ada", why="")
    assert command(folder, *REVIEWED, shared) == 0
    record = RunFolder(folder).record.stages["train"].result
    assert record["num_calibrated"] + record.get("num_fatal", 0) == len(accepted) - 1
    # Back from the model to who decided.
    capsys.readouterr()
    assert main(["trace", str(folder / "model"), "form=json"]) == 0
    traced = json.loads(capsys.readouterr().out)
    by_id = {s["calibration_id"]: s for s in traced["samples"] if s["calibration_id"]}
    assert set(by_id) == set(accepted[1:])
    assert [d["decision"] for d in by_id[accepted[1]]["decisions"]] == ["approved", "edited", "approved"]
    assert by_id[accepted[1]]["reflection_source"] == "person:Ben"  # as the review's page says, too
    assert traced["stale"] == [] and len(traced["trail_at_training"]) == 64 and traced["base"] == "warm-up"
    # The warm-up was trained before there was anything to decide: no decision makes it stale.
    assert main(["trace", str(folder / "warm-up")]) == 0
    # A refusal after the training makes the model stale, and nothing else does.
    with CalibrationBuffer(folder / "buffer.sqlite") as buffer:
        buffer.decide(accepted[1], "approved", who="Cleo", why="again")
        assert main(["trace", str(folder / "model")]) == 0
        buffer.decide(accepted[1], "refused", who="Cleo", why="dangerous")
    capsys.readouterr()
    assert main(["trace", str(folder / "model")]) == 6
    assert f"STALE: {accepted[1]}, which it was trained on, was refused by Cleo" in capsys.readouterr().out
    assert [line.split(":")[0] for line in stale_models(RunFolder(folder))] == ["model"]


@pytest.mark.slow
def test_who_decided_otherwise_trains_a_model_of_its_own(calibrated):
    plain, vetoed = calibrated / "plain", calibrated / "vetoed"
    shared = f"runs_root={calibrated}"
    assert command(plain, shared) == 0
    assert command(vetoed, shared, "until=calibration") == 0
    with CalibrationBuffer(vetoed / "buffer.sqlite") as buffer:
        (first, *_) = buffer.calibrations(status="accepted")
        buffer.decide(first.calibration_id, "refused", who="Ada", why="no")
    assert command(vetoed, shared) == 0
    stages = {f.name: RunFolder(f).record.stages["train"] for f in (plain, vetoed)}
    assert stages["vetoed"].shared_from == ""
    counts = [sum(s.result.get(k, 0) for k in ("num_calibrated", "num_fatal")) for s in stages.values()]
    assert counts[1] == counts[0] - 1


@pytest.mark.slow
def test_an_own_edit_is_left_out_until_another_person_approves_it(calibrated, capsys):
    folder = calibrated / "edited"
    args = [f"runs_root={calibrated}", "review.own_edits=refused"]
    assert command(folder, *args, "until=calibration") == 0
    with CalibrationBuffer(folder / "buffer.sqlite") as buffer:
        (first, *others) = buffer.calibrations(status="accepted")
        changed = dataclasses.replace(first, reflection=Reflection(text="Better.", source="person:Ada"))
        buffer.edit(changed, who="Ada", why="")
    assert command(folder, *args) == 0
    assert "1 edited corrections wait for a second person" in capsys.readouterr().err
    result = RunFolder(folder).record.stages["train"].result
    assert result.get("num_calibrated", 0) + result.get("num_fatal", 0) == len(others)
    assert main(["trace", str(folder / "model")]) == 0
    with CalibrationBuffer(folder / "buffer.sqlite") as buffer:
        buffer.decide(first.calibration_id, "approved", who="Ben", why="")
    capsys.readouterr()
    assert main(["trace", str(folder / "model")]) == 6
    assert f"STALE: {first.calibration_id}, which it was not trained on, was approved by Ben" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["review"], "review takes one run, got 0"),
        (["review", "/nowhere"], "no run in '/nowhere'"),
        (["review", "a", "b"], "review takes one run, got 2"),
        (["trace"], "trace takes one model folder, got 0"),
        (["trace", "/nowhere"], "holds no samples.json"),
        (["run", "review.mode=always"], "review.mode must be auto, required or sample:P"),
        (["run", "review.own_edits=maybe"], "review.own_edits must be"),
    ],
)
def test_bad_input_is_one_line(args, line, capsys):
    assert main(args) in (2, 3, 4)
    (said,) = told(capsys)
    assert line in said


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["as=a,a"], "names that differ"),
        (["as=a,"], "names that differ"),
        (["as="], "at least one"),
        (["as= "], "at least one"),
        (["port=x"], "port must be"),
        (["port=70000"], "port"),
    ],
)
def test_bad_names_and_ports_are_one_line(calibrated, args, line, capsys):
    assert main(["review", str(calibrated / "found"), *args]) == 2
    assert line in told(capsys)[0]


def test_damaged_records_of_samples_are_one_line(tmp_path, capsys):
    for text in ("", "[]", "{}", '{"samples": [5]}', '{"samples": [{"kind": "expert"}]}', "\xff"):
        (tmp_path / "samples.json").write_bytes(text.encode("latin-1"))
        assert main(["trace", str(tmp_path)]) == 4
        assert "samples.json" in told(capsys)[0]
