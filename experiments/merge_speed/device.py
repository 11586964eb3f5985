"""Merges by a device that keeps the sources, against copies in its memory.

    python -m experiments.merge_speed.device [--device cuda] [--size 7b]

A pass over all tensors of a Llama, base and three experts in bfloat16, random and resident (10 GB
per billion parameters); thresholds and factors are given. Gigabytes read and written per second,
medians of wall times; |merged − base| is summed up, digests are not made.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from evaluators.merging.placed import placed
from experiments.merge_speed.compilers import METHODS, NUMBERS, SEED, merge_of
from experiments.merge_speed.zoo import NOISE, SIZES

TARGETS = {"task_arithmetic": 0.85, "ties": 0.70}
"""Shares of a copy's bandwidth."""
SOURCES = 4


@dataclass(frozen=True)
class Row:
    """One pass over all tensors."""

    name: str
    seconds: float
    size_bytes: int

    @property
    def gb_s(self) -> float:
        """Gigabytes per second."""
        return self.size_bytes / self.seconds / 1e9


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.merge_speed.device")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args(arguments)
    if not torch.get_device_module(given.device).is_available():
        parser.error(f"torch sees no {given.device.type}")
    rows = list(measure(given.size, given.device, given.rounds))
    copy = rows[0].gb_s
    print(f"{given.size} on {given.device}, torch {torch.__version__}; medians of {given.rounds}")
    for row in rows:
        wanted = f"   at least {TARGETS[row.name]:.0%}" if row.name in TARGETS else ""
        share = f"{row.gb_s / copy:6.0%} of copy{wanted}"
        print(f"{row.name:18s}{1e3 * row.seconds:9.1f} ms{row.gb_s:9.1f} GB/s{share}")
    return 0


def measure(size: str, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure a copy, then the operators.

    Raises:
        RuntimeError: the device makes other bits than the processor, or there is none.
    """
    tensors = [_tensors(shape.numel(), device) for shape in SIZES[size].shapes.values()]
    written = sum(out.nbytes for *_, out in tensors)

    def copy() -> None:
        for base, *_, out in tensors:
            out.copy_(base)

    yield Row("copy", _seconds(copy, device, rounds), 2 * written)
    for method in METHODS:
        merge = merge_of(method)
        numbers = merge.of.pack([NUMBERS])
        loop = placed(merge, merge.signature, device)
        if loop is None or not loop.trusted(tensors[0][:SOURCES], numbers):
            raise RuntimeError(f"{method}: {device} is not trusted with it")

        def run(loop: Callable[..., object] = loop, told: object = numbers) -> None:
            for *sources, out in tensors:
                loop(sources, told, (out, None))

        yield Row(method, _seconds(run, device, rounds), (SOURCES + 1) * written)


def _tensors(n: int, device: torch.device) -> list[Tensor]:
    """Base, three experts around it, and where they are merged."""
    generator = torch.Generator(device).manual_seed(SEED)
    noise = partial(torch.randn, n, generator=generator, device=device)
    base = noise()
    experts = [(base + NOISE * noise()).bfloat16() for _ in range(SOURCES - 1)]
    return [base.bfloat16(), *experts, torch.zeros(n, dtype=torch.bfloat16, device=device)]


def _seconds(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Time a function, after it ran once."""
    wait = torch.get_device_module(device).synchronize
    run()
    found = []
    for _ in range(rounds):
        wait()
        begun = time.perf_counter()
        run()
        wait()
        found.append(time.perf_counter() - begun)
    return median(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
