"""A recipe as a mergekit configuration, and where mergekit would compute something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evaluators.merging.mergekit.dialect import OPERATORS, BaseRole, operator
from evaluators.merging.methods import METHODS, Parameter
from evaluators.recipe import WHOLE, Grid, MergeRecipe, ModelRef, TokenizerSource, Value

Setting = Any
"""What mergekit takes for a parameter: a value, or a list of {filter, value}."""

_NOTES = {
    "arcee_fusion": (
        "Quantiles are exact here; mergekit takes those of a random million of a larger tensor's "
        "elements."
    ),
    "breadcrumbs": (
        "Where gamma is less than one element we drop none; mergekit then drops the whole tensor's "
        "task vector."
    ),
    "karcher": (
        "A model opposite to the mean is left out, and where no model is longer than tol the plain "
        "mean is taken; mergekit returns zeros there."
    ),
    "multislerp": (
        "Where directions cancel we add linearly; mergekit does so for two models only, and fails "
        "for more."
    ),
    "sce": "Among entries of equal variance we keep the lowest indices; mergekit keeps any.",
    "della": (
        "epsilon may reach beyond densities 0 and 1, where probabilities are cut off, and a row "
        "may have one element; mergekit refuses the first and makes NaN of the second."
    ),
}
"""Operator → what else differs; `breadcrumbs_ties` and `della_linear` share their notes."""


def to_mergekit(
    recipe: MergeRecipe, layers: int, tokenizer: TokenizerSource = "base"
) -> dict[str, Any]:
    """Say the same in mergekit's grammar (version 0.1.5).

    Layer groups become slices: mergekit takes embeddings from the first slice and norms and head
    from the last, as `Blocks` does. Arithmetic is in float32 and the result is cast, as ours. An
    operator that mergekit lacks is written in the same way, for `mmmo merge`.

    Args:
        recipe: what to say.
        layers: number of layers of the model.
        tokenizer: whose tokens the merge has.

    Returns:
        A dictionary to be dumped as YAML. `differences` lists what it cannot say.
    """
    content: dict[str, Any] = {"merge_method": recipe.method}
    if (base := _base_model(recipe)) is not None:
        content["base_model"] = str(base)
    if recipe.layer_groups == 1:
        content["models"] = [_source(recipe, owner, ref, 0) for owner, ref in _models(recipe)]
        content |= _shared(recipe, 0)
    else:
        content["slices"] = [
            {
                "sources": [
                    _source(recipe, owner, ref, group)
                    | {"layer_range": _span(recipe, group, layers)}
                    for owner, ref in _models(recipe)
                ],
                **_shared(recipe, group),
            }
            for group in range(recipe.layer_groups)
        ]
    if tokenizer != "base":
        content["tokenizer_source"] = tokenizer
    return content | {"dtype": "float32", "out_dtype": recipe.dtype}


def differences(recipe: MergeRecipe) -> list[str]:
    """List where mergekit's result would differ from ours, one sentence each."""
    return list(_differences(recipe))


def _differences(recipe: MergeRecipe) -> Iterator[str]:
    method = METHODS[recipe.method]
    if recipe.method not in OPERATORS:
        yield f"mergekit has no operator {recipe.method}; only `mmmo merge` reads this file."
        return
    if method.trim == "magnitude":
        which = "all" if _option(recipe, "on_tie") == "all" else "the lowest indices"
        yield (
            f"Among entries that tie at the trimming threshold we keep {which}; mergekit keeps "
            "arbitrary ones."
        )
    if method.trim in ("random", "ranked"):
        yield (
            f"Random masks come from a counter-based generator with seed {recipe.seed}; mergekit "
            "draws from torch's global generator, so results agree in distribution only."
        )
    if _option(recipe, "rescale") == "inverse_density":
        yield (
            "rescale: inverse_density has no equivalent in mergekit; the configuration says "
            "rescale: true, which keeps the l1 norm instead."
        )
    for start, note in _NOTES.items():
        if recipe.method.startswith(start):
            yield note


def _role(recipe: MergeRecipe) -> BaseRole:
    """Say what the base is to the operator; an optional one is told by `task_vectors`."""
    role = operator(recipe.method).base
    return "input" if role == "optional" and _option(recipe, "task_vectors") is False else role


def _base_model(recipe: MergeRecipe) -> ModelRef | None:
    role = _role(recipe)
    if role == "endpoint":
        return _models(recipe)[0][1]
    return None if role == "input" else recipe.base


def _models(recipe: MergeRecipe) -> list[tuple[str, ModelRef]]:
    """List owner and reference of every model that mergekit has to load, in order."""
    experts, role = list(recipe.experts.items()), _role(recipe)
    if role == "input" or (role == "endpoint" and len(experts) == 2):
        return experts
    return [(WHOLE, recipe.base), *experts]


def _parameters(recipe: MergeRecipe, scope: str) -> list[Parameter]:
    """List the parameters that mergekit has, too; all of an operator that it lacks."""
    own = [p for p in METHODS[recipe.method].parameters if p.scope == scope]
    known = OPERATORS.get(recipe.method)
    return own if known is None else [p for p in own if p.name in known.parameters]


def _source(recipe: MergeRecipe, owner: str, ref: ModelRef, group: int) -> dict[str, Any]:
    """Describe one model of a slice; the base has no parameters of its own."""
    source: dict[str, Any] = {"model": str(ref)}
    if owner == WHOLE:
        return source
    parameters = {
        p.name: _setting(recipe, recipe.parameters.get(owner, {}).get(p.name, p.default), group)
        for p in _parameters(recipe, "expert")
    }
    return source | ({"parameters": parameters} if parameters else {})


def _shared(recipe: MergeRecipe, group: int) -> dict[str, Any]:
    """Describe the parameters that belong to the merge."""
    owned = recipe.parameters.get(WHOLE, {})
    parameters = {
        p.name: _setting(recipe, owned.get(p.name, p.default), group)
        for p in _parameters(recipe, "merge")
    }
    if "rescale" in parameters:
        parameters["rescale"] = parameters["rescale"] != "none"
    return {"parameters": parameters} if parameters else {}


def _setting(recipe: MergeRecipe, value: Value, group: int) -> Setting:
    """Express one parameter in one layer group."""
    if not isinstance(value, tuple):
        return value
    if not recipe.filters:
        return value[0][group]
    return _rows(recipe, value, group)


def _rows(recipe: MergeRecipe, grid: Grid, group: int) -> list[dict[str, Any]]:
    """Express one column of a grid: the first filter that a tensor's name contains decides."""
    filtered = [
        {"filter": text, "value": row[group]}
        for text, row in zip(recipe.filters, grid[:-1], strict=True)
    ]
    return [*filtered, {"value": grid[-1][group]}]


def _span(recipe: MergeRecipe, group: int, layers: int) -> list[int]:
    """Find a group's layers as `Blocks` has them: the first, and one past the last."""
    return [-(-g * layers // recipe.layer_groups) for g in (group, group + 1)]


def _option(recipe: MergeRecipe, name: str) -> Value | None:
    """Look up the value of a merge parameter, None if the operator has none of that name."""
    parameter = METHODS[recipe.method].parameter(name)
    owned = recipe.parameters.get(WHOLE, {})
    return None if parameter is None else owned.get(name, parameter.default)
