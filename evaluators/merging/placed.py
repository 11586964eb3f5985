"""Loops where the live model is, by torch's compiler: in Triton on CUDA, in C++ on a processor.

The processor's own loops (`loops`) say what is right. One made here is used only if it makes the
same bits of the first elements of real tensors, so that a recipe is the same model on every device.
For that torch is asked for the arithmetic of its operations one by one: products are rounded before
they are added, quotients are rounded right, small numbers are kept. A function with an operation
that torch itself fuses has no loop here.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from evaluators.merging.codegen import Drawing, Function, Signature
from evaluators.merging.loops import Interpreted, Loop
from evaluators.merging.operations import TRACED

PROBED = 1 << 16
"""Elements that must be the same before a loop is trusted."""

_AS_WRITTEN: dict[str, str | int | bool | Callable[..., Any]] = {
    "emulate_precision_casts": True,  # among other things: no fused multiplication and addition
    "eager_numerics.division_rounding": True,
    "eager_numerics.disable_ftz": True,
    "compile_threads": 1,  # no pool of processes for one kernel at a time
}
_FUSED = torch.ops.aten.addcmul.default


class Placed:
    """A function over blocks of n elements on one device; see `compiler.Kernel`.

    Attributes:
        traced: (numbers, number of the first element, blocks, tensors to write) → sums.
    """

    def __init__(self, function: Function, signature: Signature, device: torch.device) -> None:
        self._function, self._signature = function, signature
        # A module of its own: torch counts recompilations by the code that is compiled.
        self.traced = _traced(function, signature, device)
        self._run = torch.compile(self.traced, dynamic=True, options=_AS_WRITTEN)
        self._alike, self._probing = 0, threading.Lock()

    def __call__(
        self,
        blocks: Sequence[Tensor],
        numbers: NDArray[np.float32],
        outputs: Sequence[Tensor | None],
        start: int = 0,
        ends: Sequence[int] = (),
    ) -> list[float]:
        """Run over contiguous blocks of n elements each."""
        n, device = blocks[0].numel(), blocks[0].device
        ends = ends or (n,)
        told = torch.tensor(numbers, device=device).view(len(ends), -1)
        written = [output for output in outputs if output is not None]
        sums = torch.zeros(len(outputs) - len(written), dtype=torch.float64, device=device)
        for first, end, row in zip((0, *ends), ends, told, strict=False):
            parts = [tensor[first:end] for tensor in (*blocks, *written)]
            sums += self._run(row, torch.tensor(start + first, device=device), *parts)
        added = iter(sums.tolist())
        return [next(added) if output is None else 0.0 for output in outputs]

    def trusted(self, blocks: Sequence[Tensor], numbers: NDArray[np.float32]) -> bool:
        """Whether it makes what the processor makes; asked of real tensors until enough are alike.
        Warns if not.
        """
        try:
            if self._agrees(blocks, numbers):
                return True
            _warn(blocks[0].device, "its kernels make other bits")
        except RuntimeError as error:  # of the compiler, whose messages are long
            _warn(blocks[0].device, f"torch cannot compile for it ({type(error).__name__})")
        return False

    def _agrees(self, blocks: Sequence[Tensor], numbers: NDArray[np.float32]) -> bool:
        with self._probing:
            if self._alike >= PROBED:
                return True
            heads = [block[:PROBED] for block in blocks]
            told = numbers[: self._signature.numbers]
            interpreted = Interpreted(self._function, self._signature)
            made, sums = self._made(self, heads, told)
            expected, added = self._made(interpreted, [head.cpu() for head in heads], told)
            alike = all(map(_same_bits, made, expected)) and np.allclose(sums, added)
            self._alike += heads[0].numel() if alike else 0
            return alike

    def _made(
        self, loop: Loop, blocks: Sequence[Tensor], numbers: NDArray[np.float32]
    ) -> tuple[list[Tensor], list[float]]:
        """Run a loop over blocks; returns what is written, and the sums."""
        outputs = [
            None if dtype is None else torch.empty_like(blocks[0], dtype=dtype)
            for dtype in self._signature.outputs
        ]
        sums = loop(blocks, numbers, outputs)
        return [output for output in outputs if output is not None], sums


_OPENING = threading.Lock()
"""Threads that need one loop at once compile it once."""


def placed(function: Function, signature: Signature, device: torch.device) -> Placed | None:
    """Open the loop of a function on a device, once per process; see `Placed.trusted`.

    Args:
        function: known by equality: two that are equal must do the same.
        signature: what it reads and writes.
        device: where its blocks are.

    Returns:
        None where torch fuses operations of its own, or cannot trace the function; warns of that.
    """
    try:
        with _OPENING:
            loop = _opened(function, signature, device)
    except RuntimeError as error:
        _warn(device, f"torch cannot trace for it ({type(error).__name__})")
        return None
    fused = any(node.target == _FUSED for node in loop.traced.graph.nodes)
    return None if fused else loop


@cache
def _opened(function: Function, signature: Signature, device: torch.device) -> Placed:
    return Placed(function, signature, device)


def _warn(device: torch.device, reason: str) -> None:
    # From one place whoever asks, so that Python shows one reason once.
    warnings.warn(f"{device}: {reason}; the processor merges", stacklevel=1)


def _traced(function: Function, signature: Signature, device: torch.device) -> GraphModule:
    """Trace a function, see `Placed.traced`, over blocks of any length."""
    read = len(signature.blocks)

    def run(numbers: Tensor, start: Tensor, *blocks: Tensor) -> Tensor:
        index = start + torch.arange(blocks[0].shape[0], device=device)  # len() would be fixed
        told = numbers[:, None].unbind()
        words = _words(signature, told, index)
        found = function([*blocks[:read], *words], told, index)
        written, sums = iter(blocks[read:]), []
        for result, dtype in zip(found, signature.outputs, strict=True):
            if dtype is None:
                sums.append(result.sum(dtype=torch.float64))
            else:
                next(written).copy_(result)
        return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64, device=device)

    dtypes = [*signature.blocks, *(d for d in signature.outputs if d is not None)]
    blocks = [torch.zeros(TRACED, dtype=dtype, device=device) for dtype in dtypes]
    numbers, start = torch.ones(signature.numbers, device=device), torch.tensor(0, device=device)
    return make_fx(run, tracing_mode="symbolic")(numbers, start, *blocks)


def _words(signature: Signature, told: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """Make every element's random words where it is needed: int32 from 0 to 2^16 - 1.

    All words of a counter are made for each element, which takes one half of one of them: more work
    than on a processor, and no memory.
    """
    drawing = signature.drawing
    if drawing is None:
        return []
    run = drawing.chunk // drawing.runs // 2
    place = index % drawing.chunk // 2
    counter, which = index // drawing.chunk * run + place % run, place // run
    keys = [told[first : first + drawing.key] for first in signature.keys]
    return [_word(drawing, key, counter, which, index % 2 * 16) for key in keys]


def _word(
    drawing: Drawing, key: Sequence[Tensor], counter: Tensor, which: Tensor, shift: Tensor
) -> Tensor:
    """Take one half of one of a counter's words."""
    chosen, *others = drawing.function((), key, counter)
    for number, other in enumerate(others, start=1):
        chosen = torch.where(which == number, other, chosen)
    return (chosen.to(torch.int64) >> shift & 0xFFFF).to(torch.int32)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.cpu().view(torch.uint8), b.view(torch.uint8))
