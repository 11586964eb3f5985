"""When a search ends, and what a campaign shows of items while it runs."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from histories import Scribe
from rich.console import Console

from evaluators.worker import Failure
from mmmo.limits import Limits
from mmmo.optimizer import PromotedTrial
from mmmo.progress import ProgressDisplay
from mmmo.records import promoted, proposed

Open = Callable[..., Scribe]


@pytest.fixture
def scribe(tmp_path: Path) -> Open:
    def opened(budget: dict[str, Any], **items: Any) -> Scribe:
        search = {"initial": 3, "batch": 2, "items": items}
        return Scribe(tmp_path, changes={"budget": budget, "search": search})

    return opened


def limits(written: Scribe) -> Limits:
    return Limits(written.config, written.history())


def begin(written: Scribe, number: int, share: float = 1.0) -> None:
    x = [0.1 + 0.01 * number] * 6
    payload = proposed(x, written.space.decode(x), {"origin": "sobol"}, share)
    written.record(number, "proposed", payload)


def test_trials_are_counted_when_they_are_proposed(scribe: Open) -> None:
    written = scribe({"trials": 4})
    assert limits(written).orders() == 3
    for number in range(3):
        begin(written, number)
    assert (limits(written).orders(), limits(written).spent) == (1, False)
    begin(written, 3)
    assert limits(written).spent
    assert not limits(written).late


def test_items_end_the_search_when_no_trial_is_left_beside_the_reserve(scribe: Open) -> None:
    # A trial begins on 10 + 10 items. Trial 1 dominates trial 0, the next ones trade with it: after
    # three trials two are on the front, which lack 120; 240 - 60 - 120 pay three more trials.
    written = scribe({"items": 240}, start=0.25, confirm=2)
    for number, (right, nll) in enumerate([(5, 3.0), (6, 2.0), (7, 2.5)]):
        written.complete(number, [0.1 + 0.01 * number] * 6, right, nll, share=0.25)
    begin(written, 3, 0.25)
    found = limits(written)
    assert (found.spent, found.orders()) == (False, 2)
    assert found.of_the_search((), 9) == ((), 2)
    more = PromotedTrial(0, 0.5, {})  # 20 items more
    assert found.of_the_search((more,), 9) == ((more,), 1)
    most = PromotedTrial(0, 1.0, {})  # 60: what is left, but not beside the reserve
    assert found.of_the_search((most,), 9) == ((), 2)
    assert found.of_all((most,)) == (most,)
    begin(written, 4, 0.25)
    assert not limits(written).spent
    begin(written, 5, 0.25)
    assert limits(written).spent


def test_a_front_that_shrinks_sets_items_free(scribe: Open) -> None:
    written = scribe({"items": 160}, start=0.25, confirm=9)
    written.complete(0, [0.1] * 6, 5, 2.0, share=0.25)
    written.complete(1, [0.11] * 6, 6, 3.0, share=0.25)
    assert limits(written).spent  # 40 are scored, two thirds of 160 are kept: 14 are left
    written.complete(2, [0.12] * 6, 7, 1.0, share=0.25)  # alone on the front, it lacks 60
    found = limits(written)
    assert not found.spent
    assert found.of_the_search((), 9) == ((), 2)


def test_two_poor_proposals_in_a_row_end_the_search(scribe: Open) -> None:
    written = scribe({"stop_when_gain_below": 0.01})
    for gain, ends in ((0.005, False), (0.02, False), (0.009, False), (None, False)):
        written.record(None, "modelled", {"gain": gain})
        assert limits(written).spent is ends
    for gain, ends in ((0.009, False), (0.0, True), (0.01, False)):
        written.record(None, "modelled", {"gain": gain})
        assert limits(written).spent is ends
    assert Limits(written.config, written.history()).orders() == 3


def test_hours_end_the_search_in_time_to_confirm(scribe: Open) -> None:
    hour = {"hours": 1.0}
    written = scribe(hour, start=0.25, confirm=2)
    began = written.history()
    assert not limits(written).spent
    began._sessions[:] = [[0.0, 3599.0]]
    assert not Limits(written.config, began).spent  # nothing is known of what confirming takes
    # 0.02 s to merge, 0.5 s for a quarter of the items; both are on the front
    written.complete(0, [0.1] * 6, 8, 1.0, share=0.25)
    written.complete(1, [0.2] * 6, 9, 1.5, share=0.25)
    began.update()
    began._sessions[:] = [[0.0, 3600 - 2 * (0.02 + 3 * 0.5) - 0.01]]
    assert not Limits(written.config, began).spent
    began._sessions[0][1] += 0.02
    assert Limits(written.config, began).spent
    assert not Limits(written.config, began).late
    began._sessions[0][1] = 3600.0
    assert Limits(written.config, began).late


def test_progress_tells_of_growth(scribe: Open) -> None:
    written = scribe({"items": 400}, start=0.5, promote="halving")
    said = io.StringIO()
    display = ProgressDisplay(Console(file=said, width=200))
    display(written.history())
    begin(written, 0, 0.5)
    written.record(0, "started", {})
    display(written.history())
    assert said.getvalue() == ""
    written.complete(1, [0.9] * 6, 20, 1.5)
    payload = written.store.events(written.name)[-1].payload
    written.record(0, "completed", payload)
    display(written.history())
    written.record(0, "promoted", promoted(1.0, {}))
    written.record(0, "started", {})
    display(written.history())
    failure = asdict(Failure("timeout", "too slow"))
    written.record(0, "failed", {**failure, "final": False})
    display(written.history())
    written.record(0, "started", {})
    written.record(0, "failed", {**asdict(Failure("loading_error", "gone")), "final": False})
    display(written.history())
    written.record(0, "grown", payload)
    display(written.history())
    lines = [line.split("  hypervolume")[0] for line in said.getvalue().splitlines()]
    assert lines == [
        "trial   0  50% of the items  maths 0.5  code 1.5  sparsity 0.001",
        "trial   1  maths 0.5  code 1.5  sparsity 0.001",
        "trial   0  on more items, will be tried again: timeout: too slow",
        "trial   0  on more items, will be tried again: loading_error: gone",
        "trial   0  maths 0.5  code 1.5  sparsity 0.001",
    ]
