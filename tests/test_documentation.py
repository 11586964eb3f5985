"""The pages that list what the code has list all of it."""

from __future__ import annotations

from pathlib import Path

from evaluators.merging.methods import METHODS, Method, Parameter

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"


def parameter(p: Parameter) -> str:
    """`density` 1, searched in [0.1, 1]"""
    owner = "" if p.scope == "expert" else " (one for the merge)"
    numeric = isinstance(p.default, float)
    default = f"{p.default:g}" if numeric else str(p.default).lower()
    if p.choices:
        options = ", ".join(str(c).lower() for c in p.choices)
        return f"`{p.name}` {default}, of {options}"
    searched = f", searched in [{p.search[0]:g}, {p.search[1]:g}]" if p.search else ""
    return f"`{p.name}`{owner} {default}{searched}"


def row(name: str, method: Method) -> str:
    listed = "; ".join(map(parameter, method.parameters)) or "none"
    return f"| `{name}` | {method.counts} | {listed} |"


def test_every_operator_is_listed_with_its_parameters() -> None:
    page = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [row(name, method) for name, method in METHODS.items()]
    listed = [line for line in page if line.startswith("| `")]
    assert listed == rows
