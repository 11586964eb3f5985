"""LoRA adapters as changes of a base: W + s·B·A.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), eq. 3, with s = α/r; rank-
stabilised with s = α/√r (Kalajdzievski 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from evaluators.digests import files_digest
from evaluators.folders import (
    ADAPTER_CONFIG,
    ADAPTER_MODEL,
    EMBEDDINGS,
    TOKENIZER_FILES,
    Checkpoint,
    some,
)
from evaluators.merging.stored import SourceError
from evaluators.peft_format import Adapter, LowRank, open_adapter
from evaluators.prepared import Change, Draft
from evaluators.recipe import ModelRef
from evaluators.vocabulary import is_of_vocabulary, with_vocabulary

BLOCK = 1 << 22
"""Elements of a product that are computed at a time."""


def adapted(base: Checkpoint, folder: Path, ref: ModelRef) -> Draft:
    """Draft the model that an adapter makes of a base.

    Args:
        base: what the adapter is applied to, whatever base its own configuration names.
        folder: of the adapter. Its tokenizer counts if it has one.
        ref: what the result is called.

    Raises:
        SourceError: another kind of adapter, or one of another model; one line.
    """
    adapter = open_adapter(folder)
    match = _Matching(base, adapter)
    whole = _matched_whole(base, adapter, match)
    pairs = {match(f"{module}.weight"): pair for module, pair in adapter.pairs.items()}
    flips = _flips(base, adapter, pairs, whole)
    changes = {
        name: _change(base, name, whole.get(name), pairs.get(name), flips.get(name, False))
        for name in sorted({*whole, *pairs})
    }
    tokenizer = folder if (folder / "tokenizer.json").exists() else base.folder
    names = [ADAPTER_CONFIG, ADAPTER_MODEL, *(TOKENIZER_FILES if tokenizer == folder else ())]
    count = len(changes)
    return replace(
        Draft.of(base, ref),
        config=_config(base, changes),
        about=folder,
        tokenizer=tokenizer,
        changes=changes,
        inputs=("adapter", files_digest(filter(Path.exists, (folder / n for n in names)))),
        done=(f"a LoRA adapter applied to {count} tensors",),
    )


class _Matching:
    """Finds the tensors of a base that an adapter's names mean."""

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        self._base, self._adapter = base, adapter
        self._meant: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """Find a tensor; the model may be renamed in memory, or be without the prefix of a head.

        Raises:
            SourceError: there is none, or more than one, or one that has another name, too.
        """
        found = [name] if name in self._base.tensors else self._alike(name)
        found = found or self._alike(self._renamed.get(name, name))
        if len(found) == 1 and self._meant.setdefault(found[0], name) == name:
            return found[0]
        raise SourceError(
            f"{self._adapter.folder}: the base has no tensor {name}, which it changes"
        )

    def _alike(self, name: str) -> list[str]:
        names = self._base.names
        return [n for n in names if n == name or n.endswith(f".{name}") or name.endswith(f".{n}")]

    @cached_property
    def _renamed(self) -> Mapping[str, str]:
        from evaluators.live_names import file_names  # takes seconds, and is seldom needed

        try:
            return file_names(self._base.folder)
        except (OSError, ValueError, KeyError, RuntimeError):
            return {}  # the model library does not know the model: names are what they are


def _matched_whole(base: Checkpoint, adapter: Adapter, match: _Matching) -> dict[str, Tensor]:
    """Find the base's tensors that are replaced; only those of a vocabulary may change in size."""
    whole = dict(adapter.whole)
    if base.config.get("tie_word_embeddings"):
        _drop_tied_head(base, adapter, whole)
    whole = {match(name): tensor for name, tensor in whole.items()}
    for name, tensor in whole.items():
        ours, theirs = base.shape(name), tensor.shape
        resized = is_of_vocabulary(name) and ours[1:] == theirs[1:]
        if ours != theirs and not resized:
            raise _misfit(adapter, name, theirs, ours)
    return whole


def _drop_tied_head(base: Checkpoint, adapter: Adapter, whole: dict[str, Tensor]) -> None:
    head = next((n for n in whole if n.endswith("lm_head.weight")), None)
    if head is None:
        return
    embeddings = {**base.tensors, **whole}
    names = [n for n in (*whole, *base.names) if n.endswith(EMBEDDINGS)]
    if not names or not torch.equal(whole[head], embeddings[names[0]]):
        raise SourceError(f"{adapter.folder}: has its own {head}, but the base's is tied")
    del whole[head]


def _flips(
    base: Checkpoint, adapter: Adapter, pairs: Mapping[str, LowRank], whole: Mapping[str, Tensor]
) -> dict[str, bool]:
    """Tell which products are transposed to fit their tensor.

    Shapes say it, for peft's one flag of an adapter does not hold for all of its modules. Square
    tensors follow the flag, unless the shape of another tensor shows that it is not to be trusted.
    """
    fits = {}
    for name, pair in pairs.items():
        shape = whole[name].shape if name in whole else base.shape(name)
        transposed = len(pair.shape) == 2 and pair.shape[::-1] == shape
        ways = [False] * (pair.shape == shape and not pair.embedding) + [True] * transposed
        if not ways:
            raise _misfit(adapter, name, pair.shape[::-1] if pair.embedding else pair.shape, shape)
        fits[name] = ways
    sure = {ways[0] for n, ways in fits.items() if len(ways) == 1 and not pairs[n].embedding}
    square = [name for name, ways in fits.items() if len(ways) == 2]
    if square and not sure <= {adapter.transposed}:
        raise SourceError(
            f"{adapter.folder}: fan_in_fan_out is {str(adapter.transposed).lower()}, which does "
            f"not fit all tensors; whether to transpose {some(square)} is unknown"
        )
    return {n: ways[0] if len(ways) == 1 else adapter.transposed for n, ways in fits.items()}


def _misfit(adapter: Adapter, name: str, theirs: torch.Size, ours: torch.Size) -> SourceError:
    return SourceError(
        f"{adapter.folder}: {name}: the adapter is of shape {tuple(theirs)}, the base has "
        f"{tuple(ours)}"
    )


def _change(
    base: Checkpoint, name: str, whole: Tensor | None, pair: LowRank | None, flip: bool
) -> Change:
    """Compute a tensor of the base's type."""
    start, dtype = base.tensor(name) if whole is None else whole, base.dtype(name)
    make: Callable[[], Tensor] = partial(start.to, dtype)
    if pair is not None:
        make = partial(_sum, start, pair, flip, dtype)
    return Change((dtype, start.shape), make)


def _sum(start: Tensor, pair: LowRank, flip: bool, dtype: torch.dtype) -> Tensor:
    """W + s·B·A, of which only the result is rounded.

    It is taken in float64, so that neither the number of threads nor the machine shows.
    """
    a, b = pair.a.flatten(1).double(), pair.b.flatten(1).double() * pair.scale
    left, right = (a.T, b.T) if flip else (b, a)  # (BA)ᵀ = AᵀBᵀ
    rows = start.reshape(left.shape[0], -1)
    result = torch.empty(rows.shape, dtype=dtype)
    step = max(1, BLOCK // rows.shape[1])
    for i in range(0, rows.shape[0], step):
        block = slice(i, i + step)
        result[block] = (rows[block].double() + left[block] @ right).to(dtype)
    return result.reshape(start.shape)


def _config(base: Checkpoint, changes: Mapping[str, Change]) -> Mapping[str, object]:
    """Take the base's configuration; the vocabulary may have grown."""
    rows = {c.spec[1][0] for name, c in changes.items() if name.endswith(EMBEDDINGS)}
    return with_vocabulary(base.config, rows.pop()) if rows else base.config
