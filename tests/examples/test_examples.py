"""The examples run as they stand."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


SLOW = {"quickstart.py", "reinforce.py"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(p.name, marks=[pytest.mark.slow] if p.name in SLOW else []) for p in sorted(EXAMPLES.glob("*.py"))],
)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_quickstart_is_short() -> None:
    source = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    imports = (ast.Import, ast.ImportFrom)
    code = [node for node in tree.body[1:] if not isinstance(node, imports)]
    lines = {line for node in code for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    assert len(lines) <= 25, len(lines)
