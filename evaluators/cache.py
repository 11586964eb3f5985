"""What is worth keeping between processes: folders on disk that are made once and only read then.

    folder = published(Path("tables", key), build)

An entry's name follows from all that decides its content, so an entry never gets old and whoever
makes it makes the same. The whole cache may be removed at any time while nothing runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from evaluators.durable import remove_leftovers, whole_folder


def cache_root() -> Path:
    """`$MMMO_CACHE`, else `$XDG_CACHE_HOME/mmmo`, else `~/.cache/mmmo`; it need not be there."""
    if own := os.environ.get("MMMO_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mmmo"


def published(entry: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder of an entry, built first if it is not there.

    It is built under another name and renamed when it is whole and on disk: a process that is
    killed leaves no half entry, and what it leaves is removed by the next one that builds. Of two
    processes that build the same entry at once one is first, and both use its folder.

    Args:
        entry: path of the folder below `cache_root()`, such as `Path("tables", key)`.
        build: fills the empty folder that it is called with; never called if the entry is there.

    Raises:
        OSError: the cache cannot be written to. Whatever `build` raises is raised, too.
    """
    target = cache_root() / entry
    if target.is_dir():
        return target
    remove_leftovers(target.parent)
    try:
        with whole_folder(target) as partial:
            build(partial)
    except OSError:
        if not target.is_dir():  # else another process was first
            raise
    return target
