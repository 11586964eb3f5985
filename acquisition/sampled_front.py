"""What is chosen so far as the surrogate imagines it, and what one more point would add.

A `SampledFront` holds sampled outcomes of the points that may be best and of all that have no score
(pending, failed, chosen earlier in the same batch). It grows by a point with one row of a Cholesky
factor, so a batch costs little more than its single candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from botorch.utils.multi_objective.pareto import is_non_dominated
from botorch.utils.sampling import draw_sobol_normal_samples
from torch import Tensor

from acquisition.improvement import Boxes, log_improvement
from acquisition.outcomes import Link
from acquisition.posterior import LEAST_VARIANCE, Process
from acquisition.surrogates import Surrogate

SAMPLES = 16
PRUNING_SAMPLES = 128
MAX_BASELINE = 128
"""More points of the present front than this are not imagined: the least likely best are left."""

KNOWN_DEVIATION = 1e-3
"""A known objective's part in the gain is smoothed by this many standard deviations of it, so that
the logarithm has a slope where there is no gain."""

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SampledFront:
    """Imagined outcomes, in standardised units, and the processes given them.

    Attributes:
        parts: per objective its process, or the exact function of a known one.
        links: per objective the link of its process, or None.
        outcomes: `s x n x m`.
        reference: `m` reference point of the hypervolume.
        floor: `m`, the least value of a feasible outcome; −∞ without a constraint.
        integrates: whether the points are sampled, or their posterior means are taken for them.
    """

    parts: tuple[Process | Function, ...]
    links: tuple[Link | None, ...]
    outcomes: Tensor
    reference: Tensor
    floor: Tensor
    integrates: bool = True

    @classmethod
    def of(
        cls, surrogate: Surrogate, X: Tensor, reference: Tensor, floor: Tensor, integrates: bool
    ) -> SampledFront:
        """Imagine what may be best among `n x d` evaluated points.

        Draws from torch's generator: call within `reproducible`.
        """
        parts = tuple(
            surrogate.processes[k] if k in surrogate.modelled else _exact(model)
            for k, model in enumerate(surrogate.model.models)
        )
        empty = X.new_empty(SAMPLES if integrates else 1, 0, len(parts))
        front = cls(parts, surrogate.links, empty, reference, floor, integrates)
        return front.with_points(front._best(X) if integrates else X)

    def with_points(self, X: Tensor) -> SampledFront:
        """Imagine `c x d` further points. Draws from torch's generator."""
        if len(X) == 0:
            return self
        parts, columns = [], []
        draws = self._draws(len(self.outcomes), len(X))
        for part, link, numbers in zip(self.parts, self.links, draws, strict=True):
            after, outcomes = self._imagined(part, link, X, numbers)
            parts.append(after)
            columns.append(outcomes)
        new = torch.stack(columns, dim=-1)
        return replace(self, parts=tuple(parts), outcomes=torch.cat([self.outcomes, new], dim=1))

    def _imagined(
        self, part: Process | Function, link: Link | None, X: Tensor, draws: Tensor
    ) -> tuple[Process | Function, Tensor]:
        """One objective given its outcomes at X, and these, `s x c`."""
        with torch.no_grad():
            if not isinstance(part, Process):
                return part, part(X).expand(len(draws), -1)
            if not self.integrates:
                return part, _accuracy(link, *part.moments(X))[0].T
            after, outcomes = part.imagined(X, draws)
            return after, outcomes if link is None else link.inverse(outcomes)

    def gain(self) -> Function:
        """Log of the expected hypervolume improvement of one point: `c x 1 x d` → `c`."""
        counted = (self.outcomes >= self.floor).all(dim=-1)
        boxes = Boxes.above(self.outcomes, counted, self.reference)

        def log_gain(X: Tensor) -> Tensor:
            mean, sigma = self.moments(X.squeeze(-2))
            return log_improvement(mean, sigma, boxes, self.floor)

        return log_gain

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Of each objective at single points: means and standard deviations, `c x s x m` each.

        An accuracy behind a link is taken to be normal, of its own two moments.
        """
        means, deviations = [], []
        shape = (len(X), len(self.outcomes))
        for part, link in zip(self.parts, self.links, strict=True):
            if isinstance(part, Process):
                mean, variance = _accuracy(link, *part.moments(X))
                means.append(mean.expand(shape))
                deviations.append(variance.sqrt().expand(shape))
            else:
                value = part(X).unsqueeze(-1).expand(shape)
                means.append(value)
                deviations.append(torch.full_like(value, KNOWN_DEVIATION))
        return torch.stack(means, dim=-1), torch.stack(deviations, dim=-1)

    def _best(self, X: Tensor) -> Tensor:
        """Those of `n x d` points that are non-dominated in some sample, the most frequent ones."""
        samples = replace(self, outcomes=X.new_empty(PRUNING_SAMPLES, 0, len(self.parts)))
        outcomes = samples.with_points(X).outcomes
        ok = (outcomes >= self.floor).all(dim=-1) & (outcomes > self.reference).all(dim=-1)
        worst = torch.where(ok.unsqueeze(-1), outcomes, outcomes.amin() - 1)
        best = is_non_dominated(worst, deduplicate=False) & ok
        often = best.sum(dim=0)
        order = torch.sort(often, descending=True, stable=True).indices[:MAX_BASELINE]
        return X[order[often[order] > 0]]

    def _draws(self, samples: int, points: int) -> Sequence[Tensor]:
        """Standard normal numbers, `s x points` for each objective, spread evenly (Sobol)."""
        seed = int(torch.randint(2**31 - 1, (1,)))
        drawn = draw_sobol_normal_samples(
            points * len(self.parts), samples, dtype=torch.float64, seed=seed
        )
        return drawn.reshape(samples, len(self.parts), points).unbind(dim=1)


def _accuracy(link: Link | None, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of the standardised outcome: `c x s` means and `c` variances of its process."""
    if link is None:
        return mean, variance.unsqueeze(-1)
    mean, variance = link.moments(mean, variance.unsqueeze(-1).expand_as(mean))
    return mean, variance.clamp_min(LEAST_VARIANCE)


def _exact(model: object) -> Function:
    def value(X: Tensor) -> Tensor:
        column: Tensor = model.forward(X)  # type: ignore[attr-defined]
        return column.squeeze(-1)

    return value
