"""Operators on the singular vectors of task matrices.

These are `whole` operators (see `METHODS`): base and models come in the tensor's own shape, numbers
as tensors of one element, and there are no batches. A scalar may come back as one element. A tensor
of more than two dimensions is a matrix of its first dimension by all others. Vectors and scalars
have no singular vectors: their weighted task vectors are averaged over the K experts, as the
authors do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluators.merging.formulas import Operands, moved, total


def tsv_m(x: Operands) -> Tensor:
    """Merge the leading singular vectors of all task matrices, made orthogonal to each other.

    Gargiulo et al., "Task singular vectors" (arXiv 2412.00081) (TSV-M): every expert
    keeps 1/K of the rank (at least 1), the K bases are concatenated, and the nearest
    orthonormal ones replace them: θ_0 + λ U_⊥ Σ V_⊥ᵀ. Our weights w_k scale the singular values.
    Where experts share singular vectors, the nearest basis is not unique.

    Returns:
        as the base.
    """
    if x.base.dim() < 2 or x.base.numel() == 0:
        return moved(x, total(x.weighted) / len(x.models))
    left, middle, right = [], [], []
    for delta, weight in zip(x.deltas, x.weights, strict=True):
        U, S, Vh = torch.linalg.svd(delta.flatten(1), full_matrices=False)
        rank = max(1, len(S) // len(x.models))
        left.append(U[:, :rank])
        middle.append(S[:rank] * weight)
        right.append(Vh[:rank])
    delta = (_orthonormal(torch.cat(left, 1)) * torch.cat(middle)) @ _orthonormal(torch.cat(right))
    return moved(x, delta.reshape(x.base.shape))


def iso_c(x: Operands) -> Tensor:
    """Make task arithmetic isotropic: θ_0 + λ σ̄ U Vᵀ, where Σ w_k τ_k = U S Vᵀ and σ̄ = mean of S.

    Marczak et al., "No task left behind" (arXiv 2502.04959).

    Returns:
        as the base.
    """
    if x.base.dim() < 2 or x.base.numel() == 0:
        return moved(x, total(x.weighted) / len(x.models))
    U, S, Vh = torch.linalg.svd(total(x.weighted).flatten(1), full_matrices=False)
    return moved(x, (S.mean() * (U @ Vh)).reshape(x.base.shape))


def _orthonormal(vectors: Tensor) -> Tensor:
    """Find the nearest matrix with orthonormal rows or columns: P Qᵀ of its singular vectors.

    Schönemann, "A generalized solution of the orthogonal Procrustes problem" (1966).
    """
    P, _, Qh = torch.linalg.svd(vectors, full_matrices=False)
    nearest: Tensor = P @ Qh
    return nearest
