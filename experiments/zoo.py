"""Builds the folders of a model zoo once: cached by content, resumable, atomic, in parallel.

A part is one folder (a model, or a set of data files). Its key hashes all that decides its content:
parameters, input files, builder sources. The key is written last, into `.built`, and the folder
moves into place whole, so that a killed build leaves nothing that looks finished; finished parts
are kept, and the next call carries on after them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from types import TracebackType

from rich.console import Console
from rich.progress import Progress

MARKER = ".built"
POLL_S = 0.2

Advance = Callable[[], None]
"""A builder calls it after each of its steps."""


@dataclass(frozen=True)
class Part:
    """One folder to build.

    Attributes:
        folder: where it ends up; its name is what progress shows.
        key: from `content_key`.
        write: fills an empty folder and calls `Advance` once per step; picklable, because it may
            run in a process of its own.
        steps: how often `write` advances.
    """

    folder: Path
    key: str
    write: Callable[[Path, Advance], None]
    steps: int = 1

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    @property
    def is_built(self) -> bool:
        """Whether the folder is whole and holds what `key` says."""
        marker = self.folder / MARKER
        return marker.is_file() and marker.read_text() == self.key


def content_key(parameters: Mapping[str, object], files: Iterable[Path]) -> str:
    """Hash of builder parameters (JSON values) and of the bytes of input and source files."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def build(parts: Sequence[Part], workers: int = 1) -> list[str]:
    """Build what is missing or stale, at most `workers` parts at a time; names of what was built.

    The parts of one call do not depend on each other. With one worker all runs in this process.

    Raises:
        RuntimeError: a worker process ended without finishing its part; its traceback is on stderr.
    """
    missing = [part for part in parts if not part.is_built]
    if not missing:
        return []
    with Display(missing) as display:
        if min(workers, len(missing)) > 1:
            _build_in_processes(missing, workers, display)
        else:
            for part in missing:
                _build_one(part, lambda name=part.name: display.advance(name))  # type: ignore[misc]
    return [part.name for part in missing]


class Display:
    """Progress bars on a terminal; elsewhere a plain line per quarter of a part."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(console=self._console, disable=not self._console.is_terminal)
        self._rows = {p.name: self._bars.add_task(p.name, total=p.steps) for p in parts}

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def advance(self, name: str) -> None:
        """Note that the part called `name` has done one more step."""
        self._bars.advance(self._rows[name])
        row = self._bars.tasks[self._rows[name]]
        done, steps = int(row.completed), int(row.total or 1)
        if self._bars.disable and done * 4 // steps > (done - 1) * 4 // steps:
            self._console.print(f"zoo: {name} {done}/{steps}")


def _build_one(part: Part, advance: Advance) -> None:
    """Write the part beside its place, then move it there."""
    with _locked(part.folder):
        if part.is_built:  # by another process while this one waited
            return
        partial = part.folder.with_name(f".{part.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with _quiet():
            part.write(partial, advance)
        (partial / MARKER).write_text(part.key)
        shutil.rmtree(part.folder, ignore_errors=True)
        partial.rename(part.folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own bars for loading and saving out of ours."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees if this process dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_in_processes(parts: Sequence[Part], workers: int, display: Display) -> None:
    context = multiprocessing.get_context("spawn")
    steps: Queue[str] = context.Queue()
    waiting, running = list(parts), dict[str, BaseProcess]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                part = waiting.pop(0)
                process: BaseProcess = context.Process(
                    target=_child, args=(part, steps), daemon=True
                )
                process.start()
                running[part.name] = process
            _show(steps, display)
            for name in [n for n, process in running.items() if not process.is_alive()]:
                if running.pop(name).exitcode != 0:
                    raise RuntimeError(f"building {name} failed")
        _show(steps, display)
    finally:
        for process in running.values():
            process.terminate()


def _child(part: Part, steps: Queue[str]) -> None:
    """Build a part in a process of its own, which ends soon after its parent does."""
    parent = multiprocessing.parent_process()

    def advance() -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit(1)
        steps.put(part.name)

    _build_one(part, advance)


def _show(steps: Queue[str], display: Display) -> None:
    """Advance the display by all steps that have arrived, waiting shortly for the first."""
    try:
        display.advance(steps.get(timeout=POLL_S))
        while True:
            display.advance(steps.get_nowait())
    except Empty:
        return
