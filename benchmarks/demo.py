"""The demo on several seeds: what `make demo` shows, and how far it depends on the seed.

    python benchmarks/demo.py --seeds 0 1 2 --out benchmarks/results/demo.md

Each seed makes its own model, its own samples and its own order of everything; the games that are evaluated are the same, so
the mean over seeds stands beside its spread, and no interval over all games is claimed. Overrides after ``--`` go
to each run, e.g. ``-- runs_root=/somewhere``. A seed whose runs lie there already is not run again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from steca_gym.cli.compare import compare
from steca_gym.evaluation import EvaluationReport
from steca_gym.reports import comparison_table, paired_table

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _machine import machine_line  # noqa: E402

METHODS = ("sft", "rft", "steca")


def spread(values: Sequence[float]) -> str:
    """Mean and range, in percent."""
    return f"{100 * statistics.mean(values):.1f} ({100 * min(values):.0f} to {100 * max(values):.0f})"


def summary(by_seed: Mapping[int, Mapping[str, EvaluationReport]]) -> str:
    """Markdown: a row a method, means and ranges over the seeds."""
    lines = [
        f"| method | success %, mean of {len(by_seed)} seeds (range) | after a wrong action % | without it % "
        "| steps | dnDTW | tokens | environment steps |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method in METHODS:
        reports = [by_seed[seed][method] for seed in by_seed]
        after = [r.robustness for r in reports if r.robustness is not None]
        without = [r.robustness_reference for r in reports if r.robustness_reference is not None]
        distances = [r.mean_dndtw for r in reports if r.mean_dndtw is not None]
        lines.append(
            f"| {method} | {spread([r.success for r in reports])} | {spread(after)} | {spread(without)} "
            f"| {statistics.mean(r.mean_steps for r in reports):.1f} | {statistics.mean(distances):.3f} "
            f"| {statistics.mean(r.total('num_sampled_tokens') for r in reports):,.0f} "
            f"| {statistics.mean(r.total('num_env_steps') for r in reports):,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="also written here, after what the file says before its first '##'")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    by_seed: dict[int, dict[str, EvaluationReport]] = {}
    parts = []
    for seed in args.seeds:
        started = time.perf_counter()
        by_seed[seed] = compare(["experiment=demo", f"seed={seed}", *args.overrides], METHODS)
        took = time.perf_counter() - started
        parts += [f"## Seed {seed}, {took:.0f} s", "", comparison_table(by_seed[seed])[1], ""]
        parts += [paired_table(by_seed[seed])[1], ""]
    head = [f"## {len(by_seed)} seeds", "", f"{machine_line('torch', 'transformers', 'trl')}", "", summary(by_seed), ""]
    text = "\n".join([*head, *parts])
    print(text)
    if args.out:
        told = args.out.read_text().partition("\n## ")[0].rstrip() if args.out.exists() else ""
        args.out.write_text(f"{told}\n\n{text}" if told else text)


if __name__ == "__main__":
    main()
