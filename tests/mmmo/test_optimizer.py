"""The proposer that Ax drives: numbering, constraints, a space that runs out, promotions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from campaigns import campaign

from acquisition.allocation import Allocation, Plan, Promotion
from acquisition.strategy import Observations, Strategy
from mmmo.config import CampaignConfig, parse
from mmmo.errors import Problems
from mmmo.optimizer import Optimizer
from mmmo.records import Growth, Measurement, Objective, Trial
from mmmo.space import SearchSpace
from mmmo.strategies import refuse_unknown_importance

MATHS = Objective("maths", "sums", None, "exact_match", 1.0)
CODE = Objective("code", "python", None, "nll", -1.0)


def propose(
    objectives: tuple[Objective, ...], q: int, scored: int, **changes: Any
) -> list[tuple[float, ...]]:
    """Candidates after `scored` trials at Sobol points of the same campaign."""
    written = {o.name: {"benchmark": o.benchmark} for o in objectives}
    config = parse(campaign(objectives=written, **changes), Path("/nowhere"))
    space = SearchSpace(config)
    first = Optimizer(config, space, objectives).plan({}, scored).candidates if scored else ()
    trials = {
        n: Trial(
            number=n,
            key=str(n),
            x=c.x,
            recipe=space.decode(c.x),
            diagnostics=c.diagnostics,
            state="completed",
            scores={"sums": Measurement(c.x[0], 0.1, 40), "python": Measurement(2.0, 0.1, 40)},
        )
        for n, c in enumerate(first)
    }
    return [c.x for c in Optimizer(config, space, objectives).plan(trials, q).candidates]


@pytest.mark.parametrize(
    ("objectives", "constraints"),
    [
        ((MATHS,), ["maths >= 0.2"]),
        ((MATHS, CODE), ["maths >= 0.2", "maths >= 0.3", "code <= 3"]),
    ],
)
def test_constraints_that_ax_would_refuse(
    objectives: tuple[Objective, ...], constraints: list[str]
) -> None:
    assert len(propose(objectives, 2, 4, constraints=constraints, search={"initial": 3})) == 2


def test_a_rebuilt_optimizer_proposes_the_same() -> None:
    first, second = (propose((MATHS, CODE), 3, 5, search={"initial": 4}) for _ in range(2))
    assert first == second


def test_a_space_that_runs_out_gives_fewer() -> None:
    merge = {"method": "task_arithmetic", "weight": {"choice": [0.0, 1.0]}}
    rows = propose((MATHS, CODE), 20, 0, merge=merge, search={"strategy": "sobol"})
    assert len(set(rows)) == len(rows) == 8


def test_importance_that_cannot_be_known_is_refused_by_name() -> None:
    search = {"strategy": "mm_mo", "options": {"importance": True}}
    merge = {"method": "tsv_m", "weight": {"range": [0, 1]}}
    sampled, whole = (
        parse(campaign(search=search, **changes), Path("/nowhere"))
        for changes in ({}, {"merge": merge})
    )
    refuse_unknown_importance(sampled.search, SearchSpace(sampled))
    with pytest.raises(Problems, match="importance: found true, allowed: false; tsv_m cannot"):
        refuse_unknown_importance(whole.search, SearchSpace(whole))


@pytest.mark.parametrize(
    ("search", "asked"),
    [
        ({"strategy": "mm_mo"}, False),
        ({"strategy": "mm_mo", "options": {"item_covariance": True}}, True),
        ({"options": {"item_covariance": True, "measured_noise": False}}, False),
        ({"strategy": "sobol"}, False),
    ],
)
def test_covariances_are_for_strategies_that_use_them(search: dict[str, Any], asked: bool) -> None:
    written = {o.name: {"benchmark": o.benchmark} for o in (MATHS, CODE)}
    config = parse(campaign(objectives=written, search=search), Path("/nowhere"))
    space = SearchSpace(config)
    optimizer = Optimizer(config, space, (MATHS, CODE))
    observed = optimizer._observe(begun(config, space, 3))
    assert len(observed.X) == 2
    assert (observed.Ycov is not None) is asked


class Doubling(Allocation):
    """Doubles the share of the first two rows that may grow."""

    def plan(self, strategy: Strategy, observations: Observations, q: int, seed: int) -> Plan:
        share = observations.share
        assert share is not None
        rows = [r for r in range(len(share)) if share[r] < 1 and r not in observations.growing][:2]
        promoted = tuple(Promotion(r, min(1.0, 2 * float(share[r])), {"why": r}) for r in rows)
        return Plan(strategy.propose(observations, q - len(rows), seed), self.start, promoted)


def begun(config: CampaignConfig, space: SearchSpace, n: int) -> dict[int, Trial]:
    """Trials on a quarter of the items; the second failed."""
    first = Optimizer(config, space, (MATHS, CODE)).plan({}, n).candidates
    return {
        k: Trial(
            number=k,
            key=str(k),
            x=c.x,
            recipe=space.decode(c.x),
            diagnostics=c.diagnostics,
            state="failed" if k == 1 else "completed",
            scores={"sums": Measurement(c.x[0], 0.1, 10), "python": Measurement(2.0, 0.1, 10)},
            share=0.25,
        )
        for k, c in enumerate(first)
    }


@pytest.fixture
def partial() -> tuple[CampaignConfig, SearchSpace]:
    written = {o.name: {"benchmark": o.benchmark} for o in (MATHS, CODE)}
    search = {"strategy": "sobol", "items": {"start": 0.25}}
    config = parse(campaign(objectives=written, search=search), Path("/nowhere"))
    return config, SearchSpace(config)


def test_promotions_of_rows_are_promotions_of_completed_trials(
    partial: tuple[CampaignConfig, SearchSpace],
) -> None:
    config, space = partial
    trials = begun(config, space, 4)
    trials[0] = replace(trials[0], growth=Growth(1.0))
    optimizer = Optimizer(config, space, (MATHS, CODE), allocation=Doubling(start=0.25))
    orders = optimizer.plan(trials, 3)
    assert [(p.number, p.share, p.diagnostics) for p in orders.promoted] == [
        (2, 0.5, {"why": 1}),  # row 0 is trial 0, which grows; trial 1 failed and is no row
        (3, 0.5, {"why": 2}),
    ]
    assert (len(orders.candidates), orders.share) == (1, 0.25)


def test_what_is_not_affordable_is_left_out_and_numbering_goes_on(
    partial: tuple[CampaignConfig, SearchSpace],
) -> None:
    config, space = partial
    trials = begun(config, space, 4)
    optimizer = Optimizer(config, space, (MATHS, CODE), allocation=Doubling(start=0.25))
    orders = optimizer.plan(trials, 6, lambda promoted, _: (promoted[:1], 2))
    assert (len(orders.promoted), len(orders.candidates)) == (1, 2)
    trials |= {n: replace(trials[0], number=n, x=c.x) for n, c in enumerate(orders.candidates, 4)}
    again = optimizer.plan(trials, 2)
    assert len(again.promoted) == 2


def test_new_trials_take_the_place_of_promotions_that_are_too_dear(
    partial: tuple[CampaignConfig, SearchSpace],
) -> None:
    config, space = partial
    optimizer = Optimizer(config, space, (MATHS, CODE), allocation=Doubling(start=0.25))
    orders = optimizer.plan(begun(config, space, 4), 2, lambda _, q: ((), min(q, 1)))
    assert (len(orders.promoted), len(orders.candidates)) == (0, 1)


def test_ax_knows_the_scores_of_all_items_answered(
    partial: tuple[CampaignConfig, SearchSpace],
) -> None:
    config, space = partial
    trials = begun(config, space, 3)
    optimizer = Optimizer(config, space, (MATHS, CODE), allocation=Doubling(start=0.25))
    optimizer.plan(trials, 2)
    grown = {"sums": Measurement(0.75, 0.05, 20), "python": Measurement(1.5, 0.05, 20)}
    trials[2] = replace(trials[2], share=0.5, scores=grown)
    optimizer.plan(trials, 2)
    optimizer.plan(trials, 2)
    data = optimizer._client._experiment.lookup_data().df
    (row,) = data[(data.trial_index == 2) & (data.metric_name == "o0_maths")].to_dict("records")
    assert (row["mean"], row["sem"]) == (0.75, 0.05)
    (row,) = data[(data.trial_index == 0) & (data.metric_name == "o0_maths")].to_dict("records")
    assert (row["mean"], row["sem"]) == (trials[0].x[0], 0.1)
