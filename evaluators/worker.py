"""What crosses the border to a worker process, and what the worker does with it.

`Workbench` says what a worker keeps warm (sources, live model, benchmarks); `EvaluationJob` asks for
one candidate; `EvaluationResult` answers with scores or with a typed failure, never with a fake
number. All three are picklable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evaluators.benchmarks.benchmark import Score, Split
from evaluators.recipe import MergeRecipe, ModelRef

FailureKind = Literal[
    "invalid_recipe", "non_finite", "out_of_memory", "timeout", "worker_lost", "benchmark_error"
]

RETRIED: dict[FailureKind, bool] = {
    "invalid_recipe": False,  # the same recipe is invalid again
    "non_finite": False,  # the same arithmetic overflows again
    "out_of_memory": True,  # memory may be free later
    "timeout": True,  # the machine may have been busy
    "worker_lost": True,  # killed from outside, most often
    "benchmark_error": False,  # scoring is deterministic
}
"""Which kinds of failure are worth another attempt."""


@dataclass(frozen=True)
class BenchmarkSpec:
    """One benchmark as a worker opens it: a key of `BENCHMARKS` or a dotted path, and its options."""

    kind: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Workbench:
    """All that a worker loads once and keeps."""

    base: ModelRef
    experts: Mapping[str, ModelRef]
    benchmarks: Mapping[str, BenchmarkSpec]
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class EvaluationJob:
    """Merge this recipe and score it on these slices of the seeded orders."""

    trial: int
    recipe: MergeRecipe
    items: Mapping[str, slice]
    split: Split = "search"
    attempt: int = 0


@dataclass(frozen=True)
class Failure:
    """Why there are no scores. `message` is one line for the user, `detail` a traceback or log tail."""

    kind: FailureKind
    message: str
    detail: str = ""


@dataclass(frozen=True)
class EvaluationResult:
    """The answer to one job. Either `failure` is set or `scores` holds every benchmark asked for.

    Attributes:
        measures: facts of the merge, such as `delta_l1` (mean |delta| per parameter).
        timings: seconds per part: `load_s`, `merge_s`, and `<benchmark>_s`.
        digest: of the merged tensors, as `MergeEngine` defines it.
    """

    trial: int
    attempt: int
    scores: Mapping[str, Score] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""
    failure: Failure | None = None
