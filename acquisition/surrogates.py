"""What is believed of the objectives: a Gaussian process per score, exact functions as they are.

Outcomes are standardised here, once, and nowhere else: models, reference point and constraints all
live in units of standard deviations, so they cannot disagree (the released MM-MO did).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import inf, pi
from typing import Literal, cast

import torch
from botorch.exceptions.errors import InputDataError, ModelFittingError, OptimizationGradientError
from botorch.models.map_saas import get_mean_module_with_normal_prior
from botorch.models.model import Model, ModelList
from botorch.models.model_list_gp_regression import ModelListGP
from botorch.settings import validate_input_scaling
from gpytorch.kernels import Kernel
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from acquisition.fitting import fit_hyperparameters
from acquisition.kernels import additive_saas, concentrated, quadratic, squared_exponential
from acquisition.measured import MeasuredGP
from acquisition.outcomes import Link, OutcomeScale
from acquisition.posterior import Process
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
"""Least variance of a measurement in standardised units; below it GPyTorch would warn and clamp. So
much of its error is its own, however strongly it is correlated with others."""

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
            but for an objective with a link: there in those of the link's u. As BoTorch computes
            it, from the variances of the errors; `processes` know their covariances, too.
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

    @cached_property
    def processes(self) -> Mapping[int, Process]:
        """Column of a modelled objective → its process, given the measurements."""
        return {k: Process.of(cast(MeasuredGP, self.model.models[k])) for k in self.modelled}

    def mean(self, X: Tensor) -> Tensor:
        """Posterior means of all objectives, standardised: `c x d` → `c x m`."""
        with torch.no_grad():
            return torch.stack([self._mean(k, X) for k in range(len(self.choices))], dim=-1)

    def _mean(self, k: int, X: Tensor) -> Tensor:
        if k not in self.processes:
            exact: Tensor = self.model.models[k].forward(X)
            return exact.squeeze(-1)
        process, link = self.processes[k], self.links[k]
        if link is None:
            return process.means(X).squeeze(-1)
        mean, variance = process.moments(X)
        return link.moments(mean.squeeze(-1), variance)[0]

    def covariance(self, X: Tensor) -> Tensor:
        """Posterior covariances at `c x d` points: `k x c x c` for the k modelled objectives.

        In the units of the model.
        """
        if not self.modelled:
            return X.new_zeros(0, len(X), len(X))
        return torch.stack([process.covariance(X) for process in self.processes.values()])


def fit_surrogate(  # noqa: PLR0913  (data, then switches by name)
    X: Tensor,
    Y: Tensor,
    Yvar: Tensor | None,
    known: tuple[KnownObjective | None, ...],
    *,
    Ycov: Tensor | None = None,
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
        Ycov: `m x n x n` raw covariances of the measurements' errors, in place of Yvar, which is
            their diagonal; None: errors are independent.
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
    if Ycov is None and Yvar is not None:
        Ycov = Yvar.T.diag_embed()
    weights = torch.ones_like(X[0]) if importance is None else importance**IMPORTANCE_STRENGTH
    models: list[Model] = []
    choices: list[Choice | None] = []
    for k, objective in enumerate(known):
        if objective is None:
            links = _links(link, Y[:, k], OutcomeScale(scale.shift[k], scale.scale[k]))
            noise = None if Ycov is None else Ycov[k] / scale.scale[k] ** 2
            task = _Task(X, Z[:, k], noise, weights)
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
    """One objective's data, in standardised units.

    Attributes:
        X: `n x d` points.
        z: `n` values.
        noise: `n x n` covariance of their errors, or None.
        importance: `d`, of coordinates.
    """

    X: Tensor
    z: Tensor
    noise: Tensor | None
    importance: Tensor

    def fit(self, choice: Choice) -> MeasuredGP:
        """Maximise the posterior density of the hyperparameters."""
        kernel = KERNELS[choice.kind](self.X.shape[-1], self.importance)
        mean = get_mean_module_with_normal_prior() if choice.kind == "additive_saas" else None
        # BoTorch would warn of a fold of the data that is not standardised on its own.
        with validate_input_scaling(False):
            gp = MeasuredGP(self.X, self._u(choice.link), self._errors(choice.link), kernel, mean)
        fit_hyperparameters(gp)
        gp.eval()
        return gp

    def cross_validate(self, choice: Choice) -> float:
        """Sum of the log densities of all values, each predicted from the other folds.

        Row i is in fold i mod `FOLDS`. Minus infinity where a fit fails.
        """
        fold = torch.arange(len(self.z)) % FOLDS
        try:
            return sum(self._score(choice, fold == f) for f in range(FOLDS))
        except NUMERICAL_ERRORS:
            return -inf

    def _part(self, rows: Tensor) -> _Task:
        noise = None if self.noise is None else self.noise[rows][:, rows]
        return _Task(self.X[rows], self.z[rows], noise, self.importance)

    def _score(self, choice: Choice, held: Tensor) -> float:
        """Log density of the held-back rows' values in the units of z, whatever the link."""
        gp = self._part(~held).fit(choice)
        with torch.no_grad():
            errors = self._errors(choice.link)
            if errors is None:
                errors = gp.likelihood.noise * torch.eye(len(held)).to(self.X)
            mean, variance = Process.of(gp).next_measurements(
                self.X[held], errors.diagonal()[held], errors[held][:, ~held]
            )
            difference = self._u(choice.link)[held] - mean.squeeze(-1)
            log_normal = -0.5 * (difference.square() / variance + (2 * pi * variance).log())
        # The density of z is that of u times du/dz.
        return float((log_normal + self._slope(choice.link)[held].log()).sum())

    def _u(self, link: Link | None) -> Tensor:
        """What the process models, `n`."""
        return self.z if link is None else link.forward(self.z)

    def _slope(self, link: Link | None) -> Tensor:
        """du/dz, `n`."""
        return torch.ones_like(self.z) if link is None else link.slope(self.z)

    def _errors(self, link: Link | None) -> Tensor | None:
        """Covariance of the errors of u, `n x n`, by the delta method.

        No variance is below `MIN_NOISE`, and nor is an eigenvalue: covariances are those of what
        the errors have beyond it.
        """
        if self.noise is None:
            return None
        slope = self._slope(link)
        errors = self.noise * slope.outer(slope)
        variances = errors.diagonal().clamp_min(MIN_NOISE)
        beyond = (1 - MIN_NOISE / variances).sqrt()
        return (errors * beyond.outer(beyond)).diagonal_scatter(variances)


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
