"""From a Hugging Face folder to a model in memory whose tensors go by the checkpoint's names.

The model library renames some tensors while it loads (`vit.encoder.layer.0…` becomes
`vit.layers.0…`) and adds or drops the base model's prefix. Merging works on the files' names, so
the names are mapped back here, once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from evaluators.kinds import ModelKind, kind_of
from evaluators.tokens import Tokens

_AUTO_CLASSES: dict[ModelKind, str] = {
    "language_model": "AutoModelForCausalLM",
    "text_classifier": "AutoModelForSequenceClassification",
    "image_classifier": "AutoModelForImageClassification",
    "encoder": "AutoModel",
}


class ModelError(Exception):
    """A model cannot be opened or asked; one line that says why."""


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, in memory: weights on the CPU, evaluation mode, no gradients.

    Attributes:
        tensors: the live tensors under the names that the safetensors files give them.
    """

    model: PreTrainedModel
    kind: ModelKind
    tokenizer: Tokens | None
    tensors: dict[str, Tensor]


def open_checkpoint(folder: Path, dtype: str, device: str) -> Checkpoint:
    """Open a folder by its `architectures[0]`, without network or remote code.

    Raises:
        ModelError: the folder is incomplete or broken, the architecture is unknown or has an
            encoder and a decoder, or a tensor of the files is not a tensor of the live model.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: not a model folder, it has no config.json")
    names = _names(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        kind = _kind(config, folder)
        with _no_progress_bar():
            model: PreTrainedModel = getattr(transformers, _AUTO_CLASSES[kind]).from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                trust_remote_code=False,
                local_files_only=True,
            )
        tokenizer = None if kind == "image_classifier" else _tokenizer(config, folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder}: cannot be opened: {reason}") from error
    if tokenizer is not None:
        # Classifiers on a decoder look for the last token that is no padding.
        model.config.pad_token_id = tokenizer.pad
    model = model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    return Checkpoint(model, kind, tokenizer, _live_tensors(model, names, folder))


def _kind(config: PreTrainedConfig, folder: Path) -> ModelKind:
    architectures = config.architectures
    if not architectures:
        raise ModelError(f"{folder}: config.json names no architecture (`architectures`)")
    if config.is_encoder_decoder:
        raise ModelError(f"{folder}: {architectures[0]} has an encoder and a decoder: unsupported")
    return kind_of(architectures[0])


def _tokenizer(config: PreTrainedConfig, folder: Path) -> Tokens:
    tokenizer = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    return Tokens(tokenizer, config)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep "Loading weights" off the terminal, whose lines belong to the campaign."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _names(folder: Path) -> list[str]:
    """Tensor names of the folder's safetensors files, from their headers alone."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    try:
        if index.is_file():
            return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        with safe_open(single, "pt") as file:
            return list(file.keys())
    except FileNotFoundError:
        raise ModelError(f"{folder}: has no {single.name}; convert it to safetensors") from None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: unreadable safetensors: {error}") from error


def _live_tensors(model: PreTrainedModel, names: list[str], folder: Path) -> dict[str, Tensor]:
    """Find the live tensor behind each name of the files.

    The library's own way back (`revert_weight_conversion`, used for saving) leaves a tensor's
    memory in place when it only renames; where it computes a new tensor, writing would be lost.
    """
    live = dict(model.named_buffers(remove_duplicate=False))
    live.update(model.named_parameters(remove_duplicate=False))
    places = {tensor.data_ptr() for tensor in live.values()}
    saved = {**live, **revert_weight_conversion(model, live)}
    prefix = f"{model.base_model_prefix}."
    found = {}
    for name in names:
        for alias in (name, prefix + name, name.removeprefix(prefix)):
            if alias in saved and saved[alias].data_ptr() in places:
                found[name] = saved[alias]
                break
    missing = [name for name in names if name not in found]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        count = f"{len(missing)} of {len(names)} tensors"
        raise ModelError(f"{folder}: {count} have no place in {type(model).__name__}: {some}")
    return found
