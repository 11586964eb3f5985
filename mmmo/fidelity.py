"""What trials cost, in items and in seconds, and how many items the budget has left.

Shares count per benchmark; a budget counts the items of all benchmarks together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from mmmo.config import CampaignConfig
from mmmo.records import Trial

if TYPE_CHECKING:
    from mmmo.optimizer import PromotedTrial

MOST = Fraction(2, 3)  # exact, however many items there are
"""Share of a budget that is kept for confirming the front, at most: what has not been found cannot
be confirmed."""

FEWEST = 2
"""Items of a benchmark that every trial answers: one alone has no spread."""


@dataclass(frozen=True)
class Fidelity:
    """Counts the search items of a campaign.

    Attributes:
        sizes: benchmark → number of search items.
    """

    config: CampaignConfig
    sizes: Mapping[str, int]

    def counts(self, share: float) -> dict[str, int]:
        """How many items of each benchmark a share is: rounded up, at least `FEWEST`."""
        return {name: _count(share, n) for name, n in self.sizes.items()}

    def items(self, share: float) -> int:
        """The same of all benchmarks together."""
        return sum(self.counts(share).values())

    @property
    def start(self) -> int:
        """Items that a new trial is scored on."""
        return self.items(self.config.search.items.start)

    def reserve(self, front: Iterable[Trial]) -> int:
        """Items of the budget that the search leaves for confirming the front (see `reserve`).

        What is ordered already is not among them, nor what will never be scored.
        """
        known = [(t, sum(m.n for m in t.scores.values())) for t in front if not t.stuck]
        missing = [self.items(1.0) - n - self._ordered(t) for t, n in known]
        return reserve(missing, self.config.search.items.confirm, self.config.budget.items or 0)

    def left(self, trials: Iterable[Trial]) -> float:
        """Items of the budget that are neither scored nor ordered; infinite without a limit.

        A trial that failed counts as if it were scored: if all fail, the budget still ends.
        """
        if self.config.budget.items is None:
            return math.inf
        return self.config.budget.items - sum(t.scored + self._ordered(t) for t in trials)

    def affordable(
        self, promoted: Sequence[PromotedTrial], trials: Mapping[int, Trial], left: float
    ) -> tuple[tuple[PromotedTrial, ...], float]:
        """The promotions that the items left allow, in their order, and what is left then."""
        chosen = []
        for order in promoted:
            known = sum(m.n for m in trials[order.number].scores.values())
            if (cost := self.items(order.share) - known) <= left:
                chosen.append(order)
                left -= cost
        return tuple(chosen), left

    def reserve_seconds(self, trials: Iterable[Trial], front: Iterable[Trial]) -> float:
        """Time that confirming the front will take at the pace so far, at most `MOST` of all."""
        pool, hours = self.config.pool, self.config.budget.hours or 0.0
        merge_s, item_s = seconds_per_part(trials)
        each = [
            merge_s + sum((self.sizes[b] - m.n) * item_s.get(b, 0.0) for b, m in t.scores.items())
            for t in front
            if t.share < 1 and not t.stuck
        ]
        wanted = sum(sorted(each, reverse=True)[: self.config.search.items.confirm])
        return min(wanted / pool.workers, hours * 3600 * MOST)

    def _ordered(self, trial: Trial) -> int:
        """Items that were ordered and are not scored yet, or never will be."""
        if not trial.is_open and trial.state != "failed":
            return 0
        wanted = self.counts(trial.wanted)
        known = {name: m.n for name, m in trial.scores.items()}
        return sum(n - known.get(name, 0) for name, n in wanted.items())


def reserve(missing: Sequence[int], confirm: int, budget: int) -> int:
    """Tell how many items of a budget to keep for confirming a front.

    Args:
        missing: how many items each trial of the front has not answered.
        confirm: so many trials, at most, will be confirmed.
        budget: all items that there are.
    """
    return min(sum(sorted(missing, reverse=True)[:confirm]), int(budget * MOST))


def seconds_per_part(trials: Iterable[Trial]) -> tuple[float, dict[str, float]]:
    """Mean seconds of a merge, and of scoring an item of each benchmark, as far as there were any.

    Items are counted, not shares: `FEWEST` are more than a small share of them.
    """
    evaluated = [t for t in trials if t.merges]
    merges = sum(t.merges for t in evaluated)
    merging = sum(t.timings.get("merge_s", 0.0) for t in evaluated)
    scored = {name for t in evaluated for name in t.scores}
    items = {name: sum(t.scores[name].n for t in evaluated) for name in scored}
    seconds = {name: sum(t.timings.get(f"{name}_s", 0.0) for t in evaluated) for name in scored}
    return merging / max(merges, 1), {name: seconds[name] / items[name] for name in scored}


def merge_cost(trials: Iterable[Trial], sizes: Mapping[str, int]) -> float:
    """What a merge costs, where scoring it on all items costs 1; 0 before anything is known.

    It comes from the clock, which no two runs of a campaign agree on, so it is rounded to a power
    of two: they then decide alike unless they differ much. What one run has recorded decides the
    same when it is resumed.

    Args:
        trials: that were merged and scored.
        sizes: benchmark → number of search items.
    """
    merge_s, item_s = seconds_per_part(trials)
    scoring_s = sum(n * item_s.get(name, 0.0) for name, n in sizes.items())
    return 2.0 ** round(math.log2(merge_s / scoring_s)) if merge_s and scoring_s else 0.0


def _count(share: float, n: int) -> int:
    """The smallest number that is a share of n, forgiving the rounding of their product."""
    return min(n, max(FEWEST, math.ceil(share * n - 1e-9)))
