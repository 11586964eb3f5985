"""The merge operators, every one once, as functions of one block of one tensor.

An operator takes `Operands` and returns the merged block. All that depends on a whole tensor (which
entries survive, rescale factors, coefficients) is in the operands already, so that an operator can
be applied block by block, in any order, or compiled. Batch dimensions `...` broadcast: the
acquisition's probe evaluates many recipes at once with the same functions. An operator that
`METHODS` calls `whole` sees a whole tensor in its own shape instead, and no batches.

Here are the elementwise ones; `scored` and `spectral` have those that see whole tensors. Semantics
are those of mergekit 0.1.5 where it has the operator (docs/decisions/0008). To add an operator:
write a function and list it in `METHODS`; the contract test then runs on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Operands:
    """One block of n elements and K models, in one floating dtype.

    What experts own is a sequence of K tensors, never one stacked tensor: stacking would copy.

    Attributes:
        base: `n` block of the base.
        models: K `n` blocks of the models to merge.
        experts: parameter of the experts, such as "weight" → K tensors, `... x 1` (or `... x n`).
        keep: K `... x n` or `1`: whether an entry of a delta survives trimming, bool; or how far
            it survives, 0 to 1, where trimming is smoothed.
        rescale: K `... x 1`: factors of the surviving entries.
        mix: K + 1 `... x 1` coefficients of base and task vectors (see `Method.mix`), else empty.
        merge: number of the merge, such as "lambda" or "t" → `... x 1`.
        options: choice, such as "normalize" → its value.
    """

    base: Tensor
    models: Sequence[Tensor]
    experts: Mapping[str, Sequence[Tensor]]
    keep: Sequence[Tensor]
    rescale: Sequence[Tensor]
    mix: Sequence[Tensor] = ()
    merge: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, float | bool | str] = field(default_factory=dict)

    @property
    def weights(self) -> Sequence[Tensor]:
        """K `... x 1` weights of the experts."""
        return self.experts["weight"]

    @property
    def deltas(self) -> list[Tensor]:
        """K `... x n` task vectors of the survivors: r_k · m_k · (θ_k − θ_0)."""
        parts = zip(self.models, self.keep, self.rescale, strict=True)
        return [survive(model - self.base, keep) * rescale for model, keep, rescale in parts]

    @property
    def weighted(self) -> list[Tensor]:
        """K `... x n` weighted task vectors of the survivors: w_k · r_k · m_k · (θ_k − θ_0)."""
        factors = [rescale * w for rescale, w in zip(self.rescale, self.weights, strict=True)]
        parts = zip(self.models, self.keep, factors, strict=True)
        # Dropped last: processors do that as they multiply.
        return [survive((model - self.base) * factor, keep) for model, keep, factor in parts]


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
    for model, weight in zip(x.models, x.weights, strict=True):
        result = torch.addcmul(result, model, weight)
    silent = total([(w != 0).to(w.dtype) for w in x.weights]) == 0
    if x.options["normalize"]:
        result = result / torch.where(silent, 1.0, total(x.weights))
    return torch.where(silent, x.base, result)


def task_arithmetic(x: Operands) -> Tensor:
    """θ_0 + λ Σ w_k τ_k with task vectors τ_k = θ_k − θ_0, over Σ w_k if normalized.

    Ilharco et al., "Editing models with task arithmetic" (arXiv 2212.04089), section 2.

    Returns:
        `... x n`
    """
    delta = total(x.weighted)
    if x.options["normalize"]:
        weight = total(x.weights)
        delta = delta / torch.where(weight.abs() < 1e-8, 1.0, weight)
    return moved(x, delta)


def ties(x: Operands) -> Tensor:
    """Sum of the trimmed task vectors that agree with the elected sign.

    Yadav et al., "TIES-merging" (arXiv 2306.01708), section 3: trim, elect, merge. As in mergekit,
    the sign of Σ w_k τ_k is elected (0 counts as +), and normalizing divides by the weights of the
    agreeing survivors (1 if they sum to 0).

    Returns:
        `... x n`
    """
    deltas = x.weighted
    elected = total(deltas)
    side = torch.copysign(torch.ones_like(elected), elected)
    # Turned so that the elected sign is plus: one comparison tells who agrees.
    agree = [delta * side > 0 for delta in deltas]
    merged = torch.where(agree[0], deltas[0], 0.0)
    for a, delta in zip(agree[1:], deltas[1:], strict=True):
        merged = torch.where(a, merged + delta, merged)
    if x.options["normalize"]:
        weight = torch.zeros_like(merged)
        for a, w, keep in zip(agree, x.weights, x.keep, strict=True):
            # Who agrees has survived; half survivors of the probe count half.
            share = w if keep.dtype == torch.bool else w * keep
            weight = torch.where(a, weight + share, weight)
        merged = merged / torch.where(weight == 0, 1.0, weight)
    return moved(x, merged)


def combination(x: Operands) -> Tensor:
    """Linear combination of base and task vectors: c_0 θ_0 + Σ_k c_k τ_k, coefficients in `mix`.

    All spherical merges are of this kind (see `spherical`). Of task vectors, since large
    coefficients of nearly equal models would cancel.

    Returns:
        `... x n`
    """
    return total([v * c for v, c in zip([x.base, *x.deltas], x.mix, strict=True)])


def consensus_ta(x: Operands) -> Tensor:
    """Task arithmetic on the entries that at least k experts call their own: θ_0 + λ m ⊙ Σ w_k τ_k.

    Wang et al., "Localizing task information" (arXiv 2405.07813): its TALL masks are the entries
    where |τ_k| exceeds `tall_lambda` times what all others add, its consensus those in k masks.
    Here on weighted task vectors, and no more votes are needed than there are experts, so that one
    expert agrees with itself.

    Returns:
        `... x n`
    """
    deltas = x.weighted
    together, share = total(deltas), x.merge["tall_lambda"]
    own = [d.abs() > share * (together - d).abs() for d in deltas]
    votes = total([mask.to(together.dtype) for mask in own])
    agreed = votes >= x.merge["k"].clamp(max=len(deltas))
    return moved(x, torch.where(agreed, together, 0.0))


def ram(x: Operands) -> Tensor:
    """Add to each entry the mean of the task vectors that change it by more than `epsilon`.

    Reinforced agent merging (arXiv 2601.13572): what one expert alone changed is kept in full, what
    several changed is averaged over these.

    Returns:
        `... x n`
    """
    changed = [(delta.abs() > x.merge["epsilon"]).to(delta.dtype) for delta in x.deltas]
    count = total(changed).clamp(min=1)
    return x.base + total([d * c / count for d, c in zip(x.deltas, changed, strict=True)])


def nearswap(x: Operands) -> Tensor:
    """Move every entry towards the model's by a fixed distance `t`, at most all the way.

    Defined by its author (alchemonaut) with QuartetAnemoi-70B. As in mergekit, distances below 1e-6
    count as 1e-6.

    Returns:
        `... x n`
    """
    (model,) = x.models
    # Times the reciprocal, as mergekit's division by a tensor rounds.
    nearness = (model - x.base).abs().clamp(min=1e-6).reciprocal()
    share = (x.merge["t"] * nearness).clamp(0, 1)
    return share * model + (1 - share) * x.base


def passthrough(x: Operands) -> Tensor:
    """Take the one model as it is, times `scale`.

    Returns:
        `... x n`
    """
    (model,), (scale,) = x.models, x.experts["scale"]
    return model * scale


def survive(value: Tensor, keep: Tensor) -> Tensor:
    """Drop values whose entries are trimmed."""
    return torch.where(keep, value, 0.0) if keep.dtype == torch.bool else value * keep


def moved(x: Operands, delta: Tensor) -> Tensor:
    """Move the base by λ · delta."""
    return x.base + delta * x.merge["lambda"]


def total(terms: Sequence[Tensor]) -> Tensor:
    """Sum over the models, in their order: K `... x n` → `... x n`.

    A reduction may add in another order on another device or for another K; this may not.
    """
    first, *others = terms
    for term in others:
        first = first + term
    return first
