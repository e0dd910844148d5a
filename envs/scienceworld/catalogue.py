"""What ScienceWorld offers, asked once and kept on disk: tasks, variations, splits, gold paths.

Knows the cache files. Knows no episode.

Everything here is computed by the simulator; gold paths take 0.1 to 6.5 s each, the table of splits some
seconds.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .._optional import cache_dir, installed_version, write_atomically

SPLITS = ("train", "dev", "test")

Table = dict[str, dict[str, list[int]]]
"""task to split to variations"""


def _file(name: str) -> Any:
    return cache_dir("scienceworld") / f"scienceworld-{installed_version('scienceworld')}" / name


def read_table() -> Table | None:
    """The cached table, or None."""
    table: Table | None = _read(_file("variations.json"))
    return table


def ask_table(server: Any) -> Table:
    """Load each task once and note its splits; the table is cached."""
    table: Table = {}
    for task in sorted(map(str, server.getTaskNames())):
        server.load(task, 0, "", False)
        table[task] = {
            "train": [int(number) for number in server.getVariationsTrain()],
            "dev": [int(number) for number in server.getVariationsDev()],
            "test": [int(number) for number in server.getVariationsTest()],
        }
    write_atomically(_file("variations.json"), json.dumps(table).encode())
    return table


def read_gold(task: str, variation: int, simplification: str) -> list[str] | None:
    """The cached gold path, or None."""
    path: list[str] | None = _read(_gold_file(task, variation, simplification))
    return path


def ask_gold(server: Any, task: str, variation: int, simplification: str) -> list[str]:
    """Let the simulator compute a gold path (it leaves its live episode for that); the path is cached."""
    server.load(task, variation, simplification, True)
    path = [str(action) for action in server.getGoldActionSequence()]
    write_atomically(_gold_file(task, variation, simplification), json.dumps(path).encode())
    return path


def _gold_file(task: str, variation: int, simplification: str) -> Any:
    suffix = f"-{hashlib.sha256(simplification.encode()).hexdigest()[:8]}" if simplification else ""
    return _file(f"gold{suffix}/{task}-{variation}.json")


def _read(path: Any) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
