"""What may stand for a merge parameter: a value, a gradient over the layers, a range, a choice, or
one of these per expert.
"""

from __future__ import annotations

import math
from typing import Any, cast

from pydantic import ConfigDict, model_serializer

from evaluators.merging.mergekit.values import interpolated
from evaluators.merging.methods import METHODS
from evaluators.recipe import Frozen
from mmmo.complaints import shown, unknown


class Strict(Frozen):
    """Every section of the file: `true` is no number, and text is not read as one."""

    model_config = ConfigDict(strict=True)


class Range(Strict):
    """A number to search: any value of the closed interval."""

    low: float
    high: float

    @model_serializer
    def _as_written(self) -> dict[str, list[float]]:
        return {"range": [self.low, self.high]}

    def __str__(self) -> str:
        return f"range [{self.low:g}, {self.high:g}]"


class Choice(Strict):
    """A value to search: one of at least two."""

    options: tuple[bool | float | str, ...]

    @model_serializer
    def _as_written(self) -> dict[str, list[bool | float | str]]:
        return {"choice": list(self.options)}

    def __str__(self) -> str:
        return f"choice [{', '.join(map(str, self.options))}]"


class Gradient(Strict):
    """Fixed numbers at even distances from the first layer group to the last."""

    values: tuple[float, ...]

    @model_serializer
    def _as_written(self) -> list[float]:
        return list(self.values)

    def at(self, group: int, groups: int) -> float:
        """The number of one of two or more layer groups, interpolated linearly."""
        return float(interpolated(self.values, group / (groups - 1)))


Fixed = bool | float | str
Setting = Fixed | Gradient | Range | Choice


def single(setting: Setting) -> Fixed:
    """A setting that is one value for all layers and every trial."""
    if isinstance(setting, Gradient | Range | Choice):
        raise TypeError(f"{setting} is no single value")
    return setting


def read_setting(raw: Any) -> Any:
    """Read `0.5`, `true`, `l1`, `[0, 0.5, 1]`, `{range: [0, 1]}`, `{choice: [a, b]}` or
    `{expert: setting, …}`.
    """
    if isinstance(raw, dict) and raw and not {"range", "choice"} & set(raw):
        return {str(name): _read_one(value) for name, value in raw.items()}
    return _read_one(raw)


def _read_one(raw: Any) -> Setting:
    if isinstance(raw, Gradient | Range | Choice | bool | str):
        return raw
    if isinstance(raw, list) and len(raw) > 1 and all(map(_is_number, raw)):
        return Gradient(values=tuple(map(float, raw)))
    if _is_number(raw):
        return float(raw)
    if isinstance(raw, dict) and set(raw) == {"range"}:
        return _range(raw["range"])
    if isinstance(raw, dict) and set(raw) == {"choice"}:
        return _choice(raw["choice"])
    allowed = (
        "a value, [first, …, last] over the layer groups, {range: [low, high]}, {choice: [a, b]}, "
        "or one of these per expert"
    )
    raise ValueError(f"found {shown(raw)}, allowed: {allowed}")


def _range(raw: Any) -> Range:
    numbers = isinstance(raw, list) and len(raw) == 2 and all(map(_is_number, raw))
    if not numbers or not raw[0] < raw[1]:
        raise ValueError(f"found range {shown(raw)}, allowed: [low, high], two numbers, low < high")
    return Range(low=raw[0], high=raw[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _choice(raw: Any) -> Choice:
    plain = isinstance(raw, list) and all(isinstance(o, bool | str) or _is_number(o) for o in raw)
    if not plain or len(raw) < 2 or len(set(map(repr, raw))) < len(raw):
        raise ValueError(f"found choice {shown(raw)}, allowed: a list of two or more that differ")
    return Choice(options=tuple(raw))


def read_method(raw: Any) -> str | Choice:
    """Read `ties` or `{choice: [ties, slerp]}`."""
    method = _choice(raw["choice"]) if isinstance(raw, dict) and set(raw) == {"choice"} else raw
    for name in method.options if isinstance(method, Choice) else (method,):
        if not isinstance(name, str) or name not in METHODS:
            raise ValueError(unknown(name, METHODS))
    return cast("str | Choice", method)
