"""Checkpoints that have to be made before they can be merged: drafts, and their place in the cache.

A draft is a checkpoint of which some tensors are computed anew. Publishing it writes an ordinary
model folder once; all processes map that folder. A draft without changes is its origin, and nothing
is written or copied.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluators.cache import cache_root, published
from evaluators.folders import (
    TOKENIZER_FILES,
    Checkpoint,
    Preparation,
    copy_companions,
    open_folder,
    read_tokens,
)
from evaluators.merging.stored import ShardWriter, SourceError, Spec, read_json
from evaluators.recipe import ModelRef

FORMAT = 1
"""Raise it when the same inputs no longer give the same folder."""

SHARD_BYTES = 5 * 10**9

_RECORD = "PREPARED"  # JSON, but not by its name: an export copies a folder's *.json


@dataclass(frozen=True)
class Change:
    """A tensor that is not the origin's: its type and shape, and how to compute it."""

    spec: Spec
    make: Callable[[], Tensor]


@dataclass(frozen=True)
class Draft:
    """A checkpoint before it is written.

    Attributes:
        ref: what the user calls it.
        origin: gives every tensor and file that is not changed.
        config: its `config.json`.
        about: folder whose README speaks of it.
        tokenizer: folder that its tokenizer files come from.
        tokenizer_texts: file name → text, in place of the file in that folder.
        changes: name → a tensor that is computed; it has a name of the origin's.
        inputs: digests and settings that decide the changes.
        done: what the changes are, a line each.
        warnings: what they leave out, a line each.
    """

    ref: ModelRef
    origin: Checkpoint
    config: Mapping[str, Any]
    about: Path
    tokenizer: Path
    tokenizer_texts: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Change] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, origin: Checkpoint, ref: ModelRef | None = None) -> Draft:
        """Begin with a checkpoint as it is."""
        about = origin.about or origin.folder
        return cls(ref or origin.ref, origin, origin.config, about, origin.folder)

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names, sorted."""
        return self.origin.names

    @cached_property
    def tokens(self) -> Mapping[str, int] | None:
        """Token → id of its tokenizer, or None if that cannot be told; see `read_tokens`."""
        return read_tokens(self.tokenizer)

    @cached_property
    def digest(self) -> str:
        """Hash of all that decides it; the origin's own without changes."""
        if not self.done:
            return self.origin.digest
        content = [str(FORMAT), self.origin.digest, *self.inputs]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()

    def spec(self, name: str) -> Spec:
        """Type and shape of a tensor; nothing is computed."""
        if name in self.changes:
            return self.changes[name].spec
        return self.origin.dtype(name), self.origin.shape(name)

    def tensor(self, name: str) -> Tensor:
        """Compute a tensor, or return the origin's; treat it as read-only."""
        return self.changes[name].make() if name in self.changes else self.origin.tensor(name)


def publish(draft: Draft, say: Callable[[str], object]) -> Checkpoint:
    """Open a draft as a checkpoint: its origin, or its folder in the cache, made if need be.

    Args:
        draft: what to open.
        say: told in one line what is done before it is, which may take minutes.

    Raises:
        SourceError: the cache cannot hold it.
    """
    if not draft.done:
        return (
            draft.origin if draft.ref == draft.origin.ref else replace(draft.origin, ref=draft.ref)
        )

    def build(folder: Path) -> None:
        say(f"{'; '.join(draft.done)}; writing {_size(draft) / 1e6:.1f} MB to {cache_root()}")
        _refuse_full_disk(folder, _size(draft))
        _write(draft, folder)

    try:
        folder = published(Path("sources", draft.digest), build)
    except OSError as error:
        reason = error.strerror or error
        raise SourceError(
            f"{draft.ref}: cannot be prepared in {cache_root()}: {reason} (set MMMO_CACHE)"
        ) from None
    opened = open_folder(draft.ref, folder, _preparation(folder, draft.digest))
    return replace(opened, about=draft.about)


def _preparation(folder: Path, digest: str) -> Preparation:
    record = read_json(folder / _RECORD)
    return Preparation(digest, tuple(record["done"]), tuple(record["warnings"]))


def _refuse_full_disk(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OSError(f"{needed_bytes / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free")


def _size(draft: Draft) -> int:
    specs = map(draft.spec, draft.names)
    return sum(dtype.itemsize * shape.numel() for dtype, shape in specs)


@torch.no_grad()
def _write(draft: Draft, folder: Path) -> None:
    specs = {name: draft.spec(name) for name in draft.names}
    writer = ShardWriter(folder, specs, SHARD_BYTES)
    for name in draft.names:
        writer.write(name, draft.tensor(name))
    _copy_companions(draft, folder)
    _write_json(folder / "config.json", draft.config)
    before = draft.origin.preparation or Preparation("", ())
    record = {
        "done": [*before.done, *draft.done],
        "warnings": [*before.warnings, *draft.warnings],
    }
    _write_json(folder / _RECORD, record)


def _copy_companions(draft: Draft, folder: Path) -> None:
    """Copy what a model folder holds beside its weights, and the draft's tokenizer."""
    copy_companions(draft.origin.folder, folder, without=TOKENIZER_FILES)
    for name in TOKENIZER_FILES:
        if name in draft.tokenizer_texts:
            (folder / name).write_text(draft.tokenizer_texts[name], encoding="utf-8")
        elif (draft.tokenizer / name).exists():
            shutil.copyfile(draft.tokenizer / name, folder / name)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
