"""Expected hypervolume improvement, of however many objectives.

Up to four objectives are handled in closed form (`acquisition.sampled_front`), five and more by
BoTorch's qLogNParEGO with a fresh weight per candidate, because exact boxes grow too many
(Daulton et al. 2020, 2021; Ament et al. 2023; Knowles 2006). Everything is in the surrogate's
standardised units.

A point without a score (pending, failed, or chosen earlier in the same batch) joins the baseline:
the surrogate imagines its outcome, and only what a candidate adds beyond it counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from botorch.acquisition.multi_objective.parego import qLogNParEGO
from botorch.sampling.get_sampler import get_sampler
from torch import Tensor

from acquisition.boxes import MOST_OBJECTIVES
from acquisition.fronts import floors
from acquisition.sampled_front import SampledFront
from acquisition.surrogates import Surrogate

Criterion = Literal["qlognehvi", "qlogehvi"]

MC_SAMPLES = 16
"""Samples of the scalarised acquisition."""


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
