"""Anchors: what people would try by hand, as far as the space holds it, under honest names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from campaigns import campaign

from evaluators.merging.methods import METHODS
from evaluators.recipe import WHOLE
from mmmo.anchors import anchors
from mmmo.config import parse
from mmmo.space import SearchSpace


def weights(merge: dict[str, Any], **changes: Any) -> dict[str, list[float]]:
    """Name → the experts' weights."""
    space = SearchSpace(parse(campaign(merge=merge, **changes), Path("/nowhere")))
    recipes = {name: space.decode(x) for name, x in anchors(space).items()}
    return {
        name: [float(r.value(k, "weight", 0, 0)) for k in r.experts] for name, r in recipes.items()
    }


def test_they_are_the_experts_the_average_task_arithmetic_and_the_base() -> None:
    found = weights({"method": "task_arithmetic", "weight": {"range": [0.0, 1.5]}})
    assert list(found) == [
        "expert maths", "expert code", "expert spanish",
        "uniform average", "task arithmetic 0.5", "task arithmetic 1.0", "base",
    ]  # fmt: skip
    assert found["expert code"] == [0, 1, 0]
    assert found["uniform average"] == pytest.approx([1 / 3] * 3)
    assert found["task arithmetic 0.5"] == pytest.approx([0.5] * 3)
    assert found["task arithmetic 1.0"] == pytest.approx([1.0] * 3)
    assert found["base"] == [0, 0, 0]


@pytest.mark.parametrize("bounds", [(-0.5, 1.5), (-1.0, 1.0), (-0.2, 1.3), (0.0, 1.1)])
def test_rounding_loses_none(bounds: tuple[float, float]) -> None:
    found = weights({"method": "task_arithmetic", "weight": {"range": list(bounds)}})
    assert len(found) == 7


def test_equal_weights_of_a_normalising_operator_are_one_model() -> None:
    found = weights({"method": "ties", "weight": {"range": [0.0, 1.5]}})
    assert list(found)[3:] == ["ties of equal weights", "base"]
    found = weights({"method": "linear", "weight": {"range": [0.0, 1.5]}})
    assert list(found)[3:] == ["uniform average", "base"]


def test_an_operator_that_elects_signs_is_not_called_task_arithmetic() -> None:
    found = weights({"method": "dare_ties", "weight": {"range": [0.0, 1.5]}})
    assert list(found)[3:] == [
        "dare_ties at 0.33 each", "dare_ties at 0.5 each", "dare_ties at 1 each", "base",
    ]  # fmt: skip


def test_a_choice_that_holds_task_arithmetic_uses_it() -> None:
    method = {"choice": ["ties", "task_arithmetic"]}
    assert "task arithmetic 0.5" in weights({"method": method, "weight": {"range": [0.0, 1.5]}})


def test_what_the_space_does_not_hold_is_left_out() -> None:
    assert list(weights({"method": "task_arithmetic", "weight": {"range": [0.4, 0.6]}})) == [
        "task arithmetic 0.5"
    ]
    assert weights({"method": "ties", "weight": 0.7, "density": {"range": [0.1, 1]}}) == {}
    assert "expert maths" not in weights({"method": "ties", "density": {"range": [0.1, 0.9]}})


TWO = {"base": "./base", "experts": {"maths": "./maths", "code": "./code"}}


def test_where_only_ratios_count_equal_weights_are_one_model_and_zeros_are_not_the_base() -> None:
    found = weights({"method": "nuslerp"}, sources=TWO)
    assert list(found) == ["expert maths", "expert code", "nuslerp of equal weights"]
    found = weights({"method": "multislerp"})
    assert list(found)[3:] == ["multislerp of equal weights", "base"]


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "pcb", "consensus_ta"])
def test_operators_that_blend_all_experts_are_not_said_to_give_one_back(method: str) -> None:
    found = list(weights({"method": method}))
    assert found == [f"{method} at {w} each" for w in ("0.33", "0.5", "1")] + ["base"]


@pytest.mark.parametrize("method", ["sce", "ram", "karcher", "model_stock"])
def test_an_operator_without_weights_has_its_defaults(method: str) -> None:
    space = SearchSpace(parse(campaign(merge={"method": method}), Path("/nowhere")))
    ((name, x),) = anchors(space).items()
    assert name == f"{method} by default"
    for spec in METHODS[method].parameters:
        assert space.decode(x).value(WHOLE, spec.name, 0, 0) == pytest.approx(spec.default)


def test_a_default_that_the_space_does_not_hold_is_no_anchor() -> None:
    merge = {"method": "sce", "select_topk": {"range": [0.1, 0.5]}}
    assert anchors(SearchSpace(parse(campaign(merge=merge), Path("/nowhere")))) == {}


def test_slerp_has_its_ends_and_its_middle() -> None:
    sources = {"base": "./base", "experts": {"maths": "./maths"}}
    space = SearchSpace(
        parse(campaign(merge={"method": "slerp"}, sources=sources), Path("/nowhere"))
    )
    found = {name: space.decode(x).value(WHOLE, "t", 0, 0) for name, x in anchors(space).items()}
    assert found == {"expert maths": 1.0, "base": 0.0, "half way": 0.5}
