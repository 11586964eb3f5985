"""Random masks that depend on what they are for, and on nothing else.

A mask entry is a pure function of (seed, expert, tensor, element index), so it does not depend on
device, order, block size or worker. Uniform numbers are compared with the density (`u < density`),
so masks of one tensor are nested: a denser mask keeps all that a sparser one keeps. So it is with
numbers that are moved by ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluators.merging.codegen import Drawing
from evaluators.merging.loops import drawn

CHUNK = 1 << 12
"""Elements whose numbers are made together: few enough to stay in the nearest cache."""

KEY = 4
"""Numbers that are a key."""

ROUNDS = 7
"""The fewest that pass the BigCrush tests with room to spare (Salmon et al., table 2)."""

LEVELS = 1 << 12
"""Densities, and half-widths of their windows, are multiples of 1 / `LEVELS`: fine enough that
what chance keeps of millions of elements is farther from a density, coarse enough that all the
survivors' sums fit in a small table."""

RANK_STEPS = 254
"""Ranks within a row are kept in a byte, 0 to 254; the middle of a row is exactly 127."""

_WORDS = 1 << 16
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor], rounds: int = ROUNDS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32: four random 32-bit words per 128-bit counter.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section
    3.3, with the constants of its reference code. Words are held in the lower halves of int64,
    whatever is in the upper ones; a product of two words wraps around, and its upper half is right.

    Args:
        counter: four words, each an `n` int64 tensor.
        key: two words, `n` or `1` int64.
        rounds: how often the words are mixed.

    Returns:
        Four `n` int64 tensors whose lower halves are the words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = (c0 & _WORD) * _MULTIPLIERS[0], (c2 & _WORD) * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1, (p0 >> 32) ^ c3 ^ k1, p0
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return c0, c1, c2, c3


def key_of(seed: int, expert: str, tensor: str) -> tuple[float, ...]:
    """Make the key of one tensor of one expert: `KEY` numbers of 16 bits, which float32 holds."""
    digest = hashlib.sha256(repr((seed, expert, tensor)).encode()).digest()
    return tuple(float(int.from_bytes(digest[i : i + 2], "little")) for i in range(0, 8, 2))


def unit(words: Tensor) -> Tensor:
    """Turn uint16 words into numbers in [0, 1), multiples of 2^-16, in float32."""
    return words.to(torch.float32) * (1.0 / _WORDS)


def tilted(words: Tensor, rank: Tensor, slope: Tensor) -> Tensor:
    """Move the places of larger entries down, so that they are likelier to survive.

    Args:
        words: `n` uint16, which are places.
        rank: `n` uint8 from 0 to `RANK_STEPS`.
        slope: `1`, see `Window`.
    """
    return torch.addcmul(words.to(torch.float32), rank.to(torch.float32), slope)


@dataclass(frozen=True)
class Window:
    """Entries survive whose place is below a bound; ranks spread the chance evenly around density.

    Both numbers are rounded to multiples of 1 / `LEVELS`; what is above 0 is one of these at least.

    Attributes:
        level: the density times `LEVELS`.
        half: the largest entry's chance less the density, times `LEVELS`; that is 0 where
            everything or nothing survives, whatever their ranks.
    """

    level: int
    half: int

    @classmethod
    def of(cls, density: float, half_width: float = 0.0) -> Window:
        """Round both."""
        level, half = (max(round(x * LEVELS), int(x > 0)) for x in (min(density, 1.0), half_width))
        return cls(level, half if 0 < level < LEVELS else 0)

    @property
    def density(self) -> float:
        """The chance of a middling entry to survive."""
        return self.level / LEVELS

    @property
    def below(self) -> float:
        """The bound: an entry of rank 0 survives with chance density - half."""
        return float((self.level - self.half) * (_WORDS // LEVELS))

    @property
    def slope(self) -> float:
        """How far every step of rank moves a place."""
        return -2.0 * self.half * (_WORDS // LEVELS) / RANK_STEPS


def uniform(seed: int, expert: str, tensor: str, n: int, *, compiled: bool = False) -> Tensor:
    """Make all uniform numbers of one tensor of one expert: `n` float32 in [0, 1)."""
    told = np.array(key_of(seed, expert, tensor), dtype=np.float32)
    return unit(drawn(DRAWING, told, 0, n, compiled=compiled))


def _words(_: Sequence[Tensor], key: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """Compute the four words of every counter."""
    low0, high0, low1, high1 = (half.to(torch.int64) for half in key)
    zero = torch.zeros(1, dtype=torch.int64, device=index.device)
    found = philox((index, index >> 32, zero, zero), (high0 * 65536 + low0, high1 * 65536 + low1))
    return [word.to(torch.int32) for word in found]


DRAWING = Drawing(_words, KEY, CHUNK, 4)
"""How words are made: a quarter of a chunk of elements takes one of the four 32-bit words of
`CHUNK` / 8 counters, each two elements, the lower half first. Word w, which has no sign, stands for
w / 2^16.
"""
