"""The life cycle of trials, folded from their events.

    proposed ──► running ──► completed
        ▲           │
        └── retry ──┴──────► failed

A trial is recorded as *proposed* before anything is dispatched. A process that dies leaves its
trials *running*; whoever resumes treats them as proposed.

A completed trial may be *promoted* to more items. It stays completed with the scores that it has,
while its growth goes through the same states, until *grown* gives it better ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from evaluators.recipe import MergeRecipe
from evaluators.worker import BLAMELESS
from mmmo.records import Growth, Measurement, State, Trial
from mmmo.store import Event


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
        share=p.get("share", 1.0),
        order=p.get("order"),
        since=event.id,
    )


def _on_started(trial: Trial | None, event: Event) -> Trial:
    trial = replace(_known(trial, event), attempts=_known(trial, event).attempts + 1)
    if trial.growth is not None:
        return replace(trial, growth=replace(trial.growth, state="running"))
    return replace(trial, state="running")


def _on_completed(trial: Trial | None, event: Event) -> Trial:
    trial, p = _known(trial, event), event.payload
    scores = {name: Measurement(**score) for name, score in p["scores"].items()}
    answered_by = p.get("answered_by")
    new = sum(m.n for m in scores.values()) if answered_by is None else 0
    return replace(
        trial,
        state="completed",
        scores=scores,
        measures=p["measures"],
        timings=p["timings"],
        digest=p["digest"],
        failure=None,
        answered_by=answered_by,
        at=event.at,
        share=p.get("share", trial.share),
        scored=p.get("scored", new),
        merges=int(answered_by is None),
    )


def _on_promoted(trial: Trial | None, event: Event) -> Trial:
    p = event.payload
    growth = Growth(p["share"], confirms=p["confirms"])
    return replace(_known(trial, event), growth=growth, since=event.id)


def _on_grown(trial: Trial | None, event: Event) -> Trial:
    """The scores are of all items that the trial has answered; timings are of the new ones."""
    before, after = _known(trial, event), _on_completed(trial, event)
    assert before.growth is not None
    parts = dict.fromkeys([*before.timings, *after.timings])
    return replace(
        after,
        timings={p: before.timings.get(p, 0.0) + after.timings.get(p, 0.0) for p in parts},
        answered_by=before.answered_by if after.answered_by is None else after.answered_by,
        at=before.at,
        share=event.payload.get("share", before.growth.share),
        growth=None,
        scored=before.scored + after.scored,
        merges=before.merges + after.merges,
    )


def _on_failed(trial: Trial | None, event: Event) -> Trial:
    trial, p = _known(trial, event), event.payload
    failure = {"kind": p["kind"], "message": p["message"], "detail": p["detail"]}
    state: State = "failed" if p["final"] else "proposed"
    own = int(p["kind"] not in BLAMELESS)
    if (growth := trial.growth) is not None:
        failures = growth.failures + own
        return replace(
            trial, growth=replace(growth, state=state, failure=failure, failures=failures)
        )
    return replace(trial, state=state, failure=failure, failures=trial.failures + own, at=event.at)


def _known(trial: Trial | None, event: Event) -> Trial:
    if trial is None:
        raise ValueError(f"event {event.id} ({event.kind}) of a trial that was never proposed")
    return trial


_STEPS: Mapping[str, Callable[[Trial | None, Event], Trial]] = {
    "proposed": _on_proposed,
    "started": _on_started,
    "completed": _on_completed,
    "promoted": _on_promoted,
    "grown": _on_grown,
    "failed": _on_failed,
}
