"""Files: atomic writes, the cache folder, and storage failures in one line."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from steca_gym.errors import DataError, StorageError

STORAGE_ERRNOS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.ESTALE,
    }
)
"""errors of a disk or of its permissions, as opposed to those of a wrong path or of a network"""

HOW_TO_GO_ON = "free space or make the folder writable, then run the same command again: what was saved before is kept"


def is_storage_error(error: BaseException) -> bool:
    """Return whether an exception says that a disk is full, failing or not writable.

    Libraries that write files in compiled code report it with exceptions of their own: safetensors' SafetensorError
    and torch's RuntimeError are recognised by their text.
    """
    if isinstance(error, OSError):
        return error.errno in STORAGE_ERRNOS
    text = str(error).lower()
    if type(error).__name__ == "SafetensorError":
        return "os error" in text or "i/o" in text
    # torch.save: "enforce fail at inline_container.cc ... file write failed"
    return isinstance(error, RuntimeError) and ("inline_container" in text or "file write failed" in text)


@contextlib.contextmanager
def storage_errors(what: str, path: Path | str | None = None) -> Iterator[None]:
    """Turn storage failures inside the block into one line; other exceptions pass unchanged.

    Args:
        what: what is being written, as in "cannot write the model".
        path: where to.

    Raises:
        StorageError: the disk is full, failing or not writable.
    """
    try:
        yield
    except Exception as error:
        if not is_storage_error(error):
            raise
        where = "" if path is None else f" to {str(path)!r}"
        raise StorageError(f"cannot write {what}{where}: {error}; {HOW_TO_GO_ON}") from error


def copy_changed(source: Path, target: Path) -> None:
    """Make a text file hold what another holds; nothing is written where it does, or where there is no source."""
    if source.exists():
        text = source.read_text(encoding="utf-8")
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            write_atomically(target, text)


def replace_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file so that readers see the old content or the new one, never a part of it.

    Args:
        path: the file; its folder is created if needed.
        write: writes the content to the path it is given, a temporary file in the same folder.

    Returns:
        ``path``.

    Raises:
        StorageError: the file cannot be written. The old content is kept, and no temporary file stays.
    """
    # The name is short even where the file's own is near the limit of 255 bytes.
    token = zlib.crc32(path.name.encode("utf-8", "surrogateescape"))
    part = path.with_name(f".{token:08x}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) or is_storage_error(error):
            raise StorageError(f"cannot write {str(path)!r}: {error}; {HOW_TO_GO_ON}") from error
        raise
    return path


_PART = re.compile(r"\.[0-9a-f]{8}\.(\d+)\.\d+\.part")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files below a folder whose process was killed in the middle of ``replace_file``.

    Call it where no process of another machine writes there.
    """
    for path in folder.rglob(".*.part"):
        named = _PART.fullmatch(path.name)
        if named is not None and not _is_running(int(named[1])):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write text (UTF-8, lone surrogates kept) or bytes with ``replace_file``."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return replace_file(path, lambda part: part.write_bytes(data))


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> Path:
    """Write a value as JSON with ``replace_file``.

    Raises:
        StorageError: the file cannot be written.
        DataError: the value contains NaN or an infinity, which JSON does not have.
    """
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise DataError(f"cannot write {str(path)!r}: {error}; expected finite numbers") from error
    return write_atomically(path, text)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that somebody else may have written.

    Raises:
        ValueError: it is none. So are NaN and infinities, numbers that no float holds (``1e999``), whole numbers of
            thousands of digits, nesting without end, and bytes that are not UTF-8.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is too large a number")
    return value


def cache_dir(*parts: str) -> Path:
    """Return the user's cache folder of steca-gym, or a folder below it; only the fallback is created.

    The rule: ``$STECA_CACHE``; else ``$XDG_CACHE_HOME/steca-gym``; else ``~/.cache/steca-gym``; else, where there is
    no home folder that can be used, a private folder of this user below the system's temporary folder.

    Raises:
        StorageError: the fallback belongs to somebody else.
    """
    chosen = os.environ.get("STECA_CACHE")
    if chosen:
        return Path(chosen).expanduser().joinpath(*parts)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the XDG specification: a relative one is to be ignored
        return Path(xdg, "steca-gym", *parts)
    try:
        base = Path.home() / ".cache" / "steca-gym"
    except RuntimeError:
        return _private_fallback().joinpath(*parts)
    # A prepared cache serves readers even if it is read-only.
    return (base if base.is_dir() or _can_create(base) else _private_fallback()).joinpath(*parts)


def _can_create(folder: Path) -> bool:
    existing = next(p for p in folder.parents if p.exists())
    return existing != Path(folder.anchor) and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _private_fallback() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir(), f"steca-gym-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.stat(follow_symlinks=False).st_uid
    except OSError as error:
        raise StorageError(f"no cache folder: {error}; set STECA_CACHE to a folder that can be written") from error
    if folder.is_symlink() or owner != user:
        raise StorageError(f"no cache folder: {str(folder)!r} belongs to another user; set STECA_CACHE to your own")
    return folder
