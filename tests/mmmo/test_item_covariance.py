"""What a strategy is told of errors that trials share: from stored outcomes, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaigns import campaign

from acquisition.strategy import Observations
from evaluators.benchmarks.statistics import exponential, mean, pack, proportion
from mmmo.config import parse
from mmmo.observations import observations
from mmmo.records import Measurement, Objective, Trial
from mmmo.space import SearchSpace

MATHS = Objective("maths", "sums", None, "accuracy", 1.0)
CODE = Objective("code", "python", None, "perplexity", -1.0)
SPARSITY = Objective("sparsity", None, "delta_l1", "delta_l1", -1.0)
OBJECTIVES = (MATHS, CODE, SPARSITY)


def scores(right: Sequence[float], nats: Sequence[float]) -> dict[str, Measurement]:
    """An accuracy and a perplexity, as a worker would store them."""
    answers, losses = (np.array(v, dtype=np.float32) for v in (right, nats))
    return {
        "sums": Measurement(*proportion(answers), len(answers), 0.1, pack(answers)),
        "python": Measurement(*exponential(*mean(losses)), len(losses), 0.1, pack(losses)),
    }


def seen(
    *measured: dict[str, Measurement], order: int | None = None, item_covariance: bool = True
) -> Observations:
    """Observations of a campaign of completed trials with those scores."""
    written: dict[str, Any] = {
        o.name: {"benchmark": o.benchmark} if o.benchmark else {"measure": o.measure}
        for o in OBJECTIVES
    }
    config = parse(campaign(objectives=written), Path("/nowhere"))
    space = SearchSpace(config)
    trials = [
        Trial(
            number=n,
            key=str(n),
            x=(0.1 * (n + 1),) * space.size,
            recipe=space.decode([0.1 * (n + 1)] * space.size),
            diagnostics={},
            state="completed",
            scores=found,
            measures={"delta_l1": 0.5},
            order=order,
        )
        for n, found in enumerate(measured)
    ]
    return observations(
        trials, OBJECTIVES, config, space, (None,) * 3, [], item_covariance=item_covariance
    )


def test_covariances_by_hand() -> None:
    first = scores([1, 1, 0, 0], [1.0, 2.0, 3.0, 2.0])
    second = scores([1, 0, 0, 0], [2.0, 2.0, 4.0, 4.0])
    found = seen(first, second)
    assert found.Ycov is not None
    assert found.Ycov.shape == (3, 2, 2)
    # Answers: deviations (1, 1, -1, -1)/2 and (3, -1, -1, -1)/4 of product 1/2 and squared lengths
    # 1 and 3/4, and 1 more of the prior.
    accuracy = 0.5 / math.sqrt(2 * 1.75) * first["sums"].se * second["sums"].se
    assert float(found.Ycov[0, 0, 1]) == pytest.approx(accuracy)
    # Nats: means 2 and 3, deviations (-1, 0, 1, 0) and (-1, -1, 1, 1): covariance 2 / 3 per item,
    # over 4 items; by the delta method times e^2 and e^3. The sign of the goal is squared.
    assert float(found.Ycov[1, 0, 1]) == pytest.approx(2 / 3 / 4 * math.exp(5), rel=1e-6)
    assert (found.Ycov[2] == 0).all()
    assert found.Ycov.diagonal(dim1=1, dim2=2).T.tolist() == found.Yvar.tolist()


def test_a_constant_difference_is_certain() -> None:
    first = scores([1, 0, 1], [1.0, 2.0, 4.0])
    second = scores([1, 0, 1], [1.5, 2.5, 4.5])
    found = seen(first, second).Ycov
    assert found is not None
    # Perplexities are then proportional: by the delta method 1 / e^m times each has one error.
    a, b = first["python"].value, second["python"].value
    difference = found[1, 0, 0] / a**2 + found[1, 1, 1] / b**2 - 2 * found[1, 0, 1] / (a * b)
    assert float(difference) == pytest.approx(0.0, abs=1e-9)


def test_more_items_share_less() -> None:
    # The second answered the first two of four. Nats: deviations (-1, 0, 1, 0) and (-1/2, 1/2):
    # product 1/2, lengths √2 and √½, so the errors √(2/3 / 4) and √(1/2 / 2) are correlated by 1/2.
    found = seen(scores([1, 0, 0, 0], [1.0, 2.0, 3.0, 2.0]), scores([1, 0], [1.0, 2.0])).Ycov
    assert found is not None
    nats = 0.5 * math.sqrt(2 / 3 / 4) * math.sqrt(1 / 2 / 2)
    assert float(found[1, 0, 1]) == pytest.approx(nats * math.exp(2 + 1.5), rel=1e-6)


def test_what_has_no_outcomes_is_independent() -> None:
    told = scores([1, 0, 0], [1.0, 2.0, 3.0])
    silent = {name: Measurement(m.value, m.se, m.n) for name, m in told.items()}
    found = seen(told, told, silent).Ycov
    assert found is not None
    assert (found[:2, :2, 2] == 0).all()
    assert (found[:2, 0, 1] > 0).all()


def test_orders_of_their_own_share_no_error() -> None:
    told = scores([1, 0, 0], [1.0, 2.0, 3.0])
    assert seen(told, told, order=7).Ycov is None


def test_nothing_is_computed_that_is_not_asked_for() -> None:
    told = scores([1, 0, 0], [1.0, 2.0, 3.0])
    assert seen(told, told, item_covariance=False).Ycov is None


def test_nothing_is_known_before_the_first_trial() -> None:
    assert seen().Ycov is None
