"""Kinds of surrogates, links, the choice between them, importance, and the fit behind them all."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models.gp_regression import SingleTaskGP
from contracts.strategy_contract import random_points
from gpytorch.mlls import ExactMarginalLogLikelihood
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import column
from torch import Tensor

from acquisition.fitting import fit_hyperparameters, log_posterior
from acquisition.kernels import QuadraticKernel, additive_saas, quadratic, squared_exponential
from acquisition.measured import MeasuredGP
from acquisition.outcomes import Link, OutcomeScale
from acquisition.surrogates import Kind, Surrogate, fit_surrogate

KINDS: tuple[Kind, ...] = ("gp", "concentrated", "quadratic", "additive_saas")


def bowl(X: Tensor) -> Tensor:
    """A quadratic with an interaction: `n x d` → `n x 1`."""
    first, last = X[:, 0], X[:, -1]
    return (2 * first - 3 * last**2 + 4 * first * last + 1).unsqueeze(-1)


def accuracy(X: Tensor) -> Tensor:
    """Logit linear in the first coordinate, near 0 and 1 at its ends: `n x d` → `n x 1`."""
    return (10 * X[:, :1] - 5).sigmoid()


def fitted(X: Tensor, Y: Tensor, noise: float | None = 1e-8, **rules: Any) -> Surrogate:
    Yvar = None if noise is None else torch.full_like(Y, noise)
    return fit_surrogate(X, Y, Yvar, (None,) * Y.shape[-1], **rules)


class TestQuadraticKernel:
    kernel = QuadraticKernel(torch.ones(2, dtype=torch.float64))

    def test_by_hand(self) -> None:
        # x = (1, ½ + 1/√12), x' = (1, 1): u = (√3, 1), u' = (√3, √3).
        # linear 3 + √3; squares 5/4 ((3-1)(3-1) + 0·2) = 5; the only pair √3·1 · √3·√3 = 3√3.
        a, b = column(1, 0.5 + 1 / math.sqrt(12)), column(1, 1)
        self.kernel.variances = column(0.8, 0.6, 0.1)
        expected = 0.8 / 2 * (3 + math.sqrt(3)) + 0.6 / 2 * 5 + 0.1 * 3 * math.sqrt(3)
        value = self.kernel(a.unsqueeze(0), b.unsqueeze(0)).to_dense().item()
        assert value == pytest.approx(expected, rel=1e-12)

    @given(seed=st.integers(0, 1000), d=st.integers(1, 6))
    @settings(max_examples=20, deadline=None)
    def test_is_the_sum_over_its_features(self, seed: int, d: int) -> None:
        weights = random_points(1, d, seed)[0] + 0.5
        kernel = QuadraticKernel(weights)
        kernel.variances = column(0.7, 0.2, 0.4)
        X = random_points(5, d, seed + 1)
        u = math.sqrt(12) * (X - 0.5)
        i, j = torch.triu_indices(d, d, offset=1)
        features = [
            math.sqrt(0.7 / d) * weights * u,
            math.sqrt(0.2 / d) * weights**2 * math.sqrt(5) / 2 * (u**2 - 1),
            math.sqrt(0.4 / max(len(i), 1)) * (weights[i] * u[:, i]) * (weights[j] * u[:, j]),
        ]
        phi = torch.cat(features, dim=-1)
        dense = kernel(X).to_dense()
        assert torch.allclose(dense, phi @ phi.T, atol=1e-10)
        assert torch.allclose(kernel(X, diag=True), dense.diagonal(), atol=1e-10)

    def test_variances_are_those_over_the_cube(self) -> None:
        kernel = QuadraticKernel(torch.ones(3, dtype=torch.float64))
        kernel.variances = column(0.5, 0.3, 0.2)
        X = random_points(40_000, 3)
        assert kernel(X, diag=True).mean().item() == pytest.approx(1.0, abs=0.02)


class TestFit:
    X = random_points(25, 3)
    z = OutcomeScale.of(bowl(X)).standardise(bowl(X)) + 0.1 * (random_points(25, 1, seed=5) - 0.5)

    def gp(self, make: Any, noise: float | None) -> MeasuredGP:
        Yvar = None if noise is None else torch.full_like(self.z, noise)
        kernel = make(3, torch.ones(3, dtype=torch.float64))
        errors = None if Yvar is None else Yvar[:, 0].diag_embed()
        return MeasuredGP(self.X, self.z[:, 0], errors, kernel)

    @pytest.mark.parametrize("make", [squared_exponential, quadratic, additive_saas])
    @pytest.mark.parametrize("noise", [1e-2, None])
    def test_value_and_gradient_are_those_of_gpytorch(self, make: Any, noise: float | None) -> None:
        gp = self.gp(make, noise)
        parameters = list(gp.parameters())
        value, gradient = log_posterior(gp, parameters)
        oracle = ExactMarginalLogLikelihood(gp.likelihood, gp)(gp(self.X), self.z[:, 0])
        oracle.backward()
        slopes = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        assert value == pytest.approx(oracle.item(), rel=1e-9)
        assert torch.allclose(torch.from_numpy(gradient), slopes, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("noise", [1e-2, None])
    def test_hyperparameters_are_those_of_botorch(self, noise: float | None) -> None:
        ours = self.gp(squared_exponential, noise)
        fit_hyperparameters(ours)
        Yvar = None if noise is None else torch.full_like(self.z, noise)
        theirs = SingleTaskGP(self.X, self.z, Yvar, outcome_transform=None)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(theirs.likelihood, theirs))
        for name in ("covar_module.lengthscale", "mean_module.constant", "likelihood.noise"):
            a, b = (_attribute(gp, name) for gp in (ours, theirs))
            assert torch.allclose(a, b, rtol=5e-3, atol=1e-3), name


def _attribute(gp: SingleTaskGP, name: str) -> Tensor:
    module, attribute = name.split(".")
    value: Tensor = getattr(getattr(gp, module), attribute)
    return value


class TestKinds:
    def test_a_quadratic_is_reproduced_and_continued(self) -> None:
        inner = 0.25 + 0.5 * random_points(9, 2, seed=3)  # the middle quarter of the square
        corners = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
        errors = {}
        for kind in ("gp", "quadratic"):
            surrogate = fitted(inner, bowl(inner), kind=kind)
            predicted = surrogate.scale.raw(surrogate.mean(corners))
            errors[kind] = float((predicted - bowl(corners)).abs().max())
        assert errors["quadratic"] < 0.02
        assert errors["quadratic"] < errors["gp"] / 5

    def test_auto_takes_the_quadratic_on_a_quadratic(self) -> None:
        X = random_points(40, 4)
        offset = X - 0.4
        Y = (offset.sum(-1) ** 2 + (offset**2 @ column(1, 2, 3, 4))).unsqueeze(-1)
        noisy = Y + 0.05 * torch.randn(Y.shape, generator=torch.Generator().manual_seed(0))
        (choice,) = fitted(X, noisy, 0.05**2, kind="auto").choices
        assert choice is not None
        assert choice.kind == "quadratic"

    def test_auto_stays_with_the_process_on_a_wave(self) -> None:
        X = random_points(40, 1)
        (choice,) = fitted(X, torch.sin(12 * X), 1e-4, kind="auto").choices
        assert choice is not None
        assert choice.kind == "concentrated"

    def test_concentrated_length_scales_differ_less(self) -> None:
        X = random_points(15, 4)
        extent = {}
        for kind in ("gp", "concentrated"):
            surrogate = fitted(X, bowl(X), 1e-2, kind=kind)
            scales = surrogate.model.models[0].covar_module.lengthscale[0].tolist()
            extent[kind] = max(scales) / min(scales)
        assert extent["concentrated"] < 0.7 * extent["gp"]

    @pytest.mark.parametrize("kind", [*KINDS, "auto"])
    @pytest.mark.parametrize("noise", [1e-4, None])
    def test_the_same_data_give_the_same_bits(self, kind: Any, noise: float | None) -> None:
        X = random_points(12, 3)
        first, second = (fitted(X, bowl(X), noise, kind=kind).mean(X) for _ in range(2))
        assert torch.equal(first, second)

    @pytest.mark.parametrize(
        ("kind", "link"),
        [("gp", "logit"), ("quadratic", "off"), ("additive_saas", "off"), ("auto", "auto")],
    )
    @pytest.mark.parametrize("noise", [0.0, 1e-4, None])
    @pytest.mark.filterwarnings("ignore::linear_operator.utils.warnings.NumericalWarning")
    def test_poor_data_are_survived(self, kind: Any, noise: float | None, link: Any) -> None:
        two = random_points(2, 3)
        tied = two[[0, 1] * 5]
        for X in (two, tied):
            Y = torch.cat([accuracy(X), torch.full((len(X), 1), 0.25, dtype=torch.float64)], dim=-1)
            surrogate = fitted(X, Y, noise, kind=kind, link=link)
            raw = surrogate.scale.raw(surrogate.mean(random_points(6, 3, seed=9)))
            assert raw.isfinite().all()
            assert torch.allclose(raw[:, 1], column(0.25), atol=1e-2)


class TestLink:
    y = column(0.3, 0.4, 0.5, 0.9)
    outcome = OutcomeScale(column(0.6)[0], column(0.3)[0])
    link = Link.of(y, outcome)
    z = outcome.standardise(y)

    def test_by_hand(self) -> None:
        # From 0.3 - 0.1 to 0.9 + 0.1.
        logits = [math.log(p / (1 - p)) for p in (0.125, 0.25, 0.375, 0.875)]
        expected = (column(*logits) - column(*logits).mean()) / column(*logits).std()
        assert torch.allclose(self.link.forward(self.z), expected)

    def test_ends_are_accuracies_and_finite(self) -> None:
        link = Link.of(column(0.05, 0.5, 1.0), self.outcome)
        assert (link.low, link.high) == (0.0, 1.0)
        ends = self.outcome.standardise(column(0.0, 1.0, 0.001, 0.999))
        u = link.forward(ends)
        assert torch.equal(u[:2], u[2:])
        assert link.slope(ends).isfinite().all()

    @given(z=st.floats(-1.3, 1.3))
    def test_round_trip_and_order(self, z: float) -> None:
        here, next_ = column(z), column(z + 1e-3)
        assert torch.allclose(self.link.inverse(self.link.forward(here)), here, atol=1e-9)
        assert self.link.forward(next_) > self.link.forward(here)

    def test_slope_is_the_derivative(self) -> None:
        z = self.z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.link.forward(z).sum(), z)
        assert torch.allclose(self.link.slope(self.z), slope)

    def test_noise_is_carried_by_the_slope(self) -> None:
        X = random_points(10, 2)
        Y = accuracy(X)
        surrogate = fitted(X, Y, 1e-4, link="logit")
        (link,) = surrogate.links
        assert link is not None
        z = surrogate.scale.standardise(Y)[:, 0]
        expected = 1e-4 / surrogate.scale.scale**2 * link.slope(z) ** 2
        assert torch.allclose(surrogate.model.models[0].likelihood.noise, expected)

    def test_means_are_of_the_accuracy(self) -> None:
        X, new = random_points(20, 2), random_points(50, 2, seed=8)
        surrogate = fitted(X, accuracy(X), 1e-6, link="logit")
        raw = surrogate.scale.raw(surrogate.mean(new))
        assert torch.allclose(raw, accuracy(new), atol=0.01)

    def test_only_values_from_0_to_1_that_differ_have_one(self) -> None:
        X = random_points(8, 2)
        Y = torch.cat([accuracy(X), 100 * accuracy(X), -accuracy(X), 0 * X[:, :1] + 0.5], dim=-1)
        linked = [link is not None for link in fitted(X, Y, 1e-4, link="logit").links]
        assert linked == [True, False, False, False]
        assert fitted(X, Y, 1e-4).links == (None,) * 4

    def test_auto_takes_it_where_it_helps(self) -> None:
        X = random_points(30, 1)
        Y = torch.cat([accuracy(X), 0.3 + 0.4 * X], dim=-1)
        linked = [link is not None for link in fitted(X, Y, 1e-5, link="auto").links]
        assert linked == [True, False]


class TestImportance:
    X = random_points(20, 2)
    Y = X.sum(-1, keepdim=True) ** 2
    importance = column(1.8, 0.2)

    def test_the_important_coordinate_has_the_shorter_length_scale(self) -> None:
        ratios = []
        for importance in (None, self.importance):
            surrogate = fitted(self.X, self.Y, 1e-2, kind="concentrated", importance=importance)
            first, second = surrogate.model.models[0].covar_module.lengthscale[0].tolist()
            ratios.append(first / second)
        assert ratios[1] < 0.9 * ratios[0]

    def test_the_prior_moves_by_its_logarithm(self) -> None:
        location = squared_exponential(2, self.importance).lengthscale_prior.loc
        default = squared_exponential(2, torch.ones(2, dtype=torch.float64)).lengthscale_prior.loc
        assert torch.allclose(default - location, self.importance.log())

    @pytest.mark.parametrize("kind", KINDS)
    def test_ones_change_nothing_and_others_do(self, kind: Kind) -> None:
        means = [
            fitted(self.X, self.Y, 1e-2, kind=kind, importance=i).mean(random_points(5, 2, seed=2))
            for i in (None, torch.ones(2, dtype=torch.float64), self.importance)
        ]
        assert torch.equal(means[0], means[1])
        assert not torch.allclose(means[0], means[2], atol=1e-6)
