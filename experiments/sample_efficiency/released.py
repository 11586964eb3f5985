"""MM-MO as released (arXiv 2407.00487), its defects included: for the comparison only.

Written from our notes on its behaviour. Kept: uniform initial points; accuracies in percent; one
process per objective with inferred noise on z-scores that the model standardises again; the
reference point of the first ten points in raw units, against which no z-score can gain, so that the
acquisition is flat and candidates are random; qEHVI without logarithm; ten candidates, each crossed
with the five elites of the largest sum of accuracies; the half with the least Fisher information.

Not kept: two decimals in names, which here would only ever merge two points by accident; masks of
DARE without a seed, for the problem has none; heavy settings, which change nothing where all is
flat; more than four earlier candidates as pending points, whose boxes are 2^10.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from botorch.acquisition.multi_objective.monte_carlo import qExpectedHypervolumeImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, SingleTaskGP
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
from gpytorch.mlls import SumMarginalLogLikelihood
from torch import Tensor

from acquisition.draft import Draft
from acquisition.fisher import select
from acquisition.fronts import released_reference
from acquisition.reproducible import reproducible
from acquisition.space_filling import fill_with_sobol
from acquisition.strategy import Observations, Proposal
from acquisition.weak_to_strong import best_sums, weak_to_strong
from experiments.sample_efficiency.model_based import own_seed

ELITES, CANDIDATES, MOST_PENDING = 5, 10, 4
SAMPLES, RESTARTS, RAW_SAMPLES, ITERATIONS = 64, 4, 128, 50


@dataclass(frozen=True, kw_only=True)
class Released:
    """The released loop.

    Attributes:
        initial: uniform points at the start.
        percent: accuracies times 100, as its harness reports them.
    """

    initial: int = 10
    percent: bool = True

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """Uniform points, then crossed candidates of the highest predictive variance."""
        draft = Draft(observations)
        count, d = observations.count, observations.X.shape[1]
        rng = np.random.default_rng((seed, count))
        while len(draft) < min(q, self.initial - count):
            draft.offer(torch.from_numpy(rng.random(d)), {"origin": "uniform"})
        if len(draft) < q:
            with reproducible(own_seed(seed, count)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a flat acquisition, at every step
                for x in self._kept(observations, q - len(draft), own_seed(seed + 1, count)):
                    draft.offer(x, {"origin": "weak_to_strong"})
        fill_with_sobol(draft, q, seed, "a mutant was evaluated before")
        return draft.proposal()

    def _kept(self, observations: Observations, count: int, seed: int) -> Tensor:
        Y = self._raw(observations)
        Z = (Y - Y.mean(0)) / Y.std(0).clamp_min(1e-12)
        gps = [SingleTaskGP(observations.X, Z[:, [k]]) for k in range(Z.shape[1])]
        model = ModelListGP(*gps)
        fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
        reference = released_reference(Y[: self.initial])
        candidates = self._candidates(model, observations.X, reference)
        elites = observations.X[best_sums(Y[:, :-1], ELITES)]
        mutants = weak_to_strong(candidates, elites, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            variance = model.posterior(mutants).variance
        kept = select("low", torch.diag_embed(variance.T), min(count, len(mutants)))
        return mutants[kept]

    def _raw(self, observations: Observations) -> Tensor:
        """Measured objectives between 0 and 1 as percentages, the others as they are."""
        Y = observations.Y.clone()
        for k, known in enumerate(observations.known):
            share = bool(((Y[:, k] >= 0) & (Y[:, k] <= 1)).all())
            if self.percent and known is None and share:
                Y[:, k] *= 100
        return Y

    def _candidates(self, model: ModelListGP, X: Tensor, reference: Tensor) -> Tensor:
        acquisition = expected_improvement(model, X, reference)
        box = torch.stack([torch.zeros(X.shape[1]), torch.ones(X.shape[1])]).double()
        found = X[:0]
        for _ in range(CANDIDATES):
            acquisition.set_X_pending(found[-MOST_PENDING:] if len(found) else None)
            x, _ = optimize_acqf(
                acquisition,
                box,
                q=1,
                num_restarts=RESTARTS,
                raw_samples=RAW_SAMPLES,
                options={"maxiter": ITERATIONS},
            )
            found = torch.cat([found, x.detach()])
        return found


def expected_improvement(
    model: ModelListGP, X: Tensor, reference: Tensor
) -> qExpectedHypervolumeImprovement:
    """EHVI over the front of the posterior means at `n x d` points, above `m` reference values."""
    with torch.no_grad():
        mean = model.posterior(X).mean
    boxes = FastNondominatedPartitioning(reference, mean)
    sampler = SobolQMCNormalSampler(torch.Size([SAMPLES]))
    return qExpectedHypervolumeImprovement(model, reference, boxes, sampler)
