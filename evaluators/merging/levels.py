"""Exact thresholds of magnitude without sorting: which entries are among the m largest?

A delta of 16-bit weights is ranked by its magnitude rounded to that type, which has 32,768 values:
one histogram per tensor and expert answers for every m at once. Magnitudes in float32 are counted
one by one in a small tensor, which may have no two that are equal; in a large one by their upper 16
bits, and the lower half is looked at in the one bin that the threshold falls into. Entries that tie
at the threshold are taken in the order of their index, as a stable sort takes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.merging.codegen import Signature
from evaluators.merging.loops import Loop, Search, loop, search

_BINS = 1 << 15
_BLOCK = 1 << 18
_NARROW = {torch.bfloat16, torch.float16}
_SIGNLESS = (1 << 31) - 1


@dataclass(frozen=True)
class Levels:
    """The magnitudes that one delta of n elements has, largest first.

    Attributes:
        codes: `L` int32: bit pattern of a magnitude in its type; in a large tensor the upper 16
            bits of one in float32.
        parts: `P x L` int32: how many elements have this magnitude in each of P equal parts of the
            tensor (see `_parts`).
    """

    codes: NDArray[np.int32]
    parts: NDArray[np.int32]

    @cached_property
    def reached(self) -> NDArray[np.int64]:
        """`L` int64: how many elements have this magnitude or a larger one."""
        reached: NDArray[np.int64] = self.parts.sum(axis=0, dtype=np.int64).cumsum()
        return reached


@dataclass(frozen=True)
class Cut:
    """The m largest entries of a delta: those above `high`, and those from `low` to `high` (in
    float32, bounds included) whose index is below `end`.
    """

    low: float
    high: float
    end: int

    @property
    def above(self) -> float:
        """The next float32 above `high`."""
        return _next(self.high, math.inf)

    @property
    def below(self) -> float:
        """The next float32 below `low`, an infinite one excepted."""
        return self.low if math.isinf(self.low) else _next(self.low, -1.0)


Ties = Literal["first", "all", "none"]

NOTHING = Cut(math.inf, math.inf, 0)


def ranked_as(base: torch.dtype, model: torch.dtype) -> torch.dtype:
    """Tell in which type the magnitudes of a delta are ranked."""
    return base if base == model and base in _NARROW else torch.float32


def levels(base: Tensor, model: Tensor, *, compiled: bool) -> Levels:
    """Count the magnitudes of a delta of n elements, in one pass."""
    kind = ranked_as(base.dtype, model.dtype)
    if _is_counted_whole(kind, base.numel()):
        return _distinct(base, model)
    signature = Signature((base.dtype, model.dtype), 0, (torch.int16,))
    encode = loop(_Encoder(kind), signature, compiled)
    parts = _parts(base.numel())
    counts = torch.zeros(len(parts), _BINS, dtype=torch.int64)
    codes = torch.empty(min(_BLOCK, base.numel()), dtype=torch.int16)
    none = np.zeros(0, dtype=np.float32)
    for k, part in enumerate(parts):
        for start in range(part.start, part.stop, _BLOCK):
            block = slice(start, min(start + _BLOCK, part.stop))
            seen = codes[: block.stop - start]
            encode((base[block], model[block]), none, (seen,))
            seen &= _BINS - 1  # torch makes a NaN of bfloat16 negative
            counts[k] += torch.bincount(seen, minlength=_BINS)
    found = counts.sum(0).nonzero().flatten().flip(0)
    return Levels(found.to(torch.int32).numpy(), counts[:, found].to(torch.int32).numpy())


def largest(  # noqa: PLR0913
    count: int,
    base: Tensor,
    model: Tensor,
    known: Levels,
    *,
    ties: Ties = "first",
    compiled: bool = False,
) -> Cut:
    """Find the `count` largest entries of a delta of n elements.

    Args:
        count: 0 to n.
        base: `n`
        model: `n`
        known: levels of their delta.
        ties: which of the entries that tie are among them: the first so that `count` is met, all,
            or none.
        compiled: whether to count with a compiled kernel.
    """
    if count == 0:
        return NOTHING
    place = int(known.reached.searchsorted(count))
    above = int(known.reached[place - 1]) if place else 0
    code, wanted = int(known.codes[place]), count - above
    tied = int(known.reached[place]) - above
    kind = ranked_as(base.dtype, model.dtype)
    if kind in _NARROW:
        low, high = _interval(code, kind)
    elif _is_counted_whole(kind, base.numel()):
        low = high = float(np.int32(code).view(np.float32))
    else:
        low, wanted, tied = _refined(base, model, code, wanted)
        high = low
    if math.isnan(low):  # sorted before all numbers; it survives no comparison
        return NOTHING
    if wanted == tied or ties == "all":
        return Cut(low, high, base.numel())
    if ties == "none":
        return Cut(low, high, 0)
    around = slice(0, base.numel())
    if kind in _NARROW:  # whose levels say in which part the cut is
        for part, own in zip(_parts(base.numel()), known.parts[:, place].tolist(), strict=True):
            around = part
            if wanted <= own:
                break
            wanted -= own
    find = finder(base.dtype, model.dtype, compiled=compiled)
    told = np.array((low, high), dtype=np.float32)
    return Cut(low, high, find((base, model), told, wanted, around))


@dataclass(frozen=True)
class _Encoder:
    """Codes of magnitudes as int16, which hold 15 bits."""

    kind: torch.dtype

    def __call__(self, blocks: Sequence[Tensor], _: object, __: object) -> list[Tensor]:
        base, model = (block.to(torch.float32) for block in blocks)
        size = (model - base).abs()
        if self.kind in _NARROW:
            return [size.to(self.kind).view(torch.int16)]
        return [(size.view(torch.int32) >> 16).to(torch.int16)]


@lru_cache(maxsize=_BINS)
def _next(value: float, towards: float) -> float:
    """Find the next float32."""
    return float(np.nextafter(np.float32(value), np.float32(towards)))


@lru_cache(maxsize=_BINS)
def _interval(code: int, kind: torch.dtype) -> tuple[float, float]:
    """Find the float32 magnitudes that round to a 16-bit one: half way to its neighbours, where a
    tie goes to the even code. Of a NaN they are NaN.
    """
    codes = np.array([max(code - 1, 0), code, min(code + 1, _BINS - 1)], dtype=np.uint16)
    values = codes.view(np.float16)
    if kind == torch.bfloat16:
        values = (codes.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # of a NaN
        below, value, above = values.astype(np.float64).tolist()
    if math.isinf(value) or math.isinf(above):  # reached half way to the next power of two
        limit = 2.0 ** math.ceil(math.log2(torch.finfo(kind).max))
        value, above = min(value, limit), limit if math.isinf(above) else math.inf
    low, high = np.float32((below + value) / 2), np.float32((value + above) / 2)
    if code % 2:  # the even neighbours take what is half way
        low = np.nextafter(low, np.float32(np.inf))
        high = np.nextafter(high, np.float32(0))
    return 0.0 if code == 0 else float(low), float(high)


def _is_counted_whole(kind: torch.dtype, n: int) -> bool:
    """Whether levels of n elements are float32 magnitudes, none of them cut to 16 bits."""
    return kind not in _NARROW and n < _BLOCK


def _distinct(base: Tensor, model: Tensor) -> Levels:
    """Count every float32 magnitude apart."""
    size = (model.float() - base.float()).abs().numpy().view(np.int32)
    codes, counts = np.unique(size & np.int32(_SIGNLESS), return_counts=True)
    return Levels(codes[::-1].copy(), counts[None, ::-1].astype(np.int32))


def _refined(base: Tensor, model: Tensor, code: int, wanted: int) -> tuple[float, int, int]:
    """Look into one bin of float32 magnitudes.

    Returns:
        the threshold, how many elements that tie there are wanted, and how many there are.
    """
    found = []
    for start in range(0, base.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        size = (model[block].float() - base[block].float()).abs()
        bits = size.numpy().view(np.int32)
        found.append(bits[(bits >> 16) == code])
    bits = np.concatenate(found)
    place = len(bits) - wanted
    threshold = np.partition(bits, place)[place]
    wanted -= int(np.count_nonzero(bits > threshold))
    return float(threshold.view(np.float32)), wanted, int(np.count_nonzero(bits == threshold))


def mass(base: Tensor, model: Tensor, *, compiled: bool) -> float:
    """Add up the magnitudes of a delta of n elements."""
    add = adder(base.dtype, model.dtype, compiled=compiled)
    none = np.zeros(0, dtype=np.float32)
    blocks = zip(torch.split(base, _BLOCK), torch.split(model, _BLOCK), strict=True)
    return math.fsum(add(pair, none, (None,))[0] for pair in blocks)


def adder(base: torch.dtype, model: torch.dtype, *, compiled: bool) -> Loop:
    """Open what adds up magnitudes."""
    return loop(_magnitudes, Signature((base, model), 0, (None,)), compiled)


@cache
def finder(base: torch.dtype, model: torch.dtype, *, compiled: bool) -> Search:
    """Open what finds the last of the magnitudes that tie at a threshold and survive."""
    return search(_within, Signature((base, model), 2, (torch.bool,)), compiled)


def _magnitudes(blocks: Sequence[Tensor], _: object, __: object) -> list[Tensor]:
    base, model = (block.to(torch.float32) for block in blocks)
    return [(model - base).abs()]


@lru_cache(maxsize=_BINS)
def _parts(n: int) -> list[slice]:
    """Cut n elements into parts whose levels are counted apart: eight, or one of a small tensor."""
    count = 8 if n >= _BLOCK else 1
    return [slice(n * k // count, n * (k + 1) // count) for k in range(count)]


def _within(blocks: Sequence[Tensor], bounds: Sequence[Tensor], _: object) -> list[Tensor]:
    base, model = (block.to(torch.float32) for block in blocks)
    size = (model - base).abs()
    return [(size >= bounds[0]) & (size <= bounds[1])]
