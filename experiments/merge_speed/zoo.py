"""Synthetic Llama checkpoints: a base and three fine-tunes in bfloat16, written tensor by tensor.

They are random: speed and equality carry over to real models, no statement about quality does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from evaluators.merging.stored import ShardWriter, open_tensors
from evaluators.recipe import ModelRef
from evaluators.sources import Sources, open_sources
from experiments import zoo
from experiments.zoo import Advance, Part

HERE = Path(__file__).parent
SEED = 7
EXPERTS = ("a", "b", "c")
DTYPE = torch.bfloat16
STD = 0.02
NOISE = 0.04
"""Standard deviation of a fine-tune's noise, in units of `STD`."""
ROW_SPREAD = 0.5
"""Standard deviation of the logarithm of a row's noise."""
_ONE_SHARD = 10**12


@dataclass(frozen=True)
class Size:
    """The shape of an untied Llama."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Tensor name → shape."""
        square, wide = (self.hidden, self.hidden), (self.inner, self.hidden)
        layer: dict[str, tuple[int, ...]] = {
            **{f"self_attn.{part}_proj.weight": square for part in "qkvo"},
            "mlp.gate_proj.weight": wide,
            "mlp.up_proj.weight": wide,
            "mlp.down_proj.weight": wide[::-1],
            "input_layernorm.weight": (self.hidden,),
            "post_attention_layernorm.weight": (self.hidden,),
        }
        table = (self.vocabulary, self.hidden)
        found: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": table,
            "lm_head.weight": table,
        }
        for i in range(self.layers):
            found |= {f"model.layers.{i}.{part}": shape for part, shape in layer.items()}
        found["model.norm.weight"] = (self.hidden,)
        return {name: torch.Size(shape) for name, shape in found.items()}

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(map(prod, self.shapes.values()))


SIZES = {
    "tiny": Size(hidden=192, inner=512, layers=6, heads=3, vocabulary=1_280),
    "0.1b": Size(hidden=768, inner=2_048, layers=12, heads=12, vocabulary=25_856),
    "0.5b": Size(hidden=1_024, inner=4_096, layers=24, heads=16, vocabulary=45_568),
    "7b": Size(hidden=4_096, inner=11_008, layers=32, heads=32, vocabulary=32_000),
}


def build(name: str, root: Path = HERE) -> Path:
    """Make `root/zoo/<size>/<model>` where it is not there yet; the folder of the four models."""
    size, folder = SIZES[name], root / "zoo" / name
    parameters = {"size": asdict(size), "seed": SEED, "noise": NOISE, "rows": ROW_SPREAD}
    key = zoo.content_key(parameters, [Path(__file__)])
    steps = len(size.shapes)
    zoo.build([Part(folder / "base", key, partial(write_model, size, None), steps)])
    fine_tunes = [
        Part(folder / e, key, partial(write_model, size, folder / "base"), steps) for e in EXPERTS
    ]
    zoo.build(fine_tunes)
    return folder


def open_zoo(folder: Path) -> Sources:
    """Open what `build` made."""
    experts = {name: ModelRef(path=str(folder / name)) for name in EXPERTS}
    return open_sources(ModelRef(path=str(folder / "base")), experts)


def write_model(size: Size, base: Path | None, folder: Path, advance: Advance) -> None:
    """Write a base, or a fine-tune of one, with one tensor in memory at a time."""
    start: Mapping[str, Tensor] = {} if base is None else open_tensors(base)
    specs = {name: (DTYPE, shape) for name, shape in size.shapes.items()}
    model = folder.name.strip(".").removesuffix(".partial")
    writer = ShardWriter(folder, specs, _ONE_SHARD)
    for name, shape in size.shapes.items():
        generator = torch.Generator().manual_seed(_seed(model, name))
        writer.write(name, draw(shape, start.get(name), generator))
        advance()
    (folder / "config.json").write_text(json.dumps(_config(size), indent=2) + "\n")
    _tokenizer().save_pretrained(folder)


def draw(shape: torch.Size, base: Tensor | None, generator: torch.Generator) -> Tensor:
    """Draw a tensor of a base, or of a fine-tune of `base`.

    Weights are normal, norms normal around 1. A fine-tune adds normal noise, whose rows have
    lognormal scales.

    Returns:
        `shape`, bfloat16.
    """
    noise = torch.randn(shape, generator=generator).mul_(STD)
    if base is None:
        return noise.add_(1.0 if len(shape) == 1 else 0.0).to(DTYPE)
    rows = (shape[0], *[1] * (len(shape) - 1))
    scale = torch.randn(rows, generator=generator)
    return noise.mul_(NOISE * scale.mul_(ROW_SPREAD).exp_()).add_(base).to(DTYPE)


def _seed(model: str, tensor: str) -> int:
    digest = hashlib.sha256(repr((SEED, model, tensor)).encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _config(size: Size) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: mergekit wants a tokenizer, nobody reads with it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    )
