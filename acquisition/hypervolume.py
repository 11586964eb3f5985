"""Expected hypervolume improvement: reference point, acquisition function, its optimisation.

Up to four objectives are handled in closed form (`acquisition.sampled_front`), five and more by
BoTorch's qLogNParEGO with a fresh weight per candidate, because exact boxes grow too many
(Daulton et al. 2020, 2021; Ament et al. 2023; Knowles 2006). Everything is in the surrogate's
standardised units.

A point without a score (pending, failed, or chosen earlier in the same batch) joins the baseline:
the surrogate imagines its outcome, and only what a candidate adds beyond it counts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from botorch.acquisition.multi_objective.parego import qLogNParEGO
from botorch.exceptions.warnings import BadInitialCandidatesWarning, OptimizationWarning
from botorch.generation.gen import gen_candidates_scipy
from botorch.optim.initializers import initialize_q_batch
from botorch.sampling.get_sampler import get_sampler
from botorch.settings import validate_input_scaling
from botorch.utils.multi_objective.pareto import is_non_dominated
from botorch.utils.sampling import draw_sobol_samples
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from acquisition.boxes import MOST_OBJECTIVES
from acquisition.sampled_front import SampledFront
from acquisition.surrogates import Surrogate

Criterion = Literal["qlognehvi", "qlogehvi"]

RESTARTS = 4
RAW_SAMPLES = 128
MAX_ITERATIONS = 50
RUNNERS_UP = 16
MC_SAMPLES = 16
"""Samples of the scalarised acquisition."""

NADIR_MARGIN = 0.1
WORST_VALUE = -1e12


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Run BoTorch so that the same inputs give the same bits, and leave no trace outside.

    - Its random numbers come from a fork of torch's CPU generator, seeded here.
    - Warnings that are no news: constant outcomes, jitter for tied points, a flat acquisition, a
      line search that is tried again (a fit that fails for good still raises).
    - One thread: the tensors are small, and two threads that wait for each other on a busy machine
      took ten times longer; the number of threads could also change the bits.

    Not for two threads at once.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(),
            validate_input_scaling(False),
        ):
            warnings.simplefilter("ignore", NumericalWarning)
            warnings.simplefilter("ignore", BadInitialCandidatesWarning)
            warnings.simplefilter("ignore", OptimizationWarning)
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def feasible(Y: Tensor, constraints: tuple[Tensor, Tensor] | None) -> Tensor:
    """Which rows of `n x m` satisfy A y >= b: `n`, bool."""
    if constraints is None:
        return torch.ones(len(Y), dtype=torch.bool)
    A, b = constraints
    return (Y @ A.T - b >= 0).all(dim=-1)


def times_dominated(Y: Tensor) -> Tensor:
    """How many rows of `n x m` dominate each row: `n`; 0 on the front."""
    no_worse = (Y.unsqueeze(0) >= Y.unsqueeze(1)).all(dim=-1)
    better = (Y.unsqueeze(0) > Y.unsqueeze(1)).any(dim=-1)
    return (no_worse & better).sum(dim=-1)


def infer_reference(
    Y: Tensor, constraints: tuple[Tensor, Tensor] | None = None, of_front: bool = True
) -> Tensor:
    """Nadir of the observed front minus a tenth of its range (Ishibuchi et al. 2011).

    BoTorch's rule but for a range of 0, where one unit of Y stands for the range: with a margin of
    nothing no point could gain hypervolume.

    Args:
        Y: `n x m` observed objectives, n at least 1.
        constraints: if some rows are feasible, only those count.
        of_front: whether only the front counts, or all observations: what is worse than a young
            front in one objective may still be part of the front to come.

    Returns:
        `m`, in the units of Y.
    """
    ok = feasible(Y, constraints)
    candidates = Y[ok] if ok.any() else Y
    front = candidates[is_non_dominated(candidates, deduplicate=False)] if of_front else candidates
    nadir, ideal = front.amin(dim=0), front.amax(dim=0)
    spread = ideal - nadir
    return nadir - NADIR_MARGIN * torch.where(spread > 0, spread, torch.ones_like(spread))


def given_or(given: Tensor | None, inferred: Tensor) -> Tensor:
    """The given reference point, `m`; the inferred one where there is none, or a NaN."""
    return inferred if given is None else torch.where(given.isnan(), inferred, given)


def released_reference(Y: Tensor) -> Tensor:
    """Make the worst value of the first points worse: the reference point of the released MM-MO.

    Each coordinate is 0.9 times the minimum where that is positive, else 1.1 times.

    Args:
        Y: `n x m` raw objectives of the initial design.
    """
    worst = Y.amin(dim=0)
    return worst * torch.where(worst > 0, 0.9, 1.1)


@dataclass(frozen=True)
class Target:
    """What candidates are chosen for, all in standardised units.

    Attributes:
        surrogates: the fitted models, all of the same outcomes in the same units; a candidate's
            gain is averaged over them.
        X: `n x d` evaluated points.
        reference: `m` reference point.
        constraints: `(A, b)`, feasible where A z >= b, or None; each row bounds one objective from
            below.
        criterion: `qlognehvi` integrates over the noise of the front; `qlogehvi` takes the front of
            posterior means.
    """

    surrogates: tuple[Surrogate, ...]
    X: Tensor
    reference: Tensor
    constraints: tuple[Tensor, Tensor] | None
    criterion: Criterion = "qlognehvi"

    def gains(self, unanswered: Tensor) -> Gains:
        """What one point would gain besides `unanswered` (`u x d`).

        Draws from torch's generator: call within `reproducible`.
        """
        if len(self.reference) > MOST_OBJECTIVES:
            return Scalarised(self, unanswered)
        integrates = self.criterion == "qlognehvi"
        floor = floors(self.constraints, len(self.reference))
        fronts = (
            SampledFront.of(surrogate, self.X, self.reference, floor, integrates)
            for surrogate in self.surrogates
        )
        return Averaged(tuple(front.with_points(unanswered) for front in fronts))


class Gains(Protocol):
    """The value of one more point, and how it changes when a point is chosen."""

    def gain(self) -> Callable[[Tensor], Tensor]:
        """The function to maximise: `c x 1 x d` → `c`, on a logarithmic scale."""
        ...

    def with_points(self, X: Tensor) -> Gains:
        """Take `c x d` further points as chosen."""
        ...


@dataclass(frozen=True)
class Averaged:
    """The mean of the gains that several surrogates expect."""

    fronts: tuple[SampledFront, ...]

    def gain(self) -> Callable[[Tensor], Tensor]:
        """Logarithm of the mean of what the fronts' gains are the logarithms of."""
        gains = [front.gain() for front in self.fronts]

        def log_mean(X: Tensor) -> Tensor:
            return torch.stack([gain(X) for gain in gains]).logsumexp(0) - math.log(len(gains))

        return log_mean

    def with_points(self, X: Tensor) -> Averaged:
        """Take `c x d` further points as chosen."""
        return Averaged(tuple(front.with_points(X) for front in self.fronts))


@dataclass(frozen=True)
class Scalarised:
    """Five and more objectives: qLogNParEGO, its weight drawn anew for every candidate.

    Only the first surrogate is asked.
    """

    target: Target
    unanswered: Tensor

    def gain(self) -> Callable[[Tensor], Tensor]:
        """Draw a weight and build BoTorch's function for it."""
        target = self.target
        model, baseline = target.surrogates[0].model, torch.cat([target.X, self.unanswered])
        with torch.no_grad():
            posterior = model.posterior(target.X[:1])
        # No seed: get_sampler would give it to every objective of a list, and their errors would
        # move together. Drawn from the forked generator they are independent.
        sampler = get_sampler(posterior, torch.Size([MC_SAMPLES]))  # type: ignore[arg-type]
        return qLogNParEGO(
            model,
            baseline,
            sampler=sampler,
            constraints=violations(target.surrogates[0], target.constraints),
            prune_baseline=True,
        )

    def with_points(self, X: Tensor) -> Scalarised:
        """Take `c x d` further points as chosen."""
        return replace(self, unanswered=torch.cat([self.unanswered, X]))


def floors(constraints: tuple[Tensor, Tensor] | None, m: int) -> Tensor:
    """The least feasible value of each objective, `m`; −∞ where nothing bounds it.

    Raises:
        ValueError: a row of the constraints that is no lower bound of one objective.
    """
    least = torch.full((m,), -torch.inf, dtype=torch.float64)
    if constraints is None:
        return least
    for a, bound in zip(*constraints, strict=True):
        if (a != 0).sum() != 1 or a.amax() <= 0:
            raise ValueError(
                f"constraints: found the row {a.tolist()}, allowed: one positive entry"
            )
        k = int(a.argmax())
        least[k] = torch.maximum(least[k], bound / a[k])
    return least


def violations(
    surrogate: Surrogate, constraints: tuple[Tensor, Tensor] | None
) -> list[Callable[[Tensor], Tensor]] | None:
    """BoTorch's form of lower bounds: functions of the model's outcomes, negative where they hold.

    The model of an accuracy behind a link gives the link's u, so its bound is carried there, too.

    Args:
        surrogate: whose model's outcomes, `... x m`, are judged.
        constraints: as of `Target`.
    """
    if constraints is None:
        return None

    def violation(k: int, bound: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda outcomes: bound - outcomes[..., k]

    found = []
    for k, least in enumerate(floors(constraints, len(surrogate.choices))):
        if least.isfinite():
            link = surrogate.links[k]
            bound = least if link is None else link.forward(least)
            found.append(violation(k, bound))
    return found


def maximise(
    gain: Callable[[Tensor], Tensor],
    bounds: Tensor,
    extra_starts: Tensor,
    snap: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Maximise a gain over one point; return good snapped points in falling order of value.

    Sobol points and `extra_starts` compete for the starts of L-BFGS-B. Values are taken after
    snapping, so a choice is judged by what would be evaluated. Draws from torch's generator: call
    within `reproducible`.

    Args:
        gain: `c x 1 x d` → `c`.
        bounds: `2 x d` box within the unit cube.
        extra_starts: `r x d` points, clipped to the box; r may be 0.
        snap: as in `Observations.snap`.

    Returns:
        `c x d` points and `c` values.
    """
    raw = draw_sobol_samples(bounds, n=RAW_SAMPLES, q=1)
    extra = extra_starts.unsqueeze(1).clamp(bounds[0], bounds[1])
    raw = torch.cat([raw, extra])
    values = _values(gain, raw)
    starts, _ = initialize_q_batch(raw, values, RESTARTS)
    optima = _climb(gain, starts, bounds)
    runners_up = raw[values.topk(RUNNERS_UP).indices]
    finalists = snap(torch.cat([optima, runners_up]))
    values = _values(gain, finalists)
    order = torch.sort(values, descending=True, stable=True).indices
    return finalists[order].squeeze(1), values[order]


def _climb(gain: Callable[[Tensor], Tensor], starts: Tensor, bounds: Tensor) -> Tensor:
    """Ascend by L-BFGS-B from `r x 1 x d` starts; a line search that ends at a kink is no news."""
    # BoTorch forces this warning past every filter, so it is recorded and the others passed on.
    with warnings.catch_warnings(record=True) as caught:
        optima, _ = gen_candidates_scipy(
            starts,
            gain,  # type: ignore[arg-type]  # any function of tensors will do
            bounds[0],
            bounds[1],
            options={"maxiter": MAX_ITERATIONS},
        )
    for w in caught:
        if not issubclass(w.category, OptimizationWarning):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    return optima


def _values(gain: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
    """Evaluate at `c x 1 x d`; a value that is no number is the worst, though NaN sorts first."""
    with torch.no_grad():
        values: Tensor = gain(X)
    return values.nan_to_num(nan=WORST_VALUE, posinf=WORST_VALUE, neginf=WORST_VALUE)
