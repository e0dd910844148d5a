"""Plain text: everything is there, and no escape sequence reaches a terminal."""

import pytest

from steca_gym.cli import main
from tests.reports.runs import make_run

HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202e\ud800"


@pytest.mark.parametrize("show", [[], ["show=task-0001{text}"]])
def test_escape_sequences_are_shown_and_not_obeyed(tmp_path, capsys, show):
    run = make_run(tmp_path / "run", num=3, text=HOSTILE)
    assert main(["inspect", str(run), *(s.format(text=HOSTILE) for s in show)]) == 0
    out = capsys.readouterr().out
    assert "⟨U+001B⟩" in out
    out.encode("utf-8")
    assert not set(out) & set("\x1b\x07\u202e")


def test_a_trajectory_is_told_step_by_step(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main(["inspect", str(run)]) == 0
    listed = capsys.readouterr().out
    (line,) = [x for x in listed.splitlines() if "task-0001" in x]
    assert "step 2 of 6: jump 1" in line and "[calibration accepted]" in line
    assert main(["inspect", str(run), f"show={line.split()[0]}"]) == 0
    told = capsys.readouterr().out
    assert "agent instead: jump 1 (deviated; 80 % [0, 100] to 20 % [0, 100])" in told
    assert "   2  go to room 1  <- went wrong here" in told
    assert "calibration c-1 at step 2: accepted\n" in told


def test_an_unknown_trajectory_gets_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "run", num=2)
    assert main(["inspect", str(run), "show=task-00001"]) == 2
    assert "did you mean 'task-0001'" in capsys.readouterr().err
