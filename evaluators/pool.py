"""Where jobs run: `EvaluatorPool`, and the table of its executors.

A pool answers every job once, with scores or with a typed failure; whether to try again is the
caller's decision.
"""

from __future__ import annotations

import math
from pathlib import Path
from pkgutil import resolve_name
from typing import Protocol

from evaluators.worker import EvaluationJob, EvaluationResult, Workbench

EXECUTORS = {
    "inline": "evaluators.inline_pool:InlinePool",
    "process": "evaluators.process_pool:ProcessPool",
}
"""Executor → class, called with the arguments of `open_pool` after the first."""


class PoolError(Exception):
    """No worker can be started; one clear line."""


class EvaluatorPool(Protocol):
    """Takes jobs, answers each once, in any order. A context manager that closes itself.

    Opening, `submit` and `collect` raise `PoolError` where a worker has to be started and cannot.
    """

    @property
    def free(self) -> int:
        """How many more jobs would start at once."""
        ...

    def submit(self, job: EvaluationJob) -> None:
        """Start the job, or queue it if no worker is free."""
        ...

    def collect(self, timeout: float | None) -> list[EvaluationResult]:
        """Wait for answers.

        Args:
            timeout: seconds; None waits as long as there are jobs.

        Returns:
            The answers as soon as there is at least one; none at the time-out, or if no job is
            left.
        """
        ...

    def close(self) -> None:
        """End everything at once; jobs without an answer are dropped. Closing twice is harmless."""
        ...

    def __enter__(self) -> EvaluatorPool: ...

    def __exit__(self, *error: object) -> None: ...


def open_pool(
    executor: str,
    workbench: Workbench,
    workers: int,
    trial_timeout_s: float = math.inf,
    log_folder: Path | None = None,
) -> EvaluatorPool:
    """Open an executor: a key of `EXECUTORS` or a dotted path `module:Class`.

    Args:
        executor: which.
        workbench: what every worker opens and keeps.
        workers: how many jobs run at a time.
        trial_timeout_s: seconds for one job, from when its worker has everything loaded.
        log_folder: where each worker's output goes; None leaves it on the terminal.

    Raises:
        PoolError: no folder for logs can be made, or no process can be started.
    """
    opened: EvaluatorPool = resolve_name(EXECUTORS.get(executor, executor))(
        workbench, workers, trial_timeout_s, log_folder
    )
    return opened
