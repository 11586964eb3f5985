"""The units of outcomes: standardised ones for everything that looks at several objectives at once,
and a link for a bounded accuracy, whose process is fitted to a standardised logit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RELATIVE_SPREAD = 1e-9
"""A column whose standard deviation is below this share of its magnitude is constant."""

HEADROOM = 0.1
"""The ends of a link lie so much beyond the accuracies that were measured, within [0, 1]. Merges
move between chance and a ceiling that are nearer than 0 and 1, and flatten towards both."""

SHRINKAGE = 1e-3
"""An accuracy at an end of its link has the logit of this share inside: finite."""

NODES = 20
"""Points of the Gauss–Hermite rule for a mean through a link."""


@dataclass(frozen=True)
class OutcomeScale:
    """The affine map from raw objectives to standardised ones: z = (y − shift) / scale.

    Attributes:
        shift: `m` means.
        scale: `m` standard deviations; 1 where the objective is constant or seen once.
    """

    shift: Tensor
    scale: Tensor

    @classmethod
    def of(cls, Y: Tensor) -> OutcomeScale:
        """Mean and standard deviation of the columns of `n x m` observations, n at least 1."""
        shift = Y.mean(dim=0)
        scale = Y.std(dim=0) if len(Y) > 1 else torch.zeros_like(shift)
        constant = scale <= RELATIVE_SPREAD * shift.abs().clamp_min(RELATIVE_SPREAD)
        return cls(shift, torch.where(constant, torch.ones_like(scale), scale))

    def standardise(self, Y: Tensor) -> Tensor:
        """`... x m` raw outcomes → standardised ones."""
        return (Y - self.shift) / self.scale

    def raw(self, Z: Tensor) -> Tensor:
        """`... x m` standardised outcomes → raw ones."""
        return Z * self.scale + self.shift

    def constraints(self, A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Rewrite A y >= b (`c x m`, `c`) for standardised z, each row scaled to unit length.

        The smoothed feasibility of BoTorch has one temperature for all rows, hence the length.
        """
        A_z, b_z = A * self.scale, b - A @ self.shift
        length = A_z.norm(dim=-1)
        length = torch.where(length > 0, length, torch.ones_like(length))
        return A_z / length.unsqueeze(-1), b_z / length


@dataclass(frozen=True)
class Link:
    """A standardised accuracy z as an increasing function of u, which is a Gaussian process.

    u = standardised logit(p), p = (raw(z) - low) / (high - low).

    Attributes:
        low: the accuracy that u = -inf stands for.
        high: that of u = inf.
        outcome: scale of the accuracy, scalars.
        logit: scale of the logit, scalars.
    """

    low: float
    high: float
    outcome: OutcomeScale
    logit: OutcomeScale

    @classmethod
    def of(cls, y: Tensor, outcome: OutcomeScale) -> Link:
        """The link of `n` raw accuracies in [0, 1] whose scale is `outcome`."""
        low = max(0.0, float(y.amin()) - HEADROOM)
        high = min(1.0, float(y.amax()) + HEADROOM)
        return cls(low, high, outcome, OutcomeScale.of(_share(y, low, high).logit()))

    def forward(self, z: Tensor) -> Tensor:
        """Standardised accuracies → u, elementwise; beyond the ends as at the ends."""
        return self.logit.standardise(self._share(z).logit())

    def inverse(self, u: Tensor) -> Tensor:
        """Standardised accuracies of any u, elementwise."""
        share = self.logit.raw(u).sigmoid()
        return self.outcome.standardise(self.low + (self.high - self.low) * share)

    def slope(self, z: Tensor) -> Tensor:
        """du/dz at standardised accuracies: turns a standard error of z into one of u."""
        p = self._share(z)
        inner = self.outcome.scale / self.logit.scale / (self.high - self.low)
        return inner / (p * (1 - p))

    def _share(self, z: Tensor) -> Tensor:
        return _share(self.outcome.raw(z), self.low, self.high)

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of z where u is normal, elementwise, by a Gauss–Hermite rule."""
        nodes, weights = (
            torch.from_numpy(a).to(mean) for a in np.polynomial.hermite_e.hermegauss(NODES)
        )
        weights = weights / math.sqrt(2 * math.pi)
        z = self.inverse(mean.unsqueeze(-1) + variance.sqrt().unsqueeze(-1) * nodes)
        centre = z @ weights
        return centre, (z - centre.unsqueeze(-1)).square() @ weights


def _share(y: Tensor, low: float, high: float) -> Tensor:
    """Where accuracies lie between two ends, kept inside."""
    return ((y - low) / (high - low)).clamp(SHRINKAGE, 1 - SHRINKAGE)
