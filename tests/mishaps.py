"""Benchmarks for tests that go wrong: `mishaps:Mishap` for one model, `mishaps:Reluctant` for more
items than the first.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel
from safetensors.torch import load_file

from evaluators.benchmarks.benchmark import Metric, Outcomes, Positions, Split
from evaluators.models import LiveModel


class Mishap:
    """Scores the mean of the classifier's bias, unless the live model is the given one."""

    class Options(BaseModel):
        """What goes wrong for the model in which folder."""

        folder: Path
        what: Literal["crash", "hang", "out_of_memory"]

    metric = Metric("bias", "maximize")

    def __init__(self, options: Options) -> None:
        self._what = options.what
        self._weights = load_file(options.folder / "model.safetensors")

    def size(self, split: Split) -> int:
        return 10

    def fingerprint(self, split: Split) -> str:
        return split

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        live = model.tensors
        if all(torch.allclose(live[n], w, atol=1e-5) for n, w in self._weights.items()):
            self._go_wrong()
        return np.array(live["classifier.bias"].tolist(), dtype=np.float32)[items]

    def summary(self, outcomes: Outcomes) -> tuple[float, float]:
        return float(outcomes.mean()), 0.1

    def _go_wrong(self) -> None:
        if self._what == "crash":
            os._exit(3)
        if self._what == "out_of_memory":
            torch.empty(1 << 50)
        while True:
            time.sleep(3600)


class Reluctant:
    """Scores every model on the first items, and fails where it is asked for more."""

    class Options(BaseModel):
        """None of its own, beside where its data would be."""

        data: str

    metric = Metric("constant", "maximize")

    def __init__(self, options: Options) -> None:
        self._size = 10

    def size(self, split: Split) -> int:
        return self._size

    def fingerprint(self, split: Split) -> str:
        return split

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        numbers = np.arange(self._size)[items]
        if numbers[0] > 0:
            raise RuntimeError("no more items, please")
        return np.ones(len(numbers), dtype=np.float32)

    def summary(self, outcomes: Outcomes) -> tuple[float, float]:
        return float(outcomes.mean()), 0.1
