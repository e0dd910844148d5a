"""Our worlds as environments of verifiers (0.4, ``import verifiers.v1 as vf``).

A package of verifiers is a module that exports a task set, an environment and a harness; for a world, three lines::

    from steca_gym.interop.verifiers import ChatHarness, WorldEnv, taskset
    HouseholdTaskset = taskset("household", split="train")
    __all__ = ["ChatHarness", "HouseholdTaskset", "WorldEnv"]

The task set is a split of the world, the environment plays a task with the model turn by turn, and the harness asks the
model in this process (verifiers' own harnesses start a program for each turn). ``vf-eval`` runs the module by its name;
``load_environment`` makes the environment without a module. ``docs/interop/verifiers.md`` shows both.
"""

# verifiers makes the fields and the signatures of its classes at run time: pyright does not see their defaults.
# pyright: reportCallIssue=false, reportReturnType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from steca_gym.agent import Prompt, explain_unread, find_turn_format
from steca_gym.collectors.live import one_line_action
from steca_gym.env import TextEnv
from steca_gym.errors import ConfigError
from steca_gym.interop.worlds import make_env, packaged_prompt
from steca_gym.seeding import derive_seed
from steca_gym.turns import join_calls, tools_of

try:
    import verifiers.v1 as vf
    from pydantic import ValidationError, create_model
except ImportError as error:
    raise ImportError(
        f"steca_gym.interop.verifiers needs verifiers 0.4 or later ({error}); pip install 'steca-gym[verifiers]'"
    ) from error

__all__ = ["ChatHarness", "WorldEnv", "WorldTaskset", "load_environment", "taskset"]

MODULE = "steca_gym_verifiers"
"""verifiers imports plugins by the name of a top-level module; this one is an alias, see ``load_environment``"""
INFO = "steca"
"""key of ``trace.info`` with what was played: the task, the outcome, and each turn"""
LOSS_WEIGHTS = "steca"
"""name of the loss-weight stream: 1.0 on the sampled tokens of turns that the world understood, else 0.0"""
DEFAULT_INSTRUCTION = "You act in a text world, one action in each turn. {turn_format}"


class WorldTasksetConfig(vf.TasksetConfig):  # type: ignore[misc]
    """Which tasks of which world, under ``--env.taskset.*``."""

    world: str = "household"
    """a packaged configuration, or a Gymnasium id such as ``my_module:me/World-v0``"""
    split: str = "train"
    """the tasks' split"""
    kwargs: dict[str, Any] = {}
    """keyword arguments of the world, e.g. ``{"horizon": 50}``"""
    seed: int = 0
    """together with a task it decides the world"""
    turn_format: str = "react"
    """how the model writes its turns: react, tools, json, xml or ``module:Object``"""
    instruction: str = DEFAULT_INSTRUCTION
    """the system message; ``{turn_format}`` becomes the format's own instructions"""
    prompt: str = ""
    """a packaged prompt with a worked example in place of ``instruction``: react (household, alfworld) or turns"""


class WorldData(vf.TaskData):  # type: ignore[misc]
    """A task as it travels with its trace."""

    world: str
    split: str
    kwargs: dict[str, Any]
    task_id: str
    world_seed: int
    turn_format: str


class WorldTask(vf.Task[WorldData]):  # type: ignore[misc]
    """One task, and how its trace is judged: the rubric. A subclass, or the configuration, may add to it."""

    @property
    def key(self) -> str:
        """World, split and task: equal in every run."""
        return f"{self.data.world}/{self.data.split}/{self.data.task_id}/{self.data.world_seed}"

    @vf.reward  # type: ignore[untyped-decorator]
    async def outcome(self, trace: Any) -> float:
        """The world's outcome reward, in [0, 1]."""
        return float(trace.info.get(INFO, {}).get("score", 0.0))

    @vf.metric  # type: ignore[untyped-decorator]
    async def turns(self, trace: Any) -> Mapping[str, float]:
        """Won (0 or 1), number of turns, and how many of these the world or the turn format did not understand."""
        played = trace.info.get(INFO, {})
        turns = played.get("turns", [])
        return {
            "won": float(played.get("won", False)),
            "num_turns": float(len(turns)),
            "num_invalid_turns": float(sum(turn["parsed"] and not turn["valid"] for turn in turns)),
            "num_unreadable_turns": float(sum(not turn["parsed"] for turn in turns)),
        }


class _Tasks:
    """What the task sets of all worlds have in common."""

    config: WorldTasksetConfig

    def load(self) -> Iterator[WorldTask]:
        """Begin each task once, as far as tasks are asked for; raises ConfigError and DataError as the world does."""
        c = self.config
        env = make_env(c.world, split=c.split, **c.kwargs)
        try:
            prompt = (packaged_prompt(c.prompt) if c.prompt else Prompt(instruction=c.instruction)).written_in(
                c.turn_format
            )
            for task_id in env.task_ids():
                seed = derive_seed(c.seed, task_id)
                observation, _ = env.reset(seed=seed, options={"task_id": task_id})
                messages = [m.as_dict() for m in (*prompt.examples, *Prompt().begin(observation))]
                data = WorldData(
                    id=task_id,
                    name=task_id,
                    prompt=messages if prompt.examples else observation,
                    system_prompt=prompt.instruction or None,
                    world=c.world,
                    split=c.split,
                    kwargs=c.kwargs,
                    task_id=task_id,
                    world_seed=seed,
                    turn_format=c.turn_format,
                )
                yield WorldTask(data, c.task)
        finally:
            env.close()


class WorldTaskset(_Tasks, vf.Taskset[WorldTask, WorldTasksetConfig]):  # type: ignore[misc]
    """The tasks of a split, in the world's own order; a task's prompt ends with its first observation."""


def taskset(world: str, **defaults: Any) -> type[WorldTaskset]:
    """A task set of a world, for a module of your own; every setting can still be changed under ``--env.taskset``.

    Args:
        world: a packaged configuration such as ``household``, or a Gymnasium id.
        defaults: other settings of ``WorldTasksetConfig``, such as ``split``, ``kwargs`` and ``turn_format``.

    Raises:
        ConfigError: a setting that does not exist or does not fit.
    """
    chosen = _checked(WorldTasksetConfig, {"world": world, **defaults})
    fields: dict[str, Any] = {
        name: (WorldTasksetConfig.model_fields[name].annotation, getattr(chosen, name)) for name in ("world", *defaults)
    }
    config: Any = create_model("Config", __base__=WorldTasksetConfig, __module__=__name__, **fields)

    class Bound(_Tasks, vf.Taskset[WorldTask, config]):  # type: ignore[misc]
        """The tasks of a split of one world."""

    return Bound


def _checked(kind: Any, settings: Mapping[str, Any]) -> Any:
    """Settings as a configuration of verifiers; raises ConfigError in one line."""
    try:
        return kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(name for name in kind.model_fields if name not in ("id", "task", "system_prompt"))
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"setting {where!r} of a verifiers task set: {first['msg']}; known: {known}") from error


class WorldEnvConfig(vf.EnvConfig):  # type: ignore[misc]
    """Who plays, under ``--env.player.*``."""

    player: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())
    """the model; it runs no code, so it needs no box"""


class WorldEnv(vf.Env[WorldEnvConfig]):  # type: ignore[misc]
    """Plays a task: the model's turn is an action, the world's observation is the next user message.

    Worlds are kept for the next episode, at most one for each episode in progress. ``trace.info["steca"]`` holds what
    was played, turn by turn.
    """

    def __init__(self, config: WorldEnvConfig) -> None:
        """See verifiers' Env."""
        super().__init__(config)
        self._free: dict[str, list[TextEnv]] = {}

    async def run(self, task: WorldTask, agents: Any) -> None:
        """One episode."""
        data = task.data
        kind = json.dumps([data.world, data.split, data.kwargs], sort_keys=True)
        free = self._free.setdefault(kind, [])
        env = free.pop() if free else await asyncio.to_thread(make_env, data.world, split=data.split, **data.kwargs)
        try:
            await self._play(env, data, task, agents.player)
        except BaseException:
            env.close()  # whatever state it is in
            raise
        free.append(env)

    async def _play(self, env: TextEnv, data: WorldData, task: WorldTask, player: Any) -> None:
        turn_format = find_turn_format(data.turn_format)
        options = {"task_id": data.task_id}
        _, info = await asyncio.to_thread(env.reset, seed=data.world_seed, options=options)
        turns: list[dict[str, Any]] = []
        over = terminated = False
        async with player.interaction(task) as interaction:
            played: dict[str, Any] = {"task_id": data.task_id, "task_type": info["task_type"], "turns": turns}
            played |= {"fingerprint": info["fingerprint"], "score": info["score"], "won": info["won"]}
            interaction.trace.info[INFO] = played
            segment = await interaction.turn()
            while not segment.terminated:
                text, call_id = _said(segment)
                parsed = one_line_action(turn_format.parse(text), env.world.multiline_actions)
                if parsed.action is None:
                    _, _, terminated, truncated, info = await asyncio.to_thread(env.skip_turn)
                    observation = explain_unread(turn_format, parsed)
                else:
                    stepped = await asyncio.to_thread(env.step, parsed.action)
                    observation, _, terminated, truncated, info = stepped
                turns.append(
                    {
                        "action": parsed.action,
                        "parsed": parsed.action is not None,
                        "valid": info["valid"],
                        "score": info["score"],
                        "observation": observation,
                    }
                )
                played |= {"score": info["score"], "won": info["won"]}
                over = terminated or truncated
                if over:
                    break
                answer: Any = observation
                if call_id:
                    answer = [{"role": "tool", "tool_call_id": call_id, "content": observation}]
                segment = await interaction.turn(answer)
            played["status"] = ("truncated" if not terminated else "terminated") if over else "running"
            _weigh(interaction.trace, turns)

    async def stop(self) -> None:
        """Close the worlds."""
        for free in self._free.values():
            while free:
                free.pop().close()


def _said(segment: Any) -> tuple[str, str]:
    """The model's turn as text, and the id of its tool call (empty: it made none)."""
    message = next((m for m in reversed(segment.messages) if m.role == "assistant"), None)
    calls = list(getattr(message, "tool_calls", None) or ())
    text = segment.last_reply
    if not calls:
        return text, ""
    return join_calls(text, [(call.name, call.arguments) for call in calls]), calls[0].id


def _weigh(trace: Any, turns: list[dict[str, Any]]) -> None:
    """Mark the tokens of each turn that the world understood, where the server told tokens."""
    sampled = [node for node in trace.nodes if node.sampled]
    for node, turn in zip(sampled, turns, strict=False):
        weight = float(turn["parsed"] and turn["valid"])
        if node.token_ids:
            node.loss_weights = {**(node.loss_weights or {}), LOSS_WEIGHTS: [weight * m for m in node.mask]}


class ChatHarnessConfig(vf.HarnessConfig):  # type: ignore[misc]
    """Settings of the harness."""


class ChatHarness(vf.Harness[ChatHarnessConfig]):  # type: ignore[misc]
    """Asks the model for one turn, in this process: no program, no box, no installation."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    def __init__(self, config: ChatHarnessConfig) -> None:
        """See verifiers' Harness."""
        super().__init__(config)
        self._client: httpx.AsyncClient | None = None

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: Mapping[str, str],
        data: Any,
    ) -> Any:
        """Send the conversation to verifiers' own endpoint, which relays and records it."""
        from verifiers.v1.dialects.chat import message_to_wire

        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message_to_wire(message) for message in prompt or ()]
        body: dict[str, Any] = {"model": ctx.model, "messages": messages}
        tools = tools_of(find_turn_format(getattr(data, "turn_format", None)))
        if tools:
            body |= {"tools": list(tools), "parallel_tool_calls": False}
        if self._client is None:
            # verifiers sets the limits in time; its endpoint is on this machine, where no proxy is needed.
            self._client = httpx.AsyncClient(timeout=None, trust_env=False)
        headers = {"Authorization": f"Bearer {secret}"}
        try:
            answer = await self._client.post(f"{endpoint}/chat/completions", json=body, headers=headers)
        except httpx.HTTPError as error:
            return vf.ProgramResult(1, "", f"{type(error).__name__}: {error}")
        if answer.status_code >= 400:  # verifiers looks first whether it stopped the run itself
            return vf.ProgramResult(1, "", f"status {answer.status_code}: {answer.text[:500]}")
        return vf.ProgramResult(0, answer.text, "")


def load_environment(**settings: Any) -> WorldEnv:
    """The environment for a split of a world.

    Args:
        settings: fields of ``WorldTasksetConfig``, such as ``world``, ``split``, ``kwargs`` and ``turn_format``.

    Raises:
        ConfigError: a setting that does not exist or does not fit.
    """
    sys.modules.setdefault(MODULE, sys.modules[__name__])
    return WorldEnv(WorldEnvConfig(taskset=_checked(WorldTasksetConfig, {"id": MODULE, **settings})))
