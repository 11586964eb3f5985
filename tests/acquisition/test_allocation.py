"""Who is scored on more items, by hand: halving's thirds, gains per cost, the front to confirm."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from contracts.strategy_contract import changed, observe, random_points
from tensors import rows
from torch import Tensor

from acquisition.allocation import Allocation, Plan
from acquisition.improvement import log_h
from acquisition.strategy import Observations, Proposal, open_strategy
from acquisition.surrogates import fit_surrogate


def partly(
    Y: Tensor, share: Sequence[float], growing: tuple[int, ...] = (), noise: float = 1e-4
) -> Observations:
    """Observations at random points with the given values and shares."""
    seen = observe(random_points(len(Y), 3), Y.shape[1])
    answered = torch.tensor(share, dtype=torch.float64)
    return changed(
        seen,
        Y=Y,
        Yvar=noise / answered.unsqueeze(-1).expand_as(Y),
        share=answered,
        growing=growing,
    )


def plan(allocation: Allocation, seen: Observations, q: int) -> Plan:
    return allocation.plan(open_strategy("mm_mo", {"initial": 0}), seen, q, seed=1)


def promoted(made: Plan) -> list[tuple[int, float]]:
    return [(p.row, round(p.share, 6)) for p in made.promotions]


def test_never_only_proposes() -> None:
    made = plan(Allocation(start=0.25), partly(random_points(6, 2), [0.25] * 6), 2)
    assert (promoted(made), len(made.proposal.X), made.share) == ([], 2, 0.25)


class TestHalving:
    # six trials on a line: the larger, the better in both objectives
    Y = rows(*[[v, v] for v in (0.1, 0.6, 0.3, 0.5, 0.2, 0.4)])
    halving = Allocation(start=0.1, promote="halving")

    def test_the_best_third_goes_on_to_three_times_the_share(self) -> None:
        made = plan(self.halving, partly(self.Y, [0.1] * 6), 4)
        assert promoted(made) == [(1, 0.3), (3, 0.3)]
        assert len(made.proposal.X) == 2

    def test_who_went_on_still_counts_and_is_not_sent_again(self) -> None:
        made = plan(self.halving, partly(self.Y, [0.1, 0.3, 0.1, 0.1, 0.1, 0.1]), 4)
        assert promoted(made) == [(3, 0.3)]

    def test_the_larger_share_comes_first_and_ends_at_all(self) -> None:
        share = [0.1, 0.9, 0.1, 0.9, 0.1, 0.9]
        made = plan(self.halving, partly(self.Y, share), 1)
        assert promoted(made) == [(1, 1.0)]

    def test_who_misses_a_constraint_comes_last(self) -> None:
        Y = self.Y.clone()
        Y[1], Y[3] = rows([0.9, -1.0], [0.8, -1.0])
        no_less_than_0 = (rows([0.0, 1.0]), rows([0.0])[0])
        seen = changed(partly(Y, [0.1] * 6), constraints=no_less_than_0)
        assert promoted(plan(self.halving, seen, 4)) == [(5, 0.3), (2, 0.3)]

    def test_who_is_growing_is_left_alone(self) -> None:
        made = plan(self.halving, partly(self.Y, [0.1] * 6, growing=(1, 3)), 4)
        assert promoted(made) == []


class Hopeless:
    """Proposes what nobody would try."""

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """The same corner, whatever was seen."""
        return Proposal(torch.full((q, 1), 0.01).double(), ({"origin": "acquisition"},) * q)


class TestGain:
    gain = Allocation(start=0.1, promote="gain")

    def test_the_initial_design_is_not_weighed(self) -> None:
        seen = partly(random_points(6, 2), [0.1] * 6)
        made = self.gain.plan(open_strategy("mm_mo", {"initial": 20}), seen, 3, seed=1)
        assert (promoted(made), len(made.proposal.X)) == ([], 3)

    def test_where_merging_is_dear_the_uncertain_best_is_scored_again(self) -> None:
        Y = rows([0.0, 0.0], [1.0, 1.0], [0.98, 0.98], [0.2, 0.1], [0.1, 0.2], [0.3, 0.3])
        seen = changed(partly(Y, [0.1] * 6, noise=0.02), merge_cost=1e6)
        made = plan(self.gain, seen, 1)
        # Where a merge is all that costs, more items of a point cost as much as a new one; what
        # they tell decides, and only the two that may be best tell anything.
        assert {row for row, _ in promoted(made)} <= {1, 2}

    def test_a_dominated_trial_is_never_promoted(self) -> None:
        Y = rows([0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.4, 0.4], [0.3, 0.3], [0.2, 0.2])
        seen = partly(Y, [0.1] * 6, noise=1e-8)
        assert {row for row, _ in promoted(plan(self.gain, seen, 3))} <= {1}

    def test_gain_is_what_moving_one_mean_adds_to_the_best(self) -> None:
        # One objective, a bowl seen at eleven points on a tenth of the items. A neighbour of the
        # best row lies b below it in mean; scoring it on s more moves its mean by a normal amount
        # of deviation m = σ²/√(σ² + v/s), and E[(its new mean − the best's)⁺] = m h(−b/m).
        X = torch.linspace(0, 1, 11, dtype=torch.float64).unsqueeze(-1)
        seen = changed(
            observe(X, m=1),
            Y=-4 * (X - 0.5).square(),
            Yvar=torch.full((11, 1), 0.05, dtype=torch.float64),
            share=torch.full((11,), 0.1, dtype=torch.float64),
            merge_cost=1e6,
        )
        (best,) = self.gain.plan(Hopeless(), seen, 1, seed=0).promotions
        scale = seen.Y.std()
        surrogate = fit_surrogate(seen.X, seen.Y, seen.Yvar, (None,), kind="concentrated")
        mean, variance = surrogate.processes[0].moments(X)
        behind = float(mean[5] - mean[4])
        v = 0.05 * 0.1 / float(scale) ** 2 / 0.2
        moved = float(variance[4]) / (float(variance[4]) + v) ** 0.5
        z = torch.tensor(-behind / moved, dtype=torch.float64)
        expected = moved * float(log_h(z).exp())
        assert best.row in (4, 6)  # both neighbours are alike
        assert round(best.share, 6) == 0.3
        assert best.diagnostics["gain_per_cost"] == pytest.approx(expected / 1e6, rel=1e-3)

    def test_with_nothing_new_to_try_the_best_still_grows(self) -> None:
        corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 2)
        seen = changed(
            observe(corners),
            share=torch.full((4,), 0.1, dtype=torch.float64),
            Yvar=torch.full((4, 2), 0.05, dtype=torch.float64),
            snap=torch.round,
        )
        made = plan(self.gain, seen, 2)
        assert len(made.proposal.X) == 0
        assert promoted(made)

    def test_what_is_believed_is_said_also_where_nothing_is_new(self) -> None:
        Y = rows([0.0, 0.0], [1.0, 1.0], [0.98, 0.98], [0.2, 0.1], [0.1, 0.2], [0.3, 0.3])
        made = plan(self.gain, changed(partly(Y, [0.1] * 6, noise=0.02), merge_cost=1e6), 1)
        assert made.proposal.summary["observations"] == 6
        assert len(made.proposal.X) + len(made.promotions) == 1

    def test_it_is_a_pure_function(self) -> None:
        seen = partly(random_points(8, 2), [0.1] * 8, noise=0.05)
        first, again = (plan(self.gain, seen, 2) for _ in range(2))
        assert torch.equal(first.proposal.X, again.proposal.X)
        assert first.promotions == again.promotions


class TestConfirm:
    Y = rows([0.0, 1.0], [1.0, 0.0], [0.7, 0.7], [0.1, 0.1], [0.2, 0.3])

    def test_the_front_most_valuable_first(self) -> None:
        rows_ = [p.row for p in Allocation().confirm(partly(self.Y, [0.1] * 5, noise=1e-9), 5)]
        assert sorted(rows_) == [0, 1, 2]
        assert rows_[0] == 2

    def test_at_most_count_and_none_twice(self) -> None:
        seen = partly(self.Y, [0.1, 0.1, 1.0, 0.1, 0.1], growing=(0,), noise=1e-9)
        assert [p.row for p in Allocation().confirm(seen, 3)] == [1]
        assert Allocation().confirm(seen, 1) == ()

    def test_only_what_is_feasible(self) -> None:
        limit = (rows([1.0, 0.0]), torch.tensor([0.5], dtype=torch.float64))
        seen = changed(partly(self.Y, [0.1] * 5, noise=1e-9), constraints=limit)
        assert sorted(p.row for p in Allocation().confirm(seen, 5)) == [1, 2]

    def test_nothing_measured_is_nothing_to_confirm(self) -> None:
        assert Allocation().confirm(observe(random_points(3, 2)[:0]), 5) == ()


@pytest.mark.parametrize(
    ("options", "named"),
    [({"start": 0.0}, "start: found 0.0"), ({"promote": "hyperband"}, "allowed: never, halving")],
)
def test_a_wrong_value_says_what_is_allowed(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Allocation(**options)
