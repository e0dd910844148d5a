"""ALFWorld's official games, from the folder that ``alfworld-download`` made or from archives of it.

Knows the layout ``json_2.1.x/SPLIT/TASK/TRIAL/game.tw-pddl``. Knows no rules. Games are read once and kept compiled in
a cache file beside other caches of the user, since an archive of 3,553 games takes a minute to unpack.
"""

from __future__ import annotations

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

from steca_gym.errors import DataError
from steca_gym.registry import explain_unknown

from .game import TASK_TYPES, Game, read_game

_WHAT_TO_DO = (
    "run `alfworld-download` and set ALFWORLD_DATA to the folder that it made, or to a folder of .tar.xz of it"
)


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


def _in_folder(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("**/game.tw-pddl")):
        yield path.relative_to(folder).as_posix(), path.read_text()


def _in_archive(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith("game.tw-pddl"):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield member.name, file.read().decode()
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise DataError(f"cannot read the archive {str(path)!r}: {error}; download it again") from error


def games_in(source: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every game of a folder of games, an archive, or a folder of archives."""
    if not source.is_dir():
        yield from _in_archive(source)
        return
    archives = sorted(source.glob("*.tar.xz"))
    for archive in archives:
        yield from _in_archive(archive)
    if not archives:
        yield from _in_folder(source)


class OfficialGames:
    """Games by task id ``SPLIT/TASK/TRIAL``.

    Args:
        path: a folder of games, an archive, or a folder of archives; None: ``$ALFWORLD_DATA``.
    """

    name = "alfworld"
    version = "1"

    def __init__(self, path: str | Path | None = None) -> None:
        """Index the games; the first time they are also compiled into the cache."""
        self._cache, self.data_hash = _index(data_folder(path))
        with sqlite3.connect(f"file:{self._cache}?mode=ro", uri=True) as db:
            ids = [row[0] for row in db.execute("SELECT id FROM games ORDER BY id")]
        self._ids: dict[str, list[str]] = {}
        for task_id in ids:
            self._ids.setdefault(task_id.split("/", 1)[0], []).append(task_id)
        self.game = lru_cache(maxsize=4096)(self._game)

    def splits(self) -> tuple[str, ...]:
        """Those that the data has: train, valid_seen, valid_unseen."""
        return tuple(self._ids)

    def task_ids(self, split: str) -> Sequence[str]:
        """In alphabetical order."""
        return self._ids[split]

    def _game(self, task_id: str) -> Game:
        text = self.text(task_id)
        kind = task_id.split("/")[1].split("-", 1)[0]
        return read_game(text, kind if kind in TASK_TYPES else "")

    def text(self, task_id: str) -> str:
        """The game file's text; raises DataError with the nearest id."""
        with sqlite3.connect(f"file:{self._cache}?mode=ro", uri=True) as db:
            row = db.execute("SELECT text FROM games WHERE id = ?", (task_id,)).fetchone()
        if row is None:
            raise DataError(explain_unknown("ALFWorld task", task_id, self._ids.get(task_id.split("/")[0], ())[:50]))
        return zlib.decompress(row[0]).decode()


def _index(source: Path) -> tuple[Path, str]:
    """The cache file of a source and the digest of its content; made at first use, atomically."""
    archives = sorted(source.glob("*.tar.xz")) if source.is_dir() else [source]
    loose = source.is_dir() and not archives
    if loose:
        stamps = [(p.as_posix(), p.stat().st_size) for p in sorted(source.glob("**/game.tw-pddl"))]
    else:
        stamps = [(p.as_posix(), p.stat().st_size) for p in archives]
    if not stamps:
        raise DataError(f"no game.tw-pddl below {str(source)!r}; {_WHAT_TO_DO}")
    key = hashlib.blake2b(json.dumps([str(source.resolve()), stamps]).encode(), digest_size=8).hexdigest()
    cache = cache_folder() / f"alfworld-{key}.sqlite"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f".{os.getpid()}")
        part.unlink(missing_ok=True)
        digest = hashlib.blake2b(digest_size=6)
        db = sqlite3.connect(part)
        db.execute("CREATE TABLE games (id TEXT PRIMARY KEY, text BLOB) WITHOUT ROWID")
        db.execute("CREATE TABLE meta (digest TEXT)")
        for name, text in games_in(source):
            task_id = "/".join(name.split("/")[-4:-1])
            digest.update(f"{task_id}\0{text}".encode())
            # The PDDL domain is the same in all games and not needed to play: leaving it out halves the cache.
            raw = json.loads(text)
            raw.pop("pddl_domain", None)
            blob = zlib.compress(json.dumps(raw).encode(), 6)
            db.execute("INSERT OR REPLACE INTO games VALUES (?, ?)", (task_id, blob))
        db.execute("INSERT INTO meta VALUES (?)", (digest.hexdigest(),))
        db.commit()
        db.close()
        part.replace(cache)
    with sqlite3.connect(f"file:{cache}?mode=ro", uri=True) as db:
        return cache, str(db.execute("SELECT digest FROM meta").fetchone()[0])
