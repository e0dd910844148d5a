"""Repair: a way to success from a state where the demonstration no longer fits.

A repairer is the world's own expert (``ExpertRepair``), or any agent that plays well, e.g. an expert that acts on the
conversation alone (``AgentRepair``). Both play in an environment of their own, in this process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from steca_gym.agent import GREEDY, Agent, Prompt, Sampling, TurnFormat
from steca_gym.collectors.collector import Collector
from steca_gym.collectors.episodes import EpisodeRequest, Fork
from steca_gym.env import TextEnv, World
from steca_gym.errors import WorldError
from steca_gym.trajectory import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A continuation from a state to success, or the reason why there is none."""

    steps: tuple[Step, ...] = ()
    """the repairer's turns; empty: there is no continuation"""
    reason: str = ""
    """why there is none: one line"""


class Repairer(Protocol):
    """Finds a continuation where the demonstration no longer fits."""

    def __call__(self, fork: Fork) -> Repair:
        """The turns from the fork's state to success."""
        ...


class LocalWorld:
    """One environment in this process, made at the first use, for questions that no collector answers.

    Args:
        make_env: makes an environment of the same fingerprint.
    """

    def __init__(self, make_env: Callable[[], TextEnv]) -> None:
        """See the class."""
        self._make_env = make_env
        self._env: TextEnv | None = None

    def env(self) -> TextEnv:
        """The environment."""
        if self._env is None:
            self._env = bare_env(self._make_env())
        return self._env

    def winnable(self, fork: Fork) -> bool | None:
        """Whether the task can still be won from a state; None where the world cannot tell."""
        env = self.env()
        if type(env.world).winnable is World.winnable:
            return None  # the state need not be entered to learn nothing
        env.restore(fork.snapshot)
        return env.world.winnable()

    def close(self) -> None:
        """Close the environment, if one was made."""
        if self._env is not None:
            self._env.close()
            self._env = None


def bare_env(made: object) -> TextEnv:
    """The TextEnv in what ``make_env`` gave: gymnasium.make may wrap it, and snapshots live in the bare one."""
    bare = getattr(made, "unwrapped", made)
    if not isinstance(bare, TextEnv):
        raise WorldError(f"make_env must give a TextEnv, got {type(bare).__name__}")
    return bare


class ExpertRepair:
    """Asks the world's own expert; works where that can act from any state.

    Args:
        world: an environment of the same fingerprint, or what makes one.
    """

    def __init__(self, world: LocalWorld | Callable[[], TextEnv]) -> None:
        """See the class."""
        self._world = world if isinstance(world, LocalWorld) else LocalWorld(world)

    def __call__(self, fork: Fork) -> Repair:
        """Follow the expert from the fork to the end of the episode."""
        env = self._world.env()
        if env.expert_reach != "any":
            return Repair(
                reason=f"the demonstration no longer fits; the world's expert reaches {env.expert_reach!r} states only"
            )
        env.restore(fork.snapshot)
        if env.world.winnable() is False:
            return Repair(reason="the task cannot be won any more after the wrong action")
        steps: list[Step] = []
        won = over = False
        while not over:
            action = env.expert_action()
            if action is None:
                return Repair(reason=f"the world's expert has no action after {len(steps)} steps")
            thought = env.expert_thought()
            observation, _, terminated, truncated, info = env.step(action)
            steps.append(Step(thought=thought, action=action, observation=observation, source="expert"))
            over, won = terminated or truncated, bool(info["won"])
        if not won:
            return Repair(reason="the horizon leaves the world's expert too few steps after the wrong action")
        return Repair(steps=tuple(steps))


class AgentRepair:
    """Lets an agent play on from the state, with the whole conversation before it.

    Args:
        agent: plays; an expert that acts on the conversation only, or a stronger model.
        make_env: makes an environment of the same fingerprint.
        prompt: what stands before each episode, as for the agent that is calibrated.
        sampling: greedy by default.
        max_turns: turns that it gets; None: until the episode's own end.
        turn_format: how it writes its turns.
    """

    def __init__(
        self,
        agent: Agent,
        make_env: Callable[[], TextEnv],
        *,
        prompt: Prompt | None = None,
        sampling: Sampling = GREEDY,
        max_turns: int | None = None,
        turn_format: str | TurnFormat | None = None,
    ) -> None:
        """See the class; environments are made at the first use."""
        self._collector = Collector(make_env, agent, prompt=prompt, num_envs=1, turn_format=turn_format)
        self._sampling, self._max_turns = sampling, max_turns
        self.name = agent.name

    def __call__(self, fork: Fork) -> Repair:
        """Play from the fork to the end of the episode."""
        request = EpisodeRequest(
            task_id=fork.snapshot.task_id,
            seed=fork.prefix.seed,
            sampling=self._sampling,
            start=fork,
            max_agent_turns=self._max_turns,
        )
        played = self._collector.run([request])[0].trajectory
        if played.status == "error":
            return Repair(reason=f"the expert {self.name!r} broke: {played.error}")
        if not played.won:
            return Repair(reason=f"the expert {self.name!r} did not win after the wrong action")
        steps = played.steps[len(fork.prefix) :]
        return Repair(steps=tuple(replace(s, source="expert", token_ids=None) for s in steps))

    def close(self) -> None:
        """Close the environments."""
        self._collector.close()


def make_repairer(
    expert: Repairer | Agent | None,
    make_env: Callable[[], TextEnv] | None,
    *,
    world: LocalWorld | None = None,
    prompt: Prompt | None = None,
    turn_format: str | TurnFormat | None = None,
) -> Repairer | None:
    """The repairer that ``calibrate`` uses: an agent is wrapped; without one the world's own expert repairs.

    Args:
        expert: a repairer, an agent, or None.
        make_env: makes the environment; without it only a repairer of the caller's own works.
        world: shared with other questions to the world.
        prompt: for an agent.
        turn_format: how an agent writes its turns.
    """
    if expert is None:
        return ExpertRepair(world or LocalWorld(make_env)) if make_env is not None else None
    if isinstance(expert, Agent):
        if make_env is None:
            raise WorldError("an agent that repairs needs make_env, got none; pass the environment's factory")
        return AgentRepair(expert, make_env, prompt=prompt, turn_format=turn_format)
    return expert
