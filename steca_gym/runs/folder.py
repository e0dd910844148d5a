"""What lies in a run's folder, read-only: for reports, tables, exports, and runs that share a stage.

``RunFolder`` creates nothing and writes nothing; a folder that is still being written can be opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steca_gym.errors import DataError, one_line
from steca_gym.files import parse_json
from steca_gym.settings import read_stored

if TYPE_CHECKING:
    from steca_gym.buffer import CalibrationBuffer
    from steca_gym.evaluation import EvaluationReport

FORMAT = 2
"""version of ``run.json``; a folder of another one is refused"""

RECORD = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """A finished stage."""

    name: str
    key: str
    """digest of everything that the stage depends on, the stages before it included"""
    depends_on: Mapping[str, Any]
    """the settings that it depends on itself"""
    seconds: float
    """wall time of all attempts"""
    cost: Mapping[str, float]
    """counters of all attempts, see ``collectors.Ledger``"""
    result: Mapping[str, Any]
    """what the stage reports"""
    shared_from: str = ""
    """name of the run that did the work; empty: this one"""

    @property
    def model(self) -> str | None:
        """Folder of the model that the stage trained, relative to the run's."""
        found = self.result.get("model")
        return str(found) if found is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """``run.json``."""

    version: str
    """of steca-gym"""
    method: str
    seed: int
    overrides: tuple[str, ...]
    """of the command that made the folder"""
    config_dirs: tuple[str, ...] = ()
    settings: Mapping[str, Any]
    """the composed configuration"""
    stages: Mapping[str, StageRecord]
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """by key: what each depends on, its file and its cost"""
    unfinished: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """costs of stages that were begun and are not finished"""


class RunFolder:
    """A run's folder.

    >>> run = RunFolder("runs/household-steca-s0-1a2b3c4d5e6f")
    >>> run.record.stages["calibration"].result["num_accepted"]
    >>> with run.buffer() as buffer:
    ...     buffer.calibrations(status="accepted")

    Args:
        path: the folder.

    Raises:
        DataError: there is no run, its record is damaged, or it is of another version.
    """

    def __init__(self, path: str | Path) -> None:
        """Check that there is a run."""
        self.path = Path(path)
        self.record  # noqa: B018 - raises where there is none

    @property
    def record(self) -> RunRecord:
        """The record, read again each time: another process may be writing it."""
        return read_record(self.path)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @contextmanager
    def buffer(self) -> Iterator[CalibrationBuffer]:
        """The run's buffer, opened for reading; raises DataError where the run has stored nothing yet."""
        from steca_gym.buffer import CalibrationBuffer

        file = self.path / "buffer.sqlite"
        if not file.exists():
            raise DataError(f"{str(self.path)!r} holds no trajectories yet (no buffer.sqlite)")
        with CalibrationBuffer(file, read_only=True) as opened:
            yield opened

    def check_trusted(self) -> None:
        """Raise ConfigError where the settings name code and were not written by this user; see ``runs.trust``."""
        from steca_gym.runs.trust import check_trusted

        check_trusted(self.path, read_raw(self.path))

    def stage_folder(self, stage: str) -> Path:
        """The folder of the model that a stage trained; raises DataError where the stage has none."""
        found = self.record.stages.get(stage)
        if found is None or found.model is None:
            raise DataError(f"{str(self.path)!r} holds no model of a stage {stage!r}")
        return self.path / found.model

    def model(self) -> Path | None:
        """The model of the last finished stage that trained one."""
        models = [s.model for s in self.record.stages.values() if s.model is not None]
        return self.path / models[-1] if models else None

    def evaluation(self, key: str | None = None) -> EvaluationReport | None:
        """An evaluation by its key, or the latest one; None where there is none."""
        from steca_gym.evaluation import read_report

        file = self.path / "evaluation.json"
        if key is not None:
            known = self.record.evaluations.get(key)
            if known is None:
                return None
            file = self.path / str(known["file"])
        return read_report(file) if file.exists() else None

    def cost(self) -> dict[str, dict[str, float]]:
        """Costs by stage of everything that led here, those of shared stages included."""
        return {s.name: {**s.cost, "seconds": s.seconds} for s in self.record.stages.values()}


@contextmanager
def as_written(folder: Path) -> Iterator[None]:
    """Turn what a stage's free-form results, exchanged for something else, lead to into a line about the run."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise DataError(
            f"{str(folder / RECORD)!r} holds something that no run has written ({one_line(error)}); restore it or "
            "leave the run out"
        ) from error


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / RECORD).is_file()


def find_runs(root: Path, *, on_damaged: Callable[[DataError], None] | None = None) -> list[RunFolder]:
    """The run at a path, or all runs below it, ordered by path; folders that are no run are passed over.

    Args:
        root: a run's folder, or one that holds some.
        on_damaged: called for each run below ``root`` whose record or evaluation cannot be read; it is then left out.
            None: a damaged record raises DataError.
    """
    if is_run(root):
        return [RunFolder(root)]
    found = []
    for file in sorted(root.glob(f"**/{RECORD}")):
        try:
            run = RunFolder(file.parent)
            if on_damaged is not None:
                run.evaluation()
            found.append(run)
        except DataError as error:
            if on_damaged is None:
                raise
            on_damaged(error)
    return found


def read_raw(folder: Path) -> dict[str, Any]:
    """``run.json`` as it stands; raises DataError with what is wrong and what to do."""
    path = folder / RECORD
    try:
        raw = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"no run in {str(folder)!r}; give the folder that `steca run` printed") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {str(path)!r}: {error}; expected the record of a run; restore it (see `steca repair`) or "
            "choose another folder"
        ) from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        held = raw.get("version", "unknown") if isinstance(raw, dict) else "unknown"
        raise DataError(
            f"{str(folder)!r} holds a run of another version of steca-gym ({held}), which this one does not read; "
            "choose another folder, or export it with that version"
        )
    return raw


def read_record(folder: Path) -> RunRecord:
    """Read ``run.json``; raises DataError with what is wrong and what to do."""
    raw, path = read_raw(folder), folder / RECORD
    held = {name: raw[name] for name in (f.name for f in fields(RunRecord)) if name in raw}
    for name, stage in held["stages"].items() if isinstance(held.get("stages"), dict) else ():
        if isinstance(stage, dict):
            stage.setdefault("name", name)
    try:
        return read_stored(RunRecord, held, where="")
    except DataError as error:
        raise DataError(
            f"{str(path)!r} is damaged ({error}); restore it, see `steca repair`, or choose another folder"
        ) from error
