"""Sources out of plain tensors, in memory or on disk, and recipes over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluators.merging.engine import MergeEngine
from evaluators.merging.stored import ShardWriter
from evaluators.recipe import MergeRecipe, ModelRef
from evaluators.sources import Checkpoint, Sources

Tensors = Mapping[str, Tensor]

TINY_SHAPES = {
    "embed.weight": (12, 4),
    "layers.0.attn.weight": (4, 4),
    "layers.0.mlp.weight": (8, 4),
    "layers.1.attn.weight": (4, 4),
    "layers.1.mlp.weight": (8, 4),
    "norm.weight": (4,),
    "head.weight": (12, 4),
}


def random_tensors(seed: int, around: Tensors | None = None, *, scale: float = 0.1) -> Tensors:
    """Tensors of `TINY_SHAPES`, as noise around others if given."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(shape, generator=generator) for n, shape in TINY_SHAPES.items()}
    if around is None:
        return tensors
    return {name: around[name] + scale * noise for name, noise in tensors.items()}


def in_memory(base: Tensors, **experts: Tensors) -> Sources:
    """Sources whose tensors never were in a file."""

    def checkpoint(name: str, tensors: Tensors) -> Checkpoint:
        return Checkpoint(ModelRef(path=name), Path(name), {}, dict(sorted(tensors.items())))

    return Sources(checkpoint("base", base), {n: checkpoint(n, t) for n, t in experts.items()})


def write_checkpoint(
    folder: Path,
    tensors: Tensors,
    config: Mapping[str, Any] | None = None,
    shard_size_bytes: int = 10**9,
) -> ModelRef:
    """Write a model folder."""
    specs = {name: (t.dtype, t.shape) for name, t in tensors.items()}
    writer = ShardWriter(folder, specs, shard_size_bytes)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "tiny"}))
    return ModelRef(path=str(folder))


def recipe_of(
    sources: Sources, method: str, parameters: Mapping[str, Any], **more: Any
) -> MergeRecipe:
    """A recipe over all of the sources."""
    return MergeRecipe(
        method=method,
        base=sources.base.ref,
        experts={name: expert.ref for name, expert in sources.experts.items()},
        parameters=parameters,
        **more,
    )


def merged(sources: Sources, recipe: MergeRecipe) -> dict[str, Tensor]:
    """Merge into fresh tensors."""
    dtype = getattr(torch, recipe.dtype)
    target = {
        n: torch.empty(t.shape, dtype=dtype if t.is_floating_point() else t.dtype)
        for n, t in sources.base.tensors.items()
    }
    MergeEngine(sources).merge_into(recipe, target)
    return target
