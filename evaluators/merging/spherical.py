"""Merges on spheres: linear combinations whose coefficients follow from inner products.

Whatever turns, averages or projects K + 1 vectors stays in their span, so all that an operator must
know of a tensor is the Gram matrix of its versions. That depends on the sources alone: it is
computed once, and a candidate then costs a handful of numbers per tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evaluators.merging.sums import dot

_COLLINEAR = 0.9995
"""Above this |cosine| a spherical interpolation is a linear one (mergekit's rule)."""


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
"""(Gram matrices `... x (K+1) x (K+1)`, dials) → coefficients `... x (K+1)` of θ_0, θ_1 … θ_K."""


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
    among = of_models(products)[..., -2:, -2:]
    length = among.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt().prod(-1)
    cosine = torch.where(length > 0, among[..., 0, 1] / torch.where(length > 0, length, 1.0), 0.0)
    mix = arc(cosine.clamp(-1, 1), dials.merge["t"]).movedim(0, -1)
    return torch.nn.functional.pad(mix, (products.shape[-1] - 2, 0))


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
