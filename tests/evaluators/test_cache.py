"""The cache: entries that are whole or not there, also when their builder is killed."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evaluators.cache import cache_root, published

BUILDER = """
import sys
from pathlib import Path
from evaluators.cache import published
def build(folder):
    (folder / "first").write_text("whole")
    print("building", flush=True)
    sys.stdin.readline()
    (folder / "second").write_text("whole")
print(published(Path("kind", "key"), build), flush=True)
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMMO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def start() -> subprocess.Popen[str]:
    """A process in the middle of building the entry `kind/key`."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    return process


def fill(folder: Path) -> None:
    for name in ("first", "second"):
        (folder / name).write_text("whole")


def refuse(folder: Path) -> None:
    raise AssertionError(f"{folder} is built again")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("MMMO_CACHE", "/own")
    assert cache_root() == Path("/own")
    monkeypatch.delenv("MMMO_CACHE")
    assert cache_root() == Path("/xdg/mmmo")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_root() == Path.home() / ".cache" / "mmmo"


def test_an_entry_is_built_once(root: Path) -> None:
    folder = published(Path("kind", "key"), fill)
    assert folder == root / "kind" / "key"
    assert (folder / "second").read_text() == "whole"
    assert published(Path("kind", "key"), refuse) == folder
    assert os.listdir(root / "kind") == ["key"]


def test_a_failed_build_leaves_nothing(root: Path) -> None:
    with pytest.raises(AssertionError, match="again"):
        published(Path("kind", "key"), refuse)
    assert os.listdir(root / "kind") == []


def test_a_cache_that_cannot_be_written_is_an_error(root: Path) -> None:
    root.write_text("a file")
    with pytest.raises(OSError, match="cache"):
        published(Path("kind", "key"), fill)


def test_a_killed_builder_leaves_no_entry(root: Path) -> None:
    with start() as builder:
        assert os.listdir(root / "kind") == [f".key.partial-{platform.node()}-{builder.pid}"]
        builder.send_signal(signal.SIGKILL)
        builder.wait()
    assert not (root / "kind" / "key").exists()
    assert os.listdir(root / "kind") != []
    folder = published(Path("kind", "key"), fill)
    assert sorted(os.listdir(folder)) == ["first", "second"]
    assert os.listdir(root / "kind") == ["key"]


def test_two_builders_at_once_use_one_entry(root: Path) -> None:
    with start() as slow, start() as fast:
        said = [fast.communicate("\n")[0], slow.communicate("\n")[0]]
        assert (fast.returncode, slow.returncode) == (0, 0)
    assert said == [f"{root / 'kind' / 'key'}\n"] * 2
    assert sorted(os.listdir(root / "kind" / "key")) == ["first", "second"]
    assert os.listdir(root / "kind") == ["key"]
