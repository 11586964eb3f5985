"""LoRA adapters as experts: equal to what peft itself merges, and refused in one line otherwise."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, tiny_bert_classifier, tiny_llama, tiny_vit
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from evaluators.recipe import ModelRef
from evaluators.sources import (
    Checkpoint,
    SourceError,
    SourcesError,
    open_checkpoint,
    open_sources,
)

LINEAR = ["q_proj", "v_proj", "down_proj"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMMO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), 0)


def train(base: Path, folder: Path, auto: Any = AutoModelForCausalLM, **options: Any) -> Path:
    """Save an adapter of which every weight is random."""
    model = get_peft_model(auto.from_pretrained(base), LoraConfig(**options))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    model.save_pretrained(folder)
    return folder


def merged_by_peft(
    base: Path, adapter: Path, folder: Path, dtype: str = "float32", auto: Any = None
) -> dict[str, Tensor]:
    """Tensors that peft writes after merging, under the names of the files."""
    auto = auto or AutoModelForCausalLM
    model = PeftModel.from_pretrained(auto.from_pretrained(base, dtype=dtype), adapter)
    model.merge_and_unload().save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def opened(base: Path, adapter: Path) -> Checkpoint:
    return open_checkpoint(ModelRef.parse(f"{base}+{adapter}"))


def refusal(base: Path, adapter: Path) -> str:
    with pytest.raises(SourceError) as caught:
        opened(base, adapter)
    message = str(caught.value)
    assert message.count("\n") == 0
    return message


def assert_equal(found: Checkpoint, expected: dict[str, Tensor], atol: float = 1e-6) -> None:
    assert set(found.names) <= set(expected)
    for name in found.names:
        torch.testing.assert_close(found.tensor(name), expected[name], rtol=1e-6, atol=atol)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 3},
        {"r": 9, "lora_alpha": 5, "use_rslora": True},
        {"rank_pattern": {"layers.0.*q_proj": 2, "v_proj": 3}, "alpha_pattern": {"q_proj": 16}},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
        {"target_modules": "all-linear"},
        {"init_lora_weights": "gaussian"},
        {"layers_to_transform": [1]},
    ],
)
def test_equal_to_peft(llama: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    adapter = train(llama, tmp_path / "adapter", **{"target_modules": LINEAR, **options})
    expected = merged_by_peft(llama, adapter, tmp_path / "merged")
    found = opened(llama, adapter)
    assert_equal(found, expected)
    before = open_checkpoint(ModelRef(path=str(llama)))
    assert found.names == before.names
    assert any(not torch.equal(found.tensor(n), before.tensor(n)) for n in found.names)


def test_tied_embeddings_are_adapted_once(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", 0, tied=True)
    adapter = train(base, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    expected = merged_by_peft(base, adapter, tmp_path / "merged")
    assert_equal(opened(base, adapter), expected)


def test_biases(tmp_path: Path) -> None:
    base = tiny_bert_classifier(tmp_path / "base", 0)
    auto = AutoModelForSequenceClassification
    options = {"target_modules": ["query"], "bias": "all", "modules_to_save": ["classifier"]}
    adapter = train(base, tmp_path / "adapter", auto, **options)
    expected = merged_by_peft(base, adapter, tmp_path / "merged", auto=auto)
    found = opened(base, adapter)
    assert_equal(found, expected)
    was = open_checkpoint(ModelRef(path=str(base)))
    name = "bert.encoder.layer.0.intermediate.dense.bias"
    assert not torch.equal(found.tensor(name), was.tensor(name))


def test_convolutions_and_names_that_transformers_changes(tmp_path: Path) -> None:
    base = tiny_vit(tmp_path / "base", 0)
    auto = AutoModelForImageClassification
    options = {"target_modules": ["projection", "q_proj", "query"]}
    adapter = train(base, tmp_path / "adapter", auto, **options)
    expected = merged_by_peft(base, adapter, tmp_path / "merged", auto=auto)
    assert_equal(opened(base, adapter), expected)


def test_transposed_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8))
    model.save_pretrained(tmp_path / "base")
    options: dict[str, Any] = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    adapter = train(tmp_path / "base", tmp_path / "adapter", **options)
    expected = merged_by_peft(tmp_path / "base", adapter, tmp_path / "merged")
    assert_equal(opened(tmp_path / "base", adapter), expected)
    change(adapter, fan_in_fan_out=False)  # c_attn still says so, the square c_proj cannot
    assert "whether to transpose 1 tensors" in refusal(tmp_path / "base", adapter)


def test_other_dtypes_are_rounded_once(llama: Path, tmp_path: Path) -> None:
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR)
    half = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    exact = merged_by_peft(tmp_path / "half", adapter, tmp_path / "exact")
    theirs = merged_by_peft(tmp_path / "half", adapter, tmp_path / "merged", "bfloat16")
    found = opened(tmp_path / "half", adapter)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert found.dtype(name) == theirs[name].dtype == torch.bfloat16
    ours, peft = found.tensor(name), theirs[name]
    assert torch.equal(ours, exact[name].bfloat16())
    assert (ours.float() - exact[name]).abs().sum() <= (peft.float() - exact[name]).abs().sum()
    torch.testing.assert_close(ours, peft, rtol=2**-6, atol=2**-8)


def test_an_adapter_alone_is_of_the_base(llama: Path, tmp_path: Path) -> None:
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR)
    alone, whole = ModelRef(path=str(adapter)), ModelRef.parse(f"{llama}+{adapter}")
    sources = open_sources(ModelRef(path=str(llama)), {"a": alone, "b": whole})
    assert sources.experts["a"].digest == sources.experts["b"].digest
    assert sources.experts["a"].folder == sources.experts["b"].folder
    assert (sources.experts["a"].ref, sources.experts["b"].ref) == (alone, whole)
    with pytest.raises(SourceError, match=r"without a model; write model\+adapter"):
        open_checkpoint(alone)


def test_a_base_that_is_missing_is_one_mistake(llama: Path, tmp_path: Path) -> None:
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR)
    experts = {"a": ModelRef(path=str(adapter)), "b": ModelRef(path=str(tmp_path / "gone"))}
    with pytest.raises(SourcesError) as caught:
        open_sources(ModelRef(path=str(tmp_path / "none")), experts)
    assert set(caught.value.problems) == {"base", "b"}


def test_an_adapted_base(llama: Path, tmp_path: Path) -> None:
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR)
    sources = open_sources(ModelRef.parse(f"{llama}+{adapter}"), {"a": ModelRef(path=str(llama))})
    assert sources.base.digest == opened(llama, adapter).digest
    assert sources.experts["a"].folder == llama


def test_a_prepared_folder_is_an_ordinary_one(llama: Path, tmp_path: Path) -> None:
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR)
    found = opened(llama, adapter)
    assert found.folder.is_relative_to(tmp_path / "cache")
    assert found.preparation is not None
    assert found.preparation.done == ("a LoRA adapter applied to 6 tensors",)
    AutoModelForCausalLM.from_pretrained(found.folder)
    written = (found.folder / "model.safetensors").stat().st_mtime_ns
    assert opened(llama, adapter).digest == found.digest
    assert (found.folder / "model.safetensors").stat().st_mtime_ns == written


def test_the_digest_follows_from_the_inputs(llama: Path, tmp_path: Path) -> None:
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR)
    change(adapter, lora_alpha=8)
    first = opened(llama, adapter).digest
    other = tiny_llama(tmp_path / "other", 1)
    change(adapter, lora_alpha=99)
    assert len({first, opened(llama, adapter).digest, opened(other, adapter).digest}) == 3
    change(adapter, lora_alpha=8)
    assert opened(llama, adapter).digest == first


def change(adapter: Path, **options: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"peft_type": "IA3"}, "found an adapter of type IA3, supported: LORA"),
        ({"use_dora": True}, "uses use_dora, supported: plain LoRA"),
        ({"layer_replication": [[0, 2]]}, "uses layer_replication"),
        ({"target_parameters": ["a"]}, "uses target_parameters"),
        ({"alora_invocation_tokens": [1]}, "uses alora_invocation_tokens"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: found 'pissa'"),
        ({"r": None}, "has no numbers r and lora_alpha"),
        ({"r": 5}, "are not of rank 5"),
    ],
)
def test_variants_are_refused(
    llama: Path, tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR)
    change(adapter, **options)
    assert expected in refusal(llama, adapter)


def test_dora_is_refused(llama: Path, tmp_path: Path) -> None:
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR, use_dora=True)
    assert "use_dora" in refusal(llama, adapter)
    change(adapter, use_dora=False)
    assert "lora_magnitude_vector" in refusal(llama, adapter)


def edit(adapter: Path, action: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    action(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda t: t.pop(f"{PREFIX}.lora_B.weight"), "self_attn.q_proj) not understood"),
        (lambda t: t.update({f"{PREFIX}.lora_C.weight": torch.ones(1)}), "lora_C.weight) not"),
        (
            lambda t: t.update({"base_model.model.new.weight": torch.ones(1)}),
            "no tensor new.weight",
        ),
        (
            lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(3)}),
            "model.norm.weight: the adapter is of shape (3,), the base has (16,)",
        ),
        (
            lambda t: t.update({f"{PREFIX}.lora_A.weight": torch.ones(8, 5)}),
            "q_proj.weight: the adapter is of shape (16, 5), the base has (16, 16)",
        ),
    ],
)
def test_every_tensor_is_used_or_named(
    llama: Path, tmp_path: Path, action: Callable[[dict[str, Tensor]], object], expected: str
) -> None:
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR)
    edit(adapter, action)
    assert expected in refusal(llama, adapter)


def test_an_adapter_of_another_model(llama: Path, tmp_path: Path) -> None:
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR)
    small = tiny_llama(tmp_path / "small", 0, layers=1)
    assert "has no tensor model.layers.1." in refusal(small, adapter)


def test_a_head_of_its_own_for_a_tied_base(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", 0, tied=True)
    adapter = train(base, tmp_path / "adapter", target_modules=LINEAR)
    head = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    edit(adapter, lambda t: t.update({"base_model.model.lm_head.weight": head.clone()}))
    assert opened(base, adapter).names == open_checkpoint(ModelRef(path=str(base))).names
    edit(adapter, lambda t: t.update({"base_model.model.lm_head.weight": head + 1}))
    assert "has its own lm_head.weight, but the base's is tied" in refusal(base, adapter)


def test_folders_that_are_no_adapter(llama: Path, tmp_path: Path) -> None:
    assert "is no adapter" in refusal(llama, llama)
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    assert "truncated or corrupt" in refusal(llama, adapter)
    weights.unlink()
    assert "has no adapter_model.safetensors" in refusal(llama, adapter)


def test_a_full_disk_is_one_line(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR)
    monkeypatch.setenv("MMMO_CACHE", str(adapter / "adapter_config.json"))
    assert "(set MMMO_CACHE)" in refusal(llama, adapter)


def test_a_plus_in_the_name_of_a_folder(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "c++" / "a+b@c", 0)
    assert open_checkpoint(ModelRef.parse(str(base))).folder == base
    adapter = train(base, tmp_path / "c++" / "d+e", target_modules=LINEAR)
    assert opened(base, adapter).preparation is not None
    ref = write_checkpoint(tmp_path / "x@y", {"w": torch.ones(2)})
    assert open_checkpoint(ModelRef.parse(ref.path)).names == ("w",)


KILLED = """
import os, signal, sys
from evaluators.recipe import ModelRef
from evaluators.sources import open_checkpoint
def die(event, arguments):
    if event == "open" and str(arguments[0]).endswith("config.json") and arguments[1] == "w":
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
open_checkpoint(ModelRef.parse(sys.argv[1]))
"""
"""Is killed between the weights and the configuration of a prepared folder."""


def test_a_killed_preparation_is_made_again(llama: Path, tmp_path: Path) -> None:
    adapter = train(llama, tmp_path / "adapter", target_modules=LINEAR)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, f"{llama}+{adapter}"], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = (tmp_path / "cache" / "sources").iterdir()
    assert left.name.startswith(".")
    assert (left / "model.safetensors").exists()
    assert not (left / "config.json").exists()
    found = opened(llama, adapter)
    assert list((tmp_path / "cache" / "sources").iterdir()) == [found.folder]
    assert found.folder.name == found.digest
    assert_equal(found, merged_by_peft(llama, adapter, tmp_path / "merged"))


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_with_tokens_of_its_own(tmp_path: Path, tied: bool) -> None:
    base = tiny_llama(tmp_path / "base", 0, tied=tied)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>"], special_tokens=True)
    grown = AutoModelForCausalLM.from_pretrained(base)
    grown.resize_token_embeddings(len(tokenizer))
    grown.save_pretrained(tmp_path / "grown")
    whole = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    options: dict[str, Any] = {"target_modules": LINEAR, "modules_to_save": whole}
    adapter = train(tmp_path / "grown", tmp_path / "adapter", **options)
    tokenizer.save_pretrained(adapter)
    expected = merged_by_peft(tmp_path / "grown", adapter, tmp_path / "merged")
    found = opened(base, adapter)
    assert_equal(found, expected)
    assert (found.vocabulary, (found.tokens or {})["<think>"]) == (260, 259)
    experts = {"e": ModelRef(path=str(adapter))}
    union = open_sources(ModelRef(path=str(base)), experts, tokenizer="union")
    assert_equal(union.experts["e"], expected)
    row = expected["model.embed_tokens.weight"][259]
    torch.testing.assert_close(union.base.tensor("model.embed_tokens.weight")[259], row)
    cut = open_sources(ModelRef(path=str(base)), experts).experts["e"]
    assert_equal(cut, {n: t[:259] if t.shape[0] == 260 else t for n, t in expected.items()})
