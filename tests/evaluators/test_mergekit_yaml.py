"""mergekit's grammar in and out: what is read, what is refused, and that both ways agree."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.config import ConditionalParameter, MergeConfiguration, evaluate_setting

from evaluators.merging.blocks import Blocks
from evaluators.merging.mergekit import (
    MergekitError,
    Outline,
    Reading,
    differences,
    from_mergekit,
    is_known,
    to_mergekit,
)
from evaluators.merging.methods import METHODS, Parameter
from evaluators.recipe import WHOLE, MergeRecipe, ModelRef

LAYERS = 4
KINDS = ("input_layernorm", "mlp.up_proj", "self_attn.q_proj")
NAMES = tuple(
    sorted(
        [f"model.layers.{i}.{kind}.weight" for i in range(LAYERS) for kind in KINDS]
        + ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]
    )
)
ODD = {"models/deep": 6}
"""Models with another number of layers."""


def look(ref: ModelRef) -> Outline:
    layers = ODD.get(ref.path, LAYERS)
    inside = [f"model.layers.{i}.{kind}.weight" for i in range(layers) for kind in KINDS]
    outside = [name for name in NAMES if "layers" not in name]
    return Outline(tuple(sorted([*inside, *outside])), "bfloat16")


def read(text: str) -> Reading:
    return from_mergekit(yaml.safe_load(text), look)


def values(reading: Reading, owner: str, parameter: str) -> dict[str, Any]:
    """A parameter for every tensor."""
    recipe = reading.recipe
    blocks = Blocks(NAMES, recipe.layer_groups, recipe.filters)
    return {name: recipe.value(owner, parameter, *blocks.of(name)) for name in NAMES}


# Recipes ----------------------------------------------------------------------------------------


def one_value(spec: Parameter) -> st.SearchStrategy[Any]:
    if spec.choices is not None:
        return st.sampled_from([c for c in spec.choices if c != "inverse_density"])
    low, high = spec.domain or (0.0, 1.0)
    return st.floats(max(low, -3.0), min(high, 3.0))


def one_end(spec: Parameter) -> float:
    """A value in the domain that is not 1."""
    low, high = spec.domain or (0.0, 1.0)
    return low if low not in (1.0, -math.inf) else min(high, 2.0)


@st.composite
def recipes(draw: st.DrawFn) -> MergeRecipe:
    """Any recipe whose numbers are not all the same where they are written as a grid."""
    name = draw(st.sampled_from(sorted(METHODS)))
    method = METHODS[name]
    count = draw(st.integers(method.fewest, min(method.most or 3, 3)))
    count = 1 if name == "slerp" else count  # two experts are read as a base and one
    experts = {n: ModelRef(path=f"models/{n}") for n in "abc"[:count]}
    groups = draw(st.integers(1, LAYERS))
    has_numbers = any(p.choices is None for p in method.parameters)
    filters = draw(st.sampled_from([(), ("self_attn",), ("mlp", "self_attn")]))
    filters = filters if has_numbers else ()
    shape = (len(filters) + 1, groups)
    whole = {}
    parameters: dict[str, dict[str, Any]] = {}
    for spec in method.parameters:
        if spec.name == "on_tie":
            continue  # mergekit cannot be told
        for owner in experts if spec.scope == "expert" else [WHOLE]:
            value: Any = draw(one_value(spec))
            if spec.choices is None and shape != (1, 1) and (not whole or draw(st.booleans())):
                cells = [draw(one_value(spec)) for _ in range(shape[0] * shape[1] - 1)]
                other = next(x for x in (1.0, one_end(spec)) if len({x, *cells}) > 1)
                cells.append(other)
                value = [cells[row * groups : (row + 1) * groups] for row in range(shape[0])]
                whole[spec.name] = True
            parameters.setdefault(owner, {})[spec.name] = value
    based = is_task_vector_merge(name, parameters)
    return MergeRecipe(
        method=name,
        base=ModelRef(path="models/base" if based else "models/a"),
        experts=experts,
        parameters=parameters,
        layer_groups=groups,
        filters=filters,
        dtype=draw(st.sampled_from(["float32", "bfloat16", "float16"])),
        seed=draw(st.integers(0, 9)),
    )


def is_task_vector_merge(name: str, parameters: dict[str, dict[str, Any]]) -> bool:
    if name in ("linear", "karcher", "passthrough"):
        return False
    return bool(parameters.get(WHOLE, {}).get("task_vectors", True))


@settings(deadline=None, max_examples=150)
@given(recipes())
def test_what_is_written_is_read(recipe: MergeRecipe) -> None:
    text = yaml.safe_dump(to_mergekit(recipe, LAYERS))
    reading = from_mergekit(yaml.safe_load(text), look, recipe.seed)
    assert reading.recipe == recipe
    assert reading.stacks == {}
    assert reading.tokenizer == "base"
    if is_known(recipe.method):
        MergeConfiguration.model_validate(yaml.safe_load(text))


def test_operators_that_mergekit_lacks_are_told() -> None:
    unknown = [name for name in METHODS if not is_known(name)]
    assert set(unknown) == {"consensus_ta", "pcb", "tsv_m", "iso_c"}
    recipe = MergeRecipe(
        method="tsv_m",
        base=ModelRef(path="b"),
        experts={"a": ModelRef(path="a")},
        parameters={},
    )
    assert differences(recipe) == [
        "mergekit has no operator tsv_m; only `mmmo merge` reads this file."
    ]


# Gradients, filters, precedence -----------------------------------------------------------------

T = """
- {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
- {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
- value: 0.5
"""
SLERP = f"""
slices:
  - sources:
      - {{model: models/a, layer_range: [0, 4]}}
      - {{model: models/b, layer_range: [0, 4]}}
merge_method: slerp
base_model: models/b
parameters: {{t: {yaml.safe_dump(yaml.safe_load(T), default_flow_style=True).strip()}}}
dtype: bfloat16
"""


def test_the_slerp_of_every_tutorial() -> None:
    reading = read(SLERP)
    recipe = reading.recipe
    assert (recipe.base.path, list(recipe.experts)) == ("models/b", ["a"])
    assert (recipe.dtype, recipe.layer_groups) == ("bfloat16", LAYERS)
    assert recipe.filters == ("self_attn", "mlp")
    found = values(reading, WHOLE, "t")
    conditions = [ConditionalParameter(**entry) for entry in yaml.safe_load(T)]
    for name in NAMES:
        number = re.search(r"\d", name)
        t = int(number[0]) / (LAYERS - 1) if number else 0.0
        assert found[name] == evaluate_setting(name, conditions, t, validate=float)
    assert "bfloat16" in reading.notes[0]


def test_a_gradient_begins_anew_in_every_slice_and_ends_outside_where_it_began() -> None:
    reading = read("""
        slices:
          - sources: [{model: models/b, layer_range: [0, 3]}, {model: models/a, layer_range: [0, 3],
                       parameters: {weight: [0, 1]}}]
          - sources: [{model: models/a, layer_range: [3, 4], parameters: {weight: [0.2, 0.4]}},
                      {model: models/b, layer_range: [3, 4]}]
        merge_method: task_arithmetic
        base_model: models/b
    """)
    found = values(reading, "a", "weight")
    layers = [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(LAYERS)]
    assert layers == [0.0, 0.5, 1.0, 0.4]  # a slice of one layer takes the end
    assert found["model.embed_tokens.weight"] == 0.0
    assert found["model.norm.weight"] == found["lm_head.weight"] == 0.2
    assert reading.stacks == {}
    assert reading.recipe.dtype == "bfloat16"  # as stored


def test_the_most_particular_setting_that_fits_decides() -> None:
    reading = read("""
        slices:
          - sources:
              - {model: models/base, layer_range: [0, 2]}
              - model: models/a
                layer_range: [0, 2]
                parameters: {weight: [{filter: self_attn, value: 1}]}
              - {model: models/b, layer_range: [0, 2]}
            parameters: {weight: [{filter: mlp, value: 2}]}
          - sources:
              - {model: models/base, layer_range: [2, 4]}
              - {model: models/a, layer_range: [2, 4]}
              - {model: models/b, layer_range: [2, 4], parameters: {weight: 3}}
        merge_method: ties
        base_model: models/base
        parameters: {weight: [{filter: "*", value: 4}], density: 0.5}
    """)
    a, b = values(reading, "a", "weight"), values(reading, "b", "weight")
    place = "model.layers.{}.{}.weight".format
    assert [a[place(0, kind)] for kind in KINDS] == [4, 2, 1]
    assert [b[place(0, kind)] for kind in KINDS] == [4, 2, 4]
    assert [a[place(3, kind)] for kind in KINDS] == [4, 4, 4]
    assert [b[place(3, kind)] for kind in KINDS] == [3, 3, 3]
    assert reading.recipe.layer_groups == 2
    assert set(values(reading, "a", "density").values()) == {0.5}


def test_filters_that_contradict_each_other_are_told_apart_by_name() -> None:
    reading = read("""
        models:
          - {model: models/a, parameters: {weight: [{filter: proj, value: 1}, {value: 2}]}}
          - {model: models/b, parameters: {weight: [{filter: attn, value: 3}, {value: 4}]}}
        merge_method: linear
    """)
    a, b = values(reading, "a", "weight"), values(reading, "b", "weight")
    place = "model.layers.1.{}.weight".format
    assert [a[place(kind)] for kind in KINDS] == [2, 1, 1]
    assert [b[place(kind)] for kind in KINDS] == [4, 4, 3]


def test_filters_see_the_numbers_of_the_layers_that_are_stacked() -> None:
    reading = read("""
        slices:
          - sources: [{model: models/a, layer_range: [2, 4]}]
          - sources: [{model: models/a, layer_range: [2, 4]}]
        merge_method: passthrough
        parameters: {scale: [{filter: layers.3., value: 0.5}, {value: 1}]}
    """)
    found = values(reading, "a", "scale")
    scales = [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(LAYERS)]
    assert scales == [1.0, 0.5, 1.0, 0.5]


# Models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "base", "experts"),
    [
        ("merge_method: linear", "a", ["a", "b"]),
        ("merge_method: linear\nbase_model: models/b", "b", ["a", "b"]),
        ("merge_method: linear\nbase_model: models/c", "c", ["a", "b", "c"]),
        ("merge_method: karcher", "a", ["a", "b"]),
        ("merge_method: ties\nbase_model: models/c", "c", ["a", "b"]),
        ("merge_method: ties\nbase_model: models/a", "a", ["b"]),
        ("merge_method: nuslerp", "a", ["a", "b"]),
        ("merge_method: nuslerp\nbase_model: models/c", "c", ["a", "b"]),
        ("merge_method: arcee_fusion\nbase_model: models/b", "b", ["a"]),
        ("merge_method: tsv_m\nbase_model: models/c", "c", ["a", "b"]),
    ],
)
def test_who_is_base_and_who_expert(text: str, base: str, experts: list[str]) -> None:
    models = "models: [{model: models/a}, {model: models/b}]\nparameters: {weight: 1}\n"
    recipe = read(models + text).recipe
    assert recipe.base.path == f"models/{base}"
    assert list(recipe.experts) == experts
    if recipe.method == "nuslerp":
        assert recipe.parameters[WHOLE]["task_vectors"] is (base == "c")


def test_models_of_the_same_name_are_numbered() -> None:
    recipe = read("""
        models: [{model: x/it@v1+y/lora}, {model: z/lora}, {model: {model: {path: q}, lora: lora}}]
        merge_method: linear
        parameters: {weight: 1}
    """).recipe
    assert {name: str(ref) for name, ref in recipe.experts.items()} == {
        "lora": "x/it@v1+y/lora",
        "lora-2": "z/lora",
        "lora-3": "q+lora",
    }


def test_layers_of_two_models_are_a_stack() -> None:
    reading = read("""
        slices:
          - sources: [{model: models/a, layer_range: [0, 3]}]
          - sources: [{model: models/deep, layer_range: [4, 6]}]
        merge_method: passthrough
        base_model: models/b
    """)
    a, deep = ModelRef(path="models/a"), ModelRef(path="models/deep")
    layers = ((a, 0), (a, 1), (a, 2), (deep, 4), (deep, 5))
    assert reading.stacks == {WHOLE: layers, "stack": layers}
    assert reading.recipe.base.path == "models/a[0:3] models/deep[4:6]"
    assert reading.donor.path == "models/b"


def test_only_what_is_stacked_is_a_stack() -> None:
    reading = read("""
        slices:
          - sources:
              - {model: models/a, layer_range: [0, 4]}
              - {model: models/deep, layer_range: [2, 6]}
        merge_method: slerp
        base_model: models/a
        parameters: {t: 0.5}
    """)
    assert list(reading.stacks) == ["deep"]
    assert reading.recipe.base == ModelRef(path="models/a")


def test_the_tokenizer() -> None:
    models = (
        "models: [{model: models/a}]\nmerge_method: ties\nbase_model: b\nparameters: {weight: 1}\n"
    )
    assert read(models).tokenizer == "base"
    assert read(models + "tokenizer_source: base").tokenizer == "base"
    assert read(models + "tokenizer_source: b").tokenizer == "base"
    assert read(models + "tokenizer_source: union").tokenizer == "union"
    assert read(models + "tokenizer: {source: union}").tokenizer == "union"
    assert read(models + "tokenizer: {}").tokenizer == "union"


# Notes and refusals -----------------------------------------------------------------------------

TIES = """
models:
  - {model: models/a, parameters: {weight: 0.5}}
  - {model: models/b, parameters: {weight: 0.5, density: 0.3}}
merge_method: ties
base_model: models/base
parameters: {normalize: true}
dtype: float32
"""


def test_a_plain_configuration_needs_no_notes() -> None:
    assert read(TIES).notes == ()


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        ("normalize: true", "int8_mask: true", "int8_mask changes nothing here"),
        ("normalize: true", "t: 0.5", "parameters.t is ignored: ties has no such parameter"),
        ("density: 0.3", "normalize: false", "models.1.parameters.normalize is ignored, as by"),
        ("models/a, p", "models/base, p", "parameters of the base model are ignored"),
        ("dtype: float32", "dtype: float16", "mergekit computes in float16"),
        ("dtype: float32", "chat_template: auto", "chat_template is ignored"),
        ("ties", "task_arithmetic", "density is ignored: task_arithmetic trims nothing"),
    ],
)
def test_what_is_ignored_is_noted(old: str, new: str, note: str) -> None:
    notes = read(TIES.replace(old, new)).notes
    assert len(notes) == 1
    assert note in notes[0]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("ties", "tis", "merge_method: found 'tis'; did you mean \"ties\"?; allowed: linear"),
        ("merge_method: ties", "", "merge_method: found nothing, allowed: the name of an operator"),
        ("base_model: models/base", "", "base_model: missing; ties needs one of the models"),
        ("base_model", "base_modl", 'base_modl: unknown key; found…did you mean "base_model"?'),
        ("models/base", "{a: 1}", "base_model: found {'a': 1}, allowed: a folder or a hub id"),
        ("models/b, p", "models/a, p", "models.1.model: found 'models/a', allowed: every model"),
        ("models/b, p", "models/deep, p", "models: found layers…6 of models/deep…equally many"),
        ("weight: 0.5}", "wieght: 0.5}", "unknown parameter; found 'wieght'; did you mean \"weigh"),
        ("{weight: 0.5}", "{}", "models.0.parameters.weight: missing; ties needs it"),
        (
            "{weight: 0.5}",
            "{weight: [{filter: mlp, value: 1}]}",
            "models.0.parameters.weight: has no value for lm_head.weight; let the list end",
        ),
        ("weight: 0.5}", "weight: []}", "weight: found [], allowed: a value, a list of values"),
        ("weight: 0.5}", "weight: [{value: 1, a: 2}]}", "allowed: {filter: text, value: …}"),
        (
            "weight: 0.5}",
            "weight: heavy}",
            "models.0.parameters.weight: found heavy, allowed: a nu",
        ),
        ("weight: 0.5}", "weight: true}", "weight: found true, allowed: a number"),
        ("density: 0.3", "density: [0.3, 1.3]", "found 1.3, allowed: numbers in [0, 1]"),
        ("normalize: true", "normalize: 1", "parameters.normalize: found 1, allowed: true, false"),
        (
            "normalize: true",
            "normalize: [{filter: mlp, value: true}, {value: false}]",
            "parameters.normalize: found False and True, allowed: one value for the whole merge",
        ),
        ("normalize: true", "rescale: l1", "parameters.rescale: found l1, allowed: true, false"),
        ("dtype: float32", "dtype: float64", "dtype: found 'float64', allowed: float32, bfloat16"),
        ("dtype: float32", "modules: {a: 1}", "modules: not supported: models with several"),
        ("dtype: float32", "slices: [1]", "file: found models and slices, allowed: either"),
        (
            "dtype: float32",
            "tokenizer_source: models/a",
            "tokenizer_source: found 'models/a', allo",
        ),
        ("dtype: float32", "tokenizer: {tokens: {a: 1}}", "tokenizer.tokens: not supported; rem"),
        ("dtype: float32", "tokenizer: union", "tokenizer: found 'union', allowed: source: base"),
        ("parameters: {normalize: true}", "parameters: [1]", "parameters: found [1], allowed: key"),
        ("ties", "nearswap", "merge_method: found 2 models beside the base, allowed: 1 with nears"),
    ],
)
def test_mistakes_are_one_line_each(old: str, new: str, problem: str) -> None:
    assert old in TIES
    with pytest.raises(MergekitError) as error:
        read(TIES.replace(old, new, 1))
    matching = [line for line in error.value.problems if matches(problem, line)]
    assert matching, error.value.problems
    assert all("\n" not in line for line in error.value.problems)


SLICES = """
slices:
  - sources: [{model: models/a, layer_range: [0, 2]}, {model: models/b, layer_range: [0, 2]}]
  - sources: [{model: models/a, layer_range: [2, 4]}, {model: models/b, layer_range: [2, 4]}]
merge_method: slerp
base_model: models/a
parameters: {t: 0.5}
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[2, 4]", "[2, 5]", "slices.1.sources.0.layer_range: found [2, 5], allowed: up to 4"),
        ("[2, 4]", "[2, 3]", "slices.1: found layers 1 of models/a, 2 of models/b; allowed: equ"),
        ("[2, 4]", "[4, 2]", "slices.1.sources.0.layer_range: found [4, 2], allowed: [first, end"),
        (", layer_range: [2, 4]", "", "slices.1.sources.0.layer_range: found nothing"),
        ("{model: models/a, layer_range: [2, 4]}, ", "", "slices.1: lacks the base model models/a"),
        (", {model: models/b, layer_range: [2, 4]}", "", "slices.1.sources: found 1 models, allow"),
        ("slerp", "nuslerp", "merge_method: found 1 models beside the base, allowed: 2 with nusl"),
        ("sources", "source", "slices.0: found…allowed: sources: a list of"),
        (
            "merge_method: slerp",
            "merge_method: [a]",
            "merge_method: found ['a'], allowed: the name",
        ),
    ],
)
def test_slices_that_do_not_fit(old: str, new: str, problem: str) -> None:
    assert old in SLICES
    with pytest.raises(MergekitError) as error:
        read(SLICES.replace(old, new, 1))
    assert any(matches(problem, line) for line in error.value.problems), error.value.problems


@pytest.mark.parametrize("content", [None, [], "text", 3, {}, {"merge_method": "ties"}])
def test_what_is_no_configuration(content: object) -> None:
    with pytest.raises(MergekitError, match=r"file|merge_method"):
        from_mergekit(content, look)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)


def spoiled(content: Any, draw: Any) -> Any:
    """The content with junk in a random place."""
    children = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = draw(st.sampled_from(children))
    inner = content[key]
    deeper = isinstance(inner, dict | list) and inner and draw(st.booleans())
    value = spoiled(inner, draw) if deeper else draw(JUNK)
    if isinstance(content, dict):
        return {**content, key: value}
    return [*content[:key], value, *content[key + 1 :]]


@settings(deadline=None, max_examples=200)
@given(st.data(), st.sampled_from([TIES, SLICES, SLERP]))
def test_junk_is_read_or_refused_but_never_crashes(data: st.DataObject, text: str) -> None:
    content = spoiled(yaml.safe_load(text), data.draw)
    try:
        lines = (f"key: {from_mergekit(content, look).recipe.key}",)
    except MergekitError as error:
        lines = error.problems
    assert lines
    assert all(": " in line and "\n" not in line for line in lines)


def matches(pattern: str, line: str) -> bool:
    """Whether the parts of a pattern, which … separates, stand in a line in this order."""
    return re.search(".*".join(map(re.escape, pattern.split("…"))), line) is not None
