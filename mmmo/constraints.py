"""Constraints on objectives, as a campaign file writes them: `maths >= 0.2`."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import model_serializer

from mmmo.complaints import shown
from mmmo.settings import Strict


class Constraint(Strict):
    """`objective >= bound` or `objective <= bound`, in the objective's own units."""

    objective: str
    sign: Literal[">=", "<="]
    bound: float

    @model_serializer
    def __str__(self) -> str:
        return f"{self.objective} {self.sign} {self.bound!r}"

    def holds(self, value: float) -> bool:
        """Whether this value of the objective meets it."""
        return value >= self.bound if self.sign == ">=" else value <= self.bound


def read_constraint(raw: Any) -> Any:
    """Read `maths >= 0.2` into the fields of a `Constraint`."""
    if isinstance(raw, Constraint):
        return raw
    written = re.fullmatch(r"\s*(\S+)\s*(>=|<=)\s*(\S+)\s*", raw) if isinstance(raw, str) else None
    try:
        if written:
            return {"objective": written[1], "sign": written[2], "bound": float(written[3])}
    except ValueError:
        pass
    raise ValueError(f'found {shown(raw)}, allowed: "objective >= number" or "objective <= number"')
