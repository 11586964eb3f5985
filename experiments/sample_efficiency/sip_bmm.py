"""SIP-BMM's recipe for layer-wise weights (arXiv 2512.09972), written from its description.

A Matérn-5/2 process per objective (the sparsity objective too) with fixed noise, whose length
scales begin as the rank of their coordinate's importance says, and are then fitted; qLogNEHVI. All
begin at 1 where nothing is known of importance.

The original tells ranks apart by fixed levels of its own measure; here by AP-BMM's quantiles. Its
reference point of −1.1 is for scores that it normalises by the experts'; here it is inferred from
the front.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from botorch.acquisition.multi_objective import logei
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, SingleTaskGP
from botorch.sampling import SobolQMCNormalSampler
from gpytorch.constraints import Interval
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from acquisition.draft import Draft
from acquisition.fronts import infer_reference
from acquisition.maximise import maximise
from acquisition.reproducible import reproducible
from acquisition.space_filling import fill_initial_design, fill_with_sobol
from acquisition.strategy import Observations, Proposal
from acquisition.surrogates import NUMERICAL_ERRORS
from experiments.sample_efficiency.model_based import own_seed

QUANTILES, SCALES = (0.15, 0.40, 0.70), (0.5, 1.0, 2.0, 5.0)
"""AP-BMM's: the most important 15 % of the coordinates begin with a length scale of 0.5, …"""
BOUNDS, NOISE, MC_SAMPLES = (0.005, 10.0), 1e-4, 32


@dataclass(frozen=True, kw_only=True)
class SIPBMM:
    """The recipe.

    Attributes:
        initial: trials of the initial design; the original has 8, and batches of 4.
    """

    initial: int = 10

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """The initial design, then one maximum after the other."""
        draft = Draft(observations)
        fill_initial_design(draft, observations, min(q, self.initial - observations.count), seed)
        if len(draft) < q:
            with (
                reproducible(own_seed(seed, observations.count)),
                without_compiled_kernel(),
                contextlib.suppress(*NUMERICAL_ERRORS),
            ):
                self._extend(draft, q, observations)
        fill_with_sobol(draft, q, seed, "the model failed, or repeated itself")
        return draft.proposal()

    def _extend(self, draft: Draft, rows: int, observations: Observations) -> None:
        X, Y = observations.X, observations.Y
        Z = (Y - Y.mean(0)) / Y.std(0).clamp_min(1e-12)
        scales = initial_length_scales(X.shape[1], observations.importance)
        model = ModelListGP(*(fit_matern(X, z.unsqueeze(-1), scales) for z in Z.T))
        reference = infer_reference(Z)
        box = torch.stack([torch.zeros_like(X[0]), torch.ones_like(X[0])])
        while len(draft) < rows:
            acquisition = qLogNoisyExpectedHypervolumeImprovement(
                model,
                reference,
                torch.cat([X, draft.unanswered]),
                SobolQMCNormalSampler(torch.Size([MC_SAMPLES])),
                prune_baseline=True,
                alpha=0.0 if len(reference) < 4 else 0.01,
            )
            points, _ = maximise(acquisition, box, X[:0], draft.snap)
            if not any(draft.offer(x, {"origin": "acquisition"}) for x in points):
                return


@contextlib.contextmanager
def without_compiled_kernel() -> Iterator[None]:
    """Keep off the C++ kernel that BoTorch 0.18 compiles when a qLogNEHVI is first built.

    That takes 7 to 30 s where there is a compiler, and is a warning where there is none; its bits
    differ from those of a machine without it.
    """
    kernel = logei._C, logei._load_attempted
    logei._C, logei._load_attempted = None, True
    try:
        yield
    finally:
        logei._C, logei._load_attempted = kernel


def initial_length_scales(d: int, importance: Tensor | None) -> Tensor:
    """`d` length scales by the rank of importance."""
    if importance is None:
        return torch.ones(d, dtype=torch.float64)
    rank = (-importance).argsort().argsort().double() / d
    levels = torch.bucketize(rank, torch.tensor(QUANTILES, dtype=torch.float64))
    return torch.tensor(SCALES, dtype=torch.float64)[levels]


def fit_matern(X: Tensor, z: Tensor, scales: Tensor) -> SingleTaskGP:
    """A Matérn-5/2 process of `n x 1` standardised values, its length scales from there fitted."""
    inner = MaternKernel(
        nu=2.5,
        ard_num_dims=X.shape[1],
        lengthscale_constraint=Interval(*BOUNDS, initial_value=scales),
    )
    noise = torch.full_like(z, NOISE)
    gp = SingleTaskGP(X, z, noise, covar_module=ScaleKernel(inner), outcome_transform=None)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(gp.likelihood, gp))
    return gp
