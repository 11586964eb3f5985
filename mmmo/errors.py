"""The errors that a user sees, and the exit codes that they end in.

    MmmoError ── Fault          1  something broke that is not the user's doing; state is safe
              ├─ UserError      2  a mistake in a file, an argument or a source
              │   └─ StoreError    the store cannot be opened, read or written
              ├─ AlreadyRunning 3  another live process writes this campaign
              └─ Interrupted  130  Ctrl-C was pressed; state is safe

A `UserError` may carry several problems; each is one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EDQUOT, ENOSPC

EXIT_DONE = 0
EXIT_INTERRUPTED = 130


class MmmoError(Exception):
    """One clear line, and a hint that says what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.hint = hint

    def lines(self) -> list[str]:
        """What the terminal shows."""
        return [self.message]


class Fault(MmmoError):
    """Something broke that is not the user's doing."""


class LeaseLost(Fault):
    """Another process took this campaign over; this one must stop writing."""


class UserError(MmmoError):
    """A mistake of the user: a file, an argument, a source."""

    exit_code = 2


class Problems(UserError):
    """Several mistakes found at once, each one line."""

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        super().__init__("; ".join(problems), hint)
        self.problems = tuple(" ".join(p.split()) for p in problems)

    def lines(self) -> list[str]:
        """One line per problem."""
        return list(self.problems)


class StoreError(UserError):
    """The store cannot be opened, read or written."""


def unwritable(place: object, error: OSError) -> UserError:
    """What to say of a place that cannot be written to."""
    return UserError(f"{place}: cannot be written: {error.strerror or error}", advice(error))


def advice(error: BaseException | None) -> str:
    """What to do about an error of the system, where that is known."""
    full = isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT)
    return "free some space, then run it again" if full else ""


class AlreadyRunning(MmmoError):
    """Another live process writes this campaign."""

    exit_code = 3


class Interrupted(MmmoError):
    """Ctrl-C was pressed, and the campaign's state is safe."""

    exit_code = EXIT_INTERRUPTED
