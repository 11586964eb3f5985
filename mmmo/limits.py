"""Whether a campaign may go on: trials, items, hours and the least gain of its budget."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

from mmmo.anchors import anchors
from mmmo.config import CampaignConfig
from mmmo.fidelity import Fidelity
from mmmo.history import History
from mmmo.space import SearchSpace

if TYPE_CHECKING:
    from mmmo.optimizer import PromotedTrial

PATIENCE = 2
"""So many proposals in a row must expect too little before the search ends."""


class Limits:
    """Asks a history how much of its session's budget is left."""

    def __init__(self, config: CampaignConfig, history: History) -> None:
        self._config, self._history = config, history

    @cached_property
    def fidelity(self) -> Fidelity:
        """Counts items."""
        sizes = {name: n["search"] for name, n in self._history.facts.items.items()}
        return Fidelity(self._config, sizes)

    @property
    def spent(self) -> bool:
        """Whether the search is over, but for what is ordered: the rest confirms the front."""
        most, trials = self._config.budget.trials, self._history.trials
        few = most is not None and len(trials) >= most
        return few or self._items < self.fidelity.start or self._late_to_confirm or self._idle

    @property
    def late(self) -> bool:
        """Whether the hours are spent; what is ordered is left undone."""
        hours = self._config.budget.hours
        return hours is not None and self._history.active_seconds >= hours * 3600

    def orders(self) -> int:
        """How many orders make up the next proposal."""
        search, most, done = self._config.search, self._config.budget.trials, self._history.trials
        initial = self._design - len(done)
        q = initial if initial > 0 else search.batch
        return q if most is None else min(q, most - len(done))

    @cached_property
    def _design(self) -> int:
        """How many trials are proposed before any result is needed."""
        from acquisition.space_filling import design_size

        anchored = len(anchors(SearchSpace(self._config)))
        return self._config.search.initial or design_size(anchored)

    def of_the_search(
        self, promoted: tuple[PromotedTrial, ...], q: int
    ) -> tuple[tuple[PromotedTrial, ...], int]:
        """As many promotions and new trials as the search may pay."""
        each = max(self.fidelity.start, 1)
        chosen, left = self.fidelity.affordable(promoted, self._history.trials, self._items)
        return chosen, int(min(q * each, left)) // each

    def of_all(self, promoted: tuple[PromotedTrial, ...]) -> tuple[PromotedTrial, ...]:
        """As many promotions as the whole budget pays."""
        trials = self._history.trials
        return self.fidelity.affordable(promoted, trials, self.fidelity.left(trials.values()))[0]

    @property
    def _items(self) -> float:
        """Items that the search may still order; the front is asked for only if that matters."""
        history = self._history
        if self._config.budget.items is None:
            return math.inf
        return self.fidelity.left(history.trials.values()) - self.fidelity.reserve(history.leading)

    @property
    def _late_to_confirm(self) -> bool:
        """Whether the rest of the hours is needed to confirm the front."""
        hours, history = self._config.budget.hours, self._history
        if hours is None:
            return False
        kept_s = self.fidelity.reserve_seconds(history.trials.values(), history.leading)
        return history.active_seconds >= hours * 3600 - kept_s

    @property
    def _idle(self) -> bool:
        """Whether the last proposals all expected too little of their best candidate."""
        least = self._config.budget.stop_when_gain_below
        gains = [summary.get("gain") for summary in self._history.summaries[-PATIENCE:]]
        poor = [g for g in gains if g is not None and least is not None and g < least]
        return len(poor) == PATIENCE
