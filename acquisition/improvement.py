"""Noisy expected hypervolume improvement of one point, the point's own uncertainty in closed form.

NEHVI (Daulton et al. 2021) averages over sampled fronts what a candidate adds to each. Given a
sample of everything already chosen the outcomes of the candidate are independent normals, and its
improvement is a sum over the boxes that the sampled front leaves (Yang et al. 2019):

    E[HVI] = Σ_boxes Π_k E[(min(y_k, u_k) − l_k)⁺],
    E[(y − a)⁺] = σ (φ(z) + z Φ(z)),  z = (μ − a) / σ,

so only the front is sampled, and 16 samples do what BoTorch needs many more for. All is computed as
logarithms, whose gradients do not vanish far from the front (Ament et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acquisition.boxes import nondominated_boxes

BEYOND = 1e6
"""Stands for infinity, in standard deviations of an objective."""

FAR = -1e4
"""Below this z the closed form of log h would cancel; its asymptote is exact to 1e-8 there."""


@dataclass(frozen=True)
class Boxes:
    """The boxes of s fronts, padded to the same number by boxes beyond everything.

    Attributes:
        levels: `s x m x L` coordinates that occur, ascending or not.
        lower: `s x m x b` positions of the lower bounds in `levels`.
        upper: likewise of the upper bounds.
    """

    levels: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def above(cls, fronts: Tensor, counted: Tensor, reference: Tensor) -> Boxes:
        """Decompose what is above each front.

        Args:
            fronts: `s x n x m` outcomes.
            counted: `s x n`, which of them are feasible.
            reference: `m`.
        """
        Y, ok, point = fronts.numpy(), counted.numpy(), reference.numpy()
        corners = [nondominated_boxes(y[use], point) for y, use in zip(Y, ok, strict=True)]
        s, m, b = len(corners), len(point), max(len(lower) for lower, _ in corners)
        bounds = np.full((2, s, m, b), BEYOND)
        bounds[1] = 2 * BEYOND
        for i, (lower, upper) in enumerate(corners):
            bounds[0, i, :, : len(lower)] = lower.T
            bounds[1, i, :, : len(lower)] = np.minimum(upper.T, BEYOND)
        return cls._indexed(bounds)

    @classmethod
    def _indexed(cls, bounds: np.ndarray) -> Boxes:
        _, s, m, b = bounds.shape
        both = bounds.transpose(1, 2, 0, 3).reshape(s * m, 2 * b)
        unique = [np.unique(row, return_inverse=True) for row in both]
        longest = max(len(values) for values, _ in unique)
        levels = np.full((s * m, longest), BEYOND)
        for i, (values, _) in enumerate(unique):
            levels[i, : len(values)] = values
        where = np.stack([index for _, index in unique]).reshape(s, m, 2, b)
        lower, upper = (torch.from_numpy(where[:, :, i].copy()) for i in range(2))
        return cls(torch.from_numpy(levels.reshape(s, m, longest)), lower, upper)


def log_improvement(mean: Tensor, sigma: Tensor, boxes: Boxes, floor: Tensor) -> Tensor:
    """Log of the mean over samples of E[HVI], for c candidates: `c`.

    Args:
        mean: `c x s x m` means of the outcomes given each sample.
        sigma: `c x s x m` their standard deviations.
        boxes: what each sampled front leaves.
        floor: `m`; only outcomes that reach it everywhere improve anything; −∞ for none.
    """
    log_gain = _log_expected_excess(mean, sigma, boxes.levels)
    index = (len(mean), -1, -1, -1)
    above = log_gain.gather(-1, boxes.lower.expand(index))
    beyond = log_gain.gather(-1, boxes.upper.expand(index))
    # log(E[(y − l)⁺] − E[(y − u)⁺])
    width = above + _log1mexp(beyond - above)
    if floor.isfinite().any():
        width = _with_floor(width, mean, sigma, boxes, floor)
    volume = width.sum(-2).logsumexp(-1)
    return volume.logsumexp(-1) - math.log(mean.shape[1])


def _log_expected_excess(mean: Tensor, sigma: Tensor, levels: Tensor) -> Tensor:
    """Log E[(y − a)⁺] at each level a: `c x s x m x L`."""
    sigma = sigma.unsqueeze(-1)
    return sigma.log() + log_h((mean.unsqueeze(-1) - levels) / sigma)


def _with_floor(width: Tensor, mean: Tensor, sigma: Tensor, boxes: Boxes, floor: Tensor) -> Tensor:
    """Count only outcomes of at least the floor f.

    With f' = f clipped to the box, E[(min(y, u) − l)⁺ 1(y ≥ f)] = (f' − l) P(y ≥ f) +
    E[(y − f')⁺] − E[(y − u)⁺]. Objectives without a floor keep their width.
    """
    limited = floor.isfinite()
    lower = boxes.levels.gather(-1, boxes.lower)
    upper = boxes.levels.gather(-1, boxes.upper)
    at = torch.minimum(torch.maximum(floor.clamp_min(-BEYOND)[:, None], lower), upper)
    deviation = sigma.unsqueeze(-1)
    log_reached = torch.special.log_ndtr((mean - floor.clamp_min(-BEYOND)) / sigma)
    jump = (at - lower).clamp_min(1e-300).log() + log_reached.unsqueeze(-1)
    start, end = (
        deviation.log() + log_h((mean.unsqueeze(-1) - level) / deviation) for level in (at, upper)
    )
    # Where the floor is above the box the second part is nothing.
    rest = torch.where(at < upper, start + _log1mexp(end - start), -torch.inf)
    return torch.where(limited[:, None], torch.logaddexp(jump, rest), width)


def log_h(z: Tensor) -> Tensor:
    """log(φ(z) + z Φ(z)), accurate for every z (Ament et al. 2023, appendix A)."""
    near = z.clamp_min(-1.0)
    plain = (_phi(near) + near * torch.special.ndtr(near)).log()
    left = z.clamp(FAR, -1.0)
    scaled = torch.special.erfcx(-left * math.sqrt(0.5)) * math.sqrt(math.pi / 2)
    tail = torch.log1p(left * scaled)
    far = -2 * z.clamp_max(FAR).neg().log()
    exponent = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    below = exponent + torch.where(z > FAR, tail, far)
    return torch.where(z > -1.0, plain, below)


def _phi(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 − eˣ) for x < 0."""
    x = x.clamp_max(-1e-15)
    small = x > -math.log(2)
    return torch.where(
        small,
        (-torch.expm1(torch.where(small, x, -1.0))).log(),
        torch.log1p(-torch.exp(torch.where(small, -1.0, x))),
    )
