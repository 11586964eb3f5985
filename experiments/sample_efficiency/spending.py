"""Spends a budget of items: new points, promotions, and a confirmation at the end.

The unit is a full evaluation: all items of every benchmark. A contestant without a fidelity spends
one unit per point, so its budget is a number of evaluations. Merges are free here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from acquisition.allocation import Promotion
from acquisition.strategy import Observations
from experiments.sample_efficiency.contestants import Contestant
from experiments.sample_efficiency.problems import Problem
from mmmo.fidelity import reserve
from mmmo.pareto import non_dominated

if TYPE_CHECKING:
    from experiments.sample_efficiency.study import Run

NOISE_STREAM = 1_000_003
"""Keeps the noise unrelated to the contestants' random numbers; it is the same for all of them."""


@dataclass(frozen=True)
class Step:
    """What was known after one more point, or more items of one.

    Attributes:
        spent: full evaluations so far.
        Y: `n x m` measurements of the first n points.
    """

    spent: float
    Y: Tensor


@dataclass(frozen=True)
class Search:
    """A search that has ended.

    Attributes:
        X: `n x d` points.
        share: `n` shares of the items that they answered in the end.
        seconds: processor time of proposals.
    """

    X: Tensor
    share: Tensor
    steps: tuple[Step, ...]
    seconds: float

    @property
    def Y(self) -> Tensor:
        """The last measurements, `n x m`."""
        return self.steps[-1].Y


def search(run: Run, problem: Problem, contestant: Contestant) -> Search:
    """Spend the run's budget."""
    spending, before = _Spending(run, problem, contestant), -1
    while spending.measured > before:  # what confirming has left over is there to search with
        before = spending.measured
        spending.explore()
        spending.confirm()
    return spending.result()


class _Spending:
    """One run; it counts in items of the benchmark that has the most."""

    def __init__(self, run: Run, problem: Problem, contestant: Contestant) -> None:
        self._run, self._problem, self._contestant = run, problem, contestant
        self._full = min(run.items, problem.items or run.items)
        self._left = run.budget * self._full
        d, m = problem.dimension, len(problem.reference)
        self._X, self._Y = torch.empty(0, d).double(), torch.empty(0, m).double()
        self._Yvar = self._Y
        self._answered: list[int] = []
        self._steps: list[Step] = []
        self._seconds, self._exploring = 0.0, True

    @property
    def measured(self) -> int:
        """How many measurements there were."""
        return len(self._steps)

    def explore(self) -> None:
        """Plan and carry out, until what is left is reserved for confirming the front."""
        contestant, allocation = self._contestant, self._contestant.fidelity.allocation
        self._exploring = True
        while (q := self._orders()) > 0:
            before, seen = len(self._steps), self._observations()
            start = time.process_time()
            plan = allocation.plan(contestant.strategy, seen, q, self._run.seed)
            self._seconds += time.process_time() - start
            self._promote(plan.promotions)
            for x in plan.proposal.X:
                self._begin(x, plan.share)
            if len(self._steps) == before:
                return  # nothing is left to do, or nothing that can be paid

    def confirm(self) -> None:
        """Score the front on all items; what rises into it by that is the front, too."""
        self._exploring = False
        count = self._contestant.fidelity.confirm
        allocation = self._contestant.fidelity.allocation
        while count > 0 and min(self._answered, default=self._full) < self._full:
            promotions, before = allocation.confirm(self._observations(), count), len(self._steps)
            self._promote(promotions)
            if len(self._steps) == before:
                return
            count -= len(promotions)

    def result(self) -> Search:
        """What was found."""
        return Search(self._X, self._share, tuple(self._steps), self._seconds)

    @property
    def _share(self) -> Tensor:
        return torch.tensor(self._answered, dtype=torch.float64) / self._full

    def _items(self, share: float) -> int:
        return max(1, round(share * self._full))

    @property
    def _spare(self) -> int:
        """Items that may be ordered now."""
        return self._left - (self._reserve if self._exploring else 0)

    @property
    def _reserve(self) -> int:
        """Items that would confirm what nothing known dominates, as in a campaign."""
        leading = torch.from_numpy(non_dominated(self._Y.numpy())).nonzero().flatten().tolist()
        missing = [self._full - self._answered[row] for row in leading]
        confirm = self._contestant.fidelity.confirm
        return reserve(missing, confirm, self._run.budget * self._full)

    def _orders(self) -> int:
        """How many to plan now: a batch, unless the budget or the points are nearly used up."""
        contestant, n = self._contestant, len(self._X)
        affordable = self._spare // self._items(contestant.fidelity.allocation.start)
        batch = contestant.batch if n else contestant.first
        return int(min(batch, affordable, self._problem.points - n))

    def _cost(self, promotion: Promotion) -> int:
        return self._items(promotion.share) - self._answered[promotion.row]

    def _promote(self, promotions: tuple[Promotion, ...]) -> None:
        for promotion in promotions:
            if 0 < self._cost(promotion) <= self._spare:
                self._left -= self._cost(promotion)
                self._answered[promotion.row] = self._items(promotion.share)
                self._measure(promotion.row)

    def _begin(self, x: Tensor, share: float) -> None:
        items = self._items(share)
        if items > self._spare:
            return
        self._left -= items
        self._answered.append(items)
        self._X = torch.cat([self._X, x.unsqueeze(0)])
        nothing = self._Y.new_zeros(1, self._Y.shape[1])
        self._Y, self._Yvar = torch.cat([self._Y, nothing]), torch.cat([self._Yvar, nothing])
        self._measure(len(self._X) - 1)

    def _measure(self, row: int) -> None:
        """Score a point on the items that it has been given; the first are those it had before."""
        rng = self._errors(row if self._contestant.fidelity.order == "own" else 0)
        Y, Yvar = self._problem.evaluate(self._X[[row]], rng, self._answered[row])
        self._Y, self._Yvar = self._Y.clone(), self._Yvar.clone()
        self._Y[row], self._Yvar[row] = Y[0], Yvar[0]
        self._steps.append(Step(self._run.budget - self._left / self._full, self._Y))

    def _errors(self, order: int) -> np.random.Generator:
        return np.random.default_rng((self._run.seed, NOISE_STREAM, order))

    def _covariances(self) -> Tensor | None:
        """Of the errors that points share by answering the same items, `m x n x n`."""
        if self._contestant.fidelity.order == "own" or not self._answered:
            return None
        found = self._problem.correlations(self._X, self._errors(0), self._answered)
        deviations = self._Yvar.T.sqrt()
        return None if found is None else deviations[:, :, None] * found * deviations[:, None, :]

    def _observations(self) -> Observations:
        run, problem, X = self._run, self._problem, self._X
        partial = min(self._answered, default=self._full) < self._full
        return Observations(
            X=X,
            Y=self._Y,
            Yvar=self._Yvar,
            pending=X[:0],
            failed=X[:0],
            anchors=problem.anchors if run.anchors else X[:0],
            reference=problem.reference if run.reference else None,
            known=problem.known,
            snap=lambda points: problem.snap(points, X),
            share=self._share if partial else None,
            importance=problem.importance,
            Ycov=self._covariances(),
        )
