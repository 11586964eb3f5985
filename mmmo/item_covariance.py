"""What trials that answered the same items share of their errors; imported with the strategies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from evaluators.benchmarks.benchmark import NOTHING
from evaluators.benchmarks.statistics import error_correlations, unpack
from mmmo.records import Measurement


def item_covariances(measured: Sequence[Sequence[Measurement]]) -> torch.Tensor:
    """Covariances of the errors of n trials' measurements of m objectives: `m x n x n`.

    The diagonal is the square of the standard errors. What has no outcomes is independent.

    Args:
        measured: per trial its m measurements; all trials answer items in one order.
    """
    columns = zip(*measured, strict=True)
    return torch.stack([torch.from_numpy(_covariance(column)) for column in columns])


def _covariance(column: Sequence[Measurement]) -> NDArray[np.float64]:
    errors = np.array([m.se for m in column])
    outcomes = [unpack(m.outcomes) if m.outcomes else NOTHING for m in column]
    covariance: NDArray[np.float64] = np.outer(errors, errors) * error_correlations(outcomes)
    return covariance
