"""Which models take part in a configuration, slice after slice, and what each is to the operator.

A slot is a source of our recipe: its base or one of its experts. In every slice it is one of the
slice's models, and so each of its layers is a layer of some model. A slot that is one model from
its first layer to its last is that model; every other is a stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluators.merging.mergekit.dialect import OPERATORS, BaseRole, operator
from evaluators.merging.mergekit.document import Document, MergekitError, Slice, Source
from evaluators.merging.numbering import label
from evaluators.recipe import ModelRef

Layers = tuple[tuple[ModelRef, int], ...]
"""For every layer of the result, whose layer it is and its number there."""

Count = Callable[[ModelRef], int]
"""Number of layers of a model."""


@dataclass(frozen=True)
class Slot:
    """A source of the recipe.

    Attributes:
        name: an expert's name; empty for a base.
        sources: the model that it is in every slice.
    """

    name: str
    sources: tuple[Source, ...]

    @property
    def layers(self) -> Layers:
        """Whose its layers are."""
        return tuple((s.model, number) for s in self.sources for number in s.layers or ())

    def model(self, count: Count) -> ModelRef | None:
        """Return the model that it is, or None if it is a stack."""
        first = self.sources[0].model
        whole = tuple((first, number) for number in range(count(first)))
        return first if self.layers == whole else None

    def ref(self, count: Count) -> ModelRef:
        """Return the model that it is, or a reference that says what is stacked."""
        return self.model(count) or ModelRef(path=label(self.layers))


@dataclass(frozen=True)
class Cast:
    """Everyone who takes part.

    Attributes:
        base: what task vectors are taken from, or None where the operator needs none.
        experts: in order.
        donor: whose configuration and tokenizer the merge has.
        slices: the slices, all with layer ranges.
    """

    base: Slot | None
    experts: tuple[Slot, ...]
    donor: ModelRef
    slices: tuple[Slice, ...]


def cast(document: Document, count: Count) -> Cast:
    """Find out who takes part.

    Raises:
        MergekitError: slices that do not fit together, a base that is needed and not there.
    """
    role = base_role(document)
    slices = tuple(_ranged(piece, count) for piece in document.slices)
    problems = [line for piece in slices for line in _problems(piece, document, role, count)]
    if problems:
        raise MergekitError(problems)
    bases = [_base_of(piece, document, role) for piece in slices]
    others = [
        [s for s in piece.sources if s is not base]
        for piece, base in zip(slices, bases, strict=True)
    ]
    columns = _columns(slices, others)
    names = _names(columns)
    first = slices[0].sources[0].model
    return Cast(
        base=Slot("", tuple(b for b in bases if b)) if all(bases) else None,
        experts=tuple(Slot(n, c) for n, c in zip(names, columns, strict=True)),
        donor=document.base or first,
        slices=slices,
    )


def base_role(document: Document) -> BaseRole:
    """Say what `base_model` is to the operator; an optional one that is not there is an input."""
    role = operator(document.method).base
    given = document.base or any(piece.base for piece in document.slices)
    return "input" if role == "optional" and not given else role


def _ranged(piece: Slice, count: Count) -> Slice:
    """Give the models of `models:` all their layers."""
    ranged = [
        s if s.layers is not None else replace(s, layers=range(count(s.model)))
        for s in piece.sources
    ]
    return replace(piece, sources=tuple(ranged))


def _problems(piece: Slice, document: Document, role: BaseRole, count: Count) -> list[str]:
    problems = []
    lengths = {len(s.layers or ()) for s in piece.sources}
    if len(lengths) > 1:
        found = ", ".join(f"{len(s.layers or ())} of {s.model}" for s in piece.sources)
        problems.append(f"{piece.where}: found layers {found}; allowed: equally many of each model")
    for source in piece.sources:
        if source.layers and source.layers[-1] >= count(source.model):
            problems.append(
                f"{source.where}.layer_range: found {[source.layers.start, source.layers.stop]}, "
                f"allowed: up to {count(source.model)}; {source.model} has no more layers"
            )
    if role != "input" and _base_of(piece, document, role) is None:
        problems.append(_no_base(piece, document))
    return problems


def _no_base(piece: Slice, document: Document) -> str:
    base = piece.base or document.base
    if base is None:
        known = "" if document.method in OPERATORS else " here"
        return f"base_model: missing; {document.method}{known} needs one of the models as its base"
    return f"{piece.where}: lacks the base model {base}; list it among the sources"


def _base_of(piece: Slice, document: Document, role: BaseRole) -> Source | None:
    base = None if role == "input" else piece.base or document.base
    return next((s for s in piece.sources if s.model == base), None)


def _columns(
    slices: Sequence[Slice], others: Sequence[Sequence[Source]]
) -> list[tuple[Source, ...]]:
    """Match the models of the slices: by reference if all have the same, else by position."""
    counts = {len(sources) for sources in others}
    if len(counts) > 1:
        at = next(i for i, sources in enumerate(others) if len(sources) != len(others[0]))
        raise MergekitError(
            [
                f"{slices[at].where}.sources: found {len(slices[at].sources)} models, allowed: as "
                f"many as in {slices[0].where}; a model that is to have no part gets weight 0"
            ]
        )
    by_model: list[Mapping[ModelRef, Source]] = [{s.model: s for s in o} for o in others]
    if all(models.keys() == by_model[0].keys() for models in by_model):
        return [tuple(models[model] for models in by_model) for model in by_model[0]]
    return list(zip(*others, strict=True))


def _names(columns: Sequence[tuple[Source, ...]]) -> list[str]:
    """Name the experts after their models' folders; several stacks are numbered."""
    names: list[str] = []
    for column in columns:
        models = {source.model for source in column}
        model = column[0].model
        last = Path(model.adapter or model.path).name if len(models) == 1 else "stack"
        name, number = last or "model", 2
        while name in names:
            name, number = f"{last}-{number}", number + 1
        names.append(name)
    return names
