"""Seconds of this process's processor time, of calls that take turns."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from functools import partial


def cpu_seconds(work: Callable[[], object]) -> float:
    """Seconds of processor time that this process spends in a call, over all its threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


def child_cpu_seconds(work: Callable[[], object]) -> float:
    """Seconds of processor time of the child processes that a call starts and awaits."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    started = spent()
    work()
    return spent() - started


def in_turns(works: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Time every work once per round, so that a busy spell of the machine hits all alike.

    Args:
        works: name → call, given the number of the round; round 0 warms up and is not timed.
        rounds: how often each is timed.

    Returns:
        name → seconds of processor time, one per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            spent = cpu_seconds(partial(work, number))
            if number > 0:
                seconds[name].append(spent)
    return seconds
