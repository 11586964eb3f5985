"""What a strategy is: a pure function from observations to proposals, and the table of strategies.

Everything in this package is maximised and lives in the unit cube [0, 1]^d. The caller owns signs,
units and scales; nothing here knows what a model is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Protocol

from torch import Tensor

KnownObjective = Callable[[Tensor], Tensor]
"""`... x d` points of the unit cube → `...` exact values of one objective, differentiable."""


@dataclass(frozen=True)
class Observations:
    """All that is known when a proposal is asked for. Tensors are float64.

    Attributes:
        X: `n x d` evaluated points.
        Y: `n x m` measured objectives, every one maximised.
        Yvar: `n x m` variances of the measurements; 0 where an objective is known exactly.
        pending: `p x d` points that are being evaluated.
        failed: `f x d` points whose evaluation failed; never to be proposed again.
        reference: `m` reference point of the hypervolume; NaN entries, or None for all of it, are
            inferred from `Y`.
        known: one entry per objective: its exact function, or None if it must be modelled.
        constraints: `(A, b)` with `A` `c x m`: a point is feasible where `A @ y >= b`; or None.
        anchors: `a x d` points worth evaluating first, best first.
        snap: maps `... x d` points to what would really be evaluated (choices to their centres,
            inactive coordinates to one half); the identity for a plain space. Applied by the
            strategy to whatever it returns.
        names: the d coordinates' names, for diagnostics.
        share: `n` shares in (0, 1] of the items that the points have answered; None: all answered
            all of them.
        growing: rows of X that are being scored on more items now.
        importance: `d` positive sizes of what each coordinate moves, of mean 1 (the norms of
            task vectors per layer group); None: nothing is known.
        merge_cost: what a merge costs, where scoring it on all items costs 1.
        Ycov: `m x n x n` covariances of the measurements' errors, positive semi-definite, with Yvar
            on the diagonal; None: errors are independent, or the strategy does not use them.
    """

    X: Tensor
    Y: Tensor
    Yvar: Tensor
    pending: Tensor
    failed: Tensor
    anchors: Tensor
    reference: Tensor | None = None
    known: tuple[KnownObjective | None, ...] = ()
    constraints: tuple[Tensor, Tensor] | None = None
    snap: Callable[[Tensor], Tensor] = lambda X: X
    names: tuple[str, ...] = ()
    share: Tensor | None = None
    growing: tuple[int, ...] = ()
    importance: Tensor | None = None
    merge_cost: float = 0.0
    Ycov: Tensor | None = None

    @property
    def count(self) -> int:
        """How many points were ever proposed: n + p + f, the number of the next trial."""
        return len(self.X) + len(self.pending) + len(self.failed)


@dataclass(frozen=True)
class Proposal:
    """What to evaluate next.

    Attributes:
        X: `q x d` points; fewer than q rows only where snapping leaves no more new points.
        diagnostics: one JSON-able dictionary per row. `origin` is always there: `anchor`, `sobol`,
            `acquisition`, `local` or `weak_to_strong`; as known also `acquisition` (log expected
            improvement), `parent_acquisition`, `information`, `reason` (why it is Sobol).
        summary: what the strategy believes at this moment, JSON-able, as
            `acquisition.diagnostics.summary` describes it; empty where it has no model.
    """

    X: Tensor
    diagnostics: tuple[Mapping[str, Any], ...] = field(default=())
    summary: Mapping[str, Any] = field(default_factory=dict)

    def only(self, rows: Sequence[int]) -> Proposal:
        """Some of the rows; what is believed stays."""
        diagnostics = tuple(self.diagnostics[i] for i in rows)
        return Proposal(self.X[list(rows)], diagnostics, self.summary)


class Strategy(Protocol):
    """A stateless proposer: the same arguments always give the same answer.

    The constructor takes the strategy's options as keyword arguments and nothing else. A strategy
    that reads `Observations.Ycov` says so by an attribute `uses_item_covariance` that is true.
    """

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """Propose q points that differ from each other and from every point proposed before.

        `seed` is the campaign's. Random numbers derive from (seed, `observations.count`), so that
        each call draws its own and a rebuilt campaign draws the same.
        """
        ...


STRATEGIES: dict[str, str] = {
    "sobol": "acquisition.baselines:Sobol",
    "qlognehvi": "acquisition.mm_mo:QLogNEHVI",
    "mm_mo": "acquisition.mm_mo:MMMO",
}


def open_strategy(name: str, options: Mapping[str, Any]) -> Strategy:
    """Build a strategy from the table, or from a dotted path `module:Class`.

    Raises:
        KeyError: the name is neither in the table nor a dotted path.
        TypeError: an option that the strategy does not have.
    """
    path = STRATEGIES.get(name, name)
    if ":" not in path:
        raise KeyError(name)
    strategy: Strategy = resolve_name(path)(**options)
    return strategy
