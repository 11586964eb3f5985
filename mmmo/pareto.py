"""The Pareto set of a campaign: front, hypervolume, knee, and choice by preference.

Values are turned so that larger is better; ties are kept, because benchmarks of a few hundred items
tie often and two recipes with the same scores are two choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmmo.errors import UserError
from mmmo.records import Objective, Trial

Array = NDArray[np.float64]


def non_dominated(Y: Array) -> NDArray[np.bool_]:
    """Which rows of `n x m` (maximised) no other row dominates; equal rows are all kept."""
    better = (Y[:, None, :] >= Y[None, :, :]).all(-1) & (Y[:, None, :] > Y[None, :, :]).any(-1)
    return np.logical_not(better.any(0))


def reference_point(Y: Array, given: Sequence[float | None]) -> Array:
    """What is given; elsewhere the front's worst value less a tenth of the front's range.

    The rule of Ishibuchi et al. (2011) that BoTorch's `infer_reference_point` follows. A front
    without extent in an objective takes a tenth of the value's size instead.
    """
    front = Y[non_dominated(Y)]
    low, extent = front.min(0), np.ptp(front, 0)
    margin = 0.1 * np.where(extent > 0, extent, np.maximum(np.abs(low), 1e-6))
    return np.array(
        [inferred if g is None else g for g, inferred in zip(given, low - margin, strict=True)]
    )


def hypervolume(Y: Array, reference: Array) -> float:
    """Lebesgue measure that the rows of `n x m` (maximised) dominate above `m` reference values."""
    import moocore

    if not len(Y):
        return 0.0
    return float(moocore.hypervolume(Y, ref=reference, maximise=True))


@dataclass(frozen=True)
class ParetoSet:
    """A view over the completed trials that meet all constraints, in the order of completion."""

    trials: tuple[Trial, ...]
    objectives: tuple[Objective, ...]

    @cached_property
    def Y(self) -> Array:
        """`n x m` values, larger is better."""
        rows = [[o.sign * t.objective(o).value for o in self.objectives] for t in self.trials]
        return np.array(rows, dtype=float).reshape(len(rows), len(self.objectives))

    @cached_property
    def reference(self) -> Array:
        """`m` reference point, larger is better: the user's, or inferred from the front."""
        given = [None if o.reference is None else o.sign * o.reference for o in self.objectives]
        return reference_point(self.Y, given)

    @cached_property
    def front(self) -> tuple[Trial, ...]:
        """The trials that no other dominates, by number."""
        if not self.trials:
            return ()
        keep = non_dominated(self.Y)
        return tuple(sorted((t for t, k in zip(self.trials, keep, strict=True) if k), key=_number))

    def hypervolume(self, numbers: Sequence[int] | None = None) -> float:
        """Of all trials, or of those with these numbers."""
        if not self.trials:
            return 0.0
        chosen = [i for i, t in enumerate(self.trials) if numbers is None or t.number in numbers]
        return hypervolume(self.Y[chosen], self.reference)

    @cached_property
    def trace(self) -> list[float]:
        """Hypervolume after each trial, all with today's reference point."""
        return [hypervolume(self.Y[: i + 1], self.reference) for i in range(len(self.trials))]

    @property
    def knee(self) -> Trial:
        """The front's trial nearest to the ideal point, every objective scaled to the front."""
        return min(self.front, key=lambda t: float(np.linalg.norm(1 - self._scaled(t))))

    def choose(self, preference: Mapping[str, float]) -> Trial:
        """The best compromise for weights over objectives.

        The augmented Tchebycheff distance to the ideal point, max_i w_i (1 - y_i) + 0.01 times the
        sum, on values scaled to the front: it can reach every point of a front, concave or not.

        Raises:
            UserError: a name that is no objective, a weight that is no positive number, no trials.
        """
        names = [o.name for o in self.objectives]
        for name, weight in preference.items():
            if name not in names:
                raise UserError(f"--prefer: {name!r} is no objective; allowed: {', '.join(names)}")
            if not (np.isfinite(weight) and weight >= 0):
                raise UserError(f"--prefer: {name}={weight}: a weight is a number of 0 or more")
        weights = np.array([preference.get(name, 0.0) for name in names])
        if not weights.max() > 0:
            raise UserError("--prefer: at least one weight must be above 0")
        # Not by their sum, which is infinite if they are huge.
        weights = weights / weights.max()

        def loss(trial: Trial) -> float:
            distance = weights * (1 - self._scaled(trial))
            return float(distance.max() + 0.01 * distance.sum())

        return min(self.front, key=loss)

    def _scaled(self, trial: Trial) -> Array:
        """`m` values of a trial, 0 = worst and 1 = best on the front."""
        front = np.array(
            [[o.sign * t.objective(o).value for o in self.objectives] for t in self.front]
        )
        low, extent = front.min(0), np.ptp(front, 0)
        y = np.array([o.sign * trial.objective(o).value for o in self.objectives])
        scaled: Array = np.where(extent > 0, (y - low) / np.where(extent > 0, extent, 1), 1.0)
        return scaled


def _number(trial: Trial) -> int:
    return trial.number
