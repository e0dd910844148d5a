"""How many corrected trajectories would the agent have won anyway, by detector?

    python benchmarks/recovery.py [--sites 40] [--lapse 0.05] [--out benchmarks/results/recovery.md]

Wrong and harmless actions are planted into household games (``_planted.py``). Every detector calibrates the same
trajectories; then the agent plays on without the corrections: after the deviations found, after another differing action,
and after a random admissible action in the same place (arXiv 2602.03338, "intervention paradox").
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from _machine import machine_line
from _planted import Household, PlantedAgent, find_sites, make_cases, make_env

from steca_gym.agent import Sampling
from steca_gym.calibration import CalibrationSettings, StepRewardSettings, calibrate, recovery_check
from steca_gym.collectors.collector import Collector

DETECTORS = ("compare", "every", "bisect", "first_difference", "random")


def row(detector: str, agent: PlantedAgent, *, require_failure: bool, num_samples: int) -> str:
    """One detector's figures; Markdown."""
    settings = CalibrationSettings(detector=detector, require_failure=require_failure, value_expert_step=False)
    experts = [c.expert for c in agent.cases.values()]
    collector = Collector(make_env, agent, num_envs=64)
    result = calibrate(collector, experts, settings=settings, reward_settings=StepRewardSettings())
    right = sum(c.step == agent.cases[c.task_id].truth for c in result.accepted if c.task_id in agent.cases)
    found = recovery_check(
        collector, result.results, experts, num_samples=num_samples, sampling=Sampling(temperature=1.0)
    )
    name = detector if require_failure else f"{detector}, no failure required"
    return (
        f"| {name} | {len(result.accepted)} ({right} at the planted step) | {found.found.text()} | {found.random.text()} "
        f"| {found.disturbed.text()} | {result.counts.num_samples} |"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=40, help="expert trajectories of at least 8 steps")
    parser.add_argument("--lapse", type=float, default=0.05, help="how often the agent loses the thread, per turn")
    parser.add_argument("--samples", type=int, default=4, help="episodes from each history")
    parser.add_argument("--detectors", nargs="*", default=list(DETECTORS))
    parser.add_argument("--out", type=Path, help="also written here, after what the file says before its figures")
    args = parser.parse_args()
    started = time.perf_counter()
    cases = make_cases(find_sites(args.sites, 8), 0)
    agent = PlantedAgent(cases, Household(), args.lapse)
    agent.cases = {t: dataclasses.replace(c, expert=c.expert.with_id()) for t, c in agent.cases.items()}
    agent.by_first = {c.expert.first_observation: c for c in agent.cases.values()}
    lines = [
        f"Machine: {machine_line('numpy', 'gymnasium')}",
        "",
        f"{len(cases)} trajectories, {sum(c.truth is not None for c in cases)} with a wrong action. Episodes won without a "
        f"correction, {args.samples} sampled from each history:",
        "",
        "| detector | corrections | after the deviations found | after a random differing action "
        "| after a random admissible action | continuations for detection |",
        "|" + "---|" * 6,
    ]
    for detector in args.detectors:
        for require_failure in (True, False):
            lines.append(row(detector, agent, require_failure=require_failure, num_samples=args.samples))
            print(lines[-1], flush=True)
    lines += ["", f"{time.perf_counter() - started:.0f} s in all"]
    text = "\n".join(lines)
    print(text)
    if args.out:
        kept = args.out.read_text().partition("## Figures")[0] if args.out.exists() else ""
        args.out.write_text(f"{kept}## Figures\n\n{text}\n")


if __name__ == "__main__":
    main()
