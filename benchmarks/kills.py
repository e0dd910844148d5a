"""Kill commands with ``kill -9`` at random moments, run the same commands again, and compare with uninterrupted ones.

    .venv/bin/python benchmarks/kills.py                                  200 kills over all scenarios
    .venv/bin/python benchmarks/kills.py --only training online --kills 20
    .venv/bin/python benchmarks/kills.py --minutes 30 --state kills.json  goes on where it stopped
    .venv/bin/python benchmarks/kills.py --print --state kills.json       the table of what was done so far

A round is one folder: two to six kills, each followed by the same command, the last of these to its end; then the
commands once more, which must change nothing. Moments come from ``--seed``, the scenario's name and the round's number.
What is compared: ``tests/killing.py``. The state is kept in ``--state``, a JSON file, after each round. It exits 1 where
something did not hold; the folders of such rounds are kept.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from _machine import machine_line  # noqa: E402

from steca_gym.files import write_json  # noqa: E402
from tests.killing import SCENARIOS, Scenario, Whole, make_source, play_round, play_whole  # noqa: E402

COLUMNS = (
    "kills",
    "resumed",
    "lost",
    "doubled",
    "torn",
    "left over",
    "orphans",
    "buffer or files equal",
    "evaluation equal",
    "weights equal",
    "model loadable",
    "again unchanged",
)


def shares(names: list[str], kills: int) -> dict[str, int]:
    """How many kills each scenario gets, by its weight; at least one."""
    total = sum(SCENARIOS[n].weight for n in names)
    return {n: max(1, round(kills * SCENARIOS[n].weight / total)) for n in names}


def row(name: str, rounds: list[dict[str, Any]]) -> str:
    """A scenario's line of the table; a yes or no is given as rounds that held of rounds that were compared."""

    def total(key: str) -> str:
        return str(sum(r[key] for r in rounds))

    def held(key: str) -> str:
        known = [r[key] for r in rounds if r[key] is not None]
        return f"{sum(known)} of {len(known)}" if known else "-"

    cells = [
        SCENARIOS[name].title,
        *map(total, ("kills", "resumed", "lost", "doubled", "torn", "left_over", "orphans")),
        *map(held, ("equal", "evaluation_equal", "weights_equal", "loadable", "again_unchanged")),
    ]
    return f"| {' | '.join(cells)} |"


def table(state: dict[str, Any]) -> str:
    """All that was done so far; Markdown."""
    done = {n: state["rounds"][n] for n in SCENARIOS if state["rounds"].get(n)}
    lines = [f"| scenario | {' | '.join(COLUMNS)} |", "|" + "---|" * (len(COLUMNS) + 1)]
    lines += [row(name, rounds) for name, rounds in done.items()]
    every = [r for rounds in done.values() for r in rounds]
    lines.append(f"\n{sum(r['kills'] for r in every)} kills in {len(every)} rounds, seed {state['seed']}")
    for name, rounds in done.items():
        for number, r in enumerate(rounds):
            lines += [f"- {name}, round {number}: {' '.join(p.split())[:300]}" for p in r["problems"]]
    return "\n".join(lines)


class Series:
    """The rounds of all scenarios, in turn, until each has its share of kills."""

    def __init__(self, state: dict[str, Any], file: Path, work: Path, deadline: float) -> None:
        """See the class; ``deadline`` is of ``time.monotonic``."""
        self.state, self.file, self.work, self.deadline = state, file, work, deadline
        self._source: Path | None = None
        self._wholes: dict[str, Whole] = {}

    def run(self, wanted: dict[str, int]) -> bool:
        """Whether everything held."""
        clean = True
        while time.monotonic() < self.deadline:
            # The scenario that is furthest behind, so that a series that is stopped has some of each.
            name = min(wanted, key=lambda n: self._kills(n) / wanted[n])
            if self._kills(name) >= wanted[name]:
                break
            clean &= self._round(name, SCENARIOS[name])
        return clean

    def _kills(self, name: str) -> int:
        return sum(r["kills"] for r in self.state["rounds"].get(name, []))

    def _round(self, name: str, scenario: Scenario) -> bool:
        rounds = self.state["rounds"].setdefault(name, [])
        folder = self.work / name / str(len(rounds)) / "run"
        rng = random.Random(f"{self.state['seed']} {name} {len(rounds)}")
        began = time.monotonic()
        found = play_round(scenario, self._whole(name, scenario), folder, self._source or folder, rng)
        rounds.append({**found.as_dict(), "seconds": round(time.monotonic() - began, 1)})
        write_json(self.file, self.state)
        print(
            f"{name} {len(rounds) - 1}: {found.kills} kills, {time.monotonic() - began:.0f} s, "
            + ("ok" if found.clean else f"NOT AS WITHOUT A KILL, see {folder}: {found}"),
            flush=True,
        )
        if not found.kills:
            del self._wholes[name]  # it was slower than usual (it compiled kernels), so that moments came too late
        if found.clean:
            shutil.rmtree(folder.parent)
        return found.clean

    def _whole(self, name: str, scenario: Scenario) -> Whole:
        if scenario.kind == "files" and self._source is None:
            self._source = make_source(self.work / "source" / "run")
        if name not in self._wholes:
            folder = self.work / name / "whole" / "run"
            shutil.rmtree(folder.parent, ignore_errors=True)
            self._wholes[name] = whole = play_whole(scenario, folder, self._source or folder)
            print(
                f"{name}: {whole.seconds:.1f} s, {whole.idle_seconds:.1f} s of them before its first file", flush=True
            )
        return self._wholes[name]


def main() -> int:
    """Run the rounds that are left; returns 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="over all scenarios, by their weights")
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no round after that")
    parser.add_argument("--state", type=Path, default=Path("kills.json"), help="what was done so far")
    parser.add_argument("--print", action="store_true", help="only the table")
    given = parser.parse_args()
    state: dict[str, Any] = {"seed": given.seed, "rounds": {}}
    if given.state.exists():
        state = json.loads(given.state.read_text(encoding="utf-8"))
        if state["seed"] != given.seed:
            parser.error(f"{given.state} is of seed {state['seed']}, got --seed {given.seed}; choose another --state")
    clean = True
    if not given.print:
        work = Path(tempfile.mkdtemp(prefix="kills-"))
        series = Series(state, given.state, work, time.monotonic() + 60 * given.minutes)
        clean = series.run(shares(given.only, given.kills))
        if clean:
            shutil.rmtree(work)
    print(machine_line("torch", "transformers", "ray"))
    print(table(state))
    return int(not clean)


if __name__ == "__main__":
    sys.exit(main())
