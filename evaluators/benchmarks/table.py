"""The table of benchmark kinds, and how to open one. Nothing heavy is imported by looking."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from pydantic import BaseModel

from evaluators.benchmarks.benchmark import Benchmark
from evaluators.benchmarks.rows import DataError
from evaluators.kinds import ModelKind, kind_of

BENCHMARKS: dict[str, str] = {
    "exact_match": "evaluators.benchmarks.exact_match:ExactMatch",
    "perplexity": "evaluators.benchmarks.likelihood:Perplexity",
    "nll": "evaluators.benchmarks.likelihood:NLL",
    "multiple_choice": "evaluators.benchmarks.multiple_choice:MultipleChoice",
    "classification": "evaluators.benchmarks.classification:Classification",
}

NEEDS: dict[str, tuple[ModelKind, ...]] = {
    "exact_match": ("language_model",),
    "perplexity": ("language_model",),
    "nll": ("language_model",),
    "multiple_choice": ("language_model",),
    "classification": ("text_classifier", "image_classifier", "encoder"),
}
"""What a benchmark of the table can score; a user's own class is asked at the first trial."""


def misfit(kind: str, options: Mapping[str, Any], architecture: str) -> str:
    """Say why a benchmark cannot score models of an architecture; "" if it can."""
    model, needed = kind_of(architecture), NEEDS.get(kind)
    if needed is not None and model not in needed:
        allowed = " or ".join(n.replace("_", " ") for n in needed)
        return f"found {kind!r} for {architecture}, allowed: {kind!r} for a {allowed}"
    if kind == "classification" and model == "encoder" and options.get("head") is None:
        return f"found no `head` for {architecture}, allowed: `options: {{head: FILE}}`"
    return ""


def options_of(kind: str) -> type[BaseModel]:
    """Find the options model of a kind of the table, or of a dotted path `module:Class`.

    Raises:
        LookupError: there is no such kind, or no such class, or it has no `Options`, or what has
            them is no class.
    """
    found = _class_of(kind)
    options = getattr(found, "Options", None)
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise LookupError(f"{kind!r} has no pydantic model `Options`")
    if not isinstance(found, type):
        raise LookupError(f"found {kind!r}, a {type(found).__name__}, allowed: module:Class")
    return options


def open_benchmark(kind: str, options: Mapping[str, Any]) -> Benchmark:
    """Build a benchmark: `Class(Class.Options(**options))`, with its data read and checked.

    Raises:
        LookupError: there is no such kind.
        pydantic.ValidationError: an option is unknown or out of its range.
        DataError: the data cannot be used, or a user's own class raised something.
    """
    checked = options_of(kind).model_validate(dict(options))
    try:
        benchmark: Benchmark = _class_of(kind)(checked)
    except Exception as error:
        if kind in BENCHMARKS or isinstance(error, DataError):
            raise
        raise DataError(f"{kind!r} cannot be opened: {summed_up(error)}") from error
    return benchmark


def summed_up(error: Exception) -> str:
    """What was raised, in one line: its type, and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def _class_of(kind: str) -> Any:
    path = BENCHMARKS.get(kind, kind)
    if ":" not in path:
        near = difflib.get_close_matches(kind, BENCHMARKS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(BENCHMARKS)
        raise LookupError(f"found {kind!r}, allowed: {known}, or module:Class{hint}")
    try:
        return resolve_name(path)
    except Exception as error:  # a user's module may raise anything
        raise LookupError(f"{kind!r} cannot be imported: {summed_up(error)}") from error
