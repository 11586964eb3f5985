"""A campaign whose experts are a LoRA adapter and a model with more tokens than the base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from terminals import Terminal
from tiny_models import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from mmmo.records import Trial

TEXTS = [f"the cat number {i} is {word} <think>" for i in range(12) for word in ("red", "sad")]
EMBED = "model.embed_tokens.weight"


def write_adapter(base: Path, folder: Path) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj", "v_proj"])
    )
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)


def write_grown(base: Path, folder: Path) -> None:
    """A fine-tune that has one token more."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>"], special_tokens=True)
    model = LlamaForCausalLM.from_pretrained(base)
    torch.manual_seed(4)
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, adapter, expert and texts."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base", 0)
    write_adapter(base, folder / "lora")
    write_grown(base, folder / "grown")
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (folder / "texts.jsonl").write_text("".join(lines))
    return folder


def open_terminal(models: Path, folder: Path, style: str, tokenizer: str) -> Terminal:
    """A terminal in a copy of the models, with a cache of its own."""
    shutil.copytree(models, folder)
    terminal = Terminal(folder, {"MMMO_CACHE": str(folder / "cache")})
    weight = {"range": [0.0, 1.0]}
    experts = {"style": style, "thinker": "./grown"}
    campaign: Mapping[str, Any] = {
        "schema_version": 1,
        "name": "tokens",
        "sources": {"base": "./base", "experts": experts, "tokenizer": tokenizer},
        "merge": {"method": "task_arithmetic", "weight": weight},
        "benchmarks": {
            "texts": {"kind": "nll", "data": "./texts.jsonl", "options": {"text": "text"}}
        },
        "objectives": {"texts": {"benchmark": "texts"}, "sparsity": {"measure": "delta_l1"}},
        "search": {"strategy": "sobol", "initial": 2, "batch": 1},
        "budget": {"trials": 2},
        "pool": {"executor": "inline"},
    }
    terminal.write(campaign)
    return terminal


def test_the_union_from_check_to_export(models: Path, tmp_path: Path) -> None:
    terminal = open_terminal(models, tmp_path / "c++", "./base+./lora", "union")
    checked = terminal.run("check", "campaign.yaml")
    assert "sources.style: a LoRA adapter applied to 4 tensors" in checked.stderr
    cache = tmp_path / "c++" / "cache" / "sources"
    assert str(cache) in "".join(checked.stdout.split())
    assert len(list(cache.iterdir())) == 2  # `thinker` has all tokens already, and is left alone
    launched = terminal.run("launch", "campaign.yaml")
    assert "writing" not in launched.stderr  # all is there
    folder, trial = export(terminal)
    assert json.loads((folder / "manifest.json").read_text())["digest"] == trial.digest
    assert rows(folder) == (260, 16)
    assert AutoTokenizer.from_pretrained(folder)("<think>")["input_ids"] == [0, 259]
    assert not (folder / "PREPARED").exists()
    assert "`base` with `lora`" in (folder / "README.md").read_text()


def test_the_base_and_an_adapter_that_changes(models: Path, tmp_path: Path) -> None:
    terminal = open_terminal(models, tmp_path / "here", "./lora", "base")
    launched = terminal.run("launch", "campaign.yaml")
    said = " ".join((launched.stdout + launched.stderr).split())
    assert "sources.thinker: 1 tokens (<think>) that the base lacks are dropped" in said
    shutil.rmtree(tmp_path / "here" / "cache")  # it is made again, and is the same
    folder, _ = export(terminal)
    assert rows(folder) == (259, 16)
    config = tmp_path / "here" / "lora" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 5}))
    refused = terminal.run("resume", "tokens", "--trials", "5", code=2)
    assert "sources.style: the weights changed since the campaign began" in refused.stderr
    assert "sources.thinker" not in refused.stderr


def export(terminal: Terminal) -> tuple[Path, Trial]:
    terminal.run("export", "tokens", "--trial", "1")
    folder = terminal.folder / "runs" / "tokens" / "exports" / "trial-0001"
    return folder, terminal.history().trial(1)


def rows(folder: Path) -> tuple[int, ...]:
    """Shape of embedding and head, which `config.json` must agree to."""
    tensors = load_file(folder / "model.safetensors")
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert tensors[EMBED].shape == tensors["lm_head.weight"].shape
    assert tensors[EMBED].shape[0] == config.vocab_size
    return tuple(tensors[EMBED].shape)
