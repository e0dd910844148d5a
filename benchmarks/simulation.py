"""How many episodes a cluster plays a second, and which part is full first: an event simulation of the collector's queue.

    python benchmarks/simulation.py --validate                    # against real runs of the collector here
    python benchmarks/simulation.py --plan                        # the plan in docs/capacity.md
    python benchmarks/simulation.py --num-envs 1000 --num-replicas 8 --num-workers 32 --turn-tokens 40 ...

Three stations share the episodes: workers that play environment steps, the collector's one process, and the model's replicas.
A replica batches continuously, as vLLM and our own engine do: in each pass every running turn gets one token, a turn that begins
has its new prompt tokens read first, and turns beyond ``max_batch_size`` wait. A pass takes
``pass_s + token_s * running + new prompt tokens / prefill_tokens_per_s``. Times of environment steps are drawn from a gamma
distribution of the given mean and relative spread; an episode's environment lives on one worker, as in the product.

All times are seconds. Nothing is fitted: ``--validate`` plays the real collector with worlds and models of known times.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steca_gym.agent import Turn, TurnRequest, render_turn
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.collectors.executors.pool import Processes
from steca_gym.env import Outcome, TextEnv, World

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _machine import machine_line  # noqa: E402


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What is simulated; all times in seconds."""

    num_envs: int = 32
    """episodes in progress"""
    num_episodes: int = 256
    num_turns: int = 20
    """turns of an episode"""
    num_workers: int = 2
    """worker processes that play environments"""
    step_s: float = 1e-3
    """mean time of an environment step"""
    step_spread: float = 0.5
    """standard deviation of a step's time over its mean"""
    message_s: float = 1e-4
    """time from the collector to a worker or back, waiting only"""
    collector_s: float = 5e-5
    """the collector's own work for each turn"""
    num_replicas: int = 1
    max_batch_size: int = 64
    """turns that a replica works on at once"""
    turn_tokens: int = 20
    """sampled tokens of a turn"""
    new_prompt_tokens: int = 40
    """tokens of a turn's prompt that no cache holds"""
    pass_s: float = 2e-3
    """a pass of the model over an empty batch"""
    token_s: float = 5e-5
    """what each running turn adds to a pass"""
    prefill_tokens_per_s: float = 20_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What came out."""

    seconds: float
    turns_per_s: float
    tokens_per_s: float
    workers: float
    """share of the time in which the average worker is busy"""
    collector: float
    replicas: float
    """share of the time in which the average replica runs a pass"""
    batch_size: float
    """turns in the average pass"""


def capacities(cluster: Cluster) -> dict[str, float]:
    """Turns a second that each station could do at most, were it never without work."""
    c = cluster
    full_pass = c.pass_s + c.token_s * c.max_batch_size
    turn_s = c.turn_tokens * full_pass / c.max_batch_size + c.new_prompt_tokens / c.prefill_tokens_per_s
    return {
        "workers": c.num_workers / c.step_s if c.step_s else float("inf"),
        "collector": 1 / c.collector_s,
        "model": c.num_replicas / turn_s,
    }


def limit(cluster: Cluster, outlook: Outlook) -> str:
    """The station that is full first, or that there are too few episodes to fill it."""
    at_most = capacities(cluster)
    first = min(at_most, key=lambda name: at_most[name])
    if outlook.turns_per_s > 0.8 * at_most[first]:
        return first
    return f"episodes in progress; then {first}"


class _Replica:
    """Turns under way: tokens that each still needs."""

    def __init__(self) -> None:
        self.running: dict[int, int] = {}
        self.waiting: deque[int] = deque()
        self.busy = False
        self.busy_s = 0.0
        self.num_passes = 0
        self.num_tokens = 0


def simulate(cluster: Cluster, seed: int = 0) -> Outlook:
    """Play the episodes through the queue."""
    c, rng, tie = cluster, random.Random(seed), itertools.count()
    shape = 1 / c.step_spread**2 if c.step_spread else 0.0
    events: list[tuple[float, int, str, int]] = []
    replicas = [_Replica() for _ in range(c.num_replicas)]
    queues: list[deque[int]] = [deque() for _ in range(c.num_workers)]
    worker_busy = [False] * c.num_workers
    turns: deque[int] = deque()  # ready, not yet taken by the collector
    answers: deque[int] = deque()  # of worlds, likewise
    asked = 0  # turns that the model works on
    collector = "waits"
    busy = {"workers": 0.0, "collector": 0.0}
    turns_left: dict[int, int] = {}
    num_begun = num_turns = 0
    now = 0.0

    def at(delay: float, what: str, who: int) -> None:
        heapq.heappush(events, (now + delay, next(tie), what, who))

    def start_worker(worker: int) -> None:
        if queues[worker] and not worker_busy[worker]:
            worker_busy[worker] = True
            spent = rng.gammavariate(shape, c.step_s / shape) if shape and c.step_s else c.step_s
            busy["workers"] += spent
            at(spent, "stepped", queues[worker].popleft())

    def take(ready: deque[int], what: str) -> None:
        """Work through everything that is ready; each piece goes out as soon as it is done."""
        nonlocal collector
        collector = what
        spent = 0.0
        while ready:
            spent += c.collector_s / 2
            at(spent, "ask" if what == "gathering" else "play", ready.popleft())
        busy["collector"] += spent
        at(spent, "collected", 0)

    def wake() -> None:
        """The loop of ``Collector``: wait for a turn where one is asked for, for a world's answer otherwise."""
        if collector != "waits":
            return
        if turns:
            take(turns, "taking turns")
        elif answers and not asked:
            take(answers, "gathering")

    def start_pass(number: int) -> None:
        replica = replicas[number]
        if replica.busy:
            return
        begun = 0
        while replica.waiting and len(replica.running) < c.max_batch_size:
            replica.running[replica.waiting.popleft()] = c.turn_tokens
            begun += 1
        if replica.running:
            spent = c.pass_s + c.token_s * len(replica.running) + begun * c.new_prompt_tokens / c.prefill_tokens_per_s
            replica.busy, replica.busy_s = True, replica.busy_s + spent
            replica.num_passes += 1
            replica.num_tokens += len(replica.running)
            at(spent, "passed", number)

    def begin() -> None:
        nonlocal num_begun
        if num_begun < c.num_episodes:
            turns_left[num_begun] = c.num_turns
            at(c.message_s, "arrived", num_begun)
            num_begun += 1

    for _ in range(c.num_envs):
        begin()
    while events:
        now, _, what, who = heapq.heappop(events)
        if what == "collected":
            previous, collector = collector, "waits"
            if previous == "taking turns" and answers:
                take(answers, "gathering")
        elif what == "ask":
            if turns_left[who]:
                asked += 1
                replicas[who % c.num_replicas].waiting.append(who)
                start_pass(who % c.num_replicas)
            else:
                begin()
        elif what == "play":
            at(c.message_s, "arrived", who)
        elif what == "arrived":
            queues[who % c.num_workers].append(who)
            start_worker(who % c.num_workers)
        elif what == "stepped":
            worker_busy[who % c.num_workers] = False
            start_worker(who % c.num_workers)
            at(c.message_s, "answered", who)
        elif what == "answered":
            answers.append(who)
        else:
            replica = replicas[who]
            replica.busy = False
            for episode in [e for e, left in replica.running.items() if left == 1]:
                del replica.running[episode]
                turns_left[episode] -= 1
                num_turns += 1
                asked -= 1
                turns.append(episode)
            for episode in replica.running:
                replica.running[episode] -= 1
            start_pass(who)
        wake()
    passes = sum(r.num_passes for r in replicas)
    return Outlook(
        seconds=now,
        turns_per_s=num_turns / now,
        tokens_per_s=num_turns * c.turn_tokens / now,
        workers=busy["workers"] / now / c.num_workers,
        collector=busy["collector"] / now,
        replicas=sum(r.busy_s for r in replicas) / now / c.num_replicas,
        batch_size=sum(r.num_tokens for r in replicas) / max(1, passes),
    )


# -- validation ------------------------------------------------------------------------------------------------


class Waiting(World):
    """A world whose steps wait; the times of an episode's steps are drawn from its seed."""

    name, version = "waiting", "1"
    can_save = True

    def __init__(self, num_steps: int, step_s: float, spread: float) -> None:
        self.num_steps, self.step_s, self.spread = num_steps, step_s, spread
        self._left = num_steps
        self._rng = random.Random(0)

    def task_ids(self, split: str) -> Sequence[str]:
        return tuple(f"task-{i}" for i in range(4096))

    def start(self, task_id: str, seed: int) -> Outcome:
        self._left, self._rng = self.num_steps, random.Random(f"{task_id}/{seed}")
        self._wait()
        return Outcome(observation="Begin.")

    def act(self, action: str) -> Outcome:
        self._wait()
        self._left -= 1
        return Outcome(observation="Go on.", over=self._left == 0, won=self._left == 0, score=float(self._left == 0))

    @property
    def goal(self) -> str:
        return "Wait."

    def _wait(self) -> None:
        shape = 1 / self.spread**2 if self.spread else 0.0
        time.sleep(self._rng.gammavariate(shape, self.step_s / shape) if shape else self.step_s)

    def admissible_actions(self) -> tuple[str, ...]:
        return ("go on",)

    def save(self) -> object:
        return self._left

    def load(self, token: object) -> None:
        self._left = token  # type: ignore[assignment]


@dataclass(frozen=True)
class MakeWaiting:
    """Picklable, for worker processes."""

    num_steps: int
    step_s: float
    spread: float

    def __call__(self) -> TextEnv:
        return TextEnv(Waiting(self.num_steps, self.step_s, self.spread), horizon=self.num_steps)


class TimedAgent:
    """A streaming agent whose replicas take the passes of ``Cluster`` in threads that sleep."""

    needs: frozenset[str] = frozenset()

    def __init__(self, cluster: Cluster) -> None:
        import queue
        import threading

        self.name, self.cluster = "timed", cluster
        self.ready: queue.Queue[str] = queue.Queue()
        self.inboxes: list[queue.Queue[str | None]] = [queue.Queue() for _ in range(cluster.num_replicas)]
        self.home: dict[str, int] = {}
        self.num_open = 0
        self.threads = [threading.Thread(target=self._serve, args=(box,), daemon=True) for box in self.inboxes]
        for thread in self.threads:
            thread.start()

    def _serve(self, inbox: object) -> None:
        c = self.cluster
        running: dict[str, int] = {}
        until = time.perf_counter()
        while True:
            begun = 0
            while len(running) < c.max_batch_size and (not running or not inbox.empty()):  # type: ignore[attr-defined]
                if not running:
                    name = inbox.get()  # type: ignore[attr-defined]
                    until = time.perf_counter()
                else:
                    name = inbox.get_nowait()  # type: ignore[attr-defined]
                if name is None:
                    return
                running[name] = c.turn_tokens
                begun += 1
            # Until a moment, not for a time: a late wake-up does not add up.
            until += c.pass_s + c.token_s * len(running) + begun * c.new_prompt_tokens / c.prefill_tokens_per_s
            time.sleep(max(0.0, until - time.perf_counter()))
            for done in [name for name, left in running.items() if left == 1]:
                del running[done]
                self.ready.put(done)
            for name in running:
                running[name] -= 1

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        raise NotImplementedError

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        for request in requests:
            replica = self.home.setdefault(request.episode_id, len(self.home) % len(self.inboxes))
            self.inboxes[replica].put(request.episode_id)
            self.num_open += 1

    def poll(self) -> list[tuple[str, Turn | Exception]]:
        found: list[tuple[str, Turn | Exception]] = []
        while self.num_open and (not found or not self.ready.empty()):
            name = self.ready.get()
            self.num_open -= 1
            found.append((name, Turn(text=render_turn("", "go on"), num_sampled_tokens=self.cluster.turn_tokens)))
        return found

    def release(self, episode_ids: Iterable[str]) -> None:
        return None

    def close(self) -> None:
        for box in self.inboxes:
            box.put(None)


def play(cluster: Cluster) -> float:
    """Turns a second of the real collector; starting workers and the first reset are not in the time."""
    agent = TimedAgent(cluster)
    make = MakeWaiting(cluster.num_turns, cluster.step_s, cluster.step_spread)
    requests = [EpisodeRequest(task_id=f"task-{i}", seed=i) for i in range(cluster.num_episodes)]
    with Processes(num_workers=cluster.num_workers) as executor:
        with Collector(make, agent, num_envs=cluster.num_workers, executor=executor) as collector:
            collector.run(requests[: cluster.num_workers])  # every worker has started
        with Collector(make, agent, num_envs=cluster.num_envs, executor=executor) as collector:
            before = time.perf_counter()
            episodes = collector.run(requests)
            seconds = time.perf_counter() - before
    agent.close()
    assert all(len(e.trajectory) == cluster.num_turns for e in episodes), episodes[0].trajectory.error
    return cluster.num_episodes * cluster.num_turns / seconds


CASES = {
    "worlds slow": Cluster(num_envs=16, num_episodes=64, num_workers=4, step_s=0.02),
    "worlds slow, one worker each": Cluster(num_envs=8, num_episodes=32, num_workers=8, step_s=0.05, step_spread=1.0),
    "model slow": Cluster(num_envs=32, num_episodes=64, num_workers=2, step_s=0.002, pass_s=0.01, token_s=5e-4),
    "model slow, two replicas": Cluster(
        num_envs=32, num_episodes=64, num_workers=2, step_s=0.002, pass_s=0.01, token_s=5e-4, num_replicas=2
    ),
    "batch full": Cluster(
        num_envs=64, num_episodes=128, num_workers=2, step_s=0.002, pass_s=0.01, token_s=2e-4, max_batch_size=16
    ),
    "long prompts": Cluster(
        num_envs=16, num_episodes=48, num_workers=4, step_s=0.01, pass_s=0.01, new_prompt_tokens=400
    ),
    "both busy": Cluster(num_envs=24, num_episodes=72, num_workers=4, step_s=0.03, pass_s=0.006, token_s=3e-4),
    "four episodes": Cluster(num_envs=4, num_episodes=16, num_workers=4, step_s=0.03, pass_s=0.006, token_s=3e-4),
}


def measure_collector(num_turns: int = 4000) -> float:
    """The collector's own seconds for a turn, with one worker whose world and a model that take no time."""
    cluster = Cluster(
        num_envs=64, num_episodes=num_turns // 20, num_workers=1, step_s=0.0, step_spread=0.0, pass_s=0.0, token_s=0.0,
        new_prompt_tokens=0, turn_tokens=1,
    )  # fmt: skip
    return 1 / play(cluster)


def validate(repeats: int) -> None:
    """Print simulated and measured turns a second."""
    collector_s = statistics.median(measure_collector() for _ in range(repeats))
    print(f"{machine_line()}; the collector's own time, measured first: {collector_s * 1e6:.0f} us a turn\n")
    print("| case | simulated turns/s | measured turns/s | simulated / measured | limited by |")
    print("|---|---:|---:|---:|---|")
    for name, case in CASES.items():
        cluster = dataclasses.replace(case, collector_s=collector_s, num_turns=8)
        outlook = simulate(cluster)
        measured = statistics.median(play(cluster) for _ in range(repeats))
        ratio = outlook.turns_per_s / measured
        print(
            f"| {name} | {outlook.turns_per_s:,.0f} | {measured:,.0f} | {ratio:.2f} | {limit(cluster, outlook)} |",
            flush=True,
        )


# -- plans -----------------------------------------------------------------------------------------------------


def show(cluster: Cluster, name: str) -> None:
    """One line of the plan."""
    o, at_most = simulate(cluster), capacities(cluster)
    print(
        f"| {name} | {o.turns_per_s:,.0f} | {o.tokens_per_s:,.0f} | {at_most['workers']:,.0f} | {at_most['collector']:,.0f} "
        f"| {at_most['model']:,.0f} | {o.batch_size:.0f} | {limit(cluster, o)} |",
        flush=True,
    )


HEAD = (
    "| cluster | turns/s | sampled tokens/s | workers' limit | collector's limit | model's limit | turns in a pass "
    "| limited by |\n|---|---:|---:|---:|---:|---:|---:|---|"
)


def plan(base: Cluster) -> None:
    """1,000 environments and a 7B model on 8 GPUs, 32 nodes of workers, and what changes when a part grows."""
    print(HEAD)
    show(base, "as planned")
    for name, changes in {
        "16 replicas": {"num_replicas": 16},
        "4 replicas": {"num_replicas": 4},
        "250 environments": {"num_envs": 250, "num_episodes": 1000},
        "4,000 environments": {"num_envs": 4000, "num_episodes": 8000},
        "128 workers (4 nodes)": {"num_workers": 128},
        "worlds of 1 s a step": {"step_s": 1.0},
        "household's worlds (20 us)": {"step_s": 2e-5},
        "turns of 200 tokens": {"turn_tokens": 200},
        "32 replicas, 4,000 environments": {"num_replicas": 32, "num_envs": 4000, "num_episodes": 8000},
    }.items():
        show(dataclasses.replace(base, **changes), name)  # type: ignore[arg-type]


PLANNED = Cluster(
    num_envs=1000,
    num_episodes=3000,
    num_turns=20,
    num_workers=1024,  # 32 nodes of 32 cores
    step_s=0.011,  # ScienceWorld's, results/executors.md
    message_s=5e-4,  # a network between nodes
    collector_s=1.8e-4,  # measured by --validate on the machine of docs/capacity.md
    num_replicas=8,
    max_batch_size=256,
    turn_tokens=40,
    new_prompt_tokens=60,
    pass_s=0.007,  # 15 GB of weights in 16 bits at 2 TB/s and more
    token_s=3e-5,
    prefill_tokens_per_s=20_000.0,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    for field in dataclasses.fields(Cluster):
        kind = int if field.type == "int" else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=None)
    args = parser.parse_args()
    changes = {f.name: v for f in dataclasses.fields(Cluster) if (v := getattr(args, f.name)) is not None}
    if args.validate:
        validate(args.repeats)
    elif args.plan:
        plan(dataclasses.replace(PLANNED, **changes))
    else:
        print(HEAD)
        show(dataclasses.replace(Cluster(), **changes), "given")


if __name__ == "__main__":
    main()
