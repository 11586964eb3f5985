"""The search space: decode and encode are inverse, snap agrees with decode, anchors are held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from campaigns import campaign
from checkpoints import in_memory, random_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.merging.methods import METHODS
from evaluators.merging.probe import DeltaProbe
from evaluators.recipe import WHOLE
from mmmo.config import parse
from mmmo.delta_l1 import known_delta_l1
from mmmo.settings import Range
from mmmo.space import SearchSpace

RANGES = {"weight": {"range": [-0.5, 1.5]}, "density": {"range": [0.1, 1.0]}}
SPACES: dict[str, dict[str, Any]] = {
    "one method": {"method": "ties", **RANGES},
    "blocks": {"method": "dare_ties", **RANGES, "layer_groups": 3, "filters": ["attn", "mlp"]},
    "choice": {"method": {"choice": ["task_arithmetic", "ties", "dare_linear"]}, **RANGES},
    "choices": {
        "method": {"choice": ["ties", "dare_ties"]},
        "weight": {"range": [0, 1]},
        "density": {"choice": [0.2, 0.5, 1.0]},
        "normalize": {"choice": [True, False]},
        "lambda": {"range": [0.5, 1.5]},
    },
    "one expert varies": {
        "method": "ties",
        "weight": {"maths": {"range": [0, 1]}, "code": 0.5, "spanish": 1.0},
        "density": 0.5,
    },
}


def space(merge: dict[str, Any], **changes: Any) -> SearchSpace:
    return SearchSpace(parse(campaign(merge=merge, **changes), Path("/nowhere")))


def points(size: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(0, 1), min_size=size, max_size=size)


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_decode_and_encode_are_inverse(name: str, data: st.DataObject) -> None:
    s = space(SPACES[name])
    x = data.draw(points(s.size))
    recipe = s.decode(x)
    snapped = s.snap(torch.tensor(x, dtype=torch.double))
    again = s.encode(recipe)
    assert again == pytest.approx(snapped.tolist(), abs=1e-12)
    back = s.decode(again)
    assert back.method == recipe.method
    for owner, values in recipe.parameters.items():
        for parameter, value in values.items():
            mine = back.parameters[owner][parameter]
            if isinstance(value, bool | str):
                assert mine == value
            else:
                assert torch.allclose(torch.tensor(mine), torch.tensor(value), atol=1e-12)


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_snapped_points_stand_for_the_same_recipe(name: str, data: st.DataObject) -> None:
    s = space(SPACES[name])
    x = torch.tensor(data.draw(points(s.size)), dtype=torch.double)
    snapped = s.snap(x)
    assert s.decode(snapped.tolist()) == s.decode(x.tolist())
    assert torch.equal(s.snap(snapped), snapped)


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_whatever_is_decoded_is_in_its_domain(name: str, data: st.DataObject) -> None:
    s = space(SPACES[name])
    recipe = s.decode(data.draw(points(s.size)))
    method = METHODS[recipe.method]
    owners = {"expert": list(recipe.experts), "merge": [WHOLE]}
    for spec in method.parameters:
        for owner in owners[spec.scope]:
            value = recipe.value(owner, spec.name, 0, 0)
            if spec.choices is not None:
                assert value in spec.choices
            else:
                assert spec.domain is not None
                assert spec.domain[0] <= float(value) <= spec.domain[1]


def test_columns_have_names_in_the_order_of_the_cube() -> None:
    s = space(SPACES["one method"])
    assert s.columns == (
        "maths.weight", "code.weight", "spanish.weight",
        "maths.density", "code.density", "spanish.density",
    )  # fmt: skip
    recipe = s.decode([0.0, 1.0, 0.5, 0.0, 1.0, 0.5])
    assert recipe.value("maths", "weight", 0, 0) == -0.5
    assert recipe.value("code", "weight", 0, 0) == 1.5
    assert recipe.value("spanish", "density", 0, 0) == pytest.approx(0.55)


def test_every_column_changes_the_block_that_it_names_and_no_other() -> None:
    s = space(SPACES["blocks"])
    assert s.size == 2 * 3 * 3 * 3
    centre = [0.5] * s.size
    for column, name in enumerate(s.columns):
        x = list(centre)
        x[column] = 0.9
        changed = [
            (owner, parameter, row, group)
            for owner in ("maths", "code", "spanish")
            for parameter in ("weight", "density")
            for row in range(3)
            for group in range(3)
            if s.decode(x).value(owner, parameter, row, group)
            != s.decode(centre).value(owner, parameter, row, group)
        ]
        assert len(changed) == 1
        owner, parameter, row, group = changed[0]
        assert name == f"{owner}.{parameter}[{('attn', 'mlp', 'rest')[row]},{group}]"


def test_inactive_parameters_do_not_matter() -> None:
    s = space(SPACES["choice"])
    x = [0.9, 0.1, 0.1] + [0.3] * (s.size - 3)  # task arithmetic has no density
    y = list(x)
    y[s.columns.index("maths.density")] = 0.8
    assert s.decode(x).method == "task_arithmetic"
    assert s.decode(x).key == s.decode(y).key
    assert s.decode([0.1, 0.9, 0.1, *x[3:]]).key != s.decode([0.1, 0.9, 0.1, *y[3:]]).key


def test_a_recipe_outside_of_the_space_is_refused() -> None:
    s = space({"method": "ties", "weight": {"range": [0, 1]}})
    other = space({"method": "ties", "weight": {"range": [0, 3]}}).decode([1.0] * 6)
    with pytest.raises(ValueError, match=r"outside of range \[0, 1\]"):
        s.encode(other)


def test_operators_share_a_parameter_only_if_they_search_it_alike() -> None:
    s = space({"method": {"choice": ["ties", "pcb"]}})
    own = {d.methods: d.setting for d in s.dimensions if d.parameter == "density"}
    assert own == {
        frozenset({m}): Range(low=spec.search[0], high=spec.search[1])
        for m in ("ties", "pcb")
        if (spec := METHODS[m].parameter("density")) and spec.search
    }
    assert {d.methods for d in s.dimensions if d.parameter == "weight"} == {
        frozenset({"ties", "pcb"})
    }
    assert len(set(s.columns)) == s.size
    assert "pcb.maths.density" in s.columns
    assert "maths.weight" in s.columns
    for method in ("ties", "pcb"):
        recipe = s.decode([float(method == m) for m in s.methods] + [1.0] * (s.size - 2))
        spec = METHODS[method].parameter("density")
        assert spec is not None
        assert spec.search is not None
        assert recipe.value("maths", "density", 0, 0) == pytest.approx(spec.search[1])


def test_the_size_of_a_merge_is_known_unless_an_operator_needs_whole_tensors() -> None:
    base = random_tensors(0)
    experts = {name: random_tensors(k, base) for k, name in enumerate(("maths", "code", "spanish"))}
    probe = DeltaProbe(in_memory(base, **experts), 1, ())
    s = space({"method": {"choice": ["linear", "model_stock"]}})
    known = known_delta_l1(s, probe)
    assert known is not None
    X = torch.rand(4, s.size, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    X[:, 0], X[:, 1] = 0.0, 1.0
    # model_stock has no parameters, so all its merges are one.
    assert known(X).tolist() == [float(probe.delta_l1("model_stock", {}, {}))] * 4
    X[:, 0], X[:, 1] = 1.0, 0.0
    assert len(set(known(X).tolist())) == 4
    assert known_delta_l1(space({"method": {"choice": ["ties", "tsv_m"]}}), probe) is None
