"""How a rollout's cost grows: with the horizon, with the episodes at once, with the model; and the framework's part.

    python benchmarks/scaling.py --part horizon              # one part; quick enough to be run on a quiet machine
    python benchmarks/scaling.py --draw                      # table and picture from all parts that were measured

Each part adds its points to ``results/scaling.json``; ``--draw`` writes ``results/scaling.md`` and ``scaling.svg``.
Games, agents and the two ways (our block cache; ``generate()`` once a turn, which plays a few evenly chosen turns,
entered by snapshots) are those of ``rollouts.py``. The framework's part is measured twice: beside the model, and
alone, with an agent that answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from steca_gym.agents.smollm2 import smollm2_folder
from steca_gym.agents.tiny import build_tiny
from steca_gym.agents.transformers import TransformersAgent

from steca_gym.agent import Need, Turn, TurnRequest
from steca_gym.collectors import Collector, EpisodeRequest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import rollouts  # noqa: E402
from _machine import machine_line  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
POINTS = RESULTS / "scaling.json"
HORIZONS = (10, 25, 50, 100, 200)
AT_ONCE = (1, 4, 16, 64, 128)
TASKS = (64, 256, 1024)
SIZES = ((2, 64, 4), (3, 128, 4), (4, 256, 8), (6, 512, 8))
LABELS = {"ours": "ours", "generate": "generate() once a turn"}


class Script:
    """Says what was drawn beforehand, at once."""

    name = "script"
    needs: frozenset[Need] = frozenset()

    def __init__(self, games: Sequence[Any]) -> None:
        self._turns = [
            [Turn(text=f"Action: {a}", token_ids=tuple(range(9)), num_sampled_tokens=10) for a in g.actions]
            for g in games
        ]

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        return [self._turns[r.seed][r.turn] for r in requests]

    def release(self, episode_ids: Iterable[str]) -> None:
        return None


def tiny(scratch: Path, layers: int, width: int, heads: int) -> tuple[Any, Any]:
    folder = build_tiny(
        rollouts.corpus(40),
        scratch / f"{layers}x{width}",
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        max_position_embeddings=16_384,
    )
    return rollouts.load(folder, "float32")


def timed(
    model: tuple[Any, Any],
    turns: int,
    at_once: int,
    *,
    episodes: int | None = None,
    rounds: int = 4,
    repeats: int = 3,
    peer: bool = True,
) -> dict[str, Any]:
    """Both ways on the same games; medians over ``repeats`` of what ours took, the peer once."""
    games = rollouts.draw_games(turns, episodes or at_once)
    jobs = rollouts.episode_jobs(games)

    def agent(engine: Any) -> TransformersAgent:
        return TransformersAgent(
            model[0], tokenizer=model[1], engine=engine, max_batch_size=min(at_once, 64), kv_cache_gib=3.0
        )

    rollouts.play(agent("blocks"), [dataclasses.replace(jobs[0], actions=jobs[0].actions[:1])], turns, 1, "warm", False)
    runs = [rollouts.play(agent("blocks"), jobs, turns, at_once, "ours", False) for _ in range(repeats)]
    ours = sorted(runs, key=lambda r: r.seconds)[len(runs) // 2]
    point = {
        "turns": turns,
        "at_once": at_once,
        "episodes": len(jobs),
        "ours_turns_per_s": ours.turns_per_second,
        "ours_spread": [min(r.turns_per_second for r in runs), max(r.turns_per_second for r in runs)],
        "ours_per_processor_s": ours.turns / ours.processor_seconds,
        "elsewhere": ours.elsewhere,
        "in_model": ours.in_model,
        "framework_us": 1e6 * ours.cost.seconds_framework / ours.turns,
        "environment_us": 1e6 * ours.cost.seconds_environment / ours.turns,
        "said": ours.cost.num_sampled_tokens / ours.turns,
        "read": ours.cost.num_prompt_tokens_read / ours.turns,
        "conversation": (ours.cost.num_prompt_tokens_read + ours.cost.num_prompt_tokens_reused) / ours.turns,
    }
    if peer:
        some = rollouts.some_rounds(rollouts.even_choice(jobs, 64), turns, rounds, turns, False)
        theirs = rollouts.play(agent("generate"), some, turns, min(at_once, 64), "generate", False)
        point["generate_turns_per_s"] = theirs.turns_per_second
        point["generate_per_processor_s"] = theirs.turns / theirs.processor_seconds
    print(point, file=sys.stderr, flush=True)
    return point


def part_horizon(scratch: Path) -> list[dict[str, Any]]:
    model = tiny(scratch, 3, 128, 4)
    points = []
    for turns in HORIZONS:
        few = {100: 16, 200: 8}.get(turns, 32)
        points.append(timed(model, turns, few, rounds=3 if turns < 100 else 2, repeats=1))
    return points


def part_at_once(scratch: Path) -> list[dict[str, Any]]:
    model = tiny(scratch, 3, 128, 4)
    return [timed(model, 20, count, rounds=2, repeats=1) for count in AT_ONCE]


def part_tasks(scratch: Path) -> list[dict[str, Any]]:
    model = tiny(scratch, 3, 128, 4)
    return [timed(model, 20, 64, episodes=count, rounds=2, repeats=1) for count in TASKS]


def part_size(scratch: Path) -> list[dict[str, Any]]:
    points = []
    for layers, width, heads in SIZES:
        model = tiny(scratch, layers, width, heads)
        point = timed(model, 20, 32, rounds=2, repeats=1)
        points.append({"name": f"{layers} x {width}", "parameters": parameters(model), **point})
    return points


def part_smollm2(scratch: Path) -> list[dict[str, Any]]:
    model = rollouts.load(smollm2_folder(), "bfloat16")
    point = timed(model, 20, 16, rounds=2, repeats=1)
    return [{"name": "SmolLM2, bfloat16", "parameters": parameters(model), **point}]


def parameters(model: tuple[Any, Any]) -> int:
    return sum(p.numel() for p in model[0].parameters())


def part_framework(scratch: Path) -> list[dict[str, Any]]:
    """The collector with an agent that answers at once: what a step costs beside the world itself."""
    points = []
    for turns in HORIZONS:
        games = rollouts.draw_games(turns, 64)
        requests = [EpisodeRequest(task_id=g.task_id, seed=i) for i, g in enumerate(games)]
        agent = Script(games)
        runs = []
        for _ in range(3):
            with Collector(rollouts.make_env(turns), agent, num_envs=64) as collector:
                collector.run(requests[:8])
                before, start = collector.ledger.total(), time.perf_counter()
                steps, framework = before.num_env_steps, before.seconds_framework
                environment = before.seconds_environment
                collector.run(requests)
                wall = time.perf_counter() - start
                cost = collector.ledger.total()
            steps = cost.num_env_steps - steps
            runs.append(
                (
                    1e6 * (cost.seconds_framework - framework) / steps,
                    1e6 * (cost.seconds_environment - environment) / steps,
                    1e6 * wall / steps,
                )
            )
        middle = [statistics.median(column) for column in zip(*runs, strict=True)]
        points.append({"turns": turns, "framework_us": middle[0], "environment_us": middle[1], "wall_us": middle[2]})
        print(points[-1], file=sys.stderr, flush=True)
    return points


PARTS = {
    "horizon": part_horizon,
    "at_once": part_at_once,
    "tasks": part_tasks,
    "size": part_size,
    "smollm2": part_smollm2,
    "framework": part_framework,
}


def table(points: Sequence[dict[str, Any]], head: str, value: Any) -> list[str]:
    lines = [
        f"| {head} | conversation, tokens (mean) | read a turn | said a turn | ours, turns per processor s | generate() | ratio "
        "| time in model | framework a turn | environment a turn |",
        "|" + "---|" * 10,
    ]
    for p in points:
        ours, peer = p["ours_per_processor_s"], p["generate_per_processor_s"]
        lines.append(
            f"| {value(p)} | {p['conversation']:.0f} | {p['read']:.0f} | {p['said']:.1f} | {ours:.1f} "
            f"| {peer:.2f} | {ours / peer:.1f}x | {p['in_model']:.0%} | {p['framework_us']:.0f} us "
            f"| {p['environment_us']:.0f} us |"
        )
    return lines


def write(found: dict[str, Any]) -> None:
    """Table and picture of what was measured."""
    lines = ["# Rollouts: how cost grows", "", f"{found['machine']}", ""]
    lines += ["`python benchmarks/scaling.py --part PART` for each part, then `--draw`. Turns of steca/Household-v0,"]
    lines += [
        "the action alone is said. `generate()` plays evenly chosen turns of the same games, batch as ours. Rates are"
    ]
    lines += [
        "turns a second of processor time, one thread (`OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1`), in which waiting for"
    ]
    lines += ["other processes does not count. Shares and microseconds are by the clock.", ""]
    if set(found) & {"horizon", "at_once", "size"}:
        lines += ["![turns a processor second against horizon, episodes at once and parameters](scaling.svg)", ""]
    missing = sorted({"horizon", "at_once", "tasks", "size", "smollm2"} - set(found))
    if missing:
        lines += [f"Not measured yet, for want of an undisturbed machine: {', '.join(missing)}.", ""]
    if "horizon" in found:
        lines += ["## Horizon (3 layers x 128, float32; 32 episodes at once, 16 at 100 turns, 8 at 200)", ""]
        lines += [*table(found["horizon"], "turns", lambda p: p["turns"]), ""]
    if "at_once" in found:
        lines += ["## Episodes at once (3 layers x 128, float32, 20 turns; at most 64 rows decode together)", ""]
        lines += [*table(found["at_once"], "episodes at once", lambda p: p["at_once"]), ""]
    if "tasks" in found:
        lines += ["## Number of tasks (3 layers x 128, float32, 20 turns, 64 episodes at once)", ""]
        lines += [*table(found["tasks"], "tasks", lambda p: p["episodes"]), ""]
    if "size" in found:
        lines += ["## Model (20 turns; 32 episodes at once, SmolLM2 16)", ""]
        lines += [
            *table(
                [*found["size"], *found.get("smollm2", ())],
                "model",
                lambda p: f"{p['name']}, {p['parameters'] / 1e6:.1f} M",
            ),
            "",
        ]
    if "framework" in found:
        lines += ["## The framework alone: 64 episodes at once, an agent that answers at once", ""]
        lines += ["| turns | framework a step | environment a step | wall a step |", "|---|---|---|---|"]
        for p in found["framework"]:
            lines.append(
                f"| {p['turns']} | {p['framework_us']:.0f} us | {p['environment_us']:.0f} us | {p['wall_us']:.0f} us |"
            )
        lines.append("")
    (RESULTS / "scaling.md").write_text("\n".join(lines))
    panels = [
        ("turns an episode", [(p["turns"], p) for p in found.get("horizon", ())]),
        ("episodes at once", [(p["at_once"], p) for p in found.get("at_once", ())]),
        ("parameters", [(p["parameters"], p) for p in (*found.get("size", ()), *found.get("smollm2", ()))]),
    ]
    if any(points for _, points in panels):
        (RESULTS / "scaling.svg").write_text(picture([(name, points) for name, points in panels if points]))


def picture(panels: Sequence[tuple[str, Sequence[tuple[float, dict[str, Any]]]]]) -> str:
    """Turns a processor second, both axes logarithmic, one panel a question: an SVG without anything outside it."""
    width, height, left, top = 300, 220, 52, 34
    colours = {"ours": "#0b7285", "generate": "#c2410c"}
    rates = [p[f"{w}_per_processor_s"] for _, points in panels for _, p in points for w in colours]
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates)))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{len(panels) * (width + left) + 20}" '
        f'height="{height + top + 48}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (name, points) in enumerate(panels):
        x0, y0 = number * (width + left) + left, top
        first, last = math.log10(points[0][0]), math.log10(points[-1][0])

        def across(value: float, x0: int = x0, first: float = first, last: float = last) -> float:
            return x0 + 12 + (width - 24) * (math.log10(value) - first) / max(last - first, 1e-9)

        def up(rate: float, y0: int = y0) -> float:
            return y0 + height * (1 - (math.log10(rate) - low) / (high - low))

        out.append(f'<rect x="{x0}" y="{y0}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        for power in range(low, high + 1):
            y = up(10**power)
            out.append(f'<line x1="{x0}" y1="{y:.1f}" x2="{x0 + width}" y2="{y:.1f}" stroke="#ddd"/>')
            out.append(f'<text x="{x0 - 5}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
        for value, _ in points:
            shown = f"{value / 1e6:.1f}M" if value >= 1e5 else f"{value:g}"
            out.append(f'<text x="{across(value):.1f}" y="{y0 + height + 15}" text-anchor="middle">{shown}</text>')
        out.append(f'<text x="{x0 + width / 2}" y="{y0 + height + 34}" text-anchor="middle">{name}</text>')
        for way, colour in colours.items():
            places = [(across(value), up(p[f"{way}_per_processor_s"])) for value, p in points]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    for place, (way, colour) in enumerate(colours.items()):
        out.append(f'<rect x="{left + 190 * place}" y="10" width="12" height="12" fill="{colour}"/>')
        out.append(f'<text x="{left + 190 * place + 17}" y="20">{LABELS[way]}, turns a processor second</text>')
    return "\n".join([*out, "</svg>", ""])


def main() -> None:
    """Measure a part, or write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=sorted(PARTS), nargs="*", default=[])
    parser.add_argument("--draw", action="store_true")
    args = parser.parse_args()
    rollouts.keep_memory()
    found = json.loads(POINTS.read_text()) if POINTS.exists() else {}
    for part in args.part:
        with tempfile.TemporaryDirectory() as scratch:
            found[part] = PARTS[part](Path(scratch))
        found["machine"] = machine_line("torch", "transformers", "numba")
        POINTS.write_text(json.dumps(found, indent=1) + "\n")
    if args.draw:
        write(found)


if __name__ == "__main__":
    main()
