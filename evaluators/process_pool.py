"""The executor `process`: spawned workers with warm models, killed and replaced one by one.

A worker that hangs, crashes or is killed costs the trial that it held, nothing else.
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import pickle
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection as pipes
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from evaluators.pool import PoolError
from evaluators.worker import (
    EvaluationJob,
    EvaluationResult,
    Failure,
    FailureKind,
    Workbench,
)
from evaluators.worker_process import serve

LOADING_TIMEOUT_S = 1800.0
"""A worker that was given a job must have sources and model open within this time."""

_LOOK_S = 1.0  # a worker's death is noticed after this even if its children hold its pipes open
_PAUSE_S = 30  # whole seconds between two parts of an answer
_LOG_TAIL = 4000  # bytes


@dataclass
class _Slot:
    """One worker process and the job that it holds.

    Attributes:
        end: what is under the connection; kept, as there may be no descriptor left to stop it with.
        sender: hands the job over; it waits where a pipe holds less than a job.
        deadline: on the monotonic clock.
        overdue: what to say when the deadline has passed.
    """

    process: SpawnProcess
    connection: Connection
    end: socket.socket
    log: Path | None
    job: EvaluationJob | None = None
    sender: threading.Thread | None = None
    deadline: float = math.inf
    overdue: str = ""


class ProcessPool:
    """Long-lived spawned workers, one pipe each. They start to load when the pool is made.

    Time-outs are enforced while the caller is in `collect`. A job's time runs from when its worker
    has sources, benchmarks and live model open; loading has a limit of its own,
    `LOADING_TIMEOUT_S`. Workers ignore Ctrl-C, have a process group each (so that what they start
    dies with them), and die with the caller, however it dies.
    """

    def __init__(
        self,
        workbench: Workbench,
        workers: int = 1,
        trial_timeout_s: float = math.inf,
        log_folder: Path | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"a pool has at least one worker, not {workers}")
        self._workbench = workbench
        self._trial_timeout_s = trial_timeout_s
        self._backlog: deque[EvaluationJob] = deque()
        if log_folder is not None:
            with _explained():
                log_folder.mkdir(parents=True, exist_ok=True)
        logs = [log_folder and log_folder / f"worker-{n}.log" for n in range(workers)]
        self._slots: list[_Slot] = []
        atexit.register(self.close)  # a pool left open must not keep the interpreter from ending
        self._slots += [self._start(log) for log in logs]

    @property
    def free(self) -> int:
        """How many workers hold no job."""
        return max(0, sum(slot.job is None for slot in self._slots) - len(self._backlog))

    def submit(self, job: EvaluationJob) -> None:
        """Hand the job to an idle worker, or queue it."""
        self._backlog.append(job)
        self._dispatch()

    def collect(self, timeout: float | None) -> list[EvaluationResult]:
        """Wait for answers, replacing workers that died or took too long.

        An answer that has begun is read to its end: a worker that pauses in the middle of it holds
        the caller up beyond `timeout`, for at most 30 s per pause.
        """
        give_up = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            answers = [self._answer(n) for n in range(len(self._slots))]
            self._dispatch()
            results = [answer for answer in answers if answer is not None]
            busy = [slot for slot in self._slots if slot.job is not None]
            if results or not busy or time.monotonic() >= give_up:
                return results
            until = min(give_up, *(slot.deadline for slot in busy))
            ends = [end for slot in busy for end in (slot.connection, slot.process.sentinel)]
            pipes.wait(ends, min(max(0.0, until - time.monotonic()), _LOOK_S))

    def close(self) -> None:
        """Kill every worker; they hold nothing that is not also elsewhere."""
        atexit.unregister(self.close)
        self._backlog.clear()
        with ExitStack() as stops:  # one that fails spares no other
            while self._slots:
                stops.callback(_stop, self._slots.pop())

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self, log: Path | None) -> _Slot:
        context = multiprocessing.get_context("spawn")
        with _explained(), ExitStack() as opened:
            ours, theirs = context.Pipe()
            opened.enter_context(ours)
            with theirs:
                end = opened.enter_context(socket.socket(fileno=os.dup(ours.fileno())))
                pause = struct.pack("ll", _PAUSE_S, 0)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, pause)
                process = context.Process(target=serve, args=(theirs, self._workbench, log))
                with _interrupts_held_back():
                    process.start()
            opened.pop_all()  # the slot has them
        return _Slot(process, ours, end, log)

    def _replace(self, n: int) -> None:
        """Start another first: if that fails or is interrupted, the pool can still be closed."""
        old = self._slots[n]
        self._slots[n] = self._start(old.log)
        _stop(old)

    def _dispatch(self) -> None:
        for n, slot in enumerate(self._slots):
            if not self._backlog:
                return
            if slot.job is None:
                if not slot.process.is_alive():  # died while idle: nobody else has noticed
                    self._replace(n)
                self._hand(self._slots[n], self._backlog.popleft())

    def _hand(self, slot: _Slot, job: EvaluationJob) -> None:
        message = pickle.dumps(job)
        with _explained():
            sender = threading.Thread(target=_send, args=(slot.connection, message), daemon=True)
            sender.start()
        slot.job, slot.sender = job, sender
        slot.deadline = time.monotonic() + LOADING_TIMEOUT_S
        slot.overdue = f"sources and model were not open within {LOADING_TIMEOUT_S:g} s"

    def _answer(self, n: int) -> EvaluationResult | None:
        """Answer the job of worker n, if there is something to say about it."""
        slot = self._slots[n]
        if slot.job is None:
            return None
        alive = slot.process.is_alive()  # asked first: what it sent before it died still counts
        result = self._receive(slot)
        if result is not None:
            slot.job, slot.deadline = None, math.inf
        elif not alive:
            slot.process.join()
            result = self._give_up(n, "worker_lost", f"the worker {_ending(slot.process)}")
        elif time.monotonic() > slot.deadline:
            result = self._give_up(n, "timeout", slot.overdue)
        return result

    def _receive(self, slot: _Slot) -> EvaluationResult | None:
        try:
            while slot.connection.poll():
                message: EvaluationResult | float = slot.connection.recv()
                if isinstance(message, EvaluationResult):
                    return message
                slot.deadline = message + self._trial_timeout_s
                slot.overdue = f"no scores within {self._trial_timeout_s:g} s"
        except BlockingIOError:
            slot.deadline, slot.overdue = -math.inf, "it stopped in the middle of its answer"
        except (EOFError, OSError):
            pass  # broken off by its death, which is noticed elsewhere
        return None

    def _give_up(self, n: int, kind: FailureKind, message: str) -> EvaluationResult | None:
        job, log = self._slots[n].job, self._slots[n].log
        self._replace(n)
        if job is None:
            return None
        failure = Failure(kind, message, _tail(log))
        return EvaluationResult(job.trial, job.attempt, failure=failure)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        # no folder for logs, or no more processes, threads, memory or open files
        raise PoolError(f"workers cannot start: {error}") from error


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let a child start with SIGINT blocked: until it ignores it, Ctrl-C would kill it noisily."""
    resource_tracker.ensure_running()  # starting it later would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(connection: Connection, job: bytes) -> None:
    with suppress(OSError):  # it died this moment: `collect` finds the job unanswered
        connection.send_bytes(job)


def _stop(slot: _Slot) -> None:
    with slot.connection, slot.end:
        pid = slot.process.pid
        with suppress(ProcessLookupError, PermissionError):  # no group yet, or all of it dead
            if pid is not None:
                os.killpg(pid, signal.SIGKILL)
        slot.process.kill()
        slot.process.join()
        slot.process.close()
        with suppress(OSError):
            slot.end.shutdown(socket.SHUT_RDWR)  # nobody sends on, whoever inherited the other end
        if slot.sender is not None:
            slot.sender.join()


def _ending(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    if code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"exited with code {code}"


def _tail(log: Path | None) -> str:
    if log is None:
        return ""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_TAIL))
            return file.read(_LOG_TAIL).decode(errors="replace")
    except OSError:  # it was never made, or is gone
        return ""
