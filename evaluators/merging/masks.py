"""Random masks that depend on what they are for, and on nothing else.

A mask entry is a pure function of (seed, expert, tensor, element index), so it does not depend on
device, order, block size or worker. Uniform numbers are compared with the density (`u < density`),
so masks of one tensor are nested: a denser mask keeps all that a sparser one keeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from evaluators.merging.codegen import Signature
from evaluators.merging.loops import loop

CHUNK = 1 << 18
"""Elements whose numbers are made together."""

ROUNDS = 7
"""The fewest that pass the BigCrush tests with room to spare (Salmon et al., table 2)."""

_HALVES = 8  # numbers of 16 bits in a counter's 128 bits
_RUN = CHUNK // _HALVES
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor], rounds: int = ROUNDS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32: four random 32-bit words per 128-bit counter.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section
    3.3, with the constants of its reference code. Words are held in int64; a product of two words
    wraps around, and masking after the shift restores its upper half.

    Args:
        counter: four words, each an `n` int64 tensor with values below 2^32.
        key: two words, `n` or `1` int64.
        rounds: how often the words are mixed.

    Returns:
        Four `n` int64 tensors with values below 2^32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) & _WORD) ^ c1 ^ k0
        c2 = ((p0 >> 32) & _WORD) ^ c3 ^ k1
        c1, c3 = p1 & _WORD, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


class Numbers:
    """The uniform numbers of one tensor of one expert, as 16-bit words.

    Elements are numbered in chunks of `CHUNK`. Element i of a chunk takes half i // `_RUN` of the
    eight halves of the chunk's counter i % `_RUN`, lower halves first: runs are contiguous, so that
    a vector of counters gives vectors of numbers.

    Args:
        compiled: whether a compiled kernel makes them; the numbers are the same.
    """

    def __init__(self, seed: int, expert: str, tensor: str, *, compiled: bool) -> None:
        digest = hashlib.sha256(repr((seed, expert, tensor)).encode()).digest()
        # A number of a kernel is a float32, which holds 16 bits exactly but no 32.
        halves = [int.from_bytes(digest[i : i + 2], "little") for i in range(0, 8, 2)]
        self._key = torch.tensor(halves, dtype=torch.float32).numpy()
        signature = Signature((), len(halves), (torch.int16,) * _HALVES)
        self._loop = loop(_halves, signature, compiled)

    def fill(self, words: Tensor, chunk: int) -> None:
        """Write the first `n` words of a chunk; word w stands for (w mod 2^16) / 2^16.

        Args:
            words: `CHUNK` int16, or the smaller whole of the last chunk's `n`.
            chunk: number of the chunk.
        """
        n = len(words)
        if n == CHUNK:
            self._loop((), self._key, words.view(_HALVES, _RUN).unbind(), chunk * _RUN)
            return
        count = min(n, _RUN)
        whole = torch.empty(_HALVES, count, dtype=torch.int16)
        self._loop((), self._key, whole.unbind(), chunk * _RUN)
        words.copy_(whole.flatten()[:n])


def unit(words: Tensor) -> Tensor:
    """Turn int16 words into numbers in [0, 1), multiples of 2^-16, in float32."""
    return (words.to(torch.int32) & 0xFFFF).to(torch.float32) * 2.0**-16


def uniform(seed: int, expert: str, tensor: str, n: int, *, compiled: bool = False) -> Tensor:
    """Make all uniform numbers of one tensor of one expert: `n` float32 in [0, 1)."""
    numbers = Numbers(seed, expert, tensor, compiled=compiled)
    words = torch.empty(n, dtype=torch.int16)
    for chunk, part in enumerate(torch.split(words, CHUNK)):
        numbers.fill(part, chunk)
    return unit(words)


def _halves(_: Sequence[Tensor], key: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """Compute the eight 16-bit halves of every counter, lower halves first."""
    low0, high0, low1, high1 = (half.to(torch.int64) for half in key)
    zero = index * 0
    words = philox(
        (index & _WORD, (index >> 32) & _WORD, zero, zero),
        (high0 * 65536 + low0, high1 * 65536 + low1),
    )
    return [
        half.to(torch.int16)
        for word in (long.to(torch.int32) for long in words)
        for half in (word, word >> 16)
    ]
