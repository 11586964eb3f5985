"""Turn pydantic's findings into lines that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from evaluators.merging.methods import METHODS


def complaints(
    error: ValidationError, model: type[BaseModel], place: Callable[[str], str] = str
) -> list[str]:
    """One line per mistake: `path.to.key: what was found, what is allowed`.

    `place` turns a path in the model into the path in the user's file.
    """
    lines = [_line(dict(e), model, place) for e in error.errors(include_url=False)]
    return list(dict.fromkeys(lines))


def complaint(where: str, found: object, allowed: Iterable[str]) -> str:
    """The line for a name that does not exist."""
    return f"{where}: {unknown(found, allowed)}"


def unknown(found: object, allowed: Iterable[str]) -> str:
    """The same without the place."""
    allowed = list(allowed)
    names = ", ".join(allowed) or "none"
    return f"found {shown(found)}{nearest(str(found), allowed)}; allowed: {names}"


def shown(value: object) -> str:
    """What the user wrote, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`; did you mean "x"?` if something is near, else nothing."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


_ALLOWED = {
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "text (a number as text stands in quotes)",
    "invalid_key": "text as key",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "too_short": "at least one entry",
    "string_too_short": "text that is not empty",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": (
        "letters, digits, '.', '_' and '-', beginning with a letter or digit"
    ),
}
"""pydantic's kind of error → what is allowed, where its own words are for programmers."""

_INTERNAL = frozenset({"[key]"})


def _line(error: dict[str, Any], model: type[BaseModel], place: Callable[[str], str]) -> str:
    loc = [str(part) for part in error["loc"] if str(part) not in _INTERNAL]
    path = ".".join(loc).replace("merge.parameters.", "merge.")  # where the user writes them
    where = place(path) or "file"
    if error["type"] == "extra_forbidden":
        allowed = _keys(model, loc[:-1])
        did_you_mean = nearest(loc[-1], allowed)
        return f"{where}: unknown key{did_you_mean}; allowed: {', '.join(allowed)}"
    if error["type"] == "missing":
        return f"{where}: missing; this key is required"
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}"
    message = error["msg"].removeprefix("Input should be ")
    allowed_here = _ALLOWED.get(error["type"], message).format(**error.get("ctx", {}))
    return f"{where}: found {shown(error['input'])}, allowed: {allowed_here}"


def _keys(model: type[BaseModel], loc: list[str]) -> list[str]:
    """The keys that are allowed at a place, found by walking the models along its path."""
    here: Any = model
    for part in loc:
        here = _step(here, part)
    names = list(here.model_fields) if _is_model(here) else []
    if "parameters" in names:  # operators' parameters stand directly under `merge`
        operators = sorted({p.name for m in METHODS.values() for p in m.parameters})
        names = [n for n in names if n != "parameters"] + operators
    return names


def _step(here: Any, part: str) -> Any:
    """From a model to the model under one of its keys; from a dict or list type to its value."""
    if _is_model(here):
        return here.model_fields[part].annotation if part in here.model_fields else None
    candidates = [a for a in get_args(here) if _is_model(a)]
    return candidates[-1] if candidates else None


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
