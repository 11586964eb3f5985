"""Which outcomes count: feasibility, domination, and the reference point that gains start from."""

from __future__ import annotations

import torch
from botorch.utils.multi_objective.pareto import is_non_dominated
from torch import Tensor

NADIR_MARGIN = 0.1
"""Share of the range by which an inferred reference point is worse than the worst that counts."""


def feasible(Y: Tensor, constraints: tuple[Tensor, Tensor] | None) -> Tensor:
    """Which rows of `n x m` satisfy A y >= b: `n`, bool."""
    if constraints is None:
        return torch.ones(len(Y), dtype=torch.bool)
    A, b = constraints
    return (Y @ A.T - b >= 0).all(dim=-1)


def times_dominated(Y: Tensor) -> Tensor:
    """How many rows of `n x m` dominate each row: `n`; 0 on the front."""
    no_worse = (Y.unsqueeze(0) >= Y.unsqueeze(1)).all(dim=-1)
    better = (Y.unsqueeze(0) > Y.unsqueeze(1)).any(dim=-1)
    return (no_worse & better).sum(dim=-1)


def infer_reference(
    Y: Tensor, constraints: tuple[Tensor, Tensor] | None = None, of_front: bool = True
) -> Tensor:
    """Nadir of the observed front minus a tenth of its range (Ishibuchi et al. 2011).

    BoTorch's rule but for a range of 0, where one unit of Y stands for the range: with a margin of
    nothing no point could gain hypervolume.

    Args:
        Y: `n x m` observed objectives, n at least 1.
        constraints: if some rows are feasible, only those count.
        of_front: whether only the front counts, or all observations: what is worse than a young
            front in one objective may still be part of the front to come.

    Returns:
        `m`, in the units of Y.
    """
    ok = feasible(Y, constraints)
    candidates = Y[ok] if ok.any() else Y
    front = candidates[is_non_dominated(candidates, deduplicate=False)] if of_front else candidates
    nadir, ideal = front.amin(dim=0), front.amax(dim=0)
    spread = ideal - nadir
    return nadir - NADIR_MARGIN * torch.where(spread > 0, spread, torch.ones_like(spread))


def given_or(given: Tensor | None, inferred: Tensor) -> Tensor:
    """The given reference point, `m`; the inferred one where there is none, or a NaN."""
    return inferred if given is None else torch.where(given.isnan(), inferred, given)


def released_reference(Y: Tensor) -> Tensor:
    """Make the worst value of the first points worse: the reference point of the released MM-MO.

    Each coordinate is 0.9 times the minimum where that is positive, else 1.1 times.

    Args:
        Y: `n x m` raw objectives of the initial design.
    """
    worst = Y.amin(dim=0)
    return worst * torch.where(worst > 0, 0.9, 1.1)


def floors(constraints: tuple[Tensor, Tensor] | None, m: int) -> Tensor:
    """The least feasible value of each objective, `m`; −∞ where nothing bounds it.

    Raises:
        ValueError: a row of the constraints that is no lower bound of one objective.
    """
    least = torch.full((m,), -torch.inf, dtype=torch.float64)
    if constraints is None:
        return least
    for a, bound in zip(*constraints, strict=True):
        if (a != 0).sum() != 1 or a.amax() <= 0:
            raise ValueError(
                f"constraints: found the row {a.tolist()}, allowed: one positive entry"
            )
        k = int(a.argmax())
        least[k] = torch.maximum(least[k], bound / a[k])
    return least
