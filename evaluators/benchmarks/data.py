"""Items of a benchmark: distinct rows in a seeded order, cut into search and held-out items.

The order comes from hashes of (seed, content), not from a random generator: it depends on nothing
but the seed and the rows themselves, whatever their order in the file and whatever the versions of
libraries. The first n of a longer order are the shorter order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from evaluators.benchmarks.benchmark import Split
from evaluators.benchmarks.rows import DataError, is_file, read_rows
from evaluators.recipe import Frozen

Row = tuple[Any, ...]
"""The values of one item, in the order of the benchmark's columns."""

Check = Callable[[Row], None]
"""Raises ValueError if values that are right alone do not go together."""


class DataOptions(Frozen):
    """Where items come from; every benchmark that reads rows has these options.

    Attributes:
        data: a JSONL, CSV, TSV (each also .gz) or Parquet file, or a `datasets` name.
        held_out: a second file; for a `datasets` name, another of its splits. If None, a share of
            the distinct rows is held out.
        limit: search items to use, drawn by the seed; None = all.
        held_out_limit: the same for held-out items.
        held_out_share: share of the distinct rows to hold out when `held_out` is None.
        seed: of the order and of the split.
        subset: configuration of a `datasets` data set.
        data_split: split of a `datasets` data set, "train" if None.
    """

    data: str = Field(min_length=1)
    held_out: str | None = None
    limit: int | None = Field(None, ge=1)
    held_out_limit: int | None = Field(None, ge=1)
    held_out_share: float = Field(0.5, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    subset: str | None = None
    data_split: str | None = None

    @model_validator(mode="after")
    def _keys_fit_the_source(self) -> Self:
        local = is_file(self.data)
        if local and (self.subset is not None or self.data_split is not None):
            raise ValueError("`subset` and `data_split` are for `datasets` names, `data` is a file")
        if local and self.held_out is not None and not is_file(self.held_out):
            raise ValueError(f"`held_out`: found {self.held_out!r}, expected a file as `data` is")
        return self


@dataclass(frozen=True)
class Column:
    """One field of a row.

    Attributes:
        parse: gives the value or raises ValueError with what is expected.
        read_by_model: part of what the model reads; rows that agree in all such columns are one.
    """

    name: str
    parse: Callable[[Any], Any]
    read_by_model: bool = True


@dataclass(frozen=True)
class Items:
    """Search and held-out items, each in its seeded order."""

    search: tuple[Row, ...]
    held_out: tuple[Row, ...]

    def of(self, split: Split) -> tuple[Row, ...]:
        """All items of one split, in order."""
        return self.search if split == "search" else self.held_out

    def fingerprint(self, split: Split) -> str:
        """Hash of the split's items, answers included, in their order."""
        digest = hashlib.sha256()
        for row in self.of(split):
            digest.update(_digest(row))
        return digest.hexdigest()


def accept(_row: Row) -> None:
    """Find nothing wrong with a row: the check of columns that do not depend on each other."""


def open_items(options: DataOptions, columns: Sequence[Column], check: Check = accept) -> Items:
    """Read, check, split and order the items.

    Raises:
        DataError: a source is missing, empty or corrupt, a field is missing or of the wrong kind,
            both splits share rows, or there are too few rows to split.
    """
    rows = _distinct(options, options.data, options.data_split, columns, check)
    if options.held_out is None:
        ordered = _ordered(rows, options.seed)
        held = round(options.held_out_share * len(ordered))
        if not 0 < held < len(ordered):
            share = f"held_out_share {options.held_out_share:g}"
            raise DataError(f"{options.data}: {len(ordered)} distinct rows, too few for {share}")
        search, held_out = ordered[held:], ordered[:held]
    else:
        local = is_file(options.data)
        source, split = (options.held_out, None) if local else (options.data, options.held_out)
        others = _distinct(options, source, split, columns, check)
        _check_disjoint(options, rows, others)
        search, held_out = _ordered(rows, options.seed), _ordered(others, options.seed)
    return Items(search[: options.limit], held_out[: options.held_out_limit])


def _distinct(
    options: DataOptions,
    source: str,
    split: str | None,
    columns: Sequence[Column],
    check: Check,
) -> dict[bytes, Row]:
    """Rows by the hash of what the model reads; of equal rows the first stays."""
    rows: dict[bytes, Row] = {}
    for where, raw in read_rows(source, options.subset, split or "train"):
        row = tuple(_value(column, raw, where) for column in columns)
        try:
            check(row)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
        shown = [v for v, column in zip(row, columns, strict=True) if column.read_by_model]
        rows.setdefault(_digest(shown), row)
    if not rows:
        raise DataError(f"{source}: no rows")
    return rows


def _value(column: Column, raw: Mapping[str, Any], where: str) -> Any:
    if column.name not in raw:
        found = ", ".join(map(str, raw)) or "nothing"
        raise DataError(f"{where}: no field {column.name!r}; found {found}")
    try:
        return column.parse(raw[column.name])
    except ValueError as error:
        found = repr(raw[column.name])
        shown = found if len(found) <= 60 else found[:57] + "..."
        raise DataError(f"{where}: {column.name}: found {shown}, expected {error}") from None


def _ordered(rows: Mapping[bytes, Row], seed: int) -> tuple[Row, ...]:
    def place(key: bytes) -> bytes:
        return hashlib.sha256(b"%d:" % seed + key).digest()

    return tuple(rows[key] for key in sorted(rows, key=place))


def _check_disjoint(
    options: DataOptions, search: Mapping[bytes, Row], held_out: Mapping[bytes, Row]
) -> None:
    shared = [row for key, row in search.items() if key in held_out]
    if shared:
        example = repr(shared[0][0])[:60]
        count = f"{len(shared)} rows of {options.data}"
        raise DataError(f"{options.held_out}: shares {count}, for example {example}")


def _digest(values: Iterable[Any]) -> bytes:
    """Hash of parsed values; numbers of pixels by their bytes."""
    digest = hashlib.sha256()
    for value in values:
        array = isinstance(value, np.ndarray)
        content = value.tobytes() if array else json.dumps(value).encode()
        digest.update(b"%d:" % len(content) + content)
    return digest.digest()


def text(value: Any) -> str:
    """Accept a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("a non-empty string")
    return value


def index(value: Any) -> int:
    """Accept an integer from 0, also in digits as table files write it."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError("an integer from 0")


def texts(value: Any) -> tuple[str, ...]:
    """Accept two or more non-empty strings; table files write them as a JSON list."""
    found = _from_json(value)
    if not isinstance(found, list | tuple) or len(found) < 2:
        raise ValueError("a list of at least two strings")
    return tuple(text(item) for item in found)


def numbers(value: Any) -> NDArray[np.float32]:
    """Accept finite numbers, nested as they are; table files write them as a JSON list."""
    try:
        with np.errstate(over="ignore"):  # too large a number is refused below
            array = np.asarray(_from_json(value), dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError("a list of numbers, or equally long lists of them") from None
    if array.size < 1 or not np.isfinite(array).all():
        raise ValueError("finite numbers, at least one")
    return array


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        raise ValueError("a list, in a table file written as JSON") from None
