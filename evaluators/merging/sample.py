"""A fixed sample of a checkpoint's coordinates, on which the size of a merge is estimated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from evaluators.merging.masks import uniform
from evaluators.sources import Sources

FLOOR = 0.1
"""Share of the sampling mass that is spread evenly: operators may move what no expert moved."""

_BLOCK = 1 << 20
"""Elements of a tensor that are looked at together."""


@dataclass(frozen=True)
class Sample:
    """S coordinates of the floating tensors `names`.

    Attributes:
        tensor: `S` number of the tensor in `names`.
        index: `S` element of the flattened tensor.
        importance: `S` float64; the sum of a function over all coordinates is estimated by the sum
            of importance times function over the sample.
        uniforms: `K x S` float64 mask numbers.
        exhaustive: every coordinate is there once, with the mask numbers of the merge itself.
    """

    names: Sequence[str]
    tensor: Tensor
    index: Tensor
    importance: Tensor
    uniforms: Tensor
    exhaustive: bool

    def gather(self, read: Callable[[str], Tensor]) -> Tensor:
        """Pick the sampled elements out of tensors, `read` by name one at a time.

        Returns:
            `S` float64
        """
        return self._per_tensor(lambda name, index: read(name).flatten()[index].double())

    def ranks(self, read_delta: Callable[[str], Tensor]) -> Tensor:
        """Rank the sampled elements by magnitude within their tensors.

        Args:
            read_delta: tensor name → one expert's task vector.

        Returns:
            `S` float64 in [0, 1], see `rank_fractions`.
        """
        return self._per_tensor(lambda name, index: rank_fractions(read_delta(name), index))

    def _per_tensor(self, function: Callable[[str, Tensor], Tensor]) -> Tensor:
        """Apply a function of tensor name and element indices to the sampled tensors, in turn."""
        values = torch.empty(len(self.tensor), dtype=torch.float64)
        for number in _distinct(self.tensor):
            chosen = self.tensor == number
            values[chosen] = function(self.names[number], self.index[chosen])
        return values


def take_all(sources: Sources, names: Sequence[str], seed: int) -> Sample:
    """Take every coordinate once."""
    sizes = [sources.base.shape(name).numel() for name in names]
    return Sample(
        names=names,
        tensor=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        index=torch.cat([torch.arange(size) for size in sizes]),
        importance=torch.ones(sum(sizes), dtype=torch.float64),
        # In the middle of a step of 2^-16, so that none is equal to a density.
        uniforms=torch.stack(
            [
                torch.cat([uniform(seed, e, n, s) for n, s in zip(names, sizes, strict=True)])
                for e in sources.experts
            ]
        ).double()
        + 2.0**-17,
        exhaustive=True,
    )


def draw(sources: Sources, names: Sequence[str], count: int, seed: int) -> Sample:
    """Draw coordinates with probability proportional to Σ_k |τ_k| plus a floor.

    A scrambled Sobol sequence of K + 1 dimensions gives the coordinate, through the inverse
    distribution function, and the K mask numbers. So the estimate is the mean over masks; the masks
    of a large model are one close realisation of it.
    """
    blocks = [
        (number, start)
        for number, name in enumerate(names)
        for start in range(0, sources.base.shape(name).numel(), _BLOCK)
    ]
    moved = torch.stack([_moved(sources, names[t], start).sum() for t, start in blocks])
    sizes = torch.tensor(
        [min(_BLOCK, sources.base.shape(names[t]).numel() - start) for t, start in blocks]
    )
    # The floor may not vanish, even if all experts equal the base.
    floor = max(FLOOR * float(moved.sum() / sizes.sum()), torch.finfo(torch.float32).tiny)
    ends = (moved + floor * sizes).cumsum(0)
    engine = SobolEngine(1 + len(sources.experts), scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    points = engine.draw(count, dtype=torch.float64)
    target = points[:, 0] * ends[-1]
    owner = torch.searchsorted(ends, target, right=True).clamp(max=len(blocks) - 1)
    tensor, index = torch.empty((2, count), dtype=torch.int64).unbind(0)
    mass = torch.empty(count, dtype=torch.float64)
    for block in _distinct(owner):
        chosen = owner == block
        number, start = blocks[block]
        masses = _moved(sources, names[number], start) + floor
        inside = target[chosen] - (ends[block] - masses.sum())
        place = torch.searchsorted(masses.cumsum(0), inside, right=True)
        place = place.clamp(max=len(masses) - 1)
        tensor[chosen], index[chosen], mass[chosen] = number, start + place, masses[place]
    importance = ends[-1] / (count * mass)
    return Sample(names, tensor, index, importance, points[:, 1:].T.contiguous(), exhaustive=False)


def rank_fractions(delta: Tensor, index: Tensor) -> Tensor:
    """Compute the smallest density at which trimming by magnitude keeps an element.

    That is (1 + number of elements that go before it) / n: larger ones, and equal ones of lower
    index. The largest element survives any positive density, so its fraction is 0; zeros get 1,
    since nothing depends on them. Exact, in one pass: elements are counted between the magnitudes
    asked for, nothing is sorted.

    Args:
        delta: `n` (or any shape, flattened).
        index: `S` elements asked for.

    Returns:
        `S` float64
    """
    size = delta.flatten().abs()
    levels = size[index].sort().values
    level = torch.searchsorted(levels, size[index])
    above = torch.zeros(len(levels) + 1, dtype=torch.int64)
    ties = []
    for start in range(0, len(size), _BLOCK):
        block = size[start : start + _BLOCK]
        place = torch.bucketize(block, levels)
        above += torch.bincount(place, minlength=len(levels) + 1)
        equal = (block == levels[place.clamp(max=len(levels) - 1)]) & (block > 0)
        ties.append(place[equal] * len(size) + start + equal.nonzero().flatten())
    # Elements in place p exceed level p - 1, so those above a level are all in later places.
    # A level asked for several times goes by its first place; the others stay empty.
    larger = len(size) - above.cumsum(0)[level]
    keys = torch.cat(ties).sort().values
    own = level * len(size)
    earlier = torch.searchsorted(keys, own + index) - torch.searchsorted(keys, own)
    before = larger + earlier
    fraction = (before + 1).double() / len(size)
    return torch.where(size[index] == 0, 1.0, torch.where(before == 0, 0.0, fraction))


def _moved(sources: Sources, name: str, start: int) -> Tensor:
    """Sum |τ_k| over the experts in one block of a tensor: up to `_BLOCK` float64."""
    block = slice(start, start + _BLOCK)
    base = sources.base.tensor(name).flatten()[block].double()
    total = torch.zeros_like(base)
    for expert in sources.experts.values():
        total += (expert.tensor(name).flatten()[block].double() - base).abs()
    return total


def _distinct(numbers: Tensor) -> list[int]:
    return sorted(set(numbers.tolist()))
