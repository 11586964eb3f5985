"""Adapters as peft stores them: `adapter_config.json` and `adapter_model.safetensors`.

Every tensor of an adapter is understood, or the adapter is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evaluators.folders import ADAPTER_CONFIG, ADAPTER_MODEL, some
from evaluators.merging.stored import SourceError, read_json

_PREFIX = "base_model.model."

_HARMLESS = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "modules_to_save",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    }
)
"""Switches, lists and sections that are understood here, or that say nothing about the weights."""

_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base as it is; PiSSA and its like change it."""

_EMBEDDING = {"embeddingA", "embeddingB"}

_MATRIX = re.compile(r"(.+)\.(?:lora_([AB])\.weight|lora_(embedding)_([AB]))")


@dataclass(frozen=True)
class LowRank:
    """One module's matrices: `a` is `r x in`, `b` is `out x r`; of convolutions `r x in x …`.

    Attributes:
        scale: of the product.
        embedding: whether the product is the module's weight transposed.
    """

    a: Tensor
    b: Tensor
    scale: float
    embedding: bool

    @property
    def shape(self) -> torch.Size:
        """Shape of the product."""
        return torch.Size((self.b.shape[0], *self.a.shape[1:]))


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        pairs: module → its matrices.
        whole: tensor name → tensor that takes the base's place (`modules_to_save`, biases).
        transposed: whether weights are stored as `in x out`, as far as the configuration knows.
    """

    folder: Path
    pairs: Mapping[str, LowRank]
    whole: Mapping[str, Tensor]
    transposed: bool


def open_adapter(folder: Path) -> Adapter:
    """Open an adapter; its tensors are memory maps.

    Raises:
        SourceError: no LoRA adapter, or one of a variant that is not supported; one line.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    _refuse_variants(folder, config)
    halves: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    strange = []
    for key, tensor in _open_tensors(folder).items():
        name = key.removeprefix(_PREFIX)
        if match := _MATRIX.fullmatch(name):
            side = (match[3] or "") + (match[2] or match[4])
            halves.setdefault(match[1], {})[side] = tensor
        elif "lora_" in name:
            strange.append(key)
        elif ".original_module." not in name:  # the base's own, beside its `modules_to_save`
            whole[re.sub(r"\.(base_layer|modules_to_save)\.", ".", name)] = tensor
    strange += [m for m, h in halves.items() if set(h) not in ({"A", "B"}, _EMBEDDING)]
    if strange:
        raise SourceError(f"{folder}: no plain LoRA: {some(strange)} not understood")
    pairs = {module: _pair(folder, config, module, found) for module, found in halves.items()}
    return Adapter(folder, pairs, whole, bool(config.get("fan_in_fan_out")))


def _refuse_variants(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise SourceError(f"{folder}: found an adapter of type {kind}, supported: LORA")
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise SourceError(
            f"{folder}: init_lora_weights: found {start!r}, which changes the base's own weights; "
            "convert it to plain LoRA with peft"
        )
    # A variant is switched on by true, a list or a section; numbers and words only adjust it.
    on = [k for k, v in config.items() if v and isinstance(v, (bool, list, dict))]
    if variants := sorted(set(on) - _HARMLESS):
        raise SourceError(f"{folder}: uses {', '.join(variants)}, supported: plain LoRA")


def _open_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / ADAPTER_MODEL
    if not path.is_file():
        raise SourceError(f"{folder}: has no {ADAPTER_MODEL}; other formats are not read")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise SourceError(f"{path}: truncated or corrupt safetensors: {error}") from None


def _pair(
    folder: Path, config: Mapping[str, Any], module: str, found: Mapping[str, Tensor]
) -> LowRank:
    try:
        rank = int(_own(config.get("rank_pattern"), module, config["r"]))
        alpha = float(_own(config.get("alpha_pattern"), module, config["lora_alpha"]))
    except (KeyError, TypeError, ValueError):
        raise SourceError(f"{folder}: {ADAPTER_CONFIG} has no numbers r and lora_alpha") from None
    a, b = (found[side] for side in sorted(found))
    if min(a.dim(), b.dim()) < 2 or a.shape[0] != rank or b.shape[1:].numel() != rank:
        raise SourceError(
            f"{folder}: {module}: matrices {tuple(a.shape)} and {tuple(b.shape)} are not of "
            f"rank {rank}, which {ADAPTER_CONFIG} says"
        )
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    return LowRank(a, b, scale, embedding=set(found) == _EMBEDDING)


def _own(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """Look up what holds for a module: the first pattern that its name ends with, as in peft."""
    matches = (v for p, v in (patterns or {}).items() if re.match(rf"(.*\.)?({p})$", module))
    return next(matches, otherwise)
