"""Does the deviation detector find planted wrong actions, at which error rates, and what does it cost?

    python benchmarks/detector.py [--sites 100] [--batches 2] [--lapse 0.05 0.1] [--out benchmarks/results/detector.md]

Wrong and harmless actions are planted into the expert's path through household games. The agent is scripted, so that the
true value of every state is known exactly (``_planted.py``). Every method runs through the library's own ``explore`` and
``detect`` over the same cases; continuations are looked up instead of stepped, which a check in the same run shows to be
equal.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _detection import (
    Method,
    Result,
    agreement,
    check_player,
    check_values,
    methods_of_the_source,
    rates,
    resampled,
    run,
)
from _machine import machine_line
from _planted import KINDS, Household, find_sites

from steca_gym.calibration import CalibrationSettings, StepRewardSettings

OURS = CalibrationSettings(require_failure=False, value_expert_step=False)
"""without the samples that D_s asks for: only the detection is measured"""
BY_MEANS = dataclasses.replace(OURS, undecided_rule="mean")
CHEAP = StepRewardSettings(
    alpha=0.3, beta=0.15, min_effect=0.2, max_samples=10, curtail=False, max_length_ratio=1.5, count_greedy_rollout=True
)
"""a race at about the error rates of fixed N = 5"""
CAREFUL = StepRewardSettings(
    alpha=0.05,
    beta=0.05,
    min_effect=0.2,
    max_samples=40,
    curtail=False,
    max_length_ratio=1.5,
    count_greedy_rollout=True,
)
"""a race for a fiftieth of fixed N = 100"""


def methods(large: int) -> list[Method]:
    """The paper's, ours, and those to compare them with."""
    return [
        *methods_of_the_source(large=large),
        Method("racing, default rates", OURS, StepRewardSettings()),
        Method("racing, default rates, undecided by the means", BY_MEANS, StepRewardSettings(curtail=False)),
        Method(
            "racing, default preset (after a failure only)",
            CalibrationSettings(value_expert_step=False),
            StepRewardSettings(),
        ),
        Method("racing, cheap", BY_MEANS, CHEAP),
        Method("racing, careful", BY_MEANS, CAREFUL),
        Method("racing by pairs, default rates", OURS, StepRewardSettings(test="pairs")),
        Method(
            "racing by pairs, cheap",
            BY_MEANS,
            dataclasses.replace(CHEAP, test="pairs", alpha=0.2, beta=0.3, min_effect=0.4, max_samples=6),
        ),
        Method("critic, else N = 5", OURS, StepRewardSettings(estimator="critic", max_length_ratio=2.0)),
        Method("random step", dataclasses.replace(OURS, detector="random"), StepRewardSettings()),
        Method("first difference", dataclasses.replace(OURS, detector="first_difference"), StepRewardSettings()),
    ]


def interval(values: np.ndarray) -> str:
    """95 % of resamples."""
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{low:.2f} to {high:.2f}"


def share(verdicts: Sequence[str], *names: str) -> str:
    """Share of verdicts with their number."""
    if not verdicts:
        return "-"
    return f"{np.mean([v in names for v in verdicts]):.3f}"


def quality_table(results: Sequence[Result]) -> str:
    """Precision, recall, F1 with intervals, where the wrong actions were found, and costs; Markdown."""
    base, spread = results[0], resampled(results)
    again = next(r for r in results if r.method.other_samples)
    num = len(base.found)
    lines = [
        "| method | precision (95 %) | recall (95 %) | F1 (95 %) | distance (within 1) | found of "
        + " / ".join(KINDS)
        + " | agrees with `paper` | rollouts per trajectory | tokens, of `paper`'s | env steps with replays, of `paper`'s |",
        "|" + "---|" * 10,
    ]
    for r, draws in zip(results, spread, strict=True):
        p, recall, f1 = rates(r.by_site().sum(axis=0))
        kinds = " / ".join(f"{np.mean(r.kinds.get(k, [0])):.2f}" for k in KINDS)
        far = r.distances
        cells = [
            r.name,
            f"{p:.3f} ({interval(draws[:, 0])})",
            f"{recall:.3f} ({interval(draws[:, 1])})",
            f"{f1:.3f} ({interval(draws[:, 2])})",
            f"{np.mean(far):.2f} ({np.mean([d <= 1 for d in far]):.0%})" if far else "-",
            kinds,
            f"{agreement(r, again):.0%}" if r is not again else "itself",
            f"{r.samples / num:.1f}",
            f"1/{base.tokens / r.tokens:.1f}",
            f"1/{base.steps_paid / r.steps_paid:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def error_table(results: Sequence[Result]) -> str:
    """Verdicts per comparison against the exact values; Markdown."""
    lines = [
        "| method | stated alpha / beta | no true drop: `deviated` | `undecided` | true drop of 0.3 or more: `kept` or tie "
        "| `undecided` | compared | rollouts per comparison |",
        "|" + "---|" * 8,
    ]
    for r in results:
        s = r.method.rewards
        stated = f"{s.alpha} / {s.beta}" if s.estimator == "racing" else "none"
        if r.method.calibration.undecided_rule == "mean" and s.estimator == "racing":
            stated += ", then means"
        cells = [
            r.name,
            stated,
            share(r.null, "deviated"),
            share(r.null, "undecided"),
            share(r.drop, "kept", "tie"),
            share(r.drop, "undecided"),
            f"{r.compared} ({len(r.null)} without, {len(r.drop)} with a drop)",
            f"{r.per_comparison:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def equal_table(results: Sequence[Result]) -> str:
    """For each fixed N: the best of ours for no more tokens, and the cheapest of ours that is no worse; Markdown."""
    ours = [r for r in results if r.name.startswith("racing")]
    lines = [
        "| against | its P / R / F1 | best F1 of ours for no more tokens | cheapest of ours at no lower P and R |",
        "|---|---|---|---|",
    ]

    def figures(r: Result) -> str:
        return " / ".join(f"{x:.2f}" for x in rates(r.by_site().sum(axis=0)))

    for r in results:
        if not r.method.replays or r.method.other_samples or r.name.startswith("`repo"):
            continue
        p, recall, _ = rates(r.by_site().sum(axis=0))
        within = [o for o in ours if o.tokens <= r.tokens]
        best = max(within, key=lambda o: rates(o.by_site().sum(axis=0))[2], default=None)
        equal = [o for o in ours if (rates(o.by_site().sum(axis=0))[:2] >= (p - 1e-9, recall - 1e-9)).all()]
        least = min(equal, key=lambda o: o.tokens, default=None)
        lines.append(
            f"| {r.name} | {figures(r)} | {f'{best.name}: {figures(best)}' if best else 'none'} | "
            + (f"{least.name}: {figures(least)}, 1/{r.tokens / least.tokens:.1f} of its tokens" if least else "none")
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=100, help="expert trajectories of at least 8 steps")
    parser.add_argument("--batches", type=int, default=2, help="times that each is planted into again")
    parser.add_argument("--first-batch", type=int, default=0)
    parser.add_argument("--lapse", type=float, nargs="*", default=[0.05, 0.1], help="of the agent, per turn")
    parser.add_argument("--large", type=int, default=100, help="the largest fixed N")
    parser.add_argument("--harmless", type=int, default=0, help="further harmless actions per trajectory")
    parser.add_argument("--only", default="", help="methods whose name holds this, beside the first two")
    parser.add_argument("--out", type=Path, help="also write here")
    args = parser.parse_args()
    started, house = time.perf_counter(), Household()
    sites = find_sites(args.sites, 8)
    lengths = [len(expert) for expert, _ in sites]
    parts = [
        f"{len(sites)} experts of {min(lengths)} to {max(lengths)} steps (mean {np.mean(lengths):.1f}), each planted "
        f"{args.batches} times."
    ]
    for lapse in args.lapse:
        equal = check_player(sites, house, lapse)
        worst = check_values(sites, house, lapse)
        chosen = methods(args.large)
        chosen = [m for i, m in enumerate(chosen) if i < 2 or args.only in m.name]
        batches = range(args.first_batch, args.first_batch + args.batches)
        results = run(sites, chosen, batches=batches, lapse=lapse, house=house, num_harmless=args.harmless)
        wrong = sum(t is not None for t in results[0].truth)
        parts += [
            f"## An agent that loses the thread in {lapse:.0%} of its turns",
            f"{len(results[0].found)} trajectories, {wrong} with a wrong action; at {results[0].compared} steps the agent "
            f"does something else than the expert. Looked-up continuations equal the collector's: {equal}. Exact values "
            f"against 2,000 continuations in 24 games: at most {worst:.1f} standard errors off.",
            quality_table(results),
            "Per comparison, against the exact values:",
            error_table(results),
            "At equal cost, and at equal accuracy:",
            equal_table(results),
        ]
    parts.append(f"{time.perf_counter() - started:.0f} s in all")
    text = "\n\n".join([f"Machine: {machine_line('numpy', 'gymnasium')}", *parts])
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
