"""Fisher-information selection: which candidates to keep, by what the surrogate knows of them.

Per modelled objective the surrogate predicts a normal distribution with variance σ_m²(x), whose
Fisher information about its mean is 1/σ_m²(x). MM-MO (arXiv 2407.00487) sums over objectives,
FI(x) = Σ_m 1/σ_m²(x); its released code keeps the lowest values, which are the least known
candidates. The paper's direction could not be read, hence both are here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

FisherRule = Literal["off", "low", "high", "logdet"]

MIN_VARIANCE = 1e-12
"""Variance, in squared standard deviations of an objective, below which a point is known."""


def fisher_information(variance: Tensor) -> Tensor:
    """FI(x) = Σ_m 1/σ_m²(x): `... x m` variances → `...`; 0 where nothing is modelled."""
    return variance.clamp_min(MIN_VARIANCE).reciprocal().sum(dim=-1)


def select(rule: FisherRule, covariance: Tensor, count: int) -> list[int]:
    """Choose which candidates are kept, best first; ties keep the earlier candidate.

    Args:
        rule: `off` keeps the first ones, `low` the least information (released MM-MO), `high` the
            most, `logdet` the set that is jointly least known: greedily the largest
            Σ_m log det Σ_m, so that two neighbours do not both count as unknown.
        covariance: `m x c x c` posterior covariances of the c candidates, per modelled objective.
        count: how many to keep, at most c.

    Returns:
        their indices.
    """
    if rule == "off":
        return list(range(count))
    if rule == "logdet":
        return _greedy_logdet(covariance, count)
    information = fisher_information(covariance.diagonal(dim1=-2, dim2=-1).transpose(0, 1))
    order = torch.sort(information, descending=rule == "high", stable=True).indices
    return [int(i) for i in order[:count]]


def _greedy_logdet(covariance: Tensor, count: int) -> list[int]:
    """Pick the candidate of largest Σ_m log conditional variance, condition on it, repeat."""
    remaining = covariance.clone()
    chosen: list[int] = []
    for _ in range(count):
        variance = remaining.diagonal(dim1=-2, dim2=-1).clamp_min(MIN_VARIANCE)
        gain = variance.log().sum(dim=0)
        gain[chosen] = -torch.inf
        best = int(gain.argmax())
        chosen.append(best)
        column = remaining[:, :, best : best + 1]
        remaining = remaining - column @ column.transpose(-1, -2) / variance[:, best, None, None]
    return chosen
