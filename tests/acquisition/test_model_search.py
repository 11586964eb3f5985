"""The initial design, and what the search with a model reaches against Sobol."""

from __future__ import annotations

import warnings

import pytest
import torch
from botorch.utils.multi_objective.box_decompositions import DominatedPartitioning
from contracts.strategy_contract import bowls, changed, known_bowl, observe, random_points
from tensors import rows
from torch import Tensor

from acquisition.draft import Draft
from acquisition.space_filling import fill_initial_design, sobol_points
from acquisition.strategy import open_strategy


class TestInitialDesign:
    def test_anchors_in_order_then_the_sequence_at_its_trial_number(self) -> None:
        anchors = rows([0.0, 0.0], [1.0, 0.0], [1.0, 0.0])
        observations = changed(observe(random_points(0, 2)), anchors=anchors)
        draft = Draft(observations)
        fill_initial_design(draft, observations, 4, seed=11)
        assert torch.equal(draft.rows, torch.cat([anchors[:2], sobol_points(2, 2, 11, start=2)]))
        origins = [d["origin"] for d in draft.proposal().diagnostics]
        assert origins == ["anchor", "anchor", "sobol", "sobol"]

    def test_a_part_of_the_sequence_is_the_sequence(self) -> None:
        whole = sobol_points(3, 10, seed=2)
        assert torch.equal(sobol_points(3, 4, seed=2, start=5), whole[5:9])

    def test_snapped_neighbours_are_one_point(self) -> None:
        draft = Draft(observe(rows([0.5, 0.5])))
        assert not draft.offer(rows([0.5, 0.5 + 1e-10])[0], {"origin": "sobol"})
        assert draft.offer(rows([0.5, 0.5 + 1e-8])[0], {"origin": "sobol"})
        assert not draft.offer(rows([0.5, 0.5 + 1e-8])[0], {"origin": "sobol"})
        assert draft.position == 2

    def test_unanswered_are_pending_failed_and_own_rows(self) -> None:
        seen = observe(rows([0.1, 0.1]))
        seen = changed(seen, pending=rows([0.2, 0.2]), failed=rows([0.3, 0.3]))
        draft = Draft(seen)
        assert draft.offer(rows([0.4, 0.4])[0], {"origin": "sobol"})
        assert torch.equal(draft.unanswered, rows([0.2, 0.2], [0.3, 0.3], [0.4, 0.4]))
        assert draft.position == 4


class TestModelSearch:
    def test_a_failed_point_counts_like_a_pending_one(self) -> None:
        seen, strategy = observe(random_points(12, 2)), open_strategy("mm_mo", {})
        first = strategy.propose(seen, 1, seed=0).X
        failed, pending = (
            strategy.propose(changed(seen, **{kind: first}), 1, seed=0).X
            for kind in ("failed", "pending")
        )
        assert torch.equal(failed, pending)

    def test_without_scores_sobol_says_why(self) -> None:
        failed = random_points(10, 2)
        observations = changed(observe(failed[:0]), failed=failed)
        (said,) = open_strategy("mm_mo", {}).propose(observations, 1, seed=0).diagnostics
        assert said == {"origin": "sobol", "reason": "fewer than two scored trials"}

    def test_a_batch_across_the_border_has_both_parts(self) -> None:
        observations = observe(random_points(9, 2))
        said = open_strategy("mm_mo", {}).propose(observations, 3, seed=0).diagnostics
        assert [d["origin"] for d in said] == ["sobol", "acquisition", "acquisition"]

    def test_scores_that_break_the_arithmetic_fall_back_to_sobol(self) -> None:
        observations = observe(random_points(10, 2))
        huge = changed(observations, Y=observations.Y * 1e308 * 10)
        (said,) = open_strategy("mm_mo", {}).propose(huge, 1, seed=0).diagnostics
        assert said["origin"] == "sobol"
        assert said["reason"] == "InputDataError: scores overflow when standardised"

    def test_reference_crosses_and_selects_low_information(self) -> None:
        observations = observe(random_points(12, 2))
        kept = {}
        for rule in ("low", "high"):
            strategy = open_strategy("mm_mo", {"preset": "reference", "fisher": rule})
            said = strategy.propose(observations, 2, seed=1).diagnostics
            assert {d["origin"] for d in said} == {"weak_to_strong"}
            kept[rule] = [d["information"] for d in said]
        assert max(kept["low"]) <= min(kept["high"])
        assert kept["low"] == sorted(kept["low"])

    def test_local_slots_stay_near_the_front(self) -> None:
        # one point dominates all, so five more are elites: the local trial is near one of the six
        observations = observe(random_points(11, 2), m=1)
        strategy = open_strategy("mm_mo", {"local_slots": True})
        proposal = strategy.propose(observations, 2, seed=0)
        assert [d["origin"] for d in proposal.diagnostics] == ["local", "acquisition"]
        distance = (observations.X - proposal.X[0]).abs().amax(dim=-1)
        assert distance.min() <= 0.2 + 1e-12

    @pytest.mark.parametrize("options", [{}, {"preset": "reference"}])
    def test_units_do_not_matter_but_the_reference_is_in_them(
        self, options: dict[str, str]
    ) -> None:
        strategy, seen = open_strategy("mm_mo", options), observe(random_points(12, 2))
        r, A, b = rows([-0.3, -0.3])[0], rows([1.0, 0.0]), rows([-0.5])[0]
        small = changed(seen, reference=r, constraints=(A, b))
        # a power of two changes no mantissa, so the bits must agree
        big = changed(seen, Y=1024 * seen.Y, Yvar=1024**2 * seen.Yvar, constraints=(A, 1024 * b))
        same = strategy.propose(changed(big, reference=1024 * r), 1, seed=0).X
        mixed = strategy.propose(changed(big, reference=r), 1, seed=0).X
        expected = strategy.propose(small, 1, seed=0).X
        assert torch.equal(same, expected)
        assert not torch.equal(mixed, expected)

    def test_a_constraint_turns_the_search(self) -> None:
        # objective 1 is best at (0.8, 0.8) and must be near its best
        observations = observe(random_points(14, 2))
        demand = (rows([0.0, 1.0]), rows([-0.02])[0])
        strategy = open_strategy("qlognehvi", {})
        bound = strategy.propose(changed(observations, constraints=demand), 1, seed=0).X
        assert float(bowls(bound, 2)[0, 1]) >= -0.05


def hypervolume(X: Tensor) -> float:
    """Of two bowls in four dimensions over the reference (-1, -1)."""
    return float(
        DominatedPartitioning(
            ref_point=torch.full((2,), -1.0).double(), Y=bowls(X, 2)
        ).compute_hypervolume()
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_model_beats_sobol_at_25_evaluations(seed: int) -> None:
    reached = {}
    for name in ("sobol", "qlognehvi", "mm_mo"):
        strategy, X = open_strategy(name, {}), random_points(0, 4)
        while len(X) < 25:
            seen = changed(observe(X), known=(None, known_bowl(1)))
            X = torch.cat([X, strategy.propose(seen, 5, seed).X])
        reached[name] = hypervolume(X)
    assert reached["qlognehvi"] > 1.2 * reached["sobol"]
    assert reached["mm_mo"] > 1.2 * reached["sobol"]


def test_no_warning_reaches_the_caller() -> None:
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        open_strategy("mm_mo", {}).propose(observe(random_points(12, 3)), 2, seed=0)
    assert [w for w in raised if not issubclass(w.category, DeprecationWarning)] == []
