"""Panels: equal games by equal rules on any machine, or a refusal that says what differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steca_gym.envs.alfworld import household

from steca_gym.cli import main
from steca_gym.errors import ConfigError, DataError
from steca_gym.evaluation.panel import Panel, PanelGame, check_panel, make_panel, read_panel
from steca_gym.registration import make_text_env

SMALL = ("env.kwargs.num_receptacles=5", "env.kwargs.num_objects=5", "env.kwargs.horizon=6")


def evaluate(folder: Path, *args: str) -> int:
    return main(["evaluate", "agent=random", f"run_dir={folder}", "evaluation.stress=false", *args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panels") / "first"
    assert evaluate(folder, "seed=3", "env.num_eval_tasks=4", *SMALL) == 0
    return folder


def games_of(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "evaluation.json").read_text())["games"])


def test_another_seed_on_the_same_panel_plays_the_same_games_by_its_rules(folder: Path, tmp_path: Path) -> None:
    assert evaluate(tmp_path / "second", "seed=9", f"panel={folder / 'panel.json'}") == 0
    assert [g["task_id"] for g in games_of(tmp_path / "second")] == [g["task_id"] for g in games_of(folder)]
    assert max(g["num_steps"] for g in games_of(tmp_path / "second")) <= 6
    first, second = (read_panel(f / "panel.json") for f in (folder, tmp_path / "second"))
    assert first == second and first.key == second.key
    record = json.loads((tmp_path / "second" / "run.json").read_text())
    assert [e["panel"]["key"] for e in record["evaluations"].values()] == [first.key]


def test_other_rules_are_refused_with_what_to_set(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path / "other", f"panel={folder / 'panel.json'}", "env.kwargs.horizon=7") == 2
    told = capsys.readouterr().err
    assert "env.kwargs.horizon=6, this run has 7" in told and "set env.kwargs.horizon=6" in told
    assert not (tmp_path / "other" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["env=runbook"],
            "games are of 'steca_gym.envs:steca/Household-v0', this run plays 'steca_gym.envs:steca/Runbook",
        ),
        (["env.num_eval_tasks=2"], "names its 4 games, so env.num_eval_tasks has no effect"),
    ],
)
def test_what_a_panel_decides_cannot_be_set_beside_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], line: str
) -> None:
    assert evaluate(tmp_path / "other", f"panel={folder / 'panel.json'}", *args) == 2
    assert line in capsys.readouterr().err


def test_other_games_under_the_same_ids_are_refused() -> None:
    def panel(**kwargs: Any) -> Panel:
        env = make_text_env(household, split="valid_seen", num_receptacles=5, num_objects=5, **kwargs)
        return make_panel(
            env, ["valid_seen/0", "valid_seen/1"], env_id="x/H-v0", kwargs={}, split="valid_seen", prompt="", seed=0
        )

    check_panel(panel(), panel())
    with pytest.raises(DataError, match=r"2 of 2 games of the panel are other games here \(first: 'valid_seen/0'\)"):
        check_panel(panel(), panel(seed=1))


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], str]:
    def write(path: Path) -> str:
        raw = json.loads(path.read_text())
        change(raw)
        return json.dumps(raw)

    return write


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (lambda path: "{", "cannot read the panel"),
        (lambda path: "[]", 'no "steca_panel": 1'),
        (edited(lambda raw: raw.pop("games")), "games"),
        (edited(lambda raw: raw["games"].clear()), "holds no games"),
        (edited(lambda raw: raw.update(seed="x")), "seed must be a number"),
        (edited(lambda raw: raw["games"].reverse()), "changed after it was written"),
        (edited(lambda raw: raw["games"][0].update(content=5)), "both texts"),
        (edited(lambda raw: raw.update(more=1)), "more"),
    ],
)
def test_files_that_are_no_panels_end_in_one_line(
    folder: Path, tmp_path: Path, text: Callable[[Path], str], told: str
) -> None:
    path = tmp_path / "panel.json"
    path.write_text(text(folder / "panel.json"))
    with pytest.raises(DataError, match="cannot read the panel") as error:
        read_panel(path)
    assert told in str(error.value)


def test_a_world_or_prompt_of_another_version_is_refused() -> None:
    one = Panel(
        world="stairs/1",
        env_id="x/S-v0",
        rules={},
        split="train",
        prompt="a",
        seed=0,
        games=(PanelGame(task_id="t", content="c"),),
    )
    for change, told in ({"world": "stairs/2"}, "the world stairs/1"), ({"prompt": "b"}, "the prompt a"):
        with pytest.raises(ConfigError, match=told):
            check_panel(one, Panel(**{**{f: getattr(one, f) for f in one.__slots__}, **change}))


def test_held_out_types_are_evaluated_and_not_demonstrated(tmp_path: Path) -> None:
    held = "env.held_out_types=[look_at_obj_in_light]"
    assert evaluate(tmp_path / "types", held, "env.num_eval_tasks=3", *SMALL) == 0
    assert {g["task_type"] for g in games_of(tmp_path / "types")} == {"look_at_obj_in_light"}
    out = tmp_path / "demonstrations"
    assert main(["collect", f"run_dir={out}", held, "env.num_train_tasks=12", *SMALL, "env.kwargs.horizon=30"]) == 0
    from steca_gym.runs import RunFolder

    with RunFolder(out).buffer() as buffer:
        types = {t.task_type for t in buffer.trajectories(kind="expert")}
    assert len(types) >= 3 and "look_at_obj_in_light" not in types


def test_held_out_types_that_no_task_has_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path / "none", "env.held_out_types=[dance]", "+env.kwargs.num_eval_tasks=20", *SMALL) == 3
    assert "no task of the types dance" in capsys.readouterr().err
