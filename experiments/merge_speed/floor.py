"""The bandwidth floor: one pass that reads four resident bfloat16 streams and writes one.

No merge of a base and three experts into a live model can be faster. The pass is the exclusive or
of four integer buffers, compiled: eager torch would need several passes over memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

STREAMS = 5
_COPY_STREAMS = 2


@dataclass(frozen=True)
class Floor:
    """A way to measure the floor of a model's size.

    Attributes:
        how: what `run` does, in words.
        run: one pass.
        scale: the floor's seconds are so many times those of `run`.
        size_bytes: of all streams together.
    """

    how: str
    run: Callable[[], object]
    scale: float
    size_bytes: int


def floor(parameters: int, *, compiled: bool = True) -> Floor:
    """Allocate the buffers of a model with so many bfloat16 parameters, and compile the pass.

    Without a compiler (or without `compiled`) the floor is derived from a copy, which moves two
    streams instead of five.
    """
    n = parameters * torch.bfloat16.itemsize // torch.int32.itemsize
    a, b, c, d = (torch.full((n,), 3 * i + 1, dtype=torch.int32) for i in range(STREAMS - 1))
    out = torch.zeros(n, dtype=torch.int32)
    size_bytes = STREAMS * out.nbytes
    kernel = torch.compile(_xor, dynamic=False)
    try:
        if compiled:
            kernel(a, b, c, d, out)
            return Floor("compiled xor", lambda: kernel(a, b, c, d, out), 1.0, size_bytes)
    except RuntimeError as error:  # of TorchDynamo, whose message is long
        print(f"no compiler for the bandwidth floor ({type(error).__name__}): copying instead")
    scale = STREAMS / _COPY_STREAMS
    return Floor(f"copy, times {scale}", lambda: out.copy_(a), scale, size_bytes)


def _xor(a: Tensor, b: Tensor, c: Tensor, d: Tensor, out: Tensor) -> None:
    out.copy_(a ^ b ^ c ^ d)
