"""The loop's proposer, driven by Ax: the only importer of `ax`.

Ax holds the experiment: the unit cube as its search space, objectives and constraints, trial
states, data with standard errors. Candidates come from an `ExternalGenerationNode` that asks a
strategy of `acquisition`. Nothing of Ax is ever stored: the experiment is rebuilt from the trials
on every start and kept in step with them, and strategies see the trials' own numbers, so that a
rebuilt campaign proposes the same points bit for bit.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from ax.core.data import Data
from ax.core.experiment import Experiment
from ax.core.types import TParameterization
from ax.generation_strategy.external_generation_node import ExternalGenerationNode
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.utils.common.logger import set_ax_logger_levels
from torch import Tensor

from acquisition.allocation import Allocation, Promotion
from acquisition.sparsity import importance
from acquisition.strategy import KnownObjective, Observations
from mmmo.anchors import anchors
from mmmo.config import CampaignConfig
from mmmo.constraints import Constraint
from mmmo.errors import Fault
from mmmo.observations import observations
from mmmo.records import Objective, Trial
from mmmo.space import SearchSpace
from mmmo.strategies import (
    build_allocation,
    build_strategy,
    wants_importance,
    wants_item_covariance,
)

set_ax_logger_levels(logging.ERROR)


@dataclass(frozen=True)
class Candidate:
    """A point of the unit cube and how the strategy came to it."""

    x: tuple[float, ...]
    diagnostics: Mapping[str, Any]


@dataclass(frozen=True)
class PromotedTrial:
    """A trial to score on more items, up to this share of them."""

    number: int
    share: float
    diagnostics: Mapping[str, Any]


@dataclass(frozen=True)
class Orders:
    """What to do next.

    Attributes:
        candidates: new ones; their trial numbers follow those that there are.
        share: of the items that they begin with.
        summary: what the strategy believes; empty where it has no model.
    """

    candidates: tuple[Candidate, ...]
    share: float
    promoted: tuple[PromotedTrial, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)


Affordable = Callable[[tuple[PromotedTrial, ...], int], tuple[tuple[PromotedTrial, ...], int]]
"""Promotions and a number of new candidates → as many of both as the budget allows."""


def all_of(promoted: tuple[PromotedTrial, ...], q: int) -> tuple[tuple[PromotedTrial, ...], int]:
    """What a budget without a limit allows."""
    return promoted, q


class StrategyNode(ExternalGenerationNode):
    """Hands the candidates of one proposal to Ax, one by one."""

    def __init__(self) -> None:
        # The strategy never repeats a point, so Ax need not look for duplicates.
        super().__init__(name="strategy", should_deduplicate=False)
        self._rows: Sequence[Sequence[float]] = ()
        self._next = 0

    def prepare(self, rows: Sequence[Sequence[float]]) -> None:
        """Take what the strategy proposed; Ax then draws the rows in order."""
        self._rows, self._next = rows, 0

    def update_generator_state(self, experiment: Experiment, data: Data) -> None:
        """Do nothing: strategies are stateless, `prepare` gave them everything."""

    def get_next_candidate(self, pending_parameters: list[TParameterization]) -> TParameterization:
        """The next row of the proposal as Ax parameters."""
        if self._next >= len(self._rows):
            raise Fault("Ax asked for more candidates than were proposed")
        row = self._rows[self._next]
        self._next += 1
        return {f"x{i}": value for i, value in enumerate(row)}


class Optimizer:
    """Proposes candidates and promotions for a campaign.

    Args:
        delta_l1: the exact mean |delta| per parameter of points `... x d`, if it is known.
        allocation: divides orders among both; what `search.items` says if None.
        sizes: benchmark → number of search items; without, a merge is taken to cost nothing.

    Raises:
        UserError: `search.strategy` or `search.options` name something that does not exist.
    """

    def __init__(  # noqa: PLR0913
        self,
        config: CampaignConfig,
        space: SearchSpace,
        objectives: Sequence[Objective],
        delta_l1: KnownObjective | None = None,
        allocation: Allocation | None = None,
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._config, self._space, self._objectives = config, space, tuple(objectives)
        self._sizes = sizes
        self._known = [_signed(o, delta_l1) for o in objectives]
        self._anchors = list(anchors(space).values())
        self._importance = _importance(config, space, delta_l1)
        self._strategy = build_strategy(config.search)
        self._allocation = allocation or build_allocation(config.search)
        self._node = StrategyNode()
        self._client = self._new_client()
        self._states: dict[int, str] = {}
        self._shares: dict[int, float] = {}

    def plan(self, trials: Mapping[int, Trial], q: int, affordable: Affordable = all_of) -> Orders:
        """The next q orders; fewer where nothing is left to try, or not all are affordable."""
        self._follow(trials)
        observed, seed = self._observe(trials), self._config.seed
        plan = self._allocation.plan(self._strategy, observed, q, seed)
        proposal = plan.proposal
        promoted, new = affordable(_numbered(plan.promotions, trials), len(proposal.X))
        if plan.promotions and not promoted and not new:  # new trials may be cheaper
            proposal = self._strategy.propose(observed, q, seed)
            _, new = affordable((), len(proposal.X))
        rows = self._draw(proposal.X[:new].tolist(), first=len(trials))
        diagnostics = proposal.diagnostics[:new]
        candidates = tuple(Candidate(x, d) for x, d in zip(rows, diagnostics, strict=True))
        return Orders(candidates, plan.share, promoted, proposal.summary)

    def confirm(self, trials: Mapping[int, Trial], count: int) -> tuple[PromotedTrial, ...]:
        """Trials of the front to score on all items before the end, at most `count`."""
        return _numbered(self._allocation.confirm(self._observe(trials), count), trials)

    def _observe(self, trials: Mapping[int, Trial]) -> Observations:
        return observations(
            [trials[n] for n in sorted(trials)],
            self._objectives,
            self._config,
            self._space,
            self._known,
            self._anchors,
            self._importance,
            wants_item_covariance(self._strategy),
            self._sizes,
        )

    def _draw(self, rows: Sequence[Sequence[float]], first: int) -> list[tuple[float, ...]]:
        """Pass points through Ax, which numbers them from `first`."""
        self._node.prepare(rows)
        drawn = self._client.get_next_trials(max_trials=len(rows)) if rows else {}
        expected = range(first, first + len(rows))
        if sorted(drawn) != list(expected):
            raise Fault(f"Ax numbered its trials {sorted(drawn)}, expected {list(expected)}")
        self._states |= dict.fromkeys(expected, "running")
        columns = range(self._space.size)
        return [tuple(float(drawn[n][f"x{i}"]) for i in columns) for n in expected]

    def _new_client(self) -> Client:
        client = Client(random_seed=self._config.seed % 2**31)
        client.configure_experiment(
            name=self._config.name,
            parameters=[
                RangeParameterConfig(name=f"x{i}", bounds=(0.0, 1.0), parameter_type="float")
                for i in range(self._space.size)
            ],
        )
        metrics = {o.name: _metric(i, o) for i, o in enumerate(self._objectives)}
        client.configure_optimization(
            objective=", ".join(
                f"{'-' if o.sign < 0 else ''}{metrics[o.name]}" for o in self._objectives
            ),
            outcome_constraints=[
                f"{metrics[name]} {c.sign} {c.bound!r}" for name, c in self._thresholds().items()
            ],
        )
        client.set_generation_strategy(GenerationStrategy(name="mmmo", nodes=[self._node]))
        return client

    def _thresholds(self) -> dict[str, Constraint]:
        """The tightest constraint of each objective, as Ax takes no more, and none for a single
        objective. Strategies and the front heed all of them.
        """
        tightest: dict[str, Constraint] = {}
        if len(self._objectives) > 1:
            for c in self._config.constraints:  # all bound the side that the goal improves
                now = tightest.get(c.objective)
                if now is None or (c.bound > now.bound) == (c.sign == ">="):
                    tightest[c.objective] = c
        return tightest

    def _follow(self, trials: Mapping[int, Trial]) -> None:
        """Bring Ax's experiment to the state of our trials."""
        for number in sorted(trials):
            trial = trials[number]
            if number not in self._states:
                self._client.attach_trial({f"x{i}": v for i, v in enumerate(trial.x)})
                self._states[number] = "running"
            if trial.state == "completed" and self._shares.get(number) != trial.share:
                self._attach_scores(trial)
            elif self._states[number] == "running" and trial.state == "failed":
                self._client.mark_trial_failed(number)
            else:
                continue
            self._states[number] = trial.state

    def _attach_scores(self, trial: Trial) -> None:
        """Give Ax the trial's scores, in place of those of fewer items."""
        measured = {
            _metric(i, o): (trial.objective(o).value, trial.objective(o).se)
            for i, o in enumerate(self._objectives)
        }
        if trial.number in self._shares:
            self._client.attach_data(trial.number, raw_data=measured)
        else:
            self._client.complete_trial(trial.number, raw_data=measured)
        self._shares[trial.number] = trial.share


def _numbered(
    promotions: Sequence[Promotion], trials: Mapping[int, Trial]
) -> tuple[PromotedTrial, ...]:
    """Promotions of rows of the observations, which are the completed trials, as trials."""
    rows = [n for n in sorted(trials) if trials[n].state == "completed"]
    return tuple(PromotedTrial(rows[p.row], p.share, p.diagnostics) for p in promotions)


def _importance(
    config: CampaignConfig, space: SearchSpace, delta_l1: KnownObjective | None
) -> Tensor | None:
    """How much each coordinate moves the merge, if the strategy is to know."""
    if delta_l1 is None or not wants_importance(config.search):
        return None
    return importance(delta_l1, space.size)


def _metric(index: int, objective: Objective) -> str:
    """A name that Ax's expressions can hold: `-` or `.` would be read as arithmetic."""
    return f"o{index}_" + re.sub(r"\W", "_", objective.name)


def _signed(objective: Objective, delta_l1: KnownObjective | None) -> KnownObjective | None:
    if objective.measure != "delta_l1" or delta_l1 is None:
        return None
    sign, known = objective.sign, delta_l1
    return lambda X: sign * known(X)
