"""Items as fidelity: how many items a trial is scored on, and which trials are scored on more.

A score of n random items is as good as its standard error says; a trial begins with a share of the
items, and may be promoted to a larger share of the same order. Whatever strategy proposes the
points, an allocation divides the next q orders among new points and promotions.

Rule `gain` puts all orders in one currency, the expected growth of the hypervolume of posterior
means per cost (a knowledge gradient, Frazier et al. 2009, of one point; Daulton et al. 2023 use the
same idea for multi-fidelity). Observing x on further items moves its posterior mean by a normal
amount of variance σ⁴/(σ² + v), where σ² is its posterior variance now and v that of the new items'
mean. For a new point that growth is an expected improvement; for an old one it is the improvement
over the others that the moved mean is expected to have, less what it has already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import moocore
import numpy as np
import torch
from torch import Tensor

from acquisition.boxes import MOST_OBJECTIVES
from acquisition.fronts import feasible, floors, given_or, infer_reference, times_dominated
from acquisition.improvement import Boxes, log_improvement
from acquisition.outcomes import OutcomeScale
from acquisition.reproducible import reproducible
from acquisition.sampled_front import SampledFront
from acquisition.strategy import Observations, Proposal, Strategy
from acquisition.surrogates import NUMERICAL_ERRORS, Surrogate, fit_surrogate

PromotionRule = Literal["never", "halving", "gain"]

STEP = 3.0
"""A promotion multiplies the share by this; successive halving keeps one in so many."""

FULL = 1.0 - 1e-9
"""Shares above this are all items."""

LEAST_DEVIATION = 1e-9


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
        promote: `never`; `halving`: one in three of the trials at a share goes on to three times
            that share, without waiting for the others (ASHA, Li et al. 2020); `gain`: whatever
            gains most expected hypervolume per cost, with five objectives or more as `halving`.

    Raises:
        ValueError: a value that is not allowed.
    """

    start: float = 1.0
    promote: PromotionRule = "never"

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1:
            raise ValueError(f"start: found {self.start}, allowed: more than 0, at most 1")
        if self.promote not in get_args(PromotionRule):
            allowed = ", ".join(get_args(PromotionRule))
            raise ValueError(f"promote: found {self.promote!r}, allowed: {allowed}")

    def plan(self, strategy: Strategy, observations: Observations, q: int, seed: int) -> Plan:
        """Plan q orders, fewer only where nothing is left to do; a pure function."""
        if self.start > FULL or self.promote == "never" or len(observations.X) < 2:
            return Plan(strategy.propose(observations, q, seed), self.start)
        if self.promote == "halving" or observations.Y.shape[1] > MOST_OBJECTIVES:
            promotions = self._halving(observations)[:q]
            proposal = strategy.propose(observations, q - len(promotions), seed)
            return Plan(proposal, self.start, promotions)
        proposal = strategy.propose(observations, q, seed)
        if any(row["origin"] in ("anchor", "sobol") for row in proposal.diagnostics):
            return Plan(proposal, self.start)  # the initial design is not weighed against anything
        return self._weighed(observations, proposal, q)

    def confirm(self, observations: Observations, count: int) -> tuple[Promotion, ...]:
        """Rows to score on all items before the end, most valuable first, at most `count`.

        The `count` trials whose posterior means have the largest hypervolume together, chosen
        greedily, less those that have answered everything or are growing. Empty when all of them
        have: the front is confirmed.
        """
        share = _shares(observations)
        rows = _most_valuable(observations, count)
        growing = set(observations.growing)
        return tuple(
            Promotion(row, 1.0) for row in rows if share[row] <= FULL and row not in growing
        )

    def _next(self, share: float) -> float:
        return 1.0 if share * STEP > FULL else share * STEP

    def _halving(self, observations: Observations) -> tuple[Promotion, ...]:
        """The best third at each share that has not gone on yet, largest shares first."""
        share, growing = _shares(observations), set(observations.growing)
        ok = feasible(observations.Y, observations.constraints)
        promotions: list[Promotion] = []
        for level in sorted({float(s) for s in share if s <= FULL}, reverse=True):
            reached = [i for i in range(len(share)) if share[i] >= level - 1e-9]
            best = _ranked(observations.Y[reached], ok[reached])[: int(len(reached) / STEP)]
            rows = [reached[i] for i in best]
            promotions += [
                Promotion(row, self._next(level))
                for row in rows
                if abs(float(share[row]) - level) < 1e-9 and row not in growing
            ]
        return tuple(promotions)

    def _weighed(self, observations: Observations, proposal: Proposal, q: int) -> Plan:
        """Promotions whose gain per cost is above that of the new points that they displace."""
        try:
            with reproducible(0):
                belief = _Belief.of(observations)
                fresh = belief.of_new(proposal.X, self.start)
                cost = observations.merge_cost
                grown = []
                for row in belief.open_rows():
                    share = self._next(float(belief.share[row]))
                    gain = belief.of_more(row, share)
                    grown.append((gain / (cost + share - float(belief.share[row])), row, share))
        except NUMERICAL_ERRORS:
            return Plan(proposal, self.start)
        rates = [float(g) / (cost + self.start) for g in fresh]
        places = sorted(range(len(rates)), key=lambda i: rates[i])
        kept, promotions = list(range(len(rates))), []
        # The most gainful promotion against a place that no new point fills, then against the least
        # gainful new point, and so on.
        for (rate, row, share), place in zip(
            sorted(grown, reverse=True), [*[None] * (q - len(rates)), *places], strict=False
        ):
            if rate <= (0.0 if place is None else rates[place]):
                break
            promotions.append(Promotion(row, share, {"gain_per_cost": rate}))
            if place is not None:
                kept.remove(place)
        return Plan(proposal.only(kept), self.start, tuple(promotions))


@dataclass(frozen=True)
class _Belief:
    """Posterior moments of all rows, and the noise of all items, in standardised units.

    Attributes:
        front: fronts of means, from which rows are taken away.
        mean: `n x m`.
        deviation: `n x m`, next to nothing where an objective is known.
        noise: `m` variances of a score on all items.
        share: `n`.
    """

    front: SampledFront
    mean: Tensor
    deviation: Tensor
    noise: Tensor
    share: Tensor
    growing: tuple[int, ...]

    @classmethod
    def of(cls, seen: Observations) -> _Belief:
        surrogate = _fitted(seen)
        scale, share = surrogate.scale, _shares(seen)
        constraints = None if seen.constraints is None else scale.constraints(*seen.constraints)
        front = SampledFront.of(
            surrogate,
            seen.X[:0],
            _reference(seen, scale),
            floors(constraints, seen.Y.shape[1]),
            integrates=False,
        )
        with torch.no_grad():
            mean, deviation = front.moments(seen.X)
        noise = (seen.Yvar / scale.scale**2 * share.unsqueeze(-1)).mean(0)
        return cls(front, mean[:, 0], deviation[:, 0], noise, share, seen.growing)

    def open_rows(self) -> list[int]:
        """Rows that could be scored on more items and whose means are on the front, or nearly."""
        optimistic = self.mean + self.deviation
        rows = range(len(self.mean))
        return [
            i
            for i in rows
            if self.share[i] <= FULL
            and i not in self.growing
            and not ((self.mean >= optimistic[i]).all(-1) & (torch.arange(len(rows)) != i)).any()
        ]

    def of_new(self, X: Tensor, share: float) -> Tensor:
        """Expected growth by new points `c x d` scored on a share of the items: `c`."""
        if len(X) == 0:
            return X.new_empty(0)
        with torch.no_grad():
            mean, deviation = self.front.moments(X)
            boxes = self._boxes(torch.ones(len(self.mean), dtype=torch.bool))
            moved = self._moved(deviation, self.noise / share)
            return log_improvement(mean, moved, boxes, self.front.floor).exp()

    def of_more(self, row: int, share: float) -> float:
        """Expected growth by scoring a row on the items up to a share."""
        others = torch.arange(len(self.mean)) != row
        boxes = self._boxes(others)
        mean = self.mean[row].reshape(1, 1, -1)
        more = self.noise / (share - self.share[row])
        moved = self._moved(self.deviation[row].reshape(1, 1, -1), more)
        still = torch.full_like(moved, LEAST_DEVIATION)
        after, now = (
            log_improvement(mean, s, boxes, self.front.floor).exp() for s in (moved, still)
        )
        return float(after - now)

    def _boxes(self, rows: Tensor) -> Boxes:
        outcomes = self.mean[rows].unsqueeze(0)
        counted = (outcomes >= self.front.floor).all(-1)
        return Boxes.above(outcomes, counted, self.front.reference)

    @staticmethod
    def _moved(deviation: Tensor, noise: Tensor) -> Tensor:
        """Standard deviation of the change of the mean: σ²/√(σ² + v)."""
        variance = deviation.square()
        return (variance / (variance + noise).sqrt()).clamp_min(LEAST_DEVIATION)


def _most_valuable(seen: Observations, count: int) -> list[int]:
    """Rows of the largest hypervolume of posterior means, greedily, at most `count`."""
    if len(seen.X) < 2:
        return list(range(min(count, len(seen.X))))
    scale = OutcomeScale.of(seen.Y)
    try:
        with reproducible(0):
            values = _fitted(seen).mean(seen.X)
    except NUMERICAL_ERRORS:
        values = scale.standardise(seen.Y)
    ok = feasible(seen.Y, seen.constraints)
    left = [int(i) for i in torch.nonzero(ok).squeeze(-1)]
    reference = _reference(seen, scale).numpy()
    chosen: list[int] = []
    best = 0.0
    while left and len(chosen) < count:
        volumes = [
            float(moocore.hypervolume(values[[*chosen, i]].numpy(), ref=reference, maximise=True))
            for i in left
        ]
        i = int(np.argmax(volumes))
        if volumes[i] <= best:
            break
        best = volumes[i]
        chosen.append(left.pop(i))
    return chosen


def _ranked(Y: Tensor, ok: Tensor) -> list[int]:
    """Rows of `n x m` by how many rows dominate them; ties by the sum of their scaled values.

    Rows that are not `ok` (`n`, bool) come last.
    """
    rank = times_dominated(Y)
    extent = (Y.amax(0) - Y.amin(0)).clamp_min(1e-12)
    total = ((Y - Y.amin(0)) / extent).sum(-1)
    return sorted(range(len(Y)), key=lambda i: (not ok[i], int(rank[i]), -float(total[i]), i))


def _shares(seen: Observations) -> Tensor:
    return torch.ones(len(seen.X), dtype=torch.float64) if seen.share is None else seen.share


def _fitted(seen: Observations) -> Surrogate:
    """The plainest of the surrogates that the default strategy believes in."""
    known = seen.known or (None,) * seen.Y.shape[1]
    return fit_surrogate(seen.X, seen.Y, seen.Yvar, known, kind="concentrated", link="logit")


def _reference(seen: Observations, scale: OutcomeScale) -> Tensor:
    """`m` in standardised units: what the user gave, else what all observations say."""
    constraints = None if seen.constraints is None else scale.constraints(*seen.constraints)
    inferred = infer_reference(scale.standardise(seen.Y), constraints, of_front=False)
    given = None if seen.reference is None else scale.standardise(seen.reference)
    return given_or(given, inferred)
