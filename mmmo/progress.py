"""What a running campaign shows: a live bar on a terminal, one line per trial elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mmmo.history import History
from mmmo.records import Trial


class ProgressDisplay:
    """A watcher of a campaign; use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal
        self._seen: set[tuple[int, str, int]] = set()
        self._began: tuple[float, int] | None = None
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[front]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=False,
        )

    def __enter__(self) -> ProgressDisplay:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._bar.stop()

    def __call__(self, history: History) -> None:
        """Show what changed."""
        ended = [t for t in history.trials.values() if t.state in ("completed", "failed")]
        if self._began is None:
            self._began = (time.monotonic(), len(ended))
            self._seen = {_mark(t) for t in history.trials.values()}
        for trial in history.trials.values():
            if _mark(trial) not in self._seen and (trial.state != "proposed" or trial.failure):
                self._seen.add(_mark(trial))
                self._announce(history, trial)
        if self._live:
            self._draw(history, len(ended))

    def _announce(self, history: History, trial: Trial) -> None:
        if trial.state == "running":
            return
        if trial.state == "completed":
            values = "  ".join(
                f"{o.name} {trial.objective(o).value:.4g}" for o in history.objectives
            )
            line = f"trial {trial.number:3d}  {values}  hypervolume {_hypervolume(history)}"
        else:
            failure = trial.failure or {}
            verdict = "failed" if trial.state == "failed" else "will be tried again"
            line = f"trial {trial.number:3d}  {verdict}: {failure['kind']}: {failure['message']}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _draw(self, history: History, ended: int) -> None:
        if not self._bar.tasks:
            self._bar.add_task(history.name, total=None, front="", left="")
        self._bar.update(
            self._bar.tasks[0].id,
            total=history.config.budget.trials,
            completed=ended,
            front=f"front {len(history.pareto.front)}  hypervolume {_hypervolume(history)}",
            left=self._left(history, ended),
        )

    def _left(self, history: History, ended: int) -> str:
        """Time left, from the pace of this session."""
        began, before = self._began or (time.monotonic(), 0)
        if ended <= before:
            return "… left"
        pace = (time.monotonic() - began) / (ended - before)
        seconds = pace * max(history.config.budget.trials - ended, 0)
        return f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"


def _hypervolume(history: History) -> str:
    return f"{history.pareto.hypervolume():.4g}"


def _mark(trial: Trial) -> tuple[int, str, int]:
    return trial.number, trial.state, trial.failures
