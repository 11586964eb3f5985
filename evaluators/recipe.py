"""What to merge: `ModelRef` and `MergeRecipe`, their canonical form and key.

A recipe is the identity of a candidate. Its key is a hash of its canonical JSON, never of rounded
numbers, so two recipes share a key only if they say the same thing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Grid = tuple[tuple[float, ...], ...]
"""One value per block: 1 + len(filters) rows × layer_groups columns; the last row is "rest"."""

Value = float | bool | str | Grid
DType = Literal["float32", "bfloat16", "float16"]

TokenizerSource = Literal["base", "union"]
"""Whose tokens a merged model has: the base's, or those of all sources."""

WHOLE = "*"
"""The owner of parameters that the merge has once, such as `lambda`, `normalize` and `t`."""


class Frozen(BaseModel):
    """Base of every border type: immutable, strict about keys, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelRef(Frozen):
    """A checkpoint: a local folder or a hub id, or the fine-tune that an adapter makes of it.

    As text it is `path`, `path@revision`, `path+adapter` or `path@revision+adapter@revision`. The
    last + begins the adapter and the first @ a revision, unless a folder has them in its name.
    """

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    @model_validator(mode="after")
    def _revisions_belong(self) -> ModelRef:
        if self.adapter_revision is not None and self.adapter is None:
            raise ValueError("an adapter's revision without an adapter")
        return self

    @model_serializer(mode="wrap")
    def _without_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an adapter that is not there: keys of recipes stay what they always were."""
        content: dict[str, Any] = dump(self)
        absent = {key for key in ("adapter", "adapter_revision") if content.get(key) is None}
        return {key: value for key, value in content.items() if key not in absent}

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read a reference; its text is `text` again.

        A + or @ may be part of a folder's name: where there is such a folder, it is.
        """
        model, adapter = _split(text)
        path, revision = _revised(model)
        if adapter is None:
            return cls(path=path, revision=revision)
        adapter, adapter_revision = _revised(adapter)
        return cls(path=path, revision=revision, adapter=adapter, adapter_revision=adapter_revision)

    @property
    def parts(self) -> tuple[ModelRef, ...]:
        """The model, and the adapter if there is one, as references of their own."""
        model = ModelRef(path=self.path, revision=self.revision)
        if self.adapter is None:
            return (model,)
        return (model, ModelRef(path=self.adapter, revision=self.adapter_revision))

    def __str__(self) -> str:
        if self.adapter is not None:
            return "+".join(map(str, self.parts))
        return self.path if self.revision is None else f"{self.path}@{self.revision}"


def _split(text: str) -> tuple[str, str | None]:
    """Tell an adapter from its model: two folders that exist, or what the last + parts."""
    if _is_folder(text):
        return text, None
    parts = [
        (text[: m.start()], text[m.end() :]) for m in re.finditer(r"(?s)(?<=.)\+(?=[^+])", text)
    ]
    existing = [pair for pair in parts if all(map(_is_folder, pair))]
    return [(text, None), *parts, *existing][-1]


def _revised(text: str) -> tuple[str, str | None]:
    """Tell a revision from its path; a sign with nothing before or after it belongs to the path."""
    path, _, revision = text.partition("@")
    return (path, revision) if path and revision and not _is_folder(text) else (text, None)


def _is_folder(text: str) -> bool:
    return os.path.isdir(os.path.expanduser(text))  # unlike pathlib's, it takes any text


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
