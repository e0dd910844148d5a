"""Runs detectors over planted cases and scores them: precision, recall, distance, errors per comparison, costs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from _planted import KINDS, Case, Household, PlantedAgent, PlantedPlayer, Site, make_cases, make_env
from numpy.typing import NDArray

from steca_gym.calibration import (
    CalibrationSettings,
    Detection,
    Exploration,
    StepRewardSettings,
    detect,
    explore,
    load_preset,
)
from steca_gym.calibration.records import StepVerdict
from steca_gym.collectors.collector import Collector
from steca_gym.collectors.episodes import EpisodeRequest

Array = NDArray[np.float64]
DEVIATING = ("deviated", "fatal")


@dataclass(frozen=True)
class Method:
    """A detector with its settings."""

    name: str
    calibration: CalibrationSettings
    rewards: StepRewardSettings
    replays: bool = False
    """reaches every state by replaying its prefix from the start"""
    other_samples: bool = False
    margins: tuple[float, ...] = ()
    """further results with these values of delta, read off the same samples (where every step is valued)"""


@dataclass
class Result:
    """What a method found over all cases, and what it cost."""

    method: Method
    found: list[int | None] = field(default_factory=list)
    """per case, the step of the first deviation"""
    truth: list[int | None] = field(default_factory=list)
    site: list[int] = field(default_factory=list)
    kinds: dict[str, list[int]] = field(default_factory=dict)
    false_on_harmless: int = 0
    num_harmless: int = 0
    """harmless planted steps that were looked at"""
    tokens: int = 0
    env_steps: int = 0
    replayed: int = 0
    samples: int = 0
    ties: int = 0
    undecided: int = 0
    compared: int = 0
    null: list[str] = field(default_factory=list)
    """verdicts of the comparisons whose true values do not drop at all"""
    drop: list[str] = field(default_factory=list)
    """verdicts of the comparisons whose true values drop by 0.3 or more"""
    seconds: float = 0.0
    margin: float | None = None

    @property
    def name(self) -> str:
        """Of the method, with the margin."""
        return self.method.name if self.margin is None else f"{self.method.name}, delta = {self.margin}"

    @property
    def steps_paid(self) -> int:
        """Environment steps, replayed ones included where the method replays."""
        return self.env_steps + (self.replayed if self.method.replays else 0)

    @property
    def per_comparison(self) -> float:
        """Rollouts for a step at which the agent acts otherwise."""
        s = self.method.rewards
        return 2.0 * s.num_samples if s.estimator == "fixed" else self.samples / max(1, self.compared)

    def by_site(self) -> Array:
        """(found, right, wrong) per site, shape ``(n_sites, 3)``."""
        rows = np.zeros((max(self.site) + 1, 3))
        for site, found, truth in zip(self.site, self.found, self.truth, strict=True):
            rows[site] += (found is not None, truth is not None and found == truth, truth is not None)
        return rows

    @property
    def distances(self) -> list[int]:
        """Steps between the found and the planted one, where both are."""
        pairs = zip(self.found, self.truth, strict=True)
        return [abs(f - t) for f, t in pairs if f is not None and t is not None]


def rates(counts: Array) -> Array:
    """(precision, recall, F1) along the last axis of (found, right, wrong)."""
    found, right, wrong = np.moveaxis(counts, -1, 0)
    return np.stack(
        [right / np.maximum(found, 1), right / np.maximum(wrong, 1), 2 * right / np.maximum(found + wrong, 1)], axis=-1
    )


def resampled(results: Sequence[Result], num: int = 2000, seed: int = 0) -> Array:
    """Rates under the same resamples of the sites for all results, shape ``(n_results, num, 3)``."""
    sites = [r.by_site() for r in results]
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(sites[0]), np.full(len(sites[0]), 1 / len(sites[0])), size=num)
    return np.stack([rates(draws @ s) for s in sites])


def agreement(a: Result, b: Result) -> float:
    """Share of the cases in which both find the same step, or nothing."""
    return float(np.mean([x == y for x, y in zip(a.found, b.found, strict=True)]))


def _tell(line: str) -> None:
    print(line, flush=True)


def run(
    sites: Sequence[Site],
    methods: Sequence[Method],
    *,
    batches: Sequence[int],
    lapse: float,
    house: Household,
    num_harmless: int = 0,
    tell: Callable[[str], None] = _tell,
) -> list[Result]:
    """Every method over the same cases; a batch plants again into every site."""
    results = [Result(m) for m in methods]
    helped = {i: [Result(m, margin=d) for d in m.margins] for i, m in enumerate(methods)}
    began = time.perf_counter()
    for batch in batches:
        cases = make_cases(sites, batch, num_harmless)
        agent = PlantedAgent(cases, house, lapse)
        values: dict[tuple[int, int], tuple[float, float]] = {}
        for i, case in enumerate(cases):
            for t, plant in case.plants.items():
                path = case.expert.actions[:t]
                values[i, t] = agent.value(case, path), agent.value(case, (*path, plant.action))
        explored: dict[int, list[Exploration]] = {}
        for number, result in enumerate(results):
            method, started = result.method, time.perf_counter()
            key = method.calibration.skip_first_steps
            if key not in explored:
                collector = Collector(make_env, agent, num_envs=64)
                explored[key] = explore(collector, [c.expert for c in cases], method.calibration, batch)
            player = PlantedPlayer(agent)
            seed = batch + 10_000 * method.other_samples
            found = detect(player, explored[key], method.calibration, method.rewards, seed)
            for r in (result, *helped[number]):
                _score(r, cases, explored[key], found, values)
                r.tokens += player.num_tokens + sum(e.counts.num_sampled_tokens for e in explored[key])
                r.env_steps += player.num_steps + sum(e.counts.num_env_steps for e in explored[key])
                # To ask the agent at a step, and for every continuation.
                asked = sum(s.step for e in explored[key] for s in e.steps)
                r.replayed += player.num_replayed + asked
            result.seconds += time.perf_counter() - started
        tell(f"batch {batch}: {time.perf_counter() - began:.0f} s")
    results = [r for number, result in enumerate(results) for r in (result, *helped[number])]
    for r in results:
        p, recall, _ = rates(r.by_site().sum(axis=0))
        tell(f"{r.name}: P {p:.3f} R {recall:.3f}, {r.tokens} tokens, {r.seconds:.0f} s")
    return results


def _score(
    r: Result,
    cases: Sequence[Case],
    explored: Sequence[Exploration],
    found: Sequence[Detection],
    values: dict[tuple[int, int], tuple[float, float]],
) -> None:
    for i, (case, exploration, detection) in enumerate(zip(cases, explored, found, strict=True)):
        assert not exploration.error, exploration.error
        counts = detection.counts
        r.samples += counts.num_samples
        r.undecided += counts.num_undecided
        r.ties += counts.num_ties
        verdicts = detection.verdicts
        if r.margin is not None:
            verdicts = tuple(_with_margin(v, r.margin) for v in verdicts)
        at, truth = next((v.step for v in verdicts if v.verdict in DEVIATING), None), case.truth
        r.site.append(i)
        r.found.append(at)
        r.truth.append(truth)
        if at is not None and at in case.plants and case.plants[at].kind.startswith("harmless"):
            r.false_on_harmless += 1
        if truth is not None:
            r.kinds.setdefault(case.plants[truth].kind, []).append(int(at == truth))
        for v in verdicts:
            if v.step in case.plants and v.verdict != "same_action":
                r.compared += 1
                r.num_harmless += case.plants[v.step].kind.startswith("harmless")
                before, after = values[i, v.step]
                if after >= before - 1e-9:
                    r.null.append(_plain(v.verdict))
                elif after <= before - 0.3:
                    r.drop.append(_plain(v.verdict))


def _plain(verdict: str) -> str:
    return "deviated" if verdict == "fatal" else verdict


def _with_margin(v: StepVerdict, delta: float) -> StepVerdict:
    if v.verdict == "same_action" or v.expert_reward is None or v.agent_reward is None:
        return v
    gap = v.agent_reward.mean - v.expert_reward.mean - delta
    return dataclasses.replace(v, verdict="deviated" if gap < -1e-9 else "kept")


def methods_of_the_source(*, large: int = 100) -> list[Method]:
    """Both readings of the reference and fixed N, all by replaying."""
    paper = load_preset("paper").calibration
    # Household actions have no other words: the cosine rule would need an encoder and change nothing.
    repo = load_preset("repo", same_action="exact").calibration
    fixed = load_preset("paper").step_rewards

    def of(num: int, *margins: float) -> Method:
        settings = dataclasses.replace(fixed, num_samples=num)
        return Method(f"fixed N = {num}", paper, settings, replays=True, margins=margins)

    return [  # the first two are looked for by place
        Method("`paper` (fixed N = 5)", paper, fixed, replays=True, margins=(-0.2, -0.4)),
        Method("`paper`, other samples", paper, fixed, replays=True, other_samples=True),
        Method("`repo` (fixed N = 5)", repo, fixed, replays=True),
        of(20, -0.1, -0.2),
        of(large, -0.05, -0.1, -0.15),
    ]


def check_player(sites: Sequence[Site], house: Household, lapse: float) -> str:
    """Whether the player's detections, tokens and steps are the collector's; raises AssertionError."""
    cases = make_cases(sites[:12], 77)
    agent = PlantedAgent(cases, house, lapse)
    settings = CalibrationSettings(require_failure=False)
    rewards = StepRewardSettings(estimator="fixed", num_samples=4)
    collector = Collector(make_env, agent, num_envs=64)
    explored = explore(collector, [c.expert for c in cases], settings, 5)
    before = collector.ledger.cost.num_sampled_tokens
    real = detect(collector, explored, settings, rewards, 5)
    player = PlantedPlayer(agent)
    played = detect(player, explored, settings, rewards, 5)
    assert [d.verdicts for d in real] == [d.verdicts for d in played]
    assert sum(d.counts.num_env_steps for d in real) == sum(d.counts.num_env_steps for d in played)
    assert collector.ledger.cost.num_sampled_tokens - before == player.num_tokens
    return f"{sum(len(d.verdicts) for d in real)} verdicts with their outcomes, tokens and steps"


def check_values(sites: Sequence[Site], house: Household, lapse: float, num: int = 2000) -> float:
    """Largest gap of the exact value and the mean of ``num`` played continuations, in standard errors."""
    cases = make_cases(sites[:24], 78)
    agent = PlantedAgent(cases, house, lapse)
    explored = explore(Collector(make_env, agent, num_envs=64), [c.expert for c in cases], CalibrationSettings(), 6)
    worst = 0.0
    for case, exploration in zip(cases, explored, strict=True):
        player = PlantedPlayer(agent)
        task = case.expert.task_id
        won = [
            player.play(
                EpisodeRequest(task_id=task, seed=i, start=exploration.forks[0], max_agent_turns=40)
            ).trajectory.won
            for i in range(num)
        ]
        exact = agent.value(case, ())
        worst = max(worst, abs(float(np.mean(won)) - exact) / np.sqrt(max(exact * (1 - exact), 1e-3) / num))
    return worst


__all__ = ["KINDS", "Method", "Result", "agreement", "check_player", "check_values", "methods_of_the_source"]
