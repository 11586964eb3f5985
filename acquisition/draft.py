"""A proposal while it is being written: which points are new, and what is said about each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from acquisition.strategy import Observations, Proposal

TOLERANCE = 1e-9
"""Two points closer than this in every coordinate are the same point."""


class Draft:
    """Rows accepted so far; each differs from the others and from every point proposed before.

    One draft lives for one call of a strategy.

    Attributes:
        rows: `k x d` accepted points, snapped.
    """

    def __init__(self, observations: Observations) -> None:
        self._observations = observations
        self._proposed = torch.cat([observations.X, observations.pending, observations.failed])
        self._diagnostics: list[Mapping[str, Any]] = []
        self.rows = observations.X.new_empty(0, observations.X.shape[-1])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def position(self) -> int:
        """The trial number that the next row will have."""
        return self._observations.count + len(self)

    @property
    def unanswered(self) -> Tensor:
        """`u x d` points without a score that must not be approached again.

        Pending ones, these rows, and the failed: nothing is known there, but the place is taken.
        """
        return torch.cat([self._observations.pending, self._observations.failed, self.rows])

    def snap(self, X: Tensor) -> Tensor:
        """`... x d` points → what would really be evaluated, inside the unit cube."""
        return self._observations.snap(X.clamp(0.0, 1.0)).clamp(0.0, 1.0)

    def offer(self, x: Tensor, diagnostics: Mapping[str, Any]) -> bool:
        """Append the point `x` (`d`) if it is new; say whether it was."""
        snapped = self.snap(x).unsqueeze(0)
        before = torch.cat([self._proposed, self.rows])
        if ((before - snapped).abs().amax(dim=-1) <= TOLERANCE).any():
            return False
        self.rows = torch.cat([self.rows, snapped])
        self._diagnostics.append(diagnostics)
        return True

    def branch(self) -> Draft:
        """Copy this draft to try candidates on; the original is not changed."""
        other = Draft(self._observations)
        other.rows, other._diagnostics = self.rows, list(self._diagnostics)
        return other

    def proposal(self, summary: Mapping[str, Any] | None = None) -> Proposal:
        """Finish: the rows and what is said about them, and about everything."""
        return Proposal(self.rows, tuple(self._diagnostics), summary or {})
