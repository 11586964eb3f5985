"""The size of a merge, mean |θ_merged − θ_0| per parameter, known from the recipe alone.

The acquisition needs this measure for thousands of recipes at once, with gradients. So it is
estimated on a fixed sample of coordinates, with the same formulas as the merge itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pkgutil import resolve_name

import torch
from torch import Tensor

from evaluators.merging.blocks import Blocks
from evaluators.merging.formulas import Operands
from evaluators.merging.levels import ranked_as
from evaluators.merging.masks import LEVELS, RANK_STEPS
from evaluators.merging.methods import METHODS, Method
from evaluators.merging.sample import draw, take_all
from evaluators.merging.spherical import Dials
from evaluators.merging.tables import Tables
from evaluators.merging.thresholds import TINY_NORM
from evaluators.sources import Checkpoint, Sources

Values = Mapping[str, Tensor]
Options = Mapping[str, float | bool | str]

_NEARER = 0.05
"""Half-width of a step at most, as a share of the way to the nearer of 0 and 1: a mean over the
survivors, as normalized TIES takes it, counts those that half survive in full.
"""


class DeltaProbe:
    """An estimator of the engine's `delta_l1` at dtype float32, for operators that are not `whole`
    and give all rows of a tensor the same coefficients.

    If the model has no more than `coordinates` parameters, all are taken and the estimate is exact
    but for smoothing. Otherwise see `sample.draw`; the relative error is about 1 % at 4096.

    Args:
        sources: the models; all experts take part, in this order.
        layer_groups: as in the recipes.
        filters: as in the recipes.
        coordinates: size S of the sample; a power of two suits Sobol sequences best.
        seed: of the recipes' masks, and of the sample.
        smoothing: trimming is a smooth step in density of this half-width (less near 0 and 1),
            which leaves the mean kept fraction as it is; 0 makes the step hard.
        tables: what is known of the sources; else it is found out when it is needed.

    Raises:
        ValueError: layer groups or filters do not fit the model (see `Blocks`).
    """

    def __init__(  # noqa: PLR0913
        self,
        sources: Sources,
        layer_groups: int,
        filters: tuple[str, ...],
        coordinates: int = 4096,
        seed: int = 0,
        *,
        smoothing: float = 0.01,
        tables: Tables | None = None,
    ) -> None:
        base = sources.base
        self._sources, self._tables = sources, tables or Tables(sources)
        self._names = [n for n in base.names if base.tensor(n).is_floating_point()]
        self._parameters = sum(base.shape(n).numel() for n in self._names)
        self._smoothing = smoothing
        if self._parameters <= coordinates:
            self._sample = take_all(sources, self._names, seed)
        else:
            self._sample = draw(sources, self._names, coordinates, seed)
        self._base = self._sample.gather(base.tensor)
        self._models = torch.stack(
            [self._sample.gather(expert.tensor) for expert in sources.experts.values()]
        )
        blocks = Blocks(base.names, layer_groups, filters)
        place = torch.tensor([blocks.of(name) for name in self._names])
        self._row, self._group = place[self._sample.tensor].unbind(1)
        # Few coordinates of a tensor say little of its norm: those of a block are taken together.
        alike = self._sample.tensor if self._sample.exhaustive else place[self._sample.tensor]
        self._normed = torch.unique(alike, dim=0, return_inverse=True)[1]

    def delta_l1(self, method: str, values: Values, options: Options) -> Tensor:
        """Estimate mean |θ_merged − θ_0| per floating parameter; differentiable in `values`.

        Args:
            method: a key of `METHODS`.
            values: parameter → float64 tensor, `... x K x R x G` if experts own it, else
                `... x R x G`;
                a parameter that is left out has its default.
            options: choices, such as `normalize` and `rescale`; defaults likewise.

        Returns:
            `...`
        """
        entry = METHODS[method]
        defaults = {p.name: p.default for p in entry.parameters if p.choices}
        operands = self._operands(entry, values, {**defaults, **options})
        merged: Tensor = resolve_name(entry.formula)(operands)
        moved = (merged - self._base).abs() * self._sample.importance
        return moved.sum(dim=-1) / self._parameters

    def _operands(self, method: Method, values: Values, options: Options) -> Operands:
        """Gather all sampled coordinates as one "block" of S elements, in float64."""
        one = torch.ones(1, dtype=torch.float64)
        K = len(self._models)
        keep: Sequence[Tensor] = [one] * K
        rescale: Sequence[Tensor] = keep
        experts, merge = self._numbers(method, values)
        if method.trim is not None and "density" in values:
            numbers = {name: torch.stack(list(own), -2) for name, own in experts.items()}
            if method.trim != "magnitude" and self._smoothing == 0:
                numbers |= {n: levelled(numbers[n]) for n in {"density", "epsilon"} & set(numbers)}
            kept = self._kept(method, numbers)
            keep = kept.unbind(-2)
            rescale = self._rescale(str(options["rescale"]), kept, numbers["density"]).unbind(-2)
        mix: Sequence[Tensor] = ()
        if method.mix is not None:
            # One angle per coordinate: `... x S x K` and `... x S`.
            own = {k: torch.stack(list(v), -1) for k, v in experts.items()}
            mix = resolve_name(method.mix)(self._grams, Dials(own, merge, options)).unbind(-1)
        return Operands(
            base=self._base,
            models=self._models.unbind(),
            experts=experts,
            keep=keep,
            rescale=rescale,
            mix=mix,
            merge=merge,
            options=options,
        )

    def _numbers(
        self, method: Method, values: Values
    ) -> tuple[dict[str, Sequence[Tensor]], dict[str, Tensor]]:
        """Give every coordinate its numbers: K times `... x S` (or `1`) of the experts, `... x S`
        (or `1`) of the merge.
        """
        experts: dict[str, Sequence[Tensor]] = {}
        merge: dict[str, Tensor] = {}
        for p in method.parameters:
            if p.choices is not None:
                continue
            default = torch.full((1,), float(p.default), dtype=torch.float64)
            if p.scope == "merge":
                merge[p.name] = self._spread(values[p.name]) if p.name in values else default
            elif p.name in values:
                experts[p.name] = self._spread(values[p.name]).unbind(-2)
            else:
                experts[p.name] = [default] * len(self._models)
        return experts, merge

    def _spread(self, grid: Tensor) -> Tensor:
        """Give every coordinate its block's value: `... x R x G` → `... x S`."""
        return grid[..., self._row, self._group]

    def _kept(self, method: Method, numbers: Mapping[str, Tensor]) -> Tensor:
        """Tell how far the coordinates survive trimming, `... x K x S` in [0, 1].

        Args:
            method: an operator that trims.
            numbers: parameter → `... x K x S` (or `K x 1`).
        """
        density = numbers["density"]
        if method.trim == "magnitude":
            gamma = numbers.get("gamma", torch.zeros(1, dtype=density.dtype))
            lost, reached = self._band(density, gamma)
            above, inside = (smooth_step(x, self._ranks, self._smoothing) for x in (lost, reached))
            return inside - above
        if method.trim == "ranked":
            # As in `tensors`: ranks do not matter where everything or nothing survives.
            half = torch.where((density > 0) & (density < 1), numbers["epsilon"], 0.0)
            density = (density + self._tilts * half).clamp(0, 1)
        return smooth_step(density, self._sample.uniforms, self._smoothing)

    def _band(self, density: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Tell between which fractions of the magnitudes, largest first, entries survive.

        A hard step is to agree with `thresholds.band`, which counts whole elements.
        """
        if self._smoothing > 0:
            lost = torch.minimum(gamma, 1 - density)
            return lost, lost + density
        n = self._sizes
        count = torch.where(density > 0, (density * n).floor().clamp(min=1), 0.0)
        dropped = torch.where(density > 0, torch.minimum((gamma * n).floor(), n - count), 0.0)
        return dropped / n, (dropped + count) / n

    def _rescale(self, kind: str, keep: Tensor, density: Tensor) -> Tensor:
        """Compute the survivors' factors, `... x K x S` (see `thresholds.rescale_factor`)."""
        if kind == "none":
            return torch.ones_like(keep)
        if kind == "l1":
            return self._l1_factors(keep)
        kept = density > 0
        return torch.where(kept, 1 / torch.where(kept, density, 1.0), 1.0)

    def _l1_factors(self, keep: Tensor) -> Tensor:
        """Compute l1 factors from sums over whole tensors, or from estimates over whole blocks."""
        size = (self._models - self._base).abs() * self._sample.importance
        zeros = torch.zeros(*keep.shape[:-1], int(self._normed.max()) + 1, dtype=torch.float64)
        before = zeros.index_add(-1, self._normed, size.expand_as(keep))
        after = zeros.index_add(-1, self._normed, size * keep)
        usable = torch.minimum(before, after) >= TINY_NORM
        factor = torch.where(usable, before / torch.where(usable, after, 1.0), 1.0)
        return factor[..., self._normed]

    @cached_property
    def _sizes(self) -> Tensor:
        """`S` numbers of elements of the tensors that hold the coordinates."""
        sizes = [self._sources.base.shape(name).numel() for name in self._names]
        return torch.tensor(sizes, dtype=torch.float64)[self._sample.tensor]

    @cached_property
    def _ranks(self) -> Tensor:
        """`K x S` smallest densities at which trimming by magnitude keeps the coordinates."""
        base = self._sources.base

        def ranks(expert: Checkpoint) -> Tensor:
            # Rounded as the merge ranks them: its ties are these.
            def size(name: str) -> Tensor:
                kind = ranked_as(base.dtype(name), expert.dtype(name))
                delta = expert.tensor(name).float() - base.tensor(name).float()
                return delta.abs().to(kind).float()

            return self._sample.ranks(size)

        return torch.stack([ranks(expert) for expert in self._sources.experts.values()])

    @cached_property
    def _tilts(self) -> Tensor:
        """`K x S` ranks of the coordinates within their rows, from -1 (the smallest) to 1."""
        experts = self._sources.experts

        def ranks(expert: str) -> Tensor:
            return self._sample.gather(lambda name: self._tables.ranks(expert, name))

        return torch.stack([ranks(expert) for expert in experts]) * (2 / RANK_STEPS) - 1

    @cached_property
    def _grams(self) -> Tensor:
        """`S x (K+1) x (K+1)` inner products of the tensors that hold the coordinates."""
        return torch.stack([self._tables.gram(n) for n in self._names])[self._sample.tensor]


def levelled(share: Tensor) -> Tensor:
    """Round as `masks.Window` does."""
    return (share * LEVELS).round().maximum((share > 0).to(share.dtype)) / LEVELS


def smooth_step(density: Tensor, position: Tensor, width: float) -> Tensor:
    """Tell how far trimming to `density` keeps elements at these positions.

    1 where the position is below the density, 0 where it is above, and a cubic in between. The
    half-width shrinks towards 0 and 1 (see `_NEARER`), so that density 0 keeps nothing, 1
    everything, and the mean over evenly spread positions is the density.

    Args:
        density: `... x K x S`
        position: `K x S` in [0, 1]
        width: half-width of the step.

    Returns:
        `... x K x S` in [0, 1]
    """
    hard = ((position <= density) & (density > 0)).to(density.dtype)
    half = (_NEARER * torch.minimum(density, 1 - density)).clamp(0, width)
    x = ((density - position) / torch.where(half > 0, half, 1.0)).clamp(-1, 1)
    return torch.where(half > 0, 0.5 + x * (3 - x * x) / 4, hard)
