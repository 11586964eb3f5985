"""Elementwise functions run over blocks: compiled where that is possible, else by torch.

Both give the same bits (sums: to the last bits of float64), so which one runs is a matter of speed.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.merging.codegen import Drawing, Function, Signature
from evaluators.merging.compiler import CompilerError, NoCompilerError, build, build_finder
from evaluators.merging.operations import UnsupportedError

T = TypeVar("T")

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
        ends: Sequence[int] = (),
    ) -> list[float]:
        """Run over contiguous blocks of n elements each; see `compiler.Kernel`."""
        ...


class Search(Protocol):
    """A search among blocks of n elements; see `compiler.Finder`."""

    def __call__(
        self, blocks: Sequence[Tensor], numbers: NDArray[np.float32], rank: int, part: slice
    ) -> int:
        """Find the index behind the `rank`-th element that is true; see `compiler.Finder`."""
        ...


class Searched:
    """A search by torch."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def __call__(
        self, blocks: Sequence[Tensor], numbers: NDArray[np.float32], rank: int, part: slice
    ) -> int:
        """Find the index behind the `rank`-th element of a part that is true."""
        told = torch.from_numpy(numbers)[:, None].unbind()
        first: int = part.start
        for start in range(first, part.stop, _CACHED):
            end = min(start + _CACHED, part.stop)
            (true,) = self._function(
                [block[start:end] for block in blocks], told, torch.arange(start, end)
            )
            places = true.nonzero().flatten()
            if len(places) >= rank:
                return start + int(places[rank - 1]) + 1
            rank -= len(places)
        return first - 1


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
        ends: Sequence[int] = (),
    ) -> list[float]:
        """Run over contiguous blocks of n elements each."""
        n = (blocks[0] if blocks else next(o for o in outputs if o is not None)).numel()
        sums = [0.0] * len(outputs)
        ends = ends or (n,)
        rows = numbers.reshape(len(ends), -1)
        for first, end, told in zip((0, *ends), ends, rows, strict=False):
            for begin in range(first, end, _CACHED):
                part = slice(begin, min(begin + _CACHED, end))
                found = self._run([block[part] for block in blocks], told, part, start)
                for k, (result, output) in enumerate(zip(found, outputs, strict=True)):
                    if output is None:
                        sums[k] += float(result.sum(dtype=torch.float64))
                    else:
                        output[part] = result
        return sums

    def _run(
        self, blocks: list[Tensor], told: NDArray[np.float32], part: slice, start: int
    ) -> Sequence[Tensor]:
        """Run over a part whose operands stay in the nearest cache."""
        begin, end = start + part.start, start + part.stop
        numbers = torch.from_numpy(told)[:, None].unbind()
        read = [*blocks, *self._drawn(told, begin, end)]
        return self._function(read, numbers, torch.arange(begin, end))

    def _drawn(self, numbers: NDArray[np.float32], start: int, stop: int) -> list[Tensor]:
        """Make the blocks of random words."""
        keys, drawing = self._signature.keys, self._signature.drawing
        if drawing is None:
            return []
        told = [numbers[first : first + drawing.key] for first in keys]
        return [drawn(drawing, key, start, stop, compiled=False) for key in told]


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


def search(function: Function, signature: Signature, compiled: bool) -> Search:
    """Open a search for what a function is true of, once per process; see `loop`."""
    with _OPENING:
        return _opened_search(function, signature, compiled)


def drawn(
    drawing: Drawing, key: NDArray[np.float32], start: int, stop: int, *, compiled: bool
) -> Tensor:
    """Make the random words of the elements from `start` to `stop`: uint16."""
    first, last = start // drawing.chunk, -(-stop // drawing.chunk)
    run = drawing.chunk // drawing.runs // 2
    made = torch.empty(drawing.runs, (last - first) * run, dtype=torch.int32)
    loop(drawing.function, drawing.signature, compiled)((), key, made.unbind(), first * run)
    chunks = made.view(drawing.runs, last - first, run).transpose(0, 1).flatten()
    return chunks.view(torch.uint16)[start - first * drawing.chunk : stop - first * drawing.chunk]


@cache
def _opened(function: Function, signature: Signature, compiled: bool) -> Loop:
    found = _built(build, function, signature) if compiled else None
    return found or Interpreted(function, signature)


@cache
def _opened_search(function: Function, signature: Signature, compiled: bool) -> Search:
    found = _built(build_finder, function, signature) if compiled else None
    return found or Searched(function)


def _built(
    build: Callable[[Function, Signature], T], function: Function, signature: Signature
) -> T | None:
    """Compile what can be compiled."""
    try:
        return build(function, signature)
    except NoCompilerError:
        pass
    except (UnsupportedError, CompilerError) as error:
        # From one place whoever asks, so that Python shows one reason once.
        warnings.warn(f"no compiled kernel, merging is slow: {error}", stacklevel=1)
    return None
