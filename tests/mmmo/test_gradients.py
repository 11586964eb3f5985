"""Gradients in a campaign file: fixed numbers that change from layer group to layer group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints import in_memory, random_tensors

from evaluators.merging.probe import DeltaProbe
from mmmo.config import CampaignConfig, parse
from mmmo.delta_l1 import known_delta_l1
from mmmo.errors import Problems
from mmmo.space import SearchSpace


def config(**merge: Any) -> CampaignConfig:
    document = {
        "schema_version": 1,
        "name": "gradients",
        "sources": {"base": "base", "experts": {"maths": "maths", "code": "code"}},
        "merge": {"method": "task_arithmetic", "layer_groups": 4, **merge},
        "objectives": {"size": {"measure": "delta_l1"}},
    }
    return parse(document, Path("/nowhere"))


def test_a_gradient_is_interpolated_over_the_layer_groups() -> None:
    space = SearchSpace(config(weight=[0.2, 0.5, 2.0], filters=["mlp"], layer_groups=5))
    assert space.size == 0
    recipe = space.decode([])
    row = (0.2, pytest.approx(0.35), 0.5, 1.25, 2.0)
    assert recipe.parameters["maths"]["weight"] == (row, row)
    assert recipe.parameters["code"] == recipe.parameters["maths"]


def test_one_expert_has_a_gradient_and_another_is_searched() -> None:
    c = config(weight={"maths": [1, 0], "code": {"range": [0, 2]}}, layer_groups=2)
    space = SearchSpace(c)
    assert space.columns == ("code.weight[rest,0]", "code.weight[rest,1]")
    recipe = space.decode([0.25, 0.5])
    assert recipe.parameters["maths"]["weight"] == ((1.0, 0.0),)
    assert recipe.parameters["code"]["weight"] == ((0.5, 1.0),)
    assert space.encode(recipe) == [0.25, 0.5]


def test_the_size_of_a_merge_knows_the_gradient() -> None:
    base = random_tensors(0)
    sources = in_memory(base, maths=random_tensors(1, base), code=random_tensors(2, base))
    probe = DeltaProbe(sources, 2, ())
    c = config(weight={"maths": [1, 0], "code": {"range": [0, 2]}}, layer_groups=2)
    known = known_delta_l1(SearchSpace(c), probe)
    assert known is not None
    maths = torch.tensor([[1.0, 0.0]], dtype=torch.double)
    code = torch.tensor([[0.5, 1.0]], dtype=torch.double)
    weight = torch.stack([maths, code])
    expected = probe.delta_l1(
        "task_arithmetic",
        {"weight": weight, "lambda": torch.ones(1, 2, dtype=torch.double)},
        {"normalize": False},
    )
    found = known(torch.tensor([[0.25, 0.5]], dtype=torch.double))
    torch.testing.assert_close(found, expected.expand(1))


def test_a_gradient_survives_the_store() -> None:
    c = config(weight={"maths": [0, 0.5, 1], "code": 1})
    assert yaml.safe_load(c.text())["merge"]["weight"] == {"maths": [0.0, 0.5, 1.0], "code": 1.0}
    again = parse(yaml.safe_load(c.text()), Path("/nowhere"))
    assert again == c
    assert again.identity() == c.identity()


@pytest.mark.parametrize(
    ("merge", "line"),
    [
        (
            {"weight": [0, 1], "layer_groups": 1},
            "merge.weight: found [0, 1], allowed with layer_groups 1: one value; set "
            "merge.layer_groups to more, as many as the model has layers at most",
        ),
        (
            {"weight": {"maths": 1, "code": [0, 1]}, "layer_groups": 1},
            "merge.weight.code: found [0, 1], allowed with layer_groups 1: one value; set "
            "merge.layer_groups to more, as many as the model has layers at most",
        ),
        (
            {"method": "ties", "density": [0.5, 1.5]},
            "merge.density: found 1.5, allowed: numbers in [0, 1]",
        ),
    ],
)
def test_gradients_that_are_wrong(merge: dict[str, Any], line: str) -> None:
    with pytest.raises(Problems) as error:
        config(**merge)
    assert error.value.lines() == [f"gradients.yaml: {line}"] or line in error.value.lines()[0]


def test_no_gradient_of_choices() -> None:
    with pytest.raises(Problems, match=r"merge.normalize: found 0.0, allowed: true, false"):
        config(normalize=[0, 1])
