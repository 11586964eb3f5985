"""Acceptance: trials begin on few items, grow, and are confirmed; nothing is scored twice, nor lost
when the campaign is killed.
"""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from terminals import Terminal, repeatable, wait_until

from evaluators.benchmarks.benchmark import Outcomes, order_of
from evaluators.benchmarks.statistics import proportion, unpack
from mmmo.records import Trial
from mmmo.store import Event

VIEWS = ("upright", "rotated", "mirrored")
SIZE = 399
"""Search items of each view."""

BUDGET = 7000
START = {"start": 0.1, "promote": "halving", "confirm": 3}
SHAPE = {"initial": 6, "batch": 4}

CAMPAIGNS: dict[str, dict[str, Any]] = {
    "own": {"search": SHAPE | {"items": START | {"order": "own"}}},
    "shared": {"search": SHAPE | {"items": START}, "pool": {"executor": "process"}},
}
"""Changes of the digits campaign: one worker each; the second proposes while it works."""

KILLS = 3


@pytest.fixture(scope="module")
def pairs(terminal: Callable[..., Terminal]) -> Mapping[str, tuple[Terminal, Terminal]]:
    """Both campaigns, uninterrupted and killed again and again, side by side."""
    budget = {"trials": 100, "items": BUDGET}
    opened = {
        name: (terminal(budget=budget, **changes), terminal(budget=budget, **changes))
        for name, changes in CAMPAIGNS.items()
    }
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda name: run_and_kill(name, *opened[name]), opened))
    return opened


def run_and_kill(name: str, uninterrupted: Terminal, killed: Terminal) -> None:
    uninterrupted.run("launch", "campaign.yaml")
    rng = random.Random(f"kills of growing {name}")
    # In the first half: the campaign must not end between a look at its events and the kill.
    for moment in sorted(rng.sample(range(1, growth(uninterrupted) // 2), KILLS)):
        kill_at(killed, moment)
    killed.run("resume", "digits")


def kill_at(killed: Terminal, moment: int) -> None:
    with killed.start("launch", "campaign.yaml") as campaign:
        wait_until(lambda: growth(killed) >= moment, campaign)
        campaign.kill()
        assert campaign.wait() == -signal.SIGKILL, "it ended before it was killed"


def growth(terminal: Terminal) -> int:
    """How often trials were promoted, or grew."""
    return terminal.count("promoted") + terminal.count("grown")


@pytest.fixture(params=CAMPAIGNS)
def uninterrupted(
    pairs: Mapping[str, tuple[Terminal, Terminal]], request: pytest.FixtureRequest
) -> Terminal:
    return pairs[request.param][0]


def outcomes_of(event: Event) -> dict[str, Outcomes]:
    return {n: unpack(score["outcomes"]) for n, score in event.payload["scores"].items()}


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_killed_campaign_ends_like_an_uninterrupted_one(
    pairs: Mapping[str, tuple[Terminal, Terminal]], name: str
) -> None:
    expected, found = (t.history() for t in pairs[name])
    assert {n: repeatable(t) for n, t in found.trials.items()} == {
        n: repeatable(t) for n, t in expected.trials.items()
    }
    assert [t.share for t in found.trials.values()] == [t.share for t in expected.trials.values()]
    assert found.scored_items == expected.scored_items
    assert [t.number for t in found.pareto.front] == [t.number for t in expected.pareto.front]


@pytest.mark.parametrize("name", CAMPAIGNS)
@pytest.mark.parametrize("which", [0, 1])
def test_no_item_is_scored_twice(
    pairs: Mapping[str, tuple[Terminal, Terminal]], name: str, which: int
) -> None:
    known: dict[tuple[int | None, str], Outcomes] = {}
    for event in pairs[name][which].events():
        if event.kind not in ("completed", "grown"):
            continue
        new = 0
        for view, outcomes in outcomes_of(event).items():
            before = known.get((event.trial, view), np.empty(0))
            assert np.array_equal(outcomes[: len(before)], before)
            new += len(outcomes) - len(before)
            known[event.trial, view] = outcomes
        assert event.payload["scored"] == new > 0
    total = sum(map(len, known.values()))
    assert total == pairs[name][which].history().scored_items


def test_the_search_leaves_items_to_confirm_the_front(uninterrupted: Terminal) -> None:
    history = uninterrupted.history()
    promoted = [e.payload for e in uninterrupted.events() if e.kind == "promoted"]
    assert any(not p["confirms"] for p in promoted)
    assert any(p["confirms"] for p in promoted)
    assert 0.5 * BUDGET < history.scored_items <= BUDGET
    assert len(history.trials) >= 10  # what the same items give on whole splits: 5
    assert {t.share for t in history.trials.values()} > {0.1, 1.0}
    assert not history.open


def test_the_front_answered_all_items(uninterrupted: Terminal) -> None:
    history = uninterrupted.history()
    assert history.pareto.front
    for trial in history.pareto.front:
        assert [trial.scores[view].n for view in VIEWS] == [SIZE] * 3
    document = uninterrupted.read("trials", "digits")
    assert [t["share"] for t in document] == [t.share for t in history.trials.values()]
    for trial in history.trials.values():
        fewest = 40 if trial.share == 0.1 else 41  # a tenth of 399, rounded up
        assert all(m.n >= fewest for m in trial.scores.values())
        for measured in trial.scores.values():
            assert (measured.value, measured.se) == proportion(unpack(measured.outcomes))


def test_outcomes_are_of_the_first_items_of_the_trials_order(
    pairs: Mapping[str, tuple[Terminal, Terminal]], finished: Terminal
) -> None:
    whole = {t.key: t for t in finished.history().trials.values()}
    for name, (opened, _) in pairs.items():
        anchors = [t for t in opened.history().trials.values() if t.key in whole]
        assert len(anchors) >= 6
        for trial in anchors:
            for view in VIEWS:
                expected = unpack(whole[trial.key].scores[view].outcomes)
                found = unpack(trial.scores[view].outcomes)
                assert (trial.order is not None) == (name == "own")
                order = positions(trial)[: len(found)]
                assert np.array_equal(found, expected[order])


def positions(trial: Trial) -> np.ndarray[Any, Any]:
    return np.arange(SIZE) if trial.order is None else order_of(SIZE, trial.order)


def test_what_was_confirmed_is_exported(
    pairs: Mapping[str, tuple[Terminal, Terminal]],
) -> None:
    opened = pairs["own"][0]
    opened.run("export", "digits", "--knee")
    (folder,) = (opened.folder / "runs" / "digits" / "exports").glob("trial-*")
    manifest = json.loads((folder / "manifest.json").read_text())
    knee = opened.history().pareto.knee
    assert manifest["trial"] == knee.number
    assert {view: manifest["search"][view]["n"] for view in VIEWS} == dict.fromkeys(VIEWS, SIZE)
    opened.run("report", "digits")


def test_more_items_let_it_grow(pairs: Mapping[str, tuple[Terminal, Terminal]]) -> None:
    opened = pairs["shared"][1]
    before = opened.history()
    assert opened.run("launch", "campaign.yaml").stdout  # finished: nothing happens
    assert opened.events()[-1].kind == "finished"
    opened.run("resume", "digits", "--items", str(BUDGET + 6000))
    after = opened.history()
    assert after.finished is not None
    assert before.scored_items < after.scored_items <= BUDGET + 6000
    assert len(after.trials) > len(before.trials)
    for number, trial in before.trials.items():
        assert after.trials[number].share >= trial.share


def test_check_counts_items(terminal: Callable[..., Terminal]) -> None:
    search = SHAPE | {"items": START}
    said = terminal(search=search).run("check", "campaign.yaml").stdout
    assert "a trial begins on 120 of 1197 items; its share of each benchmark is 0.1" in said
    opened = terminal(search=search, budget={"items": 200})
    assert opened.run("check", "campaign.yaml", code=2).stderr.splitlines()[-1] == (
        "mmmo: budget.items: found 200, allowed: at least the 120 items of one trial and 133 to "
        "confirm the front"
    )


def test_a_promotion_that_fails_leaves_the_scores(terminal: Callable[..., Terminal]) -> None:
    reluctant = {"kind": "mishaps:Reluctant", "data": "-"}
    search = SHAPE | {"items": {"start": 0.5, "promote": "halving", "confirm": 3}}
    opened = terminal(benchmarks={"reluctant": reluctant}, search=search, budget={"trials": 12})
    said = opened.run("launch", "campaign.yaml").stderr
    history = opened.history()
    grown = [t for t in history.trials.values() if t.growth]
    assert grown
    for trial in history.trials.values():
        assert (trial.state, trial.share, trial.scores["reluctant"].n) == ("completed", 0.5, 5)
    for trial in grown:
        assert trial.growth is not None
        assert trial.growth.failure is not None
        assert (trial.growth.state, trial.growth.failures) == ("failed", 1)
        assert trial.growth.failure["kind"] == "benchmark_error"
        assert f"trial {trial.number:3d}  on more items, keeps its scores: benchmark_err" in said
    assert opened.count("promoted") == len(grown)
    assert history.finished is not None
    assert history.pareto.front
