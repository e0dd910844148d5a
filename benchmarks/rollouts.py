"""Rollout throughput: kept caches, ``generate()`` once a turn, and one environment with one request at a time.

    python benchmarks/rollouts.py                          # the tiny model, episodes of 12 and 40 turns
    python benchmarks/rollouts.py --model FOLDER --turns 40 --episodes 32 --peer-episodes 32 --authors-episodes 1
    python benchmarks/rollouts.py --profile                # where the time of our engine goes

All three play the same episodes of steca/Household-v0 through the same collector: what the agent says is drawn
beforehand and put in place of the model's own choice, but the model is asked for every token all the same. So
the work that is useful is equal, and so are the games. A peer that would take too long plays fewer of the
episodes; its rate is then per turn of those. Tokens are those that the agent says, stop marks included.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import steca_gym.envs  # noqa: F401 - registers the environment
import torch
from steca_gym.agents.scripted import ExpertAgent, RandomAgent
from steca_gym.agents.tiny import build_tiny
from steca_gym.agents.transformers import TransformersAgent

from steca_gym.agent import Prompt, Sampling, TurnRequest, render_turn
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.collectors.ledger import Cost
from steca_gym.env import TextEnv
from steca_gym.trajectory import Trajectory

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _machine import machine_line  # noqa: E402

THOUGHT = "I look around for what I need."


def make_env(turns: int) -> Callable[[], TextEnv]:
    def make() -> TextEnv:
        env = gymnasium.make("steca/Household-v0", disable_env_checker=True, horizon=turns).unwrapped
        assert isinstance(env, TextEnv)
        return env

    return make


def draw_games(turns: int, count: int) -> list[Trajectory]:
    """Games of admissible actions drawn at random; those that a chance move ends early are left out."""
    env = make_env(turns)()
    requests = [
        EpisodeRequest(task_id=t, seed=i) for i, t in enumerate(env.task_ids("train")[: count + count // 8 + 8])
    ]
    played = Collector(make_env(turns), RandomAgent(), num_envs=count).run(requests)
    games = [e.trajectory for e in played if len(e.trajectory) == turns]
    return games[:count]


def corpus(turns: int) -> list[str]:
    """Texts for the tiny model's vocabulary: the expert's games."""
    ids = make_env(turns)().task_ids("train")[:200]
    played = Collector(make_env(turns), ExpertAgent(), num_envs=32).run(
        [EpisodeRequest(task_id=t, seed=0) for t in ids]
    )
    return [m.content for e in played for m in e.trajectory.messages(Prompt())]


@dataclass
class Result:
    """One way of playing."""

    name: str
    games: int
    turns: int
    seconds: float
    cost: Cost

    @property
    def turns_per_second(self) -> float:
        return self.turns / self.seconds

    @property
    def in_model(self) -> float:
        return self.cost.seconds_model / self.cost.seconds

    @property
    def framework_us(self) -> float:
        return 1e6 * self.cost.seconds_framework / self.turns


def play(agent: TransformersAgent, games: Sequence[Trajectory], num_envs: int, name: str, spoken: bool) -> Result:
    """Play the games once with an agent that says what they say."""
    turns = len(games[0])
    said = {
        (game.seed, turn): agent.codec.tokenize(render_turn(THOUGHT if spoken else "", step.action))
        for game in games
        for turn, step in enumerate(game.steps)
    }
    longest = max(map(len, said.values())) + 1

    def force(request: TurnRequest) -> Sequence[int]:
        return said[request.seed, request.turn]

    agent.force = force
    sampling = Sampling(max_new_tokens=longest)
    requests = [EpisodeRequest(task_id=g.task_id, seed=g.seed, sampling=sampling) for g in games]
    with Collector(make_env(turns), agent, num_envs=num_envs) as collector:
        started = time.perf_counter()
        played = collector.run(requests)
        seconds = time.perf_counter() - started
        cost = dataclasses.replace(collector.ledger.total())
    for episode, game in zip(played, games, strict=True):
        assert episode.trajectory.actions == game.actions, "a way of playing left the script"
    return Result(name, len(games), turns * len(games), seconds, cost)


def measure(args: argparse.Namespace, folder: Path, turns: int) -> str:
    """Markdown for one length of episode."""
    games = draw_games(turns, args.episodes)
    model = torch_model(folder, args.dtype)

    def agent(engine: Any, rows: int) -> TransformersAgent:
        return TransformersAgent(
            model[0], tokenizer=model[1], engine=engine, max_batch_size=rows, kv_cache_gib=args.kv_cache_gib
        )

    play(agent("blocks", 8), games[:2], 2, "warm", args.thoughts)
    results = []
    for name, engine, count, num_envs in (
        ("ours: caches kept", "blocks", len(games), len(games)),
        ("generate() per turn, batched", "generate", min(args.peer_episodes, len(games)), args.peer_batch),
        ("one environment, one request", "generate", args.authors_episodes, 1),
    ):
        if count == 0:
            continue
        runs = []
        for _ in range(args.repeats if num_envs > 1 else 1):
            runs.append(play(agent(engine, num_envs), games[:count], num_envs, name, args.thoughts))
            print(f"{name}: {runs[-1].seconds:.1f} s, model {runs[-1].in_model:.0%}", file=sys.stderr, flush=True)
        results.append(sorted(runs, key=lambda r: r.seconds)[len(runs) // 2])
    ours = results[0]
    lines = [
        "| way | episodes | turns/s | said tokens/s | read per turn | ours is faster by | time in model "
        "| framework per turn |",
        "|" + "---|" * 8,
    ]
    for r in results:
        lines.append(
            f"| {r.name} | {r.games} | {r.turns_per_second:.1f} | {r.cost.num_sampled_tokens / r.seconds:.0f} "
            f"| {r.cost.num_prompt_tokens_read / r.turns:.0f} | {ours.turns_per_second / r.turns_per_second:.1f}x "
            f"| {r.in_model:.0%} | {r.framework_us:.0f} us |"
        )
    whole = (ours.cost.num_prompt_tokens_read + ours.cost.num_prompt_tokens_reused) / ours.turns
    lines.append(
        f"\n{turns} turns an episode, {ours.cost.num_sampled_tokens / ours.turns:.1f} tokens said a turn behind "
        f"{whole:.0f} tokens of conversation on average."
    )
    return "\n".join(lines)


def torch_model(folder: Path, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), AutoTokenizer.from_pretrained(folder)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder; by default the tiny model, made here")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--turns", type=int, nargs="*", default=[12, 40])
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--peer-episodes", type=int, default=128)
    parser.add_argument("--peer-batch", type=int, default=64)
    parser.add_argument("--authors-episodes", type=int, default=2)
    parser.add_argument("--thoughts", action="store_true", help="say a thought before each action")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kv-cache-gib", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="our engine only, under cProfile")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model or build_tiny(
            corpus(40),
            Path(scratch),
            num_layers=args.layers,
            hidden_size=args.width,
            num_heads=args.heads,
        )
        if args.profile:
            profile(args, folder)
            return
        name = args.model.name if args.model else f"tiny, {args.layers} layers x {args.width}"
        parts = [f"Machine: {machine_line('torch', 'transformers')}", f"{torch.get_num_threads()} threads", ""]
        for turns in args.turns:
            parts += [f"## {name}, {args.dtype}, {turns} turns", "", measure(args, folder, turns), ""]
    text = "\n".join(parts)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def profile(args: argparse.Namespace, folder: Path) -> None:
    import cProfile
    import pstats

    model, tokenizer = torch_model(folder, args.dtype)
    for turns in args.turns:
        games = draw_games(turns, args.episodes)
        agent = TransformersAgent(model, tokenizer=tokenizer, max_batch_size=len(games), kv_cache_gib=args.kv_cache_gib)
        play(agent, games[:4], 4, "warm", args.thoughts)
        plain = play(agent, games, len(games), "ours", args.thoughts)
        print(f"{turns} turns: {plain.seconds:.2f} s, {plain.cost.num_sampled_tokens / plain.seconds:.0f} tokens/s")
        print(f"in model {plain.in_model:.0%}, framework {plain.framework_us:.0f} us a turn")
        agent = TransformersAgent(model, tokenizer=tokenizer, max_batch_size=len(games), kv_cache_gib=args.kv_cache_gib)
        with cProfile.Profile() as profiler:
            play(agent, games, len(games), "ours", args.thoughts)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
