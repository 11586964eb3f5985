"""The counter-based generator: published answers, independence of how it is run, statistics.

Seeds are fixed, so a statistical test fails always or never: its bound says how likely a sound
generator would have failed it when it was written. Bounds are 5 standard errors wide or more: false
alarm 6e-7 per normal sum, 5e-6 per chi-square of 256 bins, 2e-4 for all comparisons together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluators.merging.loops import drawn
from evaluators.merging.masks import CHUNK, DRAWING, key_of, philox, uniform, unit

N = 1 << 20
RUN = CHUNK // 4  # elements between two words of one counter
ERRORS = 5

ZERO = ((0, 0, 0, 0), (0, 0))
ONES = ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2)
PI = ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))


def words(seed: int = 1, expert: str = "a", tensor: str = "t", n: int = N) -> Tensor:
    """The numbers as integers from 0 to 65535."""
    return (uniform(seed, expert, tensor, n, compiled=True) * 65536).to(torch.int64)


def centred(*key: int | str, n: int = N) -> Tensor:
    """The numbers less their mean, in units of their standard deviation."""
    seed, expert, tensor = key or (1, "a", "t")
    spread = ((65536**2 - 1) / 12) ** 0.5
    return (words(int(seed), str(expert), str(tensor), n).double() - 65535 / 2) / spread


def deviation(counts: Tensor) -> float:
    """How many standard errors chi-square of equally likely bins is from its mean."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    square = float(((counts - expected) ** 2 / expected).sum())
    return (square - freedom) / (2 * freedom) ** 0.5


def correlation(a: Tensor, b: Tensor) -> float:
    """Correlation in standard errors, 1/sqrt(n) each."""
    return float((a * b).mean()) * len(a) ** 0.5


@pytest.mark.parametrize(
    ("rounds", "given_words", "expected"),
    [  # kat_vectors of the Random123 library, philox4x32
        (7, ZERO, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        (7, ONES, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
        (7, PI, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
        (10, ZERO, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (10, ONES, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (10, PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_published_answers(
    rounds: int, given_words: tuple[Sequence[int], Sequence[int]], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in given_words[0])
    k0, k1 = (torch.tensor([word]) for word in given_words[1])
    found = philox((c0, c1, c2, c3), (k0, k1), rounds)
    assert tuple(int(word) & 0xFFFFFFFF for word in found) == expected


def made(key: Sequence[float], start: int, stop: int, *, compiled: bool = True) -> Tensor:
    """The words of some elements: uint16."""
    return drawn(DRAWING, np.array(key, dtype=np.float32), start, stop, compiled=compiled)


@pytest.mark.parametrize("compiled", [True, False])
def test_words_are_halves_of_philox(compiled: bool) -> None:
    own = key_of(3, "maths", "w")
    chunk = made(own, 2 * CHUNK, 3 * CHUNK, compiled=compiled)
    low0, high0, low1, high1 = map(int, own)
    key = (torch.tensor([low0 + 65536 * high0]), torch.tensor([low1 + 65536 * high1]))
    counter = torch.tensor([0, 1, 17, RUN // 2 - 1])
    zero = torch.zeros_like(counter)
    found = philox((RUN + counter, zero, zero, zero), key)  # after two chunks of RUN / 2 counters
    for number, word in enumerate(found):
        for half, value in enumerate((word & 0xFFFF, word >> 16 & 0xFFFF)):
            place = number * RUN + 2 * counter + half
            assert torch.equal(chunk[place].long() & 0xFFFF, value)


def test_counters_beyond_32_bits_do_not_repeat() -> None:
    own, far = key_of(0, "a", "t"), 2**32 * 8  # whose counters' second word is 1
    first, other = made(own, 0, CHUNK), made(own, far, far + CHUNK)
    assert abs(correlation(unit(first) - 0.5, unit(other) - 0.5)) * 12 < ERRORS
    assert torch.equal(other, made(own, far, far + CHUNK, compiled=False))


def test_compiled_and_interpreted_numbers_are_the_same() -> None:
    for n in (1, 5, RUN + 3, CHUNK, CHUNK + 100):
        own = uniform(8, "b", "layers.0.weight", n, compiled=True)
        assert torch.equal(own, uniform(8, "b", "layers.0.weight", n))


sizes = st.one_of(
    st.integers(0, 40),
    st.sampled_from([RUN, CHUNK, 2 * CHUNK]).flatmap(lambda n: st.integers(n - 2, n + 2)),
    st.integers(0, 3 * CHUNK),
)


@settings(max_examples=40)
@given(n=sizes, seed=st.integers(0, 2**63))
def test_a_smaller_tensor_has_the_first_numbers(n: int, seed: int) -> None:
    whole = uniform(seed, "maths", "w", 3 * CHUNK, compiled=True)
    assert torch.equal(uniform(seed, "maths", "w", n, compiled=True), whole[:n])


@settings(max_examples=20)
@given(bounds=st.tuples(*[st.integers(0, 3 * CHUNK)] * 2), compiled=st.booleans())
def test_any_elements_may_be_made_alone(bounds: tuple[int, int], compiled: bool) -> None:
    start, stop = sorted(bounds)
    whole = uniform(4, "a", "t", 3 * CHUNK, compiled=True)
    part = made(key_of(4, "a", "t"), start, stop, compiled=compiled)
    assert torch.equal(unit(part), whole[start:stop])


def test_a_word_is_a_number_in_the_half_open_interval() -> None:
    found = unit(torch.tensor([0, 1, 32767, 32768, 65535], dtype=torch.uint16))
    assert found.tolist() == [0.0, 2.0**-16, 0.5 - 2.0**-16, 0.5, 1 - 2.0**-16]


def test_masks_are_nested() -> None:
    u = uniform(5, "a", "t", N, compiled=True)
    densities = [0.0, 0.001, 0.1, 0.3, 0.30001, 0.9, 1.0]
    for sparse, dense in itertools.pairwise(densities):
        assert not ((u < sparse) & ~(u < dense)).any()
    assert not (u < 0.0).any()
    assert (u < 1.0).all()
    for density in densities:
        kept = float((u < density).double().mean())
        error = (density * (1 - density) / N) ** 0.5
        assert abs(kept - density) <= ERRORS * error + 2.0**-16  # the step between two numbers


def test_values_are_uniform() -> None:
    for key in itertools.product((1, 2), "ab", "st"):
        found = words(*key)
        assert abs(deviation(torch.bincount(found >> 8, minlength=256))) < ERRORS
        assert abs(deviation(torch.bincount(found & 0xFF, minlength=256))) < ERRORS
    # All 65536 values, about 128 times each.
    together = torch.cat([words(seed) for seed in range(8)])
    assert abs(deviation(torch.bincount(together, minlength=65536))) < ERRORS


def test_every_bit_is_fair_and_independent_of_the_others() -> None:
    found = words()
    bits = torch.stack([(found >> k & 1).double() * 2 - 1 for k in range(16)])
    moments = (bits @ bits.T / N - torch.eye(16)) * N**0.5
    assert float(moments.abs().max()) < ERRORS + 1  # 120 pairs
    assert float(bits.mean(dim=1).abs().max()) * N**0.5 < ERRORS


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 8, 16, 1024, RUN - 1, RUN, RUN + 1, CHUNK])
def test_no_serial_correlation(lag: int) -> None:
    """At 1 and `RUN` other halves of the same counters, at `CHUNK` the next chunk's."""
    u = centred()
    assert abs(correlation(u[lag:], u[:-lag])) < ERRORS
    # Nor in size, where a plain correlation would not see it.
    square = (u.square() - 1) / 0.8**0.5
    assert abs(correlation(square[lag:], square[:-lag])) < ERRORS


def test_the_halves_of_a_counter_are_independent() -> None:
    halves = centred().reshape(-1, 4, RUN // 2, 2).permute(1, 3, 0, 2).reshape(8, -1)
    moments = halves @ halves.T / halves.shape[1] - torch.eye(8)
    assert float(moments.triu(1).abs().max()) * halves.shape[1] ** 0.5 < ERRORS


@pytest.mark.parametrize(
    "other",
    [(2, "a", "t"), (1 + 2**40, "a", "t"), (1, "b", "t"), (1, "a", "s"), (1, "a t", "")],
)
def test_other_keys_give_independent_numbers(other: tuple[int, str, str]) -> None:
    u, v = centred(), centred(*other)
    for shift in (0, 1, RUN):  # nor are they the same numbers at another place
        assert abs(correlation(u, v.roll(shift))) < ERRORS
    kept, others = (u < 0.5).double() - 0.5, (v < 0.5).double() - 0.5
    assert abs(correlation(kept - kept.mean(), others - others.mean())) * 4 < ERRORS


def test_many_experts_and_tensors_are_pairwise_independent() -> None:
    keys = [(s, e, t) for s in (0, 1) for e in ("maths", "code") for t in map(str, range(8))]
    u = torch.stack([centred(*key, n=RUN) for key in keys])
    moments = (u @ u.T / RUN).triu(1) * RUN**0.5
    assert float(moments.abs().max()) < ERRORS + 1  # 496 pairs


def test_runs_are_as_long_as_they_should_be() -> None:
    """How many runs above and below the median there are, and how many of each length."""
    above = words() >= 32768
    ends = (above[1:] != above[:-1]).nonzero().flatten()
    assert abs(len(ends) - (N - 1) / 2) / ((N - 1) ** 0.5 / 2) < ERRORS
    lengths = ends.diff()
    counts = torch.bincount(lengths.clamp(max=12), minlength=13)[1:].double()
    chance = torch.tensor([2.0**-k for k in range(1, 12)] + [2.0**-11], dtype=torch.float64)
    expected = chance * len(lengths)
    square = float(((counts - expected) ** 2 / expected).sum())
    assert (square - 11) / 22**0.5 < 7  # 11 degrees of freedom: false alarm 8e-6
