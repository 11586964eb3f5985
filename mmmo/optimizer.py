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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from ax.core.data import Data
from ax.core.experiment import Experiment
from ax.core.types import TParameterization
from ax.generation_strategy.external_generation_node import ExternalGenerationNode
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.utils.common.logger import set_ax_logger_levels

from acquisition.strategy import KnownObjective, Observations, Proposal, Strategy
from mmmo.anchors import anchors
from mmmo.config import CampaignConfig, Constraint
from mmmo.errors import Fault
from mmmo.records import Objective, Trial, observations
from mmmo.space import SearchSpace
from mmmo.strategies import build_strategy

set_ax_logger_levels(logging.ERROR)


@dataclass(frozen=True)
class Candidate:
    """A point of the unit cube and how the strategy came to it."""

    x: tuple[float, ...]
    diagnostics: Mapping[str, Any]


class StrategyNode(ExternalGenerationNode):
    """Hands the candidates of one proposal to Ax, one by one."""

    def __init__(self, strategy: Strategy, seed: int) -> None:
        # The strategy never repeats a point, so Ax need not look for duplicates.
        super().__init__(name="strategy", should_deduplicate=False)
        self._strategy, self._seed = strategy, seed
        self._proposal: Proposal | None = None
        self._next = 0

    def prepare(self, observed: Observations, q: int) -> Proposal:
        """Ask the strategy for q candidates; Ax then draws them in order."""
        self._proposal = self._strategy.propose(observed, q, self._seed)
        self._next = 0
        return self._proposal

    def update_generator_state(self, experiment: Experiment, data: Data) -> None:
        """Do nothing: strategies are stateless, `prepare` gave them everything."""

    def get_next_candidate(self, pending_parameters: list[TParameterization]) -> TParameterization:
        """The next row of the proposal as Ax parameters."""
        if self._proposal is None or self._next >= len(self._proposal.X):
            raise Fault("Ax asked for more candidates than were proposed")
        row = self._proposal.X[self._next].tolist()
        self._next += 1
        return {f"x{i}": value for i, value in enumerate(row)}


class Optimizer:
    """Proposes candidates for a campaign.

    Args:
        delta_l1: the exact mean |delta| per parameter of points `... x d`, if it is known.

    Raises:
        UserError: `search.strategy` or `search.options` name something that does not exist.
    """

    def __init__(
        self,
        config: CampaignConfig,
        space: SearchSpace,
        objectives: Sequence[Objective],
        delta_l1: KnownObjective | None = None,
    ) -> None:
        self._config, self._space, self._objectives = config, space, tuple(objectives)
        self._known = [_signed(o, delta_l1) for o in objectives]
        self._anchors = list(anchors(space).values())
        self._node = StrategyNode(build_strategy(config.search), config.seed)
        self._client = self._new_client()
        self._states: dict[int, str] = {}

    def propose(self, trials: Mapping[int, Trial], q: int) -> list[Candidate]:
        """The next candidates: q, or fewer where the space has no more; their trial numbers follow
        those of `trials`.
        """
        self._follow(trials)
        observed = observations(
            [trials[n] for n in sorted(trials)],
            self._objectives,
            self._config,
            self._space,
            self._known,
            self._anchors,
        )
        proposal = self._node.prepare(observed, q)
        q = len(proposal.X)
        drawn = self._client.get_next_trials(max_trials=q) if q else {}
        expected = range(len(trials), len(trials) + q)
        if sorted(drawn) != list(expected):
            raise Fault(f"Ax numbered its trials {sorted(drawn)}, expected {list(expected)}")
        self._states |= dict.fromkeys(expected, "running")
        columns = range(self._space.size)
        return [
            Candidate(tuple(float(drawn[n][f"x{i}"]) for i in columns), diagnostics)
            for n, diagnostics in zip(sorted(drawn), proposal.diagnostics, strict=True)
        ]

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
            if self._states[number] == "running" and trial.state == "completed":
                measured = {
                    _metric(i, o): (trial.objective(o).value, trial.objective(o).se)
                    for i, o in enumerate(self._objectives)
                }
                self._client.complete_trial(number, raw_data=measured)
            elif self._states[number] == "running" and trial.state == "failed":
                self._client.mark_trial_failed(number)
            else:
                continue
            self._states[number] = trial.state


def _metric(index: int, objective: Objective) -> str:
    """A name that Ax's expressions can hold: `-` or `.` would be read as arithmetic."""
    return f"o{index}_" + re.sub(r"\W", "_", objective.name)


def _signed(objective: Objective, delta_l1: KnownObjective | None) -> KnownObjective | None:
    if objective.measure != "delta_l1" or delta_l1 is None:
        return None
    sign, known = objective.sign, delta_l1
    return lambda X: sign * known(X)
