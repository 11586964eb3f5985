"""Sums over whole tensors in float64, the same for any number of threads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_RUN = 1 << 14
"""Elements per partial sum: torch never splits so few over threads, so sums do not depend on it."""


def absolute_sum(x: Tensor) -> float:
    """Sum the magnitudes of n elements."""
    return math.fsum(float(part.abs().sum(dtype=torch.float64)) for part in torch.split(x, _RUN))


def dot(a: Tensor, b: Tensor) -> float:
    """Multiply and add two tensors of n elements."""
    pairs = zip(torch.split(a, _RUN), torch.split(b, _RUN), strict=True)
    return math.fsum(float((x.double() * y.double()).sum()) for x, y in pairs)
