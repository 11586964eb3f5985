"""A mergekit configuration as a recipe: `from_mergekit`.

What becomes of the models: with task vectors, `base_model` is the recipe's base and the others its
experts; so too for slerp, whose base lies at t = 0. An operator without a base (linear, karcher,
passthrough; nuslerp and multislerp without `base_model`) has every model as an expert; the recipe's
base is then `base_model` if it is one of them, else the first, and gives nothing but structure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from evaluators.merging.blocks import Blocks, is_embedding, layer_of
from evaluators.merging.mergekit.document import Document, MergekitError, read_document
from evaluators.merging.mergekit.layout import PerTensor, find_layout
from evaluators.merging.mergekit.parameters import Parameters
from evaluators.merging.mergekit.slots import Layers, Slot, base_role, cast
from evaluators.merging.mergekit.values import Scalar
from evaluators.merging.methods import METHODS, Parameter
from evaluators.merging.numbering import renumbered, stacked_names
from evaluators.recipe import WHOLE, DType, MergeRecipe, ModelRef, TokenizerSource, Value


@dataclass(frozen=True)
class Outline:
    """What the reader must know of a model: its tensors' names, and how they are stored."""

    names: tuple[str, ...]
    dtype: DType


Look = Callable[[ModelRef], Outline]


@dataclass(frozen=True)
class Reading:
    """What a configuration asks for.

    Attributes:
        recipe: what to merge.
        stacks: owner (an expert's name, or `WHOLE` for the base) → the layers that it is made of,
            where it is no model as it lies on disk. See `evaluators.merging.stack`.
        donor: whose configuration and tokenizer the merge has.
        tokenizer: whose tokens it has.
        notes: what is ignored or computed differently, one sentence each.
    """

    recipe: MergeRecipe
    stacks: Mapping[str, Layers]
    donor: ModelRef
    tokenizer: TokenizerSource
    notes: tuple[str, ...]


def from_mergekit(content: object, look: Look, seed: int = 0) -> Reading:
    """Read a mergekit configuration.

    Args:
        content: of the YAML file.
        look: model → its outline, or a `MergekitError`; called for every model that is named.
        seed: of the random masks, which mergekit's grammar leaves open.

    Raises:
        MergekitError: what is wrong or not supported, one line each.
    """
    document = read_document(content)
    parameters = Parameters(document)
    outlines: dict[ModelRef, Outline] = {}
    unknown: list[str] = []
    for model in document.models:
        try:
            outlines[model] = look(model)
        except MergekitError as error:
            unknown += error.problems
    if unknown:
        raise MergekitError(unknown)
    reader = _Reader(document, parameters, outlines.__getitem__)
    reading = reader.reading(seed)
    if parameters.problems:
        raise MergekitError(parameters.problems)
    return reading


class _Reader:
    def __init__(self, document: Document, parameters: Parameters, look: Look) -> None:
        self._document, self._parameters, self._look = document, parameters, look
        self._method = METHODS[document.method]
        self._cast = cast(document, self._count)
        self._places = list(self._find_places())
        lead = self._cast.base or self._cast.experts[0]
        self._lead = lead
        parts = [(look(model).names, number) for model, number in lead.layers]
        self._names = tuple(stacked_names(parts)) if parts else look(self._cast.donor).names

    def reading(self, seed: int) -> Reading:
        self._check_count()
        per_tensor = dict(self._values())
        layout = find_layout(
            self._names,
            self._groups(),
            self._parameters.filters,
            [values for values in per_tensor.values() if len(set(values.values())) > 1],
        )
        values: dict[str, dict[str, Value]] = {}
        for (owner, name), numbers in per_tensor.items():
            values.setdefault(owner, {})[name] = layout.value(numbers)
        if self._method.parameter("task_vectors"):
            values.setdefault(WHOLE, {})["task_vectors"] = self._cast.base is not None
        base = self._base()
        owners = {WHOLE: base} | {slot.name: slot for slot in self._cast.experts}
        recipe = MergeRecipe(
            method=self._document.method,
            base=base.ref(self._count),
            experts={slot.name: slot.ref(self._count) for slot in self._cast.experts},
            parameters=values,
            layer_groups=layout.layer_groups,
            filters=layout.filters,
            dtype=self._document.dtype or self._look(self._cast.donor).dtype,
            seed=seed,
        )
        return Reading(
            recipe=recipe,
            stacks={o: s.layers for o, s in owners.items() if self._is_stack(o, s)},
            donor=self._cast.donor,
            tokenizer=self._document.tokenizer,
            notes=(
                *self._document.notes,
                *dict.fromkeys(self._parameters.notes),
                *self._idle_filters(),
            ),
        )

    def _idle_filters(self) -> Iterator[str]:
        for text in self._parameters.filters:
            if not any(text in name for name in self._names):
                yield f"the filter {text!r} is ignored, as by mergekit: no tensor's name has it"

    def _count(self, model: ModelRef) -> int:
        return Blocks(self._look(model).names, 1, ()).layers

    def _base(self) -> Slot:
        """Find the base: the one that was named, or for the structure alone one of the models."""
        if self._cast.base is not None:
            return self._cast.base
        named = (s for s in self._cast.experts if s.model(self._count) == self._cast.donor)
        return next(named, self._cast.experts[0])

    def _is_stack(self, owner: str, slot: Slot) -> bool:
        model = slot.model(self._count)
        return model is None or (owner == WHOLE and model != self._cast.donor)

    def _check_count(self) -> None:
        """Two ends are all of a slerp: the base, where there is one, and one other model."""
        found = len(self._cast.experts)
        ends = base_role(self._document) == "endpoint"
        if self._method.takes(found) and not (ends and found > 1):
            return
        beside = " beside the base" if self._cast.base is not None else ""
        allowed = "1" if ends else self._method.counts
        self._parameters.problems.append(
            f"merge_method: found {found} models{beside}, allowed: {allowed} with "
            f"{self._document.method}"
        )

    def _find_places(self) -> Iterator[tuple[int, int, float]]:
        """For every layer of the result: its slice, its number there, how far through it lies."""
        for i, piece in enumerate(self._cast.slices):
            length = len(piece.sources[0].layers or ())
            for number in range(length):
                yield i, number, number / (length - 1) if length > 1 else 1.0

    def _groups(self) -> int:
        """How many layer groups the slices are; every layer is one if they are of other sizes."""
        sizes = [len(piece.sources[0].layers or ()) for piece in self._cast.slices]
        total, count = sum(sizes), len(sizes)
        ends = [-(-group * total // count) for group in range(count + 1)]
        even = [sum(sizes[:group]) for group in range(count + 1)] == ends
        return count if even and not self._parameters.gradients else total

    def _values(self) -> Iterator[tuple[tuple[str, str], PerTensor]]:
        """Every parameter that is set anywhere: (owner, name) → its value for each tensor."""
        for spec in self._method.parameters:
            if spec.name == "task_vectors":
                continue
            owners = self._cast.experts if spec.scope == "expert" else (None,)
            for slot in owners:
                found = {name: self._value(spec, slot, name) for name in self._names}
                self._parameters.check_complete(spec, found, slot)
                if any(value is not None for value in found.values()):
                    filled = {n: spec.default if v is None else v for n, v in found.items()}
                    self._parameters.check_choice(spec, filled)
                    yield (slot.name if slot else WHOLE, spec.name), filled

    def _value(self, spec: Parameter, slot: Slot | None, name: str) -> Scalar | None:
        """Find a parameter's value for one tensor, as mergekit does.

        Outside the layer stack the first slice decides on embeddings and the last on all else, and
        both at the first value of a gradient.
        """
        number = layer_of(name)
        if number is None:
            place, index, t = 0 if is_embedding(name) else len(self._cast.slices) - 1, 0, 0.0
        else:
            place, index, t = self._places[number]
        piece = self._cast.slices[place]
        if slot is None:
            return self._parameters.value(spec, None, piece, name, t)
        source = slot.sources[place]
        if number is not None and source.layers is not None:
            name = renumbered(name, source.layers[index])
        return self._parameters.value(spec, source, piece, name, t)
