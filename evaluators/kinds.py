"""What a checkpoint is, by the name of its architecture. Nothing heavy is imported."""

from __future__ import annotations

from typing import Literal

ModelKind = Literal["language_model", "text_classifier", "image_classifier", "encoder"]

_ENDINGS: dict[str, ModelKind] = {
    "ForCausalLM": "language_model",
    "LMHeadModel": "language_model",
    "ForSequenceClassification": "text_classifier",
    "ForImageClassification": "image_classifier",
}


def kind_of(architecture: str) -> ModelKind:
    """By the end of `architectures[0]` of its `config.json`; anything else is a bare encoder."""
    return next((k for end, k in _ENDINGS.items() if architecture.endswith(end)), "encoder")
