"""The expert of BabyAI: minigrid's own bot, asked for a whole plan from any state.

The bot keeps a stack of subgoals and cannot be dropped into the middle of "A, then B" once A is done: it
would do A again. ``plan`` gives it only what is left of the instruction, tries the plan on a copy of the
environment, and returns it only if it succeeds there.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .._optional import require

INSTALL = '"steca-gym[babyai]"'


def pending(instr: Any) -> list[Any]:
    """The parts of an instruction that are not done, in the order in which they have to be done."""
    verifier = require("minigrid.envs.babyai.core.verifier", INSTALL)
    if not isinstance(instr, verifier.SeqInstr):
        return [instr]
    parts = [(instr.instr_a, instr.a_done), (instr.instr_b, instr.b_done)]
    if isinstance(instr, verifier.AfterInstr):
        parts.reverse()
    return [left for part, done in parts if done != "success" for left in pending(part)]


def look(env: Any, seen: Any) -> None:
    """Mark the cells that the agent sees now in ``seen``, a bool array of shape (width, height)."""
    bot_class = require("minigrid.utils.baby_ai_bot", INSTALL).BabyAIBot
    bot = bot_class.__new__(bot_class)  # only its bookkeeping of what was seen is used
    bot.mission, bot.vis_mask = env, seen
    bot._process_obs()


def _new_bot(env: Any, seen: Any, *, hands_free: bool = False) -> Any:
    """A bot for what is left of the mission; ``hands_free``: it first puts down what it carries."""
    module = require("minigrid.utils.baby_ai_bot", INSTALL)
    bot = module.BabyAIBot(env)
    bot.vis_mask = seen.copy()
    bot.stack = []
    for part in reversed(pending(env.instrs)):
        bot._process_instr(part)
    if hands_free and env.carrying is not None:
        place = bot._find_drop_pos()
        if place is not None:
            bot.stack.append(module.DropSubgoal(bot))
            bot.stack.append(module.GoNextToSubgoal(bot, place))
    return bot


def plan(env: Any, seen: Any, max_actions: int = 600) -> list[int] | None:
    """Actions (minigrid's numbers) that fulfil the mission from here, or None if the bot finds none.

    Args:
        env: an unwrapped BabyAI environment in mid-episode; not changed.
        seen: the cells seen in this episode, bool array of shape (width, height); not changed.
        max_actions: give up after this many environment steps.
    """
    env, seen = copy.deepcopy((env, seen))
    bot, actions, lost = _new_bot(env, seen), list[int](), False
    while len(actions) < max_actions:
        try:
            action = int(bot.replan())
        except Exception:  # noqa: BLE001 - the bot says "I am lost" by assertions and errors of many kinds
            action = int(env.actions.done)
        if action == int(env.actions.done):
            if lost:
                return None
            # It stands in mid-plan with full hands, or believes to have finished: start over, hands free.
            try:
                bot, lost = _new_bot(env, seen, hands_free=True), True
            except Exception:  # noqa: BLE001 - as above
                return None
            continue
        lost = False
        _, reward, terminated, _, _ = env.step(action)
        actions.append(action)
        look(env, seen)
        if terminated:
            return actions if float(reward) > 0 else None
    return None


def nothing_seen(env: Any) -> Any:
    """An array for ``look``, all False."""
    return np.zeros((env.width, env.height), dtype=bool)
