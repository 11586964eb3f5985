"""A recipe as a mergekit configuration, and where mergekit would compute something else."""

from __future__ import annotations

from typing import Any

from evaluators.merging.methods import METHODS, Method
from evaluators.recipe import WHOLE, Grid, MergeRecipe, ModelRef, Value

Setting = Any
"""What mergekit takes for a parameter: a value, or a list of {filter, value}."""


def to_mergekit(recipe: MergeRecipe, layers: int) -> dict[str, Any]:
    """Say the same in mergekit's grammar (version 0.1.5).

    Layer groups become slices: mergekit takes embeddings from the first slice and norms and head
    from the last, as `Blocks` does. Arithmetic is in float32 and the result is cast, as ours.

    Args:
        recipe: what to say.
        layers: number of layers of the model.

    Returns:
        A dictionary to be dumped as YAML. `differences` lists what it cannot say.
    """
    content: dict[str, Any] = {"merge_method": recipe.method}
    if recipe.method == "slerp":
        content["base_model"] = str(_models(recipe)[0][1])
    elif recipe.method != "linear":
        content["base_model"] = str(recipe.base)
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
    return content | {"dtype": "float32", "out_dtype": recipe.dtype}


def differences(recipe: MergeRecipe) -> list[str]:
    """List where mergekit's result would differ from ours, one sentence each."""
    method, notes = METHODS[recipe.method], []
    if method.trim == "magnitude":
        notes.append(
            "Among entries that tie at the trimming threshold we keep the lowest indices; mergekit "
            "keeps arbitrary ones."
        )
    if method.trim == "random":
        notes.append(
            f"Random masks come from a counter-based generator with seed {recipe.seed}; mergekit "
            "draws from torch's global generator, so results agree in distribution only."
        )
    if "inverse_density" in _values(recipe, method, "rescale"):
        notes.append(
            "rescale: inverse_density has no equivalent in mergekit; the configuration says "
            "rescale: true, which keeps the l1 norm instead."
        )
    return notes


def _models(recipe: MergeRecipe) -> list[tuple[str, ModelRef]]:
    """List owner and reference of every model that mergekit has to load, in order."""
    experts = list(recipe.experts.items())
    if recipe.method == "linear" or (recipe.method == "slerp" and len(experts) == 2):
        return experts
    return [(WHOLE, recipe.base), *experts]


def _source(recipe: MergeRecipe, owner: str, ref: ModelRef, group: int) -> dict[str, Any]:
    """Describe one model of a slice; the base has no parameters of its own."""
    source: dict[str, Any] = {"model": str(ref)}
    if owner == WHOLE:
        return source
    parameters = {
        p.name: _setting(recipe, recipe.parameters.get(owner, {}).get(p.name, p.default), group)
        for p in METHODS[recipe.method].parameters
        if p.scope == "expert"
    }
    return source | ({"parameters": parameters} if parameters else {})


def _shared(recipe: MergeRecipe, group: int) -> dict[str, Any]:
    """Describe the parameters that belong to the merge."""
    owned = recipe.parameters.get(WHOLE, {})
    parameters = {
        p.name: _setting(recipe, owned.get(p.name, p.default), group)
        for p in METHODS[recipe.method].parameters
        if p.scope == "merge"
    }
    if "rescale" in parameters:
        parameters["rescale"] = parameters["rescale"] != "none"
    return {"parameters": parameters}


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


def _values(recipe: MergeRecipe, method: Method, name: str) -> list[Value]:
    """Look up the value of a merge parameter that the operator has."""
    parameter = method.parameter(name)
    owned = recipe.parameters.get(WHOLE, {})
    return [] if parameter is None else [owned.get(name, parameter.default)]
