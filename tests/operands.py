"""Operators on plain tensors, as the engine applies them, without sources or recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor

from evaluators.merging.formulas import Operands
from evaluators.merging.methods import METHODS, Parameter
from evaluators.merging.spherical import Dials, gram

Given = float | bool | str | Sequence[float]


def operate(method: str, base: Tensor, models: Sequence[Tensor], **given: Given) -> Tensor:
    """Merge whole tensors without trimming.

    Args:
        method: a key of `METHODS`.
        base: of any shape, float32 or float64.
        models: the K tensors to merge.
        given: parameter → value, of an expert's parameter also one per expert; else the default.
    """
    entry, K = METHODS[method], len(models)

    def value(p: Parameter) -> Given:
        return given.get(p.name, p.default)

    experts, merge = {}, {}
    options: dict[str, Any] = {}
    for p in entry.parameters:
        if p.choices is None and p.scope == "expert":
            numbers = torch.tensor(value(p), dtype=base.dtype)
            experts[p.name] = numbers.reshape(-1, 1).expand(K, 1).unbind()
        elif p.choices is None:
            merge[p.name] = torch.tensor([value(p)], dtype=base.dtype)
        else:
            options[p.name] = value(p)
    shape, mix = base.shape, ()
    if not entry.whole:
        base, models = base.flatten(), [model.flatten() for model in models]
    if entry.mix is not None:
        dials = Dials(
            experts={k: torch.cat(v).double() for k, v in experts.items()},
            merge={k: v[0].double() for k, v in merge.items()},
            options=options,
        )
        mix = resolve_name(entry.mix)(gram(base, models), dials).to(base.dtype)[:, None].unbind()
    one = [torch.ones(1, dtype=base.dtype)] * K
    x = Operands(base, models, experts, one, one, mix, merge, options)
    result: Tensor = resolve_name(entry.formula)(x)
    return result.reshape(shape)
