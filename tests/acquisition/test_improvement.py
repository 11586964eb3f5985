"""Boxes, the closed form of the improvement, and processes that imagine, each against an answer
that is computed in another way.
"""

from __future__ import annotations

import math

import moocore
import numpy as np
import pytest
import torch
from contracts.strategy_contract import known_bowl, observe, random_points
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import rows

from acquisition.boxes import nondominated_boxes
from acquisition.fronts import floors
from acquisition.improvement import Boxes, log_h, log_improvement
from acquisition.posterior import Process
from acquisition.reproducible import reproducible
from acquisition.sampled_front import SampledFront
from acquisition.surrogates import fit_surrogate

NO_FLOOR = -torch.inf


class TestBoxes:
    def test_two_objectives_are_strips(self) -> None:
        lower, upper = nondominated_boxes(np.array([[1.0, 2.0], [2.0, 1.0]]), np.zeros(2))
        inf = math.inf
        assert lower.tolist() == [[2, 0], [1, 1], [0, 2]]
        assert upper.tolist() == [[inf, inf], [2, inf], [1, inf]]

    @given(
        seed=st.integers(0, 10_000),
        n=st.integers(0, 9),
        m=st.integers(1, 4),
        levels=st.sampled_from([3, 100]),
    )
    @settings(max_examples=80, deadline=None)
    def test_every_place_is_in_one_box_or_dominated(
        self, seed: int, n: int, m: int, levels: int
    ) -> None:
        rng = np.random.default_rng(seed)
        Y = rng.integers(-1, levels, (n, m)) / levels  # ties, and points below the reference
        lower, upper = nondominated_boxes(Y, np.zeros(m))
        places = rng.random((300, m)) * 1.2
        boxes = ((places[:, None] > lower) & (places[:, None] < upper)).all(-1).sum(1)
        above = (Y > 0).all(-1)
        dominated = (Y[above][None] >= places[:, None]).all(-1).any(1)
        assert (boxes == ~dominated).all()

    @pytest.mark.parametrize(("m", "most"), [(2, 31), (3, 61)])
    def test_a_front_of_n_points_leaves_at_most_2n_plus_1(self, m: int, most: int) -> None:
        Y = np.abs(np.random.default_rng(0).normal(size=(30, m)))
        Y /= np.linalg.norm(Y, axis=1, keepdims=True)
        assert len(nondominated_boxes(Y, np.zeros(m))[0]) <= most


class TestLogH:
    def test_at_zero_it_is_the_density(self) -> None:
        assert float(log_h(torch.zeros(1)).exp()) == pytest.approx(1 / math.sqrt(2 * math.pi))

    @pytest.mark.parametrize("z", [-30.0, -5.0, -1.0, -0.3, 4.0])
    def test_it_is_the_integral_of_the_distribution(self, z: float) -> None:
        # φ(z) + z Φ(z) = ∫_{−∞}^z Φ; compared as logarithms
        t = torch.linspace(z - 12, z, 200_001, dtype=torch.float64)
        log_cdf = torch.special.log_ndtr(t)
        shift = log_cdf.max()
        expected = shift + torch.trapezoid((log_cdf - shift).exp(), t).log()
        assert float(log_h(rows([z]))) == pytest.approx(float(expected), abs=1e-6)

    def test_far_below_it_is_finite_and_has_a_slope(self) -> None:
        z = rows([-1e8, -1e4 - 1, -1e4 + 1, -999.0]).requires_grad_()
        log_h(z).sum().backward()
        # d log h / dz → −z
        assert torch.allclose(z.grad, -z.detach(), rtol=1e-5)


class TestImprovement:
    def test_one_objective_is_expected_improvement(self) -> None:
        boxes = Boxes.above(
            rows([1.0], [0.2])[None], torch.ones(1, 2, dtype=torch.bool), rows([0.0])[0]
        )
        mean, sigma = rows([0.7])[None], rows([0.5])[None]
        z = (0.7 - 1.0) / 0.5
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        expected = 0.5 * (density + z * 0.5 * math.erfc(-z / math.sqrt(2)))
        value = log_improvement(mean, sigma, boxes, torch.full((1,), NO_FLOOR))
        assert float(value.exp()) == pytest.approx(expected)

    def test_without_uncertainty_it_is_the_hypervolume_added(self) -> None:
        front, y = rows([1.0, 2.0], [2.0, 1.0]), rows([1.5, 1.5])
        boxes = Boxes.above(
            front[None], torch.ones(1, 2, dtype=torch.bool), torch.zeros(2).double()
        )
        sigma = torch.full((1, 1, 2), 1e-9, dtype=torch.float64)
        value = log_improvement(y[None], sigma, boxes, torch.full((2,), NO_FLOOR))
        assert float(value.exp()) == pytest.approx(0.25)  # [1, 1.5] x [1, 1.5]

    def test_a_point_that_adds_nothing_is_minus_a_lot_and_has_a_slope(self) -> None:
        boxes = Boxes.above(
            rows([5.0, 5.0])[None], torch.ones(1, 1, dtype=torch.bool), torch.zeros(2).double()
        )
        mean = rows([-40.0, -30.0])[None].requires_grad_()
        sigma = torch.full((1, 1, 2), 0.1, dtype=torch.float64)
        value = log_improvement(mean, sigma, boxes, torch.full((2,), NO_FLOOR))
        value.sum().backward()
        assert -math.inf < float(value.detach()) < -1e4
        assert (mean.grad > 0).all()

    @pytest.mark.parametrize("m", [1, 2, 3, 4])
    @pytest.mark.parametrize("least", [NO_FLOOR, 0.2, 0.65])
    def test_it_is_the_mean_over_draws_of_what_they_add(self, m: int, least: float) -> None:
        generator = torch.Generator().manual_seed(m)
        fronts = torch.rand(2, 4, m, generator=generator, dtype=torch.float64)
        floor = torch.full((m,), NO_FLOOR, dtype=torch.float64)
        floor[0] = least
        counted = (fronts >= floor).all(-1)
        boxes = Boxes.above(fronts, counted, torch.zeros(m).double())
        mean = torch.rand(1, 2, m, generator=generator, dtype=torch.float64)
        sigma = torch.full_like(mean, 0.3)
        draws = mean + sigma * torch.randn(6000, 2, m, generator=generator, dtype=torch.float64)
        added = 0.0
        for s in range(2):
            front = fronts[s][counted[s]].numpy()
            before = _volume(front)
            for y in draws[:, s][(draws[:, s] >= floor).all(-1)].numpy():
                added += _volume(np.vstack([front, y])) - before
        value = log_improvement(mean, sigma, boxes, floor).exp()
        assert float(value) == pytest.approx(added / 12_000, rel=0.08)


def _volume(Y: np.ndarray) -> float:
    above = Y[(Y > 0).all(-1)]
    if not len(above):
        return 0.0
    return float(moocore.hypervolume(above, ref=np.zeros(Y.shape[1]), maximise=True))


def test_floors_are_the_tightest_bounds_in_their_own_units() -> None:
    A, b = rows([2.0, 0.0], [1.0, 0.0]), rows([1.0, 0.2])[0]
    assert floors((A, b), 2).tolist() == [0.5, -math.inf]
    assert floors(None, 2).tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("row", [[1.0, 1.0], [-1.0, 0.0]])
def test_a_constraint_that_is_no_floor_is_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="one positive entry"):
        floors((rows(row), rows([0.0])[0]), 2)


class TestProcess:
    seen = observe(random_points(9, 2))
    gp = fit_surrogate(seen.X, seen.Y, seen.Yvar, (None, known_bowl(1))).model.models[0]

    def test_moments_are_those_of_botorch(self) -> None:
        X = random_points(5, 2, seed=3)
        posterior = self.gp.posterior(X)
        mean, variance = Process.of(self.gp).moments(X)
        assert torch.allclose(mean, posterior.mean)
        assert torch.allclose(variance, posterior.variance.squeeze(-1))

    def test_given_an_imagined_outcome_it_passes_through_it(self) -> None:
        X = random_points(3, 2, seed=4)
        after, outcomes = Process.of(self.gp).imagined(X, rows([0.5, -1.0, 2.0], [0.0, 0.0, 0.0]))
        mean, variance = after.moments(X)
        assert torch.allclose(mean, outcomes.T, atol=1e-6)
        assert (variance < 1e-6).all()

    def test_draws_of_nought_are_the_mean_and_change_none(self) -> None:
        process, X = Process.of(self.gp), random_points(3, 2, seed=4)
        after, outcomes = process.imagined(X, torch.zeros(1, 3).double())
        elsewhere = random_points(4, 2, seed=5)
        assert torch.allclose(outcomes, process.moments(X)[0].T)
        assert torch.allclose(after.moments(elsewhere)[0], process.moments(elsewhere)[0])

    def test_one_after_the_other_is_as_all_at_once(self) -> None:
        X, draws = random_points(3, 2, seed=6), rows([0.3, -0.7, 1.1])
        whole, outcomes = Process.of(self.gp).imagined(X, draws)
        part, first = Process.of(self.gp).imagined(X[:1], draws[:, :1])
        part, rest = part.imagined(X[1:], draws[:, 1:])
        assert torch.allclose(outcomes, torch.cat([first, rest], dim=1), atol=1e-6)
        elsewhere = random_points(4, 2, seed=7)
        for one, other in zip(whole.moments(elsewhere), part.moments(elsewhere), strict=True):
            assert torch.allclose(one, other, atol=1e-6)

    def test_samples_have_the_moments_of_the_process(self) -> None:
        process, X = Process.of(self.gp), random_points(2, 2, seed=8)
        draws = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)).double()
        _, outcomes = process.imagined(X, draws)
        mean, variance = process.moments(X)
        assert torch.allclose(
            outcomes.mean(0), mean[:, 0], atol=4 * float(variance.max()) ** 0.5 / 60
        )
        assert torch.allclose(outcomes.var(0), variance, rtol=0.12)


class TestSampledFront:
    def test_a_pending_point_leaves_less_to_gain_around_it(self) -> None:
        seen = observe(random_points(12, 2))
        surrogate = fit_surrogate(seen.X, seen.Y, seen.Yvar, (None, known_bowl(1)))
        Z = surrogate.scale.standardise(seen.Y)
        with reproducible(0):
            front = SampledFront.of(
                surrogate, seen.X, Z.amin(0) - 1, torch.full((2,), NO_FLOOR), integrates=True
            )
            x = random_points(64, 2, seed=1)
            before = front.gain()(x.unsqueeze(1))
            best = x[[int(before.argmax())]]
            after = front.with_points(best).gain()(best.unsqueeze(1))
        assert float(after) < float(before.max()) - 1

    def test_a_linked_accuracy_has_the_moments_of_its_link(self) -> None:
        X = random_points(15, 2)
        Y = (-3 * X.sum(-1, keepdim=True) + 3).sigmoid()
        surrogate = fit_surrogate(X, Y, torch.full_like(Y, 1e-4), (None,), link="logit")
        link = surrogate.links[0]
        assert link is not None
        front = SampledFront.of(
            surrogate, X[:0], rows([-9.0])[0], torch.full((1,), NO_FLOOR), integrates=False
        )
        with torch.no_grad():
            mean, sigma = front.moments(X[:4])
        posterior = surrogate.model.models[0].posterior(X[:4])
        draws = posterior.mean + posterior.variance.sqrt() * torch.randn(
            20_000, 4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        z = link.inverse(draws.detach())
        assert torch.allclose(mean[:, 0], z.mean(0), atol=0.01)
        assert torch.allclose(sigma[:, 0], z.std(0), rtol=0.05)
