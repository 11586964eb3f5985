"""Wrong arguments, wrong stores and campaigns that changed: one clear line each, exit code 2."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from terminals import MMMO, TESTS, TIMEOUT_S, Terminal

from mmmo.campaign import Campaign
from mmmo.config import load
from mmmo.creation import create
from mmmo.store import Store

if TYPE_CHECKING:
    from mistakes import CommandLine

pytest_plugins = ("mistakes",)

POSTGRES = "postgresql+psycopg://me:secret@127.0.0.1:1/merges"
READING = ("status", "trials", "pareto", "export", "report", "stop", "resume")


@pytest.fixture(scope="module")
def finished(right_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the campaign ran to its end; tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "world"
    shutil.copytree(right_world, folder)
    with contextlib.chdir(folder):
        config = load(Path("campaign.yaml"))
        opened = Store(config.store)
        create(opened, config)
        Campaign(opened, config, Path("runs")).run()
        opened.close()
    return folder


@pytest.fixture
def launched(world: Path, command_line: CommandLine) -> Path:
    """The same for a test that spoils it."""
    assert command_line.run("launch", "campaign.yaml")[0] == 0
    return world


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "Missing command"),
        ("lanch campaign.yaml", "No such command 'lanch'. Did you mean 'launch'?"),
        ("check", "Missing argument 'FILE'"),
        ("check campaign.yaml more", "unexpected extra argument(s) (more)"),
        ("check --fast campaign.yaml", "No such option: --fast"),
        ("launch nothing.yaml", "nothing.yaml: no such file"),
        ("resume", "Missing argument 'NAME'"),
        ("resume example --trials 0", "'--trials': Input should be greater than or equal to 1"),
        ("resume example --trials many", "'--trials': Input should be a valid integer"),
        ("resume example --workers 0", "'--workers': Input should be greater than or equal to 1"),
        ("show example", "Missing argument 'TRIAL'"),
        ("show example first", "'TRIAL': Input should be a valid integer"),
        ("export example --trial first", "'--trial': Input should be a valid integer"),
        ("export example --out", "'--out' requires an argument"),
        ("init campaign.yaml", "campaign.yaml: exists already; name another file"),
        ("init nowhere/campaign.yaml", "nowhere/campaign.yaml: cannot be written: No such file"),
    ],
)
def test_wrong_arguments(
    arguments: str, expected: str, world: Path, command_line: CommandLine
) -> None:
    assert expected in command_line.complaint(*arguments.split())


@pytest.mark.parametrize("verb", READING)
def test_campaigns_that_are_not_there(verb: str, world: Path, command_line: CommandLine) -> None:
    line = command_line.complaint(verb, "nobody")
    assert "no campaign 'nobody'; `mmmo status` lists them" in line
    assert not (world / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("show example 7", "campaign 'example' has no trial 7; trials: 0 to 1"),
        ("export example --trial 9", "has no trial 9; trials: 0 to 1"),
        ("export example --trial 0 --knee", "at most one of --trial, --knee and --prefer"),
        ("export example --knee --prefer maths=1", "at most one of --trial, --knee and --prefer"),
        ("export example --prefer maths", "found 'maths', allowed: objective=weight"),
        ("export example --prefer maths=much", "found 'maths=much', allowed: objective=weight"),
        ("export example --prefer math=1", "'math' is no objective; allowed: maths, code"),
        ("export example --prefer maths=-1", "maths=-1.0: a weight is a number of 0 or more"),
        ("export example --prefer maths=nan", "maths=nan: a weight is a number of 0 or more"),
        ("export example --prefer maths=1,maths=2", "--prefer: maths is there twice"),
        ("export example --prefer maths=0,code=0", "at least one weight must be above 0"),
        ("report example --out base", "base: cannot be written: Is a directory"),
        ("report example --out sums.jsonl/x.html", "sums.jsonl/x.html: cannot be written"),
        ("resume example --workers 2", "--workers 2: the inline executor has one worker"),
        ("resume exmple", "no campaign 'exmple'; did you mean 'example'?"),
        ("stop example", "campaign 'example' is not running"),
    ],
)
def test_a_finished_campaign_and_wrong_wishes(
    arguments: str,
    expected: str,
    finished: Path,
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(finished)
    assert expected in command_line.complaint(*arguments.split())


@pytest.mark.parametrize("wish", [(), ("--knee",), ("--prefer", "maths=1")])
def test_nothing_to_export_yet(
    wish: tuple[str, ...], world: Path, command_line: CommandLine
) -> None:
    config = load(Path("campaign.yaml"))
    opened = Store(config.store)
    create(opened, config)
    opened.close()
    line = command_line.complaint("export", "example", *wish)
    assert line == "campaign 'example' has no completed trial yet"
    assert "no trial 0; trials: none yet" in command_line.complaint("show", "example", 0)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("runs/mmmo.db", "store: not a database URL: 'runs/mmmo.db'…; write sqlite:///path"),
        ("mysql://me:secret@host/x", "store: 'mysql' is neither sqlite nor postgresql+psycopg"),
        ("postgresql://me:secret@host/x", "store: 'postgresql' is neither sqlite nor postgresql+"),
        ("sqlite://", "store: 'sqlite://' names no file"),
        ("sqlite:///:memory:", "store: 'sqlite:///:memory:' names no file"),
        ("sqlite:///x.db?mode=ro", "only ?timeout=<seconds> may follow the path"),
        ("sqlite:////proc/x/y.db", "store sqlite:////proc/x/y.db: [Errno 2] No such file"),
        ("sqlite:///sums.jsonl", "file is not a database; this file is something else"),
        ("sqlite:///base", "unable to open database file; check that the path is a file"),
        ("sqlite:///cats.db", "a database of another program (its table 'cats')"),
        (POSTGRES, 'connection to server at "127.0.0.1", port 1 failed'),
        (
            "postgresql+psycopg://me:secret@nowhere.invalid/x",
            "failed to resolve host 'nowhere.invalid'",
        ),
    ],
)
def test_wrong_stores(url: str, expected: str, world: Path, command_line: CommandLine) -> None:
    with contextlib.closing(sqlite3.connect("cats.db")) as cats:
        cats.execute("CREATE TABLE cats (name TEXT)")
    line = command_line.complaint("launch", "campaign.yaml", "--store", url)
    assert expected in line
    assert "secret" not in line


def test_no_folder_for_logs(world: Path, command_line: CommandLine) -> None:
    file = Path("campaign.yaml")
    file.write_text(file.read_text().replace("executor: inline", "executor: process"))
    Path("runs").write_text("is no folder")
    store = f"sqlite:///{world}/x.db"
    code, _, err = command_line.run("launch", "campaign.yaml", "--store", store)
    assert code == 2
    expected = "mmmo: workers cannot start: [Errno 20] Not a directory: 'runs/example/logs'"
    assert err.splitlines()[-1] == expected


@pytest.mark.parametrize("verb", ["check", "launch"])
@pytest.mark.parametrize("name", ["mmmo.db", "mmmo.db-wal"])
def test_a_campaign_named_like_the_store(
    verb: str, name: str, world: Path, command_line: CommandLine
) -> None:
    file = Path("campaign.yaml")
    file.write_text(file.read_text().replace("name: example", f"name: {name}"))
    line = command_line.complaint(verb, "campaign.yaml")
    expected = f"name: found '{name}', but runs/{name} is the store's own file, allowed: any other"
    assert line.startswith(expected)
    assert not Path("runs").exists()


def test_a_campaign_named_like_a_file(world: Path, command_line: CommandLine) -> None:
    Path("runs").mkdir()
    Path("runs/example").write_text("is no folder")
    line = command_line.complaint("launch", "campaign.yaml")
    assert line == "name: found 'example', but runs/example is a file, allowed: any other name"
    assert os.listdir("runs") == ["example"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_went_away_is_no_mistake(tmp_path: Path, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*MMMO, "status"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TESTS.parent), "PYTHONUNBUFFERED": unbuffered},
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=TIMEOUT_S,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_store_of_the_environment(
    world: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMMO_STORE", "oracle://host/x")
    assert "store: 'oracle' is neither" in command_line.complaint("status")


@pytest.mark.parametrize(
    ("old", "new", "section"),
    [
        ("seed: 3", "seed: 4", "seed"),
        ("float32", "bfloat16", "merge"),
        ("batch: 2", "batch: 1", "search"),
        ("data: python.jsonl, limit: 4", "data: python.jsonl, limit: 5", "benchmarks"),
    ],
)
def test_launch_of_another_campaign_by_the_same_name(
    old: str,
    new: str,
    section: str,
    finished: Path,
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(finished)
    other = finished / "other.yaml"
    other.write_text((finished / "campaign.yaml").read_text().replace(old, new))
    line = command_line.complaint("launch", "other.yaml")
    assert line.startswith(f"campaign 'example' exists with another {section}; choose another name")


def test_weights_that_changed(launched: Path, command_line: CommandLine) -> None:
    shutil.copyfile(Path("maths/model.safetensors"), Path("code/model.safetensors"))
    expected = "sources.code: the weights changed since the campaign began; put them back"
    assert expected in command_line.complaint("resume", "example", "--trials", 3)
    assert expected in command_line.complaint("export", "example")


def test_data_that_changed(launched: Path, command_line: CommandLine) -> None:
    data = launched / "sums.jsonl"
    data.write_text(data.read_text().replace("+1=", "+01="))
    line = command_line.complaint("resume", "example", "--trials", 3)
    assert line.startswith("benchmarks.sums: the items changed since the campaign began")


def test_sources_that_are_gone(launched: Path, command_line: CommandLine) -> None:
    shutil.rmtree(launched / "code")
    line = command_line.complaint("resume", "example", "--trials", 3)
    assert line.startswith("sources.code: ")
    assert line.endswith("code: no such folder")
    assert "code: no such folder" in command_line.complaint("export", "example")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "mmmo: Missing command"),
        (("show", "example", "first"), "mmmo: Invalid value for 'TRIAL'"),
        (("check", "nothing.yaml"), "mmmo: nothing.yaml: no such file"),
        (("resume", "nobody"), "mmmo: store sqlite:///runs/mmmo.db: no campaign 'nobody'"),
    ],
)
def test_in_a_process_of_its_own(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    done = Terminal(tmp_path).run(*arguments, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith(expected)
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("imported", ["typer", "torch"])
def test_ctrl_c_is_one_line(imported: str, tmp_path: Path) -> None:
    """While the verbs are imported, and in one of them."""
    # What runs the tests may ignore Ctrl-C, as a shell's background does; its children do, too.
    heeded = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    pressed = f"import os, signal\n{heeded}\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / f"{imported}.py").write_text(pressed)
    path = os.pathsep.join(map(str, (tmp_path, TESTS, TESTS.parent)))
    done = Terminal(tmp_path, {"PYTHONPATH": path}).run("merge", "config.yml", "out", code=130)
    assert (done.stdout, done.stderr) == ("", "mmmo: interrupted\n")
