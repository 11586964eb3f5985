"""What a benchmark is and what a score is.

A score is a measurement: a value with its standard error, the items behind it and their outcomes.
Outcomes are kept per item in the benchmark's seeded order, so a score can grow without scoring any
item twice.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from evaluators.models import LiveModel

Split = Literal["search", "held_out"]
Goal = Literal["maximize", "minimize"]
Outcomes = NDArray[np.float32]
Positions = slice | NDArray[np.intp]
"""A slice of the seeded order, or single positions in it; what indexes an array."""

NOTHING: Outcomes = np.empty(0, dtype=np.float32)
"""What is known of a model that was never scored."""


class BenchmarkError(Exception):
    """A model cannot be scored; one line that says why. There is never a fake number instead."""


@dataclass(frozen=True)
class Metric:
    """What the value means: its name and its goal."""

    name: str
    goal: Goal


@dataclass(frozen=True)
class Score:
    """A measurement of one model on one split of one benchmark.

    Attributes:
        value: in the metric's own units; finite.
        standard_error: of `value`, in the same units; 0 or more, never 0 from a kind of the table.
        n: number of items behind it.
        outcomes: one number per item, in the order of the scoring, float32.
        seconds: wall time of this scoring; what was known before took its own.
    """

    value: float
    standard_error: float
    n: int
    outcomes: Outcomes
    split: Split
    seconds: float


class Benchmark(Protocol):
    """Scores a live model on items in a seeded order."""

    @property
    def metric(self) -> Metric:
        """The metric of every score of this benchmark."""
        ...

    def size(self, split: Split) -> int:
        """How many items the split holds (after `limit`), at least 1."""
        ...

    def fingerprint(self, split: Split) -> str:
        """Hash of the split's items in their order; the preflight and the store compare it."""
        ...

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        """Score those items of the seeded order, one finite number each, in the order asked for."""
        ...

    def summary(self, outcomes: Outcomes) -> tuple[float, float]:
        """Value and standard error from outcomes of any number of items ≥ 1."""
        ...


def order_of(n: int, seed: int) -> NDArray[np.intp]:
    """A permutation of the `n` positions of a seeded order: an order of a trial's own.

    Like the seeded order itself it comes from hashes, so that it depends on no library's version.
    """
    places = [hashlib.sha256(b"%d:%d" % (seed, i)).digest() for i in range(n)]
    return np.array(sorted(range(n), key=places.__getitem__), dtype=np.intp)


def score(
    benchmark: Benchmark,
    model: LiveModel,
    split: Split,
    items: Positions,
    known: Outcomes = NOTHING,
) -> Score:
    """Score a model on those items, and join them to what is known of the same model.

    Args:
        benchmark: that scores.
        model: to be scored.
        split: whose items.
        items: of the seeded order, none of them among the known; may be empty if any is known.
        known: outcomes of the items that the same model answered before.

    Raises:
        BenchmarkError: there is no item, an outcome or the value is not finite or no number, or
            the standard error is negative.
    """
    started = time.perf_counter()
    numbers = np.arange(benchmark.size(split))[items]
    if not len(numbers) + len(known):
        held = f"{benchmark.size(split)} {split} items"
        raise BenchmarkError(f"no item to score: there are {held}")
    new = _outcomes(benchmark, model, split, items, numbers) if len(numbers) else NOTHING
    outcomes = np.concatenate([known, new])
    value, standard_error = _summary(benchmark, outcomes)
    if not (math.isfinite(value) and math.isfinite(standard_error)):
        raise BenchmarkError(f"{benchmark.metric.name} of {len(outcomes)} items is {value}")
    if standard_error < 0:
        found = f"{value} with the standard error {standard_error}, allowed: 0 or more"
        raise BenchmarkError(f"{benchmark.metric.name} of {len(outcomes)} items is {found}")
    seconds = time.perf_counter() - started
    return Score(value, standard_error, len(outcomes), outcomes, split, seconds)


def _outcomes(
    benchmark: Benchmark,
    model: LiveModel,
    split: Split,
    items: Positions,
    numbers: NDArray[np.intp],
) -> Outcomes:
    """One finite number for each of these items, or an error that names the first without."""
    outcomes = np.asarray(benchmark.outcomes(model, split, items), dtype=np.float32)
    if outcomes.shape != (len(numbers),):
        raise BenchmarkError(f"{outcomes.shape} outcomes of {len(numbers)} items")
    wrong = np.flatnonzero(~np.isfinite(outcomes))
    if len(wrong):
        first = f"{split} item {numbers[wrong[0]]}"
        raise BenchmarkError(f"{first}: outcome {outcomes[wrong[0]]} ({len(wrong)} not finite)")
    return outcomes


def _summary(benchmark: Benchmark, outcomes: Outcomes) -> tuple[float, float]:
    """Value and standard error as Python's floats: the store takes no numbers of numpy's."""
    found = benchmark.summary(outcomes)
    try:
        value, standard_error = found
        return float(value), float(standard_error)
    except (TypeError, ValueError, OverflowError):
        shown = " ".join(repr(found).split())[:60]
        raise BenchmarkError(
            f"{benchmark.metric.name} of {len(outcomes)} items is {shown}, allowed: two numbers, "
            "the value and its standard error"
        ) from None
