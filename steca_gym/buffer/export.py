"""A buffer's tables as JSON lines and as Parquet.

Knows rows and file formats. Knows no run.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from steca_gym.buffer.schema import TABLES, explain, from_cell
from steca_gym.errors import ConfigError, StorageError

_ARROW_TYPES = {"TEXT": "string", "INTEGER": "int64", "REAL": "float64"}


def _replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Write beside the file and rename, so that a full disk leaves no half file under its name."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        os.replace(part, path)
    except (sqlite3.Error, OSError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise StorageError(f"cannot write {str(path)!r}: {error}; {explain(error)}") from error
    return path


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """Write lines of text; lone surrogates are kept. Raises StorageError on a full disk."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", errors="surrogatepass") as file:
            file.writelines(line + "\n" for line in lines)

    return _replace(path, write)


def object_line(extra: dict[str, Any], payload: str) -> str:
    """One line of JSON: the payload's fields behind the extra ones."""
    return json.dumps({**extra, **json.loads(payload)}, ensure_ascii=False)


def write_tables(db: sqlite3.Connection, folder: Path, tables: Sequence[str] = TABLES) -> list[Path]:
    """Write each table as ``TABLE.parquet``, typed as declared, also when it is empty.

    Parquet holds UTF-8 only, so lone surrogates become U+FFFD here; JSON lines keep them.

    Raises:
        ConfigError: pyarrow is not installed.
        StorageError: the disk is full.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed; run `pip install 'steca-gym[llm]'`"
        ) from error

    paths = []
    for name in tables:
        declared = [(row[1], _ARROW_TYPES[row[2]]) for row in db.execute(f"PRAGMA table_info({name})")]
        order = ", ".join(column for column, _ in declared)
        rows = db.execute(f"SELECT {order} FROM {name} ORDER BY {order}").fetchall()
        data = {c: [_utf8(from_cell(row[i])) for row in rows] for i, (c, _) in enumerate(declared)}
        schema = pa.schema([pa.field(column, getattr(pa, kind)()) for column, kind in declared])
        table = pa.table(data, schema=schema)

        def write(part: Path, table: Any = table) -> None:
            # A table without rows gets no row group: datasets does not read one that is empty.
            with pq.ParquetWriter(part, table.schema) as writer:
                if table.num_rows:
                    writer.write_table(table)

        paths.append(_replace(folder / f"{name}.parquet", write))
    return paths


def _utf8(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value) if not _encodable(value) else value


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
