"""The README's commands work and its links lead somewhere: a README that lies fails the gate."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from steca_gym.cli import main
from steca_gym.cli.composing import explain_overrides
from tests.cli.test_cli import SMALL

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = {
    kind: re.findall(rf"^```{kind}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    for kind in ("sh", "python", "mermaid")
}
LINES = [line.split("#")[0].strip() for block in BLOCKS["sh"] for line in block.splitlines()]
INLINE = re.findall(r"`((?:[A-Z_]+=\S+ )?\.venv/bin/steca [^`]+)`", README)
COMMANDS = [re.sub(r"^\S*=\S* ", "", c) for c in [*LINES, *INLINE] if ".venv/bin/steca" in c]
# One after the other these make one run; the others are looked at alone.
PHASES = [c for c in COMMANDS if "runs/mine" in c]
ALONE = [c for c in COMMANDS if c not in PHASES]


def steca(command: str) -> list[str]:
    tool, *args = shlex.split(command)
    assert tool == ".venv/bin/steca", command
    return args


def commands_help(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["--help"]) == 0
    return capsys.readouterr().out


def test_there_is_something_to_test() -> None:
    assert len(ALONE) >= 4 and len(PHASES) >= 5
    assert len(BLOCKS["python"]) >= 1 and len(BLOCKS["mermaid"]) == 1


def test_make_has_the_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in [line for line in LINES if line.startswith("make ")]:
        assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE), command


@pytest.mark.parametrize("command", ALONE)
def test_a_command_composes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *args = steca(command)
    if "--help" in args:
        assert main([name, *args]) == 0
        assert "env: " in capsys.readouterr().out
    elif name == "table":
        assert "steca table PATH" in commands_help(capsys)
    elif name == "sweep-plan":
        assert main([name, *args]) == 0 and " runs\n" in capsys.readouterr().out
    elif name in ("compare", "demo"):
        explain_overrides([a for a in args if not a.startswith("methods=")])
    else:
        explain_overrides(args)  # of a sweep the first job, and the choices of all
        if "-m" not in args:
            assert main([name, *args, "--cfg", "job"]) == 0


@pytest.mark.slow
def test_the_phases_run_one_after_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for command in PHASES:
        args = [a.replace("runs/mine", str(folder)) for a in steca(command)]
        if not folder.exists():
            args += SMALL
        assert main(args) == 0, command
    names = re.search(r"A run's folder holds (.*?)\n\n", README, re.DOTALL)
    assert names is not None
    # Everything that the README says of the folder is in it.
    for name in re.findall(r"`([\w.]+/?)`", names[1]):
        assert (folder / name).exists(), name


@pytest.mark.parametrize("block", BLOCKS["python"])
def test_the_python_runs(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links and not missing


def test_files_that_are_named_exist() -> None:
    named = re.findall(r"`((?:steca_gym|envs|agents|conf|tests|benchmarks|docs)/[\w./]*)`", README)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert named and not missing
