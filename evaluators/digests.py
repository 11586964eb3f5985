"""Digests of files, remembered in the cache: a checkpoint of gigabytes is read for it only once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from evaluators.cache import cache_root
from evaluators.durable import write_whole

REMEMBERED_BYTES = 1 << 20
"""Smaller files are read again, which is as fast."""

_SETTLED_S = 2.0  # a clock may stand still between two writes of one file, but not for so long


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits.

    It is remembered by place, size, inode and times of change, so it is wrong only of a file whose
    content changed while all of these did not.

    Raises:
        OSError: it cannot be read.
    """
    status = path.stat()
    if status.st_size < REMEMBERED_BYTES:
        return _read_digest(path)
    identity = (str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    key = hashlib.sha256(repr((*identity, status.st_dev, status.st_ino)).encode()).hexdigest()
    memo = cache_root() / "digests" / key
    with suppress(OSError):
        return memo.read_text(encoding="ascii")
    digest = _read_digest(path)
    if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_S:
        with suppress(OSError):  # without a cache it is read again
            write_whole(memo, digest)
    return digest


def files_digest(paths: Iterable[Path]) -> str:
    """Hash of some files' names and contents, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def _read_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
