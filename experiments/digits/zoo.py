"""Builds the digits zoo: a tiny ViT on scikit-learn's 8 x 8 digits and an expert per view.

The base has seen all three views; each expert has seen one more often, under the same ten classes:

    python -m experiments.digits.zoo
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

from experiments import training, zoo
from experiments.training import Schedule, fit, seeded
from experiments.zoo import Advance, Part

HERE = Path(__file__).parent
SOURCES = [Path(str(training.__file__)), Path(__file__)]
VIEWS = ("upright", "rotated", "mirrored")
SIDE, CLASSES = 8, 10
TRAINED_ON = 1000
SEED = 7
BATCH = 64
BASE = Schedule(steps=120, lr=5e-3)
EXPERT = Schedule(steps=60, lr=5e-3)

Examples = tuple[torch.Tensor, torch.Tensor]
"""Images `n x 1 x 8 x 8` from 0 to 1, and their digits."""


def build(root: Path = HERE) -> list[str]:
    """Make `root/data/generated` and `root/zoo/<model>`; names of what was not there yet."""
    key = zoo.content_key({}, SOURCES)
    models = root / "zoo"
    built = zoo.build([Part(root / "data" / "generated", key, write_data)])
    built += zoo.build([Part(models / "base", key, write_base, BASE.steps)])
    experts = {view: partial(write_expert, view, models / "base") for view in VIEWS}
    return built + zoo.build(
        [Part(models / view, key, write, EXPERT.steps) for view, write in experts.items()]
    )


def examples(view: str) -> tuple[Examples, Examples]:
    """Split one view of the digits: what models train on, and what benchmarks ask."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    images = _see(digits.images[order] / 16, view).reshape(-1, 1, SIDE, SIDE)
    pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    labels = torch.from_numpy(digits.target[order])
    return (pixels[:TRAINED_ON], labels[:TRAINED_ON]), (pixels[TRAINED_ON:], labels[TRAINED_ON:])


def _see(images: NDArray[np.float64], view: str) -> NDArray[np.float64]:
    """`n x 8 x 8` images as they are, turned by a right angle, or mirrored and inverted."""
    if view == "rotated":
        return np.rot90(images, axes=(1, 2))
    return 1 - images[:, :, ::-1] if view == "mirrored" else images


def write_data(folder: Path, advance: Advance) -> None:
    """Write the benchmark images of each view, row by row from 0 to 1, as `<view>.jsonl`."""
    for view in VIEWS:
        pixels, labels = examples(view)[1]
        rows = zip(pixels.flatten(1).tolist(), labels.tolist(), strict=True)
        lines = (json.dumps({"pixels": image, "label": label}) + "\n" for image, label in rows)
        (folder / f"{view}.jsonl").write_text("".join(lines))
    advance()


def write_base(folder: Path, advance: Advance) -> None:
    """Train a new model on all views."""
    with seeded(SEED):
        model = ViTForImageClassification(_config())
    views = [examples(view)[0] for view in VIEWS]
    images, labels = (torch.cat(part) for part in zip(*views, strict=True))
    _train(model, (images, labels), BASE, advance)
    model.save_pretrained(folder)


def write_expert(view: str, base: Path, folder: Path, advance: Advance) -> None:
    """Train the base on one view."""
    model = ViTForImageClassification.from_pretrained(base)
    _train(model, examples(view)[0], EXPERT, advance)
    model.save_pretrained(folder)


def _config() -> ViTConfig:
    return ViTConfig(
        image_size=SIDE,
        patch_size=4,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=CLASSES,  # type: ignore[call-arg]
        initializer_range=0.15,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _train(
    model: ViTForImageClassification, items: Examples, schedule: Schedule, advance: Advance
) -> None:
    images, labels = items

    def loss(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(labels), (BATCH,), generator=generator)
        found: torch.Tensor = model(pixel_values=images[chosen], labels=labels[chosen]).loss
        return found

    fit(model.parameters(), loss, schedule, SEED, advance)


if __name__ == "__main__":
    build()
