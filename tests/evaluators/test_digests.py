"""Digests of files: what they say, and that a large file is read once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from evaluators.digests import REMEMBERED_BYTES, file_digest, files_digest

LARGE = b"x" * REMEMBERED_BYTES


@pytest.fixture(autouse=True)
def memos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMMO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "digests"


def settle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file have been changed long ago: its time of change cannot be set, the clock can."""
    now = path.stat().st_ctime + 60
    monkeypatch.setattr("time.time", lambda: now)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_digest_is_of_content_and_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    assert file_digest(tmp_path / "a") == sha256(b"one")
    expected = sha256(f"a {sha256(b'one')}\n".encode())
    assert files_digest([tmp_path / "a"]) == expected


def test_a_large_file_is_read_once(
    tmp_path: Path, memos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    settle(path, monkeypatch)
    assert file_digest(path) == sha256(LARGE)
    (memo,) = memos.iterdir()
    memo.write_text("remembered")  # as if it had been another content
    assert file_digest(path) == "remembered"
    (tmp_path / "link").symlink_to(path)
    assert file_digest(tmp_path / "link") == "remembered"


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_changed_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_time: bool
) -> None:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    before = path.stat()
    settle(path, monkeypatch)
    file_digest(path)
    changed = b"y" * REMEMBERED_BYTES
    path.write_bytes(changed)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_digest(path) == sha256(changed)


def test_what_was_just_written_or_is_small_is_not_remembered(
    tmp_path: Path, memos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    file_digest(tmp_path / "large")
    (tmp_path / "small").write_bytes(b"x")
    settle(tmp_path / "small", monkeypatch)
    file_digest(tmp_path / "small")
    assert not memos.exists()


def test_without_a_cache_it_is_only_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    (tmp_path / "large").write_bytes(LARGE)
    settle(tmp_path / "large", monkeypatch)
    assert file_digest(tmp_path / "large") == sha256(LARGE)
