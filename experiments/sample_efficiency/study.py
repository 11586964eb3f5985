"""Runs: problem x contestant x seed → what the evaluated points are worth as items are spent.

A finished run is one JSON file, named by a hash of everything that determines it; it is never run
again. Values are free of noise. Two sets of points are valued:

- `hypervolume`: all evaluated points. It never falls; the first measurements are of this one.
- `front_hypervolume`, `front_igd_plus`: the points that no other dominates by their *measured*
  values, valued by the truth: what a user would be given. It may fall. `held_out_hypervolume` is of
  the same points, valued on items that no search sees, where a problem has them.

`confirmed` has the measures of the front among the points that answered all items in the end.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import moocore
import torch
from torch import Tensor

from experiments.sample_efficiency.contestants import open_contestant
from experiments.sample_efficiency.problems import ITEMS, Problem, open_problem
from experiments.sample_efficiency.references import FOLDER, Reference, open_reference
from experiments.sample_efficiency.spending import Search, search
from mmmo.pareto import hypervolume

RUNS = Path(__file__).parent / "runs"
VERSION = 2
"""Raised when the meaning of a run changes: older files are then not read."""


@dataclass(frozen=True)
class Run:
    """All that determines a run.

    Attributes:
        contestant: a label of `contestants`.
        budget: full evaluations; whoever scores points on fewer items has more of them.
        items: of every benchmark, for a full evaluation; at most what there are.
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
    problem = open_problem(run.problem, run.seed)
    reference = open_reference(problem)
    contestant = open_contestant(run.contestant, problem.dimension, run.budget)
    found = search(run, problem, contestant)
    return {
        "run": asdict(run),
        "proposal_cpu_s": round(found.seconds, 2),
        "points": len(found.X),
        "spent": [round(step.spent, 4) for step in found.steps],
        **traces(problem, reference, found),
        "confirmed": confirmed(problem, reference, found),
    }


def traces(problem: Problem, reference: Reference, found: Search) -> dict[str, list[float]]:
    """The measures after each step; hypervolumes as a fraction of the reference's."""
    truth, point = problem.truth(found.X).numpy(), problem.reference.numpy()
    result: dict[str, list[float]] = {"hypervolume": []}
    for step in found.steps:
        n = len(step.Y)
        share = hypervolume(truth[:n], point) / reference.hypervolume
        result["hypervolume"].append(round(share, 5))
        for name, value in front_measures(problem, reference, found.X[:n], step.Y).items():
            result.setdefault(name, []).append(value)
    return result


def confirmed(problem: Problem, reference: Reference, found: Search) -> dict[str, float]:
    """The measures of the front among the points that answered all items; of all if none did."""
    rows = found.share >= 1.0
    rows = rows if rows.any() else torch.ones_like(rows)
    return front_measures(problem, reference, found.X[rows], found.Y[rows])


def front_measures(
    problem: Problem, reference: Reference, X: Tensor, Y: Tensor
) -> dict[str, float]:
    """What those of `n x d` points are worth that no other dominates by `n x m` measurements."""
    front = X[moocore.is_nondominated(Y.numpy(), maximise=True, keep_weakly=True)]
    truth, point = problem.truth(front).numpy(), problem.reference.numpy()
    result = {
        "front_hypervolume": hypervolume(truth, point) / reference.hypervolume,
        "front_igd_plus": reference.igd_plus(truth),
    }
    if (held_out := problem.held_out(front)) is not None:
        result["held_out_hypervolume"] = hypervolume(held_out.numpy(), point) / reference.held_out
    return {name: round(value, 5) for name, value in result.items()}


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
