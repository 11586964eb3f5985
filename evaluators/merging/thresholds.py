"""What a merge must know of a whole tensor before any block of it can be merged.

Between which magnitudes entries survive, with which probability, and the coefficients of a linear
combination. With these numbers the formulas are elementwise.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pkgutil import resolve_name

import torch
from torch import Tensor

from evaluators.merging.levels import NOTHING, Cut, Levels, Ties, largest
from evaluators.merging.methods import Method
from evaluators.merging.settings import Settings
from evaluators.merging.spherical import Dials, Mixer

TINY_NORM = 1e-7
"""No l1 rescale when a norm is below (mergekit's rule): near-identical tensors stay as they are."""


@dataclass(frozen=True)
class Segment:
    """A run of elements of one tensor that share all numbers.

    Attributes:
        start: its first element.
        stop: one past its last.
        numbers: what `Pass.pack` asks for.
    """

    start: int
    stop: int
    numbers: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Band:
    """The entries of one delta that survive trimming by magnitude: those of `kept` that are not of
    `outliers`.
    """

    kept: Cut
    outliers: Cut

    def at(self, index: int) -> tuple[float, float]:
        """The magnitudes between which (bounds included) the entries from `index` on survive."""
        kept, outliers = self.kept, self.outliers
        low = kept.low if index < kept.end else kept.above
        return low, outliers.below if index < outliers.end else outliers.high


EVERYTHING = Band(Cut(0.0, math.inf, sys.maxsize), NOTHING)


@dataclass(frozen=True)
class Delta:
    """One task vector of n elements, not computed.

    Attributes:
        base: `n`
        model: `n`
        look: looks up its levels.
        compiled: whether to count with compiled kernels.
    """

    base: Tensor
    model: Tensor
    look: Callable[[], Levels]
    compiled: bool = False

    def largest(self, count: int, ties: Ties) -> Cut:
        """Find the `count` largest entries."""
        known = self.look()
        return largest(count, self.base, self.model, known, ties=ties, compiled=self.compiled)


def band(density: float, gamma: float, delta: Delta, *, all_ties: bool = False) -> Band:
    """Find the survivors of a task vector.

    The `int(density * n)` largest survive (at least one if density > 0), after the
    `int(gamma * n)` very largest, or as many as leave that density. TIES, Yadav et al. (arXiv
    2306.01708), section 3; Breadcrumbs, Davari & Belilovsky (arXiv 2312.06795), section 3; here per
    tensor, as in mergekit.

    Args:
        density: kept fraction; 0 keeps nothing, 1 and above everything.
        gamma: fraction of outliers.
        delta: the task vector.
        all_ties: whether all that tie at a threshold survive, or the first so that counts are met.
    """
    n = delta.base.numel()
    if density >= 1 or n == 0:
        return EVERYTHING
    if density <= 0:
        return Band(NOTHING, NOTHING)
    count = max(1, int(density * n))
    dropped = min(int(gamma * n), n - count)
    kept = delta.largest(dropped + count, "all" if all_ties else "first")
    return Band(kept, delta.largest(dropped, "none" if all_ties else "first"))


def segments(
    n: int, bands: Sequence[Band], numbers: Mapping[str, Sequence[float]]
) -> list[Segment]:
    """Cut n elements where the survivors among ties end, so that each segment has fixed bounds.

    One segment at least: no elements are one, too.
    """
    ends = {cut.end for band in bands for cut in (band.kept, band.outliers)}
    edges = [0, *sorted({n, *(end for end in ends if 0 < end < n)})]
    found = []
    for start, stop in pairwise(edges):
        bounds = [band.at(start) for band in bands]
        own = {"low": [low for low, _ in bounds], "high": [high for _, high in bounds]}
        found.append(Segment(start, stop, {**numbers, **own}))
    return found


def rescaled(parts: Sequence[Segment], factors: Sequence[float]) -> list[Segment]:
    """Give all segments the factors of the survivors."""
    return [replace(part, numbers={**part.numbers, "rescale": factors}) for part in parts]


def rescale_factor(kind: str, density: float, before: float, after: float) -> float:
    """Compute the factor of the surviving entries of one delta.

    `inverse_density` is 1/density: DARE, Yu et al. (arXiv 2311.03099), equation 2. `l1` makes the
    sum of magnitudes what it was before trimming, as mergekit does since 0.1. `none` is 1.

    Args:
        kind: "l1", "inverse_density" or "none".
        density: kept fraction.
        before: sum of magnitudes before trimming.
        after: sum of the survivors' magnitudes.
    """
    if kind == "l1":
        return before / after if min(before, after) >= TINY_NORM else 1.0
    return 1 / density if kind == "inverse_density" and 0 < density < 1 else 1.0


def coefficients(
    method: Method, settings: Sequence[Settings], products: Tensor
) -> list[list[float]]:
    """Compute the coefficients of an operator that has a `mix`, for T tensors at once.

    Args:
        method: the operator.
        settings: T, with the same choices.
        products: `T x (K+1) x (K+1)` (see `spherical.gram`).

    Returns:
        `T x (K+1)`
    """
    found: list[list[float]] = mixer(method)(products, dials(settings)).tolist()
    return found


def mixer(method: Method) -> Mixer:
    """Open the function that finds an operator's coefficients."""
    opened: Mixer = resolve_name(str(method.mix))
    return opened


def dials(settings: Sequence[Settings]) -> Dials:
    """Say the same in tensors, for T tensors with the same choices: `T x K`, and `T`."""
    experts, numbers = settings[0].experts, settings[0].numbers
    return Dials(
        experts={k: _float64([s.experts[k] for s in settings]) for k in experts},
        merge={k: _float64([s.numbers[k] for s in settings]) for k in numbers},
        options=settings[0].options,
    )


def _float64(values: Sequence[object]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
