"""The builder cache: once, whole or not at all, carried on after a break, in processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.zoo import Advance, Part, build, content_key


class Writer:
    """A builder that counts its calls and may break off half-way."""

    def __init__(self) -> None:
        self.calls = 0
        self.breaks = False

    def __call__(self, folder: Path, advance: Advance) -> None:
        self.calls += 1
        (folder / "first").write_text(str(self.calls))
        if self.breaks:
            raise KeyboardInterrupt
        (folder / "second").write_text("whole")
        advance()


def test_builds_once_and_again_for_another_key(tmp_path: Path) -> None:
    writer = Writer()
    part = Part(tmp_path / "model", "a", writer)
    assert build([part]) == ["model"]
    assert build([part]) == []
    assert build([replace(part, key="b")]) == ["model"]
    assert (tmp_path / "model" / "first").read_text() == "2"


def test_broken_build_keeps_finished_parts_and_is_carried_on(tmp_path: Path) -> None:
    whole, broken = Writer(), Writer()
    broken.breaks = True
    parts = [Part(tmp_path / "one", "k", whole), Part(tmp_path / "two", "k", broken)]
    with pytest.raises(KeyboardInterrupt):
        build(parts)
    assert not (tmp_path / "two").exists()
    broken.breaks = False
    assert build(parts) == ["two"]
    assert (whole.calls, broken.calls) == (1, 2)


def test_folder_without_its_marker_is_rebuilt_from_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "second").write_text("half")
    (folder / "stale").write_text("of another build")
    assert build([Part(folder, "k", Writer())]) == ["model"]
    assert (folder / "second").read_text() == "whole"
    assert not (folder / "stale").exists()


def test_builds_in_processes(tmp_path: Path) -> None:
    parts = [Part(tmp_path / name, "k", Writer()) for name in ("one", "two")]
    assert build(parts, workers=2) == ["one", "two"]
    assert all(part.is_built for part in parts)


def _fail(folder: Path, advance: Advance) -> None:
    raise ValueError


def test_failure_in_a_process_is_named(tmp_path: Path) -> None:
    parts = [Part(tmp_path / "fine", "k", Writer()), Part(tmp_path / "bad", "k", _fail)]
    with pytest.raises(RuntimeError, match="building bad failed"):
        build(parts, workers=2)
    assert not (tmp_path / "bad").exists()


def test_content_key_sees_parameters_and_bytes(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_text("a")
    keys = {content_key({"lr": 1}, [file]), content_key({"lr": 2}, [file])}
    file.write_text("b")
    keys.add(content_key({"lr": 1}, [file]))
    assert len(keys) == 3
