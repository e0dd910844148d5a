"""ALFWorld's official games, from the folder that ``alfworld-download`` made or from archives of it.

Knows the layout ``json_2.1.x/SPLIT/TASK/TRIAL/`` with ``game.tw-pddl`` and, in full downloads, ``traj_data.json``.
Knows no rules. Games are read once and kept in a cache file beside other caches of the user, since an archive of
3,553 games takes a minute to unpack. As in ALFWorld, games of other task types, with movable receptacles or slicing, or
not marked as solvable are left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import sqlite3
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from steca_gym.errors import DataError
from steca_gym.registry import explain_unknown

from .game import NO_SINKS, TASK_TYPES, Game, read_game

_WHAT_TO_DO = (
    "run `alfworld-download` and set ALFWORLD_DATA to the folder that it made, or to a folder of .tar.xz of it"
)


_CACHE_FORMAT = 2


def data_folder(path: str | Path | None) -> Path:
    """The folder or archive to read; raises DataError with what to do."""
    given = path or os.environ.get("ALFWORLD_DATA")
    if not given:
        raise DataError(f"no ALFWorld games: ALFWORLD_DATA is not set; {_WHAT_TO_DO}")
    folder = Path(given).expanduser()
    if not folder.exists():
        raise DataError(f"no ALFWorld games at {str(folder)!r}: it does not exist; {_WHAT_TO_DO}")
    return folder


def cache_folder() -> Path:
    """Where compiled games are kept: ``$STECA_CACHE`` or ``~/.cache/steca-gym``."""
    return Path(os.environ.get("STECA_CACHE") or Path.home() / ".cache" / "steca-gym")


_FILES = ("game.tw-pddl", "traj_data.json")


def _in_folder(folder: Path) -> Iterator[tuple[str, str]]:
    # Names by the absolute path: the folder given may be that of all splits, of one, or of one task.
    for path in sorted(folder.resolve().glob("**/game.tw-pddl")):
        for file in (path, path.with_name("traj_data.json")):
            if file.exists():
                yield file.as_posix(), file.read_text()


def _in_archive(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(_FILES):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield member.name, file.read().decode()
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the archive {str(path)!r}: {error}; download it again") from error


def _files_in(source: Path) -> Iterator[tuple[str, str]]:
    if not source.is_dir():
        yield from _in_archive(source)
        return
    archives = sorted(source.glob("*.tar.xz"))
    for archive in archives:
        yield from _in_archive(archive)
    if not archives:
        yield from _in_folder(source)


def games_in(source: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every game of a folder of games, an archive, or a folder of archives."""
    return ((name, text) for name, text in _files_in(source) if name.endswith("game.tw-pddl"))


def _task_id(name: str) -> str:
    parts = name.split("/")[-4:-1]
    if len(parts) < 3:
        raise DataError(f"cannot place the game {name!r}: expected SPLIT/TASK/TRIAL/game.tw-pddl; {_WHAT_TO_DO}")
    return "/".join(parts)


class OfficialGames:
    """Games by task id ``SPLIT/TASK/TRIAL``.

    Args:
        path: a folder of games, an archive, or a folder of archives; None: ``$ALFWORLD_DATA``.
    """

    name = "alfworld"
    version = "2"

    def __init__(self, path: str | Path | None = None) -> None:
        """Index the games; the first time they are also written into the cache."""
        self._cache, self.data_hash = _index(data_folder(path))
        self._ids: dict[str, list[str]] = {}
        self._kind: dict[str, str] = {}
        for task_id, kind in _rows(self._cache, "SELECT id, kind FROM games ORDER BY id"):
            self._ids.setdefault(task_id.split("/", 1)[0], []).append(task_id)
            self._kind[task_id] = kind
        self.game = lru_cache(maxsize=4096)(self._game)

    def splits(self) -> tuple[str, ...]:
        """Those that the data has: train, valid_seen, valid_unseen."""
        return tuple(self._ids)

    def task_ids(self, split: str) -> Sequence[str]:
        """In alphabetical order."""
        return self._ids[split]

    def _game(self, task_id: str) -> Game:
        return read_game(self.text(task_id), self._kind[task_id])

    def text(self, task_id: str) -> str:
        """The game file's text; raises DataError with the nearest id."""
        if task_id not in self._kind:
            raise DataError(explain_unknown("ALFWorld task", task_id, self._ids.get(task_id.split("/")[0], ())[:50]))
        (blob,) = _rows(self._cache, "SELECT text FROM games WHERE id = ?", task_id)[0]
        return zlib.decompress(blob).decode()


def _rows(cache: Path, query: str, *values: str) -> list[Any]:
    # A connection for each question: an environment may have been sent to another process or thread since the last.
    try:
        with contextlib.closing(sqlite3.connect(f"file:{cache}?mode=ro", uri=True)) as db:
            return db.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise DataError(f"cannot read the cached games {str(cache)!r}: {error}; delete the file") from error


def _index(source: Path) -> tuple[Path, str]:
    """The cache file of a source and the digest of its content; made at first use, atomically."""
    archives = sorted(source.glob("*.tar.xz")) if source.is_dir() else [source]
    files = archives or sorted(source.glob("**/game.tw-pddl"))
    if not files:
        raise DataError(f"no game.tw-pddl below {str(source)!r}; {_WHAT_TO_DO}")
    stamps = [(f.as_posix(), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.blake2b(
        json.dumps([_CACHE_FORMAT, str(source.resolve()), stamps]).encode(), digest_size=8
    ).hexdigest()
    cache = cache_folder() / f"alfworld-{key}.sqlite"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f".{os.getpid()}")
        part.unlink(missing_ok=True)
        try:
            with contextlib.closing(sqlite3.connect(part)) as db:
                _fill(db, source)
            part.replace(cache)
        finally:
            part.unlink(missing_ok=True)
    return cache, str(_rows(cache, "SELECT digest FROM meta")[0][0])


def _fill(db: sqlite3.Connection, source: Path) -> None:
    db.execute("CREATE TABLE games (id TEXT PRIMARY KEY, kind TEXT, text BLOB) WITHOUT ROWID")
    db.execute("CREATE TABLE meta (digest TEXT)")
    digest = hashlib.blake2b(digest_size=6)
    kinds: dict[str, str] = {}
    ids: list[str] = []
    for name, text in _files_in(source):
        task_id = _task_id(name)
        try:
            raw = json.loads(text)
            if name.endswith("traj_data.json"):
                kinds[task_id] = str(raw["task_type"])
                continue
            if not raw["solvable"] or "movable" in task_id or "Sliced" in task_id:
                continue
            # Of the PDDL domain only this decides anything, and it is the same in all games: half of the cache.
            raw["pddl_domain"] = NO_SINKS if NO_SINKS in raw.get("pddl_domain", "").lower() else ""
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"cannot read {name!r} of {str(source)!r}: {error!r}; download it again") from error
        digest.update(f"{task_id}\0{text}".encode())
        ids.append(task_id)
        blob = zlib.compress(json.dumps(raw).encode(), 6)
        db.execute("INSERT OR REPLACE INTO games VALUES (?, '', ?)", (task_id, blob))
    for task_id in ids:
        kind = kinds.get(task_id) or task_id.split("/")[1].split("-", 1)[0]
        if kind in TASK_TYPES:
            db.execute("UPDATE games SET kind = ? WHERE id = ?", (kind, task_id))
    db.execute("DELETE FROM games WHERE kind = ''")
    if not db.execute("SELECT COUNT(*) FROM games").fetchone()[0]:
        raise DataError(f"none of the {len(ids)} games below {str(source)!r} is of ALFWorld's six types; {_WHAT_TO_DO}")
    digest.update(json.dumps(sorted(kinds.items())).encode())
    db.execute("INSERT INTO meta VALUES (?)", (digest.hexdigest(),))
    db.commit()
