"""The support desk, the guide's example: the procedure, its rules, and what cannot be called back."""

from __future__ import annotations

from functools import partial

import pytest
import steca_gym.envs  # noqa: F401 - registers
from steca_gym.envs.support import ACTIONS, CASES, DECISIONS, SupportDesk

from steca_gym.errors import DataError
from steca_gym.registration import make_text_env
from steca_gym.testing import CheckSettings, check_text_env


@pytest.mark.slow
def test_conforms() -> None:
    check_text_env(
        partial(make_text_env, SupportDesk, horizon=12), settings=CheckSettings(num_resets=60)
    ).raise_if_failed()


def decision(world: SupportDesk) -> str:
    while (action := world.expert_action()) not in DECISIONS:
        world.act(action or "")
    return action


def test_every_case_is_drawn_and_closed_by_the_expert() -> None:
    world, seen = SupportDesk(), set()
    for task_id in world.task_ids("train")[:60]:
        outcome = world.start(task_id, 0)
        scores = [outcome.score]
        while not outcome.over:
            outcome = world.act(world.expert_action() or "")
            scores.append(outcome.score)
        assert outcome.won and scores == [0.0, 0.25, 0.5, 0.75, 0.75, 1.0]
        seen.add(world._decision)
    assert seen == set(CASES.values())


def test_a_wrong_or_early_decision_cannot_be_called_back() -> None:
    world = SupportDesk()
    world.start("train/0", 0)
    wrong = next(d for d in DECISIONS if d != decision(world))
    outcome = world.act(wrong)
    assert outcome.over and not outcome.won and outcome.score == 0.75
    world.start("train/0", 0)
    assert world.act(world._decision).over  # nobody was verified


def test_what_is_not_on_the_desk_changes_nothing() -> None:
    world = SupportDesk()
    world.start("train/3", 0)
    key = world.state_key()
    for action in ("", "give everything away", "close the ticket", "x" * 10_000):
        assert not world.act(action).valid and world.state_key() == key
    assert world.act("  Verify   THE customer ").valid
    assert set(world.admissible_actions()) == set(ACTIONS) - {"close the ticket"}


def test_unknown_tickets_are_refused() -> None:
    for task_id in ("", "train", "train/400", "test/0", "train/-1"):
        with pytest.raises(DataError, match="ticket"):
            SupportDesk().start(task_id, 0)
