"""Held-out scores: intervals, references, and the last word of the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from histories import Scribe, nll_of, right_of

from evaluators.benchmarks.statistics import pack
from mmmo.held_out import held_out_scores, interval, references, trial_timeout_s
from mmmo.records import Measurement, stored_score


def test_a_proportion_has_wilsons_interval() -> None:
    # 1 of 10 by hand: z^2 = 3.8415; centre (0.1 + 0.19207) / 1.38415 = 0.21101,
    # half width 1.96 / 1.38415 * sqrt(0.009 + 0.0096036) = 0.19313.
    outcomes = pack(np.array([1.0] + [0.0] * 9, dtype=np.float32))
    low, high = interval(Measurement(0.1, 0.1, 10, outcomes=outcomes))
    assert (low, high) == (pytest.approx(0.01788, abs=1e-4), pytest.approx(0.40415, abs=1e-4))


def test_other_scores_have_a_normal_interval() -> None:
    outcomes = pack(np.array([1.5, 2.5], dtype=np.float32))
    expected = (pytest.approx(1.02002, abs=1e-5), pytest.approx(2.97998, abs=1e-5))
    assert interval(Measurement(2.0, 0.5, 2, outcomes=outcomes)) == expected
    assert interval(Measurement(2.0, 0.5, 2)) == expected


def test_a_value_that_is_no_share_of_its_outcomes_is_no_proportion() -> None:
    outcomes = pack(np.array([0.0, 1.0], dtype=np.float32))
    _, high = interval(Measurement(1.6487, 1.0, 2, outcomes=outcomes))  # e to their mean
    assert high > 3


def test_references_are_the_sources_alone(tmp_path: Path) -> None:
    found = references(Scribe(tmp_path).history())
    weights = {
        name: [recipe.parameters[e]["weight"] for e in recipe.experts]
        for name, recipe in found.items()
    }
    assert weights == {
        "base": [0, 0, 0],
        "expert maths": [1, 0, 0],
        "expert code": [0, 1, 0],
        "expert spanish": [0, 0, 1],
    }
    assert {r.method for r in found.values()} == {"task_arithmetic"}


def test_the_last_word_counts(tmp_path: Path) -> None:
    written = Scribe(tmp_path)
    key = written.complete(0, [0.5] * 6, 10, 1.0)
    failure = {"kind": "timeout", "message": "too slow", "detail": ""}
    written.record(None, "held_out", {"key": key, "scores": {}, "failure": failure})
    assert held_out_scores(written.history())[key].failure == failure
    scores = {"sums": stored_score(right_of(40, 20)), "python": stored_score(nll_of(40, 1.5))}
    written.record(None, "held_out", {"key": key, "scores": scores, "failure": None})
    found = held_out_scores(written.history())[key]
    assert found.failure is None
    assert (found.scores["sums"].value, found.scores["sums"].n) == (0.5, 40)
    assert found.document()["scores"]["sums"]["interval_95"] == pytest.approx(
        [0.3520, 0.6480], abs=1e-4
    )


@pytest.mark.parametrize(
    ("sums", "python", "limit"),
    [((40, 40), (40, 10), 60.0), ((40, 100), (10, 50), 300.0), ((400, 0), (10, 15), 90.0)],
)
def test_more_items_have_more_time(
    tmp_path: Path, sums: tuple[int, int], python: tuple[int, int], limit: float
) -> None:
    written = Scribe(tmp_path, ("maths", "code"), {"pool": {"trial_timeout_s": 60}})
    facts = written.history().facts
    items = {
        name: {"search": search, "held_out": held_out}
        for name, (search, held_out) in {"sums": sums, "python": python}.items()
    }
    written.record(None, "created", replace(facts, items=items).document())
    assert trial_timeout_s(written.history()) == limit
