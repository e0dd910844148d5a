"""The expert's plans against breadth-first search, and what can no longer be won."""

from __future__ import annotations

import random

from steca_gym.envs.alfworld import engine
from steca_gym.envs.alfworld.game import TASK_TYPES, Game, State
from steca_gym.envs.alfworld.household import Household, HouseholdSettings
from steca_gym.envs.alfworld.oracle import plan

IDLE = ("examine", "look", "inventory", "help")


def is_shorter_possible(game: Game, state: State, num_commands: int) -> bool:
    """Whether some sequence of fewer commands wins, by trying all."""
    if num_commands == 0:
        return False
    seen, frontier = {state._replace(taken=())}, [state]
    for _ in range(num_commands - 1):
        found = []
        for s in frontier:
            for command in engine.admissible(game, s):
                if command.split()[0] in IDLE:
                    continue
                new = engine.act(game, s, command)[0]._replace(taken=())
                if new not in seen:
                    if engine.is_won(game, new):
                        return True
                    seen.add(new)
                    found.append(new)
        frontier = found
    return False


def test_no_plan_can_be_shortened_from_the_start_or_after_random_commands() -> None:
    rng, kinds = random.Random(0), set()
    for i in range(60):
        settings = HouseholdSettings(num_receptacles=3 + i % 2, num_objects=2 + i % 2, seed=i // 6)
        game = Household(settings).game(f"train/{i}")
        state = game.start
        for _ in range(rng.randrange(9)):
            state = engine.act(game, state, rng.choice(engine.admissible(game, state)))[0]
        steps = plan(game, state)
        assert steps is not None
        assert not is_shorter_possible(game, state, len(steps)), (i, game.task, steps)
        for step in steps:
            state, _, valid = engine.act(game, state, step.command)
            assert valid and step.thought
        assert engine.is_won(game, state)
        kinds.add(game.task_type)
    assert kinds == set(TASK_TYPES)


def test_a_wrong_object_is_put_down_on_the_way() -> None:
    for i in range(0, 60, 6):
        game = Household(HouseholdSettings(num_objects=8, seed=i)).game(f"train/{i}")
        for r, inside in enumerate(game.start.contents):
            other = next((o for o in inside if not game.goal_objects >> o & 1 and game.pickupable >> o & 1), None)
            if other is None:
                continue
            state = game.start._replace(opened=(1 << len(game.receptacles)) - 1)
            for command in (
                f"go to {game.receptacles[r]}",
                f"take {game.objects[other]} from {game.receptacles[r]}",
            ):
                state = engine.act(game, state, command)[0]
            assert state.held == other
            steps = plan(game, state)
            assert steps is not None and len(steps) <= 1 + len(plan(game, game.start) or ())


def test_holding_what_fits_nowhere_cannot_be_won() -> None:
    data = dict(Household(HouseholdSettings()).data("train/0"))
    game = Household(HouseholdSettings()).game("train/0")
    lost = next(o for o in range(len(game.objects)) if not game.goal_objects >> o & 1 and game.pickupable >> o & 1)
    kind = game.object_type[lost]
    rows = str(data["pddl_problem"]).split("\n")
    rows = [r for r in rows if not (r.startswith("(canContain") and r.lower().endswith(f" {kind})"))]
    from steca_gym.envs.alfworld.game import load_game

    game = load_game({**data, "pddl_problem": "\n".join(rows)})
    contents = tuple(tuple(o for o in inside if o != lost) for inside in game.start.contents)
    assert plan(game, game.start) is not None
    assert plan(game, game.start._replace(held=lost, contents=contents)) is None
