"""Runbook: generated incidents in several languages, the expert from any state, and what cannot be undone."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import gymnasium
import pytest
import steca_gym.envs  # noqa: F401 - registers
from steca_gym.envs.runbook import KINDS, LANGUAGES, Case, Runbook, State
from steca_gym.envs.runbook import cases as rules

from steca_gym.errors import ConfigError, DataError
from steca_gym.registration import make_text_env
from steca_gym.testing import CheckSettings, check_text_env


@pytest.mark.slow
def test_conforms() -> None:
    make = partial(make_text_env, Runbook, horizon=20)
    check_text_env(make, settings=CheckSettings(num_resets=60)).raise_if_failed()


def test_is_registered() -> None:
    env = gymnasium.make("steca_gym.envs:steca/Runbook-v0", languages=["ja"])
    assert "課題" in env.reset(seed=0)[0]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_expert_wins_every_kind_in_every_language(language: str) -> None:
    world, kinds = Runbook(languages=[language]), Counter[str]()
    for task_id in world.task_ids("train")[:150]:
        outcome = world.start(task_id, 0)
        while not outcome.over:
            action = world.expert_action()
            assert action in world.admissible_actions() and world.expert_thought()
            outcome = world.act(action)
            assert outcome.valid
        assert outcome.won and outcome.score == 1.0
        kinds[world.task_type] += 1
    assert set(kinds) == set(KINDS)


def test_every_language_has_the_same_texts() -> None:
    first, *others = LANGUAGES.values()
    for texts in others:
        assert texts.keys() == first.keys()
        for key, text in texts.items():
            assert {f for f in ("{x}", "{node}", "{names}", "{key}") if f in text} == {
                f for f in ("{x}", "{node}", "{names}", "{key}") if f in first[key]
            }, key


def test_splits_share_no_case_in_any_language() -> None:
    world = Runbook(num_train_tasks=1000, num_eval_tasks=200)
    keys = {split: {world.content_key(t) for t in world.task_ids(split)} for split in world.splits()}
    assert not keys["train"] & (keys["valid"] | keys["test"]) and not keys["valid"] & keys["test"]
    assert world.content_key("train/7") == Runbook(languages=["de"]).content_key("train/7")
    assert world.start("train/123456789", 0).observation  # more tasks than are listed


def solvable(case: Case, state: State, depth: int) -> bool:
    """Whether any sequence of up to ``depth`` commands wins: breadth-first over all commands that change something."""
    seen, frontier = {state}, [state]
    for _ in range(depth):
        found = []
        for s in frontier:
            for command in rules.commands(case, s):
                if command[0] in ("status", "check"):
                    continue
                new, _ = rules.act(case, s, command)
                if new.over and not new.lost:
                    return True
                if not new.over and new not in seen:
                    seen.add(new)
                    found.append(new)
        frontier = found
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_winnable_is_right_by_search_and_the_expert_wins_from_there(kind: str) -> None:
    rng, seen = random.Random(kind), Counter[bool]()
    world = Runbook(kinds=[kind], num_train_tasks=12)
    for task_id in world.task_ids("train"):
        outcome = world.start(task_id, 0)
        for _ in range(rng.randrange(1, 4)):
            if not outcome.over:
                outcome = world.act(rng.choice(world.admissible_actions()))
        assert world._case is not None
        winnable = world.winnable()
        seen[winnable] += 1
        if not winnable:
            assert not solvable(world._case, world._state, 3) and world.expert_action() is None
        while world.expert_action() is not None:
            outcome = world.act(world.expert_action() or "")
        assert outcome.won == winnable
    assert seen[False]


def play(world: Runbook, *commands: rules.Command) -> list[bool]:
    """Apply commands; whether the task is winnable after each."""
    found = []
    for command in commands:
        world.act(world._worded(command))
        found.append(world.winnable())
    return found


def first(kind: str, **wanted: object) -> Runbook:
    """A world at the first incident of a kind whose case has these values."""
    world = Runbook(languages=["en"], kinds=[kind])
    for task_id in world.task_ids("train"):
        world.start(task_id, 0)
        case = world._case
        if all(bool(getattr(case, name)) == value for name, value in wanted.items()):
            return world
    raise AssertionError("no such case")


def test_fatal_commands_end_the_episode_or_lose_it_unseen() -> None:
    world = first("leaked_key")
    assert world._case is not None
    outcome = world.act(f"revoke {world._case.key}")
    assert outcome.over and not outcome.won and "Locked out" in outcome.observation

    world = first("broken_release", migrated=True)
    assert world._case is not None
    outcome = world.act(f"roll back {world._case.target}")
    assert outcome.valid and not outcome.over and not world.winnable() and world.expert_action() is None
    assert world.act("close the incident").over

    world = first("unused_volumes")
    assert world._case is not None
    held = next((v.name for v in world._case.volumes if v.on_hold), None)
    used = next(v.name for v in world._case.volumes if v.service)
    if held:
        assert play(world, ("back_up", held), ("delete", held)) == [True, True]
    assert world.act(f"delete {used}").over and not world.winnable()


def test_closing_too_early_loses() -> None:
    world = first("hanging_service")
    outcome = world.act("close the incident")
    assert outcome.over and not outcome.won and outcome.score == 0.0


@pytest.mark.parametrize("written", ["  CHECK   {x} ", "check {x}", "ｃｈｅｃｋ {x}"])
def test_case_width_and_blanks_do_not_matter(written: str) -> None:
    world = first("leaked_key")
    assert world._case is not None
    assert world.act(written.format(x=world._case.key)).valid


def test_wrong_settings_and_tasks_are_explained() -> None:
    for wrong, message in (
        (dict(languages=["fr"]), "no language 'fr'"),
        (dict(languages="en"), "must be a list"),
        (dict(kinds=["leaked_keys"]), "did you mean 'leaked_key'"),
        (dict(num_train_tasks=0), "num_train_tasks"),
        (dict(seed="a"), "seed must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            Runbook(**wrong)  # type: ignore[arg-type]
    for task_id in ("", "train", "train/x", "dev/1", "train/-1", "train/" + "9" * 30):
        with pytest.raises(DataError, match="SPLIT/NUMBER"):
            Runbook().start(task_id, 0)
