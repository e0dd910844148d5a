"""Does the deviation detector find planted wrong actions, and what does it cost?

    python benchmarks/detector.py [--tasks 200] [--seed 0] [--out benchmarks/results/detector.md]

Wrong and harmless actions are planted into the expert's way through household games. The agent is scripted,
so that the true value of every state is known exactly (see ``PlantedAgent``). Every method runs through the
library's own ``explore`` and ``detect``; costs are what the collector counted. Knows nothing of language
models.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import steca_gym.envs  # noqa: F401 - registers
from _machine import machine_line
from steca_gym.agents.scripted import ExpertAgent
from steca_gym.envs.alfworld.oracle import plan

from steca_gym.agent import Need, Turn, TurnRequest, render_turn
from steca_gym.calibration import (
    CalibrationSettings,
    Detection,
    Exploration,
    StepRewardSettings,
    detect,
    explore,
)
from steca_gym.collectors.collector import Collector
from steca_gym.collectors.episodes import EpisodeRequest
from steca_gym.env import TextEnv
from steca_gym.step_rewards import derive_seed
from steca_gym.trajectory import Trajectory

HORIZON = 30
KINDS = ("wrong object", "wrong place", "skipped step", "irreversible")
# How likely the agent loses the thread right behind the planted action, drawn evenly from the range.
CONFUSION = {
    "wrong object": (0.4, 0.8),
    "wrong place": (0.3, 0.7),
    "skipped step": (0.4, 0.9),
    "irreversible": (1.0, 1.0),
    "harmless": (0.0, 0.0),
    "harmless change": (0.0, 0.0),
}
LAPSE = 0.04
"""probability per turn that the agent loses the thread anywhere"""
TAKEN = 0.3
"""probability that the sampled agent takes a planted action where the greedy one always does"""
LOST = "I have lost the thread."


def make_env() -> TextEnv:
    """A household."""
    env = gymnasium.make("steca_gym.envs:steca/Household-v0", horizon=HORIZON, num_train_tasks=4000).unwrapped
    assert isinstance(env, TextEnv)
    return env


@dataclass(frozen=True)
class Plant:
    """An action planted into an expert's trajectory."""

    kind: str
    step: int
    action: str
    confusion: float


@dataclass
class Case:
    """An expert trajectory with what was planted into it."""

    expert: Trajectory
    plants: dict[int, Plant] = field(default_factory=dict)

    @property
    def truth(self) -> int | None:
        """The step of the wrong action, None without one."""
        return next((p.step for p in self.plants.values() if not p.kind.startswith("harmless")), None)


class PlantedAgent:
    """Follows the world's expert; takes planted actions; now and then it loses the thread and then only
    looks around.

    * On the expert's way, at a planted step: greedy takes the planted action; sampled, with probability
    TAKEN. * Right behind a planted action it loses the thread with the plant's confusion, anywhere else with
    LAPSE. * Lost is for good. So the value of a state is the product of the chances along the world expert's
    way. * Greedy loses the thread in fixed states (a hash), as often over states as the sampled one does
    over samples.

    Words stand for tokens.
    """

    name, needs = "planted", frozenset[Need]()

    def __init__(self, cases: Iterable[Case]) -> None:
        self.cases = {c.expert.task_id: c for c in cases}
        self.by_first = {c.expert.first_observation: c for c in cases}
        self.env = make_env()
        self.known: dict[tuple[str, tuple[str, ...]], tuple[Any, str, str]] = {}

    def ask(self, task: str, actions: tuple[str, ...]) -> tuple[Any, str, str]:
        """(snapshot, expert's action, expert's thought) behind a history, remembered."""
        found = self.known.get((task, actions))
        if found is None:
            if actions:
                self.env.restore(self.ask(task, actions[:-1])[0])
                self.env.step(actions[-1])
            else:
                self.env.reset(seed=0, options={"task_id": task})
            found = (self.env.snapshot(), self.env.expert_action() or "look", self.env.expert_thought())
            self.known[(task, actions)] = found
        return found

    def chance(self, case: Case, actions: tuple[str, ...]) -> float:
        """Probability of losing the thread in the turn behind a history."""
        t = len(actions) - 1
        plant = case.plants.get(t) if t >= 0 else None
        fresh = plant is not None and actions[:t] == case.expert.actions[:t] and actions[t] == plant.action
        return plant.confusion if fresh and plant is not None else LAPSE

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        return [self._turn(r) for r in requests]

    def _turn(self, request: TurnRequest) -> Turn:
        case = self.by_first[request.messages[0].content]
        turns = [m.content for m in request.messages if m.role == "assistant"]
        if turns and turns[-1].startswith(f"Thought: {LOST}"):
            return self._say(LOST, "look")
        actions = tuple(t.rsplit("Action: ", 1)[1] for t in turns)
        greedy = request.sampling.temperature == 0
        rng = random.Random(f"{request.seed}/{request.turn}")
        plant = case.plants.get(len(actions))
        if plant is not None and actions == case.expert.actions[: len(actions)]:
            if greedy or rng.random() < TAKEN:
                return self._say("I have an idea.", plant.action)
        if not greedy or actions != case.expert.actions[: len(actions)]:
            # A greedy agent repeats the expert on the expert's way: what it knows by heart.
            state = random.Random(f"greedy/{case.expert.task_id}/{actions}") if greedy else rng
            if state.random() < self.chance(case, actions):
                return self._say(LOST, "look")
        _, action, thought = self.ask(case.expert.task_id, actions)
        return self._say(thought, action)

    @staticmethod
    def _say(thought: str, action: str) -> Turn:
        text = render_turn(thought, action)
        return Turn(text=text, num_sampled_tokens=len(text.split()))

    def release(self, episode_ids: Iterable[str]) -> None:
        return None

    def value(self, case: Case, actions: tuple[str, ...]) -> float:
        """The exact probability that the sampled agent wins from behind a history."""
        if len(actions) >= HORIZON:
            return 0.0
        snapshot, action, _ = self.ask(case.expert.task_id, actions)
        if snapshot.last.won:
            return 1.0
        ahead = (1 - self.chance(case, actions)) * self.value(case, (*actions, action))
        plant = case.plants.get(len(actions))
        if plant is None or actions != case.expert.actions[: len(actions)]:
            return ahead
        return TAKEN * self.value(case, (*actions, plant.action)) + (1 - TAKEN) * ahead


def steps_left(env: TextEnv) -> int:
    """Length of the world expert's way on."""
    return len(plan(*env.world._live()) or ())  # type: ignore[attr-defined]


def plant(expert: Trajectory, env: TextEnv, kind: str, rng: random.Random) -> Plant | None:
    """A planted action of a kind somewhere along the expert's way, or None where there is no place for it.

    Wrong actions bring the world's expert no nearer to the goal; harmless ones take it no farther away, and
    of these the harmless changes change the world's state.
    """
    options: list[tuple[int, str]] = []
    env.reset(seed=0, options={"task_id": expert.task_id})
    for t, step in enumerate(expert.steps):
        here, key, left = env.snapshot(), env.state_key(), steps_left(env)
        verb, following = step.action.split()[0], expert.actions[t + 1] if t + 1 < len(expert) else ""
        for action in env.admissible_actions() or ():
            if action == step.action:
                continue
            fits = {
                "wrong object": verb == action.split()[0] == "take",
                "wrong place": verb in ("go", "move") and action.startswith("go to "),
                "skipped step": verb in ("take", "clean", "heat", "cool", "open")
                and (action == following or action.startswith("go to ")),
                "irreversible": True,
                "harmless": True,
                "harmless change": True,
            }[kind]
            if not fits:
                continue
            env.restore(here)
            env.step(action)
            changed, farther = env.state_key() != key, steps_left(env) - left
            if kind == "harmless" and not changed or kind == "harmless change" and changed and farther <= 0:
                options.append((t, action))
            if not kind.startswith("harmless") and changed and farther >= 0:
                options.append((t, action))
        env.restore(here)
        env.step(step.action)
    if not options:
        return None
    t, action = options[rng.randrange(len(options))]
    low, high = CONFUSION[kind]
    return Plant(kind=kind, step=t, action=action, confusion=rng.uniform(low, high))


def make_cases(count: int, seed: int, least: int) -> list[Case]:
    """Half with a wrong action (four kinds alike), half of all with harmless ones, a quarter with nothing
    planted.
    """
    env = make_env()
    ids = env.task_ids("train")[: (12 if least < 7 else 40) * count]
    played = Collector(make_env, ExpertAgent(), num_envs=32).run([EpisodeRequest(task_id=t, seed=0) for t in ids])
    # The agent knows a task by its first observation.
    by_first = {e.trajectory.first_observation: e.trajectory for e in played if e.trajectory.won}
    experts = [e for e in by_first.values() if len(e) >= least][:count]
    cases = []
    for i, expert in enumerate(experts):
        rng = random.Random(derive_seed(seed, expert.task_id))
        case = Case(expert)
        harmless = ["harmless", "harmless change"]
        wanted = [KINDS[i // 2 % 4], *([rng.choice(harmless)] if rng.random() < 0.5 else [])]
        if i % 2:
            wanted = harmless if i % 4 == 1 else []
        for kind in wanted:
            for _ in range(20):
                made = plant(expert, env, kind, rng)
                if made is None or made.step not in case.plants:
                    break
            if made is not None and made.step not in case.plants:
                case.plants[made.step] = made
        cases.append(case)
    return cases


@dataclass
class Score:
    """What a method found and what it cost."""

    name: str
    found: int = 0
    right: int = 0
    wrong_actions: int = 0
    distance: list[int] = field(default_factory=list)
    by_kind: dict[str, list[int]] = field(default_factory=dict)
    false_harmless: int = 0
    tokens: int = 0
    samples: int = 0
    env_steps: int = 0
    replayed: int = 0
    undecided: int = 0
    ties: int = 0
    seconds: float = 0.0

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        return self.right / self.wrong_actions if self.wrong_actions else 1.0

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def score(name: str, cases: Sequence[Case], explored: Sequence[Exploration], found: Sequence[Detection]) -> Score:
    """Compare with what was planted."""
    s = Score(name)
    for case, exploration, detection in zip(cases, explored, found, strict=True):
        assert not exploration.error, exploration.error
        counts = exploration.counts + detection.counts
        s.tokens += counts.num_sampled_tokens
        s.samples += counts.num_samples
        s.env_steps += counts.num_env_steps
        s.undecided += counts.num_undecided
        s.ties += counts.num_ties
        for v in detection.verdicts:  # what a procedure without forks replays from reset
            s.replayed += v.step if v.verdict != "same_action" or v.expert_reward else 0
            if v.expert_reward and v.agent_reward:
                s.replayed += v.step * len(v.expert_reward.outcomes) + (v.step + 1) * len(v.agent_reward.outcomes)
        at = detection.deviations[0] if detection.deviations else None
        truth = case.truth
        s.found += at is not None
        if at is not None and at in case.plants and case.plants[at].kind.startswith("harmless"):
            s.false_harmless += 1
        if truth is not None:
            s.wrong_actions += 1
            s.right += at == truth
            s.by_kind.setdefault(case.plants[truth].kind, []).append(int(at == truth))
            if at is not None:
                s.distance.append(abs(at - truth))
    return s


@dataclass(frozen=True)
class Method:
    """A detector with its settings."""

    name: str
    calibration: CalibrationSettings
    rewards: StepRewardSettings


def methods(large: int) -> list[Method]:
    """Both readings of the reference, fixed N, and racing at several settings."""
    paper, repo = CalibrationSettings.preset("paper"), CalibrationSettings.preset("repo", same_action="exact")
    ours = CalibrationSettings(require_failure=False)
    gated = CalibrationSettings()
    fixed = StepRewardSettings.preset("paper")

    def race(**changes: Any) -> StepRewardSettings:
        return StepRewardSettings(**{"same_state": "tie", **changes})

    by_mean = dataclasses.replace(ours, undecided_rule="mean")
    loose = {"alpha": 0.2, "beta": 0.3, "min_effect": 0.4}
    few = {**loose, "curtail": False, "patience": 2.0}
    return [
        Method("paper (fixed N=5)", paper, fixed),
        Method("paper, equal actions compared too", dataclasses.replace(paper, same_action="none"), fixed),
        Method("repo (fixed N=5)", repo, fixed),
        Method("fixed N=20", paper, dataclasses.replace(fixed, num_samples=20)),
        Method(f"fixed N={large}", paper, dataclasses.replace(fixed, num_samples=large)),
        Method("racing, default", ours, StepRewardSettings()),
        Method("racing, default, no-ops tie", ours, race()),
        Method("racing, default, no-ops tie, at most 40", ours, race(max_samples=40)),
        Method("racing, default, states shared", ours, race(reuse="state")),
        Method("racing, default, then by means", by_mean, race(curtail=False)),
        Method("racing, loose", ours, race(**loose)),
        *(
            Method(f"racing, loose, at most {n}, then by means", by_mean, race(max_samples=n, **few))
            for n in (4, 5, 6, 10, 16, 24)
        ),
        Method("racing after a failure (preset default)", gated, StepRewardSettings()),
        Method("racing after a failure, loose", gated, race(**loose)),
        Method("fixed N=5, asked first, first deviation", ours, StepRewardSettings(estimator="fixed")),
        Method("critic, else N=5", ours, race(estimator="critic", patience=2.0)),
        Method("random step", ours, StepRewardSettings(estimator="random")),
    ]


def run(cases: Sequence[Case], chosen: Sequence[Method], seed: int) -> list[Score]:
    """Every method on the same cases."""
    scores = []
    for method in chosen:
        agent = PlantedAgent(cases)
        collector = Collector(make_env, agent, num_envs=64)
        started = time.perf_counter()
        explored = explore(collector, [c.expert for c in cases], method.calibration, seed)
        found = detect(collector, explored, method.calibration, method.rewards, seed)
        result = score(method.name, cases, explored, found)
        result.tokens = collector.ledger.cost.num_sampled_tokens  # with what was abandoned under way
        result.seconds = time.perf_counter() - started
        scores.append(result)
        print(
            f"{method.name}: P {result.precision:.3f} R {result.recall:.3f}, {result.tokens} tokens, "
            f"{result.seconds:.0f} s",
            flush=True,
        )
    return scores


def check_values(cases: Sequence[Case], seed: int) -> str:
    """The scripted agent's exact values against Monte Carlo, on the planted steps."""
    agent = PlantedAgent(cases)
    drops: dict[str, list[float]] = {}
    worst = 0.0
    for case in cases:
        for t, p in case.plants.items():
            before = agent.value(case, case.expert.actions[:t])
            drop = before - agent.value(case, (*case.expert.actions[:t], p.action))
            drops.setdefault(p.kind, []).append(drop)
    collector = Collector(make_env, agent, num_envs=64)
    for case in cases[:12]:
        played = collector.run(
            [EpisodeRequest(task_id=case.expert.task_id, seed=derive_seed(seed, "check", i)) for i in range(400)]
        )
        mean = float(np.mean([e.trajectory.won for e in played]))
        exact = agent.value(case, ())
        worst = max(worst, abs(mean - exact) / math.sqrt(max(exact * (1 - exact), 0.01) / 400))
    lines = [
        f"{kind}: {len(d)} planted, true drop of the value median {np.median(d):.2f}, {min(d):.2f} to {max(d):.2f}"
        for kind, d in sorted(drops.items())
    ]
    return (
        "; ".join(lines) + f". Exact values against 400 episodes on 12 tasks: at most {worst:.1f} standard errors off."
    )


def table(scores: Sequence[Score], tasks: int) -> str:
    """Markdown."""
    base = scores[0]
    head = (
        "| method | precision | recall | F1 | distance | found of "
        + " / ".join(KINDS)
        + " | false on harmless | ties | undecided | samples | tokens | of paper's | env steps | + replay |"
    )
    lines = [head, "|" + "---|" * 14]
    for s in scores:
        kinds = " / ".join(f"{np.mean(s.by_kind.get(k, [0])):.2f}" for k in KINDS)
        far = f"{np.mean(s.distance):.2f}" if s.distance else "-"
        lines.append(
            f"| {s.name} | {s.precision:.3f} | {s.recall:.3f} | {s.f1:.3f} | {far} | {kinds} | {s.false_harmless} "
            f"| {s.ties} | {s.undecided} | {s.samples} | {s.tokens} | 1/{base.tokens / max(1, s.tokens):.1f} "
            f"| {s.env_steps} | {s.env_steps + s.replayed} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200, help="expert trajectories per table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large", type=int, default=100, help="the largest fixed N")
    parser.add_argument(
        "--least", type=int, nargs="*", default=[3, 8], help="tables for experts of at least so many steps"
    )
    parser.add_argument("--only", default="", help="methods whose name holds this")
    parser.add_argument("--out", type=Path, help="also write here")
    args = parser.parse_args()
    parts = []
    for least in args.least:
        cases = make_cases(args.tasks, args.seed, least)
        lengths = [len(c.expert) for c in cases]
        print(f"experts of at least {least} steps", flush=True)
        about = check_values(cases, args.seed)
        scores = run(cases, [m for m in methods(args.large) if args.only in m.name], args.seed)
        truths = sum(c.truth is not None for c in cases)
        parts.append(
            f"## Experts of at least {least} steps\n\n{len(cases)} trajectories, {min(lengths)} to {max(lengths)} "
            f"steps (mean {np.mean(lengths):.1f}); {truths} hold a wrong action. {about}\n\n{table(scores, len(cases))}\n"  # noqa: E501
        )
    text = "\n".join([f"Machine: {machine_line('numpy', 'gymnasium')}", "", *parts])
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
