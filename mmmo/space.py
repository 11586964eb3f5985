"""The search space: the unit cube on one side, merge recipes on the other.

A number takes one column of the cube, scaled linearly to its range; a choice takes one column per
option, and the largest wins. Parameters of operators that are not chosen are inactive: `decode`
ignores their columns and `snap` sets them to one half. Whatever `decode` returns is valid by
construction: every number lies in its parameter's domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from evaluators.merging.methods import METHODS, Parameter
from evaluators.recipe import WHOLE, Grid, MergeRecipe, Value
from mmmo.config import CampaignConfig
from mmmo.settings import Choice, Gradient, Range, Setting, single

if TYPE_CHECKING:
    from torch import Tensor

METHOD = "method"

Block = tuple[int, int] | None
Chooser = Callable[[str, str, Block, Parameter], float | bool | str | None]
"""(owner, parameter, block, its specification) → the value of one searched cell, None = default."""


@dataclass(frozen=True)
class Dimension:
    """One thing that is searched.

    Attributes:
        owner: an expert's name, or `WHOLE`.
        block: (row, group) of the grid cell, or None where there is one value for all.
        setting: what the user allowed.
        methods: the operators under which this dimension is active.
        start: its first column; a choice has one column per option.
    """

    owner: str
    parameter: str
    block: Block
    setting: Range | Choice
    methods: frozenset[str]
    start: int

    @property
    def width(self) -> int:
        """How many columns it takes."""
        return len(self.setting.options) if isinstance(self.setting, Choice) else 1

    def read(self, x: Sequence[float]) -> float | bool | str:
        """The value that a point of the cube stands for."""
        cells = x[self.start : self.start + self.width]
        if isinstance(self.setting, Choice):
            return self.setting.options[max(range(self.width), key=lambda i: cells[i])]
        low, high = self.setting.low, self.setting.high
        return min(high, max(low, low + cells[0] * (high - low)))

    def write(self, value: float | bool | str) -> list[float]:
        """The cells that `read` turns into this value."""
        if isinstance(self.setting, Choice):
            chosen = self.setting.options.index(value)
            return [float(i == chosen) for i in range(self.width)]
        low, high = self.setting.low, self.setting.high
        return [(float(value) - low) / (high - low)]

    def holds(self, value: float | bool | str) -> bool:
        """Whether the user allowed this value."""
        if isinstance(self.setting, Choice):
            return value in self.setting.options
        return not isinstance(value, str) and self.setting.low <= value <= self.setting.high


class SearchSpace:
    """Unit cube ↔ `MergeRecipe`.

    Attributes:
        size: columns of the cube.
        shape: rows (one per filter, and the rest) and layer groups of what has a value per block.
    """

    def __init__(self, config: CampaignConfig) -> None:
        self._merge = config.merge
        self._base, self._experts = config.sources.refs()
        self._seed = config.seed
        self.methods = tuple(config.merge.methods)
        self.experts = tuple(self._experts)
        self.shape = (len(config.merge.filters) + 1, config.merge.layer_groups)
        self.dimensions: tuple[Dimension, ...] = tuple(self._list_dimensions())
        last = self.dimensions[-1] if self.dimensions else None
        self.size = last.start + last.width if last else 0

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """A name per column, such as `maths.weight`, `code.density[self_attn,2]`, `method=ties`."""
        return tuple(name for d in self.dimensions for name in self._column_names(d))

    def decode(self, x: Sequence[float]) -> MergeRecipe:
        """The recipe of a point `x` of `size` numbers in [0, 1]."""
        chosen = [d.read(x) for d in self.dimensions if d.parameter == METHOD]
        method = str(chosen[0]) if chosen else self.methods[0]
        active = [d for d in self.dimensions if method in d.methods]
        values = {(d.owner, d.parameter, d.block): d.read(x) for d in active}
        return self.recipe(method, lambda owner, name, block, _: values.get((owner, name, block)))

    def encode(self, recipe: MergeRecipe) -> list[float]:
        """The point that decodes to this recipe; one half where nothing depends on it.

        Raises:
            ValueError: the space does not hold the recipe.
        """
        x = [0.5] * self.size
        for d in self.dimensions:
            if recipe.method not in d.methods:
                continue
            value = recipe.method if d.parameter == METHOD else _value(recipe, d)
            if not d.holds(value):
                raise ValueError(f"{d.owner}.{d.parameter}: {value} is outside of {d.setting}")
            x[d.start : d.start + d.width] = d.write(value)
        if self.decode(x).method != recipe.method:
            raise ValueError(f"this space never merges by {recipe.method}")
        return x

    def snap(self, X: Tensor) -> Tensor:
        """`... x size` points → the points that stand for the same recipes: choices one-hot,
        inactive columns one half.
        """
        import torch

        X = X.clamp(0.0, 1.0).clone()
        method = torch.zeros(X.shape[:-1], dtype=torch.long)
        for d in self.dimensions:
            if isinstance(d.setting, Choice):
                cells = X[..., d.start : d.start + d.width]
                chosen = cells.argmax(-1)
                X[..., d.start : d.start + d.width] = torch.nn.functional.one_hot(
                    chosen, d.width
                ).to(X)
                method = chosen if d.parameter == METHOD else method
        for d in self.dimensions:
            active = torch.tensor([m in d.methods for m in self.methods])[method]
            cells = X[..., d.start : d.start + d.width]
            X[..., d.start : d.start + d.width] = torch.where(active.unsqueeze(-1), cells, 0.5)
        return X

    def recipe(self, method: str, choose: Chooser) -> MergeRecipe:
        """A recipe whose searched values come from `choose`, the others from the file."""
        parameters: dict[str, dict[str, Value]] = {}
        for spec in METHODS[method].parameters:
            for owner in self.owners(spec):
                value = self._chosen(owner, spec, self.setting(owner, spec), choose)
                parameters.setdefault(owner, {})[spec.name] = value
        return MergeRecipe(
            method=method,
            base=self._base,
            experts=self._experts,
            parameters=parameters,
            layer_groups=self._merge.layer_groups,
            filters=self._merge.filters,
            dtype=self._merge.dtype,
            seed=self._seed,
        )

    def chosen_by_default(self, method: str, name: str) -> float | bool | str | None:
        """What a choice of the operator is where nobody chooses; None if it has no such choice."""
        spec = METHODS[method].parameter(name)
        if spec is None:
            return None
        setting = self.setting(WHOLE, spec)
        return _default(spec, setting) if isinstance(setting, Range | Choice) else single(setting)

    def owners(self, spec: Parameter) -> tuple[str, ...]:
        """Who has a value of a parameter: every expert, or the merge as a whole."""
        return self.experts if spec.scope == "expert" else (WHOLE,)

    def setting(self, owner: str, spec: Parameter) -> Setting:
        """What the file says of a parameter, or else its operator."""
        written = self._merge.parameters.get(spec.name)
        if isinstance(written, dict):
            return written[owner]
        if written is not None:
            return written
        return Range(low=spec.search[0], high=spec.search[1]) if spec.search else spec.default

    @property
    def blocks(self) -> list[Block]:
        """The cells of a grid of values, row by row; None alone where there is one for all."""
        rows, groups = self.shape
        if rows == groups == 1:
            return [None]
        return [(row, group) for row in range(rows) for group in range(groups)]

    def _list_dimensions(self) -> Iterator[Dimension]:
        start = 0
        for owner, name, setting, methods in self._searched():
            blocked = isinstance(setting, Range)
            for block in self.blocks if blocked else [None]:
                dimension = Dimension(owner, name, block, setting, methods, start)
                start += dimension.width
                yield dimension

    def _searched(self) -> Iterator[tuple[str, str, Range | Choice, frozenset[str]]]:
        """Everything that is no fixed value, each once, with the operators that have it."""
        if isinstance(self._merge.method, Choice):
            yield WHOLE, METHOD, self._merge.method, frozenset(self.methods)
        # Operators share a parameter if it has the same owner and range with them.
        found: dict[tuple[str, str, Range | Choice], list[str]] = {}
        for method in self.methods:
            for spec in METHODS[method].parameters:
                for owner in self.owners(spec):
                    setting = self.setting(owner, spec)
                    if isinstance(setting, Range | Choice):
                        found.setdefault((owner, spec.name, setting), []).append(method)
        for (owner, name, setting), methods in found.items():
            yield owner, name, setting, frozenset(methods)

    def _chosen(self, owner: str, spec: Parameter, setting: Setting, choose: Chooser) -> Value:
        if isinstance(setting, Gradient):
            rows, groups = self.shape
            return (tuple(setting.at(group, groups) for group in range(groups)),) * rows
        if not isinstance(setting, Range | Choice):
            return setting
        blocks = self.blocks if isinstance(setting, Range) else [None]
        wishes = [choose(owner, spec.name, block, spec) for block in blocks]
        cells = [_default(spec, setting) if wish is None else wish for wish in wishes]
        if blocks == [None]:
            return cells[0]
        return self._grid([float(cell) for cell in cells])

    def _grid(self, numbers: Sequence[float]) -> Grid:
        """Arrange one number per block."""
        groups = self.shape[1]
        return tuple(tuple(numbers[row : row + groups]) for row in range(0, len(numbers), groups))

    def _column_names(self, d: Dimension) -> list[str]:
        name = d.parameter if d.owner == WHOLE else f"{d.owner}.{d.parameter}"
        if d.block is not None:
            row, group = d.block
            part = (*self._merge.filters, "rest")[row]
            name = f"{name}[{part},{group}]"
        twins = [t for t in self.dimensions if (t.owner, t.parameter) == (d.owner, d.parameter)]
        if any(twin.methods != d.methods for twin in twins):
            name = f"{'|'.join(m for m in self.methods if m in d.methods)}.{name}"
        if isinstance(d.setting, Choice):
            return [f"{name}={option}" for option in d.setting.options]
        return [name]


def _value(recipe: MergeRecipe, d: Dimension) -> float | bool | str:
    row, group = d.block or (0, 0)
    return recipe.value(d.owner, d.parameter, row, group)


def _default(spec: Parameter, setting: Range | Choice) -> float | bool | str:
    if isinstance(setting, Choice) and spec.default not in setting.options:
        return setting.options[0]
    return spec.default
