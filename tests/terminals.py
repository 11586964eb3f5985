"""A terminal for tests: commands of `mmmo` typed in a folder, as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mmmo.history import History
from mmmo.records import Trial
from mmmo.store import Event, Store

TIMEOUT_S = 180.0
"""No command of these tests takes so long, on any machine."""

TESTS = Path(__file__).parent
MMMO = (sys.executable, "-m", "mmmo")
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def without_progress(err: str) -> str:
    """Leave out what is only said on a machine that is slow just then."""
    lines = err.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("merging: ", "kernels of ")))


@dataclass(frozen=True)
class Terminal:
    """A folder with a `campaign.yaml`, a store, and what the commands write.

    Attributes:
        settings: environment variables beside those of this process.
    """

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    def write(self, campaign: Mapping[str, Any]) -> None:
        """Write the campaign file; without a `store` it uses the default one, in this folder."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "campaign.yaml").write_text(yaml.safe_dump(dict(campaign), sort_keys=False))

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Wait for a command, which must end with this exit code."""
        done = subprocess.run(
            [*MMMO, *arguments],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def read(self, *arguments: str) -> Any:
        """What a reading verb prints with `--json`."""
        return json.loads(self.run(*arguments, "--json").stdout)

    @contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command and go on; it is killed at the end, if it still runs."""
        with (
            (self.folder / "output").open("ab") as output,
            subprocess.Popen(
                [*MMMO, *arguments],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            ) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    @cached_property
    def store(self) -> Store:
        """The store that the commands use."""
        default = f"sqlite:///{self.folder / 'runs' / 'mmmo.db'}"
        return Store(self.settings.get("MMMO_STORE", default))

    def history(self) -> History:
        """The campaign of this terminal."""
        return History(self.store, self.store.campaigns()[0].name)

    def events(self) -> list[Event]:
        """All events of the campaign; none while there is no campaign."""
        rows = self.store.campaigns()
        return self.store.events(rows[0].name) if rows else []

    def count(self, kind: str) -> int:
        """How many events of that kind there are."""
        return sum(event.kind == kind for event in self.events())

    def wait_for(self, kind: str, count: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until there are so many events of that kind."""
        wait_until(lambda: self.count(kind) >= count, process)

    def _environment(self) -> dict[str, str]:
        found = {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
        kept = {k: v for k, v in os.environ.items() if k != "MMMO_STORE"}
        return kept | SETTINGS | found | dict(self.settings)


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Look again and again until it happened; the process must not end before."""
    give_up = time.monotonic() + TIMEOUT_S
    while not happened():
        assert process.poll() is None, f"the process ended with exit code {process.returncode}"
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.02)


def repeatable(trial: Trial) -> dict[str, Any]:
    """Everything about a trial that must repeat, bit for bit: all but dates and durations."""
    kept = ("number", "key", "x", "recipe", "diagnostics", "state", "measures", "digest")
    scores = {n: (m.value, m.se, m.n, m.outcomes) for n, m in trial.scores.items()}
    return {name: getattr(trial, name) for name in kept} | {
        "scores": scores,
        "answered_by": trial.answered_by,
    }


def children(pid: int) -> list[int]:
    """Process numbers of the workers that a process has spawned."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in path.read_text().split()] if path.exists() else []
    return [child for child in found if "spawn_main" in _command_of(child)]


def is_running(pid: int) -> bool:
    """Whether there is such a process and it is no zombie."""
    return state_of(pid) not in ("", "Z", "X")


def state_of(pid: int) -> str:
    """Its letter of `/proc/<pid>/stat`, or nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
