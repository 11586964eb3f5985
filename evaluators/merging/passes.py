"""The one pass of a merge: from blocks of the stored tensors to blocks of the merged one.

Everything about a tensor's merge that is no number is in a `Pass`; its numbers travel in one small
array. So another recipe of the same operator, or another layer's values, needs no other loop.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pkgutil import resolve_name

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.merging.codegen import Signature
from evaluators.merging.formulas import Operands, survive
from evaluators.merging.masks import DRAWING, KEY, tilted
from evaluators.merging.methods import Method, Trim

_TRIMMING = {"density", "gamma"}
"""Parameters that decide which entries survive, and that no formula reads."""

_SURVEYED = {"rescale", "on_tie"}
"""Choices that have become numbers before the pass begins."""


@dataclass(frozen=True)
class Pass:
    """What is done to every element, but for numbers.

    Attributes:
        formula: path of the operator's formula.
        experts: numbers that every expert has in the formula.
        merge: numbers that the merge has once in the formula.
        options: choices that the formula reads.
        mixed: whether it reads coefficients.
        trim: how entries are trimmed, None if all survive.
        outliers: whether the largest entries are trimmed, too.
        rescaled: whether survivors are rescaled.
        sources: dtypes of base and models.
        stored: dtype of the merged tensor.
    """

    formula: str
    experts: tuple[str, ...]
    merge: tuple[str, ...]
    options: tuple[tuple[str, bool | str], ...]
    mixed: bool
    trim: Trim | None
    outliers: bool
    rescaled: bool
    sources: tuple[torch.dtype, ...]
    stored: torch.dtype

    @classmethod
    def of(
        cls,
        method: Method,
        options: Mapping[str, bool | str],
        trimmed: bool,
        sources: Sequence[torch.dtype],
        stored: torch.dtype,
    ) -> Pass:
        """Work out the pass of an operator; `trimmed` says whether any entry is trimmed at all."""
        ranked = {"epsilon"} if method.trim == "ranked" else set()
        numbers = [p for p in method.parameters if p.choices is None]
        read = [p for p in numbers if p.name not in _TRIMMING | ranked]
        return cls(
            formula=method.formula,
            experts=tuple(p.name for p in read if p.scope == "expert"),
            merge=tuple(p.name for p in read if p.scope == "merge"),
            options=tuple(sorted((k, v) for k, v in options.items() if k not in _SURVEYED)),
            mixed=method.mix is not None,
            trim=method.trim if trimmed else None,
            outliers=trimmed and method.parameter("gamma") is not None,
            rescaled=trimmed and options["rescale"] != "none",
            sources=tuple(sources),
            stored=stored,
        )

    @property
    def random(self) -> bool:
        """Whether it reads random numbers."""
        return self.trim in ("random", "ranked")

    @cached_property
    def fields(self) -> dict[str, tuple[int, int]]:
        """Which numbers stand where in the array: name → first, one past the last."""
        K = len(self.sources) - 1
        counts = {
            **dict.fromkeys(self.experts, K),
            **dict.fromkeys(self.merge, 1),
            "mix": K + 1 if self.mixed else 0,
            "rescale": K if self.rescaled else 0,
            "low": K if self.trim == "magnitude" else 0,
            "high": K if self.outliers else 0,
            "key": KEY * K if self.random else 0,
            "below": K if self.random else 0,
            "slope": K if self.trim == "ranked" else 0,
        }
        ends = list(accumulate(counts.values()))
        return {k: (end - counts[k], end) for k, end in zip(counts, ends, strict=True)}

    def pack(self, parts: Sequence[Mapping[str, Sequence[float]]]) -> NDArray[np.float32]:
        """Put the numbers of each part in their places; more may be given than are read.

        Raises:
            ValueError: there are too few or too many; a kernel would read what is not there.
        """
        read = [name for name, (first, end) in self.fields.items() if end > first]
        numbers = (values[name] for values in parts for name in read)
        # An array of C's floats: what is too large becomes infinite, and the merge too.
        packed = array("f", chain.from_iterable(numbers))
        if len(packed) != len(parts) * (count := next(reversed(self.fields.values()))[1]):
            raise ValueError(f"{len(packed)} numbers for {len(parts)} parts of {count}")
        return np.frombuffer(packed, dtype=np.float32)

    def signature(self, *outputs: torch.dtype | None) -> Signature:
        """What a loop of this pass reads; an output without a dtype is a sum."""
        K = len(self.sources) - 1
        ranks = (torch.uint8,) * K if self.trim == "ranked" else ()
        return Signature(
            blocks=(*self.sources, *ranks),
            numbers=next(reversed(self.fields.values()))[1],
            outputs=outputs,
            drawing=DRAWING if self.random else None,
            keys=tuple(range(*self.fields["key"], KEY)),
        )

    def operands(self, blocks: Sequence[Tensor], numbers: Sequence[Tensor]) -> Operands:
        """Assemble what the formula reads, in float32."""
        K = len(self.sources) - 1
        told = {k: numbers[first:end] for k, (first, end) in self.fields.items()}
        base, *models = (block.to(torch.float32) for block in blocks[: K + 1])
        one = [torch.ones(1, device=base.device)] * K
        keep = one
        if self.trim == "magnitude":
            keep = [self._within((m - base).abs(), told, k) for k, m in enumerate(models)]
        elif self.random:
            places = [words.to(torch.int32) for words in blocks[-K:]]
            if self.trim == "ranked":
                ranked = zip(blocks[-K:], blocks[K + 1 : -K], told["slope"], strict=True)
                places = [tilted(*one) for one in ranked]
            keep = [p < below.to(p.dtype) for p, below in zip(places, told["below"], strict=True)]
        return Operands(
            base=base,
            models=models,
            experts={name: told[name] for name in self.experts},
            keep=keep,
            rescale=told["rescale"] or one,
            mix=told["mix"],
            merge={name: told[name][0] for name in self.merge},
            options=dict(self.options),
        )

    def _within(self, size: Tensor, told: Mapping[str, Sequence[Tensor]], k: int) -> Tensor:
        """Whether magnitudes lie where entries survive."""
        kept = size >= told["low"][k]
        return kept & (size <= told["high"][k]) if self.outliers else kept


@dataclass(frozen=True)
class Merge:
    """The merged block, and how far it moved from the base."""

    of: Pass

    def __call__(
        self, blocks: Sequence[Tensor], numbers: Sequence[Tensor], _: Tensor
    ) -> list[Tensor]:
        """Merge; returns the stored block and |merged − base| in float32."""
        x = self.of.operands(blocks, numbers)
        merged: Tensor = resolve_name(self.of.formula)(x)
        stored = merged.to(self.of.stored)
        return [stored, (stored.to(torch.float32) - x.base).abs()]

    @property
    def signature(self) -> Signature:
        """What its loop reads and writes."""
        return self.of.signature(self.of.stored, None)


@dataclass(frozen=True)
class Survivors:
    """How much of every task vector survives trimming."""

    of: Pass

    def __call__(
        self, blocks: Sequence[Tensor], numbers: Sequence[Tensor], _: Tensor
    ) -> list[Tensor]:
        """Measure; returns |τ_k| of the survivors for every k."""
        x = self.of.operands(blocks, numbers)
        models = zip(x.models, x.keep, strict=True)
        return [survive((model - x.base).abs(), keep) for model, keep in models]

    @property
    def signature(self) -> Signature:
        """What its loop reads and sums up."""
        return self.of.signature(*[None] * (len(self.of.sources) - 1))
