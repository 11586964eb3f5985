"""What to merge: `ModelRef` and `MergeRecipe`, their canonical form and key.

A recipe is the identity of a candidate. Its key is a hash of its canonical JSON, never of rounded
numbers, so two recipes share a key only if they say the same thing.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

Grid = tuple[tuple[float, ...], ...]
"""One value per block: 1 + len(filters) rows × layer_groups columns; the last row is "rest"."""

Value = float | bool | str | Grid
DType = Literal["float32", "bfloat16", "float16"]

WHOLE = "*"
"""The owner of parameters that the merge has once, such as `lambda`, `normalize` and `t`."""


class Frozen(BaseModel):
    """Base of every border type: immutable, strict about keys, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelRef(Frozen):
    """A checkpoint: a local folder or a hub id, with an optional revision (`path@revision`)."""

    path: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read `path` or `path@revision`."""
        path, _, revision = text.partition("@")
        return cls(path=path, revision=revision or None)

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


class MergeRecipe(Frozen):
    """Everything that decides the merged weights.

    Attributes:
        method: a key of `evaluators.merging.methods.METHODS`.
        base: the model that task vectors are taken from.
        experts: name → model, in the order in which they are merged.
        parameters: owner (an expert's name, or `WHOLE`) → parameter → value. A number or a choice
            holds for the whole model; a grid holds one number per block (filter row × layer group).
        layer_groups: how many contiguous groups the layers are cut into.
        filters: substrings of tensor names; a tensor belongs to the first that it contains.
        dtype: of the merged weights. Arithmetic is always float32.
        seed: of the random masks.
    """

    method: str
    base: ModelRef
    experts: dict[str, ModelRef]
    parameters: dict[str, dict[str, Value]]
    layer_groups: int = 1
    filters: tuple[str, ...] = ()
    dtype: DType = "float32"
    seed: int = 0

    @model_validator(mode="after")
    def _grids_fit(self) -> MergeRecipe:
        shape = (len(self.filters) + 1, self.layer_groups)
        for owner, values in self.parameters.items():
            if owner != WHOLE and owner not in self.experts:
                raise ValueError(f"parameters of {owner!r}, which is no expert of this recipe")
            for name, value in values.items():
                if isinstance(value, tuple):
                    found = (len(value), *{len(row) for row in value})
                    if found != shape:
                        raise ValueError(f"{owner}.{name}: grid of shape {found}, not {shape}")
        return self

    @property
    def key(self) -> str:
        """64 hex digits that name this candidate."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        """Canonical JSON: sorted keys, shortest exact floats; experts keep their order."""
        content = self.model_dump(mode="json")
        content["experts"] = list(content["experts"].items())
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def value(self, owner: str, parameter: str, row: int, group: int) -> float | bool | str:
        """The parameter's value in one block.

        Raises:
            KeyError: the recipe does not set that parameter.
        """
        value = self.parameters[owner][parameter]
        return value[row][group] if isinstance(value, tuple) else value
