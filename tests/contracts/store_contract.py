"""What every database under the store must give. Inherit, and provide the fixture `url`."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, func, select, update

from mmmo.database import LEASES, SCHEMA
from mmmo.errors import AlreadyRunning, LeaseLost, MmmoError, StoreError
from mmmo.store import Store

ROOT = Path(__file__).parents[2]
ALICE = ("alice", "seed: 1\n", "d" * 64, {"mmmo": "0.1"}, {"base": "a" * 64})

APPENDER = """
import sys
from mmmo.store import Store
store = Store(sys.argv[1])
with store.acquire("alice") as lease:
    for n in range(10**6):
        ids = store.append_many(lease, [(n, "left", {"n": n}), (n, "right", {"n": n})])
        print(n, *ids, flush=True)
"""

CONTENDER = """
import sys
from mmmo.errors import AlreadyRunning
from mmmo.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
store.create(sys.argv[2], "", "", {}, {})
try:
    lease = store.acquire("alice")
    print("won", flush=True)
    sys.stdin.readline()
    lease.release()
except AlreadyRunning as error:
    print("refused", flush=True)
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread or process does; the limit only ends a failure."""
    give_up = time.monotonic() + 60
    while not true():
        if time.monotonic() > give_up:
            pytest.fail("it never happened")
        time.sleep(0.01)


class StoreContract:
    @pytest.fixture
    def store(self, url: str) -> Iterator[Store]:
        with closing(Store(url)) as store:
            yield store

    @pytest.fixture
    def alice(self, store: Store) -> Store:
        store.create(*ALICE)
        return store

    def change_lease(self, url: str, **values: object) -> None:
        """Make the lease look as another machine, or an earlier process, would have left it."""
        engine = create_engine(url)
        with engine.begin() as connection:
            assert connection.execute(update(LEASES).values(**values)).rowcount == 1
        engine.dispose()

    def expiry(self, url: str) -> float:
        engine = create_engine(url)
        with engine.begin() as connection:
            found = connection.execute(select(LEASES.c.expires_at)).scalar_one()
        engine.dispose()
        return float(found)

    def test_a_campaign_reads_back_as_created(self, store: Store, url: str) -> None:
        before = time.time()
        created = store.create(*ALICE)
        with closing(Store(url)) as other:
            assert other.find("alice") == other.get("alice") == created
            assert other.campaigns() == [created]
            assert other.find("bob") is None
        found = (created.name, created.config, created.config_digest)
        assert found == ALICE[:3]
        assert (created.versions, created.sources) == ALICE[3:]
        assert before <= created.created_at <= time.time()

    def test_campaigns_are_listed_oldest_first(self, alice: Store) -> None:
        alice.create("aaron", "", "", {}, {})
        assert [row.name for row in alice.campaigns()] == ["alice", "aaron"]

    def test_a_name_is_taken_once(self, alice: Store) -> None:
        with pytest.raises(StoreError, match="already a campaign 'alice'"):
            alice.create(*ALICE)
        assert len(alice.campaigns()) == 1

    def test_an_unknown_campaign_is_told_with_the_nearest_name(self, alice: Store) -> None:
        for use in (
            alice.get,
            alice.writer,
            alice.events,
            alice.acquire,
            lambda name: alice.request(name, "stop"),
        ):
            with pytest.raises(StoreError, match="no campaign 'alise'") as caught:
                use("alise")
            assert caught.value.hint == "did you mean 'alice'?"

    def test_events_read_back_in_order_from_any_id(self, alice: Store, url: str) -> None:
        alice.create("bob", "", "", {}, {})
        with alice.acquire("alice") as lease, alice.acquire("bob") as other:
            first = alice.append(lease, None, "started", {})
            alice.append(other, 0, "proposed", {"of": "bob"})
            rest = alice.append_many(lease, [(0, "proposed", {"x": [1, "é\0"]}), (0, "failed", {})])
        with closing(Store(url)) as reader:
            events = reader.events("alice")
            assert [e.id for e in events] == [first, *rest] == sorted([first, *rest])
            assert [(e.trial, e.kind) for e in events] == [
                (None, "started"),
                (0, "proposed"),
                (0, "failed"),
            ]
            assert events[1].payload == {"x": [1, "é\0"]}
            assert reader.events("alice", after=first) == events[1:]
            assert reader.events("alice", after=rest[-1]) == []

    @settings(
        max_examples=30,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,  # one store for all examples: ids set them apart
            HealthCheck.differing_executors,  # two databases inherit this test
        ],
    )
    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8))
    def test_floats_read_back_exactly(self, url: str, numbers: list[float]) -> None:
        with closing(Store(url)) as store:
            if store.find("alice") is None:
                store.create(*ALICE)
            with store.acquire("alice") as lease:
                new = store.append(lease, 1, "completed", {"numbers": numbers})
            (event,) = store.events("alice", after=new - 1)
        found = event.payload["numbers"]
        assert found == numbers
        assert [math.copysign(1, x) for x in found] == [math.copysign(1, x) for x in numbers]

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    def test_numbers_that_json_lacks_are_refused_whole(self, alice: Store, number: float) -> None:
        with alice.acquire("alice") as lease:
            with pytest.raises(ValueError, match="not JSON compliant"):
                alice.append_many(lease, [(1, "fine", {}), (1, "bad", {"value": number})])
            assert alice.events("alice") == []
            alice.append(lease, 1, "next", {})
        assert [e.kind for e in alice.events("alice")] == ["next"]

    def test_a_campaign_has_one_writer(self, alice: Store, url: str) -> None:
        me = f"process {os.getpid()} on {socket.gethostname()}"
        with closing(Store(url)) as other:
            assert other.writer("alice") is None
            with alice.acquire("alice"):
                with pytest.raises(AlreadyRunning, match=f"already running: {me}, ") as caught:
                    other.acquire("alice")
                assert "mmmo stop alice" in caught.value.hint
                assert other.writer("alice") == me
            assert other.writer("alice") is None
            other.acquire("alice").release()

    def test_anyone_may_request(self, alice: Store, url: str) -> None:
        with alice.acquire("alice") as lease, closing(Store(url)) as other:
            asked = other.request("alice", "stop_requested")
            after = alice.append(lease, None, "stopping", {})
        events = [(e.id, e.trial, e.kind, e.payload) for e in alice.events("alice")]
        assert events == [(asked, None, "stop_requested", {}), (after, None, "stopping", {})]

    def test_a_lease_knows_what_was_requested_before_it(self, alice: Store) -> None:
        with alice.acquire("alice") as lease:
            assert lease.after == 0
        alice.create("bob", "", "", {}, {})
        before = alice.request("alice", "stop_requested")
        alice.request("bob", "stop_requested")
        with alice.acquire("alice") as lease:
            assert lease.after == before
            assert alice.request("alice", "stop_requested") > lease.after

    def test_of_several_processes_one_wins(self, alice: Store, url: str) -> None:
        contenders = [start(CONTENDER, url, f"other-{n}") for n in range(3)]
        assert [c.stdout.readline() for c in contenders] == ["ready\n"] * 3
        for contender in contenders:
            contender.stdin.write("go\n")
            contender.stdin.flush()
        said = sorted(c.stdout.readline() for c in contenders)
        for contender in contenders:
            contender.communicate()
        assert said == ["refused\n", "refused\n", "won\n"]
        assert [c.returncode for c in contenders] == [0, 0, 0]
        alice.acquire("alice").release()

    def test_processes_may_create_the_store_at_once(self, url: str) -> None:
        contenders = [start(CONTENDER, url, name) for name in ("alice", "bob", "carol")]
        assert [c.stdout.readline() for c in contenders] == ["ready\n"] * 3
        for contender in contenders:
            contender.stdin.write("go\n")
            contender.stdin.flush()
        for contender in contenders:
            contender.communicate()
        with closing(Store(url)) as store:
            assert sorted(row.name for row in store.campaigns()) == ["alice", "bob", "carol"]
            engine = create_engine(url)
            with engine.begin() as connection:
                assert connection.execute(select(func.count()).select_from(SCHEMA)).scalar() == 1
            engine.dispose()

    @pytest.mark.parametrize("reported", [1, 40])
    def test_what_was_appended_survives_a_kill(self, alice: Store, url: str, reported: int) -> None:
        child = start(APPENDER, url)
        lines = [child.stdout.readline() for _ in range(reported)]
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet reaped
        assert alice.writer("alice") is None
        with alice.acquire("alice") as lease:  # at once: a dead process holds nothing
            after = alice.append(lease, None, "resumed", {})
        lines += child.stdout.readlines()
        child.communicate()
        events = alice.events("alice")
        reports = [tuple(map(int, line.split())) for line in lines if line.endswith("\n")]
        stored = {e.id: (e.kind, e.payload["n"]) for e in events[:-1]}
        for n, left, right in reports:
            assert (stored[left], stored[right]) == (("left", n), ("right", n))
        kinds = [e.kind for e in events]
        assert kinds == ["left", "right"] * (len(kinds) // 2) + ["resumed"]  # pairs stay whole
        assert len(kinds) // 2 - len(reports) in (0, 1)  # at most the one in flight is extra
        assert events[-1].id == after

    def test_a_number_given_to_a_later_process_is_no_holder(self, alice: Store, url: str) -> None:
        alice.acquire("alice")
        self.change_lease(url, started="1")  # this pid runs, but started at another time
        alice.acquire("alice").release()

    def test_a_holder_out_of_sight_holds_until_expiry(self, alice: Store, url: str) -> None:
        lease = alice.acquire("alice")
        self.change_lease(url, host="elsewhere", machine="another boot", pid=1)
        with closing(Store(url)) as other:
            with pytest.raises(AlreadyRunning, match="process 1 on elsewhere") as caught:
                other.acquire("alice")
            assert "forgotten in " in caught.value.hint
            assert other.writer("alice") == "process 1 on elsewhere"
            self.change_lease(url, expires_at=0.0)
            assert other.writer("alice") is None
            with other.acquire("alice") as taken:
                other.append(taken, None, "taken", {})
                with pytest.raises(LeaseLost):
                    alice.append(lease, 1, "late", {})
                assert lease.lost
                lease.release()  # and does not release the other's
                other.append(taken, None, "still", {})
        assert [e.kind for e in alice.events("alice")] == ["taken", "still"]

    def test_a_released_lease_writes_no_more(self, alice: Store) -> None:
        lease = alice.acquire("alice")
        lease.release()
        lease.release()
        with pytest.raises(LeaseLost):
            alice.append(lease, None, "late", {})
        assert alice.events("alice") == []

    def test_a_lease_is_renewed_while_it_is_held(self, alice: Store, url: str) -> None:
        with alice.acquire("alice", ttl_s=0.3):
            first = self.expiry(url)
            until(lambda: self.expiry(url) > first)

    def test_a_holder_notices_a_takeover_by_itself(self, alice: Store, url: str) -> None:
        with alice.acquire("alice", ttl_s=0.3) as lease:
            assert not lease.lost
            self.change_lease(url, owner="somebody else")
            until(lambda: lease.lost)

    def test_a_reader_that_follows_ids_misses_nothing(self, alice: Store, url: str) -> None:
        def ask() -> None:
            with closing(Store(url)) as store:
                for _ in range(15):
                    store.request("alice", "asked")

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        seen: list[int] = []
        while any(asker.is_alive() for asker in askers):
            seen += [e.id for e in alice.events("alice", after=seen[-1] if seen else 0)]
        seen += [e.id for e in alice.events("alice", after=seen[-1] if seen else 0)]
        assert seen == [e.id for e in alice.events("alice")]
        assert len(seen) == 60

    def test_a_newer_schema_is_refused(self, alice: Store, url: str) -> None:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(update(SCHEMA).values(version=999))
        engine.dispose()
        with closing(Store(url)) as store, pytest.raises(StoreError, match="schema 999") as caught:
            store.campaigns()
        assert "upgrade mmmo" in caught.value.hint


def assert_one_line(error: MmmoError) -> None:
    assert error.exit_code == 2
    assert error.hint
    assert "\n" not in str(error) + error.hint
