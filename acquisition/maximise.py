"""The maximum of an acquisition function over one point."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from botorch.exceptions.warnings import OptimizationWarning
from botorch.generation.gen import gen_candidates_scipy
from botorch.optim.initializers import initialize_q_batch
from botorch.utils.sampling import draw_sobol_samples
from torch import Tensor

RESTARTS = 4
RAW_SAMPLES = 128
MAX_ITERATIONS = 50
RUNNERS_UP = 16
WORST_VALUE = -1e12


def maximise(
    gain: Callable[[Tensor], Tensor],
    bounds: Tensor,
    extra_starts: Tensor,
    snap: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Maximise a gain over one point; return good snapped points in falling order of value.

    Sobol points and `extra_starts` compete for the starts of L-BFGS-B. Values are taken after
    snapping, so a choice is judged by what would be evaluated. Draws from torch's generator: call
    within `reproducible`.

    Args:
        gain: `c x 1 x d` → `c`.
        bounds: `2 x d` box within the unit cube.
        extra_starts: `r x d` points, clipped to the box; r may be 0.
        snap: as in `Observations.snap`.

    Returns:
        `c x d` points and `c` values.
    """
    raw = draw_sobol_samples(bounds, n=RAW_SAMPLES, q=1)
    extra = extra_starts.unsqueeze(1).clamp(bounds[0], bounds[1])
    raw = torch.cat([raw, extra])
    values = _values(gain, raw)
    starts, _ = initialize_q_batch(raw, values, RESTARTS)
    optima = _climb(gain, starts, bounds)
    runners_up = raw[values.topk(RUNNERS_UP).indices]
    finalists = snap(torch.cat([optima, runners_up]))
    values = _values(gain, finalists)
    order = torch.sort(values, descending=True, stable=True).indices
    return finalists[order].squeeze(1), values[order]


def _climb(gain: Callable[[Tensor], Tensor], starts: Tensor, bounds: Tensor) -> Tensor:
    """Ascend by L-BFGS-B from `r x 1 x d` starts; a line search that ends at a kink is no news."""
    # BoTorch forces this warning past every filter, so it is recorded and the others passed on.
    with warnings.catch_warnings(record=True) as caught:
        optima, _ = gen_candidates_scipy(
            starts,
            gain,  # type: ignore[arg-type]  # any function of tensors will do
            bounds[0],
            bounds[1],
            options={"maxiter": MAX_ITERATIONS},
        )
    for w in caught:
        if not issubclass(w.category, OptimizationWarning):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    return optima


def _values(gain: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
    """Evaluate at `c x 1 x d`; a value that is no number is the worst, though NaN sorts first."""
    with torch.no_grad():
        values: Tensor = gain(X)
    return values.nan_to_num(nan=WORST_VALUE, posinf=WORST_VALUE, neginf=WORST_VALUE)
