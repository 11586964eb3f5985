"""Streams that lose what cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evaluators.unfailing import unfailing


def test_what_can_be_written_is_written_a_line_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        stream = unfailing(file.fileno())
        print("é, and what no encoding has: \ud800", file=stream)
        assert (tmp_path / "log").read_text("utf-8") == "é, and what no encoding has: \\ud800\n"
        stream.close()
        file.write(b"still open")
    assert (tmp_path / "log").read_bytes().endswith(b"still open")


def test_a_full_disk_takes_everything() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        with pytest.raises(OSError, match="No space left"):
            full.write(b"x")
        stream = unfailing(full.fileno())
        print("x" * 100_000, file=stream, flush=True)
        stream.close()


def test_a_reader_that_went_away_takes_everything() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = unfailing(writer)
    print("is anybody there?", file=stream, flush=True)
    stream.close()
    os.close(writer)


def test_a_terminal_that_went_away_takes_everything() -> None:
    ours, theirs = os.openpty()
    stream = unfailing(theirs)
    assert stream.isatty()
    os.close(ours)
    print("is anybody there?", file=stream, flush=True)
    stream.close()
    os.close(theirs)
