"""Stacked models: the layers that were asked for, none copied, and a digest of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, in_memory, merged, random_tensors, recipe_of
from tiny_models import tiny_llama
from transformers import AutoModelForCausalLM

from evaluators.merging.numbering import label, renumbered
from evaluators.merging.stack import restack, stack
from evaluators.recipe import ModelRef
from evaluators.sources import Checkpoint, SourceError, Sources, open_checkpoint

TENSORS = {name: random_tensors(seed) for seed, name in enumerate(["base", "other"])}


def checkpoint(name: str, config: dict[str, Any] | None = None) -> Checkpoint:
    made = in_memory(TENSORS[name]).base
    return replace(made, ref=ModelRef(path=name), config=config or {"num_hidden_layers": 2})


def test_layers_are_renumbered_and_nothing_is_copied() -> None:
    base = checkpoint("base")
    stacked = restack(base, [1, 0, 1])
    inside = [n for n in stacked.names if n.startswith("layers.")]
    assert inside == [f"layers.{i}.{k}.weight" for i in range(3) for k in ("attn", "mlp")]
    for i, layer in enumerate([1, 0, 1]):
        new, old = f"layers.{i}.mlp.weight", f"layers.{layer}.mlp.weight"
        assert stacked.tensor(new) is base.tensor(old)
    assert stacked.tensor("norm.weight") is base.tensor("norm.weight")
    assert stacked.ref.path == "base[1:2] base[0:2]"
    assert stacked.config == {"num_hidden_layers": 3}


def test_the_first_layers_model_gives_embeddings_and_the_last_ones_the_rest() -> None:
    base, other = checkpoint("base"), checkpoint("other")
    stacked = stack(base, [(base, 0), (other, 1)])
    assert stacked.tensor("embed.weight") is base.tensor("embed.weight")
    assert stacked.tensor("norm.weight") is other.tensor("norm.weight")
    assert stacked.tensor("head.weight") is other.tensor("head.weight")
    assert stacked.tensor("layers.1.attn.weight") is other.tensor("layers.1.attn.weight")


def test_what_a_configuration_says_per_layer_follows_the_layers() -> None:
    ours = {"n_layer": 2, "layer_types": ["full", "sliding"], "architectures": ["A", "B"]}
    theirs = {"n_layer": 2, "layer_types": ["linear", "none"]}
    base, other = checkpoint("base", ours), checkpoint("other", theirs)
    config = stack(base, [(base, 1), (other, 0), (base, 1)]).config
    assert config["n_layer"] == 3
    assert config["layer_types"] == ["sliding", "linear", "sliding"]
    assert config["architectures"] == ["A", "B"]
    nested = replace(base, config={"text_config": ours, "model_type": "x"})
    assert restack(nested, [1]).config["text_config"]["layer_types"] == ["sliding"]
    assert restack(nested, [1]).config["text_config"]["n_layer"] == 1


@pytest.mark.parametrize(
    ("layers", "config", "message"),
    [
        ([], {"n_layer": 2}, "a stack needs at least one layer"),
        ([0, 2], {"n_layer": 2}, "base: layer 2, but it has 2 layers"),
        ([-1], {"n_layer": 2}, "base: layer -1"),
        ([0], {"model_type": "x"}, "config.json says no number of layers"),
    ],
)
def test_impossible_stacks(layers: list[int], config: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        restack(checkpoint("base", config), layers)


def test_a_head_is_neither_lost_nor_left_unused(tmp_path: Path) -> None:
    own, tied = (
        open_checkpoint(ModelRef(path=str(tiny_llama(tmp_path / str(tied), 0, tied=tied))))
        for tied in (False, True)
    )
    for donor, last in [(own, tied), (tied, own)]:
        with pytest.raises(SourceError, match=f"{last.ref}: gives the head"):
            stack(donor, [(donor, 0), (last, 1)])
    assert "lm_head.weight" in stack(own, [(tied, 0), (own, 1)]).names


def test_a_merge_of_stacks_is_the_stack_of_merges() -> None:
    names = {"base": TENSORS["base"], "a": random_tensors(3, TENSORS["base"])}

    def sources(of: dict[str, Tensors], layers: list[int]) -> Sources:
        made = in_memory(of["base"], a=of["a"])
        ready = [replace(c, config={"n_layer": 2}) for c in (made.base, made.experts["a"])]
        base, expert = (restack(c, layers) for c in ready)
        return Sources(base, {"a": expert})

    parameters = {"a": {"weight": 0.6, "density": 0.5}}
    plain, stacked = sources(names, [0, 1]), sources(names, [1, 1, 0])
    one = merged(plain, recipe_of(plain, "ties", parameters))
    other = merged(stacked, recipe_of(stacked, "ties", parameters))
    for i, layer in enumerate([1, 1, 0]):
        new, old = f"layers.{i}.attn.weight", f"layers.{layer}.attn.weight"
        assert torch.equal(other[new], one[old])


def test_digests_tell_stacks_apart(tmp_path: Path) -> None:
    model = open_checkpoint(ModelRef(path=str(tiny_llama(tmp_path / "m", 0))))
    digests = {restack(model, layers).digest for layers in ([0, 1], [1, 0], [0, 1, 1])}
    assert len(digests | {model.digest}) == 4
    assert restack(model, [1, 0]).digest == restack(model, (1, 0)).digest


def test_a_stack_of_a_real_model_has_its_names(tmp_path: Path) -> None:
    model = open_checkpoint(ModelRef(path=str(tiny_llama(tmp_path / "m", 0, layers=2))))
    deep = tiny_llama(tmp_path / "deep", 0, layers=3)
    expected = open_checkpoint(ModelRef(path=str(deep)))
    stacked = restack(model, [0, 1, 1])
    assert stacked.names == expected.names
    assert stacked.config == expected.config
    assert AutoModelForCausalLM.from_pretrained(deep).num_parameters() == sum(
        t.numel() for t in stacked.tensors.values()
    )


def test_names() -> None:
    assert renumbered("h.3.experts.5.weight", 11) == "h.11.experts.5.weight"
    a, b = ModelRef(path="a"), ModelRef(path="b", revision="v1")
    assert label([(a, 0), (a, 1), (b, 1), (b, 3)]) == "a[0:2] b@v1[1:2] b@v1[3:4]"
