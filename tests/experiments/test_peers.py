"""Peers written from descriptions: a random forest's ParEGO, and SIP-BMM's recipe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from botorch.acquisition.multi_objective import logei
from sklearn.ensemble import RandomForestRegressor

from acquisition.strategy import Observations
from experiments.sample_efficiency.contestants import Contestant
from experiments.sample_efficiency.forest import ForestParEGO, expected_improvement, scalarise
from experiments.sample_efficiency.problems import open_problem
from experiments.sample_efficiency.sip_bmm import (
    SIPBMM,
    fit_matern,
    initial_length_scales,
    without_compiled_kernel,
)
from experiments.sample_efficiency.spending import search
from experiments.sample_efficiency.study import Run

pytestmark = pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.BotorchWarning")


def test_scalarised_costs_by_hand() -> None:
    Y = np.array([[0.0, 10.0], [1.0, 0.0], [0.5, 10.0]])
    # lacks: (1, 0), (0, 1), (½, 0), times the weights (0.8, 0.2); the largest and 5 % of the sum
    costs = scalarise(Y, np.array([0.8, 0.2]))
    assert costs == pytest.approx([0.8 * 1.05, 0.2 * 1.05, 0.4 * 1.05])


def test_expected_improvement_of_a_forest_by_hand() -> None:
    X, cost = np.array([[0.0], [1.0]]), np.array([0.0, 1.0])
    forest = RandomForestRegressor(2, bootstrap=False, random_state=0).fit(X, cost)
    forest.estimators_[1] = RandomForestRegressor(1, bootstrap=False).fit(X, 1 - cost)
    # at 0 the trees say 0 and 1: mean ½, deviation ½; below ½ it is ½ φ(0)
    found = expected_improvement(forest, np.zeros((1, 1)), 0.5)
    assert found == pytest.approx(0.5 / np.sqrt(2 * np.pi))
    forest.estimators_[1] = forest.estimators_[0]  # no doubt: what is below the best, or nothing
    found = expected_improvement(forest, np.array([[0.0], [1.0]]), 0.25)
    assert found.tolist() == [0.25, 0.0]


def test_the_forest_learns() -> None:
    problem = open_problem("merge6")
    found = search(Run("merge6", "x", 0, 60), problem, Contestant(ForestParEGO()))
    total = problem.truth(found.X)[:, :2].sum(-1)
    assert total[10:].mean() > total[:10].mean() + 0.1


def test_length_scales_begin_by_rank() -> None:
    importance = torch.tensor([0.1, 5.0, 3.0, 0.2, 1.0, 0.5, 2.0, 0.05, 0.3, 0.4]).double()
    # ranks 0 and 0.1 are up to 0.15; 0.2 to 0.4 up to 0.40; 0.5 to 0.7 up to 0.70
    expected = [5.0, 0.5, 0.5, 2.0, 1.0, 1.0, 1.0, 5.0, 2.0, 2.0]
    found = initial_length_scales(10, importance)
    assert found.tolist() == expected
    assert initial_length_scales(3, None).tolist() == [1.0, 1.0, 1.0]


def test_matern_processes_interpolate() -> None:
    X = torch.from_numpy(np.random.default_rng(0).random((40, 2)))
    z = torch.sin(6 * X[:, :1])
    z = (z - z.mean()) / z.std()
    gp = fit_matern(X, z, torch.tensor([0.5, 5.0]).double())
    assert gp.covar_module.base_kernel.nu == 2.5
    scales = gp.covar_module.base_kernel.lengthscale.detach()[0]
    assert 0.005 <= scales.min() <= scales.max() <= 10.0
    assert scales[0] < scales[1]
    with torch.no_grad():
        assert gp.posterior(X).mean.numpy() == pytest.approx(z.numpy(), abs=0.05)


def test_the_compiled_kernel_is_off_inside_and_as_before_after_an_error() -> None:
    def state() -> tuple[object, ...]:
        return logei._C, logei._load_attempted

    def fail_inside() -> None:
        with without_compiled_kernel():
            assert state() == (None, True)
            raise ArithmeticError

    before = state()
    with pytest.raises(ArithmeticError):
        fail_inside()
    assert state() == before


def test_sip_bmm_reads_importance() -> None:
    problem = open_problem("layers24")
    X = torch.from_numpy(np.random.default_rng(0).random((12, 24)))
    Y, Yvar = problem.evaluate(X, np.random.default_rng(1))
    none = X[:0]
    seen = Observations(X, Y, Yvar, none, none, none, importance=problem.importance)
    with_it, again, without = (
        SIPBMM().propose(o, 1, 0).X for o in (seen, seen, replace(seen, importance=None))
    )
    assert torch.equal(with_it, again)
    assert not torch.allclose(with_it, without, atol=1e-3)
