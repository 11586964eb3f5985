"""The store: campaigns, their append-only events, and one writer per campaign.

What `append` returned from is on disk: it survives `kill -9` of the process, and a power cut as far
as the disk keeps its word. Events are never changed; a campaign's state is a fold of them.
"""

from __future__ import annotations

import difflib
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from mmmo.database import CAMPAIGNS, EVENTS, LEASES, Database
from mmmo.errors import AlreadyRunning, LeaseLost, StoreError
from mmmo.leases import TTL_S, Holder, Lease


@dataclass(frozen=True)
class CampaignRow:
    """One campaign, as it was created.

    Attributes:
        created_at: seconds since 1970, UTC.
        config: the resolved YAML.
        versions: package → version.
        sources: model → digest.
    """

    id: int
    name: str
    created_at: float
    config: str
    config_digest: str
    versions: Mapping[str, str]
    sources: Mapping[str, str]


@dataclass(frozen=True)
class Event:
    """Something that happened. Ids grow in the order in which a campaign's events became visible.

    Attributes:
        trial: the trial that it is about, or None: the campaign.
        at: seconds since 1970, UTC.
    """

    id: int
    trial: int | None
    kind: str
    payload: Mapping[str, Any]
    at: float


NewEvent = tuple[int | None, str, Mapping[str, Any]]
"""Trial, kind and payload of an event to be."""


class Store:
    """Campaigns in one database. Nothing is opened or created before the first use.

    Every method raises `StoreError` if the database cannot be reached, read or written.

    Args:
        url: `sqlite:///runs/mmmo.db` (relative), `sqlite:////absolute/path.db`, or
            `postgresql+psycopg://user:password@host/database`.

    Raises:
        StoreError: the URL is not one of those.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    @property
    def files(self) -> tuple[Path, ...]:
        """What it keeps on this machine's disk, there already or not; nothing on a server."""
        return self._database.files

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def create(
        self,
        name: str,
        config_text: str,
        config_digest: str,
        versions: Mapping[str, str],
        sources: Mapping[str, str],
    ) -> CampaignRow:
        """Record a new campaign.

        Raises:
            StoreError: the name is taken.
        """
        values = {
            "name": name,
            "created_at": time.time(),
            "config": config_text,
            "config_digest": config_digest,
            "versions": _to_json(versions),
            "sources": _to_json(sources),
        }
        with self._database.writing() as connection:
            try:
                connection.execute(insert(CAMPAIGNS).values(values))
            except IntegrityError as error:
                raise StoreError(
                    f"store {self._database.name}: there is already a campaign {name!r}",
                    hint="resume it, or choose another name",
                ) from error
            return _campaign(self._row(connection, name))

    def find(self, name: str) -> CampaignRow | None:
        """Find the campaign of that name, if there is one."""
        return next((row for row in self.campaigns() if row.name == name), None)

    def get(self, name: str) -> CampaignRow:
        """Read the campaign of that name.

        Raises:
            StoreError: there is no such campaign.
        """
        self._refuse_if_missing(name)
        with self._database.reading() as connection:
            return _campaign(self._row(connection, name))

    def writer(self, name: str) -> str | None:
        """Who writes the campaign now, as far as can be seen: `process 123 on host`, or None."""
        self._refuse_if_missing(name)
        with self._database.reading() as connection:
            held = _held(connection, self._row(connection, name).id)
            if held is None or not _is_alive(held, self._database.now(connection)):
                return None
            return f"process {held.pid} on {held.host}"

    def campaigns(self) -> list[CampaignRow]:
        """All campaigns, oldest first."""
        if self._database.missing():
            return []
        with self._database.reading() as connection:
            rows = connection.execute(select(CAMPAIGNS).order_by(CAMPAIGNS.c.id)).all()
        return [_campaign(row) for row in rows]

    def events(self, name: str, after: int = 0) -> list[Event]:
        """Read the campaign's events with ids above `after`, in order.

        Raises:
            StoreError: there is no such campaign.
        """
        self._refuse_if_missing(name)
        with self._database.reading() as connection:
            of_campaign = EVENTS.c.campaign_id == self._row(connection, name).id
            query = select(EVENTS).where(of_campaign, EVENTS.c.id > after).order_by(EVENTS.c.id)
            rows = connection.execute(query).all()
        return [Event(r.id, r.trial, r.kind, json.loads(r.payload), r.at) for r in rows]

    def acquire(self, name: str, ttl_s: float = TTL_S) -> Lease:
        """Become the campaign's one writer, until the lease is released or this process dies.

        Args:
            name: of the campaign.
            ttl_s: seconds after the last renewal at which other machines may take over.

        Raises:
            AlreadyRunning: another process, alive as far as can be seen, holds it.
            StoreError: there is no such campaign.
        """
        me, owner = Holder.this_process(), uuid.uuid4().hex
        with self._writing(name) as (connection, campaign):
            now = self._database.now(connection)
            held = _held(connection, campaign)
            if held is not None and _is_alive(held, now):
                raise _already_running(name, held, now)
            connection.execute(delete(LEASES).where(LEASES.c.campaign_id == campaign))
            values = {"campaign_id": campaign, "owner": owner, "since": now} | asdict(me)
            connection.execute(insert(LEASES).values(values | {"expires_at": now + ttl_s}))
            after = _last_event(connection, campaign)
        return Lease(campaign, owner, after, ttl_s, self._renew, self._release)

    def append(self, lease: Lease, trial: int | None, kind: str, payload: Mapping[str, Any]) -> int:
        """Record one event and return its id; it is durable when this returns.

        Raises:
            LeaseLost: another process took the campaign over; nothing was recorded.
            ValueError: the payload holds a NaN or an infinity.
        """
        return self.append_many(lease, [(trial, kind, payload)])[0]

    def append_many(self, lease: Lease, events: Sequence[NewEvent]) -> list[int]:
        """Record events that must appear together, or not at all. Raises as `append` does."""
        with self._database.writing() as connection:
            _lock(connection, lease.campaign)
            query = select(LEASES.c.owner).where(LEASES.c.campaign_id == lease.campaign)
            if connection.execute(query).scalar() != lease.owner:
                lease.mark_lost()
                raise LeaseLost(
                    "another process took this campaign over; this one stopped writing",
                    hint="the other process carries on; `mmmo status` shows it",
                )
            return [_insert(connection, lease.campaign, event) for event in events]

    def request(self, name: str, kind: str) -> int:
        """Ask the campaign's writer for something (such as `stop_requested`); anyone may.

        Raises:
            StoreError: there is no such campaign.
        """
        with self._writing(name) as (connection, campaign):
            return _insert(connection, campaign, (None, kind, {}))

    @contextmanager
    def _writing(self, name: str) -> Iterator[tuple[Connection, int]]:
        """Open a transaction that changes one campaign, whose id comes with it."""
        self._refuse_if_missing(name)
        with self._database.writing() as connection:
            campaign = self._row(connection, name).id
            _lock(connection, campaign)
            yield connection, campaign

    def _row(self, connection: Connection, name: str) -> Row[Any]:
        row = connection.execute(select(CAMPAIGNS).where(CAMPAIGNS.c.name == name)).one_or_none()
        if row is None:
            raise self._unknown(name, connection.execute(select(CAMPAIGNS.c.name)).scalars().all())
        return row

    def _refuse_if_missing(self, name: str) -> None:
        """Leave no new, empty file behind where somebody only looks."""
        if self._database.missing():
            raise self._unknown(name, [])

    def _unknown(self, name: str, names: Sequence[str]) -> StoreError:
        near = difflib.get_close_matches(name, names, n=1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else "`mmmo status` lists them; MMMO_STORE or --store names another store"
        )
        return StoreError(f"store {self._database.name}: no campaign {name!r}", hint)

    def _renew(self, lease: Lease) -> bool:
        with self._database.writing() as connection:
            expires_at = self._database.now(connection) + lease.ttl_s
            ours = update(LEASES).where(*_is_of(lease)).values(expires_at=expires_at)
            return connection.execute(ours).rowcount == 1

    def _release(self, lease: Lease) -> None:
        with self._database.writing() as connection:
            connection.execute(delete(LEASES).where(*_is_of(lease)))


def _held(connection: Connection, campaign: int) -> Row[Any] | None:
    return connection.execute(select(LEASES).where(LEASES.c.campaign_id == campaign)).one_or_none()


def _seen_alive(held: Row[Any]) -> bool | None:
    return Holder(held.host, held.pid, held.machine, held.started).is_alive()


def _is_alive(held: Row[Any], now: float) -> bool:
    """Judge a holder that we can see by being alive, another by having renewed in time."""
    seen = _seen_alive(held)
    return now < held.expires_at if seen is None else seen


def _already_running(name: str, held: Row[Any], now: float) -> AlreadyRunning:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(held.since))
    hint = f"`mmmo stop {name}` stops it, `mmmo status {name}` shows it"
    if _seen_alive(held) is None:
        hint += f"; if it is dead, it is forgotten in {max(held.expires_at - now, 0):.0f} s"
    return AlreadyRunning(
        f"campaign {name!r} is already running: process {held.pid} on {held.host}, since {since}",
        hint,
    )


def _lock(connection: Connection, campaign: int) -> None:
    """Writers of one campaign take turns, so that ids appear in order (PostgreSQL; SQLite does)."""
    connection.execute(select(CAMPAIGNS.c.id).where(CAMPAIGNS.c.id == campaign).with_for_update())


def _insert(connection: Connection, campaign: int, event: NewEvent) -> int:
    trial, kind, payload = event
    values = {
        "campaign_id": campaign,
        "trial": trial,
        "kind": kind,
        "payload": _to_json(payload),
        "at": time.time(),
    }
    new_id: int = connection.execute(
        insert(EVENTS).values(values).returning(EVENTS.c.id)
    ).scalar_one()
    return new_id


def _last_event(connection: Connection, campaign: int) -> int:
    last = select(func.max(EVENTS.c.id)).where(EVENTS.c.campaign_id == campaign)
    return connection.execute(last).scalar() or 0


def _is_of(lease: Lease) -> tuple[Any, ...]:
    return LEASES.c.campaign_id == lease.campaign, LEASES.c.owner == lease.owner


def _campaign(row: Row[Any]) -> CampaignRow:
    stored = dict(row._mapping)
    parsed = {key: json.loads(stored[key]) for key in ("versions", "sources")}
    return CampaignRow(**(stored | parsed))


def _to_json(content: Mapping[str, Any]) -> str:
    """Shortest exact floats; NaN and infinity are refused, for JSON has no such numbers."""
    return json.dumps(content, allow_nan=False, separators=(",", ":"))
