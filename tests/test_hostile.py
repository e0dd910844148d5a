"""Every reader takes a good input, and a few hundred damaged ones end in one line; `benchmarks/fuzz.py` does more."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from steca_gym.errors import StecaError
from tests import hostile
from tests.hostile import TARGETS, dumped, good

SLOW = ("settings", "overrides", "chats", "archives")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "hostile"
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)


GOOD = {
    "run.json": lambda: dumped(good("run.json")),
    "evaluation.json": lambda: dumped(good("evaluation.json")),
    "stored payloads": lambda: ("result", dumped(good("result"))),
    "samples.json": lambda: dumped(good("samples.json")),
    "trajectories": lambda: dumped(good("trajectory")),
    "JSON lines": lambda: dumped(good("trajectory")),
    "steca.json": lambda: dumped({"fingerprint": "w/1+a", "games": ["0123456789ab"]}),
    "games": lambda: dumped(hostile._game()),
    "settings": lambda: hostile._settings(),
    "OpenEnv answers": lambda: [dumped(hostile._REPLY)] * 2,
    "OpenEnv messages": lambda: [dumped(m) for m in hostile._MESSAGES[:3]],
    "endpoint answers": lambda: dumped(hostile._ANSWER),
    "imports": lambda: dumped(good("trajectory")),
    "prices": lambda: b"currency: EUR\nsampled_tokens: 0.6\n",
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_input_is_read(name: str) -> None:
    TARGETS[name].run(GOOD[name]())


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in TARGETS])
def test_damaged_inputs_end_in_one_line(name: str) -> None:
    target = TARGETS[name]
    for number in range(15 if name in SLOW else 60):
        made = target.make(random.Random(f"a test {name} {number}"))
        try:
            target.run(made)
        except StecaError as error:
            assert len(str(error)) <= 2100


def test_the_mutator_changes_things_and_repeats_itself() -> None:
    first = [hostile.damaged(random.Random(i), good("trajectory")) for i in range(50)]
    assert first == [hostile.damaged(random.Random(i), good("trajectory")) for i in range(50)]
    assert len(set(first)) > 40


def test_a_promise_that_does_not_hold_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from steca_gym.reports import text

    monkeypatch.setattr(text, "visible", lambda shown, _=0: shown)
    with pytest.raises(hostile.Broken):
        TARGETS["shown"].run("\x1b[2J")
    assert json.loads(Path("good-run/run.json").read_text())
