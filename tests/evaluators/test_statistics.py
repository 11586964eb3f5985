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
    error_correlations,
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


def test_errors_of_means_over_nested_items_are_correlated_by_hand():
    # a answered 4 items, b the first 2 of them. Deviations of a: -3, 1, -1, 3; of b: -1, 1.
    # Inner product 4, lengths sqrt(20) and sqrt(2).
    a, b = outcomes(0, 4, 2, 6), outcomes(1, 3)
    expected = 4 / math.sqrt(40)
    found = error_correlations([a, b])
    assert found == pytest.approx(np.array([[1, expected], [expected, 1]]))
    # the same from cov(mean_a, mean_b) = c / max(n_a, n_b), with variances s2 / n
    c, variance_a, variance_b = 4 / 2, 20 / 4, 2 / 2
    assert found[0, 1] == pytest.approx((c / 4) / math.sqrt(variance_a / 4 * variance_b / 2))


def test_outcomes_that_differ_by_a_constant_have_one_error():
    found = error_correlations([outcomes(1, 2, 4), outcomes(3, 4, 6)])
    assert found == pytest.approx(np.ones((2, 2)))


def test_equal_right_answers_are_not_certain_to_stay_equal():
    # Deviations (1, -1)/2 of both: product 1/2 over 1/2 + 1.
    found = error_correlations([outcomes(1, 0), outcomes(1, 0)])
    assert found[0, 1] == pytest.approx(1 / 3)


def test_what_has_no_spread_or_no_outcome_is_independent():
    found = error_correlations([outcomes(1, 0, 1), outcomes(1, 1, 1), outcomes()])
    assert np.array_equal(found, np.eye(3))
    assert error_correlations([]).shape == (0, 0)


def test_trials_that_differ_most_on_the_first_items_correlate_at_most_fully():
    # Undone, the nesting of two in six items makes √3 of the first correlation.
    few, many = outcomes(1, -1), outcomes(1, -1, 0, 0, 0, 0)
    other = outcomes(1, -1, 0.1, 0.2, -0.1, -0.2)
    found = error_correlations([few, many, other])
    assert found.max() <= 1 + 1e-9
    assert np.linalg.eigvalsh(found)[0] > -1e-9


def test_many_trials_on_few_items_are_not_certain_of_any_difference():
    rng = np.random.default_rng(0)
    items = rng.random(20)
    answers = [(rng.random(20) < items).astype(np.float32) for _ in range(60)]
    eigenvalues = np.linalg.eigvalsh(error_correlations(answers))
    assert eigenvalues[0] > 0.2  # as they are, two thirds of them would be 0


@given(st.lists(arrays(np.float32, st.integers(0, 6), elements=st.sampled_from([0, 1, 0.5]))))
def test_correlations_are_positive_semidefinite(answers):
    found = error_correlations(answers)
    assert np.array_equal(np.diag(found), np.ones(len(answers)))
    assert np.allclose(found, found.T)
    assert np.linalg.eigvalsh(found).min(initial=0) > -1e-9
