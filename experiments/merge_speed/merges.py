"""Our merges into live tensors, against the bandwidth floor of the same model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor

from evaluators.merging.engine import MergeEngine, MergeReport
from evaluators.merging.stored import combined_digest, tensor_digest
from evaluators.merging.tables import Tables
from evaluators.recipe import MergeRecipe
from evaluators.sources import Sources
from experiments.merge_speed.cases import CASES, Case, recipe
from experiments.merge_speed.clock import cpu_seconds, in_turns
from experiments.merge_speed.floor import floor


@dataclass(frozen=True)
class MergeRow:
    """One operator; seconds are of the processor.

    Attributes:
        target: at most so many times the floor; None = none was set.
        whole_s: median of a merge with compiled kernels: guards, sparsity and digest included.
        pass_s: the same without the digest, which is a pass of its own.
        eager_s: of one whole merge by torch's own operations; None = not measured.
        equal: whether the compiled and the eager merge have the same digest.
    """

    name: str
    target: float | None
    whole_s: float
    pass_s: float
    eager_s: float | None = None
    equal: bool | None = None


@dataclass(frozen=True)
class Merges:
    """The rows of one model.

    Attributes:
        floor_s: median of the bandwidth floor, in the same rounds as the merges.
        floor_gb_s: its gigabytes per second.
        floor_how: what was run for it.
        digest_s: median of digesting the merged model.
        rounds: how many repetitions the medians are of.
    """

    floor_s: float
    floor_gb_s: float
    floor_how: str
    digest_s: float
    rounds: int
    rows: tuple[MergeRow, ...]


def live_tensors(sources: Sources, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Make the tensors that a live model would have, where the base's are."""
    return {n: torch.zeros_like(t, dtype=dtype) for n, t in sources.base.tensors.items()}


def time_merges(
    sources: Sources, rounds: int, *, eager: bool, cases: Sequence[Case] = CASES
) -> Merges:
    """Time all cases and the floor in turns; every round has another recipe of each case."""
    tables, target = Tables(sources), live_tensors(sources)
    engine = MergeEngine(sources, tables)
    bandwidth = floor(sum(t.numel() for t in target.values()))

    def merge(case: Case, number: int) -> MergeReport:
        return engine.merge_into(recipe(case, sources, number), target)

    works: dict[str, Callable[[int], object]] = {
        "floor": lambda _: bandwidth.run(),
        "digest": lambda _: _digest(target),
        **{case.name: partial(merge, case) for case in cases},
    }
    timed = {name: median(seconds) for name, seconds in in_turns(works, rounds).items()}
    floor_s, digest_s = timed["floor"] * bandwidth.scale, timed["digest"]
    rows = [MergeRow(c.name, c.target, timed[c.name], timed[c.name] - digest_s) for c in cases]
    if eager:
        both = (engine, MergeEngine(sources, tables, compiled=False))
        pairs = zip(cases, rows, strict=True)
        rows = [_with_eager(both, recipe(c, sources), target, r) for c, r in pairs]
    gb_s = bandwidth.size_bytes / floor_s / 1e9
    return Merges(floor_s, gb_s, bandwidth.how, digest_s, rounds, tuple(rows))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return combined_digest({name: tensor_digest(name, t) for name, t in tensors.items()})


def _with_eager(
    engines: Sequence[MergeEngine], wanted: MergeRecipe, target: dict[str, Tensor], row: MergeRow
) -> MergeRow:
    """Merge once more with a compiled and an eager engine, and compare."""
    compiled = engines[0].merge_into(wanted, target)
    reports: list[MergeReport] = []
    seconds = cpu_seconds(lambda: reports.append(engines[1].merge_into(wanted, target)))
    return replace(row, eager_s=seconds, equal=reports[0].digest == compiled.digest)
