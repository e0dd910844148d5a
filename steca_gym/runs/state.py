"""Writing a run's record, holding a run for one process, and finding stages that other runs have done."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from steca_gym.errors import DataError, StecaError, StorageError
from steca_gym.files import remove_leftovers, write_atomically
from steca_gym.redaction import redact_data
from steca_gym.runs.folder import FORMAT, RECORD, RunFolder, RunRecord, StageRecord, read_raw, read_record
from steca_gym.runs.holding import Held, hold
from steca_gym.runs.trust import check_trusted, seal
from steca_gym.settings import plain

SHARED = ".stages"
"""folder beside the runs: which run has done which stage"""


class RunState:
    """The record of a run that this process works on.

    Raises:
        ConfigError: another process works on it.
        StorageError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, blank: Mapping[str, Any], on_wait: Callable[[str], None] | None = None) -> None:
        """Make the folder where there is none, and hold it.

        Args:
            folder: of the run.
            blank: the record of a run without stages.
            on_wait: called with one line where another process works on the run, which is then waited for; None: raise.
        """
        self._on_wait = on_wait
        self.folder = folder
        self._held: Held | None = None
        self.ended_badly = ""
        """what is known of a command that ended without closing the run, as a clause; empty: none did"""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._hold()
            remove_leftovers(folder)
            if not (folder / RECORD).exists():
                self._write({"format": FORMAT, **plain(blank), "stages": {}, "evaluations": {}, "unfinished": {}})
            else:
                self._check_trusted()  # before it is sealed as this user's own
        except (OSError, ValueError) as error:  # ValueError: a name that no file system takes
            self.release()
            raise StorageError(
                f"cannot write the run's folder {str(folder)!r}: {error}; choose a run_dir or runs_root that is "
                "a folder with free space"
            ) from error
        except StecaError:
            self.release()
            raise

    def _check_trusted(self) -> None:
        try:
            raw = read_raw(self.folder)
        except DataError as error:
            raise StorageError(str(error)) from error
        check_trusted(self.folder, raw)

    def _hold(self) -> None:
        self._held = hold(self.folder, self._on_wait)
        self.ended_badly = self._held.ended_badly

    def release(self) -> None:
        """Let another process work on the run."""
        if self._held is not None:
            self._held.let_go()
            self._held = None

    @property
    def record(self) -> RunRecord:
        """The record; raises StorageError where it is damaged."""
        try:
            return read_record(self.folder)
        except DataError as error:
            raise StorageError(str(error)) from error

    def update(self, **changes: Any) -> None:
        """Write some of the record's entries again."""
        raw = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        self._write({**raw, **plain(changes)})

    def put_stage(self, stage: StageRecord) -> None:
        """Record a finished stage, and that its costs are no longer those of an unfinished one."""
        record = self.record
        unfinished = {k: v for k, v in record.unfinished.items() if k != stage.name}
        self.update(stages={**record.stages, stage.name: stage}, unfinished=unfinished)

    def drop_stages(self, names: set[str]) -> None:
        """Forget stages, so that they are done again."""
        self.update(stages={k: v for k, v in self.record.stages.items() if k not in names})

    def _write(self, raw: Mapping[str, Any]) -> None:
        raw = redact_data(raw)
        write_atomically(self.folder / RECORD, json.dumps({**raw, "seal": seal(raw)}, indent=1))


class SharedStages:
    """Which run beside this one has done a stage, by the stage's key.

    While a run does a stage it holds the key, so that a sibling that needs the same stage waits for it instead of
    doing it twice. Only runs of one ``runs_root`` share: a run in a folder of the user's choice elsewhere is whole by
    itself. Where the index cannot be written, nothing is shared.
    """

    def __init__(self, folder: Path, runs_root: Path) -> None:
        """What the run in ``folder`` shares with the others below ``runs_root``."""
        self._root = folder.parent
        beside = folder.parent.resolve() == runs_root.expanduser().resolve()
        self._index = (runs_root.expanduser() if beside else folder) / SHARED

    def find(self, stage: str, key: str) -> RunFolder | None:
        """The run that holds the finished stage; None where there is none (any more)."""
        pointer = self._index / f"{stage}-{key}.json"
        try:
            name = json.loads(pointer.read_text(encoding="utf-8"))["run"]
            run = RunFolder(self._root / str(name))
            held = run.record.stages.get(stage)
        except (OSError, ValueError, KeyError, TypeError, DataError):
            return None
        return run if held is not None and held.key == key else None

    def publish(self, stage: str, key: str, folder: Path) -> None:
        """Say that a run has done a stage."""
        with contextlib.suppress(StorageError, OSError):
            self._index.mkdir(exist_ok=True)
            write_atomically(self._index / f"{stage}-{key}.json", json.dumps({"run": folder.name}))

    @contextlib.contextmanager
    def holding(self, stage: str, key: str, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold a key; waits where a sibling holds it, and calls ``on_wait`` before."""
        try:
            self._index.mkdir(exist_ok=True)
            lock = (self._index / f"{stage}-{key}.lock").open("a", encoding="utf-8")
        except OSError:
            yield
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def decided(self, what: str, of: Mapping[str, Any], decide: str | None = None) -> str | None:
        """What was decided once for equal settings (a number type); ``decide`` is kept where nothing was yet."""
        from steca_gym.settings import digest

        file = self._index / f"{what}-{digest(of)}.txt"
        with contextlib.suppress(OSError):
            return file.read_text(encoding="utf-8").strip()
        if decide is not None:
            with contextlib.suppress(StorageError, OSError):
                self._index.mkdir(exist_ok=True)
                write_atomically(file, decide)
        return decide
