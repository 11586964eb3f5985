"""What every executor must give. Inherit, and say how it is opened.

One pool with one worker serves all tests of a class (a worker takes seconds to import its
libraries), so every test leaves it idle, and thereby shows that it recovered from the one before.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from tiny_models import tiny_llama

from evaluators.pool import EvaluatorPool, open_pool
from evaluators.recipe import MergeRecipe, ModelRef
from evaluators.worker import (
    BenchmarkSpec,
    EvaluationJob,
    EvaluationResult,
    FailureKind,
    Workbench,
    Worker,
)

TIMEOUT_S = 4.0
ALL = slice(0, 8)
PLUGINS = ("First", "Memory", "Shout", "Raise", "Exit", "Kill", "Hang", "OutOfMemory")


def workbench_of(folder: Path) -> Workbench:
    """A tiny base, one expert, and every plug-in benchmark under its own name in lower case."""
    options = {"pids": str(folder / "pids")}
    return Workbench(
        base=ModelRef(path=str(tiny_llama(folder / "base", 0, layers=1))),
        experts={"expert": ModelRef(path=str(tiny_llama(folder / "expert", 1, layers=1)))},
        benchmarks={name.lower(): BenchmarkSpec(f"plugins:{name}", options) for name in PLUGINS},
    )


def job(workbench: Workbench, trial: int, *benchmarks: str, weight: float = 0.5) -> EvaluationJob:
    recipe = MergeRecipe(
        method="task_arithmetic",
        base=workbench.base,
        experts=dict(workbench.experts),
        parameters={"expert": {"weight": weight}},
    )
    return EvaluationJob(trial, recipe, dict.fromkeys(benchmarks, ALL), attempt=trial % 3)


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another process does; the limit only ends a failure."""
    give_up = time.monotonic() + 120
    while not true():
        if time.monotonic() > give_up:
            pytest.fail("it never happened")
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether any thread lives: the first may be dead while its parent cannot see it yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    fields = stat.rpartition(")")[2].split()
    state, threads = fields[0], int(fields[17])
    return state not in "ZX" or threads > 1


class PoolContract:
    executor: ClassVar[str]
    survives_crashes: ClassVar[bool] = True

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("pool")

    @pytest.fixture(scope="class")
    def workbench(self, folder: Path) -> Workbench:
        return workbench_of(folder)

    @pytest.fixture(scope="class")
    def pool(self, workbench: Workbench, folder: Path) -> Iterator[EvaluatorPool]:
        with open_pool(self.executor, workbench, 1, TIMEOUT_S, folder / "logs") as pool:
            yield pool

    @pytest.fixture
    def crashing(self, pool: EvaluatorPool) -> EvaluatorPool:
        if not self.survives_crashes:
            pytest.skip("this executor shares the caller's process")
        return pool

    @pytest.fixture
    def hanging(
        self, crashing: EvaluatorPool, workbench: Workbench, folder: Path
    ) -> tuple[int, int]:
        """Process numbers of a worker that hangs in trial 99, and of the child it started."""
        (folder / "pids").unlink(missing_ok=True)
        crashing.submit(job(workbench, 99, "hang"))
        until((folder / "pids").exists)
        worker, child = (int(pid) for pid in (folder / "pids").read_text().split())
        return worker, child

    def answer(self, pool: EvaluatorPool, submitted: EvaluationJob) -> EvaluationResult:
        pool.submit(submitted)
        (result,) = pool.collect(None)
        assert (result.trial, result.attempt) == (submitted.trial, submitted.attempt)
        assert pool.free == 1
        return result

    def fails(self, pool: EvaluatorPool, submitted: EvaluationJob, kind: FailureKind) -> str:
        """Return the failure's message, after a look that the pool still scores."""
        result = self.answer(pool, submitted)
        assert result.failure is not None
        assert result.failure.kind == kind
        assert not result.scores
        assert "\n" not in result.failure.message
        return result.failure.message

    def test_a_result_is_what_a_worker_gives(
        self, pool: EvaluatorPool, workbench: Workbench
    ) -> None:
        asked = job(workbench, 4, "first")
        result, expected = self.answer(pool, asked), Worker(workbench).run(asked)
        assert result.failure is None
        assert result.digest == expected.digest
        assert result.measures == expected.measures
        score = result.scores["first"]
        assert (score.value, score.n) == (expected.scores["first"].value, 8)
        assert np.array_equal(score.outcomes, expected.scores["first"].outcomes)
        assert set(result.timings) == {"load_s", "merge_s", "first_s"}

    def test_jobs_are_answered_once_and_in_order(
        self, pool: EvaluatorPool, workbench: Workbench
    ) -> None:
        for trial in range(6):
            pool.submit(job(workbench, trial, "first", weight=trial / 10))
            assert pool.free == 0
        results: list[EvaluationResult] = []
        while len(results) < 6:
            results += pool.collect(None)
        assert [r.trial for r in results] == list(range(6))
        values = [r.scores["first"].value for r in results]
        steps = np.diff(values)  # linear in the weight, so each answer belongs to its question
        assert steps == pytest.approx(np.full(5, steps[0]), rel=1e-4)
        assert steps[0] != 0.0
        assert pool.free == 1

    def test_nothing_to_do_is_no_wait(self, pool: EvaluatorPool) -> None:
        assert pool.collect(None) == []
        assert pool.free == 1

    def test_the_live_model_is_used_again(self, pool: EvaluatorPool, workbench: Workbench) -> None:
        seen = [
            self.answer(pool, job(workbench, trial, "memory")).scores["memory"].outcomes[:3]
            for trial in range(2)
        ]
        (pid, calls, models), (pid_again, calls_again, models_again) = seen
        assert pid == pid_again
        assert calls_again == calls + 1
        assert models == models_again == 1

    def test_an_error_costs_its_trial(self, pool: EvaluatorPool, workbench: Workbench) -> None:
        message = self.fails(pool, job(workbench, 1, "raise"), "benchmark_error")
        assert "this benchmark cannot score" in message
        assert self.answer(pool, job(workbench, 2, "first")).failure is None

    def test_memory_that_is_not_there_costs_its_trial(
        self, pool: EvaluatorPool, workbench: Workbench
    ) -> None:
        self.fails(pool, job(workbench, 1, "outofmemory"), "out_of_memory")
        assert self.answer(pool, job(workbench, 2, "first")).failure is None

    def test_a_worker_that_exits_costs_its_trial(
        self, crashing: EvaluatorPool, workbench: Workbench
    ) -> None:
        message = self.fails(crashing, job(workbench, 1, "exit"), "worker_lost")
        assert "code 3" in message

    def test_a_worker_that_is_killed_costs_its_trial(
        self, crashing: EvaluatorPool, workbench: Workbench
    ) -> None:
        message = self.fails(crashing, job(workbench, 1, "kill"), "worker_lost")
        assert "SIGKILL" in message
        assert self.answer(crashing, job(workbench, 2, "first")).failure is None

    def test_a_hanging_job_is_timed_out_with_all_that_it_started(
        self, crashing: EvaluatorPool, workbench: Workbench, hanging: tuple[int, int]
    ) -> None:
        assert crashing.collect(0.01) == []
        (result,) = crashing.collect(None)
        assert result.failure is not None
        assert (result.trial, result.failure.kind) == (99, "timeout")
        assert result.failure.message == "no scores within 4 s"
        until(lambda: not any(is_running(pid) for pid in hanging))
        assert crashing.free == 1

    def test_a_worker_may_be_killed_from_outside(
        self, crashing: EvaluatorPool, workbench: Workbench, hanging: tuple[int, int]
    ) -> None:
        os.kill(hanging[0], signal.SIGKILL)
        (result,) = crashing.collect(None)
        assert result.failure is not None
        assert (result.trial, result.failure.kind) == (99, "worker_lost")
        until(lambda: not is_running(hanging[1]))

    def test_an_idle_worker_may_be_killed_from_outside(
        self, crashing: EvaluatorPool, workbench: Workbench
    ) -> None:
        first = self.answer(crashing, job(workbench, 1, "memory")).scores["memory"].outcomes
        os.kill(int(first[0]), signal.SIGKILL)
        until(lambda: not is_running(int(first[0])))
        second = self.answer(crashing, job(workbench, 2, "memory")).scores["memory"].outcomes
        assert second[0] != first[0]
