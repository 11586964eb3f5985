"""Files and folders that are whole or not there, also when the writer is killed."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from evaluators.durable import remove_leftovers, whole_folder, write_whole

WRITER = """
import sys
from pathlib import Path
from evaluators.durable import whole_folder
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""

REPLACER = """
import os, sys
from pathlib import Path
from evaluators.durable import whole_folder
left = int(sys.argv[2])
def die(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir"):
        left -= 1
        if left < 0:
            os._exit(9)
with whole_folder(Path(sys.argv[1]), replace=True) as folder:
    for name in "abc":
        (folder / name).write_text("new")
    sys.addaudithook(die)
"""
"""Dies at the nth change of a name after the new folder is filled."""


def test_a_folder_appears_when_it_is_full(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with whole_folder(target) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("text")
        assert not target.exists()
    assert (target / "inner" / "file").read_text() == "text"
    assert os.listdir(tmp_path / "new") == ["folder"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), whole_folder(tmp_path / "folder") as partial:
        (partial / "file").write_text("text")
        _ = 1 / 0
    assert os.listdir(tmp_path) == []


def test_a_full_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    with pytest.raises(OSError, match="exists already"), whole_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "folder" / "mine").read_text() == "mine"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_killed_writer_leaves_only_what_the_next_one_removes(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        remove_leftovers(tmp_path)
        assert os.listdir(tmp_path) == [
            f".folder.partial-{platform.node()}-{writer.pid}"
        ]  # it is at work
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert not target.exists()
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_replacement_killed_at_any_moment_leaves_no_half_folder(tmp_path: Path) -> None:
    seen, code, moment = [], 9, 0
    while code == 9:
        folder = tmp_path / str(moment)
        (folder / "target").mkdir(parents=True)
        for name in "abc":
            (folder / "target" / name).write_text("old")
        command = [sys.executable, "-c", REPLACER, str(folder / "target"), str(moment)]
        code = subprocess.run(command, check=False).returncode
        remove_leftovers(folder)
        assert os.listdir(folder) in ([], ["target"])
        seen.append({p.name + p.read_text() for p in folder.glob("target/*")})
        moment += 1
    assert code == 0
    old, new = {"aold", "bold", "cold"}, {"anew", "bnew", "cnew"}
    assert seen == [old, set()] + [new] * (len(seen) - 2)
    assert len(seen) > 6


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "deep" / "file", "old")
    write_whole(tmp_path / "deep" / "file", "new")
    assert (tmp_path / "deep" / "file").read_text() == "new"
    assert os.listdir(tmp_path / "deep") == ["file"]


def test_a_file_over_a_folder_fails_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "file", "text")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_a_file_over_what_is_no_regular_file_fails_and_leaves_it(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(OSError, match="found a device, pipe or socket, allowed: a regular file"):
        write_whole(tmp_path / name, "text")
    assert (tmp_path / name).is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.parametrize("name", ["/", ".", ".."])
def test_a_file_over_a_folder_without_a_name_of_its_own_fails(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError):
        write_whole(Path(name), "text")


def test_what_another_machine_writes_is_left_alone(tmp_path: Path) -> None:
    """Its process may live, whatever has its number here."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for machine in (platform.node(), f"{platform.node()}2"):
        (tmp_path / f".folder.partial-{machine}-{dead.pid}").mkdir()
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [f".folder.partial-{platform.node()}2-{dead.pid}"]
