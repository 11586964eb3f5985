"""A request to stop is meant for whoever holds the lease, however early it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mmmo.campaign import Campaign
from mmmo.config import load
from mmmo.creation import create
from mmmo.leases import Lease
from mmmo.store import NewEvent, Store

pytest_plugins = ("mistakes",)


class Watched(Store):
    """A store whose user asks the campaign to stop at one moment of its start."""

    def __init__(self, url: str, moment: str) -> None:
        super().__init__(url)
        self._moment = moment

    def acquire(self, name: str, ttl_s: float = 30.0) -> Lease:
        self._at("before the lease", name)
        lease = super().acquire(name, ttl_s)
        self._at("with the lease", name)
        return lease

    def append(self, lease: Lease, trial: int | None, kind: str, payload: Mapping[str, Any]) -> int:
        self._at(f"before {kind}", "example")
        written = super().append(lease, trial, kind, payload)
        self._at(f"after {kind}", "example")
        return written

    def append_many(self, lease: Lease, events: Sequence[NewEvent]) -> list[int]:
        self._at(f"before {events[0][1]}", "example")
        return super().append_many(lease, events)

    def _at(self, moment: str, name: str) -> None:
        if moment == self._moment:
            self.request(name, "stop_requested")


@pytest.mark.parametrize(
    ("moment", "completed"),
    [
        ("before the lease", 2),  # meant for a session that was over
        ("with the lease", 0),
        ("before started_session", 0),
        ("after started_session", 0),
        ("before proposed", 0),
    ],
)
def test_a_stop_at_any_moment_of_the_start(world: Path, moment: str, completed: int) -> None:
    config = load(Path("campaign.yaml"))
    with closing(Watched(config.store, moment)) as store:
        plain = Store(config.store)
        create(plain, config)
        plain.close()
        history = Campaign(store, config, Path("runs")).run()
    assert len(history.completed) == completed
    assert (history.finished is not None) == (completed == 2)
