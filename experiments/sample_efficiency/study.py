"""Runs: problem x contestant x seed → what the evaluated points are worth after each evaluation.

A finished run is one JSON file, named by a hash of everything that determines it; it is never run
again. Values are free of noise. Two sets of points are valued:

- `hypervolume`: all evaluated points. It never falls; the first measurements are of this one.
- `front_hypervolume`, `front_igd_plus`: the points that no other dominates by their *measured*
  values, valued by the truth: what a user would be given. It may fall.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import torch
from torch import Tensor

from acquisition.strategy import Observations, Proposal
from experiments.sample_efficiency.contestants import Contestant, open_contestant
from experiments.sample_efficiency.problems import ITEMS, Problem, open_problem
from experiments.sample_efficiency.references import FOLDER, Reference, open_reference
from mmmo.pareto import hypervolume

RUNS = Path(__file__).parent / "runs"
VERSION = 1
"""Raised when the meaning of a run changes: older files are then not read."""


@dataclass(frozen=True)
class Run:
    """All that determines a run.

    Attributes:
        contestant: a label of `contestants`.
        items: of every benchmark, for every evaluation.
        anchors: whether strategies are told the problem's anchors.
        reference: whether strategies are told the reference point; else they infer one.
    """

    problem: str
    contestant: str
    seed: int
    budget: int = 30
    items: int = ITEMS
    anchors: bool = False
    reference: bool = False

    @property
    def key(self) -> str:
        """The name of its file."""
        text = json.dumps([VERSION, asdict(self)], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{self.problem}-{self.contestant.partition(':')[0]}-{self.seed}-{digest}"


def execute(run: Run) -> dict[str, Any]:
    """Run it: the record with a trace per measure, and processor seconds spent on proposals."""
    problem = open_problem(run.problem)
    reference = open_reference(problem)
    contestant = open_contestant(run.contestant, problem.dimension, run.budget)
    X, Y, seconds = search(run, problem, contestant)
    return {
        "run": asdict(run),
        "proposal_cpu_s": round(seconds, 2),
        **traces(problem, reference, X, Y),
    }


def search(run: Run, problem: Problem, contestant: Contestant) -> tuple[Tensor, Tensor, float]:
    """Spend the budget: `budget x d` points, `budget x m` measurements, processor seconds."""
    seen = _nothing(run, problem)
    # Unrelated to the contestants' random numbers, and the same for all of them.
    noise = np.random.default_rng((run.seed, 1_000_003))
    seconds = 0.0
    while (n := len(seen.X)) < run.budget:
        q = min(contestant.batch if n else contestant.first, run.budget - n)
        start = time.process_time()
        proposal: Proposal = contestant.strategy.propose(seen, q, run.seed)
        seconds += time.process_time() - start
        Y, Yvar = problem.evaluate(proposal.X, noise, run.items)
        seen = _extended(seen, proposal.X, Y, Yvar)
    return seen.X, seen.Y, seconds


def _nothing(run: Run, problem: Problem) -> Observations:
    none = torch.empty(0, problem.dimension, dtype=torch.float64)
    values = torch.empty(0, len(problem.reference), dtype=torch.float64)
    return Observations(
        X=none,
        Y=values,
        Yvar=values,
        pending=none,
        failed=none,
        anchors=problem.anchors if run.anchors else none,
        reference=problem.reference if run.reference else None,
        known=problem.known,
    )


def _extended(seen: Observations, X: Tensor, Y: Tensor, Yvar: Tensor) -> Observations:
    return Observations(
        X=torch.cat([seen.X, X]),
        Y=torch.cat([seen.Y, Y]),
        Yvar=torch.cat([seen.Yvar, Yvar]),
        pending=seen.pending,
        failed=seen.failed,
        anchors=seen.anchors,
        reference=seen.reference,
        known=seen.known,
    )


def traces(problem: Problem, reference: Reference, X: Tensor, Y: Tensor) -> dict[str, list[float]]:
    """The three measures after each evaluation; hypervolumes as a fraction of the reference's."""
    truth, measured = problem.truth(X).numpy(), Y.numpy()
    point = problem.reference.numpy()
    result: dict[str, list[float]] = {
        "hypervolume": [],
        "front_hypervolume": [],
        "front_igd_plus": [],
    }
    for n in range(1, len(X) + 1):
        front = truth[:n][moocore.is_nondominated(measured[:n], maximise=True, keep_weakly=True)]
        values = (
            hypervolume(truth[:n], point) / reference.hypervolume,
            hypervolume(front, point) / reference.hypervolume,
            reference.igd_plus(front),
        )
        for trace, value in zip(result.values(), values, strict=True):
            trace.append(round(value, 5))
    return result


def finished(runs: Sequence[Run], folder: Path = RUNS) -> Iterator[dict[str, Any]]:
    """The records of those runs that are finished."""
    for run in runs:
        path = folder / f"{run.key}.json"
        if path.exists():
            yield json.loads(path.read_text())


def run_all(
    runs: Sequence[Run],
    processes: int,
    folder: Path = RUNS,
    tell: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run what is missing, `processes` at a time with one thread each; all records, in order.

    A killed study loses only the runs under way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [run for run in runs if not (folder / f"{run.key}.json").exists()]
    for name in dict.fromkeys(run.problem for run in missing):
        open_reference(open_problem(name), FOLDER)  # made once, not by every process
    if processes == 1:
        for i, run in enumerate(missing, 1):
            tell(f"{i}/{len(missing)} {_finish(run, folder)}")
    elif missing:
        os.environ["OMP_NUM_THREADS"] = "1"  # for the children, before they import torch
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=_one_thread) as pool:
            futures = [pool.submit(_finish, run, folder) for run in missing]
            for i, future in enumerate(as_completed(futures), 1):
                tell(f"{i}/{len(missing)} {future.result()}")
    return list(finished(runs, folder))


def _one_thread() -> None:
    torch.set_num_threads(1)


def _finish(run: Run, folder: Path) -> str:
    """Execute and write whole or not at all; a line about it."""
    record = execute(run)
    path = folder / f"{run.key}.json"
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(record) + "\n")
    draft.replace(path)
    return (
        f"{run.problem} {run.contestant} seed {run.seed}: "
        f"{100 * record['hypervolume'][-1]:.1f} %, {record['proposal_cpu_s']:.0f} CPU s"
    )
