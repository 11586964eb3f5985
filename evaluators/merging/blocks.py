"""Which block a tensor belongs to: its filter row and its layer group.

The two parts of a tensor's name decide. The first filter that is a substring of the name gives the
row; the layer number, which is the first purely numeric component of the dotted name, gives the
group. Embeddings belong to the first group; all else outside the layer stack to the last.
"""

from __future__ import annotations

from collections.abc import Iterable

EMBEDDINGS = ("embed", "wte", "wpe")
"""A tensor outside the layer stack is an embedding if its name contains one of these."""


class Blocks:
    """The partition of a checkpoint's tensors into (1 + number of filters) × `layer_groups` blocks.

    Layer i of L belongs to group `i * layer_groups // L`, so groups are contiguous.

    Raises:
        ValueError: a filter or a layer group that would own no tensor at all, in one line.
    """

    def __init__(self, names: Iterable[str], layer_groups: int, filters: tuple[str, ...]) -> None:
        names = tuple(names)
        numbers = [number for name in names if (number := layer_of(name)) is not None]
        self.layers = max(numbers, default=-1) + 1
        self._layer_groups = layer_groups
        self._filters = filters
        if not 1 <= layer_groups <= max(self.layers, 1):
            raise ValueError(
                f"layer_groups: found {layer_groups}, allowed: 1 to {max(self.layers, 1)}; the "
                f"model has {self.layers} layers"
            )
        rows = {self._row(name) for name in names}
        for row, text in enumerate(filters):
            if row not in rows:
                raise ValueError(
                    f"filters: found {text!r}, allowed: part of the name of a tensor that no "
                    "earlier filter takes"
                )

    def of(self, name: str) -> tuple[int, int]:
        """(row, group) of a tensor; the last row is "rest"."""
        return self._row(name), self._group(name)

    def _row(self, name: str) -> int:
        matches = (row for row, text in enumerate(self._filters) if text in name)
        return next(matches, len(self._filters))

    def _group(self, name: str) -> int:
        number = layer_of(name)
        if number is not None:
            return number * self._layer_groups // self.layers
        return 0 if is_embedding(name) else self._layer_groups - 1


def layer_of(name: str) -> int | None:
    """Find the first purely numeric component of a dotted name; None outside the layer stack."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def is_embedding(name: str) -> bool:
    """Whether a tensor outside the layer stack belongs to its beginning."""
    return any(text in name for text in EMBEDDINGS)
