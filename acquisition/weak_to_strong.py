"""Weak-to-strong: pull candidates towards good points seen so far by differential evolution.

MM-MO (arXiv 2407.00487; equation W of our notes) makes of each candidate c a trial vector of the
scheme DE/rand/1/bin (Storn and Price 1997) whose parents are elites a, b, e:

    v = clip(a + F·(b − e), 0, 1),   c'_j = v_j where U_j < CR, else c_j,

with at least one coordinate taken from v. The elites are the strong points, c is the weak one.
`directions` takes the name at its word: from a weak point through a strong one and on.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from acquisition.fronts import times_dominated

WeakToStrongRule = Literal["off", "pool", "replace"]

DIFFERENTIAL_WEIGHT = 0.5
CROSSOVER_RATE = 0.5
PARENTS = 3


def crossover(
    targets: Tensor, parents: tuple[Tensor, Tensor, Tensor], draws: Tensor, forced: Tensor
) -> Tensor:
    """Apply the formula above with its random numbers given.

    Args:
        targets: `r x d` candidates c.
        parents: a, b, e, each `r x d`.
        draws: `r x d` uniform numbers U.
        forced: `r` coordinates taken from v where no U_j is below CR.

    Returns:
        `r x d` points c'.
    """
    a, b, e = parents
    mutants = (a + DIFFERENTIAL_WEIGHT * (b - e)).clamp(0.0, 1.0)
    taken = draws < CROSSOVER_RATE
    lost = ~taken.any(dim=-1)
    taken[lost, forced[lost]] = True
    return torch.where(taken, mutants, targets)


def weak_to_strong(targets: Tensor, elites: Tensor, generator: torch.Generator) -> Tensor:
    """Draw three distinct elites and the coordinates per target: `r x d` → `r x d`.

    With fewer than three elites the targets come back as they are.
    """
    if len(elites) < PARENTS or len(targets) == 0:
        return targets
    r, d = targets.shape
    orders = torch.rand(r, len(elites), generator=generator).argsort(dim=-1)
    a, b, e = elites[orders[:, :PARENTS]].unbind(dim=1)
    draws = torch.rand(r, d, generator=generator)
    forced = torch.randint(d, (r,), generator=generator)
    return crossover(targets, (a, b, e), draws, forced)


def directions(weak: Tensor, strong: Tensor, steps: Tensor) -> Tensor:
    """Go on from weak through strong: clip(s + t (s − w), 0, 1).

    Where what made s better than w has not ended at s, more of it is better still.

    Args:
        weak: `r x d`.
        strong: `r x d`.
        steps: `r` lengths t, in units of the way from weak to strong.
    """
    return (strong + steps.unsqueeze(-1) * (strong - weak)).clamp(0.0, 1.0)


def best_sums(Y: Tensor, count: int) -> Tensor:
    """Rows of `n x m` with the largest Σ_m y_m, best first: the elites of the released MM-MO."""
    return torch.sort(Y.sum(dim=-1), descending=True, stable=True).indices[:count]


def least_dominated(Y: Tensor, feasible: Tensor, count: int) -> Tensor:
    """Rows by how many rows dominate them, all non-dominated ones and at least `count`.

    Unlike a sum this keeps the ends of the front. Infeasible rows (`n`, bool) come last.

    Args:
        Y: `n x m` objectives, maximised.
        feasible: `n`, True where every constraint holds.
        count: at least so many rows, if there are.
    """
    rank = times_dominated(Y) + len(Y) * (~feasible).long()
    front = int((rank == 0).sum())
    return torch.sort(rank, stable=True).indices[: max(count, front)]
