"""A command of one's own, as ``docs/your-own-command.md`` shows it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from steca_gym.cli import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your-own-command.md").read_text(encoding="utf-8")
CONF = ["--config-dir", str(Path(__file__).resolve().parents[1] / "conf")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "my_report.py").write_text(block)
    (tmp_path / "odd_command.py").write_text(
        "number = 3\n"
        "def broken(args):\n    raise RuntimeError('no [b]paper')\n"
        "def text(args):\n    return 'done'\n"
        "def silent(args):\n    pass\n"
        "def given(args):\n    print(args)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return tmp_path


def test_the_report_of_the_page_reads_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*CONF, "env=corridor", "agent=stumbling", f"run_dir={folder / 'runs' / 'one'}"]
    assert main(["calibrate", *command]) == 0
    capsys.readouterr()
    assert main(["my_report:corrections", "runs"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| one")]
    assert row.split(" | ")[1] == "steca" and int(row.split(" | ")[2]) >= 0
    assert main(["my_report:corrections", "--help"]) == 0
    assert "accepted calibrations of each run" in capsys.readouterr().out


def test_folders_for_finding_it_are_no_arguments_of_its(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["odd_command:given", *CONF, "runs", "--config-dir=."]) == 0
    assert capsys.readouterr().out == "['runs']\n"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("my_report:corrections", 2, "corrections needs a path"),
        ("odd_command:broken", 1, "RuntimeError: no [b]paper"),
        ("odd_command:text", 2, "returned 'done', expected an exit code"),
        ("odd_command:number", 2, "is a int, expected a function"),
        ("odd_command:silent", 0, ""),
    ],
)
def test_a_mistake_of_ones_own_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, words: str
) -> None:
    assert main([name]) == code
    err = capsys.readouterr().err.strip()
    assert words in err and len(err.splitlines()) <= 1
