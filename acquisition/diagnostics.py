"""Whether the surrogate can be trusted, and what it has learnt: figures for a person to read.

Every figure describes the fitted model as the search used it and costs no evaluation: how well each
observation is predicted from all others, with hyperparameters as they are, whether the errors are
as large as the model says, and how much each coordinate moves the prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from acquisition.measured import MeasuredGP
from acquisition.outcomes import Link
from acquisition.posterior import Process
from acquisition.space_filling import sobol_points
from acquisition.strategy import Observations
from acquisition.surrogates import Surrogate

Summary = dict[str, Any]
"""JSON-able; see `summary`."""

LEAST_OBSERVATIONS = 4
"""With fewer, leave-one-out predictions say nothing."""

EQUAL = 1e-9
"""Standardised observations whose standard deviation is no larger are of a constant objective."""

BASE_POINTS = 256
"""Points at which the importance moves every coordinate."""

CENTRAL_50, CENTRAL_95 = 0.6744897501960817, 1.959963984540054
"""Half-widths of the intervals that hold 50 % and 95 % of a standard normal variable."""


def summary(surrogate: Surrogate, observations: Observations, gain: float | None) -> Summary:
    """What a proposal's `summary` holds, JSON-able.

    Args:
        surrogate: fitted to these observations.
        observations: their `names` name the coordinates, x0, x1, … where there are none.
        gain: expected hypervolume gain of the best candidate as a share of the present
            hypervolume; None where it is not known.

    Returns:
        `gain`, `observations` (how many) and `objectives`: for each, in their order,
        `{"exact": True}` where it is known and not modelled, or else `r2`; `coverage50`,
        `coverage95` and `rms_z` as `calibration` gives them; `importance`: name of a coordinate →
        its share. The first four are None where nothing can be judged: fewer than four
        observations, or all equal.
    """
    names = observations.names or tuple(f"x{i}" for i in range(observations.X.shape[-1]))
    described: list[dict[str, Any]] = []
    for k in range(observations.Y.shape[-1]):
        if k not in surrogate.modelled:
            described.append({"exact": True})
            continue
        gp, link = cast(MeasuredGP, surrogate.model.models[k]), surrogate.links[k]
        median = partial(_median, surrogate.processes[k], link)
        shares = importance(median, len(names), observations.snap)
        shared = dict(zip(names, shares.tolist(), strict=True))
        described.append(_judged(gp, link) | {"importance": shared})
    return {"objectives": described, "observations": len(observations.X), "gain": gain}


def leave_one_out(covariance: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
    """Predict each observation of a Gaussian process from all the others.

    Rasmussen & Williams (2006), equation 5.12: with covariance K and r = y − mean, leaving i out
    errs by [K⁻¹ r]_i / [K⁻¹]_ii, with variance 1 / [K⁻¹]_ii. Hyperparameters stay as they are.

    Args:
        covariance: `n x n` covariance of the observations, noise included.
        residuals: `n` observations minus prior means.

    Returns:
        `n` errors, observed minus predicted, and their `n` variances, noise included.

    Raises:
        NotPSDError: the covariance is not positive definite.
    """
    inverse = torch.cholesky_inverse(psd_safe_cholesky(covariance))
    variances = 1.0 / inverse.diagonal()
    return (inverse @ residuals) * variances, variances


def r_squared(observed: Tensor, errors: Tensor) -> float:
    """1 − Σ error² / Σ (observed − mean)²: below 0, the mean of all predicts better.

    Args:
        observed: `n` values that are not all equal.
        errors: `n`, observed minus predicted.
    """
    spread = (observed - observed.mean()).square().sum()
    return float(1 - errors.square().sum() / spread)


def calibration(errors: Tensor, variances: Tensor) -> dict[str, float]:
    """Judge `n` errors by their `n` predicted variances; z = error / standard deviation.

    Returns:
        `coverage50` and `coverage95`, the shares of |z| within the central 50 % and 95 % of a
        normal distribution, and `rms_z`, the root mean square of z: 1 is calibrated, above it the
        model is too sure.
    """
    z = errors / variances.sqrt()
    return {
        "coverage50": float((z.abs() <= CENTRAL_50).double().mean()),
        "coverage95": float((z.abs() <= CENTRAL_95).double().mean()),
        "rms_z": float(z.square().mean().sqrt()),
    }


def importance(
    function: Callable[[Tensor], Tensor], d: int, snap: Callable[[Tensor], Tensor] = lambda X: X
) -> Tensor:
    """How much each coordinate moves a function over the unit cube.

    Total Sobol' indices, divided by their sum. A coordinate's total index is the part of the
    variance that remains when all others are known: its main effect and all its interactions.
    Estimated as Σ_j (f(A_j) − f(A_j with coordinate i of B_j))², A and B the halves of one Sobol
    design of 2d coordinates: Jansen (1999), doi 10.1016/S0010-4655(98)00154-4; Saltelli et al.
    (2010), doi 10.1016/j.cpc.2009.09.018, table 2 (f). The factor 1 / (2 N Var f) falls out.

    Args:
        function: `... x d` points → `...` values.
        d: number of coordinates, at least 1.
        snap: maps points to those that would be evaluated, so that a choice moves as a whole.

    Returns:
        `d` shares that sum to 1, or all 0 where nothing moves the function.
    """
    A, B = sobol_points(2 * d, BASE_POINTS, seed=0).tensor_split(2, dim=-1)
    start = function(snap(A))
    moved = torch.empty_like(A[0])
    for i in range(d):
        X = A.clone()
        X[:, i] = B[:, i]
        moved[i] = (function(snap(X)) - start).square().sum()
    total = moved.sum()
    return moved / total if total > 0 else moved


def _judged(gp: MeasuredGP, link: Link | None) -> dict[str, float | None]:
    """Leave-one-out R², of outcomes, and calibration, of what the process models."""
    u: Tensor = gp.train_targets
    if len(u) < LEAST_OBSERVATIONS or u.std() <= EQUAL:
        return dict.fromkeys(("r2", "coverage50", "coverage95", "rms_z"))
    with torch.no_grad():
        errors, variances = leave_one_out(*gp.measured())
    observed, predicted = _outcome(u, link), _outcome(u - errors, link)
    r2 = r_squared(observed, observed - predicted)
    return {"r2": r2, **calibration(errors, variances)}


def _median(process: Process, link: Link | None, X: Tensor) -> Tensor:
    """Posterior medians of outcomes at `b x d` points, `b`."""
    with torch.no_grad():
        return _outcome(process.means(X).squeeze(-1), link)


def _outcome(u: Tensor, link: Link | None) -> Tensor:
    """What the process models → standardised outcomes."""
    return u if link is None else link.inverse(u)
