"""Trials and their life cycle, folded from events; the only owner of signs and scales.

    proposed ──► running ──► completed
        ▲           │
        └── retry ──┴──────► failed

A trial is recorded as *proposed* before anything is dispatched. A process that dies leaves its
trials *running*; whoever resumes treats them as proposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from evaluators.recipe import MergeRecipe
from mmmo.config import CampaignConfig
from mmmo.store import Event

if TYPE_CHECKING:
    from acquisition.strategy import KnownObjective, Observations
    from evaluators.benchmarks.benchmark import Score
    from evaluators.worker import EvaluationResult
    from mmmo.space import SearchSpace

State = Literal["proposed", "running", "completed", "failed"]
OPEN: frozenset[State] = frozenset({"proposed", "running"})


@dataclass(frozen=True)
class Measurement:
    """A score as it is stored: value ± se from n items; `outcomes` as `statistics.pack` writes."""

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

    @property
    def origin(self) -> str:
        """`anchor`, `sobol`, `acquisition`, …"""
        return str(self.diagnostics.get("origin", ""))

    @property
    def seconds(self) -> float:
        """What merging and scoring took; loading a worker's sources is no part of it."""
        return sum(s for part, s in self.timings.items() if part != "load_s")

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
        }


def proposed(
    x: Sequence[float], recipe: MergeRecipe, diagnostics: Mapping[str, Any]
) -> dict[str, Any]:
    """Payload of a *proposed* event."""
    return {
        "x": list(x),
        "key": recipe.key,
        "recipe": recipe.model_dump(mode="json"),
        "diagnostics": dict(diagnostics),
    }


def completed(result: EvaluationResult) -> dict[str, Any]:
    """Payload of a *completed* event."""
    return {
        "scores": {name: stored_score(score) for name, score in result.scores.items()},
        "measures": dict(result.measures),
        "timings": dict(result.timings),
        "digest": result.digest,
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
    """Payload of a *completed* event for a recipe that another trial already scored."""
    return {
        "scores": {k: m.__dict__ for k, m in trial.scores.items()},
        "measures": dict(trial.measures),
        "timings": {},
        "digest": trial.digest,
        "answered_by": trial.number,
    }


def fold(events: Iterable[Event], trials: dict[int, Trial] | None = None) -> dict[int, Trial]:
    """Replay events into trials, in the order of their numbers."""
    trials = {} if trials is None else trials
    for event in events:
        if event.trial is not None and event.kind in _STEPS:
            trials[event.trial] = _STEPS[event.kind](trials.get(event.trial), event)
    return trials


def _on_proposed(_: Trial | None, event: Event) -> Trial:
    p = event.payload
    assert event.trial is not None
    return Trial(
        number=event.trial,
        key=p["key"],
        x=tuple(p["x"]),
        recipe=MergeRecipe.model_validate(p["recipe"]),
        diagnostics=p["diagnostics"],
        at=event.at,
    )


def _on_started(trial: Trial | None, event: Event) -> Trial:
    return replace(
        _known(trial, event), state="running", attempts=_known(trial, event).attempts + 1
    )


def _on_completed(trial: Trial | None, event: Event) -> Trial:
    p = event.payload
    return replace(
        _known(trial, event),
        state="completed",
        scores={name: Measurement(**score) for name, score in p["scores"].items()},
        measures=p["measures"],
        timings=p["timings"],
        digest=p["digest"],
        failure=None,
        answered_by=p.get("answered_by"),
        at=event.at,
    )


def _on_failed(trial: Trial | None, event: Event) -> Trial:
    trial, p = _known(trial, event), event.payload
    failure = {"kind": p["kind"], "message": p["message"], "detail": p["detail"]}
    state: State = "failed" if p["final"] else "proposed"
    return replace(trial, state=state, failure=failure, failures=trial.failures + 1, at=event.at)


def _known(trial: Trial | None, event: Event) -> Trial:
    if trial is None:
        raise ValueError(f"event {event.id} ({event.kind}) of a trial that was never proposed")
    return trial


_STEPS: Mapping[str, Callable[[Trial | None, Event], Trial]] = {
    "proposed": _on_proposed,
    "started": _on_started,
    "completed": _on_completed,
    "failed": _on_failed,
}


def observations(  # noqa: PLR0913
    trials: Sequence[Trial],
    objectives: Sequence[Objective],
    config: CampaignConfig,
    space: SearchSpace,
    known: Sequence[KnownObjective | None],
    anchors: Sequence[Sequence[float]],
) -> Observations:
    """Everything the acquisition needs, maximised, on one scale: an objective that is minimised
    changes its sign, and with it its reference point and its constraints.
    """
    import torch

    from acquisition.strategy import Observations

    def rows(values: Sequence[Sequence[float]], width: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.double).reshape(len(values), width)

    def points(*states: State) -> torch.Tensor:
        return rows([t.x for t in trials if t.state in states], space.size)

    measured = [[t.objective(o) for o in objectives] for t in trials if t.state == "completed"]
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
    )


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
