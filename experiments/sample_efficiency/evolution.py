"""Evolutionary peers: NSGA-II by pymoo (mergenetic runs it), CMA-ES by cma (mergekit-evolve does).

Both have a state, strategies have none: every call replays the generations so far, each told what
was observed. A generation must be complete before the next; `batch` is its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cma
import numpy as np
import torch
from pymoo.algorithms.moo import nsga2
from pymoo.core.population import Population
from pymoo.core.problem import Problem as PymooProblem

from acquisition.draft import Draft
from acquisition.space_filling import fill_initial_design, fill_with_sobol
from acquisition.strategy import Observations, Proposal
from experiments.sample_efficiency.nearby import offer_nearby


@dataclass(frozen=True, kw_only=True)
class NSGA2:
    """pymoo's NSGA-II with its default operators; the first population is the initial design.

    Attributes:
        batch: the population: 10, for budgets of some tens (mergenetic's examples have 25).
    """

    batch: int = 10

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """The next generation, at most q of it."""
        draft = Draft(observations)
        n = len(observations.X)
        if n < self.batch:
            fill_initial_design(draft, observations, min(q, self.batch - n), seed)
            return draft.proposal()
        for x in self._replay(observations, seed)[:q]:
            offer_nearby(draft, torch.from_numpy(x), {"origin": "nsga2"}, seed)
        fill_with_sobol(draft, q, seed, "all around a child was evaluated before")
        return draft.proposal()

    def _replay(self, observations: Observations, seed: int) -> np.ndarray:
        n, d = observations.X.shape
        X, F = observations.X.numpy(), -observations.Y.numpy()
        generations = [slice(i, i + self.batch) for i in range(0, n, self.batch)]
        algorithm = nsga2.NSGA2(pop_size=self.batch, sampling=X[generations[0]])
        algorithm.setup(
            PymooProblem(n_var=d, n_obj=F.shape[1], xl=0.0, xu=1.0),
            termination=("n_gen", len(generations) + 2),
            seed=seed,
        )
        for rows in generations:
            algorithm.ask()
            evaluated = Population.new("X", X[rows])
            evaluated.set("F", F[rows])
            for individual in evaluated:
                individual.evaluated.update({"F", "G", "H"})
            algorithm.tell(infills=evaluated)
        return algorithm.ask().get("X")


@dataclass(frozen=True, kw_only=True)
class CMAES:
    """CMA-ES on a sum of the objectives, from the centre with σ = 0.2.

    A fixed sum needs one scale: each objective is divided by its standard deviation over the first
    generation.

    Attributes:
        batch: the population, 4 + ⌊3 ln d⌋ by default.
    """

    batch: int
    sigma: float = 0.2

    @staticmethod
    def population(dimension: int) -> int:
        """Hansen's default."""
        return 4 + math.floor(3 * math.log(dimension))

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """The next generation, at most q of it."""
        draft = Draft(observations)
        for x in self._replay(observations, seed)[:q]:
            offer_nearby(draft, torch.from_numpy(x), {"origin": "cmaes"}, seed)
        fill_with_sobol(draft, q, seed, "all around a child was evaluated before")
        return draft.proposal()

    def _replay(self, observations: Observations, seed: int) -> np.ndarray:
        n, d = observations.X.shape
        options = {
            "bounds": [0.0, 1.0],
            "popsize": self.batch,
            "verbose": -9,
            "randn": np.random.RandomState(seed).randn,  # cma would seed numpy's global one
            "seed": math.nan,
        }
        search = cma.CMAEvolutionStrategy([0.5] * d, self.sigma, options)
        scale = observations.Y[: self.batch].std(0).clamp_min(1e-12) if n else None
        for i in range(0, n, self.batch):
            search.ask()
            cost = -(observations.Y[i : i + self.batch] / scale).sum(-1)
            search.tell(list(observations.X[i : i + self.batch].numpy()), cost.tolist())
        return np.array(search.ask())
