"""Each switch of MM-MO on a problem whose answer is known; parts are tested by hand elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.strategy_contract import CENTRES, changed, known_bowl, observe, random_points
from tensors import column
from torch import Tensor

from acquisition.strategy import Observations, open_strategy


def proposed(observations: Observations, **options: Any) -> Tensor:
    """The first point that the model proposes."""
    return open_strategy("mm_mo", {"initial": 0, **options}).propose(observations, 1, seed=0).X[0]


class TestMeasuredNoise:
    # A peak at 0.3, and one lucky score at 0.9 whose standard error is as large as itself.
    X = column(0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0).unsqueeze(-1)
    Y = torch.where(X == 0.9, 1.0, -4 * (X - 0.3).square())
    Yvar = torch.where(X == 0.9, 1.0, 1e-4)
    seen = changed(observe(X, m=1), Y=Y, Yvar=Yvar)

    def test_with_it_the_lucky_score_is_not_chased(self) -> None:
        assert float(proposed(self.seen, surrogate="gp", measured_noise=True)) < 0.5

    def test_without_it_the_search_goes_there(self) -> None:
        x = proposed(self.seen, surrogate="gp", measured_noise=False)
        assert float(x) == pytest.approx(0.9, abs=0.15)


class TestItemCovariance:
    # A peak at 0.3; every score has the same error, nearly as large as the values differ.
    X = column(0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0).unsqueeze(-1)
    truth = -4 * (X - 0.3).square()
    Yvar = torch.full((8, 1), 0.8).double()
    Ycov = (0.8 * (0.9999 + 1e-4 * torch.eye(8).double())).unsqueeze(0)
    seen = changed(observe(X, m=1), Y=truth, Yvar=Yvar, Ycov=Ycov)

    def r2(self, **options: Any) -> float:
        strategy = open_strategy("mm_mo", {"initial": 0, **options})
        (told,) = strategy.propose(self.seen, 1, seed=0).summary["objectives"]
        return float(told["r2"])

    def test_with_it_an_error_that_all_share_hides_nothing(self) -> None:
        assert self.r2(item_covariance=True) > 0.9
        assert float(proposed(self.seen, item_covariance=True)) == pytest.approx(0.3, abs=0.1)

    def test_without_it_the_scores_are_noise(self) -> None:
        assert self.r2(item_covariance=False) < 0.7

    def test_without_measured_noise_it_is_not_used(self) -> None:
        one, other = (
            proposed(self.seen, measured_noise=False, item_covariance=c) for c in (True, False)
        )
        assert torch.equal(one, other)


class TestExactKnown:
    # The only objective is known, its best is at (0.2, 0.2); all that was seen is far away.
    seen = changed(observe(0.6 + 0.4 * random_points(6, 2), m=1), known=(known_bowl(0),))

    def test_with_it_the_best_is_proposed_at_once(self) -> None:
        assert torch.allclose(proposed(self.seen, exact_known=True), CENTRES[:1], atol=0.02)

    def test_without_it_it_must_be_learnt(self) -> None:
        assert not torch.allclose(proposed(self.seen, exact_known=False), CENTRES[:1], atol=0.02)


@pytest.mark.parametrize(
    ("surrogate", "within"),
    [("quadratic", 0.03), ("concentrated", 0.15), ("gp", 0.15)],
)
def test_a_bowl_is_understood_from_ten_points(surrogate: str, within: float) -> None:
    seen = observe(random_points(10, 2), m=1)
    x = proposed(seen, surrogate=surrogate, weak_to_strong="off")
    assert torch.allclose(x, CENTRES[:1].expand(2), atol=within)


@pytest.mark.parametrize(
    ("trials", "d", "alone"), [(29, 2, False), (30, 2, True), (34, 7, False), (35, 7, True)]
)
def test_mixed_trusts_one_surrogate_from_thirty_trials_and_five_per_coordinate(
    trials: int, d: int, alone: bool
) -> None:
    seen = observe(random_points(trials, d), m=1)
    both, first = (proposed(seen, surrogate=s) for s in ("mixed", "concentrated"))
    assert torch.allclose(both, CENTRES[:1].expand(d), atol=0.15)
    assert torch.equal(both, first) == alone


def test_a_link_keeps_accuracies_inside_their_bounds() -> None:
    # An accuracy that saturates at 1 over the right half: without a link the process overshoots.
    X = torch.linspace(0, 1, 9, dtype=torch.float64).unsqueeze(-1)
    Y = (12 * (X - 0.4)).sigmoid()
    seen = changed(observe(X, m=1), Y=Y, Yvar=torch.full_like(Y, 1e-5))
    gains = {
        link: open_strategy("mm_mo", {"initial": 0, "link": link})
        .propose(seen, 1, seed=0)
        .summary["gain"]
        for link in ("off", "logit")
    }
    # What is left to gain is at most 1 minus the best seen.
    assert gains["logit"] < gains["off"]


def test_importance_says_which_coordinates_to_move() -> None:
    # Seen only along the diagonal, the data cannot tell which of the two coordinates matters.
    X = torch.linspace(0.05, 0.95, 8, dtype=torch.float64).unsqueeze(-1).expand(8, 2)
    seen = changed(
        observe(X, m=1), Y=-(X[:, :1] - 0.5).square(), Yvar=torch.full((8, 1), 1e-6).double()
    )
    for matters in (0, 1):
        told = torch.full((2,), 0.02, dtype=torch.float64)
        told[matters] = 1.98
        strategy = open_strategy("mm_mo", {"initial": 0, "importance": True})
        (objective,) = strategy.propose(changed(seen, importance=told), 1, seed=0).summary[
            "objectives"
        ]
        assert objective["importance"][f"x{matters}"] > 0.6
    ignored = open_strategy("mm_mo", {"initial": 0, "importance": False})
    assert torch.equal(
        ignored.propose(changed(seen, importance=told), 1, seed=0).X,
        ignored.propose(seen, 1, seed=0).X,
    )


def test_initial_is_how_many_trials_come_before_the_model() -> None:
    strategy = open_strategy("mm_mo", {"initial": 4})
    origins = [
        d["origin"] for d in strategy.propose(observe(random_points(3, 2)), 2, seed=0).diagnostics
    ]
    assert origins == ["sobol", "acquisition"]


class TestSummary:
    def test_gain_is_what_the_best_candidate_adds_to_the_hypervolume(self) -> None:
        # Known exactly: -(x - 0.2)² seen at 0.5 with reference -0.25: volume 0.16; 0.09 is left.
        seen = changed(
            observe(column(0.5, 0.6).unsqueeze(-1), m=1),
            known=(known_bowl(0),),
            reference=torch.tensor([-0.25], dtype=torch.float64),
        )
        made = open_strategy("mm_mo", {"initial": 0}).propose(seen, 1, seed=0)
        assert made.summary["gain"] == pytest.approx(0.09 / 0.16, rel=1e-3)
        assert made.summary["objectives"] == [{"exact": True}]

    def test_there_is_none_before_there_is_a_model(self) -> None:
        assert (
            open_strategy("mm_mo", {}).propose(observe(random_points(3, 2)), 1, seed=0).summary
            == {}
        )
