"""Names of a model's tensors in memory → their names in its files, where the model library differs.

Adapters go by the names in memory (`vit.layers.0…` for `vit.encoder.layer.0…`), merges by those of
the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig
from transformers.core_model_loading import revert_weight_conversion


def file_names(folder: Path) -> Mapping[str, str]:
    """Name in memory → name in the files, of what is only renamed; no weight is read.

    It is empty for an architecture that the library does not have.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    architecture = getattr(transformers, (config.architectures or [""])[0], None)
    if architecture is None:
        return {}
    with torch.device("meta"):
        model = architecture(config)
    names = [name for name, _ in model.named_parameters()]
    # Each tensor is only its number: what comes back under another name was renamed.
    numbers = {name: torch.tensor([i]) for i, name in enumerate(names)}
    return {names[int(t)]: name for name, t in revert_weight_conversion(model, numbers).items()}
