"""One seeded training loop for every builder: AdamW, linear warm-up and decay, clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.utils import clip_grad_norm_

from experiments.zoo import Advance


@dataclass(frozen=True)
class Schedule:
    """How to train: the learning rate rises for `warmup` steps, then falls linearly to zero."""

    steps: int
    lr: float
    warmup: int = 20
    weight_decay: float = 0.01
    clip: float = 1.0

    def factor(self, step: int) -> float:
        """Share of `lr` at a step counted from 0."""
        rise = (step + 1) / (self.warmup + 1)
        return min(rise, (self.steps - step) / max(1, self.steps - self.warmup))


def fit(
    parameters: Iterable[torch.Tensor],
    loss: Callable[[torch.Generator], torch.Tensor],
    schedule: Schedule,
    seed: int,
    advance: Advance,
) -> None:
    """Minimise `loss`, which draws its own batch from the generator that it is given."""
    weights = list(parameters)
    optimizer = torch.optim.AdamW(weights, lr=schedule.lr, weight_decay=schedule.weight_decay)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed):
        for _ in range(schedule.steps):
            optimizer.zero_grad()
            loss(generator).backward()  # type: ignore[no-untyped-call]
            clip_grad_norm_(weights, schedule.clip)
            optimizer.step()
            decay.step()
            advance()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch (dropout, initial weights) on one thread, and leave the caller's state alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would be other weights
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
