"""What a report shows, as data: where trajectories are lost, results over seeds, comparisons, advice."""

import dataclasses
import fcntl
import json
import shutil

import numpy as np
import pytest

from steca_gym.buffer import CalibrationBuffer
from steca_gym.calibration.records import Reflection
from steca_gym.distances import HashEncoder, dndtw
from steca_gym.errors import DataError, StecaError
from steca_gym.prices import Prices, read_prices
from steca_gym.reports import collect_rows
from steca_gym.reports.data import flat, report_data
from steca_gym.reports.trajectories import align, verb, where_lost
from steca_gym.runs.folder import RunFolder
from steca_gym.trajectory import Step, Trajectory
from tests.reports.runs import make_run


def played(*actions, refused=()):
    steps = tuple(Step(action=a, observation="", valid=i not in refused) for i, a in enumerate(actions))
    return Trajectory(task_id="t", first_observation="", steps=steps)


@pytest.mark.parametrize(
    ("own", "expert", "lost"),
    [
        (played("a", "x", "c"), played("a", "b", "c"), (1, "demonstration")),
        (played("a", "b"), played("a", "b", "c"), (1, "demonstration")),
        (played("a", "b", "c"), played("a", "b"), (2, "demonstration")),
        (played("a", "b", refused=(0,)), None, (0, "refused")),
        (played("a", "b"), None, (1, "end")),
        (played("a", "b"), played("a", "b"), (1, "end")),
        (played(), played("a"), (None, "")),
    ],
)
def test_where_a_lost_episode_left_the_path(own, expert, lost):
    assert where_lost(own, expert) == lost


@pytest.mark.parametrize(
    ("action", "kind"), [("Go to bed 1", "go"), ("  look", "look"), ("", "(nothing)"), ("\x1b[2J x", "⟨U+001B⟩[2j")]
)
def test_the_kind_of_an_action_is_its_first_word(action, kind):
    assert verb(action) == kind


def test_an_alignment_is_the_distance_that_weighs_with_its_costs_along_the_path():
    right, wrong = ["go north", "open door", "go in"], ["jump", "go north", "open door", "go in"]
    found = align(right, wrong, HashEncoder())
    assert found["distance"] == pytest.approx(dndtw(right, wrong), abs=1e-4)
    along = sum(found["cost"][i][j] for i, j in found["path"])
    assert along / np.hypot(len(right), len(wrong)) == pytest.approx(found["distance"], abs=2e-3)
    assert found["path"][0] == [0, 0] and found["path"][-1] == [2, 3]


def test_a_long_alignment_keeps_its_distance_only():
    found = align([f"a {i}" for i in range(100)], ["b"], HashEncoder())
    assert found["cost"] is None and found["distance"] > 0


def test_rows_say_where_and_how_each_trajectory_was_lost(tmp_path):
    data = report_data([RunFolder(make_run(tmp_path / "run"))])
    explored = {r["task"]: r for r in data.rows if r["kind"] == "explored"}
    assert [explored[f"task-000{i}"]["lost"] for i in range(6)] == [0, 1, 2, 3, None, 5]
    assert explored["task-0002"]["calibration"] == "refused" and explored["task-0004"]["calibration"] == ""
    assert explored["task-0000"]["decision"] == "refused"
    assert {r["won"]: r["lost_by"] for r in data.rows if r["kind"] == "evaluation"} == {True: "", False: "refused"}
    assert len({r["id"] for r in data.rows}) == len(data.rows)


def test_a_card_holds_its_evidence(tmp_path):
    data = report_data([RunFolder(make_run(tmp_path / "run"))])
    cards = {c["id"]: c for d in data.details for c in d["calibrations"]}
    assert set(cards) == {"c-0", "c-1", "c-2", "c-3", "c-5"}
    card = cards["c-1"]
    assert card["wrong"]["action"] == "jump 1" and card["expert_action"] == "go to room 1"
    assert card["weight"] == pytest.approx(1 + card["alignment"]["distance"])
    assert [t["action"] for t in card["failed"]] == ["wait", "jump again"]
    assert cards["c-0"]["decisions"][0]["why"].strip() == "not this one"
    assert cards["c-2"]["weight"] == 0 and cards["c-2"]["alignment"] is None


def test_what_waits_for_a_person_trains_nothing_and_is_the_next_step(tmp_path):
    folder = make_run(tmp_path / "run", num=4)  # c-0 is refused by Ann, c-2 by its execution
    record = json.loads((folder / "run.json").read_text())
    record["settings"]["review"] = {"mode": "required", "own_edits": "allowed"}
    (folder / "run.json").write_text(json.dumps(record))

    def seen():
        data = report_data([RunFolder(folder)])
        return {c["id"]: c for d in data.details for c in d["calibrations"]}, data.summary["runs"][0]["next"]

    cards, following = seen()
    assert {k: (c["state"], c["weight"] > 0) for k, c in cards.items()} == {
        "c-0": ("refused", False),
        "c-1": ("waiting", False),
        "c-2": ("free", False),
        "c-3": ("waiting", False),
    }
    assert following[0].startswith("2 corrections wait for a person's decision: `steca review ")
    with CalibrationBuffer(folder / "buffer.sqlite") as buffer:
        buffer.decide("c-1", "approved", who="Ben", why="")
        changed = dataclasses.replace(
            buffer.calibration("c-3"), reflection=Reflection(text="Mine.", source="person:Cleo"), expert_action="run"
        )
        buffer.edit(changed, who="Cleo", why="")
    cards, following = seen()
    assert cards["c-1"]["state"] == "approved" and cards["c-1"]["weight"] > 0
    assert following[0].startswith("1 correction waits for a person's decision")
    # The text, its author and the action are those of the edit; what the demonstration has is named beside it.
    edited = cards["c-3"]
    assert (edited["reflection"], edited["reflection_source"], edited["edited_by"]) == ("Mine.", "person:Cleo", "Cleo")
    assert (edited["expert_action"], edited["demonstrated"]) == ("run", "go to room 3")
    assert cards["c-1"]["demonstrated"] == ""


def test_calibrations_without_a_model_of_theirs_ask_for_the_training(tmp_path):
    folder = make_run(tmp_path / "run", num=4)
    record = json.loads((folder / "run.json").read_text())
    warm_up = {**record["stages"]["demonstrations"], "name": "warm-up", "result": {"model": "warm-up"}}
    record["stages"] = {"warm-up": warm_up, **record["stages"]}
    (folder / "run.json").write_text(json.dumps(record))
    assert "no model was trained on them" in report_data([RunFolder(folder)]).summary["runs"][0]["next"][0]


def test_runs_are_aggregated_over_seeds_and_compared_on_the_same_games(tmp_path):
    made = [
        make_run(tmp_path / f"{method}-{seed}", method=method, seed=seed, won=won)
        for method, won in (("rft", 0.75), ("sft", 0.25))
        for seed in (0, 1)
    ]
    data = report_data([RunFolder(m) for m in made])
    assert [(g["method"], g["num_runs"], g["success"]) for g in data.summary["groups"]] == [
        ("rft", 2, 0.75),
        ("sft", 2, 0.25),
    ]
    assert [(p["first"], p["second"], p["difference"]) for p in data.summary["pairs"]] == [(2, 0, 0.5), (3, 1, 0.5)]
    assert ["seed", ["0", "1", "0", "1"]] in data.summary["different"]


def test_rounds_come_in_their_order(tmp_path):
    rounds = report_data([RunFolder(make_run(tmp_path / "run"))]).summary["runs"][0]["rounds"]
    assert [(r["stage"], r["num_wrong"]) for r in rounds] == [("calibration", 6), ("calibration.1", 3)]
    assert all(r["low"] < r["share"] < r["high"] for r in rounds)


def test_a_run_that_another_process_holds_is_still_going(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        described = report_data([RunFolder(run)]).summary["runs"][0]
        assert described["working"] and "still going" in described["next"][0]
    assert not report_data([RunFolder(run)]).summary["runs"][0]["working"]


def test_a_run_is_only_read(tmp_path):
    run = make_run(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    copy = shutil.copytree(run, tmp_path / "copy")
    report_data([RunFolder(copy)])
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


def test_money_follows_from_the_price_table(tmp_path):
    run = make_run(tmp_path / "run")
    prices = Prices(currency="EUR", sampled_tokens=2.0, prompt_tokens=0.5, hour=3.6)
    data = report_data([RunFolder(run)], prices)
    (described,) = data.summary["runs"]
    assert data.summary["currency"] == "EUR" and described["stages"]
    for stage in described["stages"]:
        expected = stage["tokens"] * 2e-6 + stage["tokens_read"] * 5e-7 + stage["seconds"] * 1e-3
        assert stage["money"] == pytest.approx(expected)
    assert "money" not in report_data([RunFolder(run)]).summary["runs"][0]["stages"][0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("5", "holds no price table"),
        ("a: [", "cannot read the prices"),
        ("tokens: 1", "sampled_tokens"),
        ("sampled_tokens: -1", ">= 0"),
        ("sampled_tokens: .nan", ">= 0"),
        ("sampled_tokens: cheap", "sampled_tokens"),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path, text, told):
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(StecaError, match=told):
        read_prices(tmp_path / "prices.yaml")


def test_without_runs_there_is_no_report():
    with pytest.raises(DataError, match="at least one run"):
        report_data([])


def test_settings_are_flattened_to_their_dotted_keys():
    assert dict(flat({"a": {"b": 1, "c": {}}, "d": [1]})) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_everything_is_plain_data(tmp_path):
    data = report_data([RunFolder(make_run(tmp_path / "run"))])
    assert json.loads(json.dumps([data.summary, data.rows, data.details])) == [data.summary, data.rows, data.details]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("stages", "calibration", "seconds"), "no"),
        (("stages", "calibration", "cost"), {"num_episodes": [1]}),
        (("stages", "calibration", "result", "num_deviated"), "many"),
        (("stages", "calibration"), None),
        (("evaluations",), {"a": 5}),
        (("seed",), "x"),
        (("method",), ["a"]),
        (("settings",), None),
    ],
)
def test_a_record_of_other_types_is_one_line(tmp_path, path, value):
    folder = make_run(tmp_path / "run", num=2)
    raw = json.loads((folder / "run.json").read_text())
    held = raw
    for name in path[:-1]:
        held = held[name]
    held[path[-1]] = value
    (folder / "run.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match="run.json' (is damaged|holds something that no run has written)"):
        report_data([RunFolder(folder)])


@pytest.mark.parametrize(
    "change", [{"games": []}, {"games": [{"task_id": 5}]}, {"cost": {"a": {"b": "c"}}}, {"stress": 1}]
)
def test_an_evaluation_of_other_types_is_one_line(tmp_path, change):
    folder = make_run(tmp_path / "run", num=2)
    file = folder / "evaluation.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DataError, match="evaluation.json'.*not an evaluation report.*remove it"):
        report_data([RunFolder(folder)])


def test_runs_without_a_key_that_others_have_are_a_row_of_their_own(tmp_path):
    for seed in (0, 1):
        folder = make_run(tmp_path / f"run-{seed}", seed=seed)
        record = json.loads((folder / "run.json").read_text())
        record["settings"]["seed_of_world"] = 7
        (folder / "run.json").write_text(json.dumps(record))
    make_run(tmp_path / "other", seed=2)
    rows = collect_rows([tmp_path], by="seed_of_world")
    assert [(r.value, r.num_runs) for r in rows] == [("7", 2), ("-", 1)]
    with pytest.raises(StecaError, match="no setting 'nowhere' in the runs"):
        collect_rows([tmp_path], by="nowhere")
