"""Measurements whose errors are correlated: against formulas written out, and what they change."""

from __future__ import annotations

import pytest
import torch
from contracts.strategy_contract import changed, observe, random_points
from tensors import column
from torch import Tensor

from acquisition.diagnostics import r_squared, summary
from acquisition.measured import MeasuredGP
from acquisition.surrogates import Surrogate, fit_surrogate

X = random_points(9, 2)
NEW = random_points(5, 2, seed=1)
Y = torch.sin(3 * X.sum(-1, keepdim=True)) + 0.3 * random_points(9, 1, seed=2)
FACTOR = 0.2 * random_points(9, 9, seed=3)
YCOV = (FACTOR @ FACTOR.T + 0.01 * torch.eye(9).double()).unsqueeze(0)
YVAR = YCOV[0].diagonal().unsqueeze(-1)


def shared(Yvar: Tensor, correlation: float) -> Tensor:
    """Covariances of `n x 1` measurements that all correlate alike."""
    deviation = Yvar[:, 0].sqrt()
    alike = torch.full((len(Yvar), len(Yvar)), correlation).double().fill_diagonal_(1.0)
    return (deviation.outer(deviation) * alike).unsqueeze(0)


def dense(surrogate: Surrogate) -> tuple[MeasuredGP, Tensor, Tensor, Tensor]:
    """The process, K(X, X), K(NEW, X) and the residuals, without any of what is tested."""
    gp = surrogate.model.models[0]
    with torch.no_grad():
        mean = gp.mean_module(X)
        residual = gp.train_targets - mean
        return gp, gp.covar_module(X).to_dense(), gp.covar_module(NEW, X).to_dense(), residual


class TestPosterior:
    surrogate = fit_surrogate(X, Y, YVAR, (None,), Ycov=YCOV)
    noise = YCOV[0] / surrogate.scale.scale**2

    def test_is_that_of_the_textbook(self) -> None:
        gp, K, towards, residual = dense(self.surrogate)
        S = K + self.noise
        with torch.no_grad():
            mean = gp.mean_module(NEW) + towards @ torch.linalg.solve(S, residual)
            prior = gp.covar_module(NEW).to_dense()
        covariance = prior - towards @ torch.linalg.solve(S, towards.T)
        # A millionth of each variance is taken to be the measurement's own.
        assert torch.allclose(self.surrogate.mean(NEW)[:, 0], mean, atol=1e-4)
        assert torch.allclose(self.surrogate.covariance(NEW)[0], covariance, atol=1e-4)
        found, variance = self.surrogate.processes[0].moments(NEW)
        assert torch.allclose(found[:, 0], mean, atol=1e-4)
        assert torch.allclose(variance, covariance.diagonal(), atol=1e-4)

    def test_is_not_that_of_the_variances_alone(self) -> None:
        alone = fit_surrogate(X, Y, YVAR, (None,))
        assert not torch.allclose(self.surrogate.mean(NEW), alone.mean(NEW), atol=0.01)

    def test_leaving_one_out_conditions_on_the_errors_of_the_others(self) -> None:
        _, K, _, residual = dense(self.surrogate)
        S = K + self.noise
        errors = []
        for i in range(9):
            rest = torch.arange(9) != i
            known = torch.linalg.solve(S[rest][:, rest], residual[rest])
            errors.append(float(residual[i] - S[i, rest] @ known))
        seen = changed(observe(X, m=1), Y=Y, Yvar=YVAR, Ycov=YCOV)
        (told,) = summary(self.surrogate, seen, None)["objectives"]
        z = self.surrogate.scale.standardise(Y)[:, 0]
        assert told["r2"] == pytest.approx(r_squared(z, column(*errors)), abs=1e-3)

    def test_a_measurement_to_come_may_share_errors_with_those_seen(self) -> None:
        gp, K, towards, residual = dense(self.surrogate)
        common = 0.5 * self.noise[:5]  # as if it answered items of the first five again
        S = K + self.noise
        weights = torch.linalg.solve(S, (towards + common).T).T
        with torch.no_grad():
            mean = gp.mean_module(NEW) + weights @ residual
            own = gp.covar_module(NEW).to_dense().diagonal() + 2.0
            found, variance = self.surrogate.processes[0].next_measurements(
                NEW, torch.full((5,), 2.0).double(), common
            )
        assert torch.allclose(found[:, 0], mean, atol=1e-4)
        assert torch.allclose(variance, own - (weights * (towards + common)).sum(-1), atol=1e-4)


def test_a_diagonal_changes_nothing() -> None:
    plain = fit_surrogate(X, Y, YVAR, (None,), kind="auto")
    diagonal = fit_surrogate(X, Y, YVAR, (None,), kind="auto", Ycov=YVAR.T.diag_embed())
    assert torch.equal(plain.mean(NEW), diagonal.mean(NEW))
    assert torch.equal(plain.covariance(NEW), diagonal.covariance(NEW))


def test_a_link_scales_both_sides() -> None:
    accuracy = (4 * (X.sum(-1, keepdim=True) - 1)).sigmoid()
    surrogate = fit_surrogate(X, accuracy, YVAR * 0.01, (None,), Ycov=YCOV * 0.01, link="logit")
    link, gp = surrogate.links[0], surrogate.model.models[0]
    assert link is not None
    slope = link.slope(surrogate.scale.standardise(accuracy)[:, 0])
    expected = torch.diag(slope) @ (0.01 * YCOV[0] / surrogate.scale.scale**2) @ torch.diag(slope)
    with torch.no_grad():
        found = gp.measured()[0] - gp.covar_module(X).to_dense()
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-9)


class TestOneError:
    """All trials have the same large error: its size says nothing about their differences."""

    X = torch.linspace(0, 1, 9).double().unsqueeze(-1)
    truth = -(X - 0.3).square()
    Yvar = torch.full((9, 1), 0.3**2).double()

    def fit(self, offset: float, correlation: float) -> Surrogate:
        Ycov = shared(self.Yvar, correlation)
        return fit_surrogate(self.X, self.truth + offset, self.Yvar, (None,), Ycov=Ycov)

    def test_the_argmax_stays_whatever_it_is_and_is_found(self) -> None:
        places = torch.linspace(0, 1, 101).double().unsqueeze(-1)
        best = [int(self.fit(offset, 0.9999).mean(places).argmax()) for offset in (-0.4, 0.0, 0.3)]
        assert best[0] == best[1] == best[2]
        assert best[0] == pytest.approx(30, abs=3)

    def test_differences_are_sharper(self) -> None:
        contrast = column(1.0, -1.0)
        certain = {}
        for correlation in (0.0, 0.9999):
            covariance = self.fit(0.0, correlation).covariance(self.X[[2, 7]])[0]
            certain[correlation] = float(contrast @ covariance @ contrast)
        assert certain[0.9999] < certain[0.0] / 20

    def test_equal_errors_leave_a_difference_certain_even_at_one_point(self) -> None:
        twice = self.X[[0, 0, 4, 8]]
        values = column(0.1, 0.1, 0.5, 0.3).unsqueeze(-1)
        Yvar = self.Yvar[:4]
        surrogate = fit_surrogate(twice, values, Yvar, (None,), Ycov=shared(Yvar, 1.0))
        Z = surrogate.scale.standardise(values)[:, 0]
        found = surrogate.mean(twice)[:, 0]
        assert float(found[2] - found[0]) == pytest.approx(float(Z[2] - Z[0]), abs=1e-3)
        variance = surrogate.covariance(twice[1:])[0]
        assert float(variance[0, 0] + variance[1, 1] - 2 * variance[0, 1]) < 1e-4
