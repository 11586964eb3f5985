"""What crosses the border to a worker process, and what the worker does with it.

`Workbench` says what a worker keeps warm (sources, live model, benchmarks); `EvaluationJob` asks
for one candidate; `EvaluationResult` answers with scores or with a typed failure, never with a fake
number. All three are picklable. `Worker` turns jobs into results, in whatever process.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from typing import TYPE_CHECKING, Any, Literal

from evaluators.benchmarks.benchmark import (
    NOTHING,
    Benchmark,
    Outcomes,
    Score,
    Split,
    order_of,
    score,
)
from evaluators.benchmarks.table import open_benchmark, summed_up
from evaluators.recipe import DType, MergeRecipe, ModelRef, TokenizerSource

if TYPE_CHECKING:
    from evaluators.merging.engine import MergeEngine, MergeReport
    from evaluators.models import LiveModel

FailureKind = Literal[
    "invalid_recipe",
    "non_finite",
    "out_of_memory",
    "timeout",
    "worker_lost",
    "loading_error",
    "full_disk",
    "benchmark_error",
    "other_weights",
]

RETRIED: dict[FailureKind, bool] = {
    "invalid_recipe": False,  # the same recipe is invalid again
    "non_finite": False,  # the same arithmetic overflows again
    "out_of_memory": True,  # memory may be free later
    "timeout": True,  # the machine may have been busy
    "worker_lost": True,  # killed from outside, most often
    "loading_error": True,  # the files may be back
    "full_disk": True,  # space may be free later
    "benchmark_error": False,  # scoring is deterministic
    "other_weights": False,  # merging is deterministic: something else changed
}
"""Which kinds of failure are worth another attempt."""

BLAMELESS: frozenset[FailureKind] = frozenset({"loading_error", "full_disk"})
"""Kinds that say something of the worker's surroundings and nothing of the trial."""


@dataclass(frozen=True)
class BenchmarkSpec:
    """One benchmark as a worker opens it: a key of `BENCHMARKS` or a dotted path; its options."""

    kind: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Workbench:
    """All that a worker loads once and keeps; `device` scores, and may merge.

    Attributes:
        digests: "base" or expert → digest that its weights must have; none if any will do.
        fingerprints: benchmark → split → fingerprint that its items must have; none if any will do.
    """

    base: ModelRef
    experts: Mapping[str, ModelRef]
    benchmarks: Mapping[str, BenchmarkSpec]
    device: str = "cpu"
    merge_on_device: bool = False
    threads: int = 1
    tokenizer: TokenizerSource = "base"
    digests: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, Mapping[Split, str]] = field(default_factory=dict)


class ChangedError(Exception):
    """Weights or items are not those that a worker was told to expect; one line."""


@dataclass(frozen=True)
class EvaluationJob:
    """Merge this recipe and score it on these slices of the seeded orders.

    Attributes:
        order: seed of an order of the candidate's own, whose slices `items` then are; None: the
            seeded order of each benchmark.
        known: benchmark → outcomes that these weights gave before, of the items before the slice;
            scores answer for both.
        digest: of the weights that gave `known`; any others are a failure.
    """

    trial: int
    recipe: MergeRecipe
    items: Mapping[str, slice]
    split: Split = "search"
    attempt: int = 0
    order: int | None = None
    known: Mapping[str, Outcomes] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True)
class Failure:
    """Why there are no scores. `message` is one line, `detail` a traceback or the end of a log."""

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
        scored: items that this job scored, all benchmarks together; known ones do not count.
    """

    trial: int
    attempt: int
    scores: Mapping[str, Score] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""
    failure: Failure | None = None
    scored: int = 0


class Worker:
    """Answers jobs one after another and keeps everything that the next one can use again.

    Sources and benchmarks are opened once; the live model is opened for a recipe's dtype and
    opened again only for another. It sets torch's number of threads in its process.
    """

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench
        self._engine: MergeEngine | None = None
        self._benchmarks: dict[str, Benchmark] = {}
        self._model: LiveModel | None = None
        self._dtype: DType | None = None

    def warm(self) -> None:
        """Open sources and benchmarks, and import what the live model needs.

        Raises:
            Exception: whatever opening raises; `run` would answer with it as a failure.
        """
        import torch

        import evaluators.models  # noqa: F401  imports transformers, which takes seconds

        torch.set_num_threads(self._workbench.threads)
        self._open_engine()
        self._open_benchmarks()

    def run(
        self, job: EvaluationJob, started: Callable[[], None] = lambda: None
    ) -> EvaluationResult:
        """Merge, measure and score one candidate. Never raises but for Ctrl-C.

        Args:
            job: what to evaluate.
            started: called when everything is loaded and the job itself begins.
        """
        timings: dict[str, float] = {}
        otherwise: FailureKind = "loading_error"
        try:
            with _timed(timings, "load_s"):
                self.warm()
                engine, model = self._open_engine(), self._open_model(job.recipe.dtype)
            otherwise = "benchmark_error"
            started()
            return self._evaluate(job, engine, model, timings)
        except Exception as error:
            return EvaluationResult(
                job.trial, job.attempt, timings=timings, failure=_failure(error, otherwise)
            )

    def _evaluate(
        self, job: EvaluationJob, engine: MergeEngine, model: LiveModel, timings: dict[str, float]
    ) -> EvaluationResult:
        with _timed(timings, "merge_s"):
            report = engine.merge_into(job.recipe, model.tensors)
        if (failure := _unfit(job, report)) is not None:
            return EvaluationResult(
                job.trial, job.attempt, timings=timings, digest=report.digest, failure=failure
            )
        scores = {}
        for name in job.items:
            with _timed(timings, f"{name}_s"):
                scores[name] = self._score(job, name, model)
        known = sum(len(job.known.get(name, NOTHING)) for name in scores)
        return EvaluationResult(
            job.trial,
            job.attempt,
            scores,
            {"delta_l1": report.delta_l1},
            timings,
            report.digest,
            scored=sum(s.n for s in scores.values()) - known,
        )

    def _score(self, job: EvaluationJob, name: str, model: LiveModel) -> Score:
        benchmark, items = self._benchmarks[name], job.items[name]
        known = job.known.get(name, NOTHING)
        if job.order is None:
            return score(benchmark, model, job.split, items, known)
        own = order_of(benchmark.size(job.split), job.order)[items]
        return score(benchmark, model, job.split, own, known)

    def _open_engine(self) -> MergeEngine:
        from evaluators.merging.engine import MergeEngine
        from evaluators.merging.tables import Tables
        from evaluators.sources import open_sources

        if self._engine is None:
            bench = self._workbench
            sources = open_sources(bench.base, bench.experts, tokenizer=bench.tokenizer)
            for name, digest in bench.digests.items():
                if sources.all[name].digest != digest:
                    raise ChangedError(f"sources.{name}: the weights changed")
            tables, on_device = Tables(sources, kept=True), self._workbench.merge_on_device
            self._engine = MergeEngine(sources, tables, on_device=on_device)
        return self._engine

    def _open_benchmarks(self) -> None:
        for name, spec in self._workbench.benchmarks.items():
            if name in self._benchmarks:
                continue
            benchmark = open_benchmark(spec.kind, spec.options)
            for split, fingerprint in self._workbench.fingerprints.get(name, {}).items():
                if benchmark.fingerprint(split) != fingerprint:
                    raise ChangedError(f"benchmarks.{name}: the {split} items changed")
            self._benchmarks[name] = benchmark

    def _open_model(self, dtype: DType) -> LiveModel:
        from evaluators.models import open_model

        if self._model is None or self._dtype != dtype:
            self._model = None  # before the next one is in memory
            folder = self._open_engine().sources.base.folder
            self._model, self._dtype = open_model(folder, dtype, self._workbench.device), dtype
        return self._model


@contextmanager
def _timed(timings: dict[str, float], part: str) -> Iterator[None]:
    begun = time.perf_counter()
    try:
        yield
    finally:
        timings[part] = time.perf_counter() - begun


def _unfit(job: EvaluationJob, report: MergeReport) -> Failure | None:
    """Say why what was merged must not be scored."""
    if report.non_finite > 0:
        found = f"{report.non_finite} of {report.parameters} merged weights"
        return Failure("non_finite", found)
    if job.digest and job.digest != report.digest:
        found = f"merged {report.digest[:12]}…, scored before {job.digest[:12]}…"
        return Failure("other_weights", found)
    return None


def _failure(error: Exception, otherwise: FailureKind) -> Failure:
    """Say what happened; what the error itself does not tell is `otherwise`."""
    from evaluators.merging.settings import RecipeError

    kind = otherwise
    message = summed_up(error)
    if _is_out_of_memory(error):
        kind = "out_of_memory"
    elif (full := _full_disk(error)) is not None:
        kind = "full_disk"
        message = message if full is error else f"{message} ({full})"
    elif isinstance(error, RecipeError):
        kind = "invalid_recipe"
    return Failure(kind, message, "".join(traceback.format_exception(error)))


def _is_out_of_memory(error: BaseException) -> bool:
    from torch import OutOfMemoryError

    return any(
        isinstance(e, (MemoryError, OutOfMemoryError))
        # torch's allocator on the CPU has no type of its own
        or (isinstance(e, RuntimeError) and "can't allocate memory" in str(e))
        for e in _causes(error)
    )


def _full_disk(error: BaseException) -> OSError | None:
    """The cause that says that a disk is full, and of which file, if the system names it."""
    full = (e for e in _causes(error) if isinstance(e, OSError) and e.errno in (ENOSPC, EDQUOT))
    return next(full, None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, each once: a benchmark may have wrapped it."""
    seen: set[int] = set()  # of identities: `raise e from e` leads back
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
