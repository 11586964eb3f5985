"""Shares of the items, what they cost, and what a budget has left; all by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from campaigns import campaign
from hypothesis import given
from hypothesis import strategies as st

from mmmo.config import parse
from mmmo.fidelity import FEWEST, Fidelity
from mmmo.optimizer import PromotedTrial
from mmmo.records import Growth, Measurement, Trial
from mmmo.space import SearchSpace

SIZES = {"sums": 40, "python": 25}


def fidelity(**sections: Any) -> Fidelity:
    search = {"items": {"start": 0.1, "confirm": 3}}
    return Fidelity(parse(campaign(**({"search": search} | sections)), Path("/nowhere")), SIZES)


def trial(number: int, sums: int, python: int, **changes: Any) -> Trial:
    scores = {"sums": Measurement(0.5, 0.1, sums), "python": Measurement(2.0, 0.1, python)}
    recipe = SearchSpace(parse(campaign(), Path("/nowhere"))).decode([0.5] * 6)
    return Trial(
        number,
        recipe.key,
        (0.5,) * 6,
        recipe,
        {},
        **{"state": "completed", "scores": scores, "scored": sums + python, "merges": 1} | changes,
    )


def test_counts_are_rounded_up() -> None:
    assert fidelity().counts(0.1) == {"sums": 4, "python": 3}
    assert fidelity().counts(0.001) == dict.fromkeys(SIZES, FEWEST)
    assert fidelity().counts(1.0) == SIZES
    assert Fidelity(fidelity().config, {"tiny": 1}).counts(0.5) == {"tiny": 1}


@given(n=st.integers(FEWEST, 10_000), k=st.integers(FEWEST, 10_000))
def test_a_share_of_k_items_is_k_items(n: int, k: int) -> None:
    k = min(k, n)
    assert Fidelity(fidelity().config, {"any": n}).counts(k / n) == {"any": k}


@given(n=st.integers(1, 1000), shares=st.tuples(*[st.floats(1e-6, 1)] * 2))
def test_a_larger_share_is_no_fewer_items(n: int, shares: tuple[float, float]) -> None:
    less, more = (Fidelity(fidelity().config, {"any": n}).items(s) for s in sorted(shares))
    assert 1 <= less <= more <= n


def test_the_reserve_is_what_the_front_lacks_but_at_most_two_thirds() -> None:
    # Three of 65 items lack 58, 32 and 58; the fourth lacks nothing, and three are confirmed.
    front = [trial(0, 4, 3), trial(1, 20, 13), trial(2, 4, 3), trial(3, 40, 25)]
    assert (fidelity().start, fidelity().items(1.0)) == (7, 65)
    assert fidelity(budget={"items": 1000}).reserve(front) == 58 + 58 + 32
    assert fidelity(budget={"items": 1000}).reserve(front[1:]) == 58 + 32
    assert fidelity(budget={"items": 201}).reserve(front) == 134
    assert fidelity(budget={"items": 1000}).reserve([]) == 0
    assert fidelity(budget={"items": 10**400}).reserve(front) == 58 + 58 + 32
    growing = trial(4, 4, 3, share=0.1, growth=Growth(0.5))  # to 20 + 13, which are ordered
    stuck = trial(5, 4, 3, share=0.1, growth=Growth(0.5, "failed"))
    assert fidelity(budget={"items": 1000}).reserve([growing, stuck]) == 65 - 33
    assert fidelity(budget={"items": 1000}, search={"items": {"confirm": 1}}).reserve(front) == 58


def test_left_is_neither_scored_nor_ordered() -> None:
    counted = fidelity(budget={"items": 200})
    done = trial(0, 4, 3, share=0.1)
    growing = trial(1, 4, 3, share=0.1, growth=Growth(0.5))  # to 20 + 13: 26 are ordered
    proposed = trial(2, 0, 0, share=0.1, state="proposed", scores={})  # 7 are ordered
    failed = trial(3, 4, 3, share=0.1, growth=Growth(0.5, "failed"))
    twin = trial(4, 4, 3, share=0.1, scored=0, answered_by=0)
    lost = trial(5, 0, 0, share=0.1, state="failed", scores={})
    assert counted.left([done]) == 193
    assert counted.left([done, growing]) == 193 - 33
    assert counted.left([done, proposed]) == 186
    assert counted.left([failed]) == 193
    assert counted.left([twin]) == 200
    assert counted.left([lost]) == 193  # or a campaign of failures would never end
    assert fidelity().left([done]) == math.inf


def test_promotions_that_the_rest_does_not_pay_are_left_out() -> None:
    trials = {0: trial(0, 4, 3), 1: trial(1, 20, 13), 2: trial(2, 4, 3)}
    wanted = (PromotedTrial(0, 1.0, {}), PromotedTrial(1, 1.0, {}), PromotedTrial(2, 0.5, {}))
    # They cost 58, 32 and 26.
    assert fidelity().affordable(wanted, trials, 57) == ((wanted[1],), 25)
    assert fidelity().affordable(wanted, trials, 90) == (wanted[:2], 0)
    assert fidelity().affordable(wanted, trials, math.inf) == (wanted, math.inf)


def test_time_to_confirm_at_the_pace_so_far() -> None:
    seconds = {"load_s": 9.0, "merge_s": 1.0, "sums_s": 1.5, "python_s": 0.5}
    # 1.5 s for 4 of 40 sums, 0.5 s for 2 of 25 programs: 13.5 s and 5.75 s for the others.
    seen = [trial(0, 4, 2, share=0.1, timings=seconds)]
    one_hour = fidelity(budget={"hours": 1})
    assert one_hour.reserve_seconds(seen, seen) == pytest.approx(1 + 19.25)
    assert one_hour.reserve_seconds(seen, seen * 4) == pytest.approx(3 * (1 + 19.25))
    tiny = [trial(0, 4, 2, share=1e-320, timings=seconds)]  # however small the share that was asked
    assert one_hour.reserve_seconds(tiny, tiny) == pytest.approx(1 + 19.25)
    assert one_hour.reserve_seconds(seen, []) == 0
    assert one_hour.reserve_seconds([], []) == 0
    full = trial(1, 40, 25, share=1.0, timings=seconds)
    assert one_hour.reserve_seconds(seen, [full]) == 0
    stuck = trial(2, 4, 3, share=0.1, timings=seconds, growth=Growth(0.5, "failed"))
    assert one_hour.reserve_seconds(seen, [stuck]) == 0
    assert fidelity(budget={"hours": 0.003}).reserve_seconds(seen, seen) == pytest.approx(7.2)
