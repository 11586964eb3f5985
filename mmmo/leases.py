"""Who writes a campaign: the identity of a process, and the lease that it holds.

A lease is lost at once when its process dies, if that can be seen (same machine), and otherwise
when it was not renewed for `TTL_S`. Safety does not rest on clocks: the store checks the lease's
owner inside the transaction of every write.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mmmo.errors import StoreError

TTL_S = 30.0
"""A lease whose holder cannot be seen is free this long after its last renewal."""


@dataclass(frozen=True)
class Holder:
    """A process, so described that a later one with the same number is not mistaken for it.

    Attributes:
        machine: boot and process namespace; processes can see each other where it is equal.
            Empty where the system does not tell (no `/proc`).
        started: start of the process, in clock ticks since boot.
    """

    host: str
    pid: int
    machine: str
    started: str

    @classmethod
    def this_process(cls) -> Holder:
        """Describe the process that asks."""
        state = _state_and_start(os.getpid())
        return cls(socket.gethostname(), os.getpid(), _machine(), state[1] if state else "")

    def is_alive(self) -> bool | None:
        """Whether the process still runs, or None if that cannot be seen from here."""
        if not self.machine or self.machine != _machine():
            return None
        found = _state_and_start(self.pid)
        return found is not None and found[0] not in "ZX" and found[1] == self.started


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _state_and_start(pid: int) -> tuple[str, str] | None:
    """State and start time from `/proc/<pid>/stat` (fields 3 and 22), None if there is no such."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name in brackets may hold anything
    return fields[0], fields[19]


class Lease:
    """The right to write one campaign, renewed by a thread until it is released.

    Args:
        campaign: id of the campaign.
        owner: a random token; the store knows the lease by it.
        after: id of the campaign's last event before it, 0 without one: what is requested later is
            meant for whoever holds this lease.
        ttl_s: seconds that it holds without a renewal; it is renewed three times as often.
        renew: returns False if the lease is not ours any more.
        release: gives it back; does nothing if it is not ours.
    """

    def __init__(  # noqa: PLR0913
        self,
        campaign: int,
        owner: str,
        after: int,
        ttl_s: float,
        renew: Callable[[Lease], bool],
        release: Callable[[Lease], None],
    ) -> None:
        self.campaign = campaign
        self.owner = owner
        self.after = after
        self.ttl_s = ttl_s
        self._renew = renew
        self._release = release
        self._lost = threading.Event()
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="mmmo-lease", daemon=True)
        self._heart.start()

    @property
    def lost(self) -> bool:
        """True once another process was seen to have taken over."""
        return self._lost.is_set()

    def mark_lost(self) -> None:
        """Another owner was found."""
        self._lost.set()
        self._done.set()

    def release(self) -> None:
        """Let the next writer in. Releasing twice is harmless."""
        self._done.set()
        self._heart.join()
        if not self.lost:
            with suppress(StoreError):  # then it frees itself: nobody renews it any more
                self._release(self)

    def _beat(self) -> None:
        while not self._done.wait(self.ttl_s / 3):
            try:
                if not self._renew(self):
                    self.mark_lost()
            except StoreError:
                continue  # the store is away: the next write tells the user, the next beat retries

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
