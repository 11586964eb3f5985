"""What a running campaign shows: a live bar on a terminal, one line per trial elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mmmo.history import History
from mmmo.records import Trial

Mark = tuple[int, str, int, float, str]
"""What a line was written about: it is written again when any of these changes."""


class ProgressDisplay:
    """A watcher of a campaign; use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal
        self._seen: set[Mark] = set()
        self._began: tuple[float, float] | None = None
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
        done, total = _progress(history)
        if self._began is None:
            self._began = (time.monotonic(), done)
            self._seen = {_mark(t) for t in history.trials.values()}
        for trial in history.trials.values():
            if _mark(trial) not in self._seen and (trial.state != "proposed" or trial.failure):
                self._seen.add(_mark(trial))
                self._announce(history, trial)
        if self._live:
            self._draw(history, done, total)

    def _announce(self, history: History, trial: Trial) -> None:
        growth = trial.growth
        if trial.state == "running" or (growth is not None and growth.failure is None):
            return
        if growth is not None and growth.failure is not None:
            verdict = "keeps its scores" if growth.state == "failed" else "will be tried again"
            said = f"{growth.failure['kind']}: {growth.failure['message']}"
            line = f"trial {trial.number:3d}  on more items, {verdict}: {said}"
        elif trial.state == "completed":
            values = "  ".join(
                f"{o.name} {trial.objective(o).value:.4g}" for o in history.objectives
            )
            share = f"{trial.share:.0%} of the items  " if trial.share < 1 else ""
            line = f"trial {trial.number:3d}  {share}{values}  hypervolume {_hypervolume(history)}"
        else:
            failure = trial.failure or {}
            verdict = "failed" if trial.state == "failed" else "will be tried again"
            line = f"trial {trial.number:3d}  {verdict}: {failure['kind']}: {failure['message']}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _draw(self, history: History, done: float, total: float | None) -> None:
        if not self._bar.tasks:
            self._bar.add_task(history.name, total=None, front="", left="")
        self._bar.update(
            self._bar.tasks[0].id,
            total=total,
            completed=done,
            front=f"front {len(history.pareto.front)}  hypervolume {_hypervolume(history)}",
            left=self._left(done, total),
        )

    def _left(self, done: float, total: float | None) -> str:
        """Time left, from the pace of this session."""
        began, before = self._began or (time.monotonic(), 0)
        if total is None:
            return ""
        if done <= before:
            return "… left"
        pace = (time.monotonic() - began) / (done - before)
        seconds = pace * max(total - done, 0)
        return f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"


def _hypervolume(history: History) -> str:
    return f"{history.pareto.hypervolume():.4g}"


def _progress(history: History) -> tuple[float, float | None]:
    """What is done and what is to do: items if the budget counts them, else trials."""
    budget = history.config.budget
    if budget.items is not None:
        return history.scored_items, budget.items
    ended = [t for t in history.trials.values() if t.state in ("completed", "failed")]
    return len(ended), budget.trials


def _mark(trial: Trial) -> Mark:
    growth = trial.growth.state if trial.growth else ""
    return trial.number, trial.state, trial.attempts, trial.share, growth
