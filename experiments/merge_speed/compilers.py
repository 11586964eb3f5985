"""Our kernels against those that torch's own compiler makes of the same formulas.

    python -m experiments.merge_speed.compilers

Base and three experts of 2^26 bfloat16 elements, merged block and its distance from the base in one
pass; CPU milliseconds on one thread, medians of five; compile times are wall seconds, nothing
cached. Our kernels draw their random words, torch's are given them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from evaluators.merging.passes import Merge

SEED = 7
ELEMENTS = 1 << 26
BLOCK = 1 << 20
NUMBERS = {
    "weight": (0.3, 0.5, 0.7),
    "lambda": (1.1,),
    "low": (0.03, 0.02, 0.04),
    "key": tuple(range(12)),
    "below": (0x8000, 0x9000, 0xA000),
    "rescale": (2.0, 1.7, 1.4),
}
METHODS = ("task_arithmetic", "ties", "dare_ties")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"MMMO_CACHE": cache, "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
        print("| operator | ours, ms | torch's, ms | ours, s to compile | torch's, s to compile |")
        print("|---|---|---|---|---|")
        blocks = _blocks()
        for method in METHODS:
            (our_s, our_ms), (their_s, their_ms) = compare(method, blocks)
            print(f"| {method} | {our_ms:.0f} | {their_ms:.0f} | {our_s:.1f} | {their_s:.1f} |")


def compare(
    method: str, blocks: Sequence[Tensor]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Measure both: (seconds to compile, milliseconds to merge) of ours, and of torch's."""
    from evaluators.merging.compiler import build

    merge, out = merge_of(method), torch.empty_like(blocks[0])
    does, numbers = merge.of, merge.of.pack([NUMBERS])
    ours_read = blocks[: len(merge.signature.blocks)]
    theirs_read = blocks[: len(ours_read) + len(merge.signature.keys)]
    told = torch.from_numpy(numbers)[:, None].unbind()
    formula = resolve_name(does.formula)

    def compiled(parts: Sequence[Tensor], target: Tensor) -> Tensor:
        x = does.operands(parts, told)
        target.copy_(formula(x))
        return (target.float() - x.base).abs().sum(dtype=torch.float64)

    begun = time.perf_counter()
    kernel = build(merge, merge.signature)
    ours = time.perf_counter() - begun
    torch_kernel = torch.compile(compiled, dynamic=True, fullgraph=True)
    begun = time.perf_counter()
    torch_kernel([block[:BLOCK] for block in theirs_read], out[:BLOCK])
    theirs = time.perf_counter() - begun

    def by_blocks(run: Callable[[list[Tensor], Tensor], object], read: Sequence[Tensor]) -> float:
        starts = range(0, ELEMENTS, BLOCK)
        parts = [(slice(i, i + BLOCK)) for i in starts]
        return _milliseconds(lambda: [run([b[p] for b in read], out[p]) for p in parts])

    mine = by_blocks(lambda parts, target: kernel(parts, numbers, (target, None)), ours_read)
    return (ours, mine), (theirs, by_blocks(torch_kernel, theirs_read))


def merge_of(method: str) -> Merge:
    """The pass of an operator over a base and three experts, as the options' defaults say but for
    rescaling, which needs no tables.
    """
    from evaluators.merging.methods import METHODS
    from evaluators.merging.passes import Merge, Pass

    entry = METHODS[method]
    options = {p.name: p.default for p in entry.parameters if isinstance(p.default, bool | str)}
    options["rescale"] = "none" if method == "ties" else "inverse_density"
    dtypes = (torch.bfloat16,) * 4
    return Merge(Pass.of(entry, options, entry.trim is not None, dtypes, torch.bfloat16))


def _blocks() -> list[Tensor]:
    """Base, three experts around it, and words of random numbers."""
    generator = torch.Generator().manual_seed(SEED)

    def noise() -> Tensor:
        return torch.randn(ELEMENTS, generator=generator)

    base = noise()
    experts = [(base + 0.04 * noise()).bfloat16() for _ in range(3)]
    span = (-(1 << 15), 1 << 15)
    words = [torch.randint(*span, (ELEMENTS,), generator=generator) for _ in range(3)]
    return [base.bfloat16(), *experts, *(word.to(torch.int16).view(torch.uint16) for word in words)]


def _milliseconds(run: Callable[[], object]) -> float:
    run()
    found = []
    for _ in range(5):
        begun = time.process_time()
        run()
        found.append(time.process_time() - begun)
    return 1e3 * median(found)


if __name__ == "__main__":
    main()
