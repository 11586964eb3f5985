"""The merge of one tensor: what must be known of all of it, then one pass over its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pkgutil import resolve_name

import torch
from torch import Tensor

from evaluators.merging.formulas import Operands, total
from evaluators.merging.levels import adder, finder
from evaluators.merging.loops import Loop, loop
from evaluators.merging.masks import Window, key_of
from evaluators.merging.methods import Method
from evaluators.merging.passes import Merge, Pass, Survivors
from evaluators.merging.placed import placed
from evaluators.merging.settings import Settings
from evaluators.merging.spherical import along, grams
from evaluators.merging.sums import absolute_sum
from evaluators.merging.survivors import binner
from evaluators.merging.tables import Tables
from evaluators.merging.thresholds import (
    Band,
    Delta,
    Segment,
    band,
    dials,
    mixer,
    rescale_factor,
    rescaled,
    segments,
)
from evaluators.recipe import MergeRecipe
from evaluators.sources import Sources

_ROWS = 1 << 18
"""Elements of rows that are combined at a time, about."""


HOST = torch.device("cpu")


@dataclass(frozen=True)
class TensorPlan:
    """What merges one tensor, of which everything is known.

    Attributes:
        run: merges into memory of the planned type, contiguous, of the tensor's shape and on
            `device`; returns the sum of |merged − base|, not finite if a merged value is not.
        device: where it merges.
    """

    run: Callable[[Tensor], float]
    device: torch.device = HOST


class TensorMerge:
    """One floating tensor of n elements, of the base and of a recipe's experts.

    Args:
        compiled: whether to use compiled kernels; results are the same.
        place: a device that keeps the sources and merges where it can, else the processor.
    """

    def __init__(  # noqa: PLR0913
        self,
        sources: Sources,
        tables: Tables,
        recipe: MergeRecipe,
        name: str,
        *,
        compiled: bool,
        place: torch.device | None = None,
    ) -> None:
        self._sources, self._tables, self._name = sources, tables, name
        self._experts, self._seed, self._compiled = tuple(recipe.experts), recipe.seed, compiled
        self._place = place
        self._base = sources.base.tensor(name)
        self._models = [sources.experts[expert].tensor(name) for expert in self._experts]
        self._flat = [t.contiguous().flatten() for t in (self._base, *self._models)]
        self._dtypes = tuple(t.dtype for t in self._flat)

    def serves(self, recipe: MergeRecipe, place: torch.device | None) -> bool:
        """Whether all that was opened is the same for this recipe, merged there."""
        opened = self._experts, self._seed, self._place
        return opened == (tuple(recipe.experts), recipe.seed, place)

    @cached_property
    def products(self) -> Tensor:
        """Inner products of base and the recipe's task vectors, `(K+1) x (K+1)`."""
        known = list(self._sources.experts)
        chosen = torch.tensor([0, *(1 + known.index(expert) for expert in self._experts)])
        return self._tables.gram(self._name)[chosen][:, chosen]

    def plan(
        self, method: Method, settings: Settings, stored: torch.dtype, mix: Sequence[float]
    ) -> TensorPlan:
        """Find out all that merging must know of the tensor.

        Args:
            method: the operator.
            settings: of the tensor's block.
            stored: dtype of the merged tensor.
            mix: its coefficients, of an operator that has one set of them for the tensor.
        """
        if method.whole:
            return TensorPlan(partial(self._run_whole, method, settings))
        if method.mix is not None and (dim := along(settings.options)) is not None:
            return TensorPlan(partial(self._run_rows, method, settings, dim))
        does, run, parts = self._prepare(method, settings, stored, mix)
        told, ends = does.pack([part.numbers for part in parts]), [part.stop for part in parts]
        read, device = [*self._flat, *self._ranks(does)], HOST
        if self._place is not None and self._base.numel():
            there = placed(Merge(does), Merge(does).signature, self._place)
            if there is not None and there.trusted(self._there, told):
                run, read, device = there, self._there, self._place

        def merged(out: Tensor) -> float:
            return run(read, told, (out.view(-1), None), ends=ends)[1]

        return TensorPlan(merged, device)

    @cached_property
    def _there(self) -> list[Tensor]:
        """The sources where they are merged, for as long as the tensor is open."""
        return [tensor.to(self._place) for tensor in self._flat]

    def open_loops(self, method: Method, settings: Settings, stored: torch.dtype) -> None:
        """Compile what merging will use, whether anything is trimmed or not."""
        dtypes, compiled = self._dtypes, self._compiled
        for trimmed in {False, method.trim is not None}:
            does, _ = self._opened(method, settings, trimmed, stored)
            l1 = trimmed and settings.options["rescale"] == "l1"
            for dtype in dtypes[1:]:
                if does.trim == "magnitude":
                    finder(dtypes[0], dtype, compiled=compiled)
                    if l1:
                        adder(dtypes[0], dtype, compiled=compiled)
                elif l1:
                    for ranked in {False, does.trim == "ranked"}:
                        binner(dtypes[0], dtype, ranked=ranked, compiled=compiled)
            if l1 and does.trim == "magnitude":
                loop(Survivors(does), Survivors(does).signature, compiled)

    def _opened(
        self, method: Method, settings: Settings, trimmed: bool, stored: torch.dtype
    ) -> tuple[Pass, Loop]:
        """Open what is done to every element."""
        options = tuple(settings.options.items())
        return _open(method, options, trimmed, self._dtypes, stored, self._compiled)

    def _prepare(
        self, method: Method, settings: Settings, stored: torch.dtype, mix: Sequence[float]
    ) -> tuple[Pass, Loop, list[Segment]]:
        """Find out what is done to every element, and with which numbers."""
        densities = settings.experts.get("density", ())
        trimmed = method.trim is not None and any(density < 1 for density in densities)
        does, run = self._opened(method, settings, trimmed, stored)
        numbers: dict[str, Sequence[float]] = dict(settings.experts)
        numbers |= {name: (value,) for name, value in settings.numbers.items()}
        numbers["mix"] = mix
        n = self._base.numel()
        if does.trim == "magnitude":
            parts = segments(n, self._bands(settings), numbers)
            return does, run, self._rescaled(does, settings, parts)
        if does.trim is not None:
            numbers |= self._drawn(settings)
        return does, run, [Segment(0, n, numbers)]

    def _bands(self, settings: Settings) -> list[Band]:
        gammas = settings.experts.get("gamma", (0.0,) * len(self._experts))
        trims = zip(settings.experts["density"], gammas, self._deltas, strict=True)
        everyone = settings.options["on_tie"] == "all"
        return [band(density, gamma, delta, all_ties=everyone) for density, gamma, delta in trims]

    @cached_property
    def _deltas(self) -> list[Delta]:
        looks = [partial(self._tables.levels, expert, self._name) for expert in self._experts]
        pairs = zip(self._flat[1:], looks, strict=True)
        return [Delta(self._flat[0], model, look, self._compiled) for model, look in pairs]

    def _rescaled(self, does: Pass, settings: Settings, parts: list[Segment]) -> list[Segment]:
        """Find the factors of what survives trimming by magnitude; l1 takes a pass of its own."""
        if not does.rescaled:
            return parts
        kind, densities = str(settings.options["rescale"]), settings.experts["density"]
        before = after = (0.0,) * len(densities)
        if kind == "l1":
            before = tuple(self._tables.mass(expert, self._name) for expert in self._experts)
            measure = Survivors(does)
            run = loop(measure, measure.signature, self._compiled)
            plain = rescaled(parts, (1.0,) * len(densities))
            told, ends = does.pack([part.numbers for part in plain]), [part.stop for part in plain]
            after = tuple(run(self._flat, told, [None] * len(densities), ends=ends))
        norms = zip(densities, before, after, strict=True)
        return rescaled(parts, [rescale_factor(kind, *one) for one in norms])

    def _drawn(self, settings: Settings) -> dict[str, Sequence[float]]:
        """Work out what a pass is told of random trimming."""
        kind, densities = str(settings.options["rescale"]), settings.experts["density"]
        widths = settings.experts.get("epsilon", (0.0,) * len(densities))
        windows = [Window.of(*one) for one in zip(densities, widths, strict=True)]
        factors = []
        for expert, window in zip(self._experts, windows, strict=True):
            before = after = 0.0
            if kind == "l1":
                known = self._tables.survivors(self._seed, expert, self._name, window.half)
                before, after = float(known[-1]), float(known[window.level])
            factors.append(rescale_factor(kind, window.density, before, after))
        return {
            "key": self._keys,
            "below": [window.below for window in windows],
            "slope": [window.slope for window in windows],
            "rescale": factors,
        }

    @cached_property
    def _keys(self) -> list[float]:
        """Of the experts' random numbers."""
        return [k for expert in self._experts for k in key_of(self._seed, expert, self._name)]

    def _ranks(self, does: Pass) -> list[Tensor]:
        """Look up the experts' ranks, if the pass reads them."""
        experts = self._experts if does.trim == "ranked" else ()
        return [self._tables.ranks(expert, self._name) for expert in experts]

    def _run_rows(self, method: Method, settings: Settings, dim: int, out: Tensor) -> float:
        """Combine vectors that run along one dimension, each with coefficients of its own."""
        shape = self._base.shape or (1,)  # a scalar is a vector of one entry
        turned = [t.reshape(shape).movedim(dim, -1) for t in (self._base, *self._models)]
        base, *models = (t.unsqueeze(0).flatten(0, -2) for t in turned)
        merged = torch.empty(base.shape, dtype=out.dtype)
        find, told, moved = mixer(method), dials([settings]), 0.0
        height = max(1, _ROWS // max(1, base.shape[-1]))
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


@cache
def _open(  # noqa: PLR0913
    method: Method,
    options: tuple[tuple[str, bool | str], ...],
    trimmed: bool,
    sources: tuple[torch.dtype, ...],
    stored: torch.dtype,
    compiled: bool,
) -> tuple[Pass, Loop]:
    """Open a pass and its loop, once for all tensors that have the same."""
    does = Pass.of(method, dict(options), trimmed, sources, stored)
    return does, loop(Merge(does), Merge(does).signature, compiled)


def _tensors(values: Sequence[float]) -> list[Tensor]:
    return [torch.tensor([value]) for value in values]
