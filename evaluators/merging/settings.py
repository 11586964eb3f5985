"""The parameters of one operator in one block, resolved from a recipe and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from evaluators.merging.methods import METHODS, Method, Parameter
from evaluators.recipe import WHOLE, MergeRecipe


class RecipeError(ValueError):
    """A recipe that cannot be merged; one clear line."""


@dataclass(frozen=True)
class Settings:
    """What the operator is told in one block.

    Attributes:
        experts: parameter → one number per expert, in the recipe's order.
        merge: parameter → its value.
    """

    experts: Mapping[str, tuple[float, ...]]
    merge: Mapping[str, float | bool | str]

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The numbers of the merge."""
        return {k: v for k, v in self.merge.items() if not isinstance(v, bool | str)}

    @cached_property
    def options(self) -> dict[str, bool | str]:
        """The choices."""
        return {k: v for k, v in self.merge.items() if isinstance(v, bool | str)}


def checked_method(recipe: MergeRecipe) -> Method:
    """Look up the recipe's operator and check that its experts and parameters fit.

    Raises:
        RecipeError: unknown operator or parameter, wrong number of experts, value out of domain.
    """
    if recipe.method not in METHODS:
        raise RecipeError(f"method {recipe.method!r} is unknown{_nearest(recipe.method, METHODS)}")
    method = METHODS[recipe.method]
    if not method.takes(len(recipe.experts)):
        raise RecipeError(
            f"{recipe.method} merges {method.counts} experts; found {len(recipe.experts)}"
        )
    for owner, values in recipe.parameters.items():
        for name, value in values.items():
            numbers = [x for row in value for x in row] if isinstance(value, tuple) else [value]
            for number in numbers:
                _check(recipe.method, owner, name, number)
    return method


def resolve(recipe: MergeRecipe, method: Method, row: int, group: int) -> Settings:
    """Resolve the values of one block; a parameter that the recipe leaves out has its default."""

    def value(owner: str, parameter: Parameter) -> float | bool | str:
        if parameter.name in recipe.parameters.get(owner, {}):
            return recipe.value(owner, parameter.name, row, group)
        return parameter.default

    return Settings(
        experts={
            p.name: tuple(float(value(expert, p)) for expert in recipe.experts)
            for p in method.parameters
            if p.scope == "expert"
        },
        merge={p.name: value(WHOLE, p) for p in method.parameters if p.scope == "merge"},
    )


def _check(operator: str, owner: str, name: str, value: float | bool | str) -> None:
    """Check one value against its parameter's scope, type and domain."""
    method = METHODS[operator]
    scope = "merge" if owner == WHOLE else "expert"
    allowed = [p.name for p in method.parameters if p.scope == scope]
    parameter = method.parameter(name)
    where = name if owner == WHOLE else f"{owner}.{name}"
    if parameter is None or parameter.scope != scope:
        raise RecipeError(
            f"{where}: {operator} has no such parameter per {scope}; allowed: "
            f"{', '.join(allowed) or 'none'}"
        )
    if parameter.choices is not None:
        # `1` is no `True` here, though Python finds them equal.
        if not any(type(value) is type(choice) and value == choice for choice in parameter.choices):
            raise RecipeError(f"{where}: found {value!r}, allowed: {parameter.choices}")
        return
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise RecipeError(f"{where}: found {value!r}, allowed: a finite number")
    low, high = parameter.domain or (-math.inf, math.inf)
    if not low <= value <= high:
        raise RecipeError(f"{where}: found {value}, allowed: {low} to {high}")


def _nearest(name: str, known: Mapping[str, Method]) -> str:
    matches = get_close_matches(name, known, n=1)
    return f", did you mean {matches[0]!r}?" if matches else f"; known: {', '.join(known)}"
