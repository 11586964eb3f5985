"""The first merge of a process: compiling, building tables, and the memory that it takes.

    python -m experiments.merge_speed.fresh FOLDER CASE

Prints one JSON object: `Fresh`. Run it with `MMMO_CACHE` in an empty folder for cold caches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.merge_speed.clock import child_cpu_seconds, cpu_seconds


@dataclass(frozen=True)
class Spent:
    """What a merge took.

    Attributes:
        wall_s: seconds on the clock.
        cpu_s: processor seconds of the process and of the compilers that it ran.
    """

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Fresh:
    """The first merges of a process.

    Attributes:
        first: the first merge, the engine's opening included.
        later: the second, of another recipe.
        start_mb: peak memory before sources were opened: Python, torch and our modules.
        peak_mb: peak resident memory in the end, mapped files included.
        model_mb: size of one model; there are four sources and the merged one.
    """

    first: Spent
    later: Spent
    start_mb: float
    peak_mb: float
    model_mb: float

    @property
    def once(self) -> Spent:
        """What the first merge took longer than the second."""
        return Spent(self.first.wall_s - self.later.wall_s, self.first.cpu_s - self.later.cpu_s)


def measure(folder: Path, case: str, cache: Path) -> Fresh:
    """Run this module in a process of its own, with that cache.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", __spec__.name, str(folder), case]
    environment = os.environ | {"MMMO_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    content = json.loads(done.stdout)
    first, later = (Spent(**content.pop(name)) for name in ("first", "later"))
    return Fresh(first, later, **content)


def peak_mb() -> float:
    """Peak resident memory of this process since it began to run its program."""
    # Not `ru_maxrss`, which starts at what the parent had when it forked.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1e3


def _spent(work: Callable[[], object]) -> Spent:
    started = time.perf_counter()
    own = 0.0

    def timed() -> None:
        nonlocal own
        own = cpu_seconds(work)

    children = child_cpu_seconds(timed)
    return Spent(time.perf_counter() - started, own + children)


def main(folder: Path, name: str) -> Fresh:
    """Merge twice."""
    import torch

    from evaluators.merging.engine import MergeEngine
    from evaluators.merging.tables import Tables
    from experiments.merge_speed.cases import CASES, recipe
    from experiments.merge_speed.merges import live_tensors
    from experiments.merge_speed.zoo import open_zoo

    torch.set_num_threads(1)
    start = peak_mb()
    case = next(case for case in CASES if case.name == name)
    sources = open_zoo(folder)
    target = live_tensors(sources)
    engines: list[MergeEngine] = []

    def first() -> None:
        engines.append(MergeEngine(sources, Tables(sources, kept=True)))
        engines[0].merge_into(recipe(case, sources, 0), target)

    one = _spent(first)
    two = _spent(lambda: engines[0].merge_into(recipe(case, sources, 1), target))
    return Fresh(one, two, start, peak_mb(), sources.base.size_bytes / 1e6)


if __name__ == "__main__":
    print(json.dumps(asdict(main(Path(sys.argv[1]), sys.argv[2]))))
