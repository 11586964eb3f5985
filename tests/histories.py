"""Campaigns in a store without any model: trials with made-up but possible scores, for readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from campaigns import campaign

from evaluators.benchmarks.benchmark import Score
from evaluators.benchmarks.statistics import mean, proportion
from evaluators.worker import EvaluationResult, Failure
from mmmo.config import CampaignConfig, parse
from mmmo.history import History
from mmmo.preflight import Facts
from mmmo.records import Objective, completed, proposed
from mmmo.space import SearchSpace
from mmmo.store import Store

OBJECTIVES = {
    "maths": Objective("maths", "sums", None, "accuracy", 1.0),
    "code": Objective("code", "python", None, "nll", -1.0),
    "sparsity": Objective("sparsity", None, "delta_l1", "delta_l1", -1.0),
}


class Scribe:
    """Writes a campaign's events as the loop does.

    Args:
        folder: of the store.
        objectives: names of `OBJECTIVES`, or other objectives.
        changes: sections of the campaign file to replace.
    """

    def __init__(
        self,
        folder: Path,
        objectives: Sequence[str | Objective] = ("maths", "code", "sparsity"),
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        resolved = [OBJECTIVES[o] if isinstance(o, str) else o for o in objectives]
        written = {
            o.name: {"benchmark": o.benchmark} if o.benchmark else {"measure": o.measure}
            for o in resolved
        }
        self.config: CampaignConfig = parse(campaign(objectives=written, **(changes or {})), folder)
        self.space = SearchSpace(self.config)
        self.store = Store(f"sqlite:///{folder / 'store.db'}")
        self.name = self.config.name
        versions = {"mmmo": "0.1.0"}
        self.store.create(self.name, self.config.text(), self.config.identity(), versions, {})
        sizes = {"search": 40, "held_out": 40}
        hashes = {"search": "s", "held_out": "h"}
        facts = Facts(
            objectives=tuple(resolved),
            sources={"base": "b" * 64} | {e: e[0] * 64 for e in self.config.sources.experts},
            items=dict.fromkeys(self.config.benchmarks, sizes),
            fingerprints=dict.fromkeys(self.config.benchmarks, hashes),
        )
        session = {
            "budget": self.config.budget.model_dump(mode="json"),
            "pool": self.config.pool.model_dump(mode="json"),
        }
        self.record(None, "created", facts.document())
        self.record(None, "started_session", session)

    def record(self, trial: int | None, kind: str, payload: Mapping[str, Any]) -> None:
        """Append one event."""
        with self.store.acquire(self.name) as lease:
            self.store.append(lease, trial, kind, payload)

    def propose(
        self, number: int, x: Sequence[float], origin: str = "sobol", share: float = 1.0
    ) -> str:
        """Propose a point; returns the recipe's key."""
        recipe = self.space.decode(x)
        self.record(number, "proposed", proposed(x, recipe, {"origin": origin}, share))
        self.record(number, "started", {})
        return recipe.key

    def complete(
        self,
        number: int,
        x: Sequence[float],
        right: int,
        nll: float,
        *,
        origin: str = "sobol",
        delta_l1: float = 0.001,
        share: float = 1.0,
    ) -> str:
        """Complete a trial that got `right` sums and this mean nll on a share of 40 items each;
        returns its key.
        """
        key, n = self.propose(number, x, origin, share), round(40 * share)
        result = EvaluationResult(
            trial=number,
            attempt=1,
            scores={"sums": right_of(n, right), "python": nll_of(n, nll)},
            measures={"delta_l1": delta_l1},
            timings={"load_s": 0.5, "merge_s": 0.02, "sums_s": 0.3, "python_s": 0.2},
            digest="d" * 64,
            scored=2 * n,
        )
        self.record(number, "completed", completed(result))
        return key

    def fail(self, number: int, x: Sequence[float], kind: Any, message: str) -> None:
        """Fail a trial for good."""
        self.propose(number, x)
        failure = Failure(kind, message, "Traceback: …")
        self.record(number, "failed", {**failure.__dict__, "final": True})

    def history(self) -> History:
        """What a reader sees."""
        return History(self.store, self.name)


def right_of(n: int, right: int) -> Score:
    """An exact-match score of n items."""
    outcomes = np.array([1.0] * right + [0.0] * (n - right), dtype=np.float32)
    value, error = proportion(outcomes)
    return Score(value, error, n, outcomes, "search", 0.3)


def nll_of(n: int, nll: float) -> Score:
    """A likelihood score of n items, which spread by ± 0.5."""
    outcomes = np.linspace(nll - 0.5, nll + 0.5, n, dtype=np.float32)
    value, error = mean(outcomes)
    return Score(value, error, n, outcomes, "search", 0.2)
