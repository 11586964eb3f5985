"""What a benchmark is and what a score is.

A score is a measurement: a value with its standard error, the items behind it and their outcomes.
Outcomes are kept per item in the benchmark's seeded order, so a score can grow without scoring any
item twice.
"""

from __future__ import annotations

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
        standard_error: of `value`, in the same units; positive.
        n: number of items scored.
        outcomes: one number per item, in the seeded order, float32.
        seconds: wall time of the scoring.
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
        """How many items the split holds (after `limit`)."""
        ...

    def fingerprint(self, split: Split) -> str:
        """Hash of the split's items in their order; the preflight and the store compare it."""
        ...

    def outcomes(self, model: LiveModel, split: Split, items: slice) -> Outcomes:
        """Score those items of the seeded order, one finite number each."""
        ...

    def summary(self, outcomes: Outcomes) -> tuple[float, float]:
        """Value and standard error from outcomes of any number of items ≥ 1."""
        ...


def score(benchmark: Benchmark, model: LiveModel, split: Split, items: slice) -> Score:
    """Score a model on those items of the seeded order.

    Raises:
        BenchmarkError: the slice holds no item, or an outcome or the value is not finite.
    """
    started = time.perf_counter()
    numbers = range(*items.indices(benchmark.size(split)))
    if not numbers:
        held = f"{benchmark.size(split)} {split} items"
        raise BenchmarkError(f"no item from {items.start} to {items.stop}: there are {held}")
    outcomes = np.asarray(benchmark.outcomes(model, split, items), dtype=np.float32)
    if outcomes.shape != (len(numbers),):
        raise BenchmarkError(f"{outcomes.shape} outcomes of {len(numbers)} items")
    wrong = np.flatnonzero(~np.isfinite(outcomes))
    if len(wrong):
        first = f"{split} item {numbers[wrong[0]]}"
        raise BenchmarkError(f"{first}: outcome {outcomes[wrong[0]]} ({len(wrong)} not finite)")
    value, standard_error = benchmark.summary(outcomes)
    if not (math.isfinite(value) and math.isfinite(standard_error)):
        raise BenchmarkError(f"{benchmark.metric.name} of {len(outcomes)} items is {value}")
    seconds = time.perf_counter() - started
    return Score(value, standard_error, len(outcomes), outcomes, split, seconds)
