"""What is searched: merging-like responses, test problems and real merges, everything maximised.

Names: `merge6` has 6 coefficients, two accuracies and the sparsity objective; `merge12a3` three
accuracies, `merge6i1` another instance; `layers24` has coefficients of very unequal importance, and
`misled24`, too, but what is told of it is false.
`dtlz2`, `zdt1`, `vehicle` and `penicillin` are from BoTorch. `quickstart`, `encoder` and `digits`
are tables of real merges, with `-scores` without their sparsity objective. A problem depends on
nothing but its name, one that ends with `-resplit` also on the run's seed.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from botorch.test_functions.multi_objective import DTLZ2, ZDT1, Penicillin, VehicleSafety
from botorch.utils.transforms import unnormalize
from torch import Tensor

from acquisition.space_filling import sobol_points
from acquisition.strategy import KnownObjective

ITEMS = 1300
"""Items of a benchmark, unless a study says otherwise."""

EXPERTS = 3
FLOOR, RANGE = (0.22, 0.32), (0.35, 0.55)
PEAK = 2.0
"""Logit of an accuracy at its best point, without ripple."""
DEPTH = 2.0
"""Mean loss of logit over the cube, by the quadratic: with 2, Sobol reaches what it reached on the
problems of the first measurements (65 % and 54 % after 30 evaluations of 6 and 12 parameters)."""
RIPPLE, WAVES = 0.25, (1.5, 3.0)
OWN, OTHER = (0.45, 0.95), (0.05, 0.55)
"""Where the best coefficient of a task's own expert lies, and of the others."""

TAIL = 0.6
"""Standard deviation of the logarithm of a layer's task-vector norm, in `layersD`."""

NOISE = 0.01
"""Standard error of a test function at `ITEMS` items, as a share of its range over the cube."""


class Problem(ABC):
    """A function of the unit cube that is measured with error.

    Attributes:
        name: determines everything.
        dimension: d.
        reference: `m` reference point of the hypervolume.
        known: per objective its exact function, or None if it is only measured.
        anchors: `a x d` points that a user would try first; a may be 0.
        importance: as in `Observations`.
        items: of the benchmark that has the most; None: as many as are asked for.
        points: how many there are.
    """

    name: str
    dimension: int
    reference: Tensor
    known: tuple[KnownObjective | None, ...]
    anchors: Tensor
    importance: Tensor | None = None
    items: int | None = None
    points: float = math.inf

    @abstractmethod
    def truth(self, X: Tensor) -> Tensor:
        """Values without noise: `n x d` → `n x m`."""

    @abstractmethod
    def evaluate(
        self, X: Tensor, rng: np.random.Generator, items: int = ITEMS
    ) -> tuple[Tensor, Tensor]:
        """Measured values and their estimated variances, both `n x m`.

        For one point the items are the first of an order that the state of `rng` determines: more
        items from the same state begin with the same items, so a score can grow.
        """

    def correlations(
        self, X: Tensor, rng: np.random.Generator, items: Sequence[int]
    ) -> Tensor | None:
        """Correlations of the errors of points that answered the first n of the same items.

        Args:
            X: `n x d` points.
            rng: in the state from which `evaluate` ordered the items.
            items: how many each point answered, as for `evaluate`.

        Returns:
            `m x n x n`; None where all errors are independent.
        """
        return None

    def snap(self, X: Tensor, taken: Tensor) -> Tensor:
        """What would be evaluated of `... x d` points, where `t x d` points have been before."""
        return X

    def held_out(self, X: Tensor) -> Tensor | None:
        """Values on items that no search sees, `n x d` → `n x m`; None where there are none."""
        return None


@dataclass(frozen=True)
class Response:
    """One accuracy as a function of the coefficients.

    floor + range · σ(peak − (x − c)ᵀ A (x − c) + ripple · mean_i sin(2π w_i x_i + φ_i)).
    """

    floor: float
    range: float
    centre: Tensor
    A: Tensor
    waves: Tensor
    phases: Tensor
    peak: float = PEAK
    ripple: float = RIPPLE

    def __call__(self, X: Tensor) -> Tensor:
        """`n x d` → `n`."""
        offset = X - self.centre
        bowl = ((offset @ self.A) * offset).sum(-1)
        wave = torch.sin(2 * math.pi * self.waves * X + self.phases).mean(-1)
        return self.floor + self.range * torch.sigmoid(self.peak - bowl + self.ripple * wave)


@dataclass(frozen=True)
class MergingLike(Problem):
    """Accuracies of a merge with d coefficients, and minus the size of its delta, known exactly.

    Attributes:
        responses: one per accuracy.
        weights: `d` sizes of the task vectors' parts, of sum 1.
        experts: coefficient i belongs to expert i mod `experts`.
    """

    name: str
    responses: tuple[Response, ...]
    weights: Tensor
    experts: int = EXPERTS

    @property
    def importance(self) -> Tensor:
        """The sizes of the task vectors' parts, of mean 1."""
        return self.weights * self.dimension

    @property
    def dimension(self) -> int:
        """The number of coefficients."""
        return len(self.weights)

    @property
    def reference(self) -> Tensor:
        """The floor of each accuracy, and the delta of all coefficients at 1."""
        return torch.tensor([r.floor for r in self.responses] + [-1.0], dtype=torch.float64)

    @property
    def known(self) -> tuple[KnownObjective | None, ...]:
        """The sparsity objective, which comes last."""
        return (None,) * len(self.responses) + (self.sparsity,)

    @property
    def anchors(self) -> Tensor:
        """Each expert, their average, all at one half, all at 1, the base."""
        owner = torch.arange(self.dimension) % self.experts
        alone = [(owner == k).double() for k in range(self.experts)]
        equal = [torch.full_like(self.weights, v) for v in (1 / self.experts, 0.5, 1.0, 0.0)]
        return torch.stack(alone + equal)

    def sparsity(self, X: Tensor) -> Tensor:
        """Minus the weighted L1 norm: `... x d` → `...`."""
        return -(X.abs() @ self.weights)

    def truth(self, X: Tensor) -> Tensor:
        """Accuracies, then the sparsity objective."""
        return torch.stack([r(X) for r in self.responses] + [self.sparsity(X)], dim=-1)

    def evaluate(
        self, X: Tensor, rng: np.random.Generator, items: int = ITEMS
    ) -> tuple[Tensor, Tensor]:
        """Draw right and wrong answers; the variance is p(1 − p)/n of the smoothed share.

        The smoothing, (k + 1)/(n + 2), keeps 0 or n right answers from looking certain.
        """
        Y = self.truth(X)
        draws = torch.from_numpy(rng.random((len(X), items, len(self.responses))))
        right = (draws < Y[:, None, :-1]).sum(1)
        Y[:, :-1] = right / items
        p = (right + 1) / (items + 2)
        return Y, torch.cat([p * (1 - p) / items, torch.zeros_like(Y[:, -1:])], dim=-1)


def merging_like(name: str, d: int, accuracies: int, instance: int) -> MergingLike:
    """Draw a problem. Its curvature has full rank, d/2 strong directions and interactions."""
    rng = np.random.default_rng((d, accuracies, instance))
    experts = max(EXPERTS, accuracies)
    owner = np.arange(d) % experts
    responses = tuple(_response(rng, owner == k, np.ones(d)) for k in range(accuracies))
    weights = rng.uniform(0.5, 1.5, d)
    return MergingLike(name, responses, torch.from_numpy(weights / weights.sum()), experts)


def layer_wise(
    name: str, d: int, accuracies: int, instance: int, *, misled: bool = False
) -> MergingLike:
    """Draw a problem whose coefficients scale layers of very unequal task-vector norms.

    Norms are log-normal. An accuracy's curvature along a coefficient is what it is in
    `merging_like`, a factor e^N(0, 1) included, times the norm squared: a loss that is isotropic in
    the weights would have the square alone. So norms tell what matters, but not all of it; where
    `misled`, the curvature has the norms of other coefficients, and they tell nothing.
    """
    rng = np.random.default_rng((d, accuracies, instance, 1))
    experts = max(EXPERTS, accuracies)
    owner = np.arange(d) % experts
    weights = np.exp(rng.normal(0.0, TAIL, d))
    weights /= weights.sum()
    norms = rng.permutation(weights) if misled else weights
    responses = tuple(_response(rng, owner == k, norms * d) for k in range(accuracies))
    return MergingLike(name, responses, torch.from_numpy(weights), experts)


def _misled(name: str, d: int, accuracies: int, instance: int) -> MergingLike:
    return layer_wise(name, d, accuracies, instance, misled=True)


def _response(rng: np.random.Generator, own: np.ndarray, norms: np.ndarray) -> Response:
    d = len(own)
    centre = np.where(own, rng.uniform(*OWN, d), rng.uniform(*OTHER, d))
    mixing = np.eye(d) + 0.5 * rng.standard_normal((d, d)) / math.sqrt(d)
    A = mixing @ np.diag(np.exp(rng.normal(0.0, 1.0, d))) @ mixing.T
    A *= np.outer(norms, norms)
    # E (x − c)ᵀ A (x − c) over the cube, with variance 1/12 per coordinate
    shift = 0.5 - centre
    A *= DEPTH / (np.trace(A) / 12 + shift @ A @ shift)
    return Response(
        float(rng.uniform(*FLOOR)),
        float(rng.uniform(*RANGE)),
        torch.from_numpy(centre),
        torch.from_numpy(A),
        torch.from_numpy(rng.uniform(*WAVES, d)),
        torch.from_numpy(rng.uniform(0, 2 * math.pi, d)),
    )


class TestFunction(Problem):
    """A problem of BoTorch with normal noise of known variance; no objective is known.

    Args:
        reference: in the problem's own minimised units, if not BoTorch's.
    """

    def __init__(self, name: str, function: object, reference: float | None = None) -> None:
        self.name = name
        self._function = function
        self.dimension = function.dim
        m = function.num_objectives
        self.reference = (
            function.ref_point.double()
            if reference is None
            else torch.full((m,), -reference, dtype=torch.float64)
        )
        self.known = (None,) * m
        self.anchors = torch.empty(0, self.dimension, dtype=torch.float64)
        sample = self.truth(sobol_points(self.dimension, 1024, seed=0))
        self._deviation = NOISE * (sample.amax(0) - sample.amin(0))

    def truth(self, X: Tensor) -> Tensor:
        """The function of BoTorch, its signs turned."""
        bounds = self._function.bounds.double()
        return self._function.evaluate_true(unnormalize(X, bounds)) * -1.0

    def evaluate(
        self, X: Tensor, rng: np.random.Generator, items: int = ITEMS
    ) -> tuple[Tensor, Tensor]:
        """Standard errors are a hundredth of the range at 1,300 items and fall as 1/√items."""
        deviation = self._deviation * math.sqrt(ITEMS)
        noise = torch.from_numpy(rng.standard_normal((len(X), items, len(deviation)))).mean(1)
        variance = (deviation**2 / items).expand(len(X), -1).clone()
        return self.truth(X) + deviation * noise, variance


def open_problem(name: str, seed: int = 0) -> Problem:
    """Build the problem of that name; the seed is for `-resplit`.

    Raises:
        KeyError: there is none.
    """
    families = {"merge": merging_like, "layers": layer_wise, "misled": _misled}
    if found := re.fullmatch(rf"({'|'.join(families)})(\d+)(?:a(\d+))?(?:i(\d+))?", name):
        family, d, accuracies, instance = found.groups()
        return families[family](name, int(d), int(accuracies or 2), int(instance or 0))
    double = {"negate": True, "dtype": torch.float64}
    if name == "dtlz2":
        return TestFunction(name, DTLZ2(dim=6, num_objectives=3, **double))
    if name == "zdt1":
        # BoTorch's (11, 11) is so far away that everything reaches 99 %.
        return TestFunction(name, ZDT1(dim=6, num_objectives=2, **double), reference=1.1)
    if name == "vehicle":
        return TestFunction(name, VehicleSafety(**double))
    if name == "penicillin":
        return TestFunction(name, Penicillin(**double))
    from experiments.sample_efficiency.tabulated import open_table

    return open_table(name, seed)
