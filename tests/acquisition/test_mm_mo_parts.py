"""The parts of MM-MO by hand: equation W, Fisher information, exact objectives, elites."""

from __future__ import annotations

import math

import pytest
import torch
from contracts.strategy_contract import known_bowl, observe, random_points
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import rows
from torch import Tensor

from acquisition.fisher import fisher_information, select
from acquisition.sparsity import importance
from acquisition.surrogates import OutcomeScale, fit_surrogate
from acquisition.weak_to_strong import (
    best_sums,
    crossover,
    directions,
    least_dominated,
    weak_to_strong,
)


class TestCrossover:
    parents = (rows([0.4, 0.9, 0.5]), rows([0.8, 0.8, 0.2]), rows([0.2, 0.2, 0.6]))
    target = rows([0.1, 0.1, 0.1])
    # v = clip(a + 0.5 (b - e)) = (0.4 + 0.3, clip(0.9 + 0.3), 0.5 - 0.2) = (0.7, 1.0, 0.3)

    def test_takes_the_mutant_where_the_draw_is_below_one_half(self) -> None:
        made = crossover(self.target, self.parents, rows([0.49, 0.5, 0.0]), torch.tensor([1]))
        assert torch.allclose(made, rows([0.7, 0.1, 0.3]))

    def test_clips_to_the_cube(self) -> None:
        made = crossover(self.target, self.parents, rows([0.9, 0.1, 0.9]), torch.tensor([0]))
        assert torch.allclose(made, rows([0.1, 1.0, 0.1]))

    def test_forces_one_coordinate(self) -> None:
        made = crossover(self.target, self.parents, rows([0.9, 0.9, 0.9]), torch.tensor([2]))
        assert torch.allclose(made, rows([0.1, 0.1, 0.3]))


@given(seed=st.integers(0, 10_000), n=st.integers(3, 8), d=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_every_target_changes_towards_distinct_elites(seed: int, n: int, d: int) -> None:
    elites, targets = random_points(n, d, seed), torch.full((6, d), 2.0, dtype=torch.float64)
    made = weak_to_strong(targets, elites, torch.Generator().manual_seed(seed))
    again = weak_to_strong(targets, elites, torch.Generator().manual_seed(seed))
    assert torch.equal(made, again)
    assert (made != targets).any(dim=-1).all()
    assert ((made == 2.0) | ((made >= 0) & (made <= 1))).all()


def test_fewer_than_three_elites_leave_the_targets() -> None:
    targets = random_points(4, 2)
    made = weak_to_strong(targets, random_points(2, 2, seed=1), torch.Generator())
    assert torch.equal(made, targets)


def test_directions_go_on_from_weak_through_strong_and_stay_in_the_cube() -> None:
    weak, strong = rows([0.2, 0.9]), rows([0.4, 0.3])
    assert torch.allclose(directions(weak, strong, rows([0.5])[0]), rows([0.5, 0.0]))


def test_elites_by_sum_keep_the_earlier_of_a_tie() -> None:
    Y = rows([1.0, 1.0], [3.0, 0.0], [0.0, 3.0], [2.0, 2.0])
    assert best_sums(Y, 3).tolist() == [3, 1, 2]


def test_elites_by_domination_keep_the_ends_and_put_the_infeasible_last() -> None:
    Y = rows([0.0, 9.0], [5.0, 5.0], [9.0, 0.0], [4.0, 4.0], [3.0, 3.0], [9.0, 9.0])
    ok = torch.tensor([True, True, True, True, True, False])
    # row 5 dominates all others but is infeasible, so everyone's count grows by one alike
    assert least_dominated(Y, ok, 4).tolist() == [0, 1, 2, 3]
    assert least_dominated(Y[:5], ok[:5], 2).tolist() == [0, 1, 2]


class TestFisher:
    # FI = 1/0.5 + 1/0.25 = 6;  1/1 + 1/1 = 2;  1/0.1 + 1/2 = 10.5
    variance = rows([0.5, 0.25], [1.0, 1.0], [0.1, 2.0])
    covariance = torch.diag_embed(variance.T)

    def test_information(self) -> None:
        assert torch.allclose(fisher_information(self.variance), rows([6.0, 2.0, 10.5])[0])

    def test_nothing_modelled_gives_nothing(self) -> None:
        assert fisher_information(torch.empty(3, 0)).tolist() == [0, 0, 0]

    def test_a_known_value_is_finite_information(self) -> None:
        assert math.isfinite(float(fisher_information(torch.zeros(1))))

    @pytest.mark.parametrize(
        ("rule", "kept"), [("off", [0, 1]), ("low", [1, 0]), ("high", [2, 0]), ("logdet", [1, 2])]
    )
    def test_rules(self, rule: str, kept: list[int]) -> None:
        # log variances per candidate: log 0.125, log 1, log 0.2
        assert select(rule, self.covariance, 2) == kept  # type: ignore[arg-type]

    def test_ties_keep_the_earlier(self) -> None:
        assert select("low", torch.eye(3).expand(2, 3, 3), 2) == [0, 1]

    def test_logdet_passes_over_a_neighbour(self) -> None:
        # 0 and 1 are almost the same point: given 0, the variance of 1 is 0.98 - 0.98²/1 = 0.0196
        twins = rows([1.0, 0.98, 0.0], [0.98, 0.98, 0.0], [0.0, 0.0, 0.5]).unsqueeze(0)
        assert select("logdet", twins, 2) == [0, 2]
        assert select("low", twins, 2) == [0, 1]


class TestKnownObjective:
    seen = observe(random_points(8, 3))
    known = (None, known_bowl(1))

    def test_posterior_is_the_function_without_variance(self) -> None:
        surrogate = fit_surrogate(self.seen.X, self.seen.Y, self.seen.Yvar, self.known)
        X = random_points(20, 3, seed=4)
        raw = surrogate.mean(X) * surrogate.scale.scale + surrogate.scale.shift
        exact = known_bowl(1)(X)
        assert torch.allclose(raw[:, 1], exact, rtol=0, atol=1e-14)
        assert not torch.allclose(raw[:, 0], known_bowl(0)(X), rtol=0, atol=1e-14)
        variance = surrogate.model.posterior(X).variance
        assert (variance[:, 1] == 0).all()
        assert (variance[:, 0] > 0).all()

    def test_gradient_passes_through(self) -> None:
        surrogate = fit_surrogate(self.seen.X, self.seen.Y, self.seen.Yvar, self.known)
        x = random_points(1, 3, seed=5).requires_grad_()
        surrogate.model.posterior(x).mean[0, 1].backward()
        expected = -2 * (x.detach() - 0.8) / surrogate.scale.scale[1]
        assert torch.allclose(x.grad, expected)

    def test_only_modelled_columns_have_covariance(self) -> None:
        surrogate = fit_surrogate(self.seen.X, self.seen.Y, self.seen.Yvar, self.known)
        assert surrogate.covariance(random_points(4, 3)).shape == (1, 4, 4)


def test_importance_is_the_mean_slope_of_what_moves_the_merge() -> None:
    # slopes 1, 3 and x_2, whose mean over the cube is one half; the last is a choice
    def size(X: Tensor) -> Tensor:
        return X[..., 0] - 3 * X[..., 1] + X[..., 2].square() / 2 + (X[..., 3] > 0.5)

    told = importance(size, 4)
    assert torch.allclose(told, rows([1, 3, 0.5, 1.5])[0] / 1.5, atol=0.02)


def test_more_noise_means_less_trust() -> None:
    seen = observe(random_points(10, 2))
    exact = fit_surrogate(seen.X, seen.Y, seen.Yvar * 0, (None, None))
    noisy = fit_surrogate(seen.X, seen.Y, seen.Yvar * 1e3, (None, None))
    residual = exact.mean(seen.X) - exact.scale.standardise(seen.Y)
    assert residual.abs().max() < 0.01
    assert (noisy.covariance(seen.X) > exact.covariance(seen.X)).diagonal(dim1=1, dim2=2).all()


class TestOutcomeScale:
    def test_mean_and_standard_deviation_but_one_for_constants(self) -> None:
        scale = OutcomeScale.of(rows([1.0, 5.0], [3.0, 5.0]))
        assert torch.allclose(scale.shift, rows([2.0, 5.0])[0])
        assert torch.allclose(scale.scale, rows([math.sqrt(2.0), 1.0])[0])

    def test_a_constant_with_rounding_error_is_constant(self) -> None:
        value = 0.1 + 0.2
        assert OutcomeScale.of(rows([value], [0.3], [value])).scale.tolist() == [1.0]

    @given(seed=st.integers(0, 1000))
    @settings(max_examples=20, deadline=None)
    def test_constraints_keep_their_meaning(self, seed: int) -> None:
        Y, A, b = (
            random_points(9, 3, seed),
            random_points(2, 3, seed + 1),
            random_points(1, 2, seed),
        )
        scale = OutcomeScale.of(Y * 50)
        A_z, b_z = scale.constraints(A, b[0] * 50)
        raw, standardised = (Y * 50) @ A.T - b[0] * 50, scale.standardise(Y * 50) @ A_z.T - b_z
        assert torch.equal(raw > 0, standardised > 0)
        assert torch.allclose(A_z.norm(dim=-1), torch.ones(2).double())
