"""The executor `inline`: it scores in the calling process."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path

from evaluators.worker import EvaluationJob, EvaluationResult, Workbench, Worker


class InlinePool:
    """One worker in the calling process: `collect` runs the next job.

    Nothing can stop it: there is no time-out (`trial_timeout_s` cannot be kept), and a crash takes
    the caller along. Output goes where the caller's goes.

    Raises:
        ValueError: more or fewer than one worker.
    """

    def __init__(
        self,
        workbench: Workbench,
        workers: int = 1,
        trial_timeout_s: float = math.inf,
        log_folder: Path | None = None,
    ) -> None:
        if workers != 1:
            raise ValueError(f"the inline executor has exactly one worker, not {workers}")
        self._worker = Worker(workbench)
        self._queue: deque[EvaluationJob] = deque()

    @property
    def free(self) -> int:
        """One if nothing is queued."""
        return int(not self._queue)

    def submit(self, job: EvaluationJob) -> None:
        """Queue the job."""
        self._queue.append(job)

    def collect(self, timeout: float | None) -> list[EvaluationResult]:
        """Run the next job, however long it takes."""
        return [self._worker.run(self._queue.popleft())] if self._queue else []

    def close(self) -> None:
        """Drop what is queued."""
        self._queue.clear()

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
