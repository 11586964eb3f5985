"""Operators that compare all entries of a tensor: scores, ranks, quantiles, counts.

These are `whole` operators (see `METHODS`): base and models come in the tensor's own shape, numbers
as tensors of one element, and there are no batches. A scalar may come back as one element. Among
entries that tie at a threshold those with the lowest index are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluators.merging.formulas import Operands, moved, total

_TINY = 1e-6
"""Below this a sum of squares counts as 0 (mergekit's rule)."""


def sce(x: Operands) -> Tensor:
    """Select, calculate, erase: mean of the task vectors that agree, weighted by their energy.

    Wan et al., "FuseChat" (arXiv 2408.07990). Select: the fraction `select_topk` of
    the entries where the experts differ at all, those of highest variance. Calculate: weights in
    proportion to the mean square of what is left (equal ones if all but 0). Erase: entries against
    the elected sign. With one expert nothing varies, so any `select_topk` below 1 gives the base.

    Returns:
        as the base.
    """
    if x.base.numel() == 0:
        return x.base
    deltas = torch.stack(x.deltas)
    topk = float(x.merge["select_topk"])
    if topk < 1:
        spread = deltas.var(dim=0, unbiased=False)
        deltas = deltas * first_largest(spread, int(int(spread.count_nonzero()) * topk))
    energy = deltas.square().flatten(1).mean(dim=1)
    whole = energy.sum()
    weights = torch.where(whole < _TINY, 1 / len(deltas), energy / whole.clamp(min=_TINY))
    positive = total(deltas.unbind()) >= 0
    agree = torch.where(positive, deltas > 0, deltas < 0)
    shares = agree * weights.reshape(-1, *[1] * (deltas.dim() - 1))
    return x.base + (deltas * shares).sum(0) / shares.sum(0).clamp(min=_TINY)


def arcee_fusion(x: Operands) -> Tensor:
    """Take from the model the entries of outstanding importance.

    Importance is |τ| times the divergence KL(softmax θ_1 ‖ softmax θ_0) of the entry's row;
    outstanding is what reaches median + 1.5 · interquartile range. Defined by mergekit, which
    estimates quantiles of tensors above a million entries from a random sample; here they are
    exact. A row of one entry, or no change, has importance 0: if most entries have, all are taken.

    Returns:
        as the base.
    """
    (model,) = x.models
    if x.base.numel() == 0:
        return x.base
    new, old = (torch.softmax(tensor, dim=-1) + 1e-8 for tensor in (model, x.base))
    divergence = (new * torch.log(new / old)).sum(dim=-1, keepdim=True)
    importance = (model - x.base).abs() * divergence
    ordered = importance.flatten().sort().values
    low, middle, high = (ordered[quarter * (len(ordered) - 1) // 4] for quarter in (1, 2, 3))
    chosen = importance >= middle + 1.5 * (high - low)
    return x.base + (model - x.base) * chosen.to(x.base.dtype)


def ramplus_tl(x: Operands) -> Tensor:
    """As `formulas.ram`, but what an expert changed alone is amplified if much of it was shared.

    RAM+ (arXiv 2601.13572), per tensor: by 1 + r · min(ρ_k, alpha), where ρ_k is the number of
    entries that expert k changed together with others over that of those it changed alone.

    Returns:
        as the base.
    """
    epsilon = x.merge["epsilon"]
    changed = [(delta.abs() > epsilon).to(delta.dtype) for delta in x.deltas]
    count = total(changed)
    terms = []
    for delta, own in zip(x.deltas, changed, strict=True):
        alone = own * (count == 1)
        shared = own - alone
        ratio = (shared.sum() / alone.sum().clamp(min=1e-5)).clamp(max=x.merge["alpha"])
        amplified = delta * alone * (1 + x.merge["r"] * ratio)
        terms.append(amplified + delta * shared / count.clamp(min=1))
    return x.base + total(terms)


def pcb(x: Operands) -> Tensor:
    """Parameter competition balancing: mean of the task vectors, entry by entry, by their scores.

    Du et al. (arXiv 2410.02396), as its authors compute it: an entry scores
    exp(K a²) · tanh(τ_k Σ_j τ_j), a = |τ_k| scaled to [0, 1] (intra- times inter-balancing); only
    the fraction `density` of highest score survives, scaled to [0, 1]. The merge is
    θ_0 + λ Σ s_k w_k τ_k / Σ s_k. Per tensor here, not over the whole model; outliers are not
    clipped; and the scale begins at the best score that is dropped (at 0, or at the least score if
    that is negative, where none is), so that a survivor is never dropped after all.

    Returns:
        as the base.
    """
    if x.base.numel() == 0:
        return x.base
    trend = total(x.deltas)
    scores = [_competition(delta, trend, len(x.models)) for delta in x.deltas]
    densities = [float(density) for density in x.experts["density"]]
    shares = [_survival(score, d) for score, d in zip(scores, densities, strict=True)]
    everyone = total(shares)
    delta = total([share * d for share, d in zip(shares, x.weighted, strict=True)])
    return moved(x, delta / torch.where(everyone == 0, 1.0, everyone))


def _competition(delta: Tensor, trend: Tensor, K: int) -> Tensor:
    """Score the entries of one task vector, given the sum of all K."""
    size = delta.abs()
    low, high = size.aminmax()
    scaled = (size - low) / torch.where(high > low, high - low, 1.0)
    return torch.exp(K * scaled.square()) * torch.tanh(delta * trend)


def _survival(score: Tensor, density: float) -> Tensor:
    """Scale the scores of the survivors to (0, 1]; those of the others are 0."""
    count = max(1, int(density * score.numel())) if density > 0 else 0
    keep = first_largest(score, count)
    dropped = score[~keep]
    low = dropped.max() if dropped.numel() else score.min().clamp(max=0)
    reach = score.max() - low
    scaled = torch.where(reach > 0, (score - low) / torch.where(reach > 0, reach, 1.0), 1.0)
    return torch.where(keep, scaled, 0.0)


def first_largest(score: Tensor, count: int) -> Tensor:
    """Mark the `count` largest entries, among equal ones those of lowest index.

    Returns:
        bool, as the score.
    """
    keep = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    keep[score.flatten().sort(descending=True, stable=True).indices[:count]] = True
    return keep.reshape(score.shape)
