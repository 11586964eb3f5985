"""The terminal: what is said there beside results, and what becomes of it if it is gone."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from evaluators.unfailing import unfailing

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class OutputLost(Exception):
    """Standard output takes no more: no `OSError`, so that it is told from those of other files."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def tell(line: str) -> None:
    """Say on stderr what is no result, such as why nothing moves for a while."""
    print(line, file=sys.stderr, flush=True)


def secure_streams() -> None:
    """From now on lose what stderr does not take, and raise `OutputLost` for what stdout does not.

    No work ends because stderr is full or closed; results that nobody gets are an error.
    """
    while (taken := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a closed descriptor would become that of some file, and be written over
    os.close(taken)
    if sys.stdout is None:
        sys.stdout = unfailing(1)
    elif sys.stdout is sys.__stdout__:
        sys.stdout = _results(sys.__stdout__)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = unfailing(2, sys.stderr.encoding if sys.stderr else "utf-8")


def _results(stdout: io.TextIOWrapper) -> io.TextIOWrapper:
    """Open standard output again, with its settings."""
    at_once = stdout.line_buffering or stdout.write_through  # the latter: PYTHONUNBUFFERED
    raw = io.BufferedWriter(_Results(stdout.fileno(), "wb", closefd=False))
    return io.TextIOWrapper(raw, stdout.encoding, stdout.errors, line_buffering=at_once)


class _Results(io.FileIO):
    """A file with an error of its own."""

    def write(self, data: ReadableBuffer) -> int:
        """Write what can be written now.

        Raises:
            OutputLost: nothing can be.
        """
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLost(error) from error
