"""The conformance kit: a sound world passes, and each planted fault is caught by the check that is there for it."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import pytest

from steca_gym.cli import main
from steca_gym.env import Outcome, TextEnv
from steca_gym.errors import WorldError
from steca_gym.testing import CheckSettings, check_text_env
from steca_gym.testing.checks import CHECKS
from tests.fakes import CorridorWorld
from tests.testing.planted import FAULTS, LEAK, QUICK, HashOrder, Lamp, NoSaving, Sound, Trap, make, make_dropping


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    while LEAK:
        leaked = LEAK.pop()
        if hasattr(leaked, "close"):
            leaked.close()


@pytest.mark.slow
@pytest.mark.parametrize("can_save", [True, False])
def test_a_sound_world_passes(can_save: bool) -> None:
    report = check_text_env(partial(make, Sound, can_save=can_save), settings=CheckSettings(num_resets=120))
    report.raise_if_failed()
    assert report["new process"].status == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("world", [Lamp, Trap])
def test_sound_worlds_with_more_states_pass(world: type[CorridorWorld]) -> None:
    check_text_env(partial(make, world), settings=QUICK).raise_if_failed()


class OneStep(Sound):
    """Solved by one action."""

    def start(self, task_id: str, seed: int) -> Outcome:
        super().start(task_id, seed)
        self._place = self._length
        return self._outcome(f"Your task is to: {self.goal}. {self._look()}")


class LongPage(Sound):
    """Shows a page of 40,000 characters, again when it does not understand."""

    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        return outcome if outcome.valid else self._outcome(self._look(), valid=False)

    def _look(self) -> str:
        return f"{super()._look()} {40_000 * 'p'}"


@pytest.mark.slow
@pytest.mark.parametrize("can_save", [True, False])
def test_a_world_of_one_step_passes_with_a_horizon_of_one(can_save: bool) -> None:
    def make_one() -> TextEnv:
        return TextEnv(OneStep(lengths=range(2, 8), can_save=can_save), horizon=1)

    check_text_env(make_one, settings=QUICK).raise_if_failed()


@pytest.mark.slow
def test_a_long_page_is_no_echo() -> None:
    check_text_env(partial(make, LongPage), settings=QUICK).raise_if_failed()


@pytest.mark.slow
def test_a_score_may_fall_where_the_world_says_so() -> None:
    from tests.testing.planted import ScoreFalls

    class Declared(ScoreFalls):
        score_may_fall = True

    check_text_env(partial(make, Declared), settings=QUICK).raise_if_failed()


def test_there_are_thirty_planted_faults_and_more() -> None:
    assert len({world for world, _ in FAULTS}) >= 60


def one_of_each_check_is_quick() -> list[Any]:
    """The planted faults; the first of each check in the gate, the others in the slow part."""
    seen: set[str] = set()
    params = []
    for world, check in FAULTS:
        params.append(pytest.param(world, check, marks=[pytest.mark.slow] if check in seen else []))
        seen.add(check)
    return params


@pytest.mark.slow
@pytest.mark.parametrize(("world", "check"), one_of_each_check_is_quick())
def test_a_planted_fault_is_caught(world: type[CorridorWorld], check: str) -> None:
    # Some worlds change only after 150 starts.
    report = check_text_env(partial(make, world), settings=replace(QUICK, num_resets=200))
    assert report[check].status == "failed", "\n".join(report.lines())
    assert report[check].mend
    with pytest.raises(WorldError, match=check):
        report.raise_if_failed()


@pytest.mark.slow
def test_the_kit_leaves_the_global_random_state_as_it_was() -> None:
    state = random.getstate()
    check_text_env(partial(make, Sound), settings=CheckSettings(num_resets=20, new_process=False))
    assert random.getstate() == state


def test_every_check_has_a_planted_fault() -> None:
    elsewhere = {"new process"}  # NoSaving and HashOrder, below
    assert {check.name for check in CHECKS} == {check for _, check in FAULTS} | elsewhere


@pytest.mark.slow
def test_a_broken_way_to_another_process_is_caught() -> None:
    report = check_text_env(partial(make, NoSaving), settings=CheckSettings(num_resets=20))
    assert report["new process"].status == "failed"


@pytest.mark.slow
def test_texts_in_hash_order_are_caught_by_a_new_process() -> None:
    report = check_text_env(partial(make, HashOrder), settings=CheckSettings(num_resets=20))
    assert report["new process"].status == "failed"
    assert report["same actions"].status == "ok"


@pytest.mark.slow
def test_a_wrapper_that_drops_the_seed_is_caught() -> None:
    assert check_text_env(partial(make_dropping, Sound), settings=QUICK)["seed"].status == "failed"


def test_what_is_no_text_environment_is_said_so() -> None:
    report = check_text_env(partial(gymnasium.make, "CartPole-v1"))
    assert not report.ok and "TextEnv" in report["make"].detail
    broken = check_text_env(lambda: 1 / 0)
    assert "ZeroDivisionError" in broken["make"].detail


@pytest.mark.slow
def test_check_env_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", "household"]) == 0
    assert "conforms" in capsys.readouterr().out
    assert main(["check-env", "steca_gym.envs:steca/Household-v0", "horizon=2"]) == 3
    out = capsys.readouterr().out
    assert "failed" in out and "mend: " in out
    assert main(["check-env", "houshold"]) == 2
    assert "did you mean 'household'" in capsys.readouterr().err
    assert main(["check-env"]) == 2


def test_the_kit_is_not_loaded_by_the_package() -> None:
    import subprocess

    code = "import sys, steca_gym; assert 'steca_gym.testing' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
