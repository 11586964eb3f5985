"""The measure `delta_l1`, the mean |delta| per parameter, as a function of points of the cube.

It follows from the recipe alone, so strategies are given it exactly instead of modelling it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from evaluators.merging.methods import METHODS, Parameter
from evaluators.recipe import WHOLE
from mmmo.settings import Choice, Fixed, Gradient, Range, single
from mmmo.space import METHOD, Block, SearchSpace

if TYPE_CHECKING:
    from torch import Tensor

    from evaluators.merging.probe import DeltaProbe


def is_known(space: SearchSpace) -> bool:
    """Whether the mean |delta| is known of every point: nothing but numbers and the method is
    searched, and no operator needs whole tensors, which cannot be sampled.
    """
    specs = (p for m in space.methods for p in METHODS[m].parameters if p.choices)
    return not (
        any(METHODS[m].whole or _is_row_wise(space, m) for m in space.methods)
        or any(isinstance(space.setting(WHOLE, spec), Choice) for spec in specs)
    )


def known_delta_l1(space: SearchSpace, probe: DeltaProbe) -> Callable[[Tensor], Tensor] | None:
    """Mean |delta| per parameter as a function of `... x size` points, or None where it is not
    known.
    """
    if not is_known(space):
        return None

    def delta_l1(X: Tensor) -> Tensor:
        import torch

        # An operator without parameters has one value for all points.
        values = [
            probe.delta_l1(m, *_parameters(space, m, X)).expand(X.shape[:-1]) for m in space.methods
        ]
        choice = next((d for d in space.dimensions if d.parameter == METHOD), None)
        if choice is None:
            return values[0]
        chosen = X[..., choice.start : choice.start + choice.width].argmax(-1, keepdim=True)
        return torch.stack(values, -1).gather(-1, chosen).squeeze(-1)

    return delta_l1


def _is_row_wise(space: SearchSpace, method: str) -> bool:
    """Whether an operator has coefficients of its own for every row."""
    from evaluators.merging.spherical import along

    specs = [p for p in METHODS[method].parameters if p.choices]
    chosen = {p.name: space.chosen_by_default(method, p.name) for p in specs}
    return along({k: v for k, v in chosen.items() if v is not None}) is not None


def _parameters(
    space: SearchSpace, method: str, X: Tensor
) -> tuple[dict[str, Tensor], dict[str, Fixed]]:
    """The parameters of `... x size` points as tensors: `... x K x rows x groups` for experts'
    numbers, `... x rows x groups` for the merge's; and the choices, which are fixed.
    """
    import torch

    values: dict[str, Tensor] = {}
    options: dict[str, Fixed] = {}
    for spec in METHODS[method].parameters:
        if spec.choices is not None:
            options[spec.name] = single(space.setting(WHOLE, spec))
            continue
        owners = space.owners(spec)
        cells = [_cell(space, method, o, spec, block, X) for o in owners for block in space.blocks]
        grid = torch.stack(cells, -1).reshape(*X.shape[:-1], len(owners), *space.shape)
        values[spec.name] = grid if spec.scope == "expert" else grid.squeeze(-3)
    return values, options


def _cell(  # noqa: PLR0913
    space: SearchSpace, method: str, owner: str, spec: Parameter, block: Block, X: Tensor
) -> Tensor:
    """The values of one number at `... x size` points: `...`."""
    import torch

    for d in space.dimensions:
        named = (d.owner, d.parameter) == (owner, spec.name) and method in d.methods
        if named and d.block in (block, None):
            cells = X[..., d.start : d.start + d.width]
            if isinstance(d.setting, Range):
                return d.setting.low + cells[..., 0] * (d.setting.high - d.setting.low)
            options = torch.tensor([float(option) for option in d.setting.options]).to(X)
            return options[cells.argmax(-1)]
    setting = space.setting(owner, spec)
    if isinstance(setting, Gradient) and block is not None:
        return torch.full_like(X[..., 0], setting.at(block[1], space.shape[1]))
    return torch.full_like(X[..., 0], float(single(setting)))
