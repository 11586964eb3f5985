"""Tensor names of models whose layers are layers of other models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evaluators.merging.blocks import is_embedding, layer_of
from evaluators.recipe import ModelRef

Place = tuple[int, str]
"""Number of a source, and a tensor's name there."""


def renumbered(name: str, layer: int) -> str:
    """Write another layer number into a tensor's name.

    Raises:
        StopIteration: the name has no layer number.
    """
    parts = name.split(".")
    place = next(i for i, part in enumerate(parts) if part.isdecimal())
    return ".".join([*parts[:place], str(layer), *parts[place + 1 :]])


def stacked_names(sources: Sequence[tuple[Sequence[str], int]]) -> dict[str, Place]:
    """Name the tensors of a stack and say where each comes from.

    Embeddings come from the source of the first layer, all else outside the layers from that of
    the last.

    Args:
        sources: for every layer of the stack, its model's tensor names and its number there.

    Returns:
        Name → place, sorted by name.
    """
    return dict(sorted(_stacked(sources)))


def _stacked(sources: Sequence[tuple[Sequence[str], int]]) -> Iterator[tuple[str, Place]]:
    last = len(sources) - 1
    for name in sources[0][0]:
        if layer_of(name) is None and is_embedding(name):
            yield name, (0, name)
    for number, (names, layer) in enumerate(sources):
        for name in names:
            if layer_of(name) == layer:
                yield renumbered(name, number), (number, name)
    for name in sources[last][0]:
        if layer_of(name) is None and not is_embedding(name):
            yield name, (last, name)


def label(layers: Sequence[tuple[ModelRef, int]]) -> str:
    """Say what a stack is made of: `models/a[0:8] models/b[4:12]`."""
    runs: list[tuple[ModelRef, int, int]] = []
    for model, number in layers:
        if runs and runs[-1][0] == model and runs[-1][2] == number:
            runs[-1] = (model, runs[-1][1], number + 1)
        else:
            runs.append((model, number, number + 1))
    return " ".join(f"{model}[{first}:{end}]" for model, first, end in runs)
