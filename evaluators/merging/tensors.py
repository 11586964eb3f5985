"""The merge of one tensor: what must be known of all of it, then one pass over its blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pkgutil import resolve_name

import torch
from torch import Tensor

from evaluators.merging.formulas import Operands, total
from evaluators.merging.levels import adder, counter
from evaluators.merging.loops import loop
from evaluators.merging.masks import CHUNK, Numbers
from evaluators.merging.methods import Method
from evaluators.merging.passes import Merge, Pass, Survivors
from evaluators.merging.settings import Settings
from evaluators.merging.spherical import along, grams
from evaluators.merging.sums import absolute_sum
from evaluators.merging.tables import Tables
from evaluators.merging.thresholds import (
    Band,
    Delta,
    Segment,
    band,
    coefficients,
    dials,
    mixer,
    rescale_factor,
    rescaled,
    segments,
)
from evaluators.recipe import MergeRecipe
from evaluators.sources import Sources

_BLOCK = 1 << 20
"""Elements per call of a loop: enough that calls cost next to nothing."""


class TensorMerge:
    """One floating tensor of n elements, of the base and of a recipe's experts."""

    def __init__(
        self, sources: Sources, tables: Tables, recipe: MergeRecipe, name: str, *, compiled: bool
    ) -> None:
        self._sources, self._tables, self._name = sources, tables, name
        self._experts, self._seed, self._compiled = tuple(recipe.experts), recipe.seed, compiled
        self._base = sources.base.tensor(name)
        self._models = [sources.experts[expert].tensor(name) for expert in self._experts]
        self._marks = torch.empty(0, dtype=torch.uint8)
        self._flat = [t.contiguous().flatten() for t in (self._base, *self._models)]

    def run(self, method: Method, settings: Settings, out: Tensor) -> float:
        """Merge into `out`, contiguous and of the tensor's shape.

        Returns:
            the sum of |merged − base|; not finite if a merged value is not.
        """
        if method.whole:
            return self._run_whole(method, settings, out)
        if method.mix is not None and (dim := along(settings.options)) is not None:
            return self._run_rows(method, settings, out, dim)
        does, parts = self._prepare(method, settings, out.dtype)
        if does.trim is not None:
            kind, densities = str(settings.options["rescale"]), settings.experts["density"]
            does, parts = self._rescale(kind, densities, does, parts)
        merge = Merge(does)
        run = loop(merge, merge.signature, self._compiled)
        flat, moved = out.view(-1), []
        for part in parts:
            numbers = does.pack(part.numbers)
            for block, blocks in self._blocks(does, part):
                moved += run(blocks, numbers, (flat[block], None), block.start)
        return math.fsum(moved)

    def open_loops(self, method: Method, settings: Settings, stored: torch.dtype) -> None:
        """Compile what `run` will use, whether anything is trimmed or not."""
        dtypes = [tensor.dtype for tensor in self._flat]
        for trimmed in {False, method.trim is not None}:
            does = Pass.of(method, settings.options, trimmed, dtypes, stored)
            if does.random:
                Numbers(self._seed, "", self._name, compiled=self._compiled)
            for dtype in dtypes[1:] if does.trim == "magnitude" else ():
                counter(dtypes[0], dtype, compiled=self._compiled)
            if trimmed and settings.options["rescale"] == "l1":
                for dtype in dtypes[1:]:
                    adder(dtypes[0], dtype, compiled=self._compiled)
                measure = Survivors(does)
                loop(measure, measure.signature, self._compiled)
                does = does.marked if measure.marks else does
            loop(Merge(does), Merge(does).signature, self._compiled)

    def _prepare(
        self, method: Method, settings: Settings, stored: torch.dtype
    ) -> tuple[Pass, list[Segment]]:
        """Find out what is done to every element, and with which numbers."""
        densities = settings.experts.get("density", ())
        trimmed = method.trim is not None and any(density < 1 for density in densities)
        dtypes = [tensor.dtype for tensor in self._flat]
        does = Pass.of(method, settings.options, trimmed, dtypes, stored)
        numbers: dict[str, Sequence[float]] = dict(settings.experts)
        numbers |= {name: (value,) for name, value in settings.numbers.items()}
        n = self._base.numel()
        if method.mix is not None:
            numbers["mix"] = coefficients(method, settings, self._products())
        parts = [Segment(0, n, numbers)]
        if does.trim == "magnitude":
            parts = segments(n, self._bands(settings), numbers)
        elif does.trim is not None:
            parts = [Segment(0, n, {**numbers, **_chances(settings)})]
        return does, parts

    def _bands(self, settings: Settings) -> list[Band]:
        gammas = settings.experts.get("gamma", (0.0,) * len(self._experts))
        looks = [partial(self._tables.levels, expert, self._name) for expert in self._experts]
        deltas = [
            Delta(self._flat[0], model, look, self._compiled)
            for model, look in zip(self._flat[1:], looks, strict=True)
        ]
        trims = zip(settings.experts["density"], gammas, deltas, strict=True)
        everyone = settings.options["on_tie"] == "all"
        return [band(density, gamma, delta, all_ties=everyone) for density, gamma, delta in trims]

    def _rescale(
        self, kind: str, densities: Sequence[float], does: Pass, parts: list[Segment]
    ) -> tuple[Pass, list[Segment]]:
        """Find the factors of the survivors; l1 takes a pass of its own, which may mark them."""
        K = len(self._experts)
        before, after = [0.0] * K, [0.0] * K
        if kind == "l1":
            before = [self._tables.mass(expert, self._name) for expert in self._experts]
            measure = Survivors(does)
            run = loop(measure, measure.signature, self._compiled)
            if measure.marks:
                self._marks = torch.empty(self._base.numel(), dtype=torch.uint8)
            found = []
            for part in rescaled(parts, (1.0,) * K):
                numbers = does.pack(part.numbers)
                for block, blocks in self._blocks(does, part):
                    marks = [self._marks[block]] if measure.marks else []
                    found.append(run(blocks, numbers, [*[None] * K, *marks], block.start))
            after = [math.fsum(column) for column in zip(*found, strict=True)][:K] or after
            does = does.marked if measure.marks else does
        sums = zip(densities, before, after, strict=True)
        factors = [rescale_factor(kind, density, *pair) for density, *pair in sums]
        return does, rescaled(parts, factors)

    def _blocks(self, does: Pass, part: Segment) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield the blocks of a segment with all that a loop reads of them."""
        numbers: list[Numbers] = []
        more: list[Tensor] = []
        if does.random:
            numbers = [
                Numbers(self._seed, expert, self._name, compiled=self._compiled)
                for expert in self._experts
            ]
        if does.trim == "ranked":
            more = [self._tables.ranks(expert, self._name) for expert in self._experts]
        if does.trim == "marked":
            more = [self._marks]
        size = CHUNK if numbers else _BLOCK
        words = [torch.empty(min(size, part.stop - part.start), dtype=torch.int16) for _ in numbers]
        for start in range(part.start, part.stop, size):
            block = slice(start, min(start + size, part.stop))
            drawn = [word[: block.stop - start] for word in words]
            for source, word in zip(numbers, drawn, strict=True):
                source.fill(word, start // CHUNK)
            yield block, [*(t[block] for t in self._flat), *drawn, *(t[block] for t in more)]

    def _products(self) -> Tensor:
        """Look up the inner products of base and the recipe's experts."""
        known = list(self._sources.experts)
        chosen = torch.tensor([0, *(1 + known.index(expert) for expert in self._experts)])
        return self._tables.gram(self._name)[chosen][:, chosen]

    def _run_rows(self, method: Method, settings: Settings, out: Tensor, dim: int) -> float:
        """Combine vectors that run along one dimension, each with coefficients of its own."""
        shape = self._base.shape or (1,)  # a scalar is a vector of one entry
        turned = [t.reshape(shape).movedim(dim, -1) for t in (self._base, *self._models)]
        base, *models = (t.unsqueeze(0).flatten(0, -2) for t in turned)
        merged = torch.empty(base.shape, dtype=out.dtype)
        find, told, moved = mixer(method), dials(settings), 0.0
        height = max(1, CHUNK // max(1, base.shape[-1]))
        for start in range(0, len(base), height):
            rows = slice(start, start + height)
            origin = base[rows].float()
            own = [model[rows].float() for model in models]
            mix = find(grams(origin, own), told).float().unbind(-1)
            vectors = [origin, *(model - origin for model in own)]
            merged[rows] = total([v * c[:, None] for v, c in zip(vectors, mix, strict=True)])
            moved += absolute_sum((merged[rows].float() - origin).flatten())
        out.view(shape).movedim(dim, -1).copy_(merged.view(turned[0].shape))
        return moved

    def _run_whole(self, method: Method, settings: Settings, out: Tensor) -> float:
        """Apply a formula that takes the tensor as it is."""
        one = [torch.ones(1)] * len(self._models)
        base = self._base.float()
        merged: Tensor = resolve_name(method.formula)(
            Operands(
                base=base,
                models=[model.float() for model in self._models],
                experts={k: _tensors(v) for k, v in settings.experts.items()},
                keep=one,
                rescale=one,
                merge={k: torch.tensor([v]) for k, v in settings.numbers.items()},
                options=settings.options,
            )
        )
        out.copy_(merged.reshape(out.shape))
        return absolute_sum((out.float() - base).flatten())


def _chances(settings: Settings) -> Mapping[str, Sequence[float]]:
    """Work out with which probability entries survive random trimming.

    Where everything or nothing survives, ranks do not matter.
    """
    densities = settings.experts["density"]
    widths = settings.experts.get("epsilon", (0.0,) * len(densities))
    half = [w if 0 < d < 1 else 0.0 for d, w in zip(densities, widths, strict=True)]
    return {"density": densities, "half_width": half}


def _tensors(values: Sequence[float]) -> list[Tensor]:
    return [torch.tensor([value]) for value in values]
