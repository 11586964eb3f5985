"""Standard errors of measurements, and the compact form in which outcomes are stored."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from statistics import NormalDist

import numpy as np

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
