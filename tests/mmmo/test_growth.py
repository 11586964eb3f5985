"""Trials that grow: what the events of a promotion make of them, and what a strategy sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from histories import Scribe, nll_of, right_of

from evaluators.benchmarks.benchmark import Score
from evaluators.worker import EvaluationResult, Failure
from mmmo.anchors import anchors
from mmmo.fidelity import merge_cost
from mmmo.history import History
from mmmo.observations import observations
from mmmo.records import completed, own_order, promoted, proposed
from mmmo.space import SearchSpace
from mmmo.views import status_document, status_lines, trial_table

START = {"search": {"items": {"start": 0.25, "promote": "halving"}}}


class Grower(Scribe):
    """Writes trials that begin with a quarter of the 40 items."""

    def begin(self, number: int, x: list[float], right: int, nll: float) -> None:
        recipe = self.space.decode(x)
        payload = proposed(x, recipe, {"origin": "sobol"}, 0.25, own_order(3, recipe.key))
        self.record(number, "proposed", payload)
        self.record(number, "started", {})
        self.record(number, "completed", self.measured(number, 10, right, nll, merge_s=1.0))

    def promote(self, number: int, share: float, confirms: bool = False) -> None:
        self.record(number, "promoted", promoted(share, {}, confirms))
        self.record(number, "started", {})

    def grow(self, number: int, n: int, new: int, right: int, nll: float) -> None:
        self.record(number, "grown", self.measured(number, n, right, nll, merge_s=3.0, new=new))

    def fail_growth(self, number: int, final: bool) -> None:
        failure = Failure("timeout", "no scores within 3 s")
        self.record(number, "failed", {**failure.__dict__, "final": final})

    def measured(
        self, number: int, n: int, right: int, nll: float, merge_s: float, new: int | None = None
    ) -> dict[str, Any]:
        scores = {"sums": first(n, right_of(40, right)), "python": first(n, nll_of(40, nll))}
        result = EvaluationResult(
            number,
            1,
            scores,
            {"delta_l1": 0.001},
            {"merge_s": merge_s, "sums_s": 0.5, "python_s": 0.5},
            "d" * 64,
            scored=2 * (n if new is None else new),
        )
        return completed(result)


def first(n: int, score: Score) -> Score:
    """The same value, said to come from n items."""
    return Score(score.value, score.standard_error, n, score.outcomes[:n], "search", 0.1)


@pytest.fixture
def written(tmp_path: Path) -> Grower:
    grower = Grower(tmp_path, changes=START)
    grower.begin(0, [0.1] * 6, 30, 1.0)
    grower.begin(1, [0.9] * 6, 20, 1.5)
    return grower


def seen(history: History, sizes: Mapping[str, int] | None = None) -> Any:
    trials = [history.trials[n] for n in sorted(history.trials)]
    space = SearchSpace(history.config)
    return observations(
        trials,
        history.objectives,
        history.config,
        space,
        (None,) * 3,
        [],
        sizes=sizes or {},
    )


def test_a_promoted_trial_keeps_its_scores_until_it_is_grown(written: Grower) -> None:
    written.promote(0, 0.5)
    now = written.history().trials[0]
    assert (now.state, now.share, now.wanted, now.scores["sums"].n) == ("completed", 0.25, 0.5, 10)
    assert now.growth is not None
    assert now.growth.state == "running"
    assert [t.number for t in written.history().open] == [0]
    written.grow(0, 20, 10, 32, 0.9)
    after = written.history().trials[0]
    assert (after.share, after.growth, after.attempts, after.merges) == (0.5, None, 2, 2)
    assert (after.scores["sums"].n, after.scored) == (20, 40)
    assert after.timings == {"merge_s": 4.0, "sums_s": 1.0, "python_s": 1.0}
    assert after.at == now.at
    assert after.order == own_order(3, after.key)
    assert not written.history().open


def test_work_is_done_in_the_order_in_which_it_was_ordered(written: Grower) -> None:
    written.propose(2, [0.5] * 6)
    written.promote(1, 0.5)
    written.promote(0, 0.5)
    assert [t.number for t in written.history().open] == [2, 1, 0]


def test_a_failure_that_may_pass_is_tried_again_and_one_that_may_not_is_final(
    written: Grower,
) -> None:
    written.promote(0, 1.0)
    written.fail_growth(0, final=False)
    now = written.history().trials[0]
    assert (now.is_open, now.tried, now.failures, now.failure) == (True, 1, 0, None)
    written.record(0, "started", {})
    written.fail_growth(0, final=True)
    now = written.history().trials[0]
    assert (now.is_open, now.tried, now.state, now.wanted) == (False, 2, "completed", 0.25)
    assert now.scores["sums"].value == 0.75
    assert now.document(written.history().objectives)["growth"]["failure"]["kind"] == "timeout"
    assert "25% → 100%: timeout" in trial_table([now], written.history())
    assert seen(written.history()).growing == (0,)


def test_a_worker_that_cannot_load_is_no_failure_of_the_trial(written: Grower) -> None:
    lost = {**Failure("loading_error", "no such folder").__dict__, "final": False}
    written.propose(2, [0.5] * 6)
    written.promote(0, 1.0)
    for number in (0, 2):
        written.record(number, "failed", lost)
        now = written.history().trials[number]
        assert (now.is_open, now.tried) == (True, 0)
    assert now.failure is not None
    assert now.failure["kind"] == "loading_error"


def test_observations_know_shares_and_who_is_growing(written: Grower) -> None:
    written.propose(2, [0.5] * 6)
    written.fail(3, [0.3] * 6, "timeout", "too slow")
    written.promote(1, 1.0)
    found = seen(written.history())
    assert found.share.tolist() == [0.25, 0.25]
    assert found.growing == (1,)
    assert (len(found.X), len(found.pending), len(found.failed)) == (2, 1, 1)
    written.grow(1, 40, 30, 25, 1.4)
    found = seen(written.history())
    assert found.share.tolist() == [0.25, 1.0]
    assert found.growing == ()
    assert found.Y[1].tolist() == [0.625, pytest.approx(-1.4, abs=1e-6), -0.001]


def test_what_a_merge_costs(written: Grower) -> None:
    sizes = {"sums": 40, "python": 40}
    # Merges took 1 s; a quarter of the items 1 s, so all of them 4 s.
    assert merge_cost(written.history().completed, sizes) == 0.25
    assert seen(written.history(), sizes).merge_cost == 0.25
    written.promote(0, 1.0)
    written.grow(0, 40, 30, 30, 1.0)
    # Now (1 + 3 + 1) / 3 s per merge, and (2 + 1) / (1 + 0.25) s: 0.69, nearest 2^-1.
    assert merge_cost(written.history().completed, sizes) == 0.5
    assert merge_cost([], sizes) == 0.0


def test_a_merge_costs_what_the_scored_items_say_however_small_their_share(
    written: Grower,
) -> None:
    trials = [replace(t, share=1e-320) for t in written.history().completed]
    assert merge_cost(trials, {"sums": 40, "python": 40}) == 0.25
    assert merge_cost(trials, {"sums": 40, "python": 360}) == 0.0625  # 1 s to 2 s and 18 s


def test_a_trial_of_before_there_were_shares_answered_all(tmp_path: Path) -> None:
    written = Scribe(tmp_path)
    written.complete(0, [0.1] * 6, 30, 1.0)
    payload = dict(written.store.events(written.name)[-1].payload)
    del payload["scored"]
    written.record(0, "completed", payload)
    trial = written.history().trials[0]
    assert (trial.share, trial.scored, trial.order) == (1.0, 80, None)
    assert seen(written.history()).share is None
    assert "items" not in trial_table([trial], written.history())


def test_the_front_is_of_all_until_it_is_confirmed(written: Grower) -> None:
    def front() -> list[int]:
        return [t.number for t in written.history().pareto.front]

    assert front() == [0]  # 30 right and nll 1 beat 20 right and nll 1.5
    written.promote(1, 1.0, confirms=True)
    assert front() == [0]  # none has answered all items yet
    written.grow(1, 40, 30, 21, 1.5)
    assert front() == [1]
    written.propose(2, [0.5] * 6)  # a larger budget: the search goes on
    assert front() == [0]
    written.record(None, "finished", {})
    assert front() == [1]


def test_anchors_are_not_compared_with_what_answered_more(written: Grower) -> None:
    (anchor, *_) = anchors(written.space).values()
    written.begin(2, list(anchor), 35, 0.5)
    alone = written.history().hypervolume_of_anchors
    assert alone == written.history().pareto.hypervolume([2]) > 0
    written.promote(1, 1.0, confirms=True)
    written.grow(1, 40, 30, 21, 1.5)
    assert written.history().hypervolume_of_anchors is None
    written.promote(2, 1.0, confirms=True)
    written.grow(2, 40, 30, 35, 0.5)
    assert written.history().hypervolume_of_anchors == written.history().pareto.hypervolume([2])


def test_status_tells_items_growth_and_gain(written: Grower) -> None:
    written.promote(1, 1.0)
    model = {"observations": 2, "objectives": [{"exact": True}] * 3}
    written.record(None, "modelled", model | {"gain": 0.5})
    written.record(None, "modelled", model | {"gain": 0.0123})
    history = written.history()
    assert [s["gain"] for s in history.summaries] == [0.5, 0.0123]
    line, *_ = status_lines(status_document(history))
    assert "2 completed of 12 (1 growing); " in line
    assert "; next gain 1.23%; " in line
    budget = {"budget": {"items": 500}, "pool": {}}
    written.record(None, "started_session", budget)
    line, *_ = status_lines(status_document(written.history()))
    assert "2 completed (1 growing), 40 of 500 items; " in line


def test_own_orders_differ_by_recipe_and_by_seed() -> None:
    assert own_order(3, "a") == own_order(3, "a")
    assert len({own_order(s, k) for s in (3, 4) for k in ("a", "b")}) == 4
    assert 0 <= own_order(3, "a") < 2**64
