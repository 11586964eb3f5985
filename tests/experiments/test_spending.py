"""Items as what is spent: shares, promotions, confirmation, orders of items, labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from acquisition.allocation import Plan, Promotion
from acquisition.strategy import Observations, Proposal, Strategy
from experiments.sample_efficiency import study
from experiments.sample_efficiency.contestants import (
    Contestant,
    Fidelity,
    Order,
    Random,
    open_contestant,
)
from experiments.sample_efficiency.problems import open_problem
from experiments.sample_efficiency.spending import search
from experiments.sample_efficiency.study import Run

ITEMS = 100
RUN = Run("merge6", "x", 0, budget=4, items=ITEMS)


@dataclass(frozen=True)
class Third:
    """Begins with a fifth; promotes row 2 to 60 % from the second plan on; confirms rows 0, 1."""

    start: float = 0.2

    def plan(self, strategy: Strategy, observations: Observations, q: int, seed: int) -> Plan:
        rows = (Promotion(2, 0.6),) if observations.count else ()
        return Plan(strategy.propose(observations, q - len(rows), seed), self.start, rows)

    def confirm(self, observations: Observations, count: int) -> tuple[Promotion, ...]:
        assert observations.share is not None
        open_rows = [i for i in (0, 1) if i < observations.count and observations.share[i] < 1]
        return tuple(Promotion(i, 1.0) for i in open_rows[:count])


def third(**options: object) -> Contestant:
    return Contestant(Random(), 5, 5, Fidelity(Third(), **options))


def test_more_items_begin_with_the_same_items() -> None:
    for name in ("merge6", "zdt1", "digits"):
        problem = open_problem(name)
        x = torch.full((1, problem.dimension), 0.3).double()
        few, _ = problem.evaluate(x, np.random.default_rng(5), 40)
        many, variance = problem.evaluate(x, np.random.default_rng(5), 160)
        other, _ = problem.evaluate(x, np.random.default_rng(6), 40)
        assert not torch.equal(few, other)
        truth = problem.truth(x)
        if name == "merge6":  # right answers among the first 40 are no more than among all 160
            assert ((many * 160 - few * 40)[:, :2] >= 0).all()
            assert ((many * 160 - few * 40)[:, :2] <= 120).all()
        assert ((many - truth).abs() <= 5 * variance.sqrt() + 1e-12).all()


def test_what_is_spent_by_hand() -> None:
    found = search(RUN, open_problem("merge6"), third(confirm=2))
    # Two confirmations are 160 items. Of the other 240 five points take 100, row 2 gets 40 more,
    # four points 80. The 20 that are left pay one order: row 2 again, which has what it asks
    # for, so that nothing happens and exploring ends. Confirming is 2 · 80.
    spent = [0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 1.6, 1.8, 2.0, 2.2, 3.0, 3.8]
    assert [step.spent for step in found.steps] == pytest.approx(spent)
    assert found.share.tolist() == [1.0, 1.0, 0.6, *[0.2] * 6]
    sizes = [len(step.Y) for step in found.steps]
    assert sizes == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 9, 9]


def test_steps_keep_what_was_known_then() -> None:
    found = search(RUN, open_problem("merge6"), third(confirm=2))
    before, after = found.steps[4].Y, found.steps[5].Y
    assert torch.equal(before[[0, 1, 3, 4]], after[[0, 1, 3, 4]])
    assert not torch.equal(before[2], after[2])
    counts = (after * 60)[2, :2] - (before * 20)[2, :2]  # of the 40 items that came after
    assert torch.allclose(counts, counts.round(), atol=1e-9)
    assert ((counts >= -1e-9) & (counts <= 40 + 1e-9)).all()


def test_confirmed_points_have_the_scores_of_all_their_items() -> None:
    problem = open_problem("merge6")
    found = search(RUN, problem, third(confirm=2))
    rng = np.random.default_rng((0, 1_000_003, 1))
    Y, _ = problem.evaluate(found.X[[1]], rng, ITEMS)
    assert torch.equal(found.Y[1], Y[0])
    assert search(RUN, problem, third(confirm=0)).share[:2].tolist() == [0.2, 0.2]
    # Confirming five points would take all four evaluations: two thirds of them are kept, if the
    # points are on the front, and five points are as many as there are before that is known.
    explored = search(RUN, problem, third()).steps
    assert [step.spent for step in explored] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.8, 2.6])


def test_shared_and_own_orders() -> None:
    problem = open_problem("merge6")

    class Same:
        def propose(self, observations: Observations, q: int, seed: int) -> object:
            return type("Proposal", (), {"X": torch.full((q, 6), 0.4).double()})

    for order, same in (("shared", True), ("own", False)):
        found = search(RUN, problem, Contestant(Same(), 4, 4, Fidelity(order=order)))
        assert (found.Y[0] == found.Y[1]).all().item() is same
    with pytest.raises(ValueError, match="order: found 'mine', allowed: own, shared"):
        Fidelity(order="mine")


@pytest.mark.parametrize(("order", "known"), [("shared", True), ("own", False)])
def test_strategies_learn_which_errors_are_shared(order: Order, known: bool) -> None:
    class Listener(Random):
        last: Observations

        def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
            self.last = observations
            return super().propose(observations, q, seed)

    listener = Listener()
    search(RUN, open_problem("digits"), Contestant(listener, 2, 2, Fidelity(order=order)))
    seen = listener.last
    assert (seen.Ycov is not None) is known
    if seen.Ycov is not None:
        assert torch.allclose(seen.Ycov.diagonal(dim1=1, dim2=2).T, seen.Yvar)
        assert (seen.Ycov[:3, 0, 1] > 0).all()
        assert (seen.Ycov[3] == 0).all()


def test_a_full_share_is_a_number_of_evaluations() -> None:
    record = study.execute(Run("merge6", "random", 0, 12, items=50))
    assert record["spent"] == list(range(1, 13))
    assert record["points"] == 12
    assert record["confirmed"]["front_hypervolume"] == record["front_hypervolume"][-1]


def test_a_small_share_buys_more_points_at_more_noise() -> None:
    labels = ("random", "random@start=0.2,confirm=0")
    full, fifth = (study.execute(Run("merge6", label, 0, 12, items=50)) for label in labels)
    assert (full["points"], fifth["points"]) == (12, 60)
    assert fifth["spent"][-1] == 12
    assert all(a < b for a, b in pairwise(fifth["spent"]))
    assert fifth["hypervolume"][-1] > full["hypervolume"][-1]


def test_labels_with_items() -> None:
    label = "map:ridge=0.1@start=0.2,promote=halving,order=shared,confirm=3"
    contestant = open_contestant(label, 6, 30)
    fidelity = contestant.fidelity
    assert (fidelity.allocation.start, fidelity.allocation.promote) == (0.2, "halving")
    assert (fidelity.order, fidelity.confirm) == ("shared", 3)
    assert contestant.strategy.design == 100  # two thirds of 150 points
    assert contestant.strategy.ridge == 0.1
    plain = open_contestant("sobol", 6, 30).fidelity
    assert plain == Fidelity()
    assert plain.allocation.start == 1.0
    with pytest.raises(TypeError):
        open_contestant("sobol@colour=red", 6, 30)


def test_halving_with_a_confirmed_front() -> None:
    label = "random@start=0.1,promote=halving,confirm=3"
    found = search(replace(RUN, budget=8), open_problem("merge6"), open_contestant(label, 6, 8))
    assert 6.0 < found.steps[-1].spent <= 8.0 + 1e-9
    shares = sorted({round(s, 2) for s in found.share.tolist()})
    assert set(shares) <= {0.1, 0.3, 0.9, 1.0}
    assert {0.1, 0.3, 1.0} <= set(shares)
    assert len(found.X) > 20
    spent = found.share.sum().item()
    assert found.steps[-1].spent == pytest.approx(spent)  # no item was paid for twice
