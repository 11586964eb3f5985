"""A parameter in mergekit's grammar: a value, a gradient over the layers, or a list of conditions.

weight: 0.5
weight: [0.0, 0.5, 1.0]                 # interpolated over the layers of its slice
weight:
  - {filter: self_attn, value: [0, 1]}  # the first condition that fits a tensor's name decides
  - value: 0.5
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Scalar = float | bool | str

ALLOWED = "a value, a list of values (a gradient), or a list of {filter: text, value: …}"


@dataclass(frozen=True)
class Condition:
    """What holds for the tensors whose names contain `text`.

    Attributes:
        text: part of a tensor's name; None fits every tensor.
        values: one value, or several at even distances from the first layer to the last.
    """

    text: str | None
    values: tuple[Scalar, ...]

    def fits(self, name: str) -> bool:
        """Whether it holds for a tensor."""
        return self.text is None or self.text in name

    def at(self, t: float) -> Scalar:
        """The value at `t` in [0, 1], see `interpolated`."""
        return interpolated(self.values, t)


Setting = tuple[Condition, ...]


def read_setting(raw: Any) -> Setting:
    """Read what stands under a parameter's name.

    Raises:
        ValueError: it is none of the three forms; what was found and what is allowed.
    """
    if isinstance(raw, dict):
        raw = [raw]
    if isinstance(raw, list) and raw and all(isinstance(entry, dict) for entry in raw):
        return tuple(_condition(entry) for entry in raw)
    return (Condition(None, _values(raw)),)


def interpolated(values: Sequence[Scalar], t: float) -> Scalar:
    """Interpolate numbers linearly; of other values take the one before.

    Args:
        values: at even distances from t = 0 to t = 1.
        t: in [0, 1].
    """
    place = t * (len(values) - 1)
    first = int(place)
    a, b = values[first], values[min(first + 1, len(values) - 1)]
    if isinstance(a, bool | str) or isinstance(b, bool | str):
        return a
    part = place - first
    return (1 - part) * a + part * b


def converted(setting: Setting, convert: Callable[[Scalar], Scalar]) -> Setting:
    """Apply a function to every value."""
    return tuple(Condition(c.text, tuple(map(convert, c.values))) for c in setting)


def evaluate(settings: Sequence[Setting], name: str, t: float) -> Scalar | None:
    """Find the value for a tensor: of the first setting, in it of the first condition, that fits.

    Args:
        settings: from the most to the least particular.
        name: of the tensor.
        t: how far through its slice it lies.

    Returns:
        The value, or None where nothing fits.
    """
    fitting = (c for setting in settings for c in setting if c.fits(name))
    found = next(fitting, None)
    return None if found is None else found.at(t)


def _condition(entry: dict[Any, Any]) -> Condition:
    if "value" not in entry or not set(entry) <= {"filter", "value"}:
        raise ValueError(f"found {entry}, allowed: {{filter: text, value: …}}")
    text = entry.get("filter")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"found filter {text!r}, allowed: part of a tensor's name")
    return Condition(None if text == "*" else text, _values(entry["value"]))


def _values(raw: Any) -> tuple[Scalar, ...]:
    values = raw if isinstance(raw, list) else [raw]
    if not values or not all(isinstance(value, bool | int | float | str) for value in values):
        raise ValueError(f"found {raw!r}, allowed: {ALLOWED}")
    return tuple(values)
