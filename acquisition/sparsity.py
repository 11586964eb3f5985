"""The sparsity objective, and any other objective that the merge recipe alone determines.

MM-MO (arXiv 2407.00487) adds the size of the merged delta, g(x) = ‖θ(x) − θ_0‖₁, as an objective
to minimise and fits a Gaussian process to it like to a score. Nothing about g is uncertain, so
here the caller's function enters the model as it is: its posterior mean is the function and its
variance is 0, seen or unseen. Gradients flow through it.
"""

from __future__ import annotations

from botorch.models.deterministic import GenericDeterministicModel
from torch import Tensor

from acquisition.strategy import KnownObjective


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
