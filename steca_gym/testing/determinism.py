"""Checks of determinism: seeds decide everything, in any process, and nothing global is used or printed."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np

from steca_gym.testing.context import CheckContext
from steca_gym.testing.play import (
    CheckFailure,
    captured_stdout,
    difference,
    in_new_process,
    long_walk,
    replay,
    text_env,
    walk,
)


def seed_honoured(context: CheckContext) -> str:
    """``reset(seed=)`` decides the task and its texts, through all wrappers of ``make``."""
    env = context.make()
    try:
        seen = []
        for seed in (7, 8, 9, 7, 8, 9):
            observation, info = env.reset(seed=seed)
            seen.append((info["task_id"], observation))
        if seen[:3] != seen[3:]:
            raise CheckFailure(f"reset(seed=7) gave {seen[0][0]!r} first and {seen[3][0]!r} (or another text) then")
        num_tasks = len(text_env(env).task_ids())
        if num_tasks > 50 and len({task for task, _ in seen}) == 1:
            raise CheckFailure(f"three seeds drew the same of {num_tasks} tasks: the seed is lost on its way")
    finally:
        env.close()
    return "three seeds, twice each"


def same_actions(context: CheckContext) -> str:
    """The same seed and actions give the same in the same and in another instance."""
    num = 0
    with context.fresh() as other:
        for task_id in context.tasks:
            first = long_walk(context.env, task_id, context.settings.seed, context.settings.num_steps)
            actions = [s.action for s in first[1:] if s.action is not None]
            num += len(actions)
            for env, which in ((context.env, "the same instance"), (other, "another instance")):
                found = difference(first, replay(env, task_id, context.settings.seed, actions))
                if found:
                    raise CheckFailure(f"task {task_id!r} in {which}: {found}")
            found = difference(first, replay(other, task_id, context.settings.seed, actions, ask=True))
            if found:
                raise CheckFailure(
                    f"task {task_id!r}, asked for its actions, expert, key and winnable() before each step: {found}"
                )
    return f"{len(context.tasks)} tasks, {num} steps, in two instances"


def new_process(context: CheckContext) -> str:
    """A spawned process sees the same, and enters this process's snapshot."""
    task_id = context.tasks[0]
    first = long_walk(context.env, task_id, context.settings.seed, context.settings.num_steps)
    actions = [s.action for s in first[1:] if s.action is not None]
    snapshot = context.env.snapshot()
    mark, seen, entered = in_new_process(context.make, task_id, context.settings.seed, actions, snapshot)
    if mark != context.env.fingerprint:
        raise CheckFailure(f"fingerprint is {context.env.fingerprint!r} here and {mark!r} in a new process")
    found = difference(first, seen)
    if found:
        raise CheckFailure(f"task {task_id!r}: {found}")
    if entered != (first[-1].observation, first[-1].score):
        raise CheckFailure("a snapshot gives another observation or score there")
    return f"{len(actions)} steps and a snapshot of {len(pickle.dumps(snapshot)):,} bytes"


def stdout_silent(context: CheckContext) -> str:
    """Nothing is printed."""
    with captured_stdout() as text:
        _everything(context)
        printed = text()
    if printed:
        raise CheckFailure(f"{len(printed)} characters on standard output: {printed[:80]!r}")
    return "making, walking, expert, snapshot: nothing printed"


def global_random(context: CheckContext) -> str:
    """Python's and numpy's global generators are neither used nor seeded."""
    before = random.getstate(), np.random.get_state(legacy=False)
    try:
        return _global_random(context)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _global_random(context: CheckContext) -> str:
    random.seed(123)
    np.random.seed(123)
    python, numpy = random.getstate(), _numpy_state()
    _everything(context)
    if random.getstate() != python:
        raise CheckFailure("the global state of `random` has changed")
    if not np.array_equal(_numpy_state(), numpy):
        raise CheckFailure("the global state of `numpy.random` has changed")
    # A world may also use it without a trace, by putting the state back.
    with context.fresh() as env:
        lines = []
        for seed in (1, 2):
            random.seed(seed)
            np.random.seed(seed)
            lines.append(walk(env, context.tasks[0], context.settings.seed, context.settings.num_steps))
    found = "lengths differ" if len(lines[0]) != len(lines[1]) else difference(*lines)
    if found:
        raise CheckFailure(f"texts follow the global random state: {found}")
    return "random and numpy.random untouched and unused"


def _numpy_state() -> Any:
    state: Any = np.random.get_state(legacy=False)
    return np.append(state["state"]["key"], state["state"]["pos"])


def _everything(context: CheckContext) -> None:
    with context.fresh() as env:
        for task_id in context.tasks[:2]:
            walk(env, task_id, context.settings.seed, context.settings.num_steps)
            env.restore(env.snapshot())
            env.state_key()
            env.winnable()
            env.expert_thought()
            env.render()
