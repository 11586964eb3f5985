"""Benchmarks of a user's own, named by dotted path (`plugins:Hang`), that behave as they please."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from evaluators.benchmarks.benchmark import Metric, Outcomes, Positions, Split
from evaluators.models import LiveModel

SIZE = 8


class First:
    """Scores the first weights of the live model: item i is weight i of the embeddings."""

    class Options(BaseModel):
        pids: Path = Path("pids")

    metric = Metric("weight", "maximize")

    def __init__(self, options: Options) -> None:
        self.options = options

    def size(self, split: Split) -> int:
        return SIZE

    def fingerprint(self, split: Split) -> str:
        return split

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        weights = model.tensors["model.embed_tokens.weight"].flatten()[:SIZE]
        return np.asarray(weights[items].float().numpy(), dtype=np.float32)

    def summary(self, outcomes: Outcomes) -> tuple[float, float]:
        return float(outcomes.mean()), 1.0


class Rules(First):
    """Breaks the rules of benchmarks as it is told."""

    class Options(BaseModel):
        goal: Any = "maximize"
        sizes: dict[Split, Any] = {}
        fingerprint: Any = "items"
        summary: Any = (0.5, 0.1)
        error: str | None = None

    def __init__(self, options: Options) -> None:
        if options.error is not None:
            raise RuntimeError(options.error)
        self.told = options
        self.metric = Metric("weight", options.goal)

    def size(self, split: Split) -> int:
        size: int = self.told.sizes.get(split, SIZE)
        return size

    def fingerprint(self, split: Split) -> str:
        if self.told.fingerprint is None:
            raise LookupError("no items")
        fingerprint: str = self.told.fingerprint
        return fingerprint

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        return np.zeros(SIZE, dtype=np.float32)[items]

    def summary(self, outcomes: Outcomes) -> tuple[float, float]:
        summary: tuple[float, float] = self.told.summary
        return summary


class Memory(First):
    """Scores who scores: the process, how often it was asked, how many live models it has seen."""

    def __init__(self, options: First.Options) -> None:
        super().__init__(options)
        self.calls = 0
        self.models: list[LiveModel] = []  # kept, so that no two have the same identity

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        self.calls += 1
        if not any(model is seen for seen in self.models):
            self.models.append(model)
        facts = [os.getpid(), self.calls, len(self.models)]
        return np.array([*facts, *[0] * (SIZE - len(facts))], dtype=np.float32)[items]


class Shout(First):
    """Prints."""

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        print("a benchmark was here", flush=True)
        return super().outcomes(model, split, items)


class Writer(First):
    """Writes a file in a folder, and wraps the error if it cannot."""

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        try:
            (self.options.pids / "answers").write_text("an answer")
        except OSError as error:
            raise ValueError("no answer") from error
        return super().outcomes(model, split, items)


class Full(First):
    """Meets a disk on which no file can be made."""

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/answers")


class Cycle(First):
    """Raises an error that is its own cause."""

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        error = ValueError("raised from itself")
        raise error from error


class Raise(First):
    """Raises."""

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        raise RuntimeError("this benchmark cannot score")


class Exit(First):
    """Ends its process."""

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        os._exit(3)


class Kill(First):
    """Kills its process, as the system does when memory runs out."""

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


class Hang(First):
    """Starts a child and never ends; writes both process numbers to the file `pids` before."""

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        child = subprocess.Popen(["sleep", "3600"])
        path = self.options.pids
        path.with_suffix(".new").write_text(f"{os.getpid()} {child.pid}")
        path.with_suffix(".new").rename(path)
        while True:
            time.sleep(3600)


class OutOfMemory(First):
    """Asks for four petabytes."""

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        torch.empty(1 << 50)
        raise AssertionError("unreachable")


class Wrapped(First):
    """Runs out of memory and says so in words of its own."""

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("too big") from error
