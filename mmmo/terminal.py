"""The terminal: what is said there beside results, and what becomes of it if it is gone."""

from __future__ import annotations

import os
import sys

from evaluators.unfailing import unfailing


def tell(line: str) -> None:
    """Say on stderr what is no result, such as why nothing moves for a while."""
    print(line, file=sys.stderr, flush=True)


def secure_streams() -> None:
    """Lose what cannot be said, from now on: no work ends because stderr is full or closed."""
    while (taken := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a closed descriptor would become that of some file, and be written over
    os.close(taken)
    sys.stdout = sys.stdout or unfailing(1)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = unfailing(2, sys.stderr.encoding if sys.stderr else "utf-8")
