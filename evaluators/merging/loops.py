"""Elementwise functions run over blocks: compiled where that is possible, else by torch.

Both give the same bits (sums: to the last bits of float64), so which one runs is a matter of speed.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.merging.codegen import Function, Signature, UnsupportedError
from evaluators.merging.compiler import CompilerError, NoCompilerError, build

_CACHED = 1 << 15
"""Elements that torch works on at a time: operands of a few models stay in the nearest cache."""


class Loop(Protocol):
    """A function over blocks of n elements; see `compiler.Kernel`."""

    def __call__(
        self,
        blocks: Sequence[Tensor],
        numbers: NDArray[np.float32],
        outputs: Sequence[Tensor | None],
        start: int = 0,
    ) -> list[float]:
        """Run over contiguous blocks of n elements each; see `compiler.Kernel`."""
        ...


class Interpreted:
    """A function run by torch, one operation after another."""

    def __init__(self, function: Function, signature: Signature) -> None:
        self._function, self._signature = function, signature

    def __call__(
        self,
        blocks: Sequence[Tensor],
        numbers: NDArray[np.float32],
        outputs: Sequence[Tensor | None],
        start: int = 0,
    ) -> list[float]:
        """Run over contiguous blocks of n elements each."""
        n = (blocks[0] if blocks else next(o for o in outputs if o is not None)).numel()
        told = torch.from_numpy(numbers)[:, None].unbind()
        sums = [0.0] * len(outputs)
        for first in range(0, n, _CACHED):
            part = slice(first, min(first + _CACHED, n))
            index = torch.arange(start + part.start, start + part.stop)
            results = self._function([block[part] for block in blocks], told, index)
            for k, (result, output) in enumerate(zip(results, outputs, strict=True)):
                if output is None:
                    sums[k] += float(result.sum(dtype=torch.float64))
                else:
                    output[part] = result
        return sums


_OPENING = threading.Lock()
"""Threads that need one kernel at once compile it once."""


def loop(function: Function, signature: Signature, compiled: bool) -> Loop:
    """Open the loop of a function, once per process.

    Args:
        function: known by equality: two that are equal must do the same.
        signature: what it reads and writes.
        compiled: whether to compile it, where that is possible.
    """
    with _OPENING:
        return _opened(function, signature, compiled)


@cache
def _opened(function: Function, signature: Signature, compiled: bool) -> Loop:
    if compiled:
        try:
            return build(function, signature)
        except NoCompilerError:
            pass
        except (UnsupportedError, CompilerError) as error:
            # From one place whoever asks, so that Python shows one reason once.
            warnings.warn(f"no compiled kernel, merging is slow: {error}", stacklevel=1)
    return Interpreted(function, signature)
