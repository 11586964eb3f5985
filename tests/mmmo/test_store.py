"""The store on both of its databases, and what only one of them can get wrong."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from contracts.store_contract import ALICE, StoreContract, assert_one_line
from sqlalchemy import Engine, event
from sqlalchemy.engine import make_url

from mmmo.errors import StoreError
from mmmo.leases import Lease
from mmmo.store import Store

pytest_plugins = ("postgres",)


class TestSQLite(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/runs/here/mmmo.db"


class TestPostgreSQL(StoreContract):
    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return postgres_url


@pytest.fixture
def pragma() -> Iterator[Any]:
    """Set a pragma on every connection from now on: SQLite's own full or read-only disk."""
    added = []

    def set_pragma(text: str) -> None:
        def run(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute(f"PRAGMA {text}")

        event.listen(Engine, "connect", run)
        added.append(run)

    yield set_pragma
    for run in added:
        event.remove(Engine, "connect", run)


def refused(store: Store) -> StoreError:
    with pytest.raises(StoreError) as caught:
        store.create(*ALICE)
    assert_one_line(caught.value)
    return caught.value


BAD_URLS = {
    "runs/mmmo.db": "not a database URL",
    "": "not a database URL",
    "sqlite://": "names no file",
    "sqlite:///": "names no file",
    "sqlite:///:memory:": "names no file",
    "sqlite://runs/mmmo.db": "names no file",
    "sqlite:///x.db?mode=ro": "timeout",
    "sqlite:///x.db?timeout=soon": "timeout",
    "mysql://u:secret@host/x": "neither sqlite nor postgresql",
    "postgresql://u:secret@host/x": "neither sqlite nor postgresql",
    "postgresql+psycopg://u:secret@host:port/x": "not a database URL",
}


@pytest.mark.parametrize(("url", "found"), BAD_URLS.items(), ids=range(len(BAD_URLS)))
def test_a_bad_url_is_one_line(url: str, found: str) -> None:
    with pytest.raises(StoreError, match=found) as caught:
        Store(url)
    assert_one_line(caught.value)
    assert "secret" not in str(caught.value)


def test_an_unreachable_server_is_one_line_without_the_password() -> None:
    with closing(Store("postgresql+psycopg://u:secret@127.0.0.1:1/x")) as store:
        error = refused(store)
    assert "Connection refused" in str(error)
    assert "secret" not in str(error) + error.hint


def test_a_missing_database_is_one_line(postgres_url: str) -> None:
    absent = make_url(postgres_url).set(database="mmmo_absent")
    with closing(Store(absent.render_as_string(hide_password=False))) as store:
        assert "does not exist" in str(refused(store))


def test_looking_creates_no_file(tmp_path: Path) -> None:
    with closing(Store(f"sqlite:///{tmp_path}/runs/mmmo.db")) as store:
        assert store.campaigns() == []
        assert store.find("alice") is None
        for use in (store.get, store.writer, store.events, store.acquire):
            with pytest.raises(StoreError, match="no campaign 'alice'"):
                use("alice")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(Store("sqlite:///runs/mmmo.db")) as store:
        store.create(*ALICE)
    assert (tmp_path / "runs" / "mmmo.db").is_file()


def test_commits_are_durable(tmp_path: Path) -> None:
    wanted: dict[str, object] = {}

    def look(connection: Any) -> None:
        for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout"):
            wanted[name] = connection.exec_driver_sql(f"PRAGMA {name}").scalar()

    event.listen(Engine, "commit", look)
    try:
        with closing(Store(f"sqlite:///{tmp_path}/x.db")) as store:
            store.create(*ALICE)
    finally:
        event.remove(Engine, "commit", look)
    full = 2
    assert wanted == {
        "journal_mode": "wal",
        "synchronous": full,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("these are my notes, and no database\n" * 50)
    with closing(Store(f"sqlite:///{text}")) as store:
        assert "not a database" in str(refused(store))
    assert text.read_text().startswith("these are my notes")


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "cookies.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE cookies (id)")
    with closing(Store(f"sqlite:///{path}")) as store:
        assert "another program" in str(refused(store))
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("cookies",)]


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(Store(f"sqlite:///{path}")) as store:
        store.create(*ALICE)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(int(path.stat().st_size) - 100))
    with closing(Store(f"sqlite:///{path}")) as store:
        assert "malformed" in str(refused(store))


@pytest.mark.parametrize("path", ["", "/file/x.db"], ids=["a folder", "under a file"])
def test_an_impossible_path_is_one_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with closing(Store(f"sqlite:///{tmp_path}{path}")) as store:
        refused(store)


def test_a_read_only_file_can_be_read_and_says_so(tmp_path: Path, pragma: Any) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    with closing(Store(url)) as store:
        created = store.create(*ALICE)
    pragma("query_only=ON")
    with closing(Store(url)) as store:
        assert store.find("alice") == created
        assert "readonly" in str(refused(store))


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, pragma: Any) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    pragma("max_page_count=40")
    with closing(Store(url)) as store:
        store.create(*ALICE)
        kept: list[int] = []

        def fill(lease: Lease) -> None:
            while True:
                kept.append(store.append(lease, 1, "completed", {"text": "x" * 5000}))

        with store.acquire("alice") as lease, pytest.raises(StoreError, match="full") as caught:
            fill(lease)
        assert_one_line(caught.value)
        assert [e.id for e in store.events("alice")] == kept
        assert len(kept) > 3


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(Store(f"sqlite:///{path}?timeout=0.1")) as store:
        store.create(*ALICE)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked") as caught:
                store.request("alice", "stop")
            assert_one_line(caught.value)
            assert store.events("alice") == []  # readers do not wait for writers
            other.execute("ROLLBACK")
        store.request("alice", "stop")
        assert len(store.events("alice")) == 1
