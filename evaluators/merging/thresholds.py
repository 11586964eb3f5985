"""What an operator must know of a whole tensor before any block of it can be merged.

Which entries survive trimming, by how much the survivors are scaled, and the two coefficients of a
spherical interpolation. The formulas are elementwise once these are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluators.merging.methods import Method
from evaluators.merging.settings import Settings

_RUN = 1 << 14
"""Elements per partial sum: torch never splits so few over threads, so sums do not depend on it."""

TINY_NORM = 1e-7
"""No l1 rescale when a norm is below (mergekit's rule): near-identical tensors stay as they are."""

_COLLINEAR = 0.9995
"""Above this |cosine| a spherical interpolation is a linear one."""


@dataclass(frozen=True)
class Survey:
    """The findings on one tensor of n elements and K models.

    Attributes:
        keep: `K x n` bool, True where an entry survives; `K x 1` ones if nothing is trimmed.
        rescale: `K x 1` float32 factors of the survivors.
        mix: `2 x 1` float32 coefficients of the two models of a pairwise operator.
    """

    keep: Tensor
    rescale: Tensor
    mix: Tensor


def survey(
    method: Method,
    base: Tensor,
    models: Sequence[Tensor],
    settings: Settings,
    draw: Callable[[int], Tensor],
) -> Survey:
    """Look at a whole tensor once.

    Args:
        method: the operator; its trimming and pairing decide what is needed.
        base: `n`, any floating dtype.
        models: the K tensors to merge, `n` each.
        settings: of the tensor's block.
        draw: k → the `n` uniform numbers of expert k.
    """
    K = len(models)
    keep, rescale, mix = torch.ones(K, 1), torch.ones(K), torch.ones(2)
    densities = settings.experts.get("density", ())
    if method.trim is not None and any(density < 1 for density in densities):
        kind = settings.merge.get("rescale", "none")
        keep = torch.ones(K, base.numel(), dtype=torch.bool)
        for k, density in enumerate(densities):
            if density < 1:
                delta = models[k].float() - base.float()
                by_size = method.trim == "magnitude"
                keep[k] = keep_largest(delta, density) if by_size else draw(k) < density
                rescale[k] = rescale_factor(str(kind), delta, keep[k], density)
    if method.pairwise:
        t = torch.tensor(float(settings.merge["t"]), dtype=torch.float64)
        mix = arc(torch.tensor(cosine(models[0], models[1]), dtype=torch.float64), t).float()
    return Survey(keep, rescale[:, None], mix[:, None])


def keep_largest(delta: Tensor, density: float) -> Tensor:
    """Mark the `int(density * n)` entries of largest magnitude, at least one if density > 0.

    Among entries that tie at the threshold those with the lowest index are kept. TIES, Yadav et
    al. (arXiv 2306.01708), section 3, step "trim"; here per tensor, as in mergekit.

    Args:
        delta: `n`.
        density: kept fraction; 0 keeps nothing, 1 and above everything.

    Returns:
        `n` bool.
    """
    n = delta.numel()
    count = max(1, int(density * n)) if density > 0 else 0
    if count >= n:
        return torch.ones(n, dtype=torch.bool)
    if count == 0:
        return torch.zeros(n, dtype=torch.bool)
    size = delta.abs()
    threshold = size.kthvalue(n - count + 1).values
    keep = size > threshold
    tied = (size == threshold).nonzero().flatten()
    keep[tied[: count - int(keep.sum())]] = True
    return keep


def rescale_factor(kind: str, delta: Tensor, keep: Tensor, density: float) -> float:
    """Compute the factor of the surviving entries of one delta.

    `inverse_density` is 1/density: DARE, Yu et al. (arXiv 2311.03099), equation 2. `l1` makes the
    sum of magnitudes what it was before trimming, as mergekit does since 0.1. `none` is 1.

    Args:
        kind: "l1", "inverse_density" or "none".
        delta: `n`.
        keep: `n` bool.
        density: kept fraction.
    """
    if kind == "l1":
        before, after = absolute_sum(delta), absolute_sum(delta * keep)
        return before / after if min(before, after) >= TINY_NORM else 1.0
    return 1 / density if kind == "inverse_density" and density > 0 else 1.0


def cosine(a: Tensor, b: Tensor) -> float:
    """Compute the cosine between two tensors of n elements in float64; 0 if one is zero."""
    norms = (dot(a, a) * dot(b, b)) ** 0.5
    return max(-1.0, min(1.0, dot(a, b) / norms)) if norms > 0 else 0.0


def arc(cosine: Tensor, t: Tensor) -> Tensor:
    """Compute the coefficients of spherical interpolation between two vectors.

    Shoemake, "Animating rotation with quaternion curves" (SIGGRAPH 1985), section 3.3:
    sin((1-t)ω)/sin ω and sin(tω)/sin ω, and 1-t and t where the vectors are nearly collinear.

    Args:
        cosine: `...`
        t: `...`, 0 gives the first vector and 1 the second.

    Returns:
        `2 x ...`
    """
    straight = cosine.abs() > _COLLINEAR
    angle = torch.acos(torch.where(straight, 0.0, cosine))
    first = torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / torch.sin(angle))
    second = torch.where(straight, t, torch.sin(t * angle) / torch.sin(angle))
    return torch.stack([first, second])


def absolute_sum(x: Tensor) -> float:
    """Sum magnitudes in float64, the same for any number of threads."""
    return math.fsum(float(part.abs().sum(dtype=torch.float64)) for part in torch.split(x, _RUN))


def dot(a: Tensor, b: Tensor) -> float:
    """Multiply and add two tensors of n elements in float64, the same for any number of threads."""
    pairs = zip(torch.split(a, _RUN), torch.split(b, _RUN), strict=True)
    return math.fsum(float((x.double() * y.double()).sum()) for x, y in pairs)
