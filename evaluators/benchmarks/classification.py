"""`classification`: how often the label's logit is the largest.

For sequence classifiers, for image classifiers (pixels in the rows), and for bare encoders with a
frozen linear head on the mean of the last hidden states.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from evaluators.benchmarks.benchmark import BenchmarkError, Metric, Outcomes, Positions, Split
from evaluators.benchmarks.data import Column, DataOptions, index, numbers, text
from evaluators.benchmarks.from_data import FromData
from evaluators.benchmarks.rows import DataError
from evaluators.benchmarks.statistics import proportion

if TYPE_CHECKING:
    from evaluators.models import LiveModel


class ClassificationOptions(DataOptions):
    """Options of `classification`.

    Attributes:
        text: field that the classifier or encoder reads.
        label: field with the class, an integer from 0.
        pixels: field with an image instead of a text: `C x H x W` numbers, nested or flat, scaled
            as the model was trained.
        head: safetensors file with `weight` (`C x H`) and `bias` (`C`) of a frozen linear head, for
            a model that is a bare encoder.
    """

    text: str = "text"
    label: str = "label"
    pixels: str | None = None
    head: Path | None = None

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if self.pixels is not None and "text" in self.model_fields_set:
            raise ValueError("`pixels` and `text`: give one of them")
        if self.pixels is not None and self.head is not None:
            raise ValueError("`head` is for texts, not for `pixels`")
        return self


class Classification(FromData):
    """Accuracy of the largest logit. Outcome: 1 or 0."""

    Options = ClassificationOptions
    metric = Metric("accuracy", "maximize")

    def __init__(self, options: ClassificationOptions) -> None:
        given = Column(options.text, text)
        if options.pixels is not None:
            given = Column(options.pixels, numbers)
        super().__init__(options, [given, Column(options.label, index, read_by_model=False)])
        self._pixels = options.pixels is not None
        self._head = None if options.head is None else _read_head(options.head)

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        """1 where the label's logit is the largest, 0 elsewhere; of equals the first.

        Raises:
            BenchmarkError: a label that the model has no class for, or images of several shapes.
        """
        rows = self.rows(split, items)
        labels = np.array([label for _, label in rows])
        logits = self._logits(model, [given for given, _ in rows])
        if labels.max(initial=0) >= logits.shape[1]:
            found = f"label {labels.max()}"
            raise BenchmarkError(f"{found}, but the model has classes 0 to {logits.shape[1] - 1}")
        hits: Outcomes = (logits.argmax(1) == labels).astype(np.float32)
        hits[~np.isfinite(logits).all(1)] = np.nan
        return hits

    def summary(self, outcomes: Outcomes) -> tuple[float, float]:
        """Accuracy and its standard error."""
        return proportion(outcomes)

    def _logits(self, model: LiveModel, inputs: list[str]) -> NDArray[np.float32]:
        if self._pixels:
            shapes = sorted({np.shape(image) for image in inputs})
            if len(shapes) > 1:
                raise BenchmarkError(f"images of several shapes: {shapes[0]} and {shapes[1]}")
            return model.classify(np.stack(inputs))
        if self._head is None:
            return model.classify(inputs)
        weight, bias = self._head
        states = model.embed(inputs)
        if states.shape[1] != weight.shape[1]:
            raise BenchmarkError(
                f"a head of width {weight.shape[1]} on states of {states.shape[1]}"
            )
        return states @ weight.T + bias


def _read_head(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight `C x H` and bias `C` of a linear head.

    Raises:
        DataError: the file is missing or corrupt, or its tensors are not such a pair.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a safetensors file: {error}") from error
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    weight, bias = shapes.get("weight", ()), shapes.get("bias", ())
    if len(weight) != 2 or bias != weight[:1]:
        raise DataError(f"{path}: found {shapes}, expected weight C x H and bias C")
    return tensors["weight"].astype(np.float32), tensors["bias"].astype(np.float32)
