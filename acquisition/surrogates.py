"""What is believed of the objectives: a Gaussian process per score, exact functions as they are.

Outcomes are standardised here, once, and nowhere else: models, reference point and constraints all
live in units of standard deviations, so they cannot disagree (the released MM-MO did).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from botorch.exceptions.errors import InputDataError, ModelFittingError, OptimizationGradientError
from botorch.fit import fit_gpytorch_mll
from botorch.models.gp_regression import SingleTaskGP
from botorch.models.model import ModelList
from botorch.models.model_list_gp_regression import ModelListGP
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from acquisition.sparsity import exact_model
from acquisition.strategy import KnownObjective

NUMERICAL_ERRORS = (
    InputDataError,
    ModelFittingError,
    NanError,
    NotPSDError,
    OptimizationGradientError,
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]
)
"""What a fit or an optimisation raises when the numbers, not the program, are at fault."""

MIN_NOISE = 1e-6
"""Least variance of a measurement in standardised units; below it GPyTorch would warn and clamp."""

RELATIVE_SPREAD = 1e-9
"""A column whose standard deviation is below this share of its magnitude is constant."""


@dataclass(frozen=True)
class OutcomeScale:
    """The affine map from raw objectives to standardised ones: z = (y − shift) / scale.

    Attributes:
        shift: `m` means.
        scale: `m` standard deviations; 1 where the objective is constant or seen once.
    """

    shift: Tensor
    scale: Tensor

    @classmethod
    def of(cls, Y: Tensor) -> OutcomeScale:
        """Mean and standard deviation of the columns of `n x m` observations, n at least 1."""
        shift = Y.mean(dim=0)
        scale = Y.std(dim=0) if len(Y) > 1 else torch.zeros_like(shift)
        constant = scale <= RELATIVE_SPREAD * shift.abs().clamp_min(RELATIVE_SPREAD)
        return cls(shift, torch.where(constant, torch.ones_like(scale), scale))

    def standardise(self, Y: Tensor) -> Tensor:
        """`... x m` raw outcomes → standardised ones."""
        return (Y - self.shift) / self.scale

    def constraints(self, A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Rewrite A y >= b (`c x m`, `c`) for standardised z, each row scaled to unit length.

        The smoothed feasibility of BoTorch has one temperature for all rows, hence the length.
        """
        A_z, b_z = A * self.scale, b - A @ self.shift
        length = A_z.norm(dim=-1)
        length = torch.where(length > 0, length, torch.ones_like(length))
        return A_z / length.unsqueeze(-1), b_z / length


@dataclass(frozen=True)
class Surrogate:
    """Models of all m objectives in their order, in standardised units.

    Attributes:
        model: its posterior has m outcomes; known ones have variance 0.
        modelled: the columns that are Gaussian processes.
        scale: from raw to standardised outcomes.
    """

    model: ModelList
    modelled: tuple[int, ...]
    scale: OutcomeScale

    def mean(self, X: Tensor) -> Tensor:
        """Posterior means of all objectives: `... x d` → `... x m`."""
        with torch.no_grad():
            mean: Tensor = self.model.posterior(X).mean  # type: ignore[attr-defined]
        return mean

    def covariance(self, X: Tensor) -> Tensor:
        """Posterior covariances at `c x d` points: `k x c x c` for the k modelled objectives."""
        if not self.modelled:
            return X.new_zeros(0, len(X), len(X))
        posteriors = []
        with torch.no_grad():
            for k in self.modelled:
                posteriors.append(self.model.models[k].posterior(X))  # type: ignore[operator]
        return torch.stack([p.distribution.covariance_matrix for p in posteriors])


def fit_surrogate(
    X: Tensor, Y: Tensor, Yvar: Tensor | None, known: tuple[KnownObjective | None, ...]
) -> Surrogate:
    """Fit one Gaussian process per objective that is not known.

    BoTorch's default kernel and priors: squared exponential with a length scale per coordinate
    whose prior grows with √d (Hvarfner et al. 2024).

    Args:
        X: `n x d` evaluated points, n at least 2.
        Y: `n x m` raw objectives.
        Yvar: `n x m` raw variances of the measurements; None to infer one variance per objective.
        known: m entries: an exact function, or None.

    Raises:
        one of `NUMERICAL_ERRORS`: the fit did not succeed.
    """
    scale = OutcomeScale.of(Y)
    Z = scale.standardise(Y)
    if not Z.isfinite().all():
        raise InputDataError("scores overflow when standardised")
    noise = None if Yvar is None else (Yvar / scale.scale**2).clamp_min(MIN_NOISE)
    models = [
        _fit_gp(X, Z[:, [k]], None if noise is None else noise[:, [k]])
        if objective is None
        else exact_model(objective, scale.shift[k], scale.scale[k])
        for k, objective in enumerate(known)
    ]
    modelled = tuple(k for k, objective in enumerate(known) if objective is None)
    # ModelListGP has one joint posterior, which BoTorch samples better; it takes only processes.
    together: type[ModelList] = ModelListGP if len(modelled) == len(known) else ModelList
    return Surrogate(together(*models), modelled, scale)


def _fit_gp(X: Tensor, z: Tensor, noise: Tensor | None) -> SingleTaskGP:
    """Maximise the marginal likelihood of one standardised objective (`n x 1`)."""
    # outcome_transform=None: SingleTaskGP would standardise a second time by default.
    gp = SingleTaskGP(X, z, noise, outcome_transform=None)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(gp.likelihood, gp))
    gp.eval()
    return gp
