"""Random masks that depend on what they are for, and on nothing else.

A mask entry is a pure function of (seed, expert, tensor, element index), so it does not depend on
device, order, block size or worker. Uniform numbers are compared with the density (`u < density`),
so masks of one tensor are nested: a denser mask keeps all that a sparser one keeps.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF
_BLOCK = 1 << 14
"""Counters per step: the working set stays in the processor's cache."""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10: four random 32-bit words per 128-bit counter.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section
    3.3, with the constants of its table 2. Words are held in int64; a product of two words wraps
    around, and masking after the shift restores its upper half.

    Args:
        counter: four words, each an `n` int64 tensor with values below 2^32.
        key: two words.

    Returns:
        Four `n` int64 tensors with values below 2^32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (p1 >> 32).bitwise_and_(_WORD).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = (p0 >> 32).bitwise_and_(_WORD).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = p1.bitwise_and_(_WORD), p0.bitwise_and_(_WORD)
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return [c0, c1, c2, c3]


def uniform(seed: int, expert: str, tensor: str, n: int, start: int = 0) -> Tensor:
    """Uniform numbers of the elements `start` to `start + n` of one tensor of one expert.

    Element i takes word i mod 4 of counter i // 4; its upper 24 bits are the number, so every
    value is a multiple of 2^-24 and exact in float32.

    Returns:
        `n` float32 in [0, 1).
    """
    key = _key(seed, expert, tensor)
    out = torch.empty(n, dtype=torch.float32)
    first, last = start // 4, -(-(start + n) // 4)
    for low in range(first, last, _BLOCK):
        index = torch.arange(low, min(low + _BLOCK, last))
        zero = torch.zeros_like(index)
        words = torch.stack(philox((index & _WORD, index >> 32, zero, zero), key), dim=1)
        numbers = (words.reshape(-1) >> 8).to(torch.float32) * 2.0**-24
        begin, end = max(4 * low, start), min(4 * (low + len(index)), start + n)
        out[begin - start : end - start] = numbers[begin - 4 * low : end - 4 * low]
    return out


def _key(seed: int, expert: str, tensor: str) -> tuple[int, int]:
    """64 bits of a hash that no two triples share in practice."""
    digest = hashlib.sha256(repr((seed, expert, tensor)).encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
