"""C++ compilers and what they made: shared libraries, kept on disk for the next process.

Without a compiler there are no kernels, and every merge is made by torch, operation by operation:
slower, with the same result.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluators.cache import cache_root, published
from evaluators.merging.codegen import Function, Signature, generate, generate_search

_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-shared",
    "-fPIC",
    "-fwrapv",  # integers wrap around, as torch's do
    "-ffp-contract=off",  # a product is rounded before it is added, as torch does it
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fschedule-insns",  # what does not wait for another result goes first
    "-w",  # vectors wider than a register are passed in memory, which is inlined away
)
_VECTORS = Path(__file__).parent / "vectors.h"


class CompilerError(Exception):
    """A kernel could not be made; one line."""


class NoCompilerError(CompilerError):
    """There is no compiler."""


class Kernel:
    """A compiled function of blocks of elements. Calls release the interpreter's lock."""

    def __init__(self, library: Path) -> None:
        self._function = ctypes.CDLL(str(library)).kernel
        self._function.restype = None
        self._function.argtypes = [
            *[ctypes.c_void_p] * 4, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64
        ]  # fmt: skip

    def __call__(
        self,
        blocks: Sequence[Tensor],
        numbers: NDArray[np.float32],
        outputs: Sequence[Tensor | None],
        start: int = 0,
        ends: Sequence[int] = (),
    ) -> list[float]:
        """Run over contiguous blocks of n elements each, on one thread.

        Args:
            blocks: what is read, `n` each, of the signature's dtypes.
            numbers: what the function is told; of P parts one after the other.
            outputs: `n` tensors to write, None for sums.
            start: index of the first element.
            ends: P ends of the parts that are told different numbers; one part if left out.

        Returns:
            per output its sum, 0 of those that are written.
        """
        n = (blocks[0] if blocks else next(o for o in outputs if o is not None)).numel()
        parts = max(len(ends), 1)
        until = (ctypes.c_int64 * parts)(*(ends or (n,)))
        sums = (ctypes.c_double * len(outputs))()
        read = (ctypes.c_void_p * max(len(blocks), 1))(*[b.data_ptr() for b in blocks])
        places = [None if o is None else o.data_ptr() for o in outputs]
        written = (ctypes.c_void_p * len(outputs))(*places)
        self._function(read, numbers.ctypes.data, written, sums, start, until, parts)
        return list(sums)


class Finder:
    """A compiled search among blocks of elements. Calls release the interpreter's lock."""

    def __init__(self, library: Path) -> None:
        self._function = ctypes.CDLL(str(library)).kernel
        self._function.restype = ctypes.c_int64
        self._function.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2

    def __call__(
        self, blocks: Sequence[Tensor], numbers: NDArray[np.float32], rank: int, part: slice
    ) -> int:
        """Find the index behind the `rank`-th element (from 1) of a part that is true.

        Args:
            blocks: what is read, `n` each, contiguous, of the signature's dtypes.
            numbers: what the function is told.
            rank: 1 to the number of elements of the part that are true.
            part: where to look.
        """
        first: int = part.start
        read = (ctypes.c_void_p * len(blocks))(*[b.data_ptr() + first * b.itemsize for b in blocks])
        return first + int(self._function(read, numbers.ctypes.data, rank, part.stop - first))


def build(function: Function, signature: Signature) -> Kernel:
    """Compile a function, or find it compiled in the cache.

    Raises:
        UnsupportedError: the function cannot be written in C++.
        CompilerError: it cannot be compiled here, or the cache cannot be written to.
        NoCompilerError: there is no compiler.
    """
    return Kernel(_library(generate(function, signature)))


def build_finder(function: Function, signature: Signature) -> Finder:
    """Compile a search for what a function is true of; see `build`."""
    return Finder(_library(generate_search(function, signature)))


def _library(source: str) -> Path:
    """Compile a source, or find it compiled in the cache."""
    parts = [source, _VECTORS.read_text(encoding="utf-8"), *_FLAGS, *_compiler(), _processor()]
    entry = Path("kernels", hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32])

    def make(folder: Path) -> None:
        (folder / "kernel.cpp").write_text(source, encoding="utf-8")
        (folder / "vectors.h").write_text(_VECTORS.read_text(encoding="utf-8"), encoding="utf-8")
        _compile(folder)

    try:
        return published(entry, make) / "kernel.so"
    except OSError as error:
        reason = error.strerror or error  # without the kernel's name: the same of every kernel
        raise CompilerError(f"{cache_root()}: no kernels can be kept here: {reason}") from None


def _compile(folder: Path) -> None:
    command = [_compiler()[0], *_FLAGS, "kernel.cpp", "-o", "kernel.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[0]
        raise CompilerError(f"{command[0]} failed: {reason}")


@cache
def _compiler() -> tuple[str, str]:
    """Find a compiler: its path and its version."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (path := shutil.which(name)):
            command = [path, "--version"]
            with suppress(OSError):  # it may be executed, but is no program
                asked = subprocess.run(command, capture_output=True, text=True, check=False)
                return path, asked.stdout
    raise NoCompilerError("no C++ compiler: install g++ or clang++, or set CXX")


@cache
def _processor() -> str:
    """Name what `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "\n".join([platform.machine(), platform.processor(), *named[:2]])
