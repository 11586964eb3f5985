"""mergekit 0.1.5 as oracle: the same recipe, through `to_mergekit`, gives the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import merged, recipe_of, write_checkpoint
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file
from tiny_models import tiny_llama
from torch import Tensor

from evaluators.merging.mergekit import differences, to_mergekit
from evaluators.recipe import MergeRecipe, ModelRef
from evaluators.sources import Sources, open_checkpoint, open_sources

LAYERS = 2


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("parity")
    base = open_checkpoint(ModelRef(path=str(tiny_llama(folder / "base", 0, layers=LAYERS))))
    generator = torch.Generator().manual_seed(1)
    experts = {}
    for name in "abc":
        noisy = {
            n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in base.tensors.items()
        }
        experts[name] = write_checkpoint(folder / name, noisy, base.config)
    return open_sources(base.ref, experts)


def oracle(recipe: MergeRecipe, folder: Path, seed: int = 0) -> dict[str, Tensor]:
    """What mergekit makes of a recipe."""
    config = MergeConfiguration.model_validate(to_mergekit(recipe, LAYERS))
    options = MergeOptions(
        copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=seed
    )
    run_merge(config, str(folder), options)
    return load_file(folder / "model.safetensors")


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


WEIGHTS = {"a": {"weight": 0.7}, "b": {"weight": 0.4}, "c": {"weight": -0.3}}
GRID = {"a": {"weight": [[0.7, 0.1], [0.2, 0.9]]}, "b": {"weight": [[0.3, 0.5], [0.6, 0.4]]}}
TRIMMED = {
    "a": {"weight": 0.7, "density": 0.3},
    "b": {"weight": 0.4, "density": 0.55},
    "c": {"weight": 1.1, "density": 0.002},
}


@pytest.mark.parametrize(
    ("method", "parameters", "more"),
    [
        ("linear", WEIGHTS, {}),
        ("linear", {**WEIGHTS, "*": {"normalize": False}}, {"dtype": "bfloat16"}),
        ("linear", GRID, {"layer_groups": 2, "filters": ("self_attn",)}),
        ("task_arithmetic", WEIGHTS, {}),
        ("task_arithmetic", {**WEIGHTS, "*": {"normalize": True, "lambda": 0.6}}, {}),
        ("task_arithmetic", GRID, {"layer_groups": 2, "filters": ("self_attn",)}),
        (
            "task_arithmetic",
            {"a": {"weight": [[0.5], [1.5]]}, "*": {"lambda": [[0.3], [0.8]]}},
            {"filters": ("embed",), "dtype": "float16"},
        ),
        ("ties", TRIMMED, {}),
        ("ties", {**TRIMMED, "*": {"normalize": False, "lambda": 1.3}}, {"dtype": "bfloat16"}),
        ("ties", {"a": {"density": [[0.2, 0.8]]}}, {"layer_groups": 2}),
        ("dare_ties", {**WEIGHTS, "*": {"normalize": True}}, {}),  # density 1: nothing is random
    ],
)
def test_bit_equal(
    sources: Sources, tmp_path: Path, method: str, parameters: Any, more: Any
) -> None:
    recipe = recipe_of(sources, method, parameters, **more)
    assert_equal(merged(sources, recipe), oracle(recipe, tmp_path))


@pytest.mark.parametrize("experts", [("a",), ("b", "c")])
def test_slerp_differs_by_rounding_of_the_angle(
    sources: Sources, tmp_path: Path, experts: tuple[str, ...]
) -> None:
    # Angles are float64 here and float32 there, so the two coefficients may differ in the last bit.
    pair = Sources(sources.base, {name: sources.experts[name] for name in experts})
    recipe = recipe_of(pair, "slerp", {"*": {"t": [[0.2], [0.7]]}}, filters=("mlp",))
    ours, theirs = merged(pair, recipe), oracle(recipe, tmp_path)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_random_trimming_agrees_in_distribution(
    sources: Sources, tmp_path: Path, method: str
) -> None:
    parameters = {"a": {"density": 0.3}, "b": {"density": 0.6}, "c": {"weight": 0.5}}
    recipe = recipe_of(sources, method, parameters, seed=3)

    def size(tensors: dict[str, Tensor]) -> float:
        return sum(float((t - sources.base.tensor(n)).abs().sum()) for n, t in tensors.items())

    ours, theirs = size(merged(sources, recipe)), size(oracle(recipe, tmp_path))
    assert ours == pytest.approx(theirs, rel=0.03)


def test_differences_are_told(sources: Sources) -> None:
    assert differences(recipe_of(sources, "linear", {})) == []
    assert "lowest indices" in differences(recipe_of(sources, "ties", {}))[0]
    random = recipe_of(sources, "dare_ties", {"*": {"rescale": "inverse_density"}}, seed=4)
    notes = differences(random)
    assert "seed 4" in notes[0]
    assert "inverse_density" in notes[1]
    assert to_mergekit(random, LAYERS)["parameters"]["rescale"] is True
    plain = recipe_of(sources, "dare_ties", {"*": {"rescale": "none"}})
    assert to_mergekit(plain, LAYERS)["parameters"]["rescale"] is False
    assert len(differences(plain)) == 1
