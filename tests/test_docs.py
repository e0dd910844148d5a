"""The pages: their links lead somewhere, their commands are ones, the site builds, and the tutorials' commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from steca_gym.cli import commands as known_commands
from steca_gym.cli import main
from steca_gym.cli.composing import explain_overrides
from tests.cli.test_cli import SMALL

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))
COMPOSED = {"run", "collect", "train", "calibrate", "compare", "demo", "evaluate"}
"""commands that take the overrides of `steca run`"""


def commands(page: str) -> list[str]:
    """The `steca` commands of a page's shell blocks, without comments and variables."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.sub(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?", "", line.strip()) for line in lines]
    return [line for line in found if line.startswith("steca ")]


def split(command: str) -> list[str]:
    return shlex.split(command, comments=True)[1:]


def test_there_are_pages_and_commands() -> None:
    assert len(PAGES) >= 30 and sum(len(commands(p)) for p in PAGES) >= 50


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not re.match(r"[a-z]+:", link):
            assert ((DOCS / page).parent / link).exists(), link


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)])
def test_commands_are_ones(page: str) -> None:
    for command in commands(page):
        name, *args = split(command)
        assert name in known_commands() or name.startswith("-") or ":" in name, command
        own = any(a.startswith(("--config-dir", "-cd", "run=", "model=")) or ":" in a for a in args)
        if name in COMPOSED and "--help" not in args and not own:
            explain_overrides([a for a in args if not a.startswith(("methods=", "run_dir=", "phase=", "until="))])


@pytest.mark.slow
@pytest.mark.parametrize("page", ["quickstart.md", "staged-rollout.md"])
def test_the_commands_of_a_tutorial_run_one_after_the_other(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "mine"
    listed = commands(page)
    assert len(listed) >= 6
    for command in listed:
        args = [a.replace("runs/mine", str(folder)) if "runs/mine" in a else a for a in split(command)]
        args = [str(tmp_path / a) if a == "runs" else a for a in args]
        if args[0] == "collect":
            args += [s for s in SMALL if s.partition("=")[0] not in {a.partition("=")[0] for a in args}]
        if args[0] == "diagnose":
            args.append("num_tasks=3")
        assert main(args) == 0, (command, capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="SKIPPED: the site needs the docs extra")
def test_the_site_builds_offline_and_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "steca-gym" in page and "fonts.googleapis.com" not in page
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    assert "calibrate" in reference and "Raises" in reference


def test_every_fault_of_the_reliability_page_has_its_test() -> None:
    page = (ROOT / "benchmarks" / "results" / "RELIABILITY.md").read_text()
    named_tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    assert len(named_tests) > 20
    gone = [f"{file}::{name}" for file, name in named_tests if f"def {name}(" not in (ROOT / file).read_text()]
    assert gone == []
