"""What step rewards cost at the same detection quality, and which part of the saving comes from what.

    python benchmarks/step_reward_cost.py [--sites 100] [--batches 4] [--out benchmarks/results/step_rewards.md]

Both goals on planted deviations (see ``detector.py``), an ablation that adds one saving at a time, and the limits:
the best sequential design that could know the distribution of values, and Wald's test.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _detection import Method, Result, check_player, rates, resampled, run
from _limit import CheckContext, fewest_samples, wald_samples
from _machine import machine_line
from _planted import Household, PlantedAgent, find_sites, make_cases
from detector import BY_MEANS, CAREFUL, CHEAP, OURS, interval

from steca_gym.calibration import StepRewardSettings, load_preset


def ablation() -> list[Method]:
    """From the paper's procedure to ours, one saving after the other."""
    paper, fixed = load_preset("paper").calibration, load_preset("paper").step_rewards
    every = dataclasses.replace(paper, value_every_step=False, value_expert_step=False, detector="every")
    first = dataclasses.replace(paper, value_every_step=False, value_expert_step=False)
    looked_up = dataclasses.replace(fixed, reuse="history", same_state="sample")
    patient = dataclasses.replace(looked_up, max_length_ratio=CHEAP.max_length_ratio)

    def race(**changes: Any) -> StepRewardSettings:
        return dataclasses.replace(CHEAP, count_greedy_rollout=False, **changes)

    pairs = race(test="pairs", alpha=0.2, beta=0.3, min_effect=0.4, max_samples=6)
    return [
        Method("fixed N = 5, every step, by replay (`paper`)", paper, fixed, replays=True),
        Method("forks instead of replays", paper, fixed),
        Method("ask first: only where the agent acts otherwise", every, fixed),
        Method("up to the first deviation", first, fixed),
        Method("known states looked up", first, looked_up),
        Method(f"max_length_ratio {CHEAP.max_length_ratio}", first, patient),
        Method("racing by pairs", BY_MEANS, pairs),
        Method("racing by the likelihood ratio", BY_MEANS, race()),
        Method("the greedy rollout counts (`racing, cheap`)", BY_MEANS, CHEAP),
        Method(
            "the minimum: ask, play the greedy rollout, draw a step",
            dataclasses.replace(OURS, detector="random"),
            StepRewardSettings(),
        ),
    ]


def against_few() -> list[Method]:
    """The first goal's sides."""
    paper, fixed = load_preset("paper").calibration, load_preset("paper").step_rewards
    return [
        Method("fixed N = 5 by replay", paper, fixed, replays=True, margins=(-0.2,)),
        Method("racing, default rates", OURS, StepRewardSettings()),
        Method("racing, cheap", BY_MEANS, CHEAP),
    ]


def against_many(large: int) -> list[Method]:
    """The second goal's sides."""
    paper = load_preset("paper").calibration
    many = dataclasses.replace(load_preset("paper").step_rewards, num_samples=large)
    return [
        Method(f"fixed N = {large} by replay", paper, many, replays=True, margins=(-0.05, -0.1, -0.15)),
        Method("racing, careful", BY_MEANS, CAREFUL),
    ]


def rows(results: Sequence[Result]) -> str:
    """Quality and cost of each, relative to the first; Markdown."""
    base = results[0]
    lines = [
        "| | precision | recall | F1 | rollouts per trajectory | tokens | env steps paid | tokens, of the first | env steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        p, recall, f1 = rates(r.by_site().sum(axis=0))
        lines.append(
            f"| {r.name} | {p:.3f} | {recall:.3f} | {f1:.3f} | {r.samples / len(r.found):.1f} | {r.tokens} "
            f"| {r.steps_paid} | 1/{base.tokens / r.tokens:.1f} | 1/{base.steps_paid / r.steps_paid:.1f} |"
        )
    return "\n".join(lines)


def verdict(results: Sequence[Result], goal: int) -> str:
    """The first against the last in words, with intervals of the paired differences; then the best margin."""
    draws, ours = resampled(results), results[-1]
    lines = []
    best = max((r for r in results if r.margin is not None), key=lambda r: rates(r.by_site().sum(axis=0))[2])
    for peer, why in ((results[0], f"goal: 1/{goal} of the tokens"), (best, "the best margin, in hindsight")):
        gap = draws[-1] - draws[results.index(peer)]
        now = rates(ours.by_site().sum(axis=0)) - rates(peer.by_site().sum(axis=0))
        gaps = ", ".join(
            f"{name} {now[i]:+.3f} ({interval(gap[:, i])})" for i, name in enumerate(("precision", "recall", "F1"))
        )
        lines.append(
            f"- `{ours.name}` against `{peer.name}` ({why}): 1/{peer.tokens / ours.tokens:.1f} of the tokens, "
            f"1/{peer.steps_paid / ours.steps_paid:.1f} of the environment steps; {gaps}."
        )
    return "\n".join(lines)


def limits(sites: Any, lapse: float, house: Household, batches: Sequence[int], results: Sequence[Result]) -> str:
    """Rollouts per comparison: ours, the best design, Wald's test."""
    drops, nulls = [], []
    for batch in batches:
        cases = make_cases(sites, batch)
        agent = PlantedAgent(cases, house, lapse)
        for case in cases:
            for t, plant in case.plants.items():
                path = case.expert.actions[:t]
                pair = agent.value(case, path), agent.value(case, (*path, plant.action))
                (nulls if plant.kind.startswith("harmless") else drops).append(pair)
    of_drop, of_null = np.array(drops), np.array(nulls)
    p, q = of_drop.mean(axis=0)
    lines = [
        f"{len(drops)} wrong actions, mean values {p:.2f} before and {q:.2f} after; {len(nulls)} harmless ones, "
        f"{of_null[:, 0].mean():.2f} and {of_null[:, 1].mean():.2f}.",
        "",
        "| | misses | false alarms | rollouts per comparison | best design with the same errors | Wald, values known, by pairs |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        on_wrong = [f == t for f, t in zip(r.found, r.truth, strict=True) if t is not None]
        miss, alarm = 1 - float(np.mean(on_wrong)), r.false_on_harmless / max(1, r.num_harmless)
        cap = 12 if r.method.rewards.max_samples <= 12 or r.method.rewards.estimator == "fixed" else 20
        best = fewest_samples(CheckContext(of_drop, of_null, cap), miss, alarm)
        null, drop = wald_samples(p, q, max(alarm, 1e-3), max(miss, 1e-3))
        share = len(drops) / (len(drops) + len(nulls))
        lines.append(
            f"| {r.name} | {miss:.3f} | {alarm:.3f} | {r.per_comparison:.1f} | "
            + (
                f"{best.samples:.1f} ({best.miss:.3f}, {best.false_alarm:.3f})"
                if best
                else f"none within {cap} a state"
            )
            + f" | {share * drop + (1 - share) * null:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=100, help="expert trajectories of at least 8 steps")
    parser.add_argument("--batches", type=int, default=4, help="times that each is planted into again")
    parser.add_argument("--first-batch", type=int, default=40, help="the settings were chosen on others")
    parser.add_argument("--large-batches", type=int, default=2, help="the same where the large N is run")
    parser.add_argument("--lapse", type=float, nargs="*", default=[0.05, 0.1], help="of the agent, per turn")
    parser.add_argument("--large", type=int, default=100)
    parser.add_argument("--out", type=Path, help="also write here")
    args = parser.parse_args()
    started, house = time.perf_counter(), Household()
    sites = find_sites(args.sites, 8)
    batches = range(args.first_batch, args.first_batch + args.batches)
    parts = []
    for lapse in args.lapse:
        check_player(sites, house, lapse)
        few = run(sites, against_few(), batches=batches, lapse=lapse, house=house)
        many_batches = range(args.first_batch, args.first_batch + args.large_batches)
        many = run(sites, against_many(args.large), batches=many_batches, lapse=lapse, house=house)
        steps = run(sites, ablation(), batches=batches, lapse=lapse, house=house)
        often = run(
            sites, [ablation()[0], *ablation()[-3:-1]], batches=batches, lapse=lapse, house=house, num_harmless=3
        )
        parts += [
            f"## An agent that loses the thread in {lapse:.0%} of its turns",
            f"{len(few[0].found)} trajectories, {sum(t is not None for t in few[0].truth)} with a wrong action:",
            verdict(few, 10),
            rows(few),
            f"{len(many[0].found)} trajectories, {sum(t is not None for t in many[0].truth)} with a wrong action:",
            verdict(many, 50),
            rows(many),
            "### Which saving comes from what",
            rows(steps),
            "### An agent that acts otherwise at up to three more steps of each trajectory, harmlessly",
            rows(often),
            "### Limits",
            limits(sites, lapse, house, many_batches, [few[0], few[-2], few[-1], many[0], many[-1]]),
        ]
    parts.append(f"{time.perf_counter() - started:.0f} s in all")
    text = "\n\n".join([f"Machine: {machine_line('numpy', 'gymnasium')}", *parts])
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
