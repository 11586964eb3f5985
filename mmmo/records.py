"""Trials, what is stored of them, and what a strategy sees; the only owner of signs and scales."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from evaluators.recipe import MergeRecipe
from mmmo.config import CampaignConfig

if TYPE_CHECKING:
    import torch

    from acquisition.strategy import KnownObjective, Observations
    from evaluators.benchmarks.benchmark import Score
    from evaluators.worker import EvaluationResult
    from mmmo.space import SearchSpace

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
        failures: how often it failed.
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
        "scores": {k: m.__dict__ for k, m in trial.scores.items()},
        "measures": dict(trial.measures),
        "timings": {},
        "digest": trial.digest,
        "answered_by": trial.number,
        "share": trial.share,
        "scored": 0,
    }


def observations(  # noqa: PLR0913
    trials: Sequence[Trial],
    objectives: Sequence[Objective],
    config: CampaignConfig,
    space: SearchSpace,
    known: Sequence[KnownObjective | None],
    anchors: Sequence[Sequence[float]],
    importance: torch.Tensor | None = None,
) -> Observations:
    """Everything the acquisition needs, maximised, on one scale: an objective that is minimised
    changes its sign, and with it its reference point and its constraints.

    A promoted trial that is not done is a point with the scores that it has; one whose promotion
    failed for good counts as growing for ever.
    """
    import torch

    from acquisition.strategy import Observations
    from mmmo.item_covariance import item_covariances

    def rows(values: Sequence[Sequence[float]], width: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.double).reshape(len(values), width)

    def points(*states: State) -> torch.Tensor:
        return rows([t.x for t in trials if t.state in states], space.size)

    scored = [t for t in trials if t.state == "completed"]
    measured = [[t.objective(o) for o in objectives] for t in scored]
    shares = torch.tensor([t.share for t in scored], dtype=torch.double)
    one_order = bool(scored) and all(t.order is None for t in scored)
    signs = torch.tensor([o.sign for o in objectives], dtype=torch.double)
    return Observations(
        X=points("completed"),
        Y=signs * rows([[m.value for m in row] for row in measured], len(objectives)),
        Yvar=rows([[m.se**2 for m in row] for row in measured], len(objectives)),
        pending=points("proposed", "running"),
        failed=points("failed"),
        anchors=rows(anchors, space.size),
        reference=_reference(objectives),
        known=tuple(known),
        constraints=_constraints(config, objectives),
        snap=space.snap,
        names=space.columns,
        share=shares if (shares < 1).any() else None,
        growing=tuple(row for row, t in enumerate(scored) if t.growth is not None),
        importance=importance,
        merge_cost=merge_cost(scored),
        Ycov=item_covariances(measured) if one_order else None,
    )


def seconds_per_part(trials: Iterable[Trial]) -> tuple[float, float]:
    """Mean seconds of a merge, and of scoring one on all items, as far as there were any."""
    evaluated = [t for t in trials if t.merges]
    merges, shares = sum(t.merges for t in evaluated), sum(t.share for t in evaluated)
    merging = sum(t.timings.get("merge_s", 0.0) for t in evaluated)
    if not evaluated:
        return 0.0, 0.0
    return merging / merges, (sum(t.seconds for t in evaluated) - merging) / shares


def merge_cost(trials: Iterable[Trial]) -> float:
    """What a merge costs, where scoring it on all items costs 1; 0 before anything is known.

    It comes from the clock, which no two runs of a campaign agree on, so it is rounded to a power
    of two: they then decide alike unless they differ much. What one run has recorded decides the
    same when it is resumed.
    """
    merge_s, scoring_s = seconds_per_part(trials)
    return 2.0 ** round(math.log2(merge_s / scoring_s)) if merge_s and scoring_s else 0.0


def _reference(objectives: Sequence[Objective]) -> Any:
    """The user's reference point; NaN where the acquisition is to infer it; None if all of it."""
    import torch

    given = [math.nan if o.reference is None else o.sign * o.reference for o in objectives]
    return None if all(map(math.isnan, given)) else torch.tensor(given, dtype=torch.double)


def _constraints(config: CampaignConfig, objectives: Sequence[Objective]) -> tuple[Any, Any] | None:
    """`A @ y >= b` in maximised units."""
    import torch

    if not config.constraints:
        return None
    index = {o.name: i for i, o in enumerate(objectives)}
    A = torch.zeros(len(config.constraints), len(objectives), dtype=torch.double)
    b = torch.zeros(len(config.constraints), dtype=torch.double)
    for row, constraint in enumerate(config.constraints):
        column = index[constraint.objective]
        direction = 1.0 if constraint.sign == ">=" else -1.0
        A[row, column] = direction * objectives[column].sign
        b[row] = direction * constraint.bound
    return A, b


def feasible(trial: Trial, objectives: Sequence[Objective], config: CampaignConfig) -> bool:
    """Whether the measured values meet every constraint."""
    by_name = {o.name: o for o in objectives}
    for constraint in config.constraints:
        value = trial.objective(by_name[constraint.objective]).value
        if not (
            value >= constraint.bound if constraint.sign == ">=" else value <= constraint.bound
        ):
            return False
    return True
