"""A Gaussian process of measurements whose errors may be correlated.

Candidates that answer the same items err together: all look better on easy items. What is common to
their errors says nothing about the differences between them, which are then known better than the
values (the control variate and the paired test use the same fact). GPyTorch's likelihoods know
variances of errors only, so their covariances are kept here, and whoever needs the covariance of
the measurements asks for it here.
"""

from __future__ import annotations

from botorch.models.gp_regression import SingleTaskGP
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor


class MeasuredGP(SingleTaskGP):
    """BoTorch's model, not standardised again, and the covariances of the errors.

    BoTorch's own methods (`posterior`, `likelihood`) take the errors for independent.

    Attributes:
        between: `n x n` covariances of the errors of different measurements, 0 on the diagonal.
    """

    between: Tensor

    def __init__(
        self,
        X: Tensor,
        u: Tensor,
        noise: Tensor | None,
        covar_module: Kernel,
        mean_module: Mean | None = None,
    ) -> None:
        """Prepare for a fit.

        Args:
            X: `n x d` points.
            u: `n` measurements.
            noise: `n x n` covariance of their errors; None to infer one variance for all of them.
            covar_module: covariance function.
            mean_module: prior mean; None: a constant.
        """
        variances = None if noise is None else noise.diagonal().unsqueeze(-1)
        super().__init__(
            X,
            u.unsqueeze(-1),
            variances,
            covar_module=covar_module,
            mean_module=mean_module,
            outcome_transform=None,
        )
        between = X.new_zeros(len(X), len(X)) if noise is None else noise.clone().fill_diagonal_(0)
        self.register_buffer("between", between)

    def measured(self) -> tuple[Tensor, Tensor]:
        """Covariance of the measurements, errors included, `n x n`, and their residuals, `n`."""
        prior = self.forward(self.train_inputs[0])
        variances: Tensor = self.likelihood.noise
        residual: Tensor = self.train_targets - prior.mean
        covariance: Tensor = prior.lazy_covariance_matrix.to_dense() + self.between
        return covariance + variances.expand(len(residual)).diag_embed(), residual
