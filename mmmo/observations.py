"""What a strategy sees of a campaign; the only place where signs and scales are turned for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from acquisition.strategy import KnownObjective, Observations
from mmmo.config import CampaignConfig
from mmmo.fidelity import merge_cost
from mmmo.item_covariance import item_covariances
from mmmo.records import Objective, State, Trial
from mmmo.space import SearchSpace


def observations(  # noqa: PLR0913
    trials: Sequence[Trial],
    objectives: Sequence[Objective],
    config: CampaignConfig,
    space: SearchSpace,
    known: Sequence[KnownObjective | None],
    anchors: Sequence[Sequence[float]],
    importance: Tensor | None = None,
    item_covariance: bool = False,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> Observations:
    """Everything the acquisition needs, maximised, on one scale: an objective that is minimised
    changes its sign, and with it its reference point and its constraints.

    A promoted trial that is not done is a point with the scores that it has; one whose promotion
    failed for good counts as growing for ever. Covariances of errors take the square of the trials
    times the items, and are there only if asked for.
    """

    def rows(values: Sequence[Sequence[float]], width: int) -> Tensor:
        return torch.tensor(values, dtype=torch.double).reshape(len(values), width)

    def points(*states: State) -> Tensor:
        return rows([t.x for t in trials if t.state in states], space.size)

    scored = [t for t in trials if t.state == "completed"]
    measured = [[t.objective(o) for o in objectives] for t in scored]
    shares = torch.tensor([t.share for t in scored], dtype=torch.double)
    one_order = bool(scored) and all(t.order is None for t in scored)
    share_errors = item_covariance and one_order
    signs = torch.tensor([o.sign for o in objectives], dtype=torch.double)
    return Observations(
        X=points("completed"),
        Y=signs * rows([[m.value for m in row] for row in measured], len(objectives)),
        Yvar=rows([[m.se**2 for m in row] for row in measured], len(objectives)),
        pending=points("proposed", "running"),
        failed=points("failed"),
        anchors=rows(anchors, space.size),
        reference=_reference(objectives),
        known=tuple(known),
        constraints=_constraints(config, objectives),
        snap=space.snap,
        names=space.columns,
        share=shares if (shares < 1).any() else None,
        growing=tuple(row for row, t in enumerate(scored) if t.growth is not None),
        importance=importance,
        merge_cost=merge_cost(scored, sizes),
        Ycov=item_covariances(measured) if share_errors else None,
    )


def _reference(objectives: Sequence[Objective]) -> Tensor | None:
    """The user's reference point; NaN where the acquisition is to infer it; None if all of it."""
    given = [math.nan if o.reference is None else o.sign * o.reference for o in objectives]
    return None if all(map(math.isnan, given)) else torch.tensor(given, dtype=torch.double)


def _constraints(
    config: CampaignConfig, objectives: Sequence[Objective]
) -> tuple[Tensor, Tensor] | None:
    """`A @ y >= b` in maximised units."""
    if not config.constraints:
        return None
    index = {o.name: i for i, o in enumerate(objectives)}
    A = torch.zeros(len(config.constraints), len(objectives), dtype=torch.double)
    b = torch.zeros(len(config.constraints), dtype=torch.double)
    for row, constraint in enumerate(config.constraints):
        column = index[constraint.objective]
        direction = 1.0 if constraint.sign == ">=" else -1.0
        A[row, column] = direction * objectives[column].sign
        b[row] = direction * constraint.bound
    return A, b
