"""Streams for what may be lost: a full disk, or a terminal that went away, stops no work."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def unfailing(descriptor: int, encoding: str = "utf-8") -> TextIO:
    """Open a file that is open already; what cannot be written there is lost, unsaid."""
    raw = _Unfailing(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True
    )


class _Unfailing(io.FileIO):
    """A file that takes all that it is given."""

    def write(self, data: ReadableBuffer) -> int:
        """Write what can be written, and claim that it was all."""
        try:
            written = super().write(data)
        except OSError:
            return memoryview(data).nbytes
        return memoryview(data).nbytes if written is None else written
