"""From one value per tensor to the grid of a recipe: filters × layer groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evaluators.merging.blocks import Blocks, is_embedding, layer_of
from evaluators.merging.mergekit.values import Scalar
from evaluators.recipe import Value

PerTensor = Mapping[str, Scalar]
"""A parameter's value for every tensor."""


@dataclass(frozen=True)
class Layout:
    """A partition of the tensors into blocks.

    Attributes:
        members: (row, group) → tensors.
    """

    layer_groups: int
    filters: tuple[str, ...]
    members: Mapping[tuple[int, int], Sequence[str]]

    def holds(self, values: PerTensor) -> bool:
        """Whether a parameter has one value in each block."""
        return all(len({values[name] for name in block}) == 1 for block in self.members.values())

    def value(self, values: PerTensor) -> Value:
        """Express a parameter: one value if it is the same everywhere, else a grid of numbers."""
        if len(set(values.values())) == 1:
            return next(iter(values.values()))
        rows = range(len(self.filters) + 1)
        return tuple(
            tuple(self._number(values, row, group) for group in range(self.layer_groups))
            for row in rows
        )

    def _number(self, values: PerTensor, row: int, group: int) -> float:
        """Find the value of a block; one without tensors has that of any block."""
        block = self.members.get((row, group)) or next(iter(self.members.values()))
        return float(values[block[0]])


def find_layout(
    names: Sequence[str], groups: int, filters: Iterable[str], values: Sequence[PerTensor]
) -> Layout:
    """Find blocks in which every parameter has one value.

    As few as possible: the groups and filters that were written, else the tensors outside the layer
    stack by name (mergekit gives the last of them the first value of a gradient), else every layer
    and every tensor of a layer by name, which always holds.

    Args:
        names: tensors of the model.
        groups: of layers, as they were written.
        filters: as they were written.
        values: the parameters.
    """
    written = list(dict.fromkeys(filters))
    outside = [name for name in names if layer_of(name) is None and not is_embedding(name)]
    layers = Blocks(names, 1, ()).layers
    for texts in (written, [*outside, *written]):
        for count in dict.fromkeys((groups, layers)):
            layout = _layout(names, count, texts)
            if all(map(layout.holds, values)):
                return layout
    return _layout(names, max(layers, 1), sorted({*map(_kind, names)}, key=len, reverse=True))


def _layout(names: Sequence[str], groups: int, texts: Sequence[str]) -> Layout:
    """Lay out the tensors, without the filters that own none."""
    owned = []
    left = list(names)
    for text in texts:
        if any(text in name for name in left):
            owned.append(text)
            left = [name for name in left if text not in name]
    blocks = Blocks(names, max(groups, 1), tuple(owned))
    members: dict[tuple[int, int], list[str]] = {}
    for name in names:
        members.setdefault(blocks.of(name), []).append(name)
    return Layout(max(groups, 1), tuple(owned), members)


def _kind(name: str) -> str:
    """Name a tensor of a layer by what follows the layer's number, all others in full."""
    number = layer_of(name)
    return name if number is None else name.partition(f".{number}.")[2]
