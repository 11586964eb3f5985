"""What is known of a whole tensor before it is merged: bands, segments, factors."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from checkpoints import in_memory, merged, recipe_of

from evaluators.merging.levels import NOTHING, Cut, levels
from evaluators.merging.thresholds import (
    EVERYTHING,
    TINY_NORM,
    Band,
    Delta,
    Segment,
    band,
    rescale_factor,
    rescaled,
    segments,
)


def above(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


def below(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(-1)))


def delta(*values: float) -> Delta:
    base, model = torch.zeros(len(values)), torch.tensor(values)
    return Delta(base, model, lambda: levels(base, model, compiled=False))


def no_levels() -> Delta:
    """A delta whose levels nobody may ask for: they cost a pass."""

    def look() -> None:
        raise AssertionError("levels are looked up")

    return Delta(torch.zeros(4), torch.ones(4), look)  # type: ignore[arg-type]


def test_bands_by_hand() -> None:
    four = delta(4.0, -1.0, 3.0, 1.0, 2.0)
    assert band(0.4, 0.0, four) == Band(Cut(3.0, 3.0, 5), NOTHING)
    assert band(0.8, 0.0, four) == Band(Cut(1.0, 1.0, 2), NOTHING)
    assert band(0.4, 0.2, four) == Band(Cut(2.0, 2.0, 5), Cut(4.0, 4.0, 5))
    # No more outliers are dropped than leave the density.
    assert band(0.8, 0.9, four) == Band(Cut(1.0, 1.0, 5), Cut(4.0, 4.0, 5))
    # At least one survives.
    assert band(1e-9, 0.0, four) == Band(Cut(4.0, 4.0, 5), NOTHING)


def test_everything_and_nothing_need_no_levels() -> None:
    assert band(1.0, 0.0, no_levels()) == band(1.0, 0.5, no_levels()) == EVERYTHING
    assert band(0.0, 0.0, no_levels()) == Band(NOTHING, NOTHING)
    empty = delta()
    assert band(0.5, 0.1, empty) == EVERYTHING
    (only,) = segments(0, [band(0.5, 0.1, empty)], {})
    assert (only.start, only.stop) == (0, 0)


def test_segments_by_hand() -> None:
    two = [
        band(0.8, 0.0, delta(4.0, -1.0, 3.0, 1.0, 2.0)),
        Band(Cut(1.0, 1.0, 4), Cut(7.0, 7.0, 1)),
    ]
    found = segments(5, two, {"weight": (1.0, 2.0)})
    assert found == [
        Segment(0, 1, {"weight": (1.0, 2.0), "low": [1.0, 1.0], "high": [math.inf, below(7.0)]}),
        Segment(1, 2, {"weight": (1.0, 2.0), "low": [1.0, 1.0], "high": [math.inf, 7.0]}),
        Segment(2, 4, {"weight": (1.0, 2.0), "low": [above(1.0), 1.0], "high": [math.inf, 7.0]}),
        Segment(
            4, 5, {"weight": (1.0, 2.0), "low": [above(1.0), above(1.0)], "high": [math.inf, 7.0]}
        ),
    ]


def test_everything_is_one_segment() -> None:
    assert segments(9, [EVERYTHING, Band(NOTHING, NOTHING)], {}) == [
        Segment(0, 9, {"low": [0.0, math.inf], "high": [math.inf, math.inf]})
    ]
    assert EVERYTHING.at(sys.maxsize - 1) == (0.0, math.inf)


def test_factors_are_those_of_all_segments() -> None:
    parts = [Segment(0, 2, {"low": [0.5]}), Segment(2, 4, {"low": [1.0]})]
    assert rescaled(parts, [3.0]) == [
        Segment(0, 2, {"low": [0.5], "rescale": [3.0]}),
        Segment(2, 4, {"low": [1.0], "rescale": [3.0]}),
    ]


@pytest.mark.parametrize(
    ("kind", "density", "before", "after", "expected"),
    [
        ("none", 0.5, 6.0, 3.0, 1.0),
        ("inverse_density", 0.25, 6.0, 3.0, 4.0),
        ("inverse_density", 0.0, 6.0, 0.0, 1.0),
        ("inverse_density", 1.0, 6.0, 6.0, 1.0),
        ("l1", 0.25, 6.0, 4.0, 1.5),
        ("l1", 1.0, 6.0, 6.0, 1.0),
        ("l1", 0.0, 6.0, 0.0, 1.0),
        ("l1", 0.5, TINY_NORM / 2, TINY_NORM / 4, 1.0),  # near-identical tensors stay as they are
        ("l1", 0.5, 1.0, TINY_NORM / 2, 1.0),
        ("l1", 0.5, 0.0, 0.0, 1.0),
    ],
)
def test_factors(kind: str, density: float, before: float, after: float, expected: float) -> None:
    assert rescale_factor(kind, density, before, after) == expected


@pytest.mark.parametrize("method", ["ties", "breadcrumbs_ties"])
def test_l1_by_hand(method: str) -> None:
    """Of 4 3 2 1 the half is kept: without outliers 7 of 10, without the largest 5 of 10."""
    base = {"w": torch.zeros(4)}
    sources = in_memory(base, a={"w": torch.tensor([4.0, -1.0, 3.0, -2.0])})
    dropped = {"gamma": 0.25} if method == "breadcrumbs_ties" else {}
    whole = {"rescale": "l1"}
    parameters = {"a": {"density": 0.5, **dropped}, "*": whole}
    found = merged(sources, recipe_of(sources, method, parameters))["w"]
    expected = [0.0, 0.0, 6.0, -4.0] if dropped else [40 / 7, 0.0, 30 / 7, 0.0]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_l1_of_random_trimming_restores_the_mass() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.zeros(4000)}
    sources = in_memory(base, a={"w": torch.randn(4000, generator=generator)})
    recipe = recipe_of(sources, "dare_linear", {"a": {"density": 0.3}})
    found = merged(sources, recipe)["w"]
    kept = found != 0
    assert 0.25 < float(kept.double().mean()) < 0.35
    ratio = found[kept] / sources.experts["a"].tensor("w")[kept]
    torch.testing.assert_close(ratio, ratio[0].expand(len(ratio)), rtol=1e-5, atol=0)
    size = float(sources.experts["a"].tensor("w").double().abs().sum())
    assert float(found.double().abs().sum()) == pytest.approx(size, rel=1e-6)
