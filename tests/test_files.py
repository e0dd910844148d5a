"""Atomic writes, the cache folder's rule, and storage failures."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steca_gym.errors import DataError, StorageError
from steca_gym.files import (
    cache_dir,
    parse_json,
    remove_leftovers,
    replace_file,
    storage_errors,
    write_atomically,
    write_json,
)


@pytest.mark.parametrize("content", ["plain", "Küche 台所 \ud800\n", b"\x00\xff", ""])
def test_what_is_written_is_read_back(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "new" / "folder" / ("n" * 250)
    assert write_atomically(path, content) == path
    expected = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    assert path.read_bytes() == expected
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), ValueError("bug")])
def test_a_failed_write_keeps_the_old_content(tmp_path: Path, error: BaseException) -> None:
    path = write_atomically(tmp_path / "record", "old")

    def write(part: Path) -> None:
        part.write_text("half of the ne")
        raise error

    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        replace_file(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["record"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "model").mkdir()
    left = [tmp_path / f".0a1b2c3d.{ended.pid}.77.part", tmp_path / "model" / f".0a1b2c3d.{ended.pid}.77.part"]
    kept = [tmp_path / f".0a1b2c3d.{os.getpid()}.77.part", tmp_path / ".mine.part", tmp_path / "x.part"]
    for path in (*left, *kept):
        path.write_text("half")
    remove_leftovers(tmp_path)
    assert not any(p.exists() for p in left) and all(p.exists() for p in kept)


def test_a_folder_in_the_place_of_the_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()
    with pytest.raises(StorageError, match="cannot write .*record.*run the same command again") as caught:
        write_json(tmp_path / "record", {})
    assert "\n" not in str(caught.value)


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected finite numbers"):
        write_json(tmp_path / "record.json", {"loss": float("nan")})
    assert not os.listdir(tmp_path)


class SafetensorError(Exception):
    """Named as the library's."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        PermissionError(errno.EACCES, "Permission denied"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
)
def test_storage_failures_are_one_line(error: Exception) -> None:
    with pytest.raises(StorageError, match="cannot write the model to '/x'.*was saved before is kept"):
        with storage_errors("the model", "/x"):
            raise error


@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "reset"), RuntimeError("CUDA"), OSError("?")])
def test_other_failures_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        with storage_errors("the model"):
            raise error
    assert caught.value is error


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    for name in ("STECA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    return {"set": monkeypatch.setenv, "root": tmp_path}


def test_the_cache_folder(environment: dict[str, Any]) -> None:
    set_variable, root = environment["set"], environment["root"]
    assert cache_dir("models") == root / "home/.cache/steca-gym/models"
    set_variable("XDG_CACHE_HOME", "relative")
    assert cache_dir() == root / "home/.cache/steca-gym"
    set_variable("XDG_CACHE_HOME", str(root / "xdg"))
    assert cache_dir("a", "b") == root / "xdg/steca-gym/a/b"
    set_variable("STECA_CACHE", str(root / "chosen"))
    assert cache_dir("a") == root / "chosen/a"
    set_variable("STECA_CACHE", "~/chosen")
    assert cache_dir("a") == root / "home/chosen/a"
    assert os.listdir(root / "home") == [], "only asked for, not made"


@pytest.mark.parametrize("home", ["/nonexistent/home", "/dev/null"])
def test_the_cache_folder_without_a_home(environment: dict[str, Any], home: str) -> None:
    environment["set"]("HOME", home)
    folder = cache_dir("models")
    assert folder == environment["root"] / "tmp" / f"steca-gym-{os.getuid()}" / "models"
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert cache_dir("models") == folder


def test_a_link_that_somebody_left_in_the_temporary_folder_is_refused(environment: dict[str, Any]) -> None:
    root = environment["root"]
    environment["set"]("HOME", "/nonexistent")
    (root / "elsewhere").mkdir()
    (root / "tmp" / f"steca-gym-{os.getuid()}").symlink_to(root / "elsewhere")
    with pytest.raises(StorageError, match="set STECA_CACHE"):
        cache_dir()


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "1e999", "-1e999", "[" * 5000, "1" * 5000, b"\xff", "{", ""])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_is_read() -> None:
    assert parse_json('{"a": [1, 2.5, "\\ud800", null]}') == {"a": [1, 2.5, "\ud800", None]}
