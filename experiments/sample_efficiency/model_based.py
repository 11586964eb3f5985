"""Model-based peers: MAP's quadratic surrogate, qLogNParEGO, and Ax's own default."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from botorch.acquisition.multi_objective.parego import qLogNParEGO
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.problem import Problem as PymooProblem
from pymoo.optimize import minimize
from pymoo.util.ref_dirs import get_reference_directions
from scipy.optimize import least_squares
from scipy.special import expit

from acquisition.draft import Draft
from acquisition.maximise import maximise
from acquisition.reproducible import reproducible
from acquisition.space_filling import fill_initial_design, fill_with_sobol
from acquisition.strategy import Observations, Proposal
from acquisition.surrogates import fit_surrogate
from experiments.sample_efficiency.nearby import offer_nearby

Array = NDArray[np.float64]


def own_seed(seed: int, count: int) -> int:
    """A seed of the call that proposes trial number `count`."""
    return int(np.random.SeedSequence((seed, count)).generate_state(1)[0]) % 2**31


@dataclass(frozen=True, kw_only=True)
class MAP:
    """MAP (arXiv 2406.07529): a quadratic per objective, σ(q) for accuracies, NSGA-III on them.

    Its grid is for two or three coefficients, hence a Sobol design. Where there are fewer trials
    than coefficients of the quadratic the original fit fails: a small ridge makes it unique. The
    search stays within the cube (the original searches [−3, 3]). What is evaluated of the front:
    the points whose predictions are farthest from those of all evaluated points.

    Attributes:
        design: trials of the initial design; two thirds of the budget in the study.
    """

    design: int = 20
    ridge: float = 1e-3
    population: int = 100
    generations: int = 25

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """Design points, then spread points of the predicted front."""
        draft = Draft(observations)
        open_design = min(q, self.design - observations.count)
        fill_initial_design(draft, observations, open_design, seed)
        if len(draft) < q and len(observations.X) > 1:
            for x in self._front(observations, q - len(draft), seed):
                offer_nearby(draft, torch.from_numpy(x), {"origin": "map"}, seed)
        fill_with_sobol(draft, q, seed)
        return draft.proposal()

    def _front(self, observations: Observations, count: int, seed: int) -> Array:
        fits = [
            fit_quadratic(observations.X.numpy(), y, self.ridge) for y in observations.Y.T.numpy()
        ]
        m = len(fits)

        def predict(X: Array) -> Array:
            return np.stack([fit(X) for fit in fits], axis=-1)

        found = minimize(
            _Predicted(observations.X.shape[1], m, predict),
            NSGA3(_directions(m, self.population), pop_size=self.population),
            ("n_gen", self.generations),
            seed=own_seed(seed, observations.count),
        )
        X = np.atleast_2d(found.X)
        Y, taken = predict(X), predict(observations.X.numpy())
        extent = np.where(np.ptp(Y, 0) > 0, np.ptp(Y, 0), 1.0)
        chosen: list[int] = []
        for _ in range(min(count, len(X))):
            away = np.linalg.norm((Y[:, None] - taken[None]) / extent, axis=-1).min(1)
            chosen.append(int(away.argmax()))
            taken = np.concatenate([taken, Y[chosen[-1:]]])
        return X[chosen]


def _directions(m: int, population: int) -> Array:
    """Das and Dennis's directions, as many as the population can hold."""
    partitions = 1
    while len(get_reference_directions("das-dennis", m, n_partitions=partitions + 1)) <= population:
        partitions += 1
    return get_reference_directions("das-dennis", m, n_partitions=partitions)


class _Predicted(PymooProblem):
    def __init__(self, d: int, m: int, predict: object) -> None:
        super().__init__(n_var=d, n_obj=m, xl=0.0, xu=1.0)
        self._predict = predict

    def _evaluate(self, X: Array, out: dict[str, Array], *_: object, **__: object) -> None:
        out["F"] = -self._predict(X)


class Quadratic:
    """½ xᵀ A x + bᵀ x + e as a linear function of its features, and a link.

    Attributes:
        sigmoid: the prediction is σ of it, for values that all lie in [0, 1].
    """

    def __init__(self, coefficients: Array, sigmoid: bool) -> None:
        self._coefficients, self.sigmoid = coefficients, sigmoid

    @staticmethod
    def features(X: Array) -> Array:
        """`n x d` → `n x (d+1)(d+2)/2`: 1, x_i, x_i x_j with i ≤ j."""
        i, j = np.triu_indices(X.shape[1])
        return np.concatenate([np.ones((len(X), 1)), X, X[:, i] * X[:, j]], axis=1)

    def __call__(self, X: Array) -> Array:
        """`n x d` → `n`."""
        value = self.features(X) @ self._coefficients
        return expit(value) if self.sigmoid else value


def fit_quadratic(X: Array, y: Array, ridge: float) -> Quadratic:
    """Least squares of `n` values after the link, with a ridge on all but the constant."""
    P = Quadratic.features(X)
    sigmoid = bool((y >= 0).all() and (y <= 1).all())
    shift, scale = (0.0, 1.0) if sigmoid else (y.mean(), y.std() or 1.0)
    target = (y - shift) / scale
    penalty = np.sqrt(ridge) * np.eye(P.shape[1])[1:]
    if not sigmoid:
        stacked = np.concatenate([P, penalty])
        coefficients = np.linalg.lstsq(stacked, np.append(target, penalty[:, 0]), rcond=None)[0]
        coefficients = coefficients * scale
        coefficients[0] += shift
        return Quadratic(coefficients, False)

    def residuals(c: Array) -> Array:
        return np.concatenate([expit(P @ c) - target, penalty @ c])

    def slopes(c: Array) -> Array:
        p = expit(P @ c)
        return np.concatenate([(p * (1 - p))[:, None] * P, penalty])

    found = least_squares(residuals, np.zeros(P.shape[1]), slopes, method="lm", max_nfev=200)
    return Quadratic(found.x, True)


@dataclass(frozen=True, kw_only=True)
class ParEGO:
    """qLogNParEGO (Knowles 2006; Daulton et al. 2020) with a fresh weight per candidate.

    Surrogates, measured noise and the optimiser of the acquisition are those of `mm_mo`.
    """

    initial: int = 10

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """The initial design, then one maximum per candidate."""
        draft = Draft(observations)
        fill_initial_design(draft, observations, min(q, self.initial - observations.count), seed)
        if len(draft) < q:
            with reproducible(own_seed(seed, observations.count)):
                self._extend(draft, q, observations)
        fill_with_sobol(draft, q, seed)
        return draft.proposal()

    def _extend(self, draft: Draft, rows: int, observations: Observations) -> None:
        surrogate = fit_surrogate(
            observations.X, observations.Y, observations.Yvar, observations.known
        )
        d = observations.X.shape[1]
        box = torch.stack([torch.zeros(d), torch.ones(d)]).double()
        while len(draft) < rows:
            baseline = torch.cat([observations.X, draft.unanswered])
            acquisition = qLogNParEGO(surrogate.model, baseline, prune_baseline=True)
            points, _ = maximise(acquisition, box, observations.X[:0], draft.snap)
            if not any(draft.offer(x, {"origin": "acquisition"}) for x in points):
                return


@dataclass(frozen=True, kw_only=True)
class AxDefault:
    """Ax through its Client, nothing set but the size of its initial design.

    The default starts with the centre of the cube, then Sobol, then Modular BoTorch with its own
    settings; all standard errors are given. The client is built anew for each call.

    Attributes:
        initial: Ax's default is 5; the study gives all strategies 10.
    """

    initial: int = 10

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """What Ax generates for q trials; the nearest new point where it repeats itself."""
        draft = Draft(observations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # several a call, that thresholds would be better
            points = self._generate(observations, q, seed)
        for x in points:
            offer_nearby(draft, x, {"origin": "ax"}, seed)
        fill_with_sobol(draft, q, seed, "Ax repeated itself")
        return draft.proposal()

    def _generate(self, observations: Observations, q: int, seed: int) -> torch.Tensor:
        from ax.api.client import Client
        from ax.api.configs import RangeParameterConfig
        from ax.utils.common.logger import set_ax_logger_levels

        set_ax_logger_levels(logging.ERROR)
        d, m = observations.X.shape[1], observations.Y.shape[1]
        client = Client(random_seed=own_seed(seed, observations.count))
        client.configure_experiment(
            name="study",
            parameters=[
                RangeParameterConfig(name=f"x{i}", bounds=(0.0, 1.0), parameter_type="float")
                for i in range(d)
            ],
        )
        client.configure_optimization(objective=", ".join(f"y{k}" for k in range(m)))
        client.configure_generation_strategy(
            initialization_budget=self.initial,
            initialization_random_seed=seed,
        )
        error = observations.Yvar.sqrt()
        for x, y, e in zip(observations.X, observations.Y, error, strict=True):
            index = client.attach_trial({f"x{i}": float(v) for i, v in enumerate(x)})
            data = {f"y{k}": (float(y[k]), float(e[k])) for k in range(m)}
            client.complete_trial(index, raw_data=data)
        trials = client.get_next_trials(max_trials=q)
        rows = [[trials[t][f"x{i}"] for i in range(d)] for t in sorted(trials)]
        return torch.tensor(rows, dtype=torch.float64)
