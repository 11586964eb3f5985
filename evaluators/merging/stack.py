"""Models whose layers are layers of other models, in any order and number: layer stacking.

A stacked checkpoint is a view: its tensors are those of its sources under new layer numbers, so
nothing is copied, and an ordinary merge over stacked sources does the rest. (Layers of two models
behind one another, or the same twice, are a frankenmerge; mergekit's operator is passthrough.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evaluators.folders import HEADS
from evaluators.merging.blocks import Blocks
from evaluators.merging.numbering import label, stacked_names
from evaluators.recipe import WHOLE, ModelRef
from evaluators.sources import Checkpoint, SourceError, Sources

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""What configurations call the number of layers."""

Layer = tuple[Checkpoint, int]


@dataclass(frozen=True)
class StackedCheckpoint(Checkpoint):
    """A checkpoint made of other checkpoints' layers.

    Attributes:
        layers: for every layer, whose it is and its number there.
    """

    layers: tuple[Layer, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Hash of the sources' digests and the layers; its folder's digest is another model's."""
        lines = [f"{checkpoint.digest} {number}" for checkpoint, number in self.layers]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def restack(checkpoint: Checkpoint, layers: Sequence[int]) -> Checkpoint:
    """Take a model's layers in another order or number.

    Args:
        checkpoint: the model.
        layers: for every new layer, the number of the old one.

    Raises:
        SourceError: no layers, or one that the model does not have.
    """
    return stack(checkpoint, [(checkpoint, number) for number in layers])


def stack(donor: Checkpoint, layers: Sequence[Layer], ref: ModelRef | None = None) -> Checkpoint:
    """Put layers of models on top of each other.

    Embeddings come from the model of the first layer, norm and head from that of the last, as
    mergekit has it.

    Args:
        donor: whose configuration and tokenizer the new model has.
        layers: whose, and which, every layer is.
        ref: what the new model is called; else as `label` says.

    Raises:
        SourceError: no layers, or one that its model does not have; the donor's head is tied and
            that of the last layer's model is not, or the other way round; the donor's configuration
            does not say how many layers there are.
    """
    if not layers:
        raise SourceError("a stack needs at least one layer")
    for checkpoint, number in layers:
        count = Blocks(checkpoint.names, 1, ()).layers
        if not 0 <= number < count:
            raise SourceError(f"{checkpoint.ref}: layer {number}, but it has {count} layers")
    last = layers[-1][0]
    if _has_head(last) != _has_head(donor):  # else a head would be lost, or never be used
        raise SourceError(f"{last.ref}: gives the head; it has a tied one or {donor.ref} has")
    names = stacked_names([(checkpoint.names, number) for checkpoint, number in layers])
    tensors = {new: layers[i][0].tensors[old] for new, (i, old) in names.items()}
    return StackedCheckpoint(
        ref=ref or ModelRef(path=label([(c.ref, n) for c, n in layers])),
        folder=donor.folder,
        config=_config(donor, layers),
        tensors=tensors,
        layers=tuple(layers),
    )


def stacked_sources(
    opened: Sources,
    owners: Mapping[str, ModelRef],
    stacks: Mapping[str, Sequence[tuple[ModelRef, int]]],
) -> Sources:
    """Make the sources of a recipe, of which some are stacks, out of opened models.

    Args:
        opened: the donor of the configuration as the base, and every model that takes part.
        owners: source (`WHOLE` for the base, or an expert's name) → what the recipe calls it.
        stacks: source → its layers; one that is not listed is a model as it is.

    Raises:
        SourceError: see `stack`.
    """
    models = {checkpoint.ref: checkpoint for checkpoint in opened.experts.values()}
    made = {
        owner: stack(opened.base, [(models[r], n) for r, n in stacks[owner]], ref)
        if owner in stacks
        else models[ref]
        for owner, ref in owners.items()
    }
    return Sources(made.pop(WHOLE), made)


def _has_head(checkpoint: Checkpoint) -> bool:
    return any(name.endswith(HEADS) for name in checkpoint.names)


def _config(donor: Checkpoint, layers: Sequence[Layer]) -> dict[str, Any]:
    """Give the donor's configuration the stack's layers, at the top or under `text_config`."""
    config = dict(donor.config)
    nested = config.get("text_config")
    if isinstance(nested, dict):
        config["text_config"] = _counted(nested, layers)
    elif not any(key in config for key in _COUNTS):
        raise SourceError(
            f"{donor.folder}: config.json says no number of layers; expected one of "
            f"{', '.join(_COUNTS)}"
        )
    return _counted(config, layers)


def _counted(config: Mapping[str, Any], layers: Sequence[Layer]) -> dict[str, Any]:
    """Set the number of layers, and choose from the lists that have an entry per layer."""
    count = next((config[key] for key in _COUNTS if key in config), None)
    changed: dict[str, Any] = {key: len(layers) for key in _COUNTS if key in config}
    for key, value in config.items():
        if ("layer" in key or "block" in key) and isinstance(value, list) and len(value) == count:
            changed[key] = [_entry(checkpoint, key, number) for checkpoint, number in layers]
    return {**config, **changed}


def _entry(checkpoint: Checkpoint, key: str, number: int) -> Any:
    """Look up what a model's configuration says about one layer."""
    nested = checkpoint.config.get("text_config")
    for config in (checkpoint.config, nested if isinstance(nested, dict) else {}):
        entries = config.get(key)
        if isinstance(entries, list) and number < len(entries):
            return entries[number]
    raise SourceError(f"{checkpoint.folder}: config.json has no {key} of layer {number}")
