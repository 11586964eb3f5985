"""How much of a task vector survives random trimming: a table over all densities.

Random masks are nested, so what survives grows with the density alone. One pass per seed answers
for every density of a campaign, exactly, and merging needs no pass of its own to find out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.merging.codegen import Signature
from evaluators.merging.loops import Loop, loop
from evaluators.merging.masks import DRAWING, KEY, LEVELS, Window, tilted

_BLOCK = 1 << 18


def survivors(  # noqa: PLR0913
    base: Tensor,
    model: Tensor,
    key: Sequence[float],
    ranks: Tensor | None,
    half: int,
    *,
    compiled: bool,
) -> NDArray[np.float64]:
    """Add up the magnitudes of a delta of n elements by the density at which they survive.

    Args:
        base: `n`
        model: `n`
        key: of the tensor's random numbers.
        ranks: `n` uint8, None if they do not matter.
        half: of the window (see `masks.Window`).
        compiled: whether to use compiled kernels; the sums are the same.

    Returns:
        `LEVELS + 2` sums: entry k is of what survives density k / `LEVELS`, the last of everything.
    """
    read = [base, model] if ranks is None else [base, model, ranks]
    run = binner(base.dtype, model.dtype, ranked=ranks is not None, compiled=compiled)
    window = Window(1, half)
    told = np.array([*key, window.slope, half], dtype=np.float32)
    found = torch.zeros(LEVELS + 1, dtype=torch.float64)
    size = min(_BLOCK, base.numel())
    codes, sizes = torch.empty(size, dtype=torch.int16), torch.empty(size)
    for start in range(0, base.numel(), _BLOCK):
        block = slice(start, min(start + _BLOCK, base.numel()))
        outputs = codes[: block.stop - start], sizes[: block.stop - start]
        run([x[block] for x in read], told, outputs, start)
        found += torch.bincount(outputs[0], outputs[1].double(), minlength=LEVELS + 1)
    return np.concatenate([[0.0], found.cumsum(0).numpy()])


def binner(base: torch.dtype, model: torch.dtype, *, ranked: bool, compiled: bool) -> Loop:
    """Open what tells at which density the entries of a delta survive."""
    ranks = (torch.uint8,) if ranked else ()
    outputs = (torch.int16, torch.float32)
    signature = Signature((base, model, *ranks), KEY + 2, outputs, DRAWING, (0,))
    return loop(_Bins(ranked), signature, compiled)


@dataclass(frozen=True)
class _Bins:
    """The level that a density must exceed for an entry to survive, and its magnitude."""

    ranked: bool

    def __call__(
        self, blocks: Sequence[Tensor], numbers: Sequence[Tensor], _: object
    ) -> list[Tensor]:
        base, model = (block.to(torch.float32) for block in blocks[:2])
        slope, half = numbers[KEY:]
        there = blocks[-1].to(torch.float32)
        if self.ranked:
            there = tilted(blocks[-1], blocks[2], slope)
        # Rounded down before it is moved by whole levels: so no sum is rounded.
        level = (there * (LEVELS / (1 << 16))).floor() + half
        return [level.clamp(0, LEVELS).to(torch.int32).to(torch.int16), (model - base).abs()]
