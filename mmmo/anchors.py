"""The anchors of a search space: recipes worth trying first, as far as the space holds them.

They are merges that people make by hand: each single expert, the uniform average, task arithmetic
at 0.5 and 1.0, and the base. A space without task arithmetic has equal weights of its own operator
instead, and one whose operator knows no weights has that operator's defaults; named for what they
are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from evaluators.merging.methods import METHODS, Parameter
from evaluators.recipe import WHOLE, MergeRecipe
from mmmo.space import Block, Chooser, SearchSpace

_PLAIN = ("task_arithmetic", "dare_linear", "linear")
"""Operators that only add task vectors up at density 1, the best known first."""

_BLENDING = ("consensus_ta", "pcb", "tsv_m", "iso_c")
"""Operators in which all experts have a say, so that one of several alone is not given back."""

_SCALE_FREE = ("nuslerp",)
"""Operators in which only the ratio of the weights counts, without saying so in a parameter."""

_EQUAL = (0.5, 1.0)
_TOLERANCE = 1e-9

Numbers = Mapping[str, float]
"""What to give a parameter: an expert's name → its weight, or `t` → t; all else has its default."""


def anchors(space: SearchSpace) -> dict[str, list[float]]:
    """Name → point of the unit cube, the first to try first."""
    method = next((m for m in _PLAIN if m in space.methods), space.methods[0])
    found: dict[str, list[float]] = {}
    keys = set()
    for name, numbers in _wishes(space, method):
        point = _point(space, method, numbers)
        if point is not None and (key := space.decode(point).key) not in keys:
            found[name] = point
            keys.add(key)
    return found


def _wishes(space: SearchSpace, method: str) -> Iterator[tuple[str, Numbers]]:
    experts = space.experts
    if method == "slerp":
        ends = ["base", *(f"expert {k}" for k in experts)][-2:]
        yield from ((ends[1], {"t": 1.0}), (ends[0], {"t": 0.0}), ("half way", {"t": 0.5}))
        return
    if METHODS[method].parameter("weight") is None:
        yield f"{method} by default", {}
        return
    for k in experts if method not in _BLENDING or len(experts) == 1 else ():
        yield f"expert {k}", {j: float(j == k) for j in experts}
    yield from _equal_weights(space, method)
    if method not in _SCALE_FREE:
        yield "base", dict.fromkeys(experts, 0.0)


def _equal_weights(space: SearchSpace, method: str) -> Iterator[tuple[str, Numbers]]:
    """Where the operator divides by the weights' sum, all equal weights are one model."""
    experts, mean = space.experts, 1 / len(space.experts)
    plain = method in _PLAIN
    switches = [space.chosen_by_default(method, n) for n in ("normalize", "normalize_weights")]
    if True in switches or method in _SCALE_FREE:
        name = "uniform average" if plain else f"{method} of equal weights"
        for weight in (mean, *_EQUAL):
            yield name, dict.fromkeys(experts, weight)
        return
    names = ["uniform average", *(f"task arithmetic {w}" for w in _EQUAL)]
    if not plain or method == "linear":  # unnormalised linear adds whole models, not task vectors
        names = [f"{method} at {w:.2g} each" for w in (mean, *_EQUAL)]
    for name, weight in zip(names, (mean, *_EQUAL), strict=True):
        yield name, dict.fromkeys(experts, weight)


def _point(space: SearchSpace, method: str, numbers: Numbers) -> list[float] | None:
    """The point of a wish, or None if the space does not hold it."""
    wish = _chooser(numbers)
    recipe = space.recipe(method, wish)
    try:
        point = space.encode(recipe)
    except ValueError:
        return None
    return point if _granted(space.decode(point), wish) else None


def _chooser(numbers: Numbers) -> Chooser:
    def choose(owner: str, name: str, _: Block, spec: Parameter) -> float | bool | str | None:
        if spec.choices is not None:
            return None
        return numbers.get(owner if name == "weight" else name, spec.default)

    return choose


def _granted(recipe: MergeRecipe, wish: Chooser) -> bool:
    """Whether every number is the one wished for, up to rounding; a file may have fixed another."""
    for spec in METHODS[recipe.method].parameters:
        for owner in recipe.experts if spec.scope == "expert" else [WHOLE]:
            wanted = wish(owner, spec.name, None, spec)
            found = recipe.value(owner, spec.name, 0, 0)
            if wanted is not None and not math.isclose(
                float(found), float(wanted), abs_tol=_TOLERANCE
            ):
                return False
    return True
