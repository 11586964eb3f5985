"""What is believed of the objectives: a Gaussian process per score, exact functions as they are.

Outcomes are standardised here, once, and nowhere else: models, reference point and constraints all
live in units of standard deviations, so they cannot disagree (the released MM-MO did).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from math import inf, pi
from typing import Literal

import torch
from botorch.exceptions.errors import InputDataError, ModelFittingError, OptimizationGradientError
from botorch.models.gp_regression import SingleTaskGP
from botorch.models.map_saas import get_mean_module_with_normal_prior
from botorch.models.model import Model, ModelList
from botorch.models.model_list_gp_regression import ModelListGP
from botorch.settings import validate_input_scaling
from gpytorch.kernels import Kernel
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from acquisition.fitting import fit_hyperparameters
from acquisition.kernels import additive_saas, concentrated, quadratic, squared_exponential
from acquisition.outcomes import Link, OutcomeScale
from acquisition.sparsity import exact_model
from acquisition.strategy import KnownObjective

Kind = Literal["gp", "concentrated", "quadratic", "additive_saas"]
SurrogateRule = Literal["gp", "concentrated", "quadratic", "additive_saas", "auto"]
LinkRule = Literal["off", "logit", "auto"]

KERNELS: Mapping[Kind, Callable[[int, Tensor], Kernel]] = {
    "gp": squared_exponential,
    "concentrated": concentrated,
    "quadratic": quadratic,
    "additive_saas": additive_saas,
}

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

IMPORTANCE_STRENGTH = 0.5
"""1 would believe it fully; a half wins about as much where curvature follows the importance, and
loses less where it does not."""

COMPARED: tuple[Kind, ...] = ("concentrated", "quadratic")
"""What `auto` chooses from, the plainest first. On merging-like responses `gp` predicted no better
than the first with few points, and additive SAAS, which takes ten times longer to fit, worse."""

FOLDS = 4
"""Parts of the data that are predicted from the rest, with hyperparameters of their own. Leaving
one out in closed form would keep those of all data, and that flatters a surrogate the more the more
length scales it has."""

MARGIN = 2.0
"""Nats of log density, over all data, by which another surrogate must beat the plainest."""


@dataclass(frozen=True)
class Choice:
    """Which surrogate an objective has.

    Attributes:
        kind: its covariance function.
        link: what its process models, if not the standardised outcome itself.
    """

    kind: Kind
    link: Link | None


@dataclass(frozen=True)
class Surrogate:
    """Models of all m objectives in their order.

    Attributes:
        model: its posterior has m outcomes; known ones have variance 0. In standardised units,
            but for an objective with a link: there in those of the link's u.
        modelled: the columns that are Gaussian processes.
        scale: from raw to standardised outcomes.
        choices: per objective the surrogate it has; None where it is known.
    """

    model: ModelList
    modelled: tuple[int, ...]
    scale: OutcomeScale
    choices: tuple[Choice | None, ...]

    @property
    def links(self) -> tuple[Link | None, ...]:
        """Per objective its link, or None where the model is of the standardised outcome."""
        return tuple(None if choice is None else choice.link for choice in self.choices)

    def mean(self, X: Tensor) -> Tensor:
        """Posterior means of all objectives, standardised: `... x d` → `... x m`."""
        with torch.no_grad():
            posterior = self.model.posterior(X)
            mean, variance = posterior.mean, posterior.variance  # type: ignore[attr-defined]
        columns = [
            mean[..., k] if link is None else link.moments(mean[..., k], variance[..., k])[0]
            for k, link in enumerate(self.links)
        ]
        return torch.stack(columns, dim=-1)

    def covariance(self, X: Tensor) -> Tensor:
        """Posterior covariances at `c x d` points: `k x c x c` for the k modelled objectives.

        In the units of the model.
        """
        if not self.modelled:
            return X.new_zeros(0, len(X), len(X))
        posteriors = []
        with torch.no_grad():
            for k in self.modelled:
                posteriors.append(self.model.models[k].posterior(X))  # type: ignore[operator]
        return torch.stack([p.distribution.covariance_matrix for p in posteriors])


def fit_surrogate(  # noqa: PLR0913  (data, then three switches by name)
    X: Tensor,
    Y: Tensor,
    Yvar: Tensor | None,
    known: tuple[KnownObjective | None, ...],
    *,
    kind: SurrogateRule = "gp",
    link: LinkRule = "off",
    importance: Tensor | None = None,
) -> Surrogate:
    """Fit one Gaussian process per objective that is not known.

    Args:
        X: `n x d` evaluated points, n at least 2.
        Y: `n x m` raw objectives.
        Yvar: `n x m` raw variances of the measurements; None to infer one variance per objective.
        known: m entries: an exact function, or None.
        kind: `gp`: squared exponential with BoTorch's priors; `concentrated`: the same with length
            scales that differ less; `quadratic`: a Bayesian quadratic and a squared exponential for
            the rest; `additive_saas`: few coordinates matter; `auto`: per objective the one of
            `COMPARED` that best predicts left-out data, the first unless another wins by `MARGIN`.
        link: `logit`: objectives whose values all lie in [0, 1], and differ, are modelled by their
            logit, noise by the delta method; `auto`: where that predicts better, judged alike.
        importance: `d` positive sizes of what each coordinate moves, of mean 1: the prior of
            length scale i is divided by importance i to the power `IMPORTANCE_STRENGTH`. None: all
            alike.

    Raises:
        one of `NUMERICAL_ERRORS`: the fit did not succeed.
    """
    scale = OutcomeScale.of(Y)
    Z = scale.standardise(Y)
    if not Z.isfinite().all():
        raise InputDataError("scores overflow when standardised")
    noise = None if Yvar is None else Yvar / scale.scale**2
    weights = torch.ones_like(X[0]) if importance is None else importance**IMPORTANCE_STRENGTH
    models: list[Model] = []
    choices: list[Choice | None] = []
    for k, objective in enumerate(known):
        if objective is None:
            links = _links(link, Y[:, k], OutcomeScale(scale.shift[k], scale.scale[k]))
            task = _Task(X, Z[:, k], None if noise is None else noise[:, k], weights)
            choice = _choose(task, COMPARED if kind == "auto" else (kind,), links)
            models.append(task.fit(choice))
            choices.append(choice)
        else:
            models.append(exact_model(objective, scale.shift[k], scale.scale[k]))
            choices.append(None)
    modelled = tuple(k for k, objective in enumerate(known) if objective is None)
    # ModelListGP has one joint posterior, which BoTorch samples better; it takes only processes.
    together: type[ModelList] = ModelListGP if len(modelled) == len(known) else ModelList
    return Surrogate(together(*models), modelled, scale, tuple(choices))


def _links(rule: LinkRule, y: Tensor, outcome: OutcomeScale) -> tuple[Link | None, ...]:
    """The links to compare for `n` raw values, the plainest first."""
    if rule == "off" or y.amin() < 0 or y.amax() > 1 or y.amin() == y.amax():
        return (None,)
    logit = Link.of(y, outcome)
    return (logit,) if rule == "logit" else (None, logit)


@dataclass(frozen=True)
class _Task:
    """One objective's data: `n x d` points, `n` standardised values and noise, `d` importances."""

    X: Tensor
    z: Tensor
    noise: Tensor | None
    importance: Tensor

    def fit(self, choice: Choice) -> SingleTaskGP:
        """Maximise the posterior density of the hyperparameters."""
        link, noise, d = choice.link, self.noise, self.X.shape[-1]
        if noise is not None and link is not None:
            noise = noise * link.slope(self.z).square()
        mean = get_mean_module_with_normal_prior() if choice.kind == "additive_saas" else None
        # BoTorch would warn of a fold of the data that is not standardised on its own.
        with validate_input_scaling(False):
            gp = SingleTaskGP(
                self.X,
                (self.z if link is None else link.forward(self.z)).unsqueeze(-1),
                None if noise is None else noise.clamp_min(MIN_NOISE).unsqueeze(-1),
                covar_module=KERNELS[choice.kind](d, self.importance),
                mean_module=mean,
                # SingleTaskGP would standardise a second time by default.
                outcome_transform=None,
            )
        fit_hyperparameters(gp)
        gp.eval()
        return gp

    def cross_validate(self, choice: Choice) -> float:
        """Sum of the log densities of all values, each predicted from the other folds.

        Row i is in fold i mod `FOLDS`. Minus infinity where a fit fails.
        """
        fold = torch.arange(len(self.z)) % FOLDS
        try:
            return sum(
                self._part(fold != f)._score(choice, self._part(fold == f)) for f in range(FOLDS)
            )
        except NUMERICAL_ERRORS:
            return -inf

    def _part(self, rows: Tensor) -> _Task:
        noise = None if self.noise is None else self.noise[rows]
        return _Task(self.X[rows], self.z[rows], noise, self.importance)

    def _score(self, choice: Choice, others: _Task) -> float:
        """Log density of the others' values in the units of z, whatever the link."""
        gp, link = self.fit(choice), choice.link
        with torch.no_grad():
            posterior = gp.posterior(others.X)
            mean, variance = posterior.mean.squeeze(-1), posterior.variance.squeeze(-1)
            slope = torch.ones_like(mean) if link is None else link.slope(others.z)
            value = others.z if link is None else link.forward(others.z)
            if others.noise is None:
                variance = variance + gp.likelihood.noise
            else:
                variance = variance + (others.noise * slope.square()).clamp_min(MIN_NOISE)
            log_normal = -0.5 * ((value - mean).square() / variance + (2 * pi * variance).log())
        # The density of z is that of u times du/dz.
        return float((log_normal + slope.log()).sum())


def _choose(task: _Task, kinds: tuple[Kind, ...], links: tuple[Link | None, ...]) -> Choice:
    """The first kind with the first link, unless another predicts better by more than `MARGIN`."""
    plain, *others = (Choice(kind, link) for kind, link in product(kinds, links))
    if not others or len(task.z) < 2 * FOLDS:
        return plain
    best, record = plain, task.cross_validate(plain) + MARGIN
    for choice in others:
        score = task.cross_validate(choice)
        if score > record:
            best, record = choice, score
    return best
