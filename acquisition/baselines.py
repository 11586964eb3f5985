"""Strategies to beat: what a search reaches without learning anything."""

from __future__ import annotations

from acquisition.draft import Draft
from acquisition.space_filling import fill_with_sobol
from acquisition.strategy import Observations, Proposal


class Sobol:
    """A scrambled Sobol sequence from the first trial to the last; anchors are not used."""

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """Propose the next q points of the sequence that `seed` scrambles."""
        draft = Draft(observations)
        fill_with_sobol(draft, q, seed)
        return draft.proposal()
