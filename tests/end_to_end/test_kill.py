"""Acceptance: whatever is killed, and when, the campaign ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from terminals import TIMEOUT_S, Terminal, children, is_running, repeatable, wait_until

from mmmo.store import Event

MOMENTS = ("start-up",) * 3 + ("some events",) * 5 + ("proposing",) * 3
"""When each of the two campaigns is killed, in an order drawn by seed."""

START_UP_S = 4.0
"""About how long a campaign imports and loads before its first trial."""

TRIALS = 26
"""More than the killed sessions get done."""

CAMPAIGNS: dict[str, dict[str, Any]] = {
    "inline": {},
    "process": {
        "seed": 8,
        "merge": {"method": "dare_ties", "density": {"range": [0.2, 1.0]}},
        "pool": {"executor": "process"},
    },
}
"""Changes of the digits campaign: one worker each; the second proposes while it works."""


@dataclass(frozen=True)
class Killed:
    """What is left of a campaign that was killed again and again, and of one that was not."""

    terminal: Terminal
    uninterrupted: Terminal
    seen: list[list[Event]]
    orphans: list[int]


@pytest.fixture(scope="module")
def killed(terminal: Callable[..., Terminal]) -> Mapping[str, Killed]:
    """Both campaigns, side by side: there are two cores."""
    shape = {"search": {"initial": 4, "batch": 2}, "budget": {"trials": TRIALS}}
    pairs = {
        name: (terminal(**shape, **changes), terminal(**shape, **changes))
        for name, changes in CAMPAIGNS.items()
    }
    with ThreadPoolExecutor(2) as threads:
        done = {n: threads.submit(kill_and_compare, n, *pair) for n, pair in pairs.items()}
        return {name: future.result() for name, future in done.items()}


def kill_and_compare(name: str, opened: Terminal, uninterrupted: Terminal) -> Killed:
    rng = random.Random(f"kills of {name}")
    seen: list[list[Event]] = []
    orphans: list[int] = []
    for moment in rng.sample(MOMENTS, len(MOMENTS)):
        resume, launch = ("resume", "digits"), ("launch", "campaign.yaml")
        verb = rng.choice([resume, launch]) if opened.events() else launch
        with opened.start(*verb) as campaign:
            wait_for(moment, rng, opened, campaign)
            orphans += children(campaign.pid)
            campaign.kill()
            assert campaign.wait() == -signal.SIGKILL, "it ended before it was killed"
        seen.append(opened.events())
    opened.run("resume", "digits")
    uninterrupted.run("launch", "campaign.yaml")
    return Killed(opened, uninterrupted, seen, orphans)


def wait_for(
    moment: str, rng: random.Random, opened: Terminal, campaign: subprocess.Popen[bytes]
) -> None:
    """Wait for a random moment of that kind."""
    if moment == "start-up":
        time.sleep(rng.uniform(0.0, START_UP_S))
    elif moment == "proposing":
        wait_until(lambda: is_proposing(opened.events()), campaign)
        time.sleep(rng.uniform(0.0, 0.3))
    else:
        wanted = len(opened.events()) + rng.randint(1, 6)
        wait_until(lambda: len(opened.events()) >= wanted, campaign)
        time.sleep(rng.choice([0.0, rng.uniform(0.0, 0.05)]))


def is_proposing(events: list[Event]) -> bool:
    """Whether this session has started all that was proposed, so that it proposes next."""
    sessions = [i for i, event in enumerate(events) if event.kind == "started_session"]
    if not sessions or events[-1].kind not in ("started", "completed"):
        return False
    started = {e.trial for e in events[sessions[-1] :] if e.kind == "started"}
    completed = {e.trial for e in events if e.kind == "completed"}
    return {e.trial for e in events if e.kind == "proposed"} <= started | completed


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_killed_campaign_ends_like_an_uninterrupted_one(
    killed: Mapping[str, Killed], name: str
) -> None:
    trials = killed[name].terminal.history().trials
    expected = killed[name].uninterrupted.history().trials
    assert len(trials) == TRIALS
    assert {t.state for t in expected.values()} == {"completed"}
    for number, trial in expected.items():
        assert repeatable(trials[number]) == repeatable(trial)
    assert Counter(t.origin for t in trials.values())["acquisition"] >= 10


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_nothing_completed_is_lost_or_repeated(killed: Mapping[str, Killed], name: str) -> None:
    events = killed[name].terminal.events()
    for kind in ("proposed", "completed"):
        assert Counter(e.trial for e in events if e.kind == kind) == dict.fromkeys(range(TRIALS), 1)
    for seen in killed[name].seen:
        assert events[: len(seen)] == seen
    assert sum(e.kind == "finished" for e in events) == 1
    assert not [e for e in events if e.kind == "failed"]


def test_kills_fell_into_all_parts_of_a_campaign(killed: Mapping[str, Killed]) -> None:
    seen = [events for k in killed.values() for events in k.seen]
    assert len(seen) >= 20
    assert any(events[-1].kind == "started" for events in seen if events)
    assert any(is_proposing(events) for events in seen)
    assert any(len(before) == len(after) for before, after in pairwise(seen))  # in a start-up


def test_workers_follow_their_campaign(killed: Mapping[str, Killed]) -> None:
    assert killed["process"].orphans
    assert not [pid for pid in killed["process"].orphans if is_running(pid)]


def test_killed_workers_cost_no_trial(terminal: Callable[..., Terminal]) -> None:
    kills = 3
    design = {"search": {"strategy": "sobol"}, "budget": {"trials": 60}}
    opened = terminal(**design, pool={"executor": "process", "workers": 2, "retries": kills})
    with opened.start("launch", "campaign.yaml") as campaign:
        opened.wait_for("completed", 1, campaign)
        for lost in range(kills):
            with killed_in_a_trial(children(campaign.pid)[0]):
                opened.wait_for("completed", opened.count("completed") + 4, campaign)
            opened.wait_for("failed", lost + 1, campaign)
        assert campaign.wait(TIMEOUT_S) == 0
    failures = [e.payload for e in opened.events() if e.kind == "failed"]
    assert [(f["kind"], f["final"]) for f in failures] == [("worker_lost", False)] * kills
    assert "was killed by signal 9 (SIGKILL)" in failures[0]["message"]
    uninterrupted = terminal(**design)
    uninterrupted.run("launch", "campaign.yaml")
    trials, expected = opened.history().trials, uninterrupted.history().trials
    assert sum(t.attempts for t in trials.values()) == 60 + kills
    for number, trial in expected.items():
        assert repeatable(trials[number]) == repeatable(trial)


@contextmanager
def killed_in_a_trial(worker: int) -> Iterator[None]:
    """Stop a worker, and kill it at the end: when others went on meanwhile, it holds a trial."""
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGKILL)


def test_what_always_goes_wrong_costs_its_trial_only(
    digits: dict[str, Any], terminal: Callable[..., Terminal]
) -> None:
    """One expert crashes its worker, one hangs, one asks for more memory than there is."""
    kinds = {"crash": "worker_lost", "hang": "timeout", "out_of_memory": "out_of_memory"}
    folders = digits["sources"]["experts"].values()
    mishaps = {
        what: {"kind": "mishaps:Mishap", "data": "-", "options": {"folder": folder, "what": what}}
        for what, folder in zip(kinds, folders, strict=True)
    }
    opened = terminal(
        benchmarks=mishaps,
        search={"initial": 6, "batch": 2},
        budget={"trials": 8},
        pool={"executor": "process", "workers": 2, "trial_timeout_s": 3},
    )
    opened.run("launch", "campaign.yaml")
    trials = opened.history().trials
    assert opened.read("status", "digits")["state"] == "finished"
    assert [t.state for t in trials.values()] == ["failed"] * 3 + ["completed"] * 5
    for number, kind in enumerate(kinds.values()):
        assert trials[number].attempts == 2  # retried once, as `retries` says
        failure = opened.read("show", "digits", str(number))["failure"]
        assert failure["kind"] == kind
        assert "\n" not in failure["message"]
