"""Trials, objectives and scores, and the payloads of the events that record them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from evaluators.recipe import MergeRecipe

if TYPE_CHECKING:
    from evaluators.benchmarks.benchmark import Score
    from evaluators.worker import EvaluationResult

State = Literal["proposed", "running", "completed", "failed"]
OPEN: frozenset[State] = frozenset({"proposed", "running"})


@dataclass(frozen=True)
class Measurement:
    """A score as it is stored: value ± se from n items; `outcomes` as `statistics.pack` writes,
    in the order in which the trial answers items.
    """

    value: float
    se: float
    n: int
    seconds: float = 0.0
    outcomes: str = ""


@dataclass(frozen=True)
class Objective:
    """What is optimised, resolved once when the campaign was created.

    Attributes:
        sign: +1 if larger is better, -1 if smaller is.
        metric: the metric's name, or the measure's.
        reference: the worst value that counts, in the objective's own units, or None.
    """

    name: str
    benchmark: str | None
    measure: str | None
    metric: str
    sign: float
    reference: float | None = None

    @property
    def goal(self) -> str:
        """In words."""
        return "maximize" if self.sign > 0 else "minimize"


@dataclass(frozen=True)
class Growth:
    """A promotion that is not done.

    Attributes:
        share: of the items, up to which the trial is to be scored.
        state: `failed` for good: the trial keeps the scores that it has and is never promoted.
        failures: how often it failed, but for workers that could not load.
        failure: kind and message of the last time.
        confirms: whether it confirms the front at the end of a search.
    """

    share: float
    state: State = "proposed"
    failures: int = 0
    failure: Mapping[str, str] | None = None
    confirms: bool = False


@dataclass(frozen=True)
class Trial:
    """One candidate and everything known about it.

    Attributes:
        number: counted from 0.
        x: the point of the unit cube that proposed it.
        attempts: how many times it was dispatched.
        failures: how often it failed, but for workers that could not load.
        scores: benchmark → measurement on the search split.
        digest: of the merged tensors that were scored.
        failure: kind and message, if it failed.
        answered_by: the trial of the same recipe whose scores these are, if it was not evaluated.
        at: when it was completed, or failed.
        share: of the search items, that its scores answer or, before there are any, are to answer.
        order: seed of its own order of the items; None: the order that all share.
        growth: a promotion that is not done, or failed.
        scored: items that were scored for it, all benchmarks together.
        merges: how often it was merged to be scored.
        since: id of the event that last ordered work on it; orders are done in this order.
        origin: which part of the strategy proposed it.
    """

    number: int
    key: str
    x: tuple[float, ...]
    recipe: MergeRecipe
    diagnostics: Mapping[str, Any]
    state: State = "proposed"
    attempts: int = 0
    failures: int = 0
    scores: Mapping[str, Measurement] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""
    failure: Mapping[str, str] | None = None
    answered_by: int | None = None
    at: float = 0.0
    share: float = 1.0
    order: int | None = None
    growth: Growth | None = None
    scored: int = 0
    merges: int = 0
    since: int = 0

    @property
    def origin(self) -> str:
        """`anchor`, `sobol`, `acquisition`, …"""
        return str(self.diagnostics.get("origin", ""))

    @property
    def seconds(self) -> float:
        """What merging and scoring took; loading a worker's sources is no part of it."""
        return sum(s for part, s in self.timings.items() if part != "load_s")

    @property
    def is_open(self) -> bool:
        """Whether it needs a worker: to be scored, or to be scored on more items."""
        return (self.growth.state if self.growth else self.state) in OPEN

    @property
    def wanted(self) -> float:
        """The share of the items that it is to be scored on, or was."""
        return self.growth.share if self.growth and self.is_open else self.share

    @property
    def stuck(self) -> bool:
        """Whether it keeps the scores that it has: its promotion failed for good."""
        return self.growth is not None and self.growth.state == "failed"

    @property
    def tried(self) -> int:
        """How often what was last ordered failed."""
        return self.growth.failures if self.growth else self.failures

    def objective(self, objective: Objective) -> Measurement:
        """The measured value of an objective, in its own units."""
        if objective.benchmark is not None:
            return self.scores[objective.benchmark]
        return Measurement(self.measures[str(objective.measure)], 0.0, 0)

    def document(self, objectives: Sequence[Objective]) -> dict[str, Any]:
        """The trial as `--json` prints it."""
        done = self.state == "completed"
        measured = {o.name: self.objective(o) for o in objectives} if done else {}
        return {
            "number": self.number,
            "key": self.key,
            "state": self.state,
            "recipe": self.recipe.model_dump(mode="json"),
            "scores": {k: {"value": m.value, "se": m.se, "n": m.n} for k, m in measured.items()},
            "measures": dict(self.measures),
            "timings": dict(self.timings),
            "failure": dict(self.failure) if self.failure else None,
            "origin": self.origin,
            "digest": self.digest,
            "attempts": self.attempts,
            "answered_by": self.answered_by,
            "share": self.share,
            "growth": asdict(self.growth) if self.growth else None,
        }


def proposed(
    x: Sequence[float],
    recipe: MergeRecipe,
    diagnostics: Mapping[str, Any],
    share: float = 1.0,
    order: int | None = None,
) -> dict[str, Any]:
    """Payload of a *proposed* event."""
    return {
        "x": list(x),
        "key": recipe.key,
        "recipe": recipe.model_dump(mode="json"),
        "diagnostics": dict(diagnostics),
        "share": share,
        "order": order,
    }


def own_order(seed: int, key: str) -> int:
    """The seed of a recipe's own order of the items, in a campaign of that seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8])


def promoted(
    share: float, diagnostics: Mapping[str, Any], confirms: bool = False
) -> dict[str, Any]:
    """Payload of a *promoted* event."""
    return {"share": share, "diagnostics": dict(diagnostics), "confirms": confirms}


def completed(result: EvaluationResult) -> dict[str, Any]:
    """Payload of a *completed* or *grown* event: all scores, and how many items are new in them."""
    return {
        "scores": {name: stored_score(score) for name, score in result.scores.items()},
        "measures": dict(result.measures),
        "timings": dict(result.timings),
        "digest": result.digest,
        "scored": result.scored,
    }


def stored_score(score: Score) -> dict[str, Any]:
    """A score as JSON, outcomes packed."""
    from evaluators.benchmarks.statistics import pack

    return {
        "value": score.value,
        "se": score.standard_error,
        "n": score.n,
        "seconds": score.seconds,
        "outcomes": pack(score.outcomes),
    }


def answered(trial: Trial) -> dict[str, Any]:
    """Payload of *completed* or *grown* for a recipe that another trial scored on as much."""
    return {
        "scores": {name: asdict(score) for name, score in trial.scores.items()},
        "measures": dict(trial.measures),
        "timings": {},
        "digest": trial.digest,
        "answered_by": trial.number,
        "share": trial.share,
        "scored": 0,
    }
