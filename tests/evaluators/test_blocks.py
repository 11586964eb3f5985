"""Which tensor belongs to which block."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.merging.blocks import Blocks

LLAMA = [
    "model.embed_tokens.weight",
    *[
        f"model.layers.{i}.{n}.weight"
        for i in range(5)
        for n in ("self_attn.q_proj", "mlp.up_proj")
    ],
    "model.norm.weight",
    "lm_head.weight",
]


def test_layers_are_cut_into_contiguous_groups() -> None:
    blocks = Blocks(LLAMA, 2, ())
    groups = [blocks.of(f"model.layers.{i}.mlp.up_proj.weight")[1] for i in range(5)]
    assert groups == [0, 0, 0, 1, 1]  # i * 2 // 5


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.embed_tokens.weight", 0),
        ("transformer.wte.weight", 0),
        ("transformer.wpe.weight", 0),
        ("bert.embeddings.LayerNorm.weight", 0),
        ("model.norm.weight", 2),
        ("lm_head.weight", 2),
        ("bert.pooler.dense.weight", 2),
        ("classifier.bias", 2),
    ],
)
def test_tensors_outside_the_layers(name: str, group: int) -> None:
    assert Blocks([*LLAMA, name], 3, ()).of(name) == (0, group)


def test_the_first_filter_that_matches_wins() -> None:
    blocks = Blocks(LLAMA, 1, ("q_proj", "proj"))
    assert blocks.of("model.layers.0.self_attn.q_proj.weight") == (0, 0)
    assert blocks.of("model.layers.0.mlp.up_proj.weight") == (1, 0)
    assert blocks.of("model.norm.weight") == (2, 0)


def test_the_first_number_in_a_name_is_the_layer() -> None:
    names = [f"encoder.block.{i}.layer.{j}.weight" for i in range(4) for j in range(2)]
    blocks = Blocks(names, 4, ())
    assert blocks.of("encoder.block.3.layer.0.weight") == (0, 3)


@pytest.mark.parametrize("filters", [("self_atn",), ("proj", "up_proj")])
def test_a_filter_that_owns_nothing_is_refused(filters: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=repr(filters[-1])):
        Blocks(LLAMA, 1, filters)


@pytest.mark.parametrize("layer_groups", [0, 6])
def test_groups_without_layers_are_refused(layer_groups: int) -> None:
    with pytest.raises(ValueError, match="5 layers"):
        Blocks(LLAMA, layer_groups, ())


@given(layers=st.integers(1, 40), data=st.data())
def test_every_group_owns_layers(layers: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, layers))
    blocks = Blocks([f"layers.{i}.w" for i in range(layers)], count, ())
    groups = [blocks.of(f"layers.{i}.w")[1] for i in range(layers)]
    assert groups == sorted(groups)
    assert set(groups) == set(range(count))


def test_no_torch() -> None:
    code = (
        "import sys; import evaluators.merging.blocks, evaluators.merging.mergekit, "
        "evaluators.merging.settings; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
