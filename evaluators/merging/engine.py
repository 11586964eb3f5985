"""Recipes to merged tensors, into a live model or onto disk.

`MergeEngine` keeps the sources open. One loop merges, guards, measures and digests tensor after
tensor; where a finished tensor goes is the only difference between `merge_into` and `write`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

import torch
from torch import Tensor

from evaluators.merging.blocks import Blocks
from evaluators.merging.formulas import Formula, Operands
from evaluators.merging.masks import uniform
from evaluators.merging.methods import Method
from evaluators.merging.settings import RecipeError, Settings, checked_method, resolve
from evaluators.merging.stored import ShardWriter, Spec, combined_digest, tensor_digest
from evaluators.merging.sums import absolute_sum
from evaluators.merging.thresholds import Survey, survey
from evaluators.recipe import MergeRecipe
from evaluators.sources import SourceError, Sources

__all__ = ["MergeEngine", "MergeReport", "RecipeError"]

BLOCK = 1 << 17
"""Elements merged at a time: float32 operands of a few models stay in the processor's cache."""


@dataclass(frozen=True)
class MergeReport:
    """What was merged.

    Attributes:
        digest: of all merged tensors; `evaluators.merging.stored.stored_digest` of an export.
        non_finite: merged values that are NaN or infinite.
        delta_l1: mean |merged − base| per floating parameter, of the merged values as they are
            stored (after the cast to the recipe's dtype); not finite if `non_finite` > 0.
        parameters: number of floating parameters.
        seconds: wall time.
    """

    digest: str
    non_finite: int
    delta_l1: float
    parameters: int
    seconds: float


@dataclass(frozen=True)
class _Plan:
    """A checked recipe: its operator and the settings of every tensor."""

    method: Method
    formula: Formula
    settings: Mapping[str, Settings]
    dtype: torch.dtype


class MergeEngine:
    """Merges recipes over one set of sources, which it keeps open.

    Raises:
        SourceError: an expert lacks a tensor of the base or has it in another shape.
    """

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        base = sources.base
        for name, expert in sources.experts.items():
            for tensor in base.names:
                if tensor not in expert.tensors or expert.shape(tensor) != base.shape(tensor):
                    raise SourceError(f"{name}: {tensor} is missing or has another shape")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the merged tensors, sorted."""
        return self.sources.base.names

    @torch.no_grad()
    def merge_into(self, recipe: MergeRecipe, target: Mapping[str, Tensor]) -> MergeReport:
        """Merge into live tensors, in place.

        Args:
            recipe: what to merge.
            target: checkpoint tensor name → live tensor of the recipe's dtype, on any device.

        Raises:
            RecipeError: the recipe does not fit the operator, the sources or the target.
        """
        plan = self._plan(recipe)
        for name in self.names:
            dtype, shape = self._spec(name, plan)
            if name not in target:
                raise RecipeError(f"the live model has no tensor {name}")
            if target[name].dtype != dtype or target[name].shape != shape:
                raise RecipeError(
                    f"{name}: the live tensor is {target[name].dtype} {tuple(target[name].shape)}, "
                    f"the recipe gives {dtype} {tuple(shape)}"
                )
        return self._merge(recipe, plan, lambda name, tensor: target[name].copy_(tensor))

    @torch.no_grad()
    def write(
        self, recipe: MergeRecipe, folder: Path, shard_size_bytes: int = 5 * 10**9
    ) -> MergeReport:
        """Merge onto disk as safetensors, one tensor in memory at a time; equal bytes every time.

        Raises:
            RecipeError: the recipe does not fit the operator or the sources.
        """
        plan = self._plan(recipe)
        specs = {name: self._spec(name, plan) for name in self.names}
        with ShardWriter(folder, specs, shard_size_bytes) as writer:
            return self._merge(recipe, plan, writer.write)

    def _merge(
        self, recipe: MergeRecipe, plan: _Plan, put: Callable[[str, Tensor], object]
    ) -> MergeReport:
        started = time.perf_counter()
        digests: dict[str, str] = {}
        non_finite = parameters = 0
        moved = 0.0
        for name in self.names:
            base = self.sources.base.tensor(name)
            merged = base
            if base.is_floating_point():
                merged = self._merge_tensor(recipe, plan, name).reshape(base.shape)
                non_finite += int(merged.numel() - torch.isfinite(merged).sum())
                parameters += merged.numel()
                moved += _distance(merged.flatten(), base.flatten())
            put(name, merged)
            digests[name] = tensor_digest(name, merged)
        return MergeReport(
            digest=combined_digest(digests),
            non_finite=non_finite,
            delta_l1=moved / max(parameters, 1),
            parameters=parameters,
            seconds=time.perf_counter() - started,
        )

    def _merge_tensor(self, recipe: MergeRecipe, plan: _Plan, name: str) -> Tensor:
        """Merge one floating tensor: `n` in the recipe's dtype."""
        settings = plan.settings[name]
        base = self.sources.base.tensor(name).flatten()
        models = [self.sources.experts[expert].tensor(name).flatten() for expert in recipe.experts]
        experts = list(recipe.experts)
        n = base.numel()
        found = survey(
            plan.method, base, models, settings, lambda k: uniform(recipe.seed, experts[k], name, n)
        )
        merged = torch.empty(n, dtype=plan.dtype)
        for start in range(0, n, BLOCK):
            block = slice(start, start + BLOCK)
            merged[block] = plan.formula(_operands(base, models, block, settings, found))
        return merged

    def _plan(self, recipe: MergeRecipe) -> _Plan:
        method = checked_method(recipe)
        self._check_sources(recipe)
        try:
            blocks = Blocks(self.names, recipe.layer_groups, recipe.filters)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        resolved = {
            block: resolve(recipe, method, *block) for block in set(map(blocks.of, self.names))
        }
        return _Plan(
            method=method,
            formula=resolve_name(method.formula),
            settings={name: resolved[blocks.of(name)] for name in self.names},
            dtype=getattr(torch, recipe.dtype),
        )

    def _check_sources(self, recipe: MergeRecipe) -> None:
        if recipe.base != self.sources.base.ref:
            raise RecipeError(f"base {recipe.base} is not open; open: {self.sources.base.ref}")
        for name, ref in recipe.experts.items():
            expert = self.sources.experts.get(name)
            if expert is None or expert.ref != ref:
                known = ", ".join(f"{k} ({v.ref})" for k, v in self.sources.experts.items())
                raise RecipeError(f"expert {name} ({ref}) is not open; open: {known}")

    def _spec(self, name: str, plan: _Plan) -> Spec:
        base = self.sources.base.tensor(name)
        return plan.dtype if base.is_floating_point() else base.dtype, base.shape


def _operands(
    base: Tensor, models: Sequence[Tensor], block: slice, settings: Settings, found: Survey
) -> Operands:
    """Operands of one block, in float32."""
    trimmed = found.keep.shape[1] == base.numel()
    numbers = {k: v for k, v in settings.merge.items() if not isinstance(v, bool | str)}
    return Operands(
        base=base[block].float(),
        models=[model[block].float() for model in models],
        experts={k: [torch.tensor([w]) for w in ws] for k, ws in settings.experts.items()},
        keep=(found.keep[:, block] if trimmed else found.keep).unbind(),
        rescale=found.rescale.unbind(),
        mix=found.mix.unbind(),
        merge={k: torch.tensor([float(v)]) for k, v in numbers.items()},
        options={k: v for k, v in settings.merge.items() if isinstance(v, bool | str)},
    )


def _distance(merged: Tensor, base: Tensor) -> float:
    """Sum of |merged − base| in float32 differences."""
    pairs = zip(torch.split(merged, BLOCK), torch.split(base, BLOCK), strict=True)
    return math.fsum(absolute_sum(a.float() - b.float()) for a, b in pairs)
