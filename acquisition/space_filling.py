"""Points chosen without looking at scores: anchors, then a scrambled Sobol sequence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from acquisition.draft import Draft
from acquisition.strategy import Observations

RANDOM_DESIGN = 10
"""Size of an initial design without anchors."""

SOBOL_TRIES = 4096
"""How many points of the sequence are tried before a space of choices counts as used up."""


def sobol_points(d: int, count: int, seed: int, start: int = 0) -> Tensor:
    """Points `start … start + count - 1` of one scrambled Sobol sequence, `count x d` in [0, 1).

    Sobol (1967) with Owen's scrambling as torch has it. The global random state is not touched.
    """
    engine = SobolEngine(d, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    engine.fast_forward(start)  # type: ignore[no-untyped-call]
    points: Tensor = engine.draw(count, dtype=torch.float64)
    return points


def fill_with_sobol(draft: Draft, rows: int, seed: int, reason: str = "") -> None:
    """Extend the draft to `rows` rows, each the point of the sequence at its trial number.

    A point that was proposed before is skipped. Where snapping leaves fewer than `rows` new points,
    the draft stays short: it must end.
    """
    diagnostics = {"origin": "sobol", "reason": reason} if reason else {"origin": "sobol"}
    if len(draft) >= rows:
        return
    for x in sobol_points(draft.rows.shape[-1], SOBOL_TRIES, seed, draft.position):
        if draft.offer(x, diagnostics) and len(draft) >= rows:
            return


def design_size(anchors: int) -> int:
    """How many trials come before the model: the anchors, or ten less one for each of them.

    Seven anchors without a random point measured better than with three on 12 parameters
    (`docs/sample-efficiency.md`).
    """
    return max(anchors, RANDOM_DESIGN - anchors)


def fill_initial_design(draft: Draft, observations: Observations, rows: int, seed: int) -> None:
    """Extend the draft to `rows` rows: anchors not yet proposed, in their order, then Sobol."""
    for anchor in observations.anchors:
        if len(draft) >= rows:
            return
        draft.offer(anchor, {"origin": "anchor"})
    fill_with_sobol(draft, rows, seed)
