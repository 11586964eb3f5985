"""A fitted Gaussian process with its hyperparameters fixed: moments fast, and imagined outcomes.

What a proposal asks of a process is always the same: the moments of a few candidates, given the
measurements and given sampled outcomes of some points (the present front, whatever is pending). One
inverse Cholesky factor that grows by those points answers it with two matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from acquisition.measured import MeasuredGP

LEAST_VARIANCE = 1e-9
"""In squared standard deviations of the objective: below it a point is known."""


@dataclass(frozen=True)
class Process:
    """A Gaussian process that has seen measurements and, per sample, imagined outcomes.

    Attributes:
        kernel: `... a x d`, `... b x d` → `... a x b`.
        mean: `... a x d` → `... a` prior means.
        X: `r x d` points that it is conditioned on.
        inverse: `r x r` inverse of the lower Cholesky factor of their covariance, noise included.
        whitened: `s x r` deviations from the prior mean times that inverse, one row per sample.
    """

    kernel: Callable[[Tensor, Tensor], Tensor]
    mean: Callable[[Tensor], Tensor]
    X: Tensor
    inverse: Tensor
    whitened: Tensor

    @classmethod
    def of(cls, gp: MeasuredGP) -> Process:
        """Take a fitted process over; its parameters are not differentiated any more.

        Raises:
            NotPSDError, NanError: the covariance of the measurements has no Cholesky factor.
        """
        for parameter in gp.parameters():
            parameter.requires_grad_(False)
        X: Tensor = gp.train_inputs[0]

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            dense: Tensor = gp.covar_module(a, b).to_dense()
            return dense

        def mean(a: Tensor) -> Tensor:
            value: Tensor = gp.mean_module(a)
            return value

        with torch.no_grad():
            covariance, residual = gp.measured()
            inverse = _inverse(psd_safe_cholesky(covariance))
            whitened = residual @ inverse.T
        return cls(kernel, mean, X, inverse, whitened.unsqueeze(0))

    def means(self, X: Tensor) -> Tensor:
        """Means per sample: `c x d` → `c x s`."""
        weights = self.whitened @ self.inverse
        return self.mean(X).unsqueeze(-1) + self.kernel(X, self.X) @ weights.T

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Means per sample and variances of single points: `c x d` → `c x s`, `c`."""
        return self._moments(X, self.kernel(X, self.X), 0.0)

    def next_measurements(self, X: Tensor, noise: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Means per sample and variances of measurements to come: `c x s`, `c`.

        Args:
            X: `c x d` points.
            noise: `c` variances of their errors.
            shared: `c x r` covariances of their errors with those of the measurements so far, which
                tell of them, too.
        """
        return self._moments(X, self.kernel(X, self.X) + shared, noise)

    def covariance(self, X: Tensor) -> Tensor:
        """Joint covariance of points: `c x d` → `c x c`."""
        return self._joint(X)[1]

    def _moments(
        self, X: Tensor, with_seen: Tensor, noise: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        towards = with_seen @ self.inverse.T
        mean = self.mean(X).unsqueeze(-1) + towards @ self.whitened.T
        # Kernels need not be stationary: each point's own variance, as a batch of 1 x 1.
        own = self.kernel(X.unsqueeze(-2), X.unsqueeze(-2)).reshape(len(X)) + noise
        return mean, (own - towards.square().sum(-1)).clamp_min(LEAST_VARIANCE)

    def imagined(self, X: Tensor, draws: Tensor) -> tuple[Process, Tensor]:
        """Sample outcomes without noise, and condition on them.

        Args:
            X: `c x d` points.
            draws: `s x c` standard normal numbers; s samples grow out of one.

        Returns:
            the process given the outcomes, and the outcomes, `s x c`.
        """
        mean, covariance, towards = self._joint(X)
        factor = psd_safe_cholesky(covariance + LEAST_VARIANCE * torch.eye(len(X)).to(X))
        outcomes = mean.T + draws @ factor.T
        below = _inverse(factor)
        old = len(self.inverse)
        inverse = X.new_zeros(old + len(X), old + len(X))
        inverse[:old, :old] = self.inverse
        inverse[old:, :old] = -below @ towards @ self.inverse
        inverse[old:, old:] = below
        whitened = torch.cat([self.whitened.expand(len(draws), -1), draws], dim=-1)
        grown = Process(self.kernel, self.mean, torch.cat([self.X, X]), inverse, whitened)
        return grown, outcomes

    def _joint(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            towards = self.kernel(X, self.X) @ self.inverse.T
            mean = self.mean(X).unsqueeze(-1) + towards @ self.whitened.T
            covariance = self.kernel(X, X) - towards @ towards.T
        return mean, covariance, towards


def _inverse(factor: Tensor) -> Tensor:
    identity = torch.eye(len(factor), dtype=factor.dtype)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse
