"""Files and folders that appear whole under their names, or not at all.

Everything is made beside its place under a name that begins with a dot and ends in the writer's
machine and process id, brought to disk, and then renamed. A writer that was killed leaves only such
a dotted name behind, which the next one on its machine removes: machines may share a disk, and
whether a process lives is known on its own only.
"""

from __future__ import annotations

import glob
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EEXIST, EISDIR, ENOTEMPTY
from pathlib import Path


@contextmanager
def whole_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends well it becomes `target`.

    Args:
        target: the folder to be.
        replace: whether it is there already and gives way.

    Raises:
        OSError: nothing can be written there, or `target` is a folder that is not empty and is not
            to be replaced.
    """
    partial, old = _partial(target), _partial(target.with_name(f"{target.name}.old"))
    for left in (partial, old):  # by a dead process of our number
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        if replace:  # removed only under a dotted name: a half folder never has the real one
            os.replace(target, old)
        _rename(partial, target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_whole(target: Path, text: str) -> None:
    """Write a text file, replacing the one that is there.

    Raises:
        OSError: it cannot be written, or what is there is no file to replace.
    """
    _refuse_irregular(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target)
    try:
        partial.write_text(text, encoding="utf-8")
        _sync(partial)
        os.replace(partial, target)
        _sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what dead writers of this machine left in a folder: all of it, or of one name."""
    pattern = "*" if name is None else glob.escape(name)
    for path in folder.glob(f".{pattern}.partial-{glob.escape(platform.node())}-*"):
        process = path.name.rpartition("-")[2]
        if process.isdecimal() and not _is_alive(int(process)):
            # Another process may be removing it, too.
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(True)


def _rename(partial: Path, target: Path) -> None:
    try:
        os.replace(partial, target)
    except OSError as error:
        if error.errno not in (ENOTEMPTY, EEXIST):
            raise
        raise FileExistsError(EEXIST, "it exists already", str(target)) from None


def _refuse_irregular(target: Path) -> None:
    """Root may replace a folder's entry even if it is a device, which would be gone."""
    if target.is_dir():
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(target))
    if target.exists() and not target.is_file():
        found = "found a device, pipe or socket, allowed: a regular file, or a new one"
        raise FileExistsError(EEXIST, found, str(target))


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial-{platform.node()}-{os.getpid()}")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
