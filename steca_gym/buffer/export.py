"""The tables of a buffer as JSON lines and as Parquet files, written in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from steca_gym.buffer.schema import TABLES, explain, from_cell
from steca_gym.errors import ConfigError, StorageError

_ARROW_TYPES = {"TEXT": "string", "INTEGER": "int64", "REAL": "float64"}
_GROUP_ROWS = 20_000
_GROUP_BYTES = 16 << 20
"""a Parquet row group ends at either"""
_NESTED_ROWS = 500
"""rows of conversations in a row group"""


def _replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Write beside the file and rename, so that a full disk leaves no half file under its name."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, (sqlite3.Error, OSError)):
            raise StorageError(f"cannot write {str(path)!r}: {error}; {explain(error)}") from error
        raise
    return path


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """Write lines of text; lone surrogates are kept. Raises StorageError on a full disk."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", errors="surrogatepass") as file:
            file.writelines(line + "\n" for line in lines)

    return _replace(path, write)


def write_tables(db: sqlite3.Connection, folder: Path, tables: Sequence[str] = TABLES) -> list[Path]:
    """Write each table as ``TABLE.parquet``, with its declared types also when it is empty.

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

    def write_table(name: str) -> Path:
        declared = list(db.execute(f"PRAGMA table_info({name})"))
        columns = ", ".join(row[1] for row in declared)
        keys = ", ".join(row[1] for row in sorted(declared, key=lambda row: int(row[5])) if row[5])
        schema = pa.schema([pa.field(row[1], getattr(pa, _ARROW_TYPES[row[2]])()) for row in declared])

        def write(part: Path) -> None:
            with pq.ParquetWriter(part, schema) as writer:
                # No rows, no row group: datasets fails on a group without rows.
                for rows in _groups(db.execute(f"SELECT {columns} FROM {name} ORDER BY {keys}")):
                    cells = zip(*rows, strict=True)
                    data = {
                        row[1]: [_utf8(from_cell(c)) for c in cell] for row, cell in zip(declared, cells, strict=True)
                    }
                    writer.write_table(pa.table(data, schema=schema))

        return _replace(folder / f"{name}.parquet", write)

    return [write_table(name) for name in tables]


def write_rows(path: Path, schema: Any, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as one Parquet file, a bounded number in memory.

    Args:
        path: the file; its folder is made.
        schema: of pyarrow.
        rows: by column.

    Raises:
        StorageError: the disk is full.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(part: Path) -> None:
        with pq.ParquetWriter(part, schema) as writer:
            iterator = iter(rows)
            while group := list(itertools.islice(iterator, _NESTED_ROWS)):
                writer.write_table(pa.Table.from_pylist(group, schema=schema))

    return _replace(path, write)


def _groups(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Rows in lists of bounded size; none is empty."""
    group: list[tuple[Any, ...]] = []
    num_bytes = 0
    for row in rows:
        group.append(row)
        num_bytes += sum(len(cell) for cell in row if isinstance(cell, (str, bytes)))
        if len(group) >= _GROUP_ROWS or num_bytes >= _GROUP_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _utf8(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
    return value
