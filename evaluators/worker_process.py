"""What a process of the executor `process` runs."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import connection as pipes
from multiprocessing.connection import Connection
from pathlib import Path

from tqdm import tqdm

from evaluators.unfailing import unfailing
from evaluators.worker import EvaluationJob, Workbench, Worker


def serve(connection: Connection, workbench: Workbench, log: Path | None) -> None:
    """Run a worker process: load at once, then answer jobs until killed.

    Each job sends the monotonic time at which everything was loaded, then its result.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if log is not None:
        _write_to(log)
    sys.stdout, sys.stderr = unfailing(1), unfailing(2)  # no trial pays for a full log
    faulthandler.enable()
    for library in ("OMP", "MKL", "OPENBLAS"):  # read when torch is imported, below
        os.environ[f"{library}_NUM_THREADS"] = str(workbench.threads)
    # The lock that tqdm makes of itself, for torch's compiler, say, outlives a killed process.
    tqdm.set_lock(threading.RLock())
    worker = Worker(workbench)
    with suppress(Exception):  # the first job meets the same error and answers with it
        worker.warm()
    with suppress(EOFError):
        while True:
            job: EvaluationJob = connection.recv()
            connection.send(worker.run(job, lambda: connection.send(time.monotonic())))


def _write_to(log: Path) -> None:
    """Let this process's output go to a log, or nowhere if the log cannot be opened."""
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        pipes.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)
