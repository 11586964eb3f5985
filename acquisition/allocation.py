"""Items as fidelity: how many items a trial is scored on, and which trials are scored on more.

A score of n random items is as good as its standard error says; a trial begins with a share of the
items, and may be promoted to a larger share of the same order. Whatever strategy proposes the
points, an allocation divides the next q orders among new points and promotions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from acquisition.strategy import Observations, Proposal, Strategy

PromotionRule = Literal["never", "halving", "gain"]


@dataclass(frozen=True)
class Promotion:
    """Score row `row` of the observations on items up to the share `share` of all of them."""

    row: int
    share: float
    diagnostics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What to do next: promotions, and new points that begin with `share` of the items."""

    proposal: Proposal
    share: float
    promotions: tuple[Promotion, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Divides orders among new points and promotions.

    Attributes:
        start: share of the items that a new point is scored on, in (0, 1].
        promote: `never`; `halving`: successive halving without waiting (Li et al. 2020); `gain`:
            whatever gains most expected hypervolume per cost.
    """

    start: float = 1.0
    promote: PromotionRule = "never"

    def plan(self, strategy: Strategy, observations: Observations, q: int, seed: int) -> Plan:
        """Plan q orders, fewer only where nothing is left to do; a pure function."""
        return Plan(strategy.propose(observations, q, seed), self.start)

    def confirm(self, observations: Observations, count: int) -> tuple[Promotion, ...]:
        """Rows to score on all items before the end, most valuable first, at most `count`.

        They are the members of the front that have not answered all items and are not growing.
        """
        raise NotImplementedError
