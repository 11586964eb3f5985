"""What could be reached: a long NSGA-II run per problem, kept as hypervolume and thinned front.

The hypervolume is of every point of the run that no other dominates, not of the last population.
Files are written once and committed; `python -m experiments.sample_efficiency.references NAME…`
writes those that are missing. Of a table of real merges all is known, and nothing is kept.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import moocore
import numpy as np
import torch
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem as PymooProblem
from pymoo.optimize import minimize

from experiments.sample_efficiency.problems import Problem, open_problem
from experiments.sample_efficiency.tabulated import Tabulated
from mmmo.pareto import hypervolume

Array = NDArray[np.float64]

FOLDER = Path(__file__).parent / "references"
POPULATION, GENERATIONS, SEED = 200, 1200, 0
FRONT = 60
"""Points of the front that are kept for IGD+."""
ARCHIVE = 4000
"""Most points of a run whose hypervolume is taken; beyond, the most crowded are left out."""


@dataclass(frozen=True)
class Reference:
    """The best known set of a problem.

    Attributes:
        hypervolume: above the problem's reference point.
        front: `f x m` values spread over the front, maximised.
        held_out: the hypervolume of the best set on held-out items; NaN where there are none.
    """

    hypervolume: float
    front: Array
    held_out: float = math.nan

    def igd_plus(self, Y: Array) -> float:
        """IGD+ (Ishibuchi et al. 2015) of `n x m` values, each objective scaled to the front."""
        low, extent = self.front.min(0), np.ptp(self.front, 0)
        extent = np.where(extent > 0, extent, 1.0)
        scaled, front = (Y - low) / extent, (self.front - low) / extent
        return float(moocore.igd_plus(scaled, ref=front, maximise=True))


def open_reference(problem: Problem, folder: Path = FOLDER) -> Reference:
    """Read the problem's file; make it first if there is none (minutes of one processor)."""
    if isinstance(problem, Tabulated):
        return exact(problem)
    path = folder / f"{problem.name}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = search(problem, POPULATION, GENERATIONS, SEED)
        content = {
            "hypervolume": found.hypervolume,
            "made_by": f"NSGA-II, {POPULATION} x {GENERATIONS} evaluations, seed {SEED}",
            "front": [[float(f"{v:.5g}") for v in row] for row in found.front],
        }
        path.write_text(json.dumps(content) + "\n")
    content = json.loads(path.read_text())
    return Reference(content["hypervolume"], np.array(content["front"]))


def exact(problem: Tabulated) -> Reference:
    """What all recipes of a table reach together."""
    values, point = problem.truth(problem.recipes).numpy(), problem.reference.numpy()
    held_out = problem.held_out(problem.recipes).numpy()
    front = values[moocore.is_nondominated(values, maximise=True)]
    return Reference(hypervolume(values, point), front, hypervolume(held_out, point))


def describe(problem: Tabulated, budget: int = 30, draws: int = 200) -> str:
    """How hard a table is, in percent of all: what random recipes reach, the anchors, and whoever
    knew every search item beforehand.
    """
    values, point = problem.truth(problem.recipes).numpy(), problem.reference.numpy()
    reference, rng = exact(problem), np.random.default_rng(0)
    reached = [
        hypervolume(rng.permutation(values)[:budget], point) / reference.hypervolume
        for _ in range(draws)
    ]
    anchors = hypervolume(problem.truth(problem.anchors).numpy(), point) / reference.hypervolume
    best = greedy(values, point, budget)
    all_known = hypervolume(values[best], point) / reference.hypervolume
    unseen = hypervolume(problem.held_out(problem.recipes[best]).numpy(), point)
    return (
        f"{problem.name}: {problem.points} recipes, {len(reference.front)} on the front; "
        f"{budget} random ones reach {100 * np.mean(reached):.0f} %, "
        f"the {len(problem.anchors)} anchors {100 * anchors:.0f} %, "
        f"the greedily best {100 * all_known:.1f} %, "
        f"held-out {100 * unseen / reference.held_out:.1f} %"
    )


def greedy(values: Array, point: Array, count: int) -> list[int]:
    """Rows of `N x m` values, each chosen for what it adds to the hypervolume of those before.

    No choice of as many rows has more than e / (e - 1) times their hypervolume, since hypervolume
    is submodular (Nemhauser et al. 1978).
    """
    chosen: list[int] = []
    open_rows = np.flatnonzero(moocore.is_nondominated(values, maximise=True)).tolist()
    while open_rows and len(chosen) < count:
        gains = [hypervolume(values[[*chosen, row]], point) for row in open_rows]
        chosen.append(open_rows.pop(int(np.argmax(gains))))
    return chosen


def search(problem: Problem, population: int, generations: int, seed: int) -> Reference:
    """Run NSGA-II on the values without noise."""
    archive = Archive(problem)
    minimize(archive, NSGA2(pop_size=population), ("n_gen", generations), seed=seed, verbose=False)
    reference = problem.reference.numpy()
    gains = (archive.Y - reference > 0).all(1)
    best = _spread(archive.Y[gains], ARCHIVE)
    volume = moocore.hypervolume(best, ref=reference, maximise=True)
    return Reference(float(volume), _spread(best, FRONT))


class Archive(PymooProblem):
    """The problem for pymoo, which minimises; keeps what is not dominated."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(n_var=problem.dimension, n_obj=len(problem.reference), xl=0.0, xu=1.0)
        self._problem = problem
        self.Y = np.empty((0, len(problem.reference)))

    def _evaluate(self, X: Array, out: dict[str, Array], *_: object, **__: object) -> None:
        Y = self._problem.truth(torch.from_numpy(X)).numpy()
        together = np.concatenate([self.Y, Y])
        self.Y = together[moocore.is_nondominated(together, maximise=True)]
        if len(self.Y) > 2 * ARCHIVE:
            self.Y = _spread(self.Y, ARCHIVE)
        out["F"] = -Y


def _spread(Y: Array, count: int) -> Array:
    """The `count` rows that are farthest from each other, beginning with each objective's best."""
    if len(Y) <= count:
        return Y
    scaled = (Y - Y.min(0)) / np.where(np.ptp(Y, 0) > 0, np.ptp(Y, 0), 1.0)
    chosen = list(dict.fromkeys(scaled.argmax(0).tolist()))
    distance = np.min([((scaled - scaled[i]) ** 2).sum(1) for i in chosen], axis=0)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((scaled - scaled[chosen[-1]]) ** 2).sum(1))
    return Y[chosen]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, open_reference(open_problem(name)).hypervolume, flush=True)
