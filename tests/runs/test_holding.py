"""A command that was killed is noticed by the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from steca_gym.errors import ConfigError
from steca_gym.runs import holding
from steca_gym.runs.holding import LOCK, hold


def killed(folder: Path) -> None:
    """Leave the lock behind as a killed process does: nobody holds it, and nobody has removed it."""
    held = hold(folder)
    text = (folder / LOCK).read_text()
    held.let_go()
    (folder / LOCK).write_text(text)


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    held = hold(tmp_path)
    assert held.ended_badly == ""
    with pytest.raises(ConfigError, match="is being worked on by process .* since .*; wait for it"):
        hold(tmp_path)
    held.let_go()
    again = hold(tmp_path)
    assert again.ended_badly == ""  # the one before has closed it
    again.let_go()


def test_a_lock_that_was_left_tells_of_a_kill(tmp_path: Path) -> None:
    killed(tmp_path)
    held = hold(tmp_path)
    assert held.ended_badly.startswith("process ")
    assert "ended without closing the run (kill -9, lack of memory, or the machine stopped)" in held.ended_badly
    held.let_go()
    assert hold(tmp_path).ended_badly == ""


def test_the_kernels_kill_for_memory_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_memory_kills", lambda: "boot a-b, 3 killed for memory")
    killed(tmp_path)
    monkeypatch.setattr(holding, "_memory_kills", lambda: "boot a-b, 5 killed for memory")
    held = hold(tmp_path)
    assert "the kernel has killed 2 process(es) of this machine for lack of memory" in held.ended_badly
    assert "lower agent.train.per_device_batch_size" in held.ended_badly
    held.let_go()
    # After a restart of the machine the count begins anew and says nothing.
    killed(tmp_path)
    monkeypatch.setattr(holding, "_memory_kills", lambda: "boot c-d, 9 killed for memory")
    assert "(kill -9, lack of memory, or the machine stopped)" in hold(tmp_path).ended_badly


def test_an_empty_lock_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    assert hold(tmp_path).ended_badly == ""
