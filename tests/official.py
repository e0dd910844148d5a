"""Where the official ALFWorld games lie, for the tests that play them; without them these tests skip and say so.

The variable is read when the tests are loaded: the package ``alfworld`` sets it on import, and makes an empty folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_GIVEN = os.environ.get("ALFWORLD_DATA")
_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "alfworld"


def official_data(split: str = "valid_seen") -> Path:
    """A folder that holds the games, or an archive of one split; skips the test where there is neither."""
    found = Path(_GIVEN) if _GIVEN else _BESIDE / f"{split}.tar.xz"
    if not (found.is_file() or any(found.rglob("game.tw-pddl")) or any(found.glob("*.tar.*"))):
        pytest.skip(f"NOT PLAYED: no official ALFWorld games in {found}; set ALFWORLD_DATA, see alfworld-download")
    return found
