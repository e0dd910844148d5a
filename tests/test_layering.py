"""The arrows of the house, read from the imports, so that a wrong one fails here.

``envs -> core <- agents``; inside the core a room imports only rooms of lower layers (or of its own), and no two
modules import each other in a circle.
"""

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
# From the bottom. A room may import rooms of lower layers.
LAYERS = (
    ("redaction",),
    ("errors",),
    ("registry", "files", "seeding", "statistics"),
    ("jit",),
    ("settings", "agent", "turns", "spaces"),
    ("env", "chat", "trajectory", "prices"),
    ("registration", "collectors", "distances", "provenance", "tracking"),
    ("step_rewards",),
    ("calibration", "training"),
    ("buffer", "evaluation"),
    ("testing", "review", "diagnosis"),
    ("methods",),
    ("runs",),
    ("reports", "interop", "sweeps"),
    ("cli",),
)
LAYER = {room: index for index, layer in enumerate(LAYERS) for room in layer}
# Rooms of one layer that may use each other's, in this direction only.
BESIDE = {("agent", "turns"), ("chat", "env"), ("trajectory", "env"), ("env", "trajectory")}
MAX_LINES = 500
MAY_BE_LONG = "500 lines"
"""stands in the docstring of a longer file, with the reason"""


def imported(tree: ast.AST, *, running: bool = False) -> set[str]:
    """Imported names; with ``running`` only those of a module that is imported, not inside functions or for types."""
    names: set[str] = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if running and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test) and running:
                continue
            if isinstance(child, ast.Import):
                names.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module and child.level == 0:
                names.add(child.module)
                names.update(f"{child.module}.{alias.name}" for alias in child.names)
            walk(child)

    walk(tree)
    return names


def wrong_arrows(room: str, source: str) -> set[str]:
    return {
        name
        for name in imported(ast.parse(source))
        for target in FORBIDDEN[room]
        if name == target or name.startswith(target + ".")
    }


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "steca_gym" and len(parts) > 1 and parts[1] in LAYER else None


def upward(room: str, source: str) -> set[str]:
    """Imports of a higher room, or of another room of the same layer."""
    found = set()
    for name in imported(ast.parse(source)):
        other = room_of(name)
        if other is None or other == room or (room, other) in BESIDE:
            continue
        if LAYER[other] >= LAYER[room]:
            found.add(name)
    return found


@pytest.mark.parametrize("folder", list(ROOMS))
def test_no_room_imports_what_it_must_not_know(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): wrong_arrows(ROOMS[folder], f.read_text()) for f in files}
    assert {f: names for f, names in wrong.items() if names} == {}


def test_every_room_of_the_core_has_its_layer_and_imports_no_higher_one() -> None:
    wrong = {}
    for file in sorted((ROOT / "steca_gym").rglob("*.py")):
        room = file.relative_to(ROOT / "steca_gym").parts[0].removesuffix(".py")
        if room in ("__init__", "conf"):
            continue
        assert room in LAYER, f"{room} has no layer; add it to LAYERS"
        if found := upward(room, file.read_text()):
            wrong[str(file.relative_to(ROOT))] = found
    assert wrong == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {}
    for folder in ROOMS:
        for file in (ROOT / folder).rglob("*.py"):
            parts = list(file.relative_to(ROOT).with_suffix("").parts)
            parts = parts if folder == "steca_gym" else ["steca_gym", *parts]
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    graph = {
        name: (imported(ast.parse(file.read_text()), running=True) & set(modules)) - {name}
        for name, file in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for other in graph[name]:
            # A package's __init__ imports its own modules, and they may name the package.
            if not (name.startswith(other + ".") or other.startswith(name + ".")):
                visit(other, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_no_file_is_long_without_a_reason() -> None:
    long = {}
    for folder in ROOMS:
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text()
            count = text.count("\n")
            if count > MAX_LINES and MAY_BE_LONG not in (ast.get_docstring(ast.parse(text)) or ""):
                long[str(file.relative_to(ROOT))] = count
    assert long == {}


def test_a_wrong_arrow_is_seen() -> None:
    assert wrong_arrows("core", "from steca_gym.envs.alfworld import engine")
    assert wrong_arrows("envs", "import steca_gym.agents")
    assert not wrong_arrows("agents", "from steca_gym.agent import Agent")
    assert upward("methods", "def f():\n    from steca_gym.runs import Runner")
    assert upward("training", "from steca_gym.calibration import calibrate")
    assert not upward("runs", "from steca_gym.methods import Method")
