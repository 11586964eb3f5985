"""Bounds behind a link; a point without a score."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from contracts.strategy_contract import observe, random_points
from tensors import rows

from acquisition.fronts import infer_reference
from acquisition.hypervolume import Criterion, Target, violations
from acquisition.maximise import maximise
from acquisition.reproducible import reproducible
from acquisition.surrogates import fit_surrogate


def test_bounds_of_accuracies_are_carried_through_the_link() -> None:
    Y = rows([0.2, -3.0], [0.5, -1.0], [0.8, -2.0])
    X = rows([0.1], [0.5], [0.9])
    surrogate = fit_surrogate(X, Y, torch.full_like(Y, 1e-4), (None, None), link="logit")
    link, scale = surrogate.links[0], surrogate.scale
    assert link is not None
    outcomes = torch.stack([link.forward(scale.standardise(Y)[:, 0]), Y[:, 1]], dim=-1)
    for bound, expected in ((0.5, [1.0, 0.0, -1.0]), (-2.0, [-1.0] * 3), (3.0, [1.0] * 3)):
        limit = scale.constraints(rows([1.0, 0.0]), rows([bound])[0])
        (violation,) = violations(surrogate, limit) or []
        assert violation(outcomes).round(decimals=9).sign().tolist() == expected
    (violation,) = violations(surrogate, scale.constraints(rows([0.0, 1.0]), rows([-2.0])[0])) or []
    assert torch.allclose(violation(scale.standardise(Y)), rows([1.0, -1.0, 0.0])[0])
    assert violations(surrogate, None) is None


@pytest.mark.parametrize("criterion", get_args(Criterion))
@pytest.mark.parametrize("m", [1, 2, 5])
def test_a_point_without_a_score_takes_its_own_improvement_away(
    criterion: Criterion, m: int
) -> None:
    seen = observe(random_points(12, 2), m)
    surrogate = fit_surrogate(seen.X, seen.Y, seen.Yvar, (None,) * m)
    reference = infer_reference(surrogate.scale.standardise(seen.Y))
    target = Target((surrogate,), seen.X, reference, None, criterion)
    bounds = rows([0.0, 0.0], [1.0, 1.0])
    with reproducible(0):
        best, values = maximise(target.gains(seen.X[:0]).gain(), bounds, seen.X[:0], lambda X: X)
    with reproducible(0), torch.no_grad():
        after = target.gains(best[:1]).gain()(best[:1].unsqueeze(0))
    assert float(after) < float(values[0]) - 1  # log scale
