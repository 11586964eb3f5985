"""Merges on spheres: linear combinations whose coefficients follow from inner products.

Whatever turns, averages or projects K + 1 vectors stays in their span, so all that an operator must
know of a tensor is the Gram matrix of its versions. That depends on the sources alone: it is
computed once, and a candidate then costs a handful of numbers per tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evaluators.merging.sums import dot

_NEARLY_STRAIGHT = 0.9995
"""Above this |cosine| `slerp` is linear (mergekit's rule)."""

_STRAIGHT = 1 - 5e-13
"""Above this |cosine| `nuslerp` is linear: the sine of the angle is below 1e-6."""

_RESOLUTION = 1e-7
"""A mean of unit vectors that is shorter may be rounding: its square is a sum of float64 terms."""


@dataclass(frozen=True)
class Dials:
    """What an operator is told about one tensor, in float64.

    Attributes:
        experts: parameter → `... x K`.
        merge: parameter → `...`.
        options: choice → its value.
    """

    experts: Mapping[str, Tensor] = field(default_factory=dict)
    merge: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, float | bool | str] = field(default_factory=dict)


Mixer = Callable[[Tensor, Dials], Tensor]
"""(Gram matrices `... x (K+1) x (K+1)`, dials) → coefficients `... x (K+1)` of θ_0, τ_1 … τ_K."""


def gram(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    """Compute the inner products of θ_0, τ_1 … τ_K of n elements each, τ_k = θ_k − θ_0 in float32.

    Of the task vectors, not of the models, since differences of products would cancel.

    Returns:
        `(K+1) x (K+1)` float64
    """
    vectors = [base, *(model.float() - base.float() for model in models)]
    found = torch.empty(len(vectors), len(vectors), dtype=torch.float64)
    for i, a in enumerate(vectors):
        for j in range(i + 1):
            found[i, j] = found[j, i] = dot(a, vectors[j])
    return found


def along(options: Mapping[str, float | bool | str]) -> int | None:
    """Tell along which dimension of a tensor its vectors run; None if it is one vector.

    mergekit's switches: nuslerp has a vector per row (or, with `nuslerp_row_wise`, per column)
    unless it flattens; model_stock has one per row if it is `filter_wise`.
    """
    if options.get("nuslerp_flatten") is False:
        return 0 if options["nuslerp_row_wise"] else -1
    return -1 if options.get("filter_wise") is True else None


def grams(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    """Compute the inner products of θ_0, τ_1 … τ_K for each of R rows of C elements.

    Args:
        base: `R x C` float32
        models: K `R x C` float32

    Returns:
        `R x (K+1) x (K+1)` float64
    """
    vectors = torch.stack([base, *(model - base for model in models)], -2).double()
    return vectors @ vectors.transpose(-1, -2)


def of_models(products: Tensor) -> Tensor:
    """Turn products of θ_0, τ_1 … τ_K into those of θ_0, θ_1 … θ_K.

    Args:
        products: `... x (K+1) x (K+1)`

    Returns:
        `... x (K+1) x (K+1)`
    """
    size = products.shape[-1]
    frame = torch.eye(size, dtype=products.dtype, device=products.device)
    frame[:, 0] = 1  # θ_k = θ_0 + τ_k
    return frame @ products @ frame.T


def slerp(products: Tensor, dials: Dials) -> Tensor:
    """Spherical interpolation by `t` from the first of two models to the second.

    The two are base and expert, or two experts. They keep their lengths; the angle is that between
    them (see `arc`).
    """
    pair = of_models(products)[..., -2:, -2:]
    mix = arc(_cosines(pair)[..., 0, 1], dials.merge["t"], _NEARLY_STRAIGHT).movedim(0, -1)
    return _from_models(torch.nn.functional.pad(mix, (products.shape[-1] - 2, 0)))


def nuslerp(products: Tensor, dials: Dials) -> Tensor:
    """Spherical interpolation between two task vectors, or two models, by their weights' ratio.

    By t = w_2 / (w_1 + w_2); half way where the weights sum to 0. See `along` for what a vector is.
    """
    weights = dials.experts["weight"]
    sums = weights.sum(-1)
    unsaid = sums.abs() < 1e-6
    t = torch.where(unsaid, 0.5, weights[..., 1] / torch.where(unsaid, 1.0, sums))
    cosine = _cosines(_vectors(products, dials))[..., 0, 1]
    return _placed(arc(cosine, t, _STRAIGHT).movedim(0, -1), dials)


def multislerp(products: Tensor, dials: Dials) -> Tensor:
    """Weighted mean direction of task vectors, or models, at the weighted mean of their lengths.

    Goddard, "Multi-SLERP" (goddard.blog, 2025), projects the unit vectors onto the tangent space at
    their mean and averages them there. The tangent vectors at the mean cancel, so its exponential
    is the mean direction itself, which is all that is computed here. Where directions cancel
    (antipodal vectors), none is mean: the vectors are added as they are, Σ w_k v_k. Where all
    weights are 0 there is nothing to average and the result is the base; weights that cancel have
    no average if they are to be normalized, and the result is not finite. One vector alone is
    itself, whatever its weight.
    """
    vectors, weights = _vectors(products, dials), dials.experts["weight"]
    silent = (weights == 0).all(-1, keepdim=True)
    if dials.options["normalize_weights"] or weights.shape[-1] == 1:
        weights = weights / torch.where(silent, 1.0, weights.sum(-1, keepdim=True))
    eps = dials.merge["eps"].unsqueeze(-1)
    lengths = _lengths(vectors)
    directed = torch.where(lengths > 0, weights / (lengths + eps), 0.0)
    square = (directed * _times(vectors, directed)).sum(-1, keepdim=True)
    cancelled = square < eps.clamp(min=_RESOLUTION) ** 2
    reach = (weights * lengths).sum(-1, keepdim=True) / torch.where(cancelled, 1.0, square).sqrt()
    return _placed(torch.where(cancelled, weights, reach * directed), dials, silent)


def karcher(products: Tensor, dials: Dials) -> Tensor:
    """Karcher mean of the models' directions, at the mean of their lengths.

    Karcher, "Riemannian center of mass" (1977): steps to the mean in the tangent space, at most
    `max_iter`, until one is shorter than `tol`. Starts from the mean direction, or from the first
    model where directions cancel. Models no longer than `tol` have no direction, and a direction
    opposite to the mean no shortest way to it; both are left out. Without any directions: the
    arithmetic mean.
    """
    vectors = of_models(products)[..., 1:, 1:]
    tol, last = dials.merge["tol"].unsqueeze(-1), dials.merge["max_iter"].unsqueeze(-1)
    lengths = _lengths(vectors)
    valid = lengths > tol
    among, units = valid.to(vectors.dtype), _cosines(vectors)
    share = among / among.sum(-1, keepdim=True).clamp(min=1)
    first = among * (among.cumsum(-1) == 1)
    size = _norm(units, share)
    mean = torch.where(size < tol, first, share / torch.where(size < tol, 1.0, size))
    running = valid.any(-1, keepdim=True)
    for step in range(math.ceil(float(last.detach().max()))):
        cosine = _times(units, mean).clamp(-1, 1)
        angle = torch.acos(cosine)
        bent = torch.sin(angle) >= tol
        pull = torch.where(bent, share * angle / torch.where(bent, torch.sin(angle), 1.0), 0.0)
        pull = pull - (pull * cosine).sum(-1, keepdim=True) * mean
        way = _norm(units, pull)
        running = running & (way >= tol) & (step < last)
        if not running.any():
            break
        turned = torch.cos(way) * mean + torch.sin(way) / torch.where(running, way, 1.0) * pull
        mean = torch.where(running, turned / _norm(units, turned), mean)
    length = lengths.mean(-1, keepdim=True)
    mix = length * mean / torch.where(valid, lengths, 1.0)
    mix = torch.where(valid.any(-1, keepdim=True), mix, 1 / mix.shape[-1])
    return _from_models(torch.nn.functional.pad(mix, (1, 0)))


def model_stock(products: Tensor, _: Dials) -> Tensor:
    """Move from the base to the mean of the models as far as their agreement says.

    Jang et al., "Model Stock" (arXiv 2403.19522): t = K c / (1 + (K-1) c) with c the
    mean cosine between two task vectors; t = 0 where the divisor is 0. As in mergekit, products of
    lengths below 1e-6 count as 1e-6, which holds tensors that hardly moved near the base.
    """
    moves = products[..., 1:, 1:]
    K = moves.shape[-1]
    pairs = torch.ones(K, K, dtype=torch.bool).triu(1)
    cosine = _cosines(moves, least=1e-6)[..., pairs].mean(-1, keepdim=True)
    divisor = 1 + (K - 1) * cosine
    singular = divisor.abs() < 1e-6
    t = torch.where(singular, 0.0, K * cosine / torch.where(singular, 1.0, divisor))
    return torch.cat([torch.ones_like(t), (t / K).expand(*t.shape[:-1], K)], -1)


def arc(cosine: Tensor, t: Tensor, straight: float) -> Tensor:
    """Compute the coefficients of spherical interpolation between two vectors.

    Shoemake, "Animating rotation with quaternion curves" (SIGGRAPH 1985), section 3.3:
    sin((1-t)ω)/sin ω and sin(tω)/sin ω, and 1-t and t where the vectors are nearly collinear.

    Args:
        cosine: `...`
        t: `...`, 0 gives the first vector and 1 the second.
        straight: |cosine| above which vectors are collinear.

    Returns:
        `2 x ...`
    """
    line = cosine.abs() > straight
    angle = torch.acos(torch.where(line, 0.0, cosine))
    first = torch.where(line, 1 - t, torch.sin((1 - t) * angle) / torch.sin(angle))
    second = torch.where(line, t, torch.sin(t * angle) / torch.sin(angle))
    return torch.stack([first, second])


def _vectors(products: Tensor, dials: Dials) -> Tensor:
    """Gram matrices `... x K x K` of what is merged: the task vectors, or the models."""
    chosen = products if dials.options["task_vectors"] else of_models(products)
    return chosen[..., 1:, 1:]


def _placed(mix: Tensor, dials: Dials, silent: Tensor | None = None) -> Tensor:
    """Turn coefficients of what is merged (`... x K`) into those of θ_0, τ_1 … τ_K.

    Where `silent` (`... x 1`), the result is the base.
    """
    pad = torch.nn.functional.pad
    if dials.options["task_vectors"]:
        placed = pad(mix, (1, 0), value=1.0)
    else:
        placed = _from_models(pad(mix, (1, 0)))
    if silent is None:
        return placed
    alone = torch.zeros_like(placed)
    alone[..., 0] = 1
    return torch.where(silent, alone, placed)


def _from_models(mix: Tensor) -> Tensor:
    """Turn coefficients of θ_0 … θ_K into those of θ_0, τ_1 … τ_K (`... x (K+1)`)."""
    return torch.cat([mix.sum(-1, keepdim=True), mix[..., 1:]], -1)


def _lengths(products: Tensor) -> Tensor:
    """Lengths `... x K` of vectors with these inner products."""
    return products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def _cosines(products: Tensor, least: float = 0.0) -> Tensor:
    """Cosines `... x K x K`, 0 with a vector that is 0; products of lengths are at `least` this."""
    lengths = _lengths(products)
    pairs = (lengths.unsqueeze(-1) * lengths.unsqueeze(-2)).clamp(min=least)
    return torch.where(pairs > 0, products / torch.where(pairs > 0, pairs, 1.0), 0.0).clamp(-1, 1)


def _times(products: Tensor, mix: Tensor) -> Tensor:
    """Inner products `... x K` of vectors with one of their combinations."""
    return (products * mix.unsqueeze(-2)).sum(-1)


def _norm(products: Tensor, mix: Tensor) -> Tensor:
    """Length `... x 1` of a combination of vectors."""
    return (mix * _times(products, mix)).sum(-1, keepdim=True).clamp(min=0).sqrt()
