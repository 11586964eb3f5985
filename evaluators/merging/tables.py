"""What merges must know of the sources and of nothing else: computed once, kept on disk.

Magnitude levels and row ranks belong to a pair of base and expert, inner products to the base and
all experts. A table covers all floating tensors; it is found by the digests of its models.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluators.cache import cache_root, published
from evaluators.folders import Checkpoint
from evaluators.merging.levels import Levels, levels, mass
from evaluators.merging.masks import RANK_STEPS, key_of
from evaluators.merging.methods import Method
from evaluators.merging.spherical import gram
from evaluators.merging.survivors import survivors
from evaluators.sources import Say, Sources

_FORMAT = 2
"""Part of every entry's name: a number per way of computing and storing tables."""

_CONTENT = {"levels": "magnitudes", "ranks": "ranks", "gram": "inner products"}


class Tables:
    """The tables of one set of sources, each made when it is first asked for.

    Args:
        sources: what they are about.
        kept: keep them in the cache on disk, or find them there; else they stay in memory.
        compiled: whether to count with compiled kernels.
        say: told in a line before a table is made.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        kept: bool = False,
        compiled: bool = True,
        say: Say = lambda _: None,
    ) -> None:
        self._sources, self._kept, self._compiled, self._say = sources, kept, compiled, say
        self._loaded: dict[tuple[str, str], Mapping[str, Tensor]] = {}
        self._levels: dict[tuple[str, str], Levels] = {}
        self._making = threading.Lock()
        self._masses: dict[tuple[str, str], float] = {}
        self._survivors: dict[tuple[str, str, bool], _Survivors] = {}

    def levels(self, expert: str, tensor: str) -> Levels:
        """Look up the levels of an expert's delta."""
        key = (expert, tensor)
        if key not in self._levels:
            found = self._table("levels", expert)
            parts = found[f"{tensor}.parts"].numpy()
            self._levels[key] = Levels(found[f"{tensor}.codes"].numpy(), parts)
        return self._levels[key]

    def ranks(self, expert: str, tensor: str) -> Tensor:
        """Look up the ranks of an expert's delta within its rows.

        Returns:
            `n` uint8 (see `row_ranks`)
        """
        return self._table("ranks", expert)[tensor]

    def mass(self, expert: str, tensor: str) -> float:
        """Look up the sum of magnitudes of an expert's delta; infinite or NaN if a weight is."""
        key = (expert, tensor)
        if key not in self._masses:
            self._masses[key] = mass(*self._pair(expert, tensor), compiled=self._compiled)
        return self._masses[key]

    def survivors(self, seed: int, expert: str, tensor: str, half: int) -> NDArray[np.float64]:
        """Look up how much of an expert's delta survives random trimming (see `survivors`).

        Of every tensor the last one without ranks and the last one with are kept, in memory: a
        campaign has one seed, and rarely another window.

        Args:
            seed: of the masks.
            expert: whose.
            tensor: its name.
            half: of the window (see `masks.Window`).
        """
        place = (expert, tensor, half > 0)
        known = self._survivors.get(place)
        if known is not None and (known.seed, known.half) == (seed, half):
            return known.sums
        ranks = self.ranks(expert, tensor) if half else None
        key = key_of(seed, expert, tensor)
        pair = self._pair(expert, tensor)
        found = survivors(*pair, key, ranks, half, compiled=self._compiled)
        self._survivors[place] = _Survivors(seed, half, found)
        return found

    def gram(self, tensor: str) -> Tensor:
        """Look up inner products of base and task vectors.

        Returns:
            `(K+1) x (K+1)` float64 (see `spherical.gram`)
        """
        return self._table("gram", "")[tensor]

    def prepare(self, method: Method, experts: Iterable[str]) -> None:
        """Make, or find, all that an operator will ask for."""
        for kind, needed in (
            ("levels", method.trim == "magnitude"),
            ("ranks", method.trim == "ranked"),
        ):
            for expert in experts if needed else ():
                self._table(kind, expert)
        if method.mix is not None:
            self._table("gram", "")

    def _table(self, kind: str, expert: str) -> Mapping[str, Tensor]:
        key = (kind, expert)
        with self._making:  # threads that need one table at once make it once
            if key not in self._loaded:
                self._loaded[key] = self._find(kind, expert)
            return self._loaded[key]

    def _find(self, kind: str, expert: str) -> Mapping[str, Tensor]:
        if not self._kept:
            return self._make(kind, expert)
        models = [self._sources.experts[expert]] if expert else list(self._sources.experts.values())
        digests = [model.digest for model in (self._sources.base, *models)]
        name = hashlib.sha256(f"{_FORMAT} {kind} {' '.join(digests)}".encode()).hexdigest()[:32]
        made: dict[str, Tensor] = {}

        def build(folder: Path) -> None:
            made.update(self._make(kind, expert))
            save_file(made, folder / "table.safetensors")

        try:
            folder = published(Path("tables", name), build)
            return made or load_file(folder / "table.safetensors")
        except (OSError, SafetensorError) as error:  # a full disk is either of them
            self._say(f"{cache_root()}: no tables can be kept here: {error}")
            return made or self._make(kind, expert)

    def _make(self, kind: str, expert: str) -> dict[str, Tensor]:
        """Compute a table, tensors side by side."""
        self._say(
            f"table of {_CONTENT[kind]}, {expert or 'all experts'}: {len(self._names)} tensors"
        )
        models = [self._sources.experts[expert]] if expert else list(self._sources.experts.values())

        def entries(name: str) -> dict[str, Tensor]:
            return self._entries(kind, name, self._sources.base, models)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return {k: v for found in pool.map(entries, self._names) for k, v in found.items()}

    def _entries(
        self, kind: str, name: str, base: Checkpoint, models: Sequence[Checkpoint]
    ) -> dict[str, Tensor]:
        own, others = base.tensor(name), [model.tensor(name) for model in models]
        if kind == "gram":
            return {name: gram(own.flatten(), [other.flatten() for other in others])}
        if kind == "ranks":
            return {name: row_ranks(others[0].float() - own.float())}
        found = levels(own.flatten(), others[0].flatten(), compiled=self._compiled)
        return {
            f"{name}.codes": torch.from_numpy(found.codes),
            f"{name}.parts": torch.from_numpy(found.parts),
        }

    def _pair(self, expert: str, tensor: str) -> tuple[Tensor, Tensor]:
        """A tensor of the base and of an expert, `n` each."""
        base, model = self._sources.base, self._sources.experts[expert]
        return base.tensor(tensor).flatten(), model.tensor(tensor).flatten()

    @cached_property
    def _names(self) -> list[str]:
        base = self._sources.base
        return [name for name in base.names if base.tensor(name).is_floating_point()]


@dataclass(frozen=True)
class _Survivors:
    """A table of `survivors`, and what it was made for."""

    seed: int
    half: int
    sums: NDArray[np.float64]


def row_ranks(delta: Tensor) -> Tensor:
    """Rank the entries of each row by magnitude, from 0 (the smallest) to `RANK_STEPS`.

    DELLA, Deep et al. (arXiv 2406.11617), section 3.1: rows are what the last dimension runs over;
    a tensor of one dimension is one row. The only entry of a row is in its middle.

    Args:
        delta: any shape.

    Returns:
        `n` uint8
    """
    width = delta.shape[-1] if delta.dim() > 1 else delta.numel()
    if width < 2:
        return torch.full((delta.numel(),), RANK_STEPS // 2, dtype=torch.uint8)
    rows = delta.reshape(-1, width)
    place = (torch.arange(width) * RANK_STEPS / (width - 1)).round().to(torch.uint8)
    ranks = torch.empty(rows.shape, dtype=torch.uint8)
    order = rows.abs().argsort(dim=1, stable=True)
    ranks.scatter_(1, order, place.expand_as(order))
    return ranks.flatten()
