"""Rollout throughput: kept caches, ``generate()`` once a turn, and one environment with one request at a time.

    python benchmarks/rollouts.py                                # the tiny model, 12 and 40 turns, both workloads
    python benchmarks/rollouts.py --model smollm2 --turns 40 --episodes 32 --peer-jobs 64 --authors-jobs 1
    python benchmarks/rollouts.py --profile                      # where the time of our engine goes

Two workloads of steca/Household-v0. *Episodes* are played from their start. *Forks* are Monte Carlo
continuations: from every so many steps of a game, five different ones to the horizon. All three ways play the
same games through the same collector: what the agent says is drawn beforehand and put in place of the model's
own choice, but the model is asked for every token all the same. So the work that is useful is equal.

    ours                  block cache, continuous batching, states entered by a snapshot
    generate(), n at once transformers' generate() once a turn, left-padded, sdpa; states entered by a snapshot
    one at a time         generate() for one request; to enter a state, its prefix is replayed from the reset

A way that would take too long plays fewer of the jobs (an even choice over games and steps); its rate is then per
turn of those. ``generate()`` keeps nothing from turn to turn, so that every turn costs the same whether the ones
before it were played or not: with ``--peer-rounds K`` it plays K evenly chosen turns of each job, from snapshots
that were made beforehand. Ours is timed ``--repeats`` times and its median taken; the peers, which take minutes, once
unless ``--repeat-peers``. Tokens are those said, stop marks included.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import os
import statistics
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
from steca_gym.agents.smollm2 import smollm2_folder
from steca_gym.agents.tiny import build_tiny
from steca_gym.agents.transformers import TransformersAgent

from steca_gym.agent import Prompt, Sampling, Turn, TurnRequest, render_turn
from steca_gym.collectors import Collector, EpisodeRequest, Fork
from steca_gym.collectors.ledger import Cost
from steca_gym.env import TextEnv
from steca_gym.trajectory import Step, Trajectory

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _machine import machine_line  # noqa: E402

THOUGHT = "I look around for what I need."
NUM_CONTINUATIONS = 5
MOST_ELSEWHERE = 0.05
"""a run during which other processes took more than this part of the processors is repeated"""


def keep_memory() -> None:
    """Let glibc keep freed memory: large temporaries of every way would else be mapped again each time."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def make_env(turns: int) -> Callable[[], TextEnv]:
    def make() -> TextEnv:
        env = gymnasium.make("steca/Household-v0", disable_env_checker=True, horizon=turns).unwrapped
        assert isinstance(env, TextEnv)
        return env

    return make


class Wanderer(RandomAgent):
    """Any admissible action but ``help``, whose long answer no trained agent asks for again and again."""

    def _turn(self, request: TurnRequest) -> Turn:
        actions = tuple(a for a in request.admissible_actions or () if a != "help")
        return super()._turn(dataclasses.replace(request, admissible_actions=actions))


def draw_games(turns: int, count: int) -> list[Trajectory]:
    """Games of admissible actions drawn at random; those that a chance move ends early are left out."""
    env = make_env(turns)()
    ids = env.task_ids("train")
    requests = [EpisodeRequest(task_id=ids[i % len(ids)], seed=i) for i in range(count + count // 8 + 8)]
    played = Collector(make_env(turns), Wanderer(), num_envs=64).run(requests)
    games = [e.trajectory for e in played if len(e.trajectory) == turns]
    return games[:count]


def corpus(turns: int) -> list[str]:
    """Texts for the tiny model's vocabulary: the expert's games."""
    ids = make_env(turns)().task_ids("train")[:200]
    played = Collector(make_env(turns), ExpertAgent(), num_envs=32).run(
        [EpisodeRequest(task_id=t, seed=0) for t in ids]
    )
    return [m.content for e in played for m in e.trajectory.messages(Prompt())]


@dataclass(frozen=True)
class Job:
    """One episode, or one continuation, and what the agent says in it."""

    task_id: str
    seed: int
    actions: tuple[str, ...]
    fork: Fork | None = None

    @property
    def num_given(self) -> int:
        return 0 if self.fork is None else len(self.fork.prefix)


def episode_jobs(games: Sequence[Trajectory]) -> list[Job]:
    return [Job(g.task_id, i, g.actions) for i, g in enumerate(games)]


def fork_jobs(games: Sequence[Trajectory], turns: int, every: int, spoken: bool) -> list[Job]:
    """Five random continuations from every ``every``-th step of each game."""
    scripts = [
        tuple(dataclasses.replace(s, thought=THOUGHT if spoken else "", text="") for s in g.steps) for g in games
    ]
    make = make_env(turns)
    whole = Collector(make, Wanderer(), num_envs=8).run(
        [
            EpisodeRequest(task_id=g.task_id, seed=0, script=script, max_agent_turns=0, capture=True)
            for g, script in zip(games, scripts, strict=True)
        ]
    )
    starts = [e.forks[t] for e in whole for t in range(every, turns, every)]
    requests = [
        EpisodeRequest(task_id=fork.prefix.task_id, seed=1 + i * NUM_CONTINUATIONS + k, start=fork)
        for i, fork in enumerate(starts)
        for k in range(NUM_CONTINUATIONS)
    ]
    played = Collector(make, Wanderer(), num_envs=64).run(requests)
    return [
        Job(r.task_id, r.seed, e.trajectory.actions[len(r.start.prefix) :], r.start)
        for r, e in zip(requests, played, strict=True)
        if r.start is not None
    ]


def even_choice(jobs: Sequence[Job], count: int) -> list[Job]:
    """``count`` of the jobs, spread evenly over their order (games, then steps), whole when there are no more."""
    if count >= len(jobs):
        return list(jobs)
    return [jobs[(2 * i + 1) * len(jobs) // (2 * count)] for i in range(count)]


def some_rounds(jobs: Sequence[Job], longest: int, rounds: int, turns: int, spoken: bool) -> list[Job]:
    """Single turns: for ``rounds`` evenly chosen turns each job that is that long, states entered beforehand.

    In their order: all jobs' turn r, then all jobs' next one, as a batch that plays them side by side would.
    """
    chosen = sorted({(2 * i + 1) * longest // (2 * rounds) for i in range(rounds)})
    thought = THOUGHT if spoken else ""
    requests = [
        EpisodeRequest(
            task_id=job.task_id,
            seed=job.seed,
            start=job.fork,
            script=tuple(Step(thought=thought, action=a, observation="") for a in job.actions),
            max_agent_turns=0,
            capture=True,
        )
        for job in jobs
    ]
    forks = [e.forks for e in Collector(make_env(turns), Wanderer(), num_envs=8).run(requests)]
    return [
        Job(job.task_id, job.seed, (job.actions[r],), forks[j][r])
        for r in chosen
        for j, job in enumerate(jobs)
        if r < len(job.actions)
    ]


def others_seconds() -> float:
    """Processor seconds that other processes (and the host) took so far; 0 where the system does not say."""
    try:
        ticks = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    idle = ticks[3] + ticks[4]
    own = os.times()
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK") - own.user - own.system


@dataclass
class Result:
    """One way of playing."""

    name: str
    jobs: int
    turns: int
    seconds: float
    processor_seconds: float
    """of all threads; waiting for each other counts, waiting for other processes does not"""
    cost: Cost
    elsewhere: float
    """part of all processors' time that went to other processes meanwhile"""

    @property
    def turns_per_second(self) -> float:
        return self.turns / self.seconds

    @property
    def in_model(self) -> float:
        return self.cost.seconds_model / self.cost.seconds


def play(agent: TransformersAgent, jobs: Sequence[Job], turns: int, num_envs: int, name: str, spoken: bool) -> Result:
    """Play the jobs once with an agent that says what they say; one at a time replays what stands before."""
    said = {
        (job.seed, job.num_given + place): agent.codec.tokenize(render_turn(THOUGHT if spoken else "", action))
        for job in jobs
        for place, action in enumerate(job.actions)
    }
    longest = max(map(len, said.values())) + 1

    def force(request: TurnRequest) -> Sequence[int]:
        return said[request.seed, request.turn]

    agent.force = force
    sampling = Sampling(max_new_tokens=longest)
    replay = num_envs == 1

    def request(job: Job) -> EpisodeRequest:
        script: tuple[Step, ...] = job.fork.prefix.steps if replay and job.fork is not None else ()
        start = None if replay else job.fork
        return EpisodeRequest(
            task_id=job.task_id,
            seed=job.seed,
            sampling=sampling,
            start=start,
            script=script,
            max_agent_turns=len(job.actions),
        )

    with Collector(make_env(turns), agent, num_envs=num_envs) as collector:
        started, others, processor = time.perf_counter(), others_seconds(), time.process_time()
        played = collector.run([request(job) for job in jobs])
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
        elsewhere = max(others_seconds() - others, 0.0) / (seconds * (os.cpu_count() or 1))
        cost = dataclasses.replace(collector.ledger.total())
    for episode, job in zip(played, jobs, strict=True):
        assert episode.trajectory.actions[job.num_given :] == job.actions, "a way of playing left the script"
    agent.force = None
    return Result(name, len(jobs), sum(len(job.actions) for job in jobs), seconds, processor, cost, elsewhere)


def measure(args: argparse.Namespace, model: tuple[Any, Any], turns: int, jobs: Sequence[Job]) -> str:
    """Markdown for one workload."""

    def agent(engine: Any, rows: int) -> TransformersAgent:
        return TransformersAgent(
            model[0], tokenizer=model[1], engine=engine, max_batch_size=rows, kv_cache_gib=args.kv_cache_gib
        )

    agents = {rows: agent("generate", rows) for rows in (*args.peer_batch, 1)}
    mine = agent("blocks", args.batch)
    play(mine, [dataclasses.replace(job, actions=job.actions[:1]) for job in jobs[:2]], turns, 2, "warm", args.thoughts)
    peers = even_choice(jobs, args.peer_jobs)
    if args.peer_rounds:
        peers = some_rounds(peers, max(len(job.actions) for job in peers), args.peer_rounds, turns, args.thoughts)
    ways = [
        ("ours", "blocks", list(jobs), args.batch),
        ("one at a time", "generate", even_choice(jobs, args.authors_jobs), 1),
        *((f"generate(), {rows} at once", "generate", peers, rows) for rows in args.peer_batch),
    ]
    runs: dict[str, list[Result]] = {}
    disturbed = 0
    for repeat in range(args.repeats):
        for name, engine, chosen, num_envs in ways:
            if not chosen or repeat and name != "ours" and not args.repeat_peers:
                continue
            for attempt in range(1 + args.retries):
                if engine == "blocks":
                    mine.forget()
                one = mine if engine == "blocks" else agents[num_envs]
                result = play(one, chosen, turns, num_envs, name, args.thoughts)
                print(
                    f"{turns} turns, {name}: {result.turns} turns in {result.seconds:.1f} s, "
                    f"processor {result.processor_seconds:.1f} s, model {result.in_model:.0%}, "
                    f"other processes {result.elsewhere:.0%}",
                    file=sys.stderr,
                    flush=True,
                )
                if result.elsewhere <= MOST_ELSEWHERE or name != "ours":
                    break
                disturbed += attempt < args.retries
            runs.setdefault(name, []).append(result)
    medians = {name: statistics.median(r.turns_per_second for r in found) for name, found in runs.items()}
    processor = {name: statistics.median(r.processor_seconds for r in found) for name, found in runs.items()}
    ours = runs["ours"][0]
    lines = [
        "| way | jobs | runs | turns/s, median (range) | said tokens/s | prompt tokens read a turn | environment steps "
        "a turn | time in model | framework a turn | ours is faster | by processor time |",
        "|" + "---|" * 11,
    ]
    for name, found in runs.items():
        r = min(found, key=lambda one: abs(one.turns_per_second - medians[name]))
        rates = [one.turns_per_second for one in found]
        steps = (r.cost.num_env_steps + r.cost.num_replayed_steps) / r.turns
        lines.append(
            f"| {name} | {r.jobs} | {len(found)} | {medians[name]:.1f} ({min(rates):.1f} to {max(rates):.1f}) "
            f"| {r.cost.num_sampled_tokens / r.seconds:.0f} | {r.cost.num_prompt_tokens_read / r.turns:.0f} "
            f"| {steps:.1f} | {r.in_model:.0%} | {1e6 * r.cost.seconds_framework / r.turns:.0f} us "
            f"| {medians['ours'] / medians[name]:.1f}x "
            f"| {processor[name] * ours.turns / (processor['ours'] * r.turns):.1f}x |"
        )
    whole = (ours.cost.num_prompt_tokens_read + ours.cost.num_prompt_tokens_reused) / ours.turns
    lines.append(
        f"\n{ours.turns} turns in {ours.jobs} jobs; {ours.cost.num_sampled_tokens / ours.turns:.1f} tokens said a turn "
        f"after {whole:.0f} tokens of conversation on average. Other processes took at most "
        f"{max(r.elsewhere for found in runs.values() for r in found):.0%} of the processors during a run "
        f"({disturbed} disturbed runs were repeated)."
    )
    return "\n".join(lines)


def load(folder: Path, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), AutoTokenizer.from_pretrained(folder)


def jobs_of(args: argparse.Namespace, workload: str, turns: int) -> list[Job]:
    if workload == "episodes":
        return episode_jobs(draw_games(turns, args.episodes))
    return fork_jobs(draw_games(turns, args.fork_games), turns, args.fork_every or max(turns // 10, 2), args.thoughts)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, or smollm2; by default the tiny model, made here")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--turns", type=int, nargs="*", default=[12, 40])
    parser.add_argument("--workloads", nargs="*", choices=["episodes", "forks"], default=["episodes", "forks"])
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--fork-games", type=int, default=8)
    parser.add_argument("--fork-every", type=int, default=0, help="steps between forks; 0: a tenth of the turns")
    parser.add_argument("--batch", type=int, default=64, help="our rows at once")
    parser.add_argument("--peer-batch", type=int, nargs="*", default=[64, 16], help="rows at once, each is timed")
    parser.add_argument("--peer-jobs", type=int, default=64)
    parser.add_argument("--peer-rounds", type=int, default=0, help="turns of each job; 0: all")
    parser.add_argument("--authors-jobs", type=int, default=2)
    parser.add_argument("--thoughts", action="store_true", help="say a thought before each action")
    parser.add_argument("--static-cache", action="store_true", help="generate() with a static cache")
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--kv-cache-gib", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--retries", type=int, default=3, help="for runs of ours that other processes disturbed")
    parser.add_argument("--repeat-peers", action="store_true", help="time the peers as often as ours, by turns")
    parser.add_argument("--profile", action="store_true", help="our engine only, under cProfile")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    keep_memory()
    with tempfile.TemporaryDirectory() as scratch:
        if args.model is None:
            name = f"tiny, {args.layers} layers x {args.width}"
            sizes = {"num_layers": args.layers, "hidden_size": args.width, "num_heads": args.heads}
            folder = build_tiny(corpus(40), Path(scratch), max_position_embeddings=16_384, **sizes)
        else:
            folder = smollm2_folder() if args.model == "smollm2" else Path(args.model)
            name = folder.name
        parts = [f"Machine: {machine_line('torch', 'transformers')}, {torch.get_num_threads()} threads", ""]
        for turns in args.turns:
            for workload in args.workloads:
                jobs = jobs_of(args, workload, turns)
                for dtype in args.dtype:
                    model = load(folder, dtype)
                    if args.static_cache:
                        model[0].generation_config.cache_implementation = "static"
                    if args.profile:
                        profile(args, model, turns, jobs)
                        continue
                    said = "thought and action" if args.thoughts else "action alone"
                    parts += [f"### {name}, {dtype}, {turns} turns, {workload}, {said}", ""]
                    parts += [measure(args, model, turns, jobs), ""]
                    if args.out:
                        args.out.write_text("\n".join(parts) + "\n")
    print("\n".join(parts))


def profile(args: argparse.Namespace, model: tuple[Any, Any], turns: int, jobs: Sequence[Job]) -> None:
    import cProfile
    import pstats

    def agent() -> TransformersAgent:
        return TransformersAgent(
            model[0], tokenizer=model[1], max_batch_size=args.batch, kv_cache_gib=args.kv_cache_gib
        )

    play(agent(), jobs[:4], turns, 4, "warm", args.thoughts)
    plain = play(agent(), jobs, turns, args.batch, "ours", args.thoughts)
    print(f"{turns} turns: {plain.seconds:.2f} s, {plain.cost.num_sampled_tokens / plain.seconds:.0f} tokens/s")
    print(f"in model {plain.in_model:.0%}, framework {1e6 * plain.cost.seconds_framework / plain.turns:.0f} us a turn")
    again = agent()
    with cProfile.Profile() as profiler:
        play(again, jobs, turns, args.batch, "ours", args.thoughts)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
