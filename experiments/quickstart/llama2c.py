"""Reads karpathy's llama2.c files: a v0 checkpoint and its tokenizer, as Hugging Face objects.

A v0 checkpoint is seven int32 (dim, hidden dim, layers, heads, key-value heads, vocabulary,
sequence length) and then float32 tensors, kind by kind, each kind for all layers. A tokenizer file
is one int32 and then, per token, a float32 score, an int32 length and the bytes.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

UNK, BOS, EOS = "<unk>", "<s>", "</s>"


@dataclass(frozen=True)
class Piece:
    """One token: its text and the score by which llama2.c chooses what to merge first."""

    text: str
    score: float


def read_model(path: Path) -> LlamaForCausalLM:
    """Read a checkpoint as a Llama in float32, embeddings tied."""
    raw = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("<7i", raw[:28])
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):  # the initial weights are all replaced below
        model = LlamaForCausalLM(config)
    state = _state(torch.from_numpy(np.frombuffer(raw, "<f4", offset=28).copy()), config)
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    return model


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Read a tokenizer as a byte-fallback BPE that gives the ids of llama2.c's own encoder."""
    pieces = read_pieces(path)
    ids = {piece.text: i for i, piece in enumerate(pieces)}
    core = Tokenizer(BPE(ids, _merges(pieces, ids), unk_token=UNK, byte_fallback=True))
    core.normalizer = normalizers.Prepend(" ")
    core.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=UNK,
        model_max_length=512,
    )


def read_pieces(path: Path) -> list[Piece]:
    """List the tokens in the order of their ids; the three special ones under their usual names."""
    raw = path.read_bytes()
    pieces, offset = [], 4
    while offset < len(raw):
        score, size = struct.unpack("<fi", raw[offset : offset + 8])
        offset += 8 + size
        pieces.append(Piece(raw[offset - size : offset].decode(), score))
    special = [Piece(name, 0.0) for name in (UNK, BOS, EOS)]
    return special + pieces[len(special) :]


def _merges(pieces: list[Piece], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair that concatenates to a token, best score first: what llama2.c tries greedily."""
    ranked = sorted(pieces, key=lambda piece: -piece.score)
    splits = ((p.text[:cut], p.text[cut:]) for p in ranked for cut in range(1, len(p.text)))
    return [pair for pair in splits if pair[0] in ids and pair[1] in ids]


def _state(flat: torch.Tensor, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Tensors under their Hugging Face names, cut from the file's flat float32 array."""
    dim, hidden, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head_dim = dim // config.num_attention_heads
    kv_dim = head_dim * (config.num_key_value_heads or config.num_attention_heads)
    kinds: list[tuple[str, tuple[int, ...]]] = [
        ("input_layernorm", (dim,)),
        ("self_attn.q_proj", (dim, dim)),
        ("self_attn.k_proj", (kv_dim, dim)),
        ("self_attn.v_proj", (kv_dim, dim)),
        ("self_attn.o_proj", (dim, dim)),
        ("post_attention_layernorm", (dim,)),
        ("mlp.gate_proj", (hidden, dim)),
        ("mlp.down_proj", (dim, hidden)),
        ("mlp.up_proj", (hidden, dim)),
    ]
    names: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens", (config.vocab_size, dim))]
    names += [(f"model.layers.{i}.{kind}", shape) for kind, shape in kinds for i in range(layers)]
    names += [("model.norm", (dim,))]
    state, offset = {}, 0
    for name, shape in names:
        tensor = flat[offset : offset + math.prod(shape)].view(shape)
        rotary = name.endswith(("q_proj", "k_proj"))
        state[f"{name}.weight"] = _half_split(tensor, head_dim) if rotary else tensor
        offset += tensor.numel()
    return state


def _half_split(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows from llama2.c's rotary pairs (2i, 2i+1) to Hugging Face's pairs (i, i + head_dim/2)."""
    rows, columns = weight.shape
    pairs = weight.view(rows // head_dim, head_dim // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)
