"""A real PostgreSQL for tests: `postgres_url` is a new, empty database on a server of our own.

The server comes from Debian's packages (or from `PATH`), lives in a temporary folder behind a unix
socket, and is stopped at the end. `MMMO_TEST_POSTGRES=<url>` uses a running server instead.
Where there is none, tests skip and the summary says so; `MMMO_REQUIRE_POSTGRES=1` makes that fail.

Use it with `pytest_plugins = ("postgres",)` in a test file.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

NOT_TESTED = "POSTGRESQL IS NOT TESTED"
_AS_ROOT = {"user": "postgres", "group": "postgres", "extra_groups": []}  # initdb refuses root


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((f.parent for f in folders), key=lambda f: int(f.parent.name), default=None)


def _absent(why: str) -> None:
    reason = f"{NOT_TESTED}: {why} (apt-get install postgresql, or set MMMO_TEST_POSTGRES=<url>)"
    if os.environ.get("MMMO_REQUIRE_POSTGRES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def _execute(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(statement))
    finally:
        engine.dispose()


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            return _execute(url, "SELECT 1")
        except OperationalError:
            if server.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from None
            time.sleep(0.1)


def _serve(binaries: Path, folder: Path) -> Iterator[str]:
    identity = _AS_ROOT if os.geteuid() == 0 else {}
    if identity:
        shutil.chown(folder, "postgres", "postgres")
    data, log = folder / "data", folder / "log"
    initdb = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/", **identity)
    settings = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off"}
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    with log.open("wb") as output:
        command = [binaries / "postgres", "-D", data, *options]
        server = subprocess.Popen(command, stdout=output, stderr=output, cwd="/", **identity)
    try:
        url = f"postgresql+psycopg://postgres@/postgres?host={folder}"
        _wait_until_ready(url, server, log)
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # "fast": ends the sessions, then stops
        server.wait(timeout=60)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a server on which we may create databases."""
    given = os.environ.get("MMMO_TEST_POSTGRES")
    if given:
        yield given
        return
    binaries = _binaries()
    if binaries is None:
        _absent("no initdb on PATH or in /usr/lib/postgresql")
    folder = Path(tempfile.mkdtemp(prefix="mmmo-pg-"))  # short: a socket's path has 107 bytes
    try:
        yield from _serve(binaries, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of a new, empty database."""
    name = f"mmmo_test_{uuid.uuid4().hex[:12]}"
    _execute(postgres_server, f"CREATE DATABASE {name}")
    yield make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    _execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it where nobody can miss it."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    about_us = [reason for reason in skipped if NOT_TESTED in reason]
    if about_us:
        reason = about_us[0][about_us[0].index(NOT_TESTED) :].removesuffix("')")
        terminalreporter.section(NOT_TESTED, sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(about_us)} tests were skipped. {reason}", red=True)
