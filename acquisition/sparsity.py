"""The sparsity objective, and any other objective that the merge recipe alone determines.

MM-MO (arXiv 2407.00487) adds the size of the merged delta, g(x) = ‖θ(x) − θ_0‖₁, as an objective
to minimise and fits a Gaussian process to it like to a score. Nothing about g is uncertain, so
here the caller's function enters the model as it is: its posterior mean is the function and its
variance is 0, seen or unseen. Gradients flow through it.
"""

from __future__ import annotations

import torch
from botorch.models.deterministic import GenericDeterministicModel
from torch import Tensor

from acquisition.space_filling import sobol_points
from acquisition.strategy import KnownObjective

SLOPES = 64
"""Points at which the slopes of a size are taken."""


def exact_model(
    objective: KnownObjective, shift: Tensor, scale: Tensor
) -> GenericDeterministicModel:
    """Wrap (objective(x) − shift) / scale as a model of one outcome, without uncertainty.

    Args:
        objective: `... x d` points → `...` values.
        shift: scalar, in the objective's units.
        scale: positive scalar, in the objective's units.
    """

    def column(X: Tensor) -> Tensor:
        return ((objective(X) - shift) / scale).unsqueeze(-1)

    return GenericDeterministicModel(column, num_outputs=1)


def importance(size: KnownObjective, d: int) -> Tensor:
    """How much each coordinate moves a merge: the mean of |∂ size / ∂x_i| over the cube, `d`.

    The importances that move anything have mean 1; a coordinate without a slope, as that of a
    choice, gets 1. With layer groups this is the norm of an expert's task vector in the group, the
    prior that SIP-BMM (arXiv 2512.09972) has for layers.
    """
    X = sobol_points(d, SLOPES, seed=0).requires_grad_()
    (slopes,) = torch.autograd.grad(size(X).sum(), X)
    moved = slopes.abs().mean(dim=0)
    moves = moved > 0
    return torch.where(moves, moved / moved[moves].mean(), torch.ones_like(moved))
