"""Peers that cannot avoid a point that was evaluated before: they get the nearest new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acquisition.draft import Draft

RADII = np.linspace(0.0, 0.5, 26)


def offer_nearby(draft: Draft, x: Tensor, diagnostics: Mapping[str, Any], seed: int) -> bool:
    """Append `x` (`d`), or the first new one of points around it at growing distances.

    In a cube nearly every point is new; among the recipes of a table children often coincide.
    """
    rng = np.random.default_rng((seed, draft.position))
    for radius in RADII:
        step = torch.from_numpy(rng.standard_normal(len(x)))
        if draft.offer(x + radius * step / step.norm(), diagnostics):
            return True
    return False
