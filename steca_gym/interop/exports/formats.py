"""The formats of ``steca export``, and the function that writes one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from steca_gym.errors import UnknownNameError
from steca_gym.interop.exports.atif import write_atif
from steca_gym.interop.exports.inspect_log import write_inspect
from steca_gym.interop.exports.minari import write_minari
from steca_gym.interop.exports.rows import RunData
from steca_gym.interop.exports.tables import COLUMNS, write_dataset
from steca_gym.registry import explain_unknown

FORMATS: dict[str, Callable[[RunData, Path], list[Path]]] = {
    **{form: partial(write_dataset, form=form) for form in COLUMNS},
    "minari": write_minari,
    "atif": write_atif,
    "inspect": write_inspect,
}


def export(run: str | Path, to: Path, form: str, *, kind: str | None = None) -> list[Path]:
    """Write a run's trajectories in a format.

    Args:
        run: the run's folder.
        to: a folder, made where it does not exist.
        form: a name in ``FORMATS``.
        kind: only trajectories of this kind, e.g. "expert"; None: all.

    Returns:
        The files and folders that were written.

    Raises:
        UnknownNameError: no such format.
        DataError: no run, or nothing in it for this format.
        ConfigError: the format's package is not installed.
        StorageError: the disk is full.
    """
    if form not in FORMATS:
        raise UnknownNameError(explain_unknown("export format", form, ["tables", *FORMATS]))
    return FORMATS[form](RunData(run, kind), to)
