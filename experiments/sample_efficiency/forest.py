"""ParEGO with a random forest: what SMAC does with several objectives (auto-merge-llm runs SMAC).

Knowles (2006): each candidate has its own weight on the simplex, and the augmented Chebyshev sum of
the normalised objectives is one cost. Hutter, Hoos and Leyton-Brown (2011): a forest predicts it,
its mean and variance are over the trees, and expected improvement is looked for among random points
and by local search from the best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.ensemble import RandomForestRegressor

from acquisition.draft import Draft
from acquisition.space_filling import fill_initial_design, fill_with_sobol
from acquisition.strategy import Observations, Proposal
from experiments.sample_efficiency.nearby import offer_nearby

Array = NDArray[np.float64]

AUGMENTATION = 0.05
"""Share of the plain sum in the Chebyshev sum (Knowles's ρ)."""
TREES, FEATURES, LEAF = 10, 5 / 6, 3
"""SMAC's: number of trees, share of the coordinates per split, least samples of a leaf."""
RANDOM, STARTS, NEIGHBOURS, STEPS, STEP = 1000, 10, 20, 10, 0.2
"""Random candidates; local searches, neighbours of each step, steps, and their deviation."""


@dataclass(frozen=True, kw_only=True)
class ForestParEGO:
    """ParEGO with a random forest; noise is not told, known objectives are like the others.

    A deviation of 0.2 per coordinate is SMAC's; like there, a neighbour differs in one coordinate.

    Attributes:
        initial: trials of the initial design.
    """

    initial: int = 10

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """The initial design, then the best found expected improvement, a weight per candidate."""
        draft = Draft(observations)
        fill_initial_design(draft, observations, min(q, self.initial - observations.count), seed)
        rng = np.random.default_rng((seed, observations.count))
        while len(draft) < q and len(observations.X) > 1:
            x = _candidate(observations.X.numpy(), observations.Y.numpy(), rng)
            if not offer_nearby(draft, torch.from_numpy(x), {"origin": "forest"}, seed):
                break
        fill_with_sobol(draft, q, seed)
        return draft.proposal()


def scalarise(Y: Array, weights: Array) -> Array:
    """Augmented Chebyshev costs, to be minimised, of `n x m` objectives that are maximised."""
    extent = np.ptp(Y, 0)
    lacks = weights * (Y.max(0) - Y) / np.where(extent > 0, extent, 1.0)
    costs: Array = lacks.max(1) + AUGMENTATION * lacks.sum(1)
    return costs


def _candidate(X: Array, Y: Array, rng: np.random.Generator) -> Array:
    """The best point for one fresh weight: `d`."""
    cost = scalarise(Y, rng.dirichlet(np.ones(Y.shape[1])))
    forest = RandomForestRegressor(
        TREES, max_features=FEATURES, min_samples_leaf=LEAF, random_state=int(rng.integers(2**31))
    ).fit(X, cost)

    def gain(points: Array) -> Array:
        return expected_improvement(forest, points, cost.min())

    found = np.concatenate([rng.random((RANDOM, X.shape[1])), X])
    values = gain(found)
    best = np.argsort(-values, kind="stable")[:STARTS]
    points, values = found[best], values[best]
    for _ in range(STEPS):
        around = np.concatenate([points[:, None], _neighbours(points, rng)], axis=1)
        gains = gain(around.reshape(-1, X.shape[1])).reshape(len(points), -1)
        climbed = gains.argmax(1)  # the point itself comes first: it stays where nothing is better
        rows = np.arange(len(points))
        points, values = around[rows, climbed], gains[rows, climbed]
    chosen: Array = points[values.argmax()]
    return chosen


def expected_improvement(forest: RandomForestRegressor, points: Array, least: float) -> Array:
    """Below the least cost so far, of a normal with the mean and the variance over the trees."""
    votes = np.stack([tree.predict(points) for tree in forest.estimators_])
    mean, deviation = votes.mean(0), votes.std(0)
    z = (least - mean) / np.where(deviation > 0, deviation, 1.0)
    spread = deviation * (z * norm.cdf(z) + norm.pdf(z))
    gains: Array = np.where(deviation > 0, spread, np.maximum(least - mean, 0.0))
    return gains


def _neighbours(points: Array, rng: np.random.Generator) -> Array:
    """`s x NEIGHBOURS x d`, each moved in one coordinate."""
    s, d = points.shape
    moved = np.repeat(points[:, None], NEIGHBOURS, axis=1)
    which = rng.integers(d, size=(s, NEIGHBOURS, 1))
    values = np.take_along_axis(moved, which, 2) + rng.normal(0, STEP, (s, NEIGHBOURS, 1))
    np.put_along_axis(moved, which, values.clip(0.0, 1.0), 2)
    return moved
