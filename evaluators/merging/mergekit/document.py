"""A mergekit configuration, read strictly: every mistake is one line, and all are told at once.

What mergekit takes and we do not is refused by name; what changes nothing is noted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from evaluators.merging.mergekit.values import Setting, read_setting
from evaluators.merging.methods import METHODS
from evaluators.recipe import DType, ModelRef, TokenizerSource

Settings = Mapping[str, Setting]

_KEYS = [
    "merge_method",
    "base_model",
    "models",
    "slices",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
]

_REFUSED = {
    "modules": "models with several modules are not merged; merge one module's folder",
    "residual_weight": "mergekit does not use it; remove it",
}
"""Keys of mergekit's that we do not take, and what to do instead."""


class MergekitError(ValueError):
    """A configuration that cannot be read, or not be merged here.

    Attributes:
        problems: one line each, that begins with the place in the document.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(" ".join(line.split()) for line in dict.fromkeys(problems))
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True)
class Source:
    """One model of a slice. `layers` is None where the whole model is meant."""

    where: str
    model: ModelRef
    layers: range | None
    parameters: Settings


@dataclass(frozen=True)
class Slice:
    """A run of layers of the result, and what they are made of."""

    where: str
    sources: tuple[Source, ...]
    base: ModelRef | None
    parameters: Settings


@dataclass(frozen=True)
class Document:
    """A whole configuration; `models:` is one slice without layer ranges."""

    method: str
    base: ModelRef | None
    slices: tuple[Slice, ...]
    parameters: Settings
    dtype: DType | None
    tokenizer: TokenizerSource
    notes: tuple[str, ...]

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """All that are named, once each."""
        bases = (self.base, *(piece.base for piece in self.slices))
        named = [source.model for piece in self.slices for source in piece.sources]
        return tuple(dict.fromkeys([*(base for base in bases if base), *named]))


def read_document(content: object) -> Document:
    """Read the content of a configuration file.

    Raises:
        MergekitError: with one line per mistake.
    """
    reader = _Reader()
    document = reader.document(content)
    if reader.problems or document is None:
        raise MergekitError(reader.problems)
    return document


def unknown(found: str, allowed: Sequence[str]) -> str:
    """Say that a name does not exist, which is near, and which there are."""
    near = get_close_matches(found, allowed, n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return f"found {found!r}{hint}; allowed: {', '.join(allowed)}"


class _Reader:
    """Reads part after part and collects what is wrong or ignored."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []

    def document(self, content: object) -> Document | None:
        if not isinstance(content, dict):
            self._wrong("file", content, "a mergekit configuration: keys with values")
            return None
        self._check_keys("", content, _KEYS)
        method = content.get("merge_method")
        if not isinstance(method, str):
            self._wrong("merge_method", method, "the name of an operator")
        elif method not in METHODS:
            self.problems.append(f"merge_method: {unknown(method, list(METHODS))}")
        base = self._model("base_model", content.get("base_model"), needed=False)
        slices = tuple(self._slices(content, base))
        if content.get("chat_template"):
            self.notes.append("chat_template is ignored; the base's template is kept")
        return Document(
            method=str(method),
            base=base,
            slices=slices,
            parameters=self._parameters("parameters", content.get("parameters")),
            dtype=self._dtype(content),
            tokenizer=self._tokenizer(content, base),
            notes=tuple(self.notes),
        )

    def _slices(self, content: Mapping[str, Any], base: ModelRef | None) -> Iterator[Slice]:
        given = [key for key in ("models", "slices") if content.get(key)]
        if len(given) != 1:
            if "modules" not in content:
                found = " and ".join(given) or "neither"
                self.problems.append(f"file: found {found}, allowed: either models or slices")
            return
        entries = content[given[0]]
        if not isinstance(entries, list):
            self._wrong(given[0], entries, "a list")
        elif given == ["models"]:
            sources = list(self._sources("models", entries, False))
            if base is not None and base not in [source.model for source in sources]:
                sources.append(Source("base_model", base, None, {}))  # as mergekit does
            yield Slice("models", tuple(sources), None, {})
        else:
            for i, entry in enumerate(entries):
                yield from self._slice(f"slices.{i}", entry)

    def _slice(self, where: str, entry: object) -> Iterator[Slice]:
        if not isinstance(entry, dict) or not isinstance(entry.get("sources"), list):
            self._wrong(where, entry, "sources: a list of {model: …, layer_range: [first, end]}")
            return
        self._check_keys(where, entry, ["sources", "parameters", "base_model"])
        sources = tuple(self._sources(f"{where}.sources", entry["sources"], True))
        if sources:
            yield Slice(
                where=where,
                sources=sources,
                base=self._model(f"{where}.base_model", entry.get("base_model"), needed=False),
                parameters=self._parameters(f"{where}.parameters", entry.get("parameters")),
            )
        elif not entry["sources"]:
            self._wrong(f"{where}.sources", [], "at least one model")

    def _sources(self, where: str, entries: list[Any], ranged: bool) -> Iterator[Source]:
        seen: set[ModelRef] = set()
        for i, entry in enumerate(entries):
            here = f"{where}.{i}"
            if not isinstance(entry, dict):
                self._wrong(here, entry, "model: a folder or a hub id")
                continue
            keys = ["model", "parameters", *(["layer_range"] if ranged else [])]
            self._check_keys(here, entry, keys)
            model = self._model(f"{here}.model", entry.get("model"))
            layers = self._layers(f"{here}.layer_range", entry.get("layer_range"), ranged)
            if model is None or (ranged and layers is None):
                continue
            if model in seen:
                self._wrong(f"{here}.model", str(model), "every model once")
            seen.add(model)
            parameters = self._parameters(f"{here}.parameters", entry.get("parameters"))
            yield Source(here, model, layers, parameters)

    def _layers(self, where: str, raw: object, needed: bool) -> range | None:
        if not needed:
            return None
        pair = isinstance(raw, list) and len(raw) == 2 and all(type(n) is int for n in raw)
        if not isinstance(raw, list) or not pair or not 0 <= raw[0] < raw[1]:
            allowed = "[first, end]: two layer numbers, the second is one past the last"
            self._wrong(where, raw, allowed)
            return None
        return range(raw[0], raw[1])

    def _model(self, where: str, raw: object, needed: bool = True) -> ModelRef | None:
        if raw is None and not needed:
            return None
        text = _reference(raw)
        if text is None:
            self._wrong(where, raw, "a folder or a hub id, as path@revision+adapter")
            return None
        return ModelRef.parse(text)

    def _parameters(self, where: str, raw: object) -> Settings:
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            self._wrong(where, raw, "keys with values")
            return {}
        settings: dict[str, Setting] = {}
        for name, value in raw.items():
            try:
                settings[str(name)] = read_setting(value)
            except ValueError as error:
                self.problems.append(f"{where}.{name}: {error}")
        return settings

    def _dtype(self, content: Mapping[str, Any]) -> DType | None:
        found: dict[str, Any] = {
            key: content[key] for key in ("dtype", "out_dtype") if content.get(key) is not None
        }
        for key, dtype in found.items():
            if dtype not in get_args(DType):
                self._wrong(key, dtype, ", ".join(get_args(DType)))
        arithmetic = found.get("dtype", "float32")
        if arithmetic != "float32":
            self.notes.append(
                f"arithmetic is in float32 and its results are rounded once; mergekit computes in "
                f"{arithmetic}"
            )
        chosen: DType | None = found.get("out_dtype", found.get("dtype"))
        return chosen

    def _tokenizer(self, content: Mapping[str, Any], base: ModelRef | None) -> TokenizerSource:
        detailed = content.get("tokenizer")
        where, source = "tokenizer_source", content.get("tokenizer_source")
        if detailed is not None:
            where = "tokenizer.source"
            if source is not None:
                self.problems.append("tokenizer: found beside tokenizer_source, allowed: one")
            if not isinstance(detailed, dict):
                self._wrong("tokenizer", detailed, "source: base or union")
                return "base"
            for key in ("tokens", "pad_to_multiple_of"):
                if detailed.get(key):
                    self.problems.append(
                        f"tokenizer.{key}: not supported; remove it, or prepare that model first"
                    )
            others = [key for key in detailed if key not in ("tokens", "pad_to_multiple_of")]
            self._check_keys("tokenizer", dict.fromkeys(others), ["source"])
            source = detailed.get("source", "union")  # mergekit's default
        if source == "union":
            return "union"
        text = _reference(source)
        same = base is not None and text is not None and ModelRef.parse(text) == base
        if source is not None and source != "base" and not same:
            self._wrong(where, source, "base, union, or the base_model")
        return "base"

    def _check_keys(self, where: str, content: Mapping[Any, Any], allowed: list[str]) -> None:
        prefix = f"{where}." if where else ""
        for key in content:
            if key in _REFUSED:
                self.problems.append(f"{prefix}{key}: not supported: {_REFUSED[key]}")
            elif key not in allowed:
                self.problems.append(f"{prefix}{key}: unknown key; {unknown(str(key), allowed)}")

    def _wrong(self, where: str, found: object, allowed: str) -> None:
        text = "nothing" if found is None else repr(found)
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        self.problems.append(f"{where}: found {shown}, allowed: {allowed}")


def _reference(raw: object) -> str | None:
    """Write a model as text: from text, {path, revision} or {model, lora}; None for all else."""
    if isinstance(raw, str):
        return raw or None
    if not isinstance(raw, dict):
        return None
    if set(raw) <= {"path", "revision"} and isinstance(raw.get("path"), str):
        return f"{raw['path']}@{raw['revision']}" if raw.get("revision") else raw["path"]
    if set(raw) <= {"model", "lora"} and (model := _reference(raw.get("model"))):
        lora = _reference(raw["lora"]) if raw.get("lora") else None
        return f"{model}+{lora}" if lora else model
    return None
