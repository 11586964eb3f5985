"""The executors under their contract, and what is the process pool's own."""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contracts.pool_contract import PoolContract, is_running, job, until, workbench_of
from plugins import SIZE, First

from evaluators.benchmarks.benchmark import Outcomes, Positions, Split
from evaluators.inline_pool import InlinePool
from evaluators.models import LiveModel
from evaluators.pool import EvaluatorPool, PoolError, open_pool
from evaluators.process_pool import ProcessPool
from evaluators.recipe import ModelRef
from evaluators.worker import EvaluationJob, Workbench

ROOT = Path(__file__).parents[2]
VAST = 1 << 20
"""Items; four bytes each."""


class TestInline(PoolContract):
    executor = "inline"
    survives_crashes = False

    def test_there_is_one_worker(self, workbench: Workbench) -> None:
        with pytest.raises(ValueError, match="exactly one worker, not 2"):
            open_pool("inline", workbench, 2)


class TestProcess(PoolContract):
    executor = "process"

    def test_a_worker_ignores_ctrl_c_and_writes_to_its_log(
        self, pool: ProcessPool, workbench: Workbench, folder: Path, capfd: pytest.CaptureFixture
    ) -> None:
        before = self.answer(pool, job(workbench, 1, "memory", "shout")).scores["memory"].outcomes
        os.kill(int(before[0]), signal.SIGINT)
        after = self.answer(pool, job(workbench, 2, "memory", "shout")).scores["memory"].outcomes
        assert after[0] == before[0]
        log = (folder / "logs" / "worker-0.log").read_text()
        assert log.count("a benchmark was here") >= 2
        assert capfd.readouterr() == ("", "")


def test_an_executor_may_be_named_by_its_path(tmp_path: Path) -> None:
    nowhere = Workbench(ModelRef(path=str(tmp_path)), {}, {})
    with open_pool("evaluators.inline_pool:InlinePool", nowhere, 1) as pool:
        assert isinstance(pool, InlinePool)


def test_sources_that_cannot_be_opened_fail_the_job(tmp_path: Path) -> None:
    workbench = workbench_of(tmp_path)
    asked = job(workbench, 1, "first")
    (tmp_path / "expert" / "model.safetensors").unlink()
    with open_pool("process", workbench, 1) as pool:
        pool.submit(asked)
        (result,) = pool.collect(None)
    assert result.failure is not None
    assert result.failure.kind == "loading_error"
    assert "expert" in result.failure.message


def test_a_log_that_takes_nothing_costs_no_trial(tmp_path: Path) -> None:
    workbench, logs = workbench_of(tmp_path), tmp_path / "logs"
    (logs / "worker-0.log").mkdir(parents=True)
    (logs / "worker-1.log").symlink_to("/dev/full")
    with open_pool("process", workbench, 2, log_folder=logs) as pool:
        for trial in range(2):
            pool.submit(job(workbench, trial, "shout"))
        results = [*pool.collect(None)]
        results += [] if len(results) == 2 else pool.collect(None)
    assert sorted((r.trial, r.failure) for r in results) == [(0, None), (1, None)]


def test_loading_has_a_time_limit_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluators.process_pool.LOADING_TIMEOUT_S", 0.01)
    workbench = workbench_of(tmp_path)
    with open_pool("process", workbench, 1) as pool:
        pool.submit(job(workbench, 1, "first"))
        (result,) = pool.collect(None)
    assert result.failure is not None
    assert result.failure.kind == "timeout"
    assert "not open within 0.01 s" in result.failure.message


def vast(workbench: Workbench, trial: int) -> EvaluationJob:
    """A job, with an answer, that no pipe holds."""
    known = np.zeros(VAST, dtype=np.float32)
    return replace(job(workbench, trial, "first"), known={"first": known})


def worker_of(pool: EvaluatorPool, workbench: Workbench) -> int:
    """The process number of the only worker."""
    pool.submit(job(workbench, 0, "memory"))
    (result,) = pool.collect(None)
    return int(result.scores["memory"].outcomes[0])


@contextmanager
def stopped(worker: int) -> Iterator[None]:
    """Stop a process; a test that fails to go on goes on when it is killed in the end."""
    os.kill(worker, signal.SIGSTOP)
    end = threading.Timer(60, os.kill, (worker, signal.SIGKILL))
    end.start()
    try:
        yield
    finally:
        end.cancel()


def test_a_vast_job_is_handed_over_while_the_caller_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench = workbench_of(tmp_path)
    with open_pool("process", workbench, 1) as pool:
        pool.submit(vast(workbench, 1))
        (result,) = pool.collect(None)
        assert result.failure is None
        assert result.scores["first"].n == VAST + 8
        worker = worker_of(pool, workbench)
        monkeypatch.setattr("evaluators.process_pool.LOADING_TIMEOUT_S", 0.5)
        with stopped(worker):
            pool.submit(vast(workbench, 2))
            (result,) = pool.collect(None)
        assert result.failure is not None
        assert (result.trial, result.failure.kind) == (2, "timeout")


def test_a_worker_that_stops_in_its_answer_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluators.process_pool._PAUSE_S", 1)
    workbench = workbench_of(tmp_path)
    with ProcessPool(workbench) as pool:
        worker = worker_of(pool, workbench)
        pool.submit(vast(workbench, 1))
        pipe = pool._slots[0].connection.fileno()
        until(lambda: waiting_bytes(pipe) > 1000)  # more than the time of the job's start
        with stopped(worker):
            (result,) = pool.collect(None)
        assert result.failure is not None
        assert result.failure.message == "it stopped in the middle of its answer"
        assert not is_running(worker)


def waiting_bytes(pipe: int) -> int:
    """How much can be read from a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])


def test_closing_leaves_no_process() -> None:
    nowhere = Workbench(ModelRef(path="nowhere"), {}, {})
    before = _children()
    with open_pool("process", nowhere, 2) as pool:
        started = _children() - before
        assert pool.free == 2
    pool.close()
    assert len(started) >= 2
    assert not any(is_running(pid) for pid in started if "resource_tracker" not in _command(pid))


def test_a_pool_whose_worker_cannot_be_replaced_can_be_closed(tmp_path: Path) -> None:
    workbench = workbench_of(tmp_path)
    asked, sent = job(workbench, 1, "first"), dict(workbench.benchmarks["first"].options)
    options: dict[str, object] = {**sent}
    benchmarks = {"first": replace(workbench.benchmarks["first"], options=options)}
    before = _children()
    pool = open_pool("process", replace(workbench, benchmarks=benchmarks), 1)
    started = [n for n in _children() - before if "resource_tracker" not in _command(n)]
    options["nobody can pickle this"] = lambda: None
    os.kill(started[0], signal.SIGKILL)
    until(lambda: not is_running(started[0]))
    with pool:
        files = set(os.listdir("/proc/self/fd"))
        with pytest.raises((AttributeError, pickle.PicklingError)) as failure:
            pool.submit(asked)
        assert set(os.listdir("/proc/self/fd")) <= files
    assert "lambda" in str(failure.value)
    assert not any(is_running(pid) for pid in started)


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_worker_that_cannot_be_replaced_is_one_line(tmp_path: Path) -> None:
    workbench = workbench_of(tmp_path)
    reason = r"workers cannot start: .*Too many open files"
    with open_pool("process", workbench, 1) as pool:
        worker = worker_of(pool, workbench)
        os.kill(worker, signal.SIGKILL)
        until(lambda: not is_running(worker))
        with no_more_files(), pytest.raises(PoolError, match=reason):
            pool.submit(job(workbench, 1, "first"))


class Leaves(First):
    """Starts a process outside its group that holds all pipes open; scores its number."""

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        child = subprocess.Popen(["sleep", "30"], close_fds=False, start_new_session=True)
        return np.full(SIZE, child.pid, dtype=np.float32)[items]


def test_a_worker_stops_whoever_holds_its_pipe_and_with_no_file_to_spare(tmp_path: Path) -> None:
    workbench = workbench_of(tmp_path)
    leaves = replace(workbench.benchmarks["first"], kind=f"{__name__}:Leaves")
    workbench = replace(workbench, benchmarks={"first": leaves})
    with ProcessPool(workbench) as pool:
        pool.submit(job(workbench, 1, "first"))
        (result,) = pool.collect(None)
        holder = int(result.scores["first"].outcomes[0])
        with stopped(pool._slots[0].process.pid or 0), no_more_files():
            pool.submit(vast(workbench, 2))
            pool.close()
        assert is_running(holder)  # nobody waited for it
        os.kill(holder, signal.SIGKILL)


def test_a_job_that_no_thread_can_hand_over_is_one_line(tmp_path: Path) -> None:
    workbench = workbench_of(tmp_path)
    with ProcessPool(workbench) as pool:
        worker = pool._slots[0].process.pid or 0
        before = threading.stack_size(1 << 47)  # bytes; no address space has them
        try:
            with pytest.raises(PoolError, match=r"workers cannot start: can't start new thread"):
                pool.submit(job(workbench, 1, "first"))
        finally:
            threading.stack_size(before)
        assert pool.free == 1
    assert not is_running(worker)


def test_a_worker_that_cannot_be_stopped_spares_no_other() -> None:
    pool = ProcessPool(Workbench(ModelRef(path="nowhere"), {}, {}), 3)
    first, lost, last = (slot.process for slot in pool._slots)
    others = [first.pid or 0, last.pid or 0]
    lost.kill()
    lost.join()
    lost.close()  # nobody can ask it anything from now on
    with pytest.raises(ValueError, match="closed"):
        pool.close()
    assert not any(is_running(pid) for pid in others)


LEFT_OPEN = """
import sys
from evaluators.pool import open_pool
from evaluators.recipe import ModelRef
from evaluators.worker import Workbench

def main():
    pool = open_pool("process", Workbench(ModelRef(path="nowhere"), {}, {}), 1)
    print(pool.free)

if __name__ == "__main__":
    sys.exit(main())
"""


def test_a_pool_left_open_lets_a_console_script_end(tmp_path: Path) -> None:
    script = tmp_path / "mmmo"
    script.write_text(LEFT_OPEN)
    command = [sys.executable, script]
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


HANGS = """
import pickle, sys
from evaluators.pool import open_pool
workbench, job = pickle.loads(bytes.fromhex(sys.argv[1]))
pool = open_pool("process", workbench, 1)
pool.submit(job)
pool.collect(None)
"""


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    workbench = workbench_of(tmp_path)
    asked: tuple[Workbench, EvaluationJob] = (workbench, job(workbench, 1, "hang"))
    parent = subprocess.Popen(
        [sys.executable, "-c", HANGS, pickle.dumps(asked).hex()], env=_environment()
    )
    until((tmp_path / "pids").exists)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(is_running(pid) for pid in pids)
    parent.kill()
    parent.wait()
    until(lambda: not any(is_running(pid) for pid in pids))


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def _children() -> set[int]:
    threads = Path("/proc/self/task").iterdir()
    return {int(pid) for t in threads for pid in (t / "children").read_text().split()}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
