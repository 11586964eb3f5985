"""`mmmo merge` beside mergekit 0.1.5: one configuration of each family, the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file, save_file
from terminals import without_progress
from tiny_models import tiny_llama
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluators.merging.stored import open_tensors, stored_digest

if TYPE_CHECKING:
    from mistakes import CommandLine

pytest_plugins = ("mistakes",)

LAYERS = 4


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of four layers and three fine-tunes of it."""
    folder = tmp_path_factory.mktemp("zoo")
    base = load_file(tiny_llama(folder / "base", 0, layers=LAYERS) / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name in "abc":
        tiny_llama(folder / name, 0, layers=LAYERS)
        moved = {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        save_file(moved, folder / name / "model.safetensors", {"format": "pt"})
    return folder


MODELS = """
models:
  - {model: base}
  - {model: a, parameters: {weight: 0.7, density: 0.4}}
  - {model: b, parameters: {weight: [0.1, 0.9, 0.3], density: 0.6}}
  - {model: c, parameters: {weight: [{filter: mlp, value: [1, 0]}, {value: 0.2}]}}
base_model: base
parameters: {normalize: true, int8_mask: true}
"""
PLAIN = MODELS.replace("  - {model: base}\n", "").replace("base_model: base\n", "")
PAIR = """
slices:
  - sources:
      - {model: a, layer_range: [0, 4]}
      - {model: b, layer_range: [0, 4]}
base_model: a
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
"""
FRANKENMERGE = """
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources:
      - model: b
        layer_range: [1, 4]
        parameters:
          scale: [{filter: o_proj, value: 0.5}, {filter: layers.2, value: 2}, {value: 1}]
"""
STACKED_PAIRS = """
slices:
  - sources:
      - {model: a, layer_range: [2, 4], parameters: {weight: [0.2, 0.6]}}
      - {model: b, layer_range: [0, 2], parameters: {weight: 0.5}}
  - sources:
      - {model: c, layer_range: [1, 2], parameters: {weight: 0.3}}
      - {model: b, layer_range: [3, 4], parameters: {weight: 0.4}}
"""

EXACT = {
    "linear": PLAIN,
    "task_arithmetic": MODELS,
    "ties": MODELS,
    "passthrough": FRANKENMERGE,
}
CLOSE = {
    "linear": STACKED_PAIRS,
    "slerp": PAIR,
    "nuslerp": "models: [{model: a}, {model: c}]\nparameters: {weight: 0.4}",
    "multislerp": MODELS,
    "karcher": "models: [{model: a}, {model: b}, {model: c}]",
    "model_stock": "models: [{model: a}, {model: b}, {model: c}]\nbase_model: base",
    "sce": "models: [{model: a}, {model: b}]\nbase_model: base\nparameters: {select_topk: 0.5}",
    "breadcrumbs": MODELS,
    "nearswap": "models: [{model: a}]\nbase_model: base\nparameters: {t: 0.01}",
    "arcee_fusion": "models: [{model: a}]\nbase_model: base",
    "ram": "models: [{model: a}, {model: b}]\nbase_model: base",
}


Both = Callable[..., tuple[dict[str, Tensor], dict[str, Tensor], str]]
"""(configuration, options) → our tensors, mergekit's, and what we said."""


@pytest.fixture
def both(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine
) -> Both:
    """Merges a text by us and by mergekit, in the folder of the models."""
    monkeypatch.chdir(zoo)

    def merge(text: str, *options: str) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
        config = tmp_path / "config.yml"
        config.write_text(text)
        code, out, err = command_line.run("merge", config, tmp_path / "ours", *options)
        assert (code, without_progress(err)) == (0, "")
        parsed = MergeConfiguration.model_validate(yaml.safe_load(text))
        quiet = MergeOptions(write_model_card=False, quiet=True, random_seed=0)
        run_merge(parsed, str(tmp_path / "theirs"), quiet)
        theirs = load_file(tmp_path / "theirs" / "model.safetensors")
        return open_tensors(tmp_path / "ours"), theirs, out

    return merge


@pytest.mark.parametrize("method", EXACT)
def test_bit_for_bit(method: str, both: Both) -> None:
    ours, theirs, _ = both(f"merge_method: {method}\ndtype: float32\n" + EXACT[method])
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("method", CLOSE)
def test_but_for_rounding(method: str, both: Both) -> None:
    ours, theirs, _ = both(f"merge_method: {method}\ndtype: float32\n" + CLOSE[method])
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_masks_agree_in_distribution(method: str, both: Both, zoo: Path) -> None:
    base = open_tensors(zoo / "base")

    def size(tensors: dict[str, Tensor]) -> float:
        return sum(float((t - base[n]).abs().sum()) for n, t in tensors.items())

    ours, theirs, out = both(f"merge_method: {method}\ndtype: float32\n" + MODELS)
    assert size(ours) == pytest.approx(size(theirs), rel=0.03)
    assert "note: Random masks come from a counter-based generator with seed 0" in out


def test_bfloat16_is_the_rounded_float32(both: Both) -> None:
    text = "merge_method: task_arithmetic\ndtype: float32\nout_dtype: bfloat16\n" + MODELS
    ours, theirs, _ = both(text)
    for name, tensor in ours.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, theirs[name]), name


def test_a_frankenmerge_loads_and_speaks(both: Both, tmp_path: Path) -> None:
    _, _, out = both("merge_method: passthrough\n" + FRANKENMERGE, "--shard-size", "20KB")
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("ours", "theirs")
    )
    assert ours.config.num_hidden_layers == 6
    tokens = AutoTokenizer.from_pretrained(tmp_path / "ours")("the cat", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(ours(**tokens).logits, theirs(**tokens).logits)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    assert f"digest {stored_digest(tmp_path / 'ours')}" in out.splitlines()
