"""Exact thresholds: by hand, and against a stable sort."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluators.merging.levels import NOTHING, Cut, largest, levels, mass, ranked_as
from evaluators.merging.thresholds import Delta, band, segments

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
PAIRS = [(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (BF16, F16), (F16, F32)]
COMPILED = PAIRS[:3]  # kernels of each take their time


def magnitudes(base: Tensor, model: Tensor) -> Tensor:
    """What entries are ranked by: |delta| in float32, rounded if both are stored so."""
    size = (model.float() - base.float()).abs()
    return size.to(ranked_as(base.dtype, model.dtype)).double()


def stable(base: Tensor, model: Tensor, density: float, gamma: float) -> Tensor:
    """The survivors by a stable sort, largest first."""
    n = base.numel()
    if density >= 1 or density <= 0:
        return torch.full((n,), density >= 1)
    count = max(1, int(density * n))
    dropped = min(int(gamma * n), n - count)
    order = magnitudes(base, model).sort(descending=True, stable=True).indices
    keep = torch.zeros(n, dtype=torch.bool)
    keep[order[dropped : dropped + count]] = True
    return keep


def survivors(
    base: Tensor, model: Tensor, density: float, gamma: float = 0.0, *, compiled: bool = False
) -> Tensor:
    """The survivors as a merge finds them: between the bounds of each segment."""
    known = levels(base, model, compiled=compiled)
    delta = Delta(base, model, lambda: known, compiled)
    size = (model.float() - base.float()).abs()
    keep = torch.zeros(base.numel(), dtype=torch.bool)
    end = 0
    for part in segments(base.numel(), [band(density, gamma, delta)], {}):
        assert part.start == end
        assert end < part.stop or base.numel() == 0
        end = part.stop
        (low,), (high,) = (np.float32(part.numbers[name]) for name in ("low", "high"))
        block = slice(part.start, part.stop)
        keep[block] = (size[block] >= float(low)) & (size[block] <= float(high))
    assert end == base.numel()
    return keep


def test_levels_by_hand() -> None:
    base = torch.zeros(7, dtype=BF16)
    model = torch.tensor([1.0, -2.0, 0.0, 1.0, 0.5, -1.0, 2.0], dtype=BF16)
    found = levels(base, model, compiled=False)
    assert found.codes.tolist() == [0x4000, 0x3F80, 0x3F00, 0]  # 2, 1, 1/2, 0
    assert found.parts.tolist() == [[2, 3, 1, 1]]
    assert found.reached.tolist() == [2, 5, 6, 7]


def test_levels_of_float32_are_whole_in_a_small_tensor_and_upper_halves_in_a_large_one() -> None:
    model = torch.tensor([1.0, 1.0 + 2**-8, 1.0 + 2**-7, -3.0, 1.0])
    found = levels(torch.zeros(5), model, compiled=False)
    assert found.codes.tolist() == [0x40400000, 0x3F810000, 0x3F808000, 0x3F800000]
    assert found.parts.tolist() == [[1, 1, 1, 2]]
    many = torch.cat([model, torch.zeros((1 << 18) - 5)])
    found = levels(torch.zeros(1 << 18), many, compiled=False)
    assert found.codes.tolist() == [0x4040, 0x3F81, 0x3F80, 0]
    assert found.parts.tolist()[0] == [1, 1, 3, (1 << 15) - 5]


def test_cuts_by_hand() -> None:
    base = torch.zeros(6, dtype=BF16)
    model = torch.tensor([1.0, -2.0, 1.0, 1.0, 0.5, -1.0], dtype=BF16)
    known = levels(base, model, compiled=False)
    assert largest(0, base, model, known, compiled=False) == NOTHING
    half = 2.0**-9  # half a step of bfloat16 just below 1; twice that above
    one = (1.0 - half, 1.0 + 2 * half)
    ends = {2: 1, 3: 3, 4: 4, 5: 6}
    for count, end in ends.items():
        assert largest(count, base, model, known, compiled=False) == Cut(*one, end)
    assert largest(6, base, model, known, compiled=False).end == 6


def test_all_ties_or_none() -> None:
    base, model = torch.zeros(5), torch.tensor([1.0, 2.0, 1.0, 1.0, 0.5])
    known = levels(base, model, compiled=False)
    for ties, end in (("all", 5), ("none", 0), ("first", 3)):
        found = largest(3, base, model, known, ties=ties, compiled=False)  # type: ignore[arg-type]
        assert found == Cut(1.0, 1.0, end)
    kept = band(0.6, 0.0, Delta(base, model, lambda: known), all_ties=True)
    assert kept.kept == Cut(1.0, 1.0, 5)


@pytest.mark.parametrize(("base", "model"), PAIRS)
def test_which_type_ranks(base: torch.dtype, model: torch.dtype) -> None:
    narrow = base == model and base != F32
    assert ranked_as(base, model) == (base if narrow else F32)


# A grid of few values: half of all entries tie with others, also only after rounding.
values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0 + 2**-9, 1.0 + 2**-8, 1.0 + 3 * 2**-9, 1e-40, 6e4]),
    st.integers(-6, 6).map(lambda i: i / 4),
    st.floats(-4, 4, width=32),
)


@settings(max_examples=250)
@given(
    data=st.data(),
    pair=st.sampled_from(PAIRS),
    n=st.integers(0, 40),
    density=st.one_of(st.sampled_from([0.0, 1e-9, 0.5, 0.999999, 1.0]), st.floats(0, 1)),
    gamma=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)),
)
def test_survivors_are_those_of_a_stable_sort(
    data: st.DataObject,
    pair: tuple[torch.dtype, torch.dtype],
    n: int,
    density: float,
    gamma: float,
) -> None:
    base, model = (
        torch.tensor(data.draw(st.lists(values, min_size=n, max_size=n))).to(dtype)
        for dtype in pair
    )
    assert torch.equal(survivors(base, model, density, gamma), stable(base, model, density, gamma))


@settings(max_examples=40)
@given(
    pair=st.sampled_from(PAIRS),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1.0, 1e-42]),
    n=st.sampled_from([3000, 3000, 3000, 1 << 18]),  # large: looked at in the threshold's bin
)
def test_survivors_among_many_values(
    pair: tuple[torch.dtype, torch.dtype], seed: int, scale: float, n: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, model = (torch.randn(n, generator=generator).mul(scale).to(dtype) for dtype in pair)
    for density, gamma in ((0.3, 0.0), (0.7, 0.02), (0.001, 0.4)):
        found = survivors(base, model, density, gamma, compiled=pair in COMPILED)
        assert torch.equal(found, stable(base, model, density, gamma))


@pytest.mark.parametrize("pair", COMPILED)
@pytest.mark.parametrize("n", [(1 << 18) - 1, 1 << 18, (1 << 18) + 1, 700_001])
def test_survivors_of_large_tensors_with_many_ties(
    pair: tuple[torch.dtype, torch.dtype], n: int
) -> None:
    """Eight parts from 2^18 elements on; the cut is in any of them, or where one ends."""
    generator = torch.Generator().manual_seed(n)
    model = torch.randint(-3, 4, (n,), generator=generator).to(pair[1])
    base = torch.zeros(n, dtype=pair[0])
    known = levels(base, model, compiled=True)
    assert known.parts.shape == (1 if n < 1 << 18 else 8, 4)
    order = model.abs().float().sort(descending=True, stable=True).indices
    ones = (model.abs() == 1).nonzero().flatten()
    first = int((model.abs() > 1).sum())
    edges = [int((ones < n * k // 8).sum()) for k in range(9)]
    around = {first + edge + step for edge in edges for step in (-1, 0, 1)}
    for count in sorted(c for c in around if 0 < c <= n):
        cut = largest(count, base, model, known, compiled=True)
        assert (model.abs() > cut.high).sum() < count
        inside = (model.abs() >= cut.low) & (model.abs() <= cut.high)
        last = inside[: cut.end].nonzero()[-1]
        assert last == order[count - 1]
        assert int((model.abs() > cut.high).sum() + inside[: cut.end].sum()) == count


@pytest.mark.parametrize("n", [1, 5, (1 << 18) + 17, 600_000])
@pytest.mark.parametrize("pair", [(BF16, BF16), (F32, BF16)])
def test_parts_count_every_element_once(pair: tuple[torch.dtype, torch.dtype], n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    base, model = (torch.randn(n, generator=generator).to(dtype) for dtype in pair)
    kept, made = (levels(base, model, compiled=compiled) for compiled in (True, False))
    assert np.array_equal(kept.codes, made.codes)
    assert np.array_equal(kept.parts, made.parts)
    assert (np.diff(kept.codes) < 0).all()
    for k, row in enumerate(kept.parts):
        P = len(kept.parts)
        assert row.sum() == n * (k + 1) // P - n * k // P


@pytest.mark.parametrize(
    ("kind", "limit", "step"),
    [(F16, 65504.0, 32.0), (BF16, torch.finfo(BF16).max, 2.0**120)],
)
def test_the_largest_finite_magnitudes(kind: torch.dtype, limit: float, step: float) -> None:
    """Differences that overflow the 16-bit type tie with each other, as infinities do."""
    base = torch.tensor([0.0, -limit, -0.5 * step, 1.0, 0.0, -limit], dtype=kind)
    model = torch.tensor([limit, limit, limit, 2.0, limit - step, 0.5 * step], dtype=kind)
    for density in (0.2, 0.4, 0.5, 0.7, 0.9):
        expected = stable(base, model, density, 0.0)
        assert torch.equal(survivors(base, model, density), expected), density


@pytest.mark.parametrize("kind", [F32, BF16, F16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_entries_are_no_error(kind: torch.dtype, bad: float) -> None:
    """Whoever opens sources refuses them; here nothing breaks, and a NaN never survives."""
    base, model = torch.zeros(40, dtype=kind), torch.arange(40).to(kind)
    model[[3, 7, 30]] = bad
    for density in (0.01, 0.05, 0.08, 0.5, 0.99):
        for gamma in (0.0, 0.05, 0.5):
            for compiled in (True, False):
                keep = survivors(base, model, density, gamma, compiled=compiled)
                assert not keep[model.isnan()].any()
                assert keep.sum() <= 3 + int(density * 40)  # infinities all tie


def test_the_mass_is_the_sum_of_magnitudes() -> None:
    generator = torch.Generator().manual_seed(0)
    base, model = torch.randn(300_000, generator=generator), torch.zeros(300_000, dtype=BF16)
    exact = math.fsum(base.abs().tolist())
    for compiled in (True, False):
        assert mass(base, model, compiled=compiled) == pytest.approx(exact, rel=1e-14)
    assert mass(base[:0], model[:0], compiled=False) == 0
