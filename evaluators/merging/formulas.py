"""The merge operators, every one once, as elementwise functions of one block of one tensor.

An operator takes `Operands` and returns the merged block. All that depends on a whole tensor
(which entries survive, rescale factors, angles) is in the operands already, so that an operator can
be applied block by block, in any order, or compiled. Batch dimensions `...` broadcast: the
acquisition's probe evaluates many recipes at once with the same functions.

Semantics are those of mergekit 0.1.5. To add an operator: write a function here and list it in
`METHODS`; the contract test then runs on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Operands:
    """One block of n elements and K models, in one floating dtype.

    Attributes:
        base: `n` block of the base.
        models: `K x n` blocks of the models to merge.
        weights: `... x K x 1` (or `... x K x n`).
        keep: `... x K x n` or `K x 1`: 1 where an entry of a delta survives trimming, else 0.
        rescale: `... x K x 1`: factor of the surviving entries.
        mix: `... x 2 x 1`: coefficients of the two models of a pairwise operator.
        scale: `... x 1`: the parameter lambda.
        normalize: divide by the sum of weights.
    """

    base: Tensor
    models: Tensor
    weights: Tensor
    keep: Tensor
    rescale: Tensor
    mix: Tensor
    scale: Tensor
    normalize: bool

    @property
    def weighted(self) -> Tensor:
        """`... x K x n` weighted deltas of the survivors: w_k · r_k · m_k · (θ_k − θ_0)."""
        return (self.models - self.base) * self.keep * self.rescale * self.weights


Formula = Callable[[Operands], Tensor]


def linear(x: Operands) -> Tensor:
    """Weighted sum of the models: Σ w_k θ_k, over Σ w_k if normalized.

    Wortsman et al., "Model soups" (arXiv 2203.05482), section 2. Where all weights are 0 there is
    nothing to average and the result is the base. Weights that cancel have no average: the result
    is not finite.

    Returns:
        `... x n`
    """
    result = torch.zeros_like(x.base)
    for model, weight in zip(x.models.unbind(-2), x.weights.unbind(-2), strict=True):
        result = torch.addcmul(result, model, weight)
    silent = (x.weights == 0).all(dim=-2)
    if x.normalize:
        result = result / torch.where(silent, 1.0, _sum(x.weights))
    return torch.where(silent, x.base, result)


def task_arithmetic(x: Operands) -> Tensor:
    """θ_0 + λ Σ w_k τ_k with task vectors τ_k = θ_k − θ_0, over Σ w_k if normalized.

    Ilharco et al., "Editing models with task arithmetic" (arXiv 2212.04089), section 2.

    Returns:
        `... x n`
    """
    total = _sum(x.weights)
    divisor = torch.where(total.abs() < 1e-8, 1.0, total)
    return _moved(x, _sum(x.weighted), divisor)


def ties(x: Operands) -> Tensor:
    """Sum of the trimmed task vectors that agree with the elected sign.

    Yadav et al., "TIES-merging" (arXiv 2306.01708), section 3: trim, elect, merge. As in mergekit,
    the sign of Σ w_k τ_k is elected (0 counts as +), and normalizing divides by the weights of the
    agreeing survivors (1 if they sum to 0).

    Returns:
        `... x n`
    """
    deltas = x.weighted
    positive = (_sum(deltas) >= 0).unsqueeze(-2)
    agree = torch.where(positive, deltas > 0, deltas < 0)
    weight = _sum(x.weights * x.keep * agree)
    return _moved(x, _sum(torch.where(agree, deltas, 0.0)), torch.where(weight == 0, 1.0, weight))


def dare_linear(x: Operands) -> Tensor:
    """Task arithmetic on randomly trimmed task vectors.

    Yu et al., "Language models are super Mario" (arXiv 2311.03099), section 3.2.

    Returns:
        `... x n`
    """
    return task_arithmetic(x)


def dare_ties(x: Operands) -> Tensor:
    """TIES with random trimming in place of trimming by magnitude (arXiv 2311.03099, section 3.3).

    Returns:
        `... x n`
    """
    return ties(x)


def slerp(x: Operands) -> Tensor:
    """Spherical interpolation between two models, which keep their lengths.

    The angle is that between the normalized tensors; `mix` holds sin((1-t)ω)/sin ω and
    sin(tω)/sin ω (see `thresholds.arc`).

    Returns:
        `... x n`
    """
    return x.mix[..., 0, :] * x.models[0] + x.mix[..., 1, :] * x.models[1]


def _moved(x: Operands, delta: Tensor, divisor: Tensor) -> Tensor:
    """Move the base by λ · delta, over the divisor if normalized."""
    if x.normalize:
        delta = delta / divisor
    return x.base + delta * x.scale


def _sum(terms: Tensor) -> Tensor:
    """Sum over the models, in their order: `... x K x n` → `... x n`.

    A reduction may add in another order on another device or for another K; this may not.
    """
    first, *others = terms.unbind(-2)
    for term in others:
        first = first + term
    return first
