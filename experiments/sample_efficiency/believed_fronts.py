"""Whether a front chosen by the surrogate's means holds better than one chosen by measurements.

    python -m experiments.sample_efficiency.believed_fronts [--problems ...] [--contestants ...]

Searches anew with 30 full evaluations and anchors, and chooses among what was found: by measured
values; by posterior means; by measured values again, but as many points as the means chose, those
that are dominated by the least (additive epsilon, every objective scaled to its range). Held-out
hypervolume, percent, mean ± 95 % interval; the difference that counts is that of equal size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch

from acquisition.surrogates import fit_surrogate
from experiments.sample_efficiency.contestants import open_contestant
from experiments.sample_efficiency.problems import ITEMS, open_problem
from experiments.sample_efficiency.references import Array, open_reference
from experiments.sample_efficiency.report import interval
from experiments.sample_efficiency.spending import search
from experiments.sample_efficiency.study import Run
from mmmo.pareto import hypervolume, non_dominated

BUDGET = 30


def main(arguments: Sequence[str]) -> int:
    """Search, choose, print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.sample_efficiency.believed_fronts")
    parser.add_argument("--problems", nargs="+", default=["encoder-scores-resplit"])
    parser.add_argument("--contestants", nargs="+", default=["mm_mo", "qlognehvi", "random"])
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(
        "| problem | contestant | measured | points | believed | points | as many measured |",
        end="",
    )
    print(" believed less measured | less as many |\n|---|---|---|---|---|---|---|---|---|")
    for problem in given.problems:
        for contestant in given.contestants:
            rows = [chosen(problem, contestant, seed) for seed in range(given.seeds)]
            measured, few, believed, many, equal = np.array(rows).T
            columns = (measured, few, believed, many, equal, believed - measured, believed - equal)
            cells = ["{:.1f} ± {:.1f}".format(*interval(column.tolist())) for column in columns]
            print(f"| {problem} | {contestant} | {' | '.join(cells)} |", flush=True)
    return 0


def chosen(name: str, contestant: str, seed: int) -> tuple[float, float, float, float, float]:
    """Held-out hypervolume of the measured front, its size, the same of the believed one, and
    held-out hypervolume of as many points by measurement.

    Raises:
        ValueError: the problem has no held-out items.
    """
    problem = open_problem(name, seed)
    items = min(ITEMS, problem.items or ITEMS)
    run = Run(name, contestant, seed, BUDGET, items, anchors=True)
    found = search(run, problem, open_contestant(contestant, problem.dimension, BUDGET))
    held_out = problem.held_out(found.X)
    if held_out is None:
        raise ValueError(f"{name} has no held-out items")
    # Variances as a campaign states them; they depend on the values only.
    _, variances = problem.evaluate(found.X, np.random.default_rng(0), items)
    model = fit_surrogate(
        found.X, found.Y, variances, problem.known, kind="concentrated", link="logit"
    )
    measured, means = found.Y.numpy(), model.mean(found.X).numpy()
    front, believed = non_dominated(measured), non_dominated(means)
    as_many = np.argsort(lacks(measured), kind="stable")[: believed.sum()]
    whole = open_reference(problem).held_out

    def volume(rows: Array) -> float:
        return 100 * hypervolume(held_out.numpy()[rows], problem.reference.numpy()) / whole

    return volume(front), front.sum(), volume(believed), believed.sum(), volume(as_many)


def lacks(Y: Array) -> Array:
    """By how much each of `n x m` rows (maximised) would have to gain in every objective for no
    other to dominate it: `n` shares of the objectives' ranges.
    """
    scaled = Y / np.maximum(np.ptp(Y, 0), 1e-12)
    ahead = (scaled[None, :, :] - scaled[:, None, :]).min(-1)
    np.fill_diagonal(ahead, -np.inf)
    return ahead.max(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
