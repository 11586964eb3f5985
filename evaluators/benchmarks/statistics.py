"""Errors of measurements, their correlations, and the compact form in which outcomes are stored."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from evaluators.benchmarks.benchmark import Outcomes

FLOOR = 1e-6
"""Smallest standard error, relative to max(1, |mean|): float32 outcomes know no better."""


def proportion(outcomes: Outcomes) -> tuple[float, float]:
    """Share of ones among zeros and ones, with its standard error.

    The value is k/n. The error is the standard deviation of the posterior Beta(k+1, n-k+1) under a
    uniform prior, sqrt(p(1-p)/(n+3)) with Laplace's p = (k+1)/(n+2): never 0, also at k = 0 or n.
    """
    n, k = len(outcomes), float(outcomes.sum(dtype=np.float64))
    p = (k + 1) / (n + 2)
    return k / n, math.sqrt(p * (1 - p) / (n + 3))


def mean(outcomes: Outcomes) -> tuple[float, float]:
    """Sample mean with its standard error s/√n, at least `FLOOR`.

    One outcome tells nothing about the spread: its error is its own size, or 1 if that is less.
    """
    values = outcomes.astype(np.float64)
    value, n = float(values.mean()), len(values)
    if n == 1:
        return value, max(abs(value), 1.0)
    return value, max(float(values.std(ddof=1)) / math.sqrt(n), FLOOR * max(1.0, abs(value)))


def exponential(value: float, standard_error: float) -> tuple[float, float]:
    """Carry a mean and its error through exp: e^m and, by the delta method, e^m · se."""
    try:
        power = math.exp(value)
    except OverflowError:
        return math.inf, math.inf
    return power, power * standard_error


def error_correlations(outcomes: Sequence[Outcomes]) -> NDArray[np.float64]:
    """How the errors of k means are correlated that begin with the same items in the same order.

    With c the sample covariance of the min(n_a, n_b) common outcomes of a and b,
    cov(mean_a, mean_b) = min(n_a, n_b) c / (n_a n_b) = c / max(n_a, n_b). That is the inner product
    of the deviations (outcome - mean) / n, 0 where there is no outcome; scaled to length 1 it is
    a correlation, and the matrix is positive semi-definite. By the delta method, a monotonic
    function of the means has the correlations of the means.

    Two guards against differences that look certain because there are few items:

    - Zeros and ones have, as in `proportion`, a uniform prior: of the four joint answers of two
      trials each counts as seen once, which adds 4 · 1/4 to a squared length and about nothing to
      an inner product. Equal answers to n items do not prove that the next one is equal.
    - Correlations are drawn towards their average, the more the less they differ beyond their own
      errors (Schäfer & Strimmer 2005, doi 10.2202/1544-6115.1175; the error of r is (1 - r²)/√n).

    Args:
        outcomes: k arrays, also empty ones; one without spread tells nothing and is independent.

    Returns:
        `k x k`.
    """
    counts = np.array([len(o) for o in outcomes], dtype=np.float64)
    deviations = np.zeros((len(outcomes), int(counts.max(initial=0))))
    for row, values in zip(deviations, outcomes, strict=True):
        if len(values):
            row[: len(values)] = values - values.mean(dtype=np.float64)
    squares = (deviations**2).sum(axis=1)
    tells = np.flatnonzero(squares > FLOOR**2 * counts)
    prior = np.array([float(np.isin(values, (0, 1)).all()) for values in outcomes])
    units, n = deviations[tells] / np.sqrt((squares + prior)[tells])[:, None], counts[tells]
    found = np.eye(len(outcomes))
    if len(tells) > 1:
        found[np.ix_(tells, tells)] = _shrunk(units @ units.T, n)
    np.fill_diagonal(found, 1.0)
    return found


def _shrunk(found: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw `k x k` correlations of means over n outcomes towards those of a common correlation."""
    fewer, more = np.minimum.outer(n, n), np.maximum.outer(n, n)
    nested = np.sqrt(fewer / more)  # what the different numbers of items leave of it
    r = found / nested
    others = ~np.eye(len(n), dtype=bool)
    common = min(max(float(r[others].mean()), 0.0), 1.0)
    error = float(((1 - r**2) ** 2 / fewer)[others].sum())
    spread = float(((r - common) ** 2)[others].sum())
    weight = min(error / spread, 1.0) if spread > 0 else 0.0
    target = np.where(others, common * nested, 1.0)
    return (1 - weight) * found + weight * target


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927; the two roots in p of |k/n - p| = z·σ).

    It stays within [0, 1] and keeps its coverage where k/n ± z·se does not: near 0 and 1.

    Raises:
        ValueError: not 0 <= successes <= n, n < 1, or a level outside (0, 1).
    """
    if not (n >= 1 and 0 <= successes <= n and 0 < level < 1):
        raise ValueError(f"no interval for {successes} of {n} at level {level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # At k = 0 and k = n one root is 0 or 1; rounding would miss it.
    return centre - half if successes > 0 else 0.0, centre + half if successes < n else 1.0


def pack(outcomes: Outcomes) -> str:
    """Outcomes as text: base64 of zlib of little-endian float32. `unpack` gives the same bits."""
    raw = np.ascontiguousarray(outcomes, dtype="<f4").tobytes()
    return base64.b64encode(zlib.compress(raw, 9)).decode("ascii")


def unpack(text: str) -> Outcomes:
    """Outcomes from their text.

    Raises:
        ValueError: the text is no packed array.
    """
    try:
        raw = zlib.decompress(base64.b64decode(text, validate=True))
        return np.frombuffer(raw, dtype="<f4").astype(np.float32)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"not packed outcomes: {error}") from error
