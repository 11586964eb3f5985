"""Small float64 tensors, written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rows(*values: Sequence[float]) -> Tensor:
    """A matrix of these rows."""
    return torch.tensor(values, dtype=torch.float64)


def column(*values: float) -> Tensor:
    """One value per point."""
    return torch.tensor(values, dtype=torch.float64)
