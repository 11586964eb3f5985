"""The proposer that Ax drives: numbering, constraints, a space that runs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from campaigns import campaign

from mmmo.config import parse
from mmmo.optimizer import Optimizer
from mmmo.records import Measurement, Objective, Trial
from mmmo.space import SearchSpace

MATHS = Objective("maths", "sums", None, "exact_match", 1.0)
CODE = Objective("code", "python", None, "nll", -1.0)


def propose(
    objectives: tuple[Objective, ...], q: int, scored: int, **changes: Any
) -> list[tuple[float, ...]]:
    """Candidates after `scored` trials at Sobol points of the same campaign."""
    written = {o.name: {"benchmark": o.benchmark} for o in objectives}
    config = parse(campaign(objectives=written, **changes), Path("/nowhere"))
    space = SearchSpace(config)
    first = Optimizer(config, space, objectives).plan({}, scored).candidates if scored else ()
    trials = {
        n: Trial(
            number=n,
            key=str(n),
            x=c.x,
            recipe=space.decode(c.x),
            diagnostics=c.diagnostics,
            state="completed",
            scores={"sums": Measurement(c.x[0], 0.1, 40), "python": Measurement(2.0, 0.1, 40)},
        )
        for n, c in enumerate(first)
    }
    return [c.x for c in Optimizer(config, space, objectives).plan(trials, q).candidates]


@pytest.mark.parametrize(
    ("objectives", "constraints"),
    [
        ((MATHS,), ["maths >= 0.2"]),
        ((MATHS, CODE), ["maths >= 0.2", "maths >= 0.3", "code <= 3"]),
    ],
)
def test_constraints_that_ax_would_refuse(
    objectives: tuple[Objective, ...], constraints: list[str]
) -> None:
    assert len(propose(objectives, 2, 4, constraints=constraints, search={"initial": 3})) == 2


def test_a_rebuilt_optimizer_proposes_the_same() -> None:
    first, second = (propose((MATHS, CODE), 3, 5, search={"initial": 4}) for _ in range(2))
    assert first == second


def test_a_space_that_runs_out_gives_fewer() -> None:
    merge = {"method": "task_arithmetic", "weight": {"choice": [0.0, 1.0]}}
    rows = propose((MATHS, CODE), 20, 0, merge=merge, search={"strategy": "sobol"})
    assert len(set(rows)) == len(rows) == 8
