"""ALFWorld's API over our engine, beside the real package and on its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from steca_gym.errors import ConfigError, DataError, WorldError
from steca_gym.interop.alfworld import AlfredTWEnv, get_environment
from tests.interop.games import config, write_games
from tests.interop.play_real_alfworld import play
from tests.official import official_data

needs_reference = pytest.mark.skipif(
    find_spec("alfworld") is None,
    reason="NOT COMPARED with the real ALFWorld: pip install 'steca-gym[alfworld-reference]' (needs g++ and make)",
)
NOISE = ("", "xyzzy", "  look ", "Look", "go to mars 1", "take", "inventory")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STECA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def games(tmp_path: Path) -> Path:
    write_games(tmp_path / "data")
    write_games(tmp_path / "data", split="valid_seen", count=4)
    return tmp_path / "data"


def make(folder: Path, *, batch_size: int = 2, split: str = "train", **changes: Any) -> Any:
    return AlfredTWEnv(config(folder, **changes), train_eval=split).init_env(batch_size=batch_size)


def draw_orders(folder: Path, *, split: str, batches: int, batch_size: int, seed: int | None, **changes: Any) -> Any:
    """Commands drawn while our side plays: the expert's, admissible ones and noise, also after a game's end."""
    rng = random.Random(7)
    settings = config(folder, **changes)
    made = AlfredTWEnv(settings, train_eval=split)
    env = made.init_env(batch_size=batch_size)
    if seed is not None:
        env.seed(seed)
    orders = {"config": settings, "split": split, "batch_size": batch_size, "seed": seed, "batches": []}
    for _ in range(batches):
        _, infos = env.reset()
        keen = rng.random()
        steps = []
        for _ in range(rng.randint(3, 12)):
            commands = []
            for slot, known in zip(env._slots, infos["admissible_commands"], strict=True):
                best = None if slot.info["won"] else slot.world.expert_action()
                commands.append(best if best and rng.random() < keen else rng.choice([*known, *known, *NOISE]))
            steps.append(commands)
            _, _, _, infos = env.step(commands)
        orders["batches"].append(steps)
    return orders


def compare(tmp_path: Path, orders: Any) -> list[dict[str, Any]]:
    """Both sides' answers to the orders must be equal; returns them."""
    script = str(Path(__file__).with_name("play_real_alfworld.py"))
    read, write = tmp_path / "orders.json", tmp_path / "answers.jsonl"
    read.write_text(json.dumps(orders))
    done = subprocess.run([sys.executable, script, str(read), str(write)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    real = [json.loads(line) for line in write.read_text().splitlines()]
    ours = json.loads(json.dumps(play(get_environment, orders)))
    assert len(ours) == len(real) == 1 + sum(1 + len(steps) for steps in orders["batches"])
    for number, (one, other) in enumerate(zip(ours, real, strict=True)):
        assert one == other, f"answer {number}"
    return ours


@pytest.mark.slow
@pytest.mark.reference
@needs_reference
def test_a_hundred_batches_are_answered_as_by_the_real_package(tmp_path: Path) -> None:
    write_games(tmp_path / "data", count=7, real=True)
    write_games(tmp_path / "data", split="valid_seen", count=4, real=True)
    orders = draw_orders(tmp_path / "data", split="train", batches=80, batch_size=3, seed=None, steps=9)
    answers = compare(tmp_path, orders)
    dones = [a["dones"] for a in answers[1:] if a["dones"] is not None]
    assert sum(map(sum, dones)) > 100 and any(any(a["infos"]["won"]) for a in answers[1:])
    # One game at a time, another seed, the other split and training method.
    orders = draw_orders(
        tmp_path / "data", split="eval_in_distribution", batches=20, batch_size=1, seed=5, method="dagger"
    )
    orders["config"]["dataset"]["num_eval_games"] = 3
    assert compare(tmp_path, orders)[0]["num_games"] == 3


@pytest.mark.slow
@pytest.mark.reference
@needs_reference
def test_official_games_and_the_keys_of_dagger_are_those_of_the_real_package(tmp_path: Path) -> None:
    source = Path(official_data())
    archive = source if source.is_file() else next(source.glob("valid_seen.tar.xz"), None)
    if archive is None:
        pytest.skip("NOT COMPARED on official games: needs valid_seen.tar.xz")
    with tarfile.open(archive) as packed:
        members = [m for m in packed if m.name.endswith("game.tw-pddl")][:140:28]
        packed.extractall(tmp_path / "unpacked", members=members, filter="data")
    (tmp_path / "data").mkdir()
    shutil.move(next((tmp_path / "unpacked").glob("**/valid_seen")), tmp_path / "data" / "valid_seen")
    for file in (tmp_path / "data").glob("**/game.tw-pddl"):
        kind = file.parent.parent.name.split("-")[0]
        file.with_name("traj_data.json").write_text(json.dumps({"task_type": kind}))
    compare(
        tmp_path,
        draw_orders(tmp_path / "data", split="eval_in_distribution", batches=3, batch_size=2, seed=1, steps=10),
    )


def test_the_order_of_games_is_a_new_shuffle_in_each_pass_and_the_seed_decides_it(games: Path) -> None:
    def played(seed: int | None, batches: int = 9) -> list[str]:
        env = make(games)
        if seed is not None:
            assert env.seed(seed) == [seed]
        return [file for _ in range(batches) for file in env.reset()[1]["extra.gamefile"]]

    files = played(3)
    passes = [files[i : i + 6] for i in range(0, 18, 6)]
    assert all(len(set(p)) == 6 for p in passes) and passes[0] != passes[1] != passes[2]
    assert played(3) == files != played(4) and played(None) == played(1234)
    env = make(games)
    env.seed(3)
    env.skip(4)
    assert env.reset()[1]["extra.gamefile"] == files[4:6]


@pytest.mark.parametrize("expert", ["planner", "handcoded"])
def test_the_expert_plan_wins_from_any_state_and_is_given_only_where_asked_for(games: Path, expert: str) -> None:
    env = make(games, method="dagger", env__expert_type=expert, batch_size=6)
    env.reset()
    env.step(["look"] * 6)
    dones, infos = [False] * 6, env._infos()
    for _ in range(40):
        if expert == "planner":
            assert all(infos["extra.expert_plan"][i] for i in range(6) if not dones[i])
        else:
            assert all(len(plan) == 1 for plan in infos["extra.expert_plan"])
        _, scores, dones, infos = env.step([plan[0] if plan else "look" for plan in infos["extra.expert_plan"]])
    assert all(dones) and scores == (1,) * 6 and infos["won"] == [True] * 6
    assert infos["extra.expert_plan"] == ([[]] * 6 if expert == "planner" else [["look"]] * 6)
    for other in (make(games), make(games, method="dagger", split="eval_in_distribution")):
        assert set(other.reset()[1]) == {"won", "admissible_commands", "extra.gamefile"}


def test_a_game_that_is_done_keeps_its_last_answer(games: Path) -> None:
    env = make(games, steps=2)
    env.reset()
    env.step(["look", "inventory"])
    obs, scores, dones, infos = env.step(["inventory", "xyzzy"])
    assert dones == (True, True) and scores == (0, 0) and obs[1] == "Nothing happens."
    assert env.step(["look", "look"]) == (obs, scores, dones, infos)
    obs, _ = env.reset()
    assert all(text.startswith("-= Welcome to TextWorld, ALFRED! =-") for text in obs)


def test_task_types_and_counts_choose_the_games(games: Path) -> None:
    made = AlfredTWEnv(config(games, env__task_types=[1, 6]))
    assert made.num_games == 2
    assert {Path(f).parent.parent.name.split("-")[0] for f in made.game_files} == {
        "pick_and_place_simple",
        "pick_two_obj_and_place",
    }
    assert AlfredTWEnv(config(games, dataset__num_train_games=4)).num_games == 4
    assert AlfredTWEnv(config(games), train_eval="eval_in_distribution").num_games == 4


def test_games_without_traj_data_are_left_out_unless_all_are(tmp_path: Path) -> None:
    write_games(tmp_path / "bare", labelled=False)
    assert AlfredTWEnv(config(tmp_path / "bare")).num_games == 6
    write_games(tmp_path / "mixed")
    next((tmp_path / "mixed").glob("**/traj_data.json")).unlink()
    assert AlfredTWEnv(config(tmp_path / "mixed")).num_games == 5


def test_the_path_may_name_a_variable_or_hold_several_splits(games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DATA", str(games))
    assert AlfredTWEnv(config(games, dataset__data_path="$SOME_DATA/train")).num_games == 6
    env = make(games, dataset__data_path="$SOME_DATA", batch_size=10)
    assert len(set(env.reset()[1]["extra.gamefile"])) == 10
    monkeypatch.chdir(games)
    assert len(make(games, dataset__data_path="train", batch_size=6).reset()[0]) == 6


WRONG = [
    ({"env__task_types": []}, "numbers 1 to 6"),
    ({"env__task_types": [9]}, "numbers 1 to 6"),
    ({"env__domain_randomization": True}, "not supported"),
    ({"method": "ppo"}, "dqn"),
    ({"method": "dagger", "env__expert_type": "wizard"}, "planner"),
    ({"dataset__data_path": "/nowhere"}, "alfworld-download"),
]


@pytest.mark.parametrize(("changes", "told"), WRONG)
def test_a_wrong_configuration_is_one_line(games: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises((ConfigError, DataError), match=told) as caught:
        make(games, **changes)
    assert "\n" not in str(caught.value)


def test_other_wrong_calls_are_one_line(games: Path) -> None:
    for kind in ("AlfredThorEnv", "AlfredTwEnv"):
        with pytest.raises(ConfigError, match="AlfredTWEnv"):
            get_environment(kind)
    with pytest.raises(ConfigError, match="eval_in_distribution"):
        AlfredTWEnv(config(games), train_eval="valid_seen")
    with pytest.raises(ConfigError, match="no dataset.data_path"):
        AlfredTWEnv({"env": {"task_types": [1]}})
    with pytest.raises(ConfigError, match="batch_size"):
        make(games, batch_size=0)
    (games / "valid_unseen").mkdir()
    with pytest.raises(DataError, match=r"no game\.tw-pddl"):
        AlfredTWEnv(config(games), train_eval="eval_out_of_distribution")
    env = make(games)
    with pytest.raises(WorldError, match="reset"):
        env.step(["look", "look"])
    env.reset()
    for commands in (["look"], "look", ["look"] * 3):
        with pytest.raises(WorldError, match="2 commands"):
            env.step(commands)
    env.close()
    with pytest.raises(WorldError, match="close"):
        env.reset()


def test_neither_alfworld_nor_textworld_is_imported(games: Path) -> None:
    code = (
        "import sys, json\n"
        "from steca_gym.interop.alfworld import get_environment\n"
        "config = json.loads(sys.argv[1])\n"
        "get_environment('AlfredTWEnv')(config).init_env(batch_size=2).reset()\n"
        "assert not {'alfworld', 'textworld', 'torch', 'gym'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(config(games))], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-2000:]
