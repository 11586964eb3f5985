"""Leave-one-out by hand and by refit, calibration of data from the model itself, importance."""

from __future__ import annotations

import json
import math

import pytest
import torch
from botorch.models.gp_regression import SingleTaskGP
from contracts.strategy_contract import cases, changed, known_bowl, observe, random_points
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import column, rows
from torch import Tensor

from acquisition.diagnostics import calibration, importance, leave_one_out, r_squared, summary
from acquisition.surrogates import Surrogate, fit_surrogate


class TestLeaveOneOut:
    def test_two_points_by_hand(self) -> None:
        # From residual 3: 0.5 / 1.25 · 3 = 1.2, variance 1.25 − 0.25 / 1.25 = 1.05; from 1: 0.4.
        errors, variances = leave_one_out(rows([1.25, 0.5], [0.5, 1.25]), column(1.0, 3.0))
        assert torch.allclose(errors, column(1.0 - 1.2, 3.0 - 0.4))
        assert torch.allclose(variances, column(1.05, 1.05))

    def test_independent_points_are_predicted_by_the_prior(self) -> None:
        errors, variances = leave_one_out(torch.diag(column(1.0, 2.0, 4.0)), column(3.0, -1.0, 0.5))
        assert torch.allclose(errors, column(3.0, -1.0, 0.5))
        assert torch.allclose(variances, column(1.0, 2.0, 4.0))

    @given(seed=st.integers(0, 10_000), n=st.integers(2, 7))
    @settings(max_examples=30, deadline=None)
    def test_equals_conditioning_on_the_others(self, seed: int, n: int) -> None:
        root, noise, residuals = random_points(n, 2 * n + 1, seed).split([n, n, 1], dim=-1)
        covariance = root @ root.T + torch.diag(0.01 + noise[:, 0])
        errors, variances = leave_one_out(covariance, residuals[:, 0])
        for i in range(n):
            others = torch.arange(n) != i
            weights = torch.linalg.solve(covariance[others][:, others], covariance[others, i])
            predicted = weights @ residuals[others, 0]
            assert errors[i] == pytest.approx(float(residuals[i, 0] - predicted), abs=1e-9)
            left = covariance[i, i] - weights @ covariance[others, i]
            assert variances[i] == pytest.approx(float(left), rel=1e-7)


class TestCalibration:
    def test_r_squared_by_hand(self) -> None:
        # Σ error² = 0.25 + 1 + 4 + 0 = 5.25; Σ (observed − 3)² = 9 + 1 + 1 + 9 = 20.
        found = r_squared(column(0.0, 2.0, 4.0, 6.0), column(0.5, -1.0, 2.0, 0.0))
        assert found == pytest.approx(1 - 5.25 / 20)

    def test_z_by_hand(self) -> None:
        # z = 0.5, 1, 2, 0: two within 0.674, three within 1.96.
        found = calibration(column(1.0, -1.0, 2.0, 0.0), column(4.0, 1.0, 1.0, 9.0))
        assert found == {
            "coverage50": 0.5,
            "coverage95": 0.75,
            "rms_z": pytest.approx(math.sqrt(5.25 / 4)),
        }

    def test_data_from_the_process_itself_is_calibrated(self) -> None:
        X = random_points(400, 2, seed=3)
        covariance = torch.exp(-torch.cdist(X, X).square() / 0.08)
        covariance += 0.1 * torch.eye(400, dtype=torch.float64)
        normal = torch.randn(400, generator=torch.Generator().manual_seed(4)).double()
        drawn = torch.linalg.cholesky(covariance) @ normal
        errors, variances = leave_one_out(covariance, drawn)
        found = calibration(errors, variances)
        # three standard errors of a share and of a root mean square over 400 draws
        assert found["coverage50"] == pytest.approx(0.5, abs=0.075)
        assert found["coverage95"] == pytest.approx(0.95, abs=0.033)
        assert found["rms_z"] == pytest.approx(1.0, abs=0.106)
        assert r_squared(drawn, errors) > 0.7
        too_sure = calibration(errors, variances / 4)
        assert too_sure["coverage95"] < 0.75
        assert too_sure["rms_z"] == pytest.approx(2 * found["rms_z"])


class TestImportance:
    def test_the_only_coordinate_that_matters_has_it_all(self) -> None:
        shares = importance(lambda X: torch.sin(5 * X[..., 1]), 3)
        assert shares.tolist() == [0.0, 1.0, 0.0]

    def test_shares_of_a_sum_are_those_of_the_variances(self) -> None:
        # variances 4 / 12, 1 / 12 and 9 / 12
        shares = importance(lambda X: 2 * X[..., 0] + X[..., 1] - 3 * X[..., 2] + 7, 3)
        assert shares.tolist() == pytest.approx([4 / 14, 1 / 14, 9 / 14], abs=0.01)

    def test_a_pure_interaction_belongs_to_both(self) -> None:
        shares = importance(lambda X: (X[..., 0] - 0.5) * (X[..., 2] - 0.5), 3)
        assert shares.tolist() == pytest.approx([0.5, 0.0, 0.5], abs=0.02)

    def test_many_alike_share_alike(self) -> None:
        shares = importance(lambda X: -((X - 0.5) ** 2).sum(dim=-1), 24)
        assert shares.tolist() == pytest.approx([1 / 24] * 24, rel=0.35)
        assert float(shares.sum()) == pytest.approx(1.0)

    def test_nothing_moves_a_constant(self) -> None:
        assert importance(lambda X: torch.ones_like(X[..., 0]), 2).tolist() == [0.0, 0.0]

    def test_what_is_never_evaluated_does_not_count(self) -> None:
        def snap(X: Tensor) -> Tensor:
            return torch.stack([X[..., 0].round(), torch.full_like(X[..., 1], 0.5)], dim=-1)

        assert importance(lambda X: X.sum(dim=-1), 2, snap).tolist() == [1.0, 0.0]


def refit_without(surrogate: Surrogate, k: int, i: int) -> tuple[float, float]:
    """Error and variance of observation i, from a new model of the others and the same numbers."""
    gp = surrogate.model.models[k]
    (X,), z = gp.train_inputs, gp.train_targets
    others = torch.arange(len(z)) != i
    fixed = gp.likelihood.noise.expand(len(z)) if gp.likelihood.noise.numel() > 1 else None
    other = SingleTaskGP(
        X[others],
        z[others].unsqueeze(-1),
        None if fixed is None else fixed[others].unsqueeze(-1),
        outcome_transform=None,
    )
    other.mean_module, other.covar_module = gp.mean_module, gp.covar_module
    if fixed is None:
        other.likelihood = gp.likelihood
    other.eval()
    with torch.no_grad():
        found = other.posterior(X[[i]])
        noise = gp.likelihood.noise.expand(len(z))[i]
        return float(z[i] - found.mean), float(found.variance + noise)


@pytest.mark.filterwarnings("ignore:Data .outcome observations. is not standardized")
@pytest.mark.parametrize("measured", [True, False])
def test_a_fitted_model_is_judged_as_if_each_observation_were_new(measured: bool) -> None:
    seen = observe(random_points(9, 2))
    noisy = seen.Y + 0.1 * random_points(9, 2, seed=5)
    variance = 0.002 + 0.01 * random_points(9, 2, seed=6) if measured else None
    surrogate = fit_surrogate(seen.X, noisy, variance, (None, None))
    observations = changed(seen, Y=noisy, Yvar=variance)
    described = summary(surrogate, observations, None)["objectives"]
    for k in range(2):
        left_out = rows(*(list(refit_without(surrogate, k, i)) for i in range(9)))
        z = surrogate.model.models[k].train_targets
        errors, variances = left_out[:, 0], left_out[:, 1]
        expected = {"r2": r_squared(z, errors), **calibration(errors, variances)}
        assert {name: described[k][name] for name in expected} == pytest.approx(expected, rel=1e-7)


@pytest.mark.filterwarnings("ignore:Data .outcome observations. is not standardized")
def test_r_squared_and_importance_are_of_outcomes_where_the_model_is_of_their_logits() -> None:
    def logit(X: Tensor) -> Tensor:
        return 8 * X[..., 0] ** 3 + 2 * X[..., 1] - 1

    X = random_points(30, 2)
    Y = torch.sigmoid(logit(X)).unsqueeze(-1)
    noise = torch.full_like(Y, 1e-6)
    surrogate = fit_surrogate(X, Y, noise, (None,), link="logit")
    (described,) = summary(surrogate, changed(observe(X, m=1), Y=Y, Yvar=noise), None)["objectives"]
    (link,), u = surrogate.links, surrogate.model.models[0].train_targets
    assert link is not None
    errors = column(*(refit_without(surrogate, 0, i)[0] for i in range(len(X))))
    z = link.inverse(u)
    assert described["r2"] == pytest.approx(r_squared(z, z - link.inverse(u - errors)), rel=1e-6)
    # of the logit, the first has 94 % of it; of what is seen, 80 %
    of_accuracy = importance(lambda X: torch.sigmoid(logit(X)), 2)
    assert described["importance"]["x0"] == pytest.approx(float(of_accuracy[0]), abs=0.03)
    assert importance(logit, 2)[0] > of_accuracy[0] + 0.1


@pytest.mark.filterwarnings("ignore:Data .outcome observations. is not standardized")
@pytest.mark.parametrize("values", [[0.1, 0.7, 0.4], [1.0] * 6])
def test_too_few_or_equal_scores_say_nothing(values: list[float]) -> None:
    X = random_points(len(values), 2)
    Y = column(*values).unsqueeze(-1)
    observations = changed(observe(X, m=1), Y=Y, Yvar=torch.full_like(Y, 0.01))
    surrogate = fit_surrogate(X, Y, observations.Yvar, (None,))
    (described,) = summary(surrogate, observations, None)["objectives"]
    assert {described[name] for name in ("r2", "coverage50", "coverage95", "rms_z")} == {None}


def test_noise_is_not_explained() -> None:
    X = random_points(40, 3)
    Y = random_points(40, 1, seed=8)
    observations = changed(observe(X, m=1), Y=Y, Yvar=torch.full_like(Y, 1 / 12))
    surrogate = fit_surrogate(X, Y, observations.Yvar, (None,))
    (described,) = summary(surrogate, observations, None)["objectives"]
    assert described["r2"] == pytest.approx(0.0, abs=0.15)
    assert 0.85 <= described["coverage95"] <= 1.0


def test_the_summary_names_what_each_objective_depends_on() -> None:
    X = random_points(25, 3)
    Y = torch.stack([torch.sin(3 * X[:, 2]), known_bowl(1)(X)], dim=-1)
    observations = changed(
        observe(X), Y=Y, known=(None, known_bowl(1)), names=("density", "method", "weight")
    )
    surrogate = fit_surrogate(X, Y, observations.Yvar, observations.known)
    found = summary(surrogate, observations, 0.125)
    first, second = found["objectives"]
    assert (found["gain"], found["observations"]) == (0.125, 25)
    assert second == {"exact": True}
    assert list(first["importance"]) == ["density", "method", "weight"]
    assert first["importance"]["weight"] > 0.98
    assert sum(first["importance"].values()) == pytest.approx(1.0)
    assert first["r2"] > 0.95
    json.dumps(found, allow_nan=False)


@pytest.mark.filterwarnings("ignore:Data .outcome observations. is not standardized")
def test_a_summary_without_names_and_with_a_constant_objective() -> None:
    seen = observe(random_points(6, 2), m=1)
    flat = changed(seen, Y=torch.ones(6, 1).double())
    surrogate = fit_surrogate(flat.X, flat.Y, flat.Yvar, (None,))
    found = summary(surrogate, flat, None)
    assert found["gain"] is None
    nothing = dict.fromkeys(("r2", "coverage50", "coverage95", "rms_z"))
    assert found["objectives"] == [nothing | {"importance": {"x0": 0.0, "x1": 0.0}}]
    json.dumps(found, allow_nan=False)


@pytest.mark.filterwarnings("ignore:Data .outcome observations. is not standardized")
@pytest.mark.parametrize("name", [name for name, seen in cases().items() if len(seen.X) >= 2])
def test_every_situation_has_a_summary_of_finite_numbers(name: str) -> None:
    seen = cases()[name]
    known = seen.known or (None,) * seen.Y.shape[-1]
    found = summary(fit_surrogate(seen.X, seen.Y, seen.Yvar, known), seen, None)
    assert [("exact" in o) for o in found["objectives"]] == [k is not None for k in known]
    json.dumps(found, allow_nan=False)
