"""Rows of a data file or of a hub data set, each with the place that an error message names."""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
"""How a file name ends; anything else is the name of a `datasets` data set."""

Located = tuple[str, Mapping[str, Any]]
"""Where a row stands (`sums.jsonl:3`) and what it says."""


class DataError(Exception):
    """Data that cannot be used; one line with the place, what was found and what is expected."""


def is_file(name: str) -> bool:
    """Whether `name` means a file, by its suffix alone."""
    return name.lower().endswith(SUFFIXES)


def read_rows(name: str, subset: str | None = None, split: str = "train") -> Iterator[Located]:
    """Rows of a JSONL, CSV, TSV or Parquet file, or of `load_dataset(name, subset, split)`.

    Raises:
        DataError: the source is missing, corrupt, or not what its suffix says.
    """
    if not is_file(name):
        return _hub_rows(name, subset, split)
    path = Path(name)
    return _parquet_rows(path) if name.lower().endswith(".parquet") else _text_rows(path)


def _text_rows(path: Path) -> Iterator[Located]:
    kind = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    try:
        with _open(path) as file:
            if kind.suffix.lower() == ".jsonl":
                yield from _json_rows(path, file)
            else:
                yield from _table_rows(
                    path, file, _Tabs if kind.suffix.lower() == ".tsv" else csv.excel
                )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


def _json_rows(path: Path, file: IO[str]) -> Iterator[Located]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON: {error.msg} (column {error.colno})") from error
        except RecursionError as error:
            raise DataError(f"{where}: not usable JSON: nested too deeply") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: found {type(row).__name__}, expected an object {{...}}")
        yield where, row


class _Tabs(csv.excel_tab):
    """Tab-separated files carry quotes as ordinary characters."""

    quoting = csv.QUOTE_NONE


def _table_rows(path: Path, file: IO[str], dialect: type[csv.Dialect]) -> Iterator[Located]:
    reader = csv.reader(file, dialect, strict=True)
    try:
        header = next(reader, [])
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if cells and len(cells) != len(header):
                raise DataError(f"{where}: found {len(cells)} cells, expected {len(header)}")
            if cells:
                yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Located]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        rows = read_table(path).to_pylist()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: not a Parquet file: {_first_line(error)}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}: row {number}", row


def _hub_rows(name: str, subset: str | None, split: str) -> Iterator[Located]:
    import datasets

    if os.path.isfile(name):  # unlike pathlib's, it takes any text
        raise DataError(f"{name}: found another kind of file, allowed: {', '.join(SUFFIXES)}")
    try:
        rows = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{name}: data set cannot be opened: {_first_line(error)}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{name} ({split}): row {number}", row


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
