"""What an operator must know of a whole tensor before any block of it can be merged.

Which entries survive trimming, by how much the survivors are scaled, and the coefficients of a
spherical interpolation. The formulas are elementwise once these are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name

import torch
from torch import Tensor

from evaluators.merging.methods import Method
from evaluators.merging.settings import Settings
from evaluators.merging.spherical import Dials, gram
from evaluators.merging.sums import absolute_sum

TINY_NORM = 1e-7
"""No l1 rescale when a norm is below (mergekit's rule): near-identical tensors stay as they are."""


@dataclass(frozen=True)
class Survey:
    """The findings on one tensor of n elements and K models.

    Attributes:
        keep: `K x n` bool, True where an entry survives; `K x 1` ones if nothing is trimmed.
        rescale: `K x 1` float32 factors of the survivors.
        mix: `(K+1) x 1` float32 coefficients of base and models, or empty.
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
    keep, rescale, mix = torch.ones(K, 1), torch.ones(K), torch.empty(0)
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
    if method.mix is not None:
        mixer = resolve_name(method.mix)
        mix = mixer(gram(base, models), dials(settings)).float()
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


def dials(settings: Settings) -> Dials:
    """Say the same in tensors."""
    numbers = {k: v for k, v in settings.merge.items() if not isinstance(v, bool | str)}
    return Dials(
        experts={k: torch.tensor(v, dtype=torch.float64) for k, v in settings.experts.items()},
        merge={k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()},
        options={k: v for k, v in settings.merge.items() if isinstance(v, bool | str)},
    )
