"""Tiny real models: each function writes an ordinary Hugging Face folder and returns it.

They have random weights (set by the seed), safetensors, a configuration and a tokenizer, and open
offline with the Auto classes in milliseconds. Two seeds give two models of one architecture, so a
base and its experts are `tiny_llama(a, 0)`, `tiny_llama(b, 1)`, ...
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

WORDS = [
    "a",
    "bad",
    "cat",
    "dog",
    "film",
    "fine",
    "good",
    "is",
    "it",
    "not",
    "of",
    "red",
    "sad",
    "the",
    "was",
    "very",
]
"""What the classifiers' word tokenizer knows."""

MAX_LENGTH = 96
"""Positions of the tiny text models."""


def tiny_llama(folder: Path, seed: int, *, tied: bool = False, layers: int = 2) -> Path:
    """A Llama over bytes: vocabulary 259 (256 bytes, <s>, </s>, <pad>), hidden size 16."""
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=tied,
        initializer_range=0.4,  # far from uniform, so that models differ visibly
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    torch.manual_seed(seed)
    byte_tokenizer().save_pretrained(folder)
    return _save(LlamaForCausalLM(config), folder)


def tiny_bert_classifier(folder: Path, seed: int, *, labels: int = 3) -> Path:
    """A BERT sequence classifier over `WORDS`, hidden size 16, two layers."""
    torch.manual_seed(seed)
    word_tokenizer().save_pretrained(folder)
    return _save(BertForSequenceClassification(_bert_config(labels)), folder)


def tiny_bert(folder: Path, seed: int) -> Path:
    """A BERT encoder without a head, over `WORDS`, hidden size 16, two layers."""
    torch.manual_seed(seed)
    word_tokenizer().save_pretrained(folder)
    return _save(BertModel(_bert_config(2)), folder)


def tiny_vit(folder: Path, seed: int, *, labels: int = 3) -> Path:
    """A vision transformer for 1 x 8 x 8 images in patches of 4 x 4, hidden size 16, two layers."""
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=labels,
        initializer_range=0.4,
    )
    return _save(ViTForImageClassification(config), folder)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; <s> is put first, as Llama tokenizers do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of `WORDS`, [UNK] for others, between [CLS] and [SEP]."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: i for i, token in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def _bert_config(labels: int) -> BertConfig:
    return BertConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        num_labels=labels,
        initializer_range=0.4,
        pad_token_id=0,
    )


def _save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder
