"""Recipes to merged tensors, into a live model or onto disk.

`MergeEngine` keeps the sources open. One pass over a tensor merges it, measures how far it moved
and writes it; a second one, block by block, digests what was written. Where a finished tensor goes
is the only difference between `merge_into` and `write`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluators.folders import some
from evaluators.merging.blocks import Blocks
from evaluators.merging.methods import Method
from evaluators.merging.settings import RecipeError, Settings, checked_method, resolve
from evaluators.merging.spherical import along
from evaluators.merging.stored import ShardWriter, Spec, combined_digest, tensor_digest
from evaluators.merging.tables import Tables
from evaluators.merging.tensors import HOST, TensorMerge
from evaluators.merging.thresholds import coefficients
from evaluators.recipe import MergeRecipe
from evaluators.sources import Say, SourceError, Sources

__all__ = ["MergeEngine", "MergeReport", "RecipeError"]


@dataclass(frozen=True)
class MergeReport:
    """What was merged.

    Attributes:
        digest: of all merged tensors; `evaluators.merging.stored.stored_digest` of an export.
        non_finite: merged values that are NaN or infinite.
        delta_l1: mean |merged − base| per floating parameter, of the merged values as they are
            stored (after the cast to the recipe's dtype), rounded to float32; not finite if
            `non_finite` > 0.
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
    settings: Mapping[str, Settings]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Merged:
    """What is known of one merged tensor."""

    digest: str
    parameters: int = 0
    moved: float = 0.0
    non_finite: int = 0


@dataclass(frozen=True)
class _Step:
    """The merge of one tensor into contiguous memory of its shape on a device."""

    run: Callable[[Tensor], _Merged]
    device: torch.device = HOST


class MergeEngine:
    """Merges recipes over one set of sources, which it keeps open.

    It works on as many tensors at once as torch has threads.

    Args:
        sources: the open models.
        tables: what is known of them; else it is found out and kept in memory.
        compiled: whether to use compiled kernels where that is possible; results are the same.
        on_device: whether to merge into a live model by the device that it is on, which then keeps
            the sources, too, if they fit into half of its free memory; results are the same.

    Raises:
        SourceError: an expert lacks a tensor of the base, has it in another shape, or has others.
    """

    def __init__(
        self,
        sources: Sources,
        tables: Tables | None = None,
        *,
        compiled: bool = True,
        on_device: bool = False,
    ) -> None:
        self._tables = tables or Tables(sources, compiled=compiled)
        self._compiled, self._on_device = compiled, on_device
        self._places: dict[torch.device, torch.device | None] = {}
        self._partitions: dict[tuple[int, tuple[str, ...]], Mapping[str, tuple[int, int]]] = {}
        self._tensors: dict[str, TensorMerge] = {}
        self.sources = sources
        base = sources.base
        for name, expert in sources.experts.items():
            for tensor in base.names:
                if tensor not in expert.tensors or expert.shape(tensor) != base.shape(tensor):
                    raise SourceError(f"{name}: {tensor} is missing or has another shape")
            if extra := [tensor for tensor in expert.names if tensor not in base.tensors]:
                raise SourceError(f"{name}: has {some(extra)} that the base lacks")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the merged tensors, sorted."""
        return self.sources.base.names

    @torch.no_grad()
    def prepare(self, recipe: MergeRecipe, say: Say = lambda _: None) -> None:
        """Make all that merges of this kind need once: tables of the sources, and kernels.

        Raises:
            RecipeError: the recipe does not fit the operator or the sources.
        """
        plan = self._plan(recipe)
        self._tables.prepare(plan.method, recipe.experts)
        if not self._compiled or plan.method.whole:
            return
        begun = time.perf_counter()
        for name in self.names:
            if self.sources.base.dtype(name).is_floating_point:
                self._tensor(recipe, name, None).open_loops(
                    plan.method, plan.settings[name], plan.dtype
                )
        if (seconds := time.perf_counter() - begun) >= 0.1:  # else they were there already
            say(f"kernels of {recipe.method} compiled in {seconds:.1f} s")

    def _tensor(self, recipe: MergeRecipe, name: str, place: torch.device | None) -> TensorMerge:
        """Open a tensor; it stays open until a recipe has other experts or another seed, or it is
        merged elsewhere.
        """
        tensor = self._tensors.get(name)
        if tensor is None or not tensor.serves(recipe, place):
            opened = self.sources, self._tables, recipe, name
            tensor = TensorMerge(*opened, compiled=self._compiled, place=place)
            self._tensors[name] = tensor
        return tensor

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

        def put(name: str, step: _Step) -> _Merged:
            live = target[name]
            if live.device == step.device and live.is_contiguous():
                return step.run(live)
            scratch = torch.empty(live.shape, dtype=live.dtype, device=step.device)
            found = step.run(scratch)
            live.copy_(scratch)
            return found

        return self._merge(recipe, plan, put, self._place(target))

    @torch.no_grad()
    def write(
        self, recipe: MergeRecipe, folder: Path, shard_size_bytes: int = 5 * 10**9
    ) -> MergeReport:
        """Merge onto disk as safetensors, a tensor per thread in memory; equal bytes every time.

        Raises:
            RecipeError: the recipe does not fit the operator or the sources.
        """
        plan = self._plan(recipe)
        specs = {name: self._spec(name, plan) for name in self.names}
        writer = ShardWriter(folder, specs, shard_size_bytes)

        def put(name: str, step: _Step) -> _Merged:
            dtype, shape = specs[name]
            scratch = torch.empty(shape, dtype=dtype)
            found = step.run(scratch)
            writer.write(name, scratch)
            return found

        return self._merge(recipe, plan, put, None)

    def _merge(
        self,
        recipe: MergeRecipe,
        plan: _Plan,
        put: Callable[[str, _Step], _Merged],
        place: torch.device | None,
    ) -> MergeReport:
        """Merge all tensors; `put` hands out the memory that a tensor is merged into."""
        started = time.perf_counter()

        threads = torch.get_num_threads()
        # Gradients are off per thread.
        with ThreadPoolExecutor(threads, "merge", torch.set_grad_enabled, (False,)) as pool:
            # One thread is no reason to leave this one: small models would wait for it.
            each = pool.map if threads > 1 else map
            # All plans first: between passes over much memory, Python is slow.
            mixes = self._mixes(recipe, plan, place)
            steps = list(each(partial(self._plan_tensor, recipe, plan, mixes, place), self.names))
            found = dict(zip(self.names, each(put, self.names, steps), strict=True))
        parameters = sum(m.parameters for m in found.values())
        moved = math.fsum(m.moved for m in found.values())
        return MergeReport(
            digest=combined_digest({name: m.digest for name, m in found.items()}),
            non_finite=sum(m.non_finite for m in found.values()),
            delta_l1=float(np.float32(moved / max(parameters, 1))),
            parameters=parameters,
            seconds=time.perf_counter() - started,
        )

    def _mixes(
        self, recipe: MergeRecipe, plan: _Plan, place: torch.device | None
    ) -> dict[str, Sequence[float]]:
        """Find the coefficients of all tensors that have some, of many tensors at once: one by one
        they would take longer than the merge of a small model.
        """
        found: dict[str, Sequence[float]] = {}
        if plan.method.mix is None:
            return found
        alike: dict[tuple[tuple[str, bool | str], ...], list[str]] = {}
        for name in self.names:
            options = plan.settings[name].options
            if self.sources.base.dtype(name).is_floating_point and along(options) is None:
                alike.setdefault(tuple(options.items()), []).append(name)
        for names in alike.values():
            products = torch.stack([self._tensor(recipe, name, place).products for name in names])
            settings = [plan.settings[name] for name in names]
            mixes = coefficients(plan.method, settings, products)
            found |= dict(zip(names, mixes, strict=True))
        return found

    def _plan_tensor(
        self,
        recipe: MergeRecipe,
        plan: _Plan,
        mixes: Mapping[str, Sequence[float]],
        place: torch.device | None,
        name: str,
    ) -> _Step:
        """Prepare the merge of one tensor."""
        base = self.sources.base.tensor(name)
        if not base.is_floating_point():
            return _Step(partial(_copied, name, base))
        tensor, settings = self._tensor(recipe, name, place), plan.settings[name]
        merge = tensor.plan(plan.method, settings, plan.dtype, mixes.get(name, ()))
        return _Step(partial(_merged, name, merge.run), merge.device)

    def _place(self, target: Mapping[str, Tensor]) -> torch.device | None:
        """Tell which device is to merge into a live model; None is the processor."""
        if not self._on_device:
            return None
        device = next(iter(target.values())).device
        if device not in self._places:  # asked once: then the sources are there
            held = sum(source.size_bytes for source in self.sources.all.values())
            self._places[device] = device if held <= _free_bytes(device) / 2 else None
        return self._places[device]

    def _plan(self, recipe: MergeRecipe) -> _Plan:
        method = checked_method(recipe)
        self._check_sources(recipe)
        blocks = self._blocks(recipe.layer_groups, recipe.filters)
        resolved = {block: resolve(recipe, method, *block) for block in set(blocks.values())}
        return _Plan(
            method=method,
            settings={name: resolved[block] for name, block in blocks.items()},
            dtype=getattr(torch, recipe.dtype),
        )

    def _blocks(self, layer_groups: int, filters: tuple[str, ...]) -> Mapping[str, tuple[int, int]]:
        """Look up the block of every tensor; a campaign has one partition."""
        key = (layer_groups, filters)
        if key not in self._partitions:
            try:
                blocks = Blocks(self.names, layer_groups, filters)
            except ValueError as error:
                raise RecipeError(str(error)) from None
            self._partitions[key] = {name: blocks.of(name) for name in self.names}
        return self._partitions[key]

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


def _free_bytes(device: torch.device) -> float:
    """Look up how much memory a device has left; a processor's is virtual."""
    if device.type == "cpu":
        return math.inf
    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    return float(ask(device)[0]) if ask is not None else 0.0


def _copied(name: str, base: Tensor, out: Tensor) -> _Merged:
    """Take a tensor from the base."""
    out.copy_(base)
    return _Merged(tensor_digest(name, out))


def _merged(name: str, merge: Callable[[Tensor], float], out: Tensor) -> _Merged:
    """Merge one tensor, and look at it."""
    moved = merge(out)
    broken = 0 if math.isfinite(moved) else int(out.numel() - torch.isfinite(out).sum())
    return _Merged(tensor_digest(name, out.cpu()), out.numel(), moved, broken)
