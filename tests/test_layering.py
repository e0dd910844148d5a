"""The arrows of the house: envs -> core <- agents. Read from the imports, so that a wrong one fails here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"steca_gym": "core", "envs": "envs", "agents": "agents"}
FORBIDDEN = {
    "core": ("steca_gym.envs", "steca_gym.agents"),
    "envs": ("steca_gym.agents",),
    "agents": ("steca_gym.envs",),
}


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def wrong_arrows(room: str, source: str) -> set[str]:
    return {
        name
        for name in imported(ast.parse(source))
        for target in FORBIDDEN[room]
        if name == target or name.startswith(target + ".")
    }


@pytest.mark.parametrize("folder", list(ROOMS))
def test_no_room_imports_what_it_must_not_know(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): wrong_arrows(ROOMS[folder], f.read_text()) for f in files}
    assert {f: names for f, names in wrong.items() if names} == {}


def test_a_wrong_arrow_is_seen() -> None:
    assert wrong_arrows("core", "from steca_gym.envs.alfworld import engine")
    assert wrong_arrows("envs", "import steca_gym.agents")
    assert not wrong_arrows("agents", "from steca_gym.agent import Agent")
