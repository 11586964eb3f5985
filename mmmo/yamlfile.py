"""Reading a YAML file strictly: line and column of every mistake, no duplicate keys, NaN or NUL."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from mmmo.errors import UserError


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.1 with what people expect of it: a key written twice, a number that is not finite and
    a NUL, which no path can hold, are errors, 1e-3 is a number, and only true and false are truth
    values (`on` is a word).
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _mark("keys are not merged by <<; write them out", key_node)
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise _mark("keys are plain words", key_node)
            if key in seen:
                raise _mark(f"key {key!r} is written twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        number = super().construct_yaml_float(node)
        if not math.isfinite(number):
            raise _mark(f"{node.value} is not a finite number", node)
        return float(number)

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text = super().construct_yaml_str(node)
        if "\0" in text:
            raise _mark("text with a NUL in it", node)
        return str(text)


_StrictLoader.yaml_implicit_resolvers = {  # no key is a date, and 2026-01-01 may be a name
    first: [(tag, rule) for tag, rule in rules if not tag.endswith((":bool", ":timestamp"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_yaml_float)
_StrictLoader.add_constructor("tag:yaml.org,2002:str", _StrictLoader.construct_yaml_str)
_StrictLoader.add_implicit_resolver(  # YAML 1.1 reads 1e-3 as text
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _mark(message: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: as `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        UserError: no such file, not readable, or not text; one line.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "mmmo init writes an example") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def parse_yaml(text: str, path: Path) -> Any:
    """The content of a text in YAML.

    Args:
        text: to parse.
        path: where it was found.

    Raises:
        UserError: no YAML; one line with line and column.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        found = ", ".join(filter(None, (error.context, error.problem)))
        hint = "YAML is indented by spaces, not by tabs" if r"'\t'" in found else ""
        raise UserError(f"{path}: {where}: {found}", hint) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no valid YAML: {error}") from None
