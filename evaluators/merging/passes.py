"""The one pass of a merge: from blocks of the stored tensors to blocks of the merged one.

Everything about a tensor's merge that is no number is in a `Pass`; its numbers travel in one small
array. So another recipe of the same operator, or another layer's values, needs no other loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pkgutil import resolve_name
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.merging.codegen import Signature
from evaluators.merging.formulas import Operands, survive, total
from evaluators.merging.masks import unit
from evaluators.merging.methods import Method, Trim
from evaluators.merging.tables import RANK_STEPS

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
        trim: how entries are trimmed, None if all survive; "marked" if a block of marks says which.
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
    trim: Trim | Literal["marked"] | None
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

    @property
    def marked(self) -> Pass:
        """The same, its survivors read from what `Survivors` marked."""
        return replace(self, trim="marked")

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
            "density": K if self.random else 0,
            "half_width": K if self.trim == "ranked" else 0,
        }
        ends = list(accumulate(counts.values()))
        return {k: (end - counts[k], end) for k, end in zip(counts, ends, strict=True)}

    def pack(self, values: Mapping[str, Sequence[float]]) -> NDArray[np.float32]:
        """Put numbers in their places; more may be given than are read."""
        numbers = np.empty(next(reversed(self.fields.values()))[1], dtype=np.float32)
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and the merge too
            for name, (first, end) in self.fields.items():
                if end > first:
                    numbers[first:end] = values[name]
        return numbers

    def signature(self, *outputs: torch.dtype | None) -> Signature:
        """What a loop of this pass reads; an output without a dtype is a sum."""
        K = len(self.sources) - 1
        words = (torch.int16,) * K if self.random else ()
        marks = (torch.uint8,) if self.trim == "marked" else ()
        ranks = (torch.uint8,) * K if self.trim == "ranked" else ()
        return Signature(
            blocks=(*self.sources, *words, *ranks, *marks),
            numbers=next(reversed(self.fields.values()))[1],
            outputs=outputs,
        )

    def operands(self, blocks: Sequence[Tensor], numbers: Sequence[Tensor]) -> Operands:
        """Assemble what the formula reads, in float32."""
        K = len(self.sources) - 1
        told = {k: numbers[first:end] for k, (first, end) in self.fields.items()}
        base, *models = (block.to(torch.float32) for block in blocks[: K + 1])
        one = [torch.ones(1)] * K
        keep = one
        if self.trim == "magnitude":
            keep = [self._within((m - base).abs(), told, k) for k, m in enumerate(models)]
        elif self.trim == "marked":
            marks = blocks[-1].to(torch.int32)
            keep = [(marks & (1 << k)) != 0 for k in range(K)]
        elif self.random:
            keep = [self._drawn(blocks[K + 1 :], told, k) for k in range(K)]
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

    def _drawn(
        self, blocks: Sequence[Tensor], told: Mapping[str, Sequence[Tensor]], k: int
    ) -> Tensor:
        """Whether random numbers are below the probability to survive."""
        chance = told["density"][k]
        if self.trim == "ranked":
            rank = blocks[len(self.sources) - 1 + k].to(torch.float32)
            tilt = rank * (2.0 / RANK_STEPS) - 1.0
            chance = chance + tilt * told["half_width"][k]
        return unit(blocks[k]) < chance


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


MARKS = 8
"""Experts whose survivors can be marked: one bit each of a byte."""


@dataclass(frozen=True)
class Survivors:
    """How much of every task vector survives trimming; if it is random, also what survives."""

    of: Pass

    def __call__(
        self, blocks: Sequence[Tensor], numbers: Sequence[Tensor], _: Tensor
    ) -> list[Tensor]:
        """Measure; returns |τ_k| of the survivors for every k, then their marks."""
        x = self.of.operands(blocks, numbers)
        models = zip(x.models, x.keep, strict=True)
        sizes = [survive((model - x.base).abs(), keep) for model, keep in models]
        if not self.marks:
            return sizes
        bits = total([keep.to(torch.int32) * (1 << k) for k, keep in enumerate(x.keep)])
        return [*sizes, bits.to(torch.uint8)]

    @property
    def marks(self) -> bool:
        """Whether it marks the survivors: to draw numbers again would cost more than a byte."""
        return self.of.random and len(self.of.sources) - 1 <= MARKS

    @property
    def signature(self) -> Signature:
        """What its loop reads, sums up and writes."""
        sums = [None] * (len(self.of.sources) - 1)
        return self.of.signature(*sums, *([torch.uint8] if self.marks else []))
