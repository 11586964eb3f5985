"""The counter-based generator: published answers, independence of block splits, statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.merging.masks import philox, uniform

N = 200_000


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of the Random123 library, philox4x32 with 10 rounds
        (
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        ),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox((c0, c1, c2, c3), key)) == expected


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 70_000), n=st.integers(0, 70_000), seed=st.integers(0, 2**63))
def test_a_part_is_the_same_as_in_the_whole(start: int, n: int, seed: int) -> None:
    whole = uniform(seed, "maths", "layers.0.weight", 140_000)
    assert torch.equal(
        uniform(seed, "maths", "layers.0.weight", n, start), whole[start : start + n]
    )


def test_counters_beyond_32_bits_do_not_repeat() -> None:
    far = uniform(0, "a", "t", 64, start=4 * 2**32)
    assert not torch.equal(far, uniform(0, "a", "t", 64))


def test_values_are_uniform_in_the_half_open_interval() -> None:
    u = uniform(1, "a", "t", N)
    assert u.dtype == torch.float32
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    counts = torch.histc(u, bins=100, min=0, max=1)
    expected = N / 100
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 54 < chi_square < 161  # 99 degrees of freedom, four standard errors


def test_neighbours_are_not_correlated() -> None:
    u = uniform(1, "a", "t", N).double() - 0.5
    for lag in (1, 2, 3, 4, 1024):
        correlation = float((u[lag:] * u[:-lag]).mean()) * 12
        assert abs(correlation) < 4 / N**0.5


@pytest.mark.parametrize("other", [(2, "a", "t"), (1, "b", "t"), (1, "a", "s"), (1, "a t", "")])
def test_other_keys_give_independent_masks(other: tuple[int, str, str]) -> None:
    u, v = uniform(1, "a", "t", N).double() - 0.5, uniform(*other, N).double() - 0.5
    assert abs(float((u * v).mean()) * 12) < 4 / N**0.5
