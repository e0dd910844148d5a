"""Where environments should live: in this process or in two worker processes, for six worlds; and what a step costs.

    ALFWORLD_DATA=... python benchmarks/executors.py --games FOLDER --draw     # draw the games, untimed, and keep them
    ALFWORLD_DATA=... python benchmarks/executors.py --games FOLDER            # the six worlds
    python benchmarks/executors.py --games FOLDER --part model --worlds textworld scienceworld    # with a tiny model
    python benchmarks/executors.py --part overhead                             # the framework's own time a step
    python benchmarks/executors.py --part overhead --num-workers 0             # in this process only

Both ways play the same episodes by the same collector; an agent repeats drawn actions at once, so that only the worlds
and the framework take time. Workers, interpreters and Java processes are started by an untimed run before.
Resets are in the time. The ways take turns; each figure is the median of the repeats.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steca_gym.agents.scripted import RandomAgent, ReplayAgent

from steca_gym.agent import Need, Turn, TurnRequest
from steca_gym.cli.composing import compose
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.env import Outcome, TextEnv, World
from steca_gym.runs.context import make_env
from steca_gym.trajectory import Trajectory, read_jsonl, write_jsonl

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _machine import machine_line  # noqa: E402

if TYPE_CHECKING:  # with --num-workers 0 the overhead of commits before the executors can be measured, too
    from steca_gym.collectors import Executor


@dataclass(frozen=True)
class Case:
    """A world and how much of it is played."""

    name: str
    split: str
    num_episodes: int
    num_steps: int
    """of an episode, at most"""
    num_envs: int
    overrides: tuple[str, ...] = ()


CASES = (
    Case("household", "train", 128, 30, 32),
    Case("babyai", "train", 128, 30, 32),
    Case("virtualhome", "train", 64, 30, 16),
    Case("textworld", "valid", 32, 30, 8),
    Case("alfworld", "valid_seen", 32, 30, 8),
    Case("scienceworld", "dev", 16, 30, 2),
)


class Repeating(ReplayAgent):
    """Says what was drawn, at once and without asking the world for anything; found by the episode's seed."""

    def __init__(self, games: Iterable[Trajectory]) -> None:
        super().__init__(())
        self.said = {game.seed: [Turn(text=step.turn_text()) for step in game.steps] for game in games}

    def _turn(self, request: TurnRequest) -> Turn:
        return self.said[request.seed][request.turn]


def factory(case: Case) -> functools.partial[TextEnv]:
    from omegaconf import OmegaConf

    cfg = OmegaConf.to_container(compose([f"env={case.name}", *case.overrides]).env, resolve=True)
    assert isinstance(cfg, dict)
    cfg["kwargs"] = {**cfg["kwargs"], "horizon": case.num_steps}
    return functools.partial(make_env, {str(k): v for k, v in cfg.items()}, case.split)


def draw(case: Case, path: Path) -> None:
    """Games of random admissible actions."""
    make = factory(case)
    env = make()
    ids = list(env.task_ids(case.split))
    env.close()
    asked = [EpisodeRequest(task_id=ids[i % len(ids)], seed=i) for i in range(case.num_episodes)]
    with Collector(make, RandomAgent(), num_envs=case.num_envs) as collector:
        games = [e.trajectory for e in collector.run(asked)]
    failed = [g.error for g in games if g.status == "error"]
    if failed:
        print(f"{case.name}: {len(failed)} of {len(games)} games failed: {failed[0]}", file=sys.stderr)
    write_jsonl(path, [g for g in games if g.status != "error"])


def measure(case: Case, games: Sequence[Trajectory], num_workers: int, repeats: int) -> str:
    """One line of the table."""
    from steca_gym.collectors import InProcess, Processes

    make = factory(case)
    asked = [EpisodeRequest(task_id=game.task_id, seed=game.seed, max_agent_turns=len(game.steps)) for game in games]
    ways: list[Executor] = [InProcess(), Processes(num_workers=num_workers)]
    collectors = [Collector(make, Repeating(games), num_envs=case.num_envs, executor=way) for way in ways]
    num_steps = sum(map(len, games))
    rates: list[list[float]] = [[], []]
    started, busy, framework = 0.0, [], []
    try:
        before = time.perf_counter()
        collectors[1].run([dataclasses.replace(r, max_agent_turns=0) for r in asked[:num_workers]])
        started = time.perf_counter() - before
        for collector in collectors:
            collector.run(asked[: case.num_envs])
        for _ in range(repeats):
            for which, collector in enumerate(collectors):
                cost_before = dataclasses.replace(collector.ledger.total())
                before = time.perf_counter()
                played = collector.run(asked)
                seconds = time.perf_counter() - before
                rates[which].append(num_steps / seconds)
                cost = collector.ledger.total()
                if which:
                    busy.append((cost.seconds_workers - cost_before.seconds_workers) / seconds / num_workers)
                else:
                    framework.append(1e6 * (cost.seconds_framework - cost_before.seconds_framework) / num_steps)
                for episode, game in zip(played, games, strict=True):
                    steps = [(s.action, s.observation, s.score) for s in episode.trajectory.steps]
                    assert steps == [(s.action, s.observation, s.score) for s in game.steps], (
                        f"{game.task_id} plays otherwise than when it was drawn; draw the games again"
                    )
    finally:
        for way in ways:
            way.close()
    here, there = (statistics.median(r) for r in rates)
    print(f"{case.name}: {rates}", file=sys.stderr, flush=True)
    return (
        f"| {case.name} | {len(games)} | {num_steps} | {case.num_envs} | {here:,.0f} | {there:,.0f} | {there / here:.2f}x "
        f"| {statistics.median(busy):.0%} | {1e3 / here:.2f} ms | {started:.1f} s |"
    )


class Still(World):
    """A world that takes no time: what is left is the framework's."""

    name, version = "still", "1"
    can_save = True

    def task_ids(self, split: str) -> Sequence[str]:
        return ("still",)

    @property
    def goal(self) -> str:
        return "wait"

    def start(self, task_id: str, seed: int) -> Outcome:
        return Outcome(observation="You are in a room. Your task is to: wait.")

    def act(self, action: str) -> Outcome:
        return Outcome(observation="Nothing happens.")

    def save(self) -> None:
        return None

    def load(self, token: None) -> None:
        return None


class Waiting:
    """Says the same at once."""

    name = "waiting"
    needs: frozenset[Need] = frozenset()
    turn = Turn(text="Thought: I wait.\nAction: wait")

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        return [self.turn] * len(requests)

    def release(self, episode_ids: Iterable[str]) -> None:
        return None


def still(horizon: int) -> TextEnv:
    return TextEnv(Still(), horizon=horizon)


def bare_loop(horizon: int, num_episodes: int) -> float:
    """Microseconds a step of stepping a TextEnv without a collector, agent or trajectory."""
    env = still(horizon)
    before = time.perf_counter()
    for seed in range(num_episodes):
        env.reset(seed=seed, options={"task_id": "still"})
        for _ in range(horizon):
            env.step("wait")
    return 1e6 * (time.perf_counter() - before) / (num_episodes * horizon)


def collected(horizon: int, num_episodes: int, capture: bool, executor: Executor | None) -> float:
    """Microseconds a step through the collector."""
    make = functools.partial(still, horizon)
    asked = [EpisodeRequest(task_id="still", seed=seed, capture=capture) for seed in range(num_episodes)]
    more: dict[str, Any] = {} if executor is None else {"executor": executor}
    collector = Collector(make, Waiting(), num_envs=64, **more)
    if executor is not None:
        collector.run(asked[:64])
    before = time.perf_counter()
    collector.run(asked)
    return 1e6 * (time.perf_counter() - before) / (num_episodes * horizon)


def overhead(repeats: int, num_workers: int) -> list[str]:
    """The framework's own time a step, from a world and an agent that take none."""
    head = "| episode | bare TextEnv loop | collector adds | with a fork before every step |"
    executor: Executor | None = None
    if num_workers:
        from steca_gym.collectors import Processes

        executor = Processes(num_workers=num_workers)
        head += f" with {num_workers} workers |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for horizon in (12, 40):
        num = 4800 // horizon
        runs: list[list[float]] = []
        for _ in range(repeats):
            bare = bare_loop(horizon, num)
            ways = [(False, None), (True, None)] + ([(False, executor)] if executor is not None else [])
            runs.append([bare, *(collected(horizon, num, capture, way) - bare for capture, way in ways)])
        medians = [statistics.median(column) for column in zip(*runs, strict=True)]
        lines.append(f"| {horizon} steps | " + " | ".join(f"{median:.1f} us" for median in medians) + " |")
    if executor is not None:
        executor.close()
    return lines


def with_a_model(case: Case, games: Sequence[Trajectory], num_workers: int, repeats: int) -> str:
    """One line: the same games, the actions said by a tiny model of three layers, on one thread."""
    import tempfile

    import torch
    from steca_gym.agents.tiny import build_tiny
    from steca_gym.agents.transformers import TransformersAgent

    from steca_gym.agent import Prompt, Sampling
    from steca_gym.collectors import InProcess, Processes

    torch.set_num_threads(1)  # the other core is the worlds'
    make = factory(case)
    with tempfile.TemporaryDirectory() as scratch:
        texts = [message.content for game in games for message in game.messages(Prompt())]
        agent = TransformersAgent(build_tiny(texts, Path(scratch), num_layers=3, hidden_size=128, num_heads=4))
    said = {
        (game.seed, turn): agent.codec.tokenize(step.turn_text())
        for game in games
        for turn, step in enumerate(game.steps)
    }
    agent.force = lambda request: said[request.seed, request.turn]
    sampling = Sampling(max_new_tokens=max(map(len, said.values())) + 1)
    asked = [
        EpisodeRequest(task_id=g.task_id, seed=g.seed, max_agent_turns=len(g.steps), sampling=sampling) for g in games
    ]
    ways: list[Executor] = [InProcess(), Processes(num_workers=num_workers)]
    seconds: list[list[float]] = [[], []]
    waited: list[list[float]] = [[], []]
    try:
        for repeat in range(repeats + 1):  # the first is not counted
            for which, way in enumerate(ways):
                collector = Collector(make, agent, num_envs=case.num_envs, executor=way)
                before = time.perf_counter()
                played = collector.run(asked)
                if repeat:
                    seconds[which].append(time.perf_counter() - before)
                    waited[which].append(collector.ledger.total().seconds_environment / seconds[which][-1])
                assert [e.trajectory.actions for e in played] == [g.actions for g in games]
    finally:
        for way in ways:
            way.close()
    num_steps = sum(map(len, games))
    here, there = (num_steps / statistics.median(s) for s in seconds)
    print(f"{case.name} with a model: {seconds}", file=sys.stderr, flush=True)
    return (
        f"| {case.name} | {here:,.0f} | {there:,.0f} | {there / here:.2f}x | {statistics.median(waited[0]):.0%} "
        f"| {statistics.median(waited[1]):.0%} |"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["worlds", "model", "overhead"], default="worlds")
    parser.add_argument("--worlds", nargs="*", default=[case.name for case in CASES])
    parser.add_argument("--games", type=Path, default=Path("executors-games"), help="folder of the drawn games")
    parser.add_argument("--draw", action="store_true", help="draw the games that the folder lacks, and end")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cases = [case for case in CASES if case.name in args.worlds]
    if args.part != "overhead":
        args.games.mkdir(parents=True, exist_ok=True)
        for case in cases:
            path = args.games / f"{case.name}.jsonl"
            if not path.exists():
                before = time.perf_counter()
                draw(case, path)
                print(f"{case.name}: games drawn in {time.perf_counter() - before:.0f} s", file=sys.stderr, flush=True)
        if args.draw:
            return
    print(f"Machine: {machine_line('minigrid', 'textworld', 'scienceworld', 'virtualhome-eval')}\n")
    if args.part == "worlds":
        print(
            f"| world | episodes | steps | at once | in-process steps/s | {args.num_workers} workers steps/s | ratio "
            "| workers busy | a step in-process | workers start in |\n" + "|---" * 10 + "|"
        )
        for case in cases:
            games = list(read_jsonl(args.games / f"{case.name}.jsonl"))
            print(measure(case, games, args.num_workers, args.repeats), flush=True)
    elif args.part == "model":
        print(
            "| world | in-process turns/s | workers turns/s | ratio | in worlds, in-process | waiting for workers |\n"
            + "|---" * 6
            + "|"
        )
        for case in cases:
            games = list(read_jsonl(args.games / f"{case.name}.jsonl"))
            print(with_a_model(case, games[: case.num_envs], args.num_workers, args.repeats), flush=True)
    else:
        print("\n".join(overhead(args.repeats + 2, args.num_workers)))


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
