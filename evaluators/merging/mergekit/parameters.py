"""The parameters of a mergekit configuration, in the words of our operators.

Where a parameter stands several times, that of a model goes before that of its slice, and that
before the whole configuration's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from math import inf, isfinite, isinf
from typing import Any

from evaluators.merging.mergekit.dialect import IGNORED, OPERATORS, operator
from evaluators.merging.mergekit.document import Document, Settings, Slice, Source, unknown
from evaluators.merging.mergekit.slots import Slot, base_role
from evaluators.merging.mergekit.values import Condition, Scalar, converted, evaluate
from evaluators.merging.methods import METHODS, Parameter

_KNOWN = sorted(
    {p.name for m in METHODS.values() for p in m.parameters}.union(
        *(o.parameters for o in OPERATORS.values())
    )
)
"""Parameters of any operator, ours or mergekit's."""

_TRIMMING = frozenset({"density", "rescale"})
"""Parameters that change nothing where nothing is trimmed."""


class Parameters:
    """Every setting, checked and converted; what is wrong or ignored is collected.

    Attributes:
        problems: what is wrong, one line each.
        notes: what is ignored, one sentence each.
    """

    def __init__(self, document: Document) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._method_name = document.method
        self._method = METHODS[document.method]
        self._whole = self._read("parameters", document.parameters, ("expert", "merge"))
        self._slices: dict[str, Settings] = {}
        self._sources: dict[str, Settings] = {}
        for piece in document.slices:
            where = f"{piece.where}.parameters"
            self._slices[piece.where] = self._read(where, piece.parameters, ("expert", "merge"))
            for source in piece.sources:
                self._sources[source.where] = self._of_model(document, piece, source)

    @property
    def filters(self) -> tuple[str, ...]:
        """Parts of tensor names that conditions ask for, in the order in which they stand."""
        return tuple(dict.fromkeys(c.text for c in self._conditions() if c.text is not None))

    @property
    def gradients(self) -> bool:
        """Whether any value changes from layer to layer."""
        return any(len(c.values) > 1 for c in self._conditions())

    def value(
        self, spec: Parameter, source: Source | None, piece: Slice, name: str, t: float
    ) -> Scalar | None:
        """Find the value for one tensor; None where nothing is said."""
        places: list[Settings] = [self._sources[source.where]] if source else []
        places += [self._slices[piece.where], self._whole]
        return evaluate([s[spec.name] for s in places if spec.name in s], name, t)

    def check_complete(
        self, spec: Parameter, found: Mapping[str, Scalar | None], slot: Slot | None
    ) -> None:
        """Complain of a parameter that mergekit has no default for and that has no value."""
        missing = [name for name, value in found.items() if value is None]
        if not missing or spec.name not in operator(self._method_name).required:
            return
        where = "parameters" if slot is None else f"{slot.sources[0].where}.parameters"
        if len(missing) == len(found):
            self.problems.append(f"{where}.{spec.name}: missing; {self._method_name} needs it")
        else:
            self.problems.append(
                f"{where}.{spec.name}: has no value for {missing[0]}; let the list end in "
                "{value: …} without a filter"
            )

    def check_choice(self, spec: Parameter, found: Mapping[str, Scalar]) -> None:
        """Complain of a choice that is not the same for the whole model."""
        values = sorted({str(value) for value in found.values()})
        if spec.choices is not None and len(values) > 1:
            self.problems.append(
                f"parameters.{spec.name}: found {' and '.join(values)}, allowed: one value for the "
                "whole merge"
            )

    def _conditions(self) -> Iterator[Condition]:
        for settings in (*self._sources.values(), *self._slices.values(), self._whole):
            for setting in settings.values():
                yield from setting

    def _of_model(self, document: Document, piece: Slice, source: Source) -> Settings:
        """Read a model's own parameters; a base from which task vectors are taken has none."""
        if base_role(document) != "input" and source.model == (piece.base or document.base):
            if source.parameters:
                self.notes.append(
                    f"parameters of the base model are ignored, as by mergekit ({source.where})"
                )
            return {}
        return self._read(f"{source.where}.parameters", source.parameters, ("expert",))

    def _read(self, where: str, settings: Settings, scopes: tuple[str, ...]) -> Settings:
        read = {}
        for name, setting in settings.items():
            spec = self._method.parameter(name)
            if name == "task_vectors" or spec is None:
                self._foreign(f"{where}.{name}", name)
            elif spec.scope not in scopes:
                self.notes.append(
                    f"{where}.{name} is ignored, as by mergekit: {self._method_name} has one for "
                    "the whole merge"
                )
            else:
                read[name] = converted(setting, partial(self._convert, f"{where}.{name}", spec))
        return read

    def _foreign(self, where: str, name: str) -> None:
        """Ignore, with a note, what the operator does not have; refuse what nobody has."""
        if name in IGNORED:
            self.notes.append(f"{name} changes nothing here and is ignored")
        elif name not in _KNOWN:
            names = [p.name for p in self._method.parameters] or _KNOWN
            self.problems.append(f"{where}: unknown parameter; {unknown(name, names)}")
        elif name not in operator(self._method_name).parameters:
            self.notes.append(f"{where} is ignored: {self._method_name} has no such parameter")
        elif name in _TRIMMING and self._method.trim is None:
            self.notes.append(f"{where} is ignored: {self._method_name} trims nothing")

    def _convert(self, where: str, spec: Parameter, value: Scalar) -> Scalar:
        """Turn a value into one of ours: `rescale: true` is the rule that mergekit has."""
        if spec.name == "rescale" and isinstance(value, bool):
            return "l1" if value else "none"
        if spec.choices is not None:
            allowed: list[Any] = [True, False] if spec.name == "rescale" else list(spec.choices)
            if not any(type(value) is type(c) and value == c for c in allowed):
                self._wrong(where, value, ", ".join(_plain(c) for c in allowed))
                return spec.default
            return value
        number = _number(value)
        low, high = spec.domain or (-inf, inf)
        if number is None or not low <= number <= high:
            self._wrong(where, value, _interval(low, high))
            return spec.default
        return number

    def _wrong(self, where: str, found: Scalar, allowed: str) -> None:
        self.problems.append(f"{where}: found {_plain(found)}, allowed: {allowed}")


def _number(value: Scalar) -> float | None:
    """Read a number; mergekit takes it as text, too."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if isfinite(number) else None


def _interval(low: float, high: float) -> str:
    if isinf(low):
        return "a number"
    return f"a number of at least {low:g}" if isinf(high) else f"numbers in [{low:g}, {high:g}]"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
