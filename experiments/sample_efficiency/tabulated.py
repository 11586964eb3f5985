"""A search among real merges whose items were all answered once: a table as a problem.

A point of the cube stands for the nearest recipe of the table that was not evaluated before, which
contestants learn through `Observations.snap`. Nothing is fitted but the gradient of the sparsity
objective, whose value at every recipe is the measured one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acquisition.sparsity import importance
from acquisition.strategy import KnownObjective
from evaluators.benchmarks.statistics import error_correlations, mean, proportion
from experiments.sample_efficiency.problems import ITEMS, Problem
from experiments.sample_efficiency.tables import FOLDER, SPLITS, Array, Table

MARGIN = 0.1
"""Share of its range by which an objective's reference is below the worst, if the file has none."""


class Tabulated(Problem):
    """The objectives of a campaign on its search items, everything maximised.

    Values are means over items. Their standard errors are those that a campaign states: of the
    items as a sample of the task, though all search items together give the truth exactly.

    Args:
        sparsity: with minus the mean |delta| per parameter as the last objective, known exactly.
    """

    items: int
    points: int

    def __init__(self, name: str, table: Table, sparsity: bool) -> None:
        self.name, self._table = name, table
        self.recipes = torch.from_numpy(table.X)
        self.points, self.dimension = self.recipes.shape
        self.anchors = self.recipes[: table.anchors]
        self._signs = [float(o["sign"]) for o in table.objectives]  # type: ignore[arg-type]
        self._names = [str(o["benchmark"]) for o in table.objectives]
        self._delta = torch.from_numpy(table.delta_l1)
        self.known: tuple[KnownObjective | None, ...] = (None,) * len(self._names)
        self._coefficients = self._fit_size()
        self.importance = importance(self._size, self.dimension)
        if sparsity:
            self._residual = self._delta - self._size(self.recipes)
            self.known = (*self.known, self.sparsity)
        self._values = {s: self._means(table.outcomes[s], sparsity) for s in SPLITS}
        scored = [table.outcomes["search"][n] for n in self._names]
        self._sizes = [outcomes.shape[1] for outcomes in scored]
        self._summaries = [proportion if np.isin(o, (0, 1)).all() else mean for o in scored]
        self.items = max(self._sizes)
        self.reference = self._reference()

    def rows(self, X: Tensor) -> Tensor:
        """The nearest recipe of `... x d` points: `...` row numbers."""
        return self._distances(X).argmin(-1).reshape(X.shape[:-1])

    def snap(self, X: Tensor, taken: Tensor) -> Tensor:
        """The nearest recipe that is not one of the `t x d` taken ones, if any is left."""
        distances = self._distances(X)
        if len(taken) < self.points:
            distances[:, self.rows(taken)] = math.inf
        return self.recipes[distances.argmin(-1)].reshape(X.shape)

    def sparsity(self, X: Tensor) -> Tensor:
        """Minus mean |delta|: `... x d` → `...`; exact at every recipe.

        In between it is the root of a quadratic plus what that lacks at the nearest recipe, so that
        there is a gradient to climb.
        """
        return -(self._size(X) + self._residual[self.rows(X)])

    def truth(self, X: Tensor) -> Tensor:
        """Means over all search items."""
        return self._values["search"][self.rows(X)]

    def held_out(self, X: Tensor) -> Tensor:
        """Means over all held-out items."""
        return self._values["held_out"][self.rows(X)]

    def evaluate(
        self, X: Tensor, rng: np.random.Generator, items: int = ITEMS
    ) -> tuple[Tensor, Tensor]:
        """Score on random items without replacement, as many as the largest benchmark has at most;
        of smaller benchmarks the same share.
        """
        Y = self.truth(X)
        Yvar = torch.zeros_like(Y)
        for i, row in enumerate(self.rows(X).tolist()):
            for k, name in enumerate(self._names):
                outcomes = self._answers(name, row, rng.permutation(self._sizes[k]), items)
                value, error = self._summaries[k](outcomes)
                Y[i, k], Yvar[i, k] = self._signs[k] * value, error**2
        return Y, Yvar

    def correlations(self, X: Tensor, rng: np.random.Generator, items: Sequence[int]) -> Tensor:
        """Correlations as a campaign computes them; sparsity has no error."""
        found = torch.eye(len(X), dtype=torch.float64).repeat(len(self.known), 1, 1)
        rows = self.rows(X).tolist()
        for k, name in enumerate(self._names):
            order = rng.permutation(self._sizes[k])
            answers = [self._answers(name, r, order, n) for r, n in zip(rows, items, strict=True)]
            found[k] = torch.from_numpy(error_correlations(answers))
        return found

    def _answers(
        self, name: str, row: int, order: NDArray[np.intp], items: int
    ) -> NDArray[np.float32]:
        """Outcomes of a recipe on the first items of an order, by the share that `items` are."""
        count = max(1, round(min(items, self.items) / self.items * len(order)))
        outcomes: NDArray[np.float64] = self._table.outcomes["search"][name][row, order[:count]]
        return outcomes.astype(np.float32)

    def _means(self, outcomes: Mapping[str, Array], sparsity: bool) -> Tensor:
        """Values of all recipes, `N x m`."""
        columns = [
            s * torch.from_numpy(outcomes[n].mean(1))
            for s, n in zip(self._signs, self._names, strict=True)
        ]
        return torch.stack([*columns, -self._delta] if sparsity else columns, dim=-1)

    def _reference(self) -> Tensor:
        """The file's reference point; where it has none, a margin below the worst."""
        values = self._values["search"]
        worst = values.amin(0)
        result = worst - MARGIN * (values.amax(0) - worst)
        for k, objective in enumerate(self._table.objectives):
            if objective["reference"] is not None:
                result[k] = self._signs[k] * float(objective["reference"])  # type: ignore[arg-type]
        return result

    def _distances(self, X: Tensor) -> Tensor:
        """From all points in one row, to all recipes: `p x N`."""
        with torch.no_grad():
            return torch.cdist(X.reshape(-1, self.dimension), self.recipes)

    def _fit_size(self) -> Tensor:
        """Least squares for the square of mean |delta|, of 1, x_i and x_i x_j."""
        target = self._delta.square().unsqueeze(-1)
        return torch.linalg.lstsq(_features(self.recipes), target, driver="gelsd").solution

    def _size(self, X: Tensor) -> Tensor:
        square = (_features(X) @ self._coefficients).squeeze(-1)
        return square.clamp_min(1e-4 * float(self._delta.max()) ** 2).sqrt()


def _features(X: Tensor) -> Tensor:
    i, j = torch.triu_indices(X.shape[-1], X.shape[-1])
    return torch.cat([torch.ones_like(X[..., :1]), X, X[..., i] * X[..., j]], dim=-1)


def open_table(name: str, seed: int = 0) -> Tabulated:
    """The problem of a table: `digits`, or `digits-scores` without the sparsity objective.

    With `-resplit` at the end, which items are held out is drawn by the seed.

    Raises:
        KeyError: there is no such table.
    """
    suite, *rest = name.split("-")
    path = FOLDER / f"{suite}.npz"
    if rest not in ([], ["scores"], ["resplit"], ["scores", "resplit"]) or not path.exists():
        raise KeyError(name)
    table = Table.read(path)
    if "resplit" in rest:
        table = table.split_anew(seed)
    return Tabulated(name, table, sparsity="scores" not in rest)
