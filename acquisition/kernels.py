"""The covariance functions behind the kinds of surrogates, and their priors.

Inputs are points of the unit cube, outcomes are standardised. With an importance per coordinate
every kernel starts from the belief that the objective, as a function of importance x coordinate,
varies alike in all directions: a coordinate that moves more has a shorter length scale.
"""

from __future__ import annotations

import math

import torch
from botorch.models.map_saas import SaasPriorHelper
from botorch.utils.constraints import LogTransformedInterval
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import AdditiveKernel, Kernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.priors import HalfCauchyPrior, LogNormalPrior
from torch import Tensor

SHORTEST = 0.025
"""Least length scale of the squared exponential, as in BoTorch."""

CONCENTRATED_MEDIAN, CONCENTRATED_SPREAD = 0.5, 0.5
"""Median of a length scale over √d, and standard deviation of its logarithm."""

LINEAR, SQUARES, INTERACTIONS = 0.5, 0.25, 0.25
"""Prior medians of the variances of the parts of a quadratic, where the outcome has variance 1."""
REMAINDER = 0.5
"""Prior median of the variance of what the quadratic leaves."""
PART_SPREAD = 1.0
"""Standard deviation of the logarithm of such a variance."""
VARIANCE_BOUNDS = (1e-4, 1e2)

SPARSITIES = 4
GLOBAL_SHRINKAGE = 0.1
SPARSE_BOUNDS = (1e-2, 1e4)
OUTPUTSCALE_BOUNDS, FIRST_OUTPUTSCALE = (1e-2, 1e4), 10.0


def squared_exponential(d: int, importance: Tensor) -> RBFKernel:
    """A length scale per coordinate, log-normal with a median that grows with √d.

    Hvarfner et al. 2024 (BoTorch's default), the median of coordinate i divided by its importance.

    Args:
        d: the number of coordinates.
        importance: `d` positive numbers; ones for the default.
    """
    return _squared_exponential(d, importance, math.exp(math.sqrt(2)), math.sqrt(3))


def concentrated(d: int, importance: Tensor) -> RBFKernel:
    """The same with length scales that are alike until the data say otherwise.

    The default's prior is so wide that with few points some length scales become long by chance,
    and the process too sure of itself.
    """
    return _squared_exponential(d, importance, CONCENTRATED_MEDIAN, CONCENTRATED_SPREAD)


def _squared_exponential(d: int, importance: Tensor, median: float, spread: float) -> RBFKernel:
    location = math.log(median) + 0.5 * math.log(d) - importance.log()
    prior = LogNormalPrior(location, torch.full_like(location, spread))
    kernel = RBFKernel(
        ard_num_dims=d,
        lengthscale_prior=prior,
        lengthscale_constraint=GreaterThan(SHORTEST, transform=None),
    ).to(importance)
    kernel.lengthscale = prior.mode.clamp_min(2 * SHORTEST)
    return kernel


class QuadraticKernel(Kernel):  # type: ignore[misc]
    """A polynomial of degree 2 without its constant, all coefficients marginalised.

    With u = √12 (x − ½), of mean 0 and variance 1 over the cube, the features are u_i, the second
    Legendre polynomial √5/2 (u_i² − 1), and u_i u_j for i < j: orthonormal over the cube. Their
    coefficients are independent normal, of variance v₁/d, v₂/d and v₃/(d(d−1)/2), so v₁, v₂, v₃
    are the variances over the cube that one expects of the three parts. The sum over pairs is
    ½ ((uᵀu′)² − Σ u_i² u′_i²), so that no d² features are made.

    The level is left to the mean of the process.

    Attributes:
        importance: `d` factors of the coefficients: those of u_i and of u_j multiply.
    """

    is_stationary = False

    def __init__(self, importance: Tensor) -> None:
        super().__init__()
        self.register_buffer("importance", importance)
        medians = torch.tensor([LINEAR, SQUARES, INTERACTIONS]).to(importance)
        self.register_parameter("raw_variances", torch.nn.Parameter(medians.log()))
        self.register_constraint("raw_variances", LogTransformedInterval(*VARIANCE_BOUNDS))
        self.register_prior(
            "variances_prior",
            LogNormalPrior(medians.log(), torch.full_like(medians, PART_SPREAD)),
            _variances,
            _set_variances,
        )

    @property
    def variances(self) -> Tensor:
        """v₁, v₂, v₃."""
        return _variances(self)

    @variances.setter
    def variances(self, value: Tensor) -> None:
        _set_variances(self, value)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: object) -> Tensor:
        """`... x n x d`, `... x k x d` → `... x n x k`, or `... x n` for the diagonal."""
        u1, u2 = (math.sqrt(12) * (x - 0.5) for x in (x1, x2))
        w, d = self.importance, x1.shape[-1]

        def product(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(-1) if diag else a @ b.transpose(-1, -2)

        linear = product(u1 * w, u2 * w)
        s1, s2 = ((u * w).square() for u in (u1, u2))
        squares = 1.25 * product(s1 - w.square(), s2 - w.square())
        pairs = 0.5 * (linear.square() - product(s1, s2))
        v = self.variances
        return v[0] / d * linear + v[1] / d * squares + v[2] / max(d * (d - 1) / 2, 1) * pairs


def _variances(kernel: QuadraticKernel) -> Tensor:
    variances: Tensor = kernel.raw_variances_constraint.transform(kernel.raw_variances)
    return variances


def _set_variances(kernel: QuadraticKernel, value: Tensor) -> None:
    raw = kernel.raw_variances_constraint.inverse_transform(value.to(kernel.raw_variances))
    kernel.initialize(raw_variances=raw)


def quadratic(d: int, importance: Tensor) -> AdditiveKernel:
    """A Bayesian quadratic, and a squared exponential for what it leaves."""
    remainder = ScaleKernel(
        squared_exponential(d, importance),
        outputscale_prior=LogNormalPrior(
            torch.tensor(math.log(REMAINDER)).to(importance),
            torch.tensor(PART_SPREAD).to(importance),
        ),
        outputscale_constraint=LogTransformedInterval(*VARIANCE_BOUNDS, initial_value=REMAINDER),
    ).to(importance)
    return AdditiveKernel(QuadraticKernel(importance), remainder)


def additive_saas(d: int, importance: Tensor) -> AdditiveKernel:
    """Four Matérn-5/2 kernels that each believe that few coordinates matter, in sum.

    Additive MAP-SAAS (BoTorch; after Eriksson & Jankowiak 2021): per kernel, τ / ℓ_i² is
    half-Cauchy of scale 1, here of squared importance. BoTorch draws the four τ from a half-Cauchy
    of scale 0.1; here they are its quantiles ⅛, ⅜, ⅝, ⅞, so that nothing is random.
    """
    quantiles = [(k + 0.5) / SPARSITIES for k in range(SPARSITIES)]
    taus = [GLOBAL_SHRINKAGE * math.tan(math.pi / 2 * q) for q in quantiles]
    return AdditiveKernel(*(_sparse_matern(d, importance, tau) for tau in taus))


def _sparse_matern(d: int, importance: Tensor, tau: float) -> ScaleKernel:
    shrinkage = SaasPriorHelper(tau)
    bounds = LogTransformedInterval(*SPARSE_BOUNDS, initial_value=1.0)
    matern = MaternKernel(nu=2.5, ard_num_dims=d, lengthscale_constraint=bounds).to(importance)
    matern.register_prior(
        "inv_lengthscale_prior",
        HalfCauchyPrior(importance.square()),
        shrinkage.inv_lengthscale_prior_param_or_closure,
        shrinkage.inv_lengthscale_prior_setting_closure,
    )
    scale = LogTransformedInterval(*OUTPUTSCALE_BOUNDS, initial_value=FIRST_OUTPUTSCALE)
    return ScaleKernel(matern, outputscale_constraint=scale).to(importance)
