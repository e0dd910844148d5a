"""The one gate: ``python -m tests.gate`` runs lint, types, the wheel check and the tests, and says what failed.

``make test`` calls it; ``--only NAME`` runs one part. What takes long (pyright, the tests marked ``slow``) is left out;
``make test-slow`` runs it, and so does ``.ci/run``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["steca_gym", "envs", "agents"]

PYTEST = ["-m", "pytest", "-q", "-rs", "-n", "2", "--dist", "loadfile", "--durations", "10"]
PARTS: dict[str, list[str]] = {
    "ruff": ["ruff", "check", "."],
    "mypy": ["mypy", *SOURCES],
    "pyright": ["pyright", "--warnings"],
    "wheel": ["-m", "tests.wheel"],
    "pytest": [*PYTEST, "-m", "not slow"],
    "slow": [*PYTEST, "-m", "slow"],
}
SLOW = ("pyright", "slow")
DEFAULT = [part for part in PARTS if part not in SLOW]


def command(part: str) -> list[str]:
    """The argument vector of a part, with the tools of this interpreter's environment."""
    head, *rest = PARTS[part]
    if head == "-m":
        return [sys.executable, "-m", *rest]
    return [str(Path(sys.executable).with_name(head)), *rest]


def main() -> int:
    """Run the parts in order; exit 1 if any failed, after all have run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(PARTS), action="append", help="run this part only (repeatable)")
    parser.add_argument("--slow", action="store_true", help="run the parts that are left out otherwise")
    given = parser.parse_args()
    chosen = given.only or (SLOW if given.slow else DEFAULT)
    env = dict(os.environ, PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1", WANDB_MODE="offline")
    failed = []
    for part in chosen:
        start = time.perf_counter()
        print(f"== {part}: {' '.join(PARTS[part])}", flush=True)
        code = subprocess.run(command(part), cwd=ROOT, env=env, check=False).returncode
        print(
            f"== {part}: {'ok' if code == 0 else f'FAILED ({code})'} in {time.perf_counter() - start:.0f} s", flush=True
        )
        if code:
            failed.append(part)
    if failed:
        print(f"gate: FAILED: {', '.join(failed)}")
        return 1
    print("gate: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
