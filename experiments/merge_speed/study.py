"""All measurements of one run, as plain data."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from evaluators.merging.tables import Tables
from evaluators.sources import Sources
from experiments.merge_speed import fresh, peer
from experiments.merge_speed.cases import (
    CASES,
    FASTER_THAN_KERNEL,
    FASTER_THAN_PROCESS,
    Case,
    recipe,
)
from experiments.merge_speed.clock import cpu_seconds
from experiments.merge_speed.fresh import Fresh, Spent
from experiments.merge_speed.merges import Merges, time_merges
from experiments.merge_speed.zoo import HERE, SEED, SIZES, build, open_zoo

SMALL = ("tiny", "0.1b")
"""Sizes at which slow things are measured, too: eager merges, mergekit's functions in process."""
MAGNITUDES = "magnitudes"
COMPARED = {"task_arithmetic": None, "ties": FASTER_THAN_PROCESS}
"""Methods that mergekit merges, too → how many times faster we want to be than its process."""


@dataclass(frozen=True)
class PeerRow:
    """One merge by mergekit (n = 1) and by us (the median), CPU seconds."""

    what: str
    theirs_s: float
    ours_s: float
    target: float | None

    @property
    def faster(self) -> float:
        """How many times faster we are."""
        return self.theirs_s / self.ours_s


@dataclass(frozen=True)
class SizeResults:
    """What was measured on one model.

    Attributes:
        tables_s: kind of table → CPU seconds to make it for all experts, sources resident.
        first_cold: what the first TIES merge of a process takes longer than the second, kernels
            compiled already: touching the files, digesting them, making tables and storing them.
        first_warm: the same in the next process, which finds the tables on disk.
        memory: of that process.
    """

    size: str
    parameters: int
    tensors: int
    merges: Merges
    mergekit: tuple[PeerRow, ...]
    tables_s: Mapping[str, float]
    first_cold: Spent
    first_warm: Spent
    memory: Fresh


@dataclass(frozen=True)
class CompileRow:
    """Wall seconds that the first merge of a process takes longer than the second, smallest model.

    Attributes:
        cold_s: nothing is cached.
        warm_s: a process before it compiled the same.
    """

    name: str
    cold_s: float
    warm_s: float


@dataclass(frozen=True)
class Results:
    """One run."""

    about: Mapping[str, str]
    sizes: tuple[SizeResults, ...]
    compiling: tuple[CompileRow, ...]
    campaign_ms: Mapping[str, float]


def about(command: str, note: str) -> Mapping[str, str]:
    """Say on what and with what this runs."""
    asked = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return {
        "command": command,
        "commit": commit or "unknown",
        "seed": str(SEED),
        "machine": f"{names[0].partition(': ')[2] if names else platform.processor()}, "
        f"{os.cpu_count()} logical processors, load averages {load} at the start",
        "note": note,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers", "mergekit")},
    }


def measure(name: str, rounds: int, *, mergekit: bool, root: Path = HERE) -> SizeResults:
    """Measure everything on one model, which is built first, below `root`."""
    folder = build(name, root)
    sources = open_zoo(folder)
    merges = time_merges(sources, rounds, eager=name in SMALL)
    compared = _compare(sources, merges, name) if mergekit else ()
    with tempfile.TemporaryDirectory() as cache:
        ties = next(case.name for case in CASES if case.method == "ties")
        fresh.measure(build("tiny", root), ties, Path(cache))  # compiles the kernels
        cold, warm = (fresh.measure(folder, ties, Path(cache)) for _ in range(2))
    size = SIZES[name]
    return SizeResults(
        size=name,
        parameters=size.parameters,
        tensors=len(size.shapes),
        merges=merges,
        mergekit=compared,
        tables_s=table_seconds(sources),
        first_cold=cold.once,
        first_warm=warm.once,
        memory=warm,
    )


def table_seconds(sources: Sources) -> Mapping[str, float]:
    """Make every kind of table in memory; a table covers all tensors when one is asked for."""
    tables, names = Tables(sources), sources.base.names
    name, pairs = names[0], [(e, n) for e in sources.experts for n in names]
    return {
        MAGNITUDES: cpu_seconds(lambda: [tables.levels(e, name) for e in sources.experts]),
        "ranks within rows": cpu_seconds(lambda: [tables.ranks(e, name) for e in sources.experts]),
        "inner products": cpu_seconds(lambda: tables.gram(name)),
        "survivors": cpu_seconds(lambda: [tables.survivors(SEED, *pair, 0) for pair in pairs]),
    }


def compiling() -> tuple[CompileRow, ...]:
    """Measure what compiling costs, operator by operator, each in an empty cache."""
    return tuple(_compile_row(case) for case in CASES)


def _compile_row(case: Case) -> CompileRow:
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (fresh.measure(build("tiny"), case.name, Path(cache)) for _ in range(2))
    return CompileRow(case.name, cold.once.wall_s, warm.once.wall_s)


def _compare(sources: Sources, merges: Merges, size: str) -> tuple[PeerRow, ...]:
    ours = {row.name: row.whole_s for row in merges.rows}
    rows = []
    for method, target in COMPARED.items():
        case = next(case for case in CASES if case.method == method)
        wanted = recipe(case, sources)
        seconds = peer.process_cpu_seconds(wanted, SIZES[size].layers)
        rows.append(PeerRow(f"process, {case.name}", seconds, ours[case.name], target))
        if size in SMALL:
            seconds = peer.kernel_cpu_seconds(wanted, sources)
            goal = FASTER_THAN_KERNEL if target else None
            rows.append(PeerRow(f"in process, {case.name}", seconds, ours[case.name], goal))
    return tuple(rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
