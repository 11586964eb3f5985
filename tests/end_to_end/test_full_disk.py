"""Disks that are full: one line and an exit code each, nothing lost, and it goes on with space.

A file that may not grow (`RLIMIT_FSIZE` of a running process) and `/dev/full` stand for the disk:
real errors of real writes, without rights that a test does not have.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from terminals import MMMO, TESTS, TIMEOUT_S, Terminal, repeatable

if TYPE_CHECKING:
    from mistakes import CommandLine

pytest_plugins = ("mistakes",)

SMALL = 48 * 1024
"""Bytes of a file: above SQLite's index in memory and short texts, below weights and reports."""


@pytest.fixture(scope="module")
def finished(right_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """A campaign that ran to its end and was exported."""
    folder = tmp_path_factory.mktemp("full") / "world"
    shutil.copytree(right_world, folder)
    opened = Terminal(folder)
    opened.run("launch", "campaign.yaml")
    opened.run("export", "example")
    return opened


def campaign(world: Path, **changes: Any) -> Terminal:
    """The campaign of that folder, with other sections."""
    opened = Terminal(world)
    opened.write(yaml.safe_load((world / "campaign.yaml").read_text()) | changes)
    return opened


def fill(process: subprocess.Popen[bytes]) -> None:
    """Let no file of a process grow beyond `SMALL`."""
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (SMALL, hard))


def last_line(opened: Terminal) -> str:
    said = (opened.folder / "output").read_text()
    assert "Traceback" not in said
    return said.splitlines()[-1]


def on_a_full_disk(opened: Terminal, *arguments: str) -> str:
    """The only line that a command says there."""
    (opened.folder / "output").unlink(missing_ok=True)
    with opened.start(*arguments) as process:
        fill(process)
        assert process.wait(TIMEOUT_S) == 2
    return last_line(opened)


def test_a_full_store_ends_a_campaign_that_goes_on_with_space(
    world: Path, command_line: CommandLine
) -> None:
    opened = campaign(world, budget={"trials": 100_000})
    with opened.start("launch", "campaign.yaml") as process:
        opened.wait_for("completed", 3, process)
        fill(process)
        assert process.wait(TIMEOUT_S) == 2
    said = last_line(opened)
    assert said.startswith("mmmo: store sqlite:///runs/mmmo.db: disk I/O error; check the disk")
    assert said.endswith("then resume the campaign")
    before = opened.events()
    wanted = len(opened.history().trials) + 2
    opened.run("resume", "example", "--trials", str(wanted))
    assert opened.events()[: len(before)] == before
    trials = opened.history().trials.values()
    assert [t.state for t in trials] == ["completed"] * wanted
    campaign(world, budget={"trials": wanted})
    other = f"sqlite:///{world}/other.db"
    assert command_line.run("launch", "campaign.yaml", "--store", other)[0] == 0
    expected = Terminal(world, {"MMMO_STORE": other}).history().trials.values()
    assert [*map(repeatable, trials)] == [*map(repeatable, expected)]


def test_an_export_is_whole_or_not_there(finished: Terminal, tmp_path: Path) -> None:
    out = tmp_path / "exports"
    export = ("export", "example", "--out", str(out))
    assert on_a_full_disk(finished, *export).endswith(": cannot be written: File too large")
    assert os.listdir(out) == []
    finished.run(*export)
    whole = finished.folder / "runs" / "example" / "exports"
    assert sorted(os.listdir(out)) == sorted(n for n in os.listdir(whole) if n != ".logs")
    for weights in out.rglob("*.safetensors"):
        assert weights.read_bytes() == (whole / weights.relative_to(out)).read_bytes()


def test_a_report_that_is_there_stays(finished: Terminal, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("an older report")
    said = on_a_full_disk(finished, "report", "example", "--out", str(page))
    assert said == f"mmmo: {page}: cannot be written: File too large"
    assert os.listdir(tmp_path) == ["page.html"]
    assert page.read_text() == "an older report"


def test_a_benchmark_without_space_costs_no_trial(world: Path, command_line: CommandLine) -> None:
    answers = world / "answers"
    answers.symlink_to("/dev/full")
    writer = {"kind": "plugins:Writer", "data": "-", "options": {"pids": str(world)}}
    campaign(
        world,
        benchmarks={"notes": writer},
        objectives={"notes": {"benchmark": "notes"}},
        constraints=[],
    )
    code, _, err = command_line.run("launch", "campaign.yaml")
    why = "ValueError: no answer ([Errno 28] No space left on device)"
    said = f"mmmo: workers cannot work (full_disk): {why}; the state is safe; "
    assert err.splitlines()[-1].startswith(said)
    assert code == 1
    assert {t.state for t in Terminal(world).history().trials.values()} == {"proposed"}
    answers.unlink()
    code, _, err = command_line.run("resume", "example")
    assert code == 0, err
    assert {t.state for t in Terminal(world).history().trials.values()} == {"completed"}


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        ("--help", ""),
        ("init new.yaml", ""),
        ("status --json", ""),
        ("status --json", "1"),
        ("trials example", "1"),
    ],
)
def test_results_that_cannot_be_printed_are_one_line(
    arguments: str, unbuffered: str, finished: Terminal, tmp_path: Path
) -> None:
    (finished.folder / "new.yaml").unlink(missing_ok=True)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*MMMO, *arguments.split()],
            cwd=finished.folder,
            env=os.environ | {"PYTHONPATH": str(TESTS.parent), "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    expected = "standard output: cannot be written: No space left on device; free some space"
    assert done.stderr == f"mmmo: {expected}, then run it again\n"
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("open('/nonexistent/config.json')", "FileNotFoundError: [Errno 2]"),
        ("raise OSError(errno.ENOMEM, 'no memory')", "OSError: [Errno 12] no memory"),
        ("open('/dev/full', 'wb', 0).write(b'x')", "OSError: [Errno 28]"),
        ("raise BrokenPipeError(errno.EPIPE, 'no worker')", "BrokenPipeError: [Errno 32]"),
    ],
)
def test_an_error_of_another_file_is_not_one_of_the_results(
    statement: str, error: str, world: Path
) -> None:
    """An error that nobody foresaw, in the middle of a verb."""
    (world / "faulty.py").write_text(
        "import errno\n"
        "from evaluators.benchmarks.likelihood import NLL as Faulty\n"
        "from mmmo.preflight import Preflight\n\n"
        f"def look(self):\n    {statement}\n\n"
        "Preflight._look_at_store = look\n"
    )
    opened = campaign(
        world,
        benchmarks={"sums": {"kind": "faulty:Faulty", "data": "-"}},
        objectives={"maths": {"benchmark": "sums"}},
    )
    with opened.start("check", "campaign.yaml") as process:
        assert process.wait(TIMEOUT_S) == 1
    said = (world / "output").read_text()
    assert said.startswith("Traceback")
    assert said.splitlines()[-1].startswith(error)
    assert "standard output" not in said


def test_progress_that_nobody_sees_stops_no_campaign(world: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*MMMO, "launch", "campaign.yaml"],
            cwd=world,
            env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert done.returncode == 0
    assert "example: finished, 2 completed of 2" in done.stdout
