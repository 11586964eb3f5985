"""What a long merge shows: how much of the model is on disk."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE_S = 2.0
"""A merge that is done sooner shows nothing."""

_BLOCK = 512
"""What the system counts the disk space of a file in."""


class WritingDisplay:
    """Watches a folder that is being filled; use it as a context manager.

    The files of weights have their full size from the start, so the space that they take on disk,
    in relation to their size, says how far the writer is. On a terminal there is a bar, elsewhere
    a line at every tenth.
    """

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self._folder = folder
        self._console = console or Console(stderr=True)
        self._done = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> WritingDisplay:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        if self._done.wait(PATIENCE_S):
            return
        if self._console.is_terminal:
            self._draw()
        else:
            self._tell()

    def _draw(self) -> None:
        columns = (TextColumn("merging"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("merging", total=None)
            while not self._done.wait(0.2):
                written, total = written_bytes(self._folder)
                bar.update(task, completed=written, total=total or None)

    def _tell(self) -> None:
        started, told = time.monotonic(), 0
        while not self._done.wait(0.2):
            written, total = written_bytes(self._folder)
            tenth = 10 * written // max(total, 1)
            if tenth > told:
                told = tenth
                seconds = time.monotonic() - started + PATIENCE_S
                self._console.print(f"merging: {10 * tenth} %, {seconds:.0f} s", highlight=False)


def written_bytes(folder: Path) -> tuple[int, int]:
    """Measure a folder's weights: (bytes on disk, bytes in the end)."""
    states = [path.stat() for path in folder.glob("*.safetensors")]
    written = sum(min(state.st_blocks * _BLOCK, state.st_size) for state in states)
    return written, sum(state.st_size for state in states)
