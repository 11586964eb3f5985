"""Standard errors by hand, intervals against their definition, and the packed form of outcomes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluators.benchmarks.statistics import (
    FLOOR,
    exponential,
    mean,
    pack,
    proportion,
    unpack,
    wilson_interval,
)


def outcomes(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_proportion_by_hand():
    # k = 3 of n = 4: p = 4/6, error = sqrt(4/6 * 2/6 / 7).
    value, error = proportion(outcomes(1, 1, 0, 1))
    assert value == 0.75
    assert error == pytest.approx(math.sqrt(8 / 36 / 7))


@pytest.mark.parametrize("k", [0, 10])
def test_error_of_a_proportion_is_never_zero(k):
    value, error = proportion(outcomes(*[1] * k, *[0] * (10 - k)))
    assert value == k / 10
    assert error == pytest.approx(math.sqrt(11 / 144 / 13))


def test_error_of_a_proportion_is_the_deviation_of_the_beta_posterior():
    draws = np.random.default_rng(0).beta(8, 4, size=200_000)  # k = 7, n = 10
    _, error = proportion(outcomes(*[1] * 7, *[0] * 3))
    assert error == pytest.approx(draws.std(), rel=0.01)


def test_mean_by_hand():
    # 1, 2, 6: mean 3, sample variance (4 + 1 + 9) / 2 = 7.
    assert mean(outcomes(1, 2, 6)) == pytest.approx((3.0, math.sqrt(7 / 3)))


def test_mean_of_one_outcome_has_an_error_of_its_own_size():
    assert mean(outcomes(-4.0)) == (-4.0, 4.0)
    assert mean(outcomes(0.25)) == (0.25, 1.0)


def test_equal_outcomes_have_the_floor_as_error():
    assert mean(outcomes(5, 5, 5)) == (5.0, 5 * FLOOR)


def test_exponential_carries_the_error_by_the_derivative():
    value, error = exponential(2.0, 0.01)
    assert value == math.exp(2)
    nearby = (math.exp(2.01) - math.exp(1.99)) / 2
    assert error == pytest.approx(nearby, rel=1e-4)
    assert exponential(1e4, 1.0) == (math.inf, math.inf)


def test_wilson_interval_of_a_textbook_case():
    # 81 of 263 at 95 %: Newcombe (1998), method 3, gives 0.2553 to 0.3662.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_their_equation(case):
    k, n = case
    for end in wilson_interval(k, n):
        if 0 < end < 1:
            z = abs(k / n - end) / math.sqrt(end * (1 - end) / n)
            assert z == pytest.approx(1.959964, rel=1e-4)


@pytest.mark.parametrize(("k", "n", "level"), [(-1, 5, 0.9), (6, 5, 0.9), (0, 0, 0.9), (1, 2, 1)])
def test_wilson_refuses_what_is_no_proportion(k, n, level):
    with pytest.raises(ValueError, match="no interval"):
        wilson_interval(k, n, level)


@given(arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32)))
def test_unpack_gives_back_the_same_bits(values):
    assert unpack(pack(values)).tobytes() == values.tobytes()


def test_packed_hits_are_small_ascii():
    text = pack(outcomes(*[0, 1] * 500))
    assert text.isascii()
    assert len(text) < 100


@pytest.mark.parametrize("text", ["not base64!", "AAAA", pack(outcomes(1.5, 2.5))[:-8]])
def test_unpack_refuses_damage(text):
    with pytest.raises(ValueError, match="not packed outcomes"):
        unpack(text)
