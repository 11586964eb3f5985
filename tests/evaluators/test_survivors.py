"""Tables of what survives random trimming, against masks made one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluators.merging.levels import finder
from evaluators.merging.masks import CHUNK, LEVELS, RANK_STEPS, Window, key_of, uniform
from evaluators.merging.survivors import survivors

KEY = key_of(3, "maths", "w")


def pair(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A base, a model and ranks."""
    generator = torch.Generator().manual_seed(n)
    base = torch.randn(n, generator=generator)
    model = (base + 0.1 * torch.randn(n, generator=generator)).bfloat16()
    ranks = torch.randint(0, RANK_STEPS + 1, (n,), generator=generator).to(torch.uint8)
    return base.bfloat16(), model, ranks


@settings(max_examples=30)
@given(
    n=st.sampled_from([0, 1, 33, 2000, CHUNK + 7]),
    density=st.floats(0, 1),
    half_width=st.one_of(st.just(0.0), st.floats(0, 1)),
)
def test_sums_are_those_of_the_masks(n: int, density: float, half_width: float) -> None:
    base, model, ranks = pair(n)
    window = Window.of(density, half_width)
    known = survivors(base, model, KEY, ranks if window.half else None, window.half, compiled=True)
    place = uniform(3, "maths", "w", n) * 65536
    if window.half:
        place = torch.addcmul(place, ranks.float(), torch.tensor(window.slope).float())
    size = (model.float() - base.float()).abs()
    assert known[window.level] == pytest.approx(float(size[place < window.below].double().sum()))
    assert known[-1] == pytest.approx(float(size.double().sum()))


@pytest.mark.parametrize("half", [0, 700])
def test_compiled_and_interpreted_tables_are_the_same(half: int) -> None:
    base, model, ranks = pair(3 * CHUNK + 5)
    read = (base, model, KEY, ranks if half else None, half)
    compiled, eager = (survivors(*read, compiled=compiled) for compiled in (True, False))
    assert np.array_equal(compiled, eager)
    assert (np.diff(compiled) >= 0).all()


def test_windows_by_hand() -> None:
    assert Window.of(0.5, 0.25) == Window(LEVELS // 2, LEVELS // 4)
    assert Window.of(0.5, 0.25).below == 65536 / 4
    assert Window.of(0.5, 0.25).slope * RANK_STEPS == -65536 / 2
    assert Window.of(1e-9, 0.1) == Window(1, 410)  # what is not 0 is a level at least
    assert Window.of(0.0, 0.1) == Window(0, 0)  # nothing survives, whatever its rank
    assert Window.of(1.0, 0.1) == Window(LEVELS, 0)
    assert Window.of(0.3).density == round(0.3 * LEVELS) / LEVELS


@pytest.mark.parametrize("n", [1, 31, 32, 33, 1000])
def test_a_search_finds_every_rank(n: int) -> None:
    base, model, _ = pair(n)
    told = np.array([0.02, math.inf], dtype=np.float32)
    places = ((model.float() - base.float()).abs() >= 0.02).nonzero().flatten() + 1
    assert (len(places) > 2) == (n > 1)  # so the part below is looked at
    for compiled in (True, False):
        find = finder(base.dtype, model.dtype, compiled=compiled)
        ranks = range(1, len(places) + 1)
        assert [find((base, model), told, r, slice(0, n)) for r in ranks] == places.tolist()
        if len(places) > 2:  # a part begins anywhere
            part = slice(int(places[0]), n)
            assert find((base, model), told, 2, part) == int(places[2])
