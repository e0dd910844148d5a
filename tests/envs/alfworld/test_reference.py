"""The real ALFWorld beside ours: on a sample, in processes of their own, since the real one changes its process."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from steca_gym.envs.alfworld import engine
from steca_gym.envs.alfworld.game import load_game

from tests.official import official_data

ROOT = Path(__file__).resolve().parents[3]
RECORDED = Path(__file__).with_name("recorded.jsonl")

needs_reference = pytest.mark.skipif(
    find_spec("alfworld") is None,
    reason="NOT COMPARED with the real ALFWorld: pip install 'steca-gym[alfworld-reference]' (needs g++ and make)",
)


@pytest.fixture
def equality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import alfworld_equality

    return alfworld_equality


def compare(out: Path, *options: str) -> list[dict[str, Any]]:
    """The records of the benchmark's run; fails with its report if anything differs."""
    script = str(ROOT / "benchmarks" / "alfworld_equality.py")
    done = subprocess.run([sys.executable, script, "--out", str(out), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.reference
@needs_reference
def test_household_games_play_alike_and_the_sped_up_real_engine_says_what_the_plain_one_does(tmp_path: Path) -> None:
    games = ["--split", "household", "--steps", "70"]
    quick = compare(tmp_path / "quick.jsonl", *games, "--games", "6")
    assert len(quick) == 6 and sum(r["old_grammar"] for r in quick) == 1 and all(r["won"] for r in quick)
    (plain,) = compare(tmp_path / "plain.jsonl", *games, "--games", "1", "--plain")
    assert plain == quick[0]


@pytest.mark.slow
@pytest.mark.reference
@needs_reference
def test_official_games_play_alike(tmp_path: Path) -> None:
    records = compare(tmp_path / "official.jsonl", "--data", str(official_data()), "--games", "5", "--steps", "60")
    assert len(records) == 5 and records[4]["old_grammar"]
    assert sum(r["kinds"]["refused"] for r in records) > 50 and all(r["won"] for r in records)


def test_ours_says_what_the_real_engine_was_recorded_to_say(equality: ModuleType) -> None:
    # made with: alfworld_equality.py --split household --games 12 --steps 60, without the games in the old grammar
    records = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    for record in records:
        games, task_id = equality.household_task(int(record["game"].split("/")[1]))
        assert equality.again(record, games.data(task_id)) == [], record["game"]
    assert len(records) == 10 and sum(r["steps"] for r in records) == 600


def test_a_difference_is_found(equality: ModuleType) -> None:
    class Other:
        """Ours, but for one word and one command."""

        def start(self, data: dict[str, Any]) -> tuple[str, set[str], bool]:
            self.game = load_game(data)
            self.state = self.game.start
            return engine.intro(self.game), set(engine.admissible(self.game, self.state)), False

        def step(self, command: str) -> tuple[str, set[str], bool, float]:
            self.state, text, _ = engine.act(self.game, self.state, command)
            won = engine.is_won(self.game, self.state)
            said = "You see little." if command == "look" else text
            return said, {*engine.admissible(self.game, self.state), "sing"}, won, float(won)

    games, task_id = equality.household_task(0)
    record = equality.play(Other(), games.data(task_id), "", "seed", 40)
    kinds = {d["what"] for d in record["differences"]}
    assert "admissible" in kinds and len(record["differences"]) > 20
    assert equality.again(record, games.data(task_id)) == list(range(1, record["steps"] + 1))
