"""What the reading verbs print: documents for `--json`, and lines and tables made from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from mmmo.beliefs import belief_lines
from mmmo.history import History
from mmmo.records import Objective, Trial


def status_document(history: History) -> dict[str, Any]:
    """A campaign in numbers."""
    states = [t.state for t in history.trials.values()]
    started = history.has_facts
    return {
        "name": history.name,
        "state": history.state,
        "trials": {s: states.count(s) for s in ("completed", "failed", "running", "proposed")},
        "budget": history.config.budget.model_dump(mode="json"),
        "scored_items": history.scored_items,
        "growing": [t.number for t in history.open if t.growth],
        "gain": history.summary.get("gain"),
        "model": dict(history.summary),
        "active_seconds": history.active_seconds,
        "objectives": [
            {"name": o.name, "goal": o.goal, "metric": o.metric}
            for o in (history.objectives if started else ())
        ],
        "front": [t.number for t in history.pareto.front] if started else [],
        "hypervolume": history.pareto.hypervolume() if started else 0.0,
        "hypervolume_of_anchors": history.hypervolume_of_anchors if started else None,
        "time": dict(history.finished) if history.finished else None,
    }


def status_lines(document: dict[str, Any]) -> list[str]:
    """The same for people."""
    trials = document["trials"]
    counts = ", ".join(f"{n} {state}" for state, n in trials.items() if n)
    alone = document["hypervolume_of_anchors"]
    beside = f" (sources and plain merges alone: {alone:.6g})" if alone is not None else ""
    gain = document["gain"]
    expected = f"; next gain {gain:.2%}" if gain is not None else ""
    return [
        f"{document['name']}: {document['state']}, {counts or 'no trials'}{_of(document)}; "
        f"front {len(document['front'])}, hypervolume {document['hypervolume']:.6g}{beside}"
        f"{expected}; {document['active_seconds']:.0f} s",
        *belief_lines(document["model"], [o["name"] for o in document["objectives"]]),
    ]


def _of(document: dict[str, Any]) -> str:
    """What the budget allows, and how many items of it are scored."""
    budget = document["budget"]
    trials = f" of {budget['trials']}" if "trials" in budget else ""
    growing = f" ({len(document['growing'])} growing)" if document["growing"] else ""
    items = f", {document['scored_items']} of {budget['items']} items" if "items" in budget else ""
    return trials + growing + items


def pareto_document(history: History) -> dict[str, Any]:
    """The front with what its hypervolume means."""
    pareto, objectives = history.pareto, history.objectives
    references = [float(r) for r in pareto.reference] if pareto.trials else None
    return {
        "objectives": [
            {
                "name": o.name,
                "goal": o.goal,
                "metric": o.metric,
                "reference": o.sign * references[i] if references else None,
            }
            for i, o in enumerate(objectives)
        ],
        "hypervolume": pareto.hypervolume(),
        "trace": pareto.trace,
        "knee": pareto.knee.number if pareto.front else None,
        "front": [t.document(objectives) for t in pareto.front],
    }


def trial_table(trials: Iterable[Trial], history: History) -> str:
    """One line per trial, columns aligned."""
    objectives = history.objectives
    front = {t.number for t in history.pareto.front}
    partial = any(t.share < 1 for t in history.trials.values())
    share = ["items"] if partial else []
    head = ["trial", "state", "origin", "seconds", *share, *(o.name for o in objectives), ""]
    rows = [
        [
            str(t.number),
            t.state,
            t.origin,
            f"{t.seconds:.2f}" if t.state == "completed" else "",
            *([_share(t)] if partial else []),
            *(_cells(t, objectives)),
            "front" if t.number in front else (t.failure or {}).get("kind", ""),
        ]
        for t in trials
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    )


def trial_lines(trial: Trial, history: History) -> list[str]:
    """Everything about one trial, as YAML."""
    document = trial.document(history.objectives)
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).splitlines()


def ending_lines(history: History) -> list[str]:
    """What is printed when a campaign's process ends."""
    lines = [trial_table(history.pareto.front, history), *status_lines(status_document(history))]
    if history.finished:
        time = history.finished
        lines.append(
            f"{time['wall_s']:.1f} s wall; merging and scoring {time['work_s']:.1f} s on "
            f"{time['workers']:.0f} worker(s), proposing {time['propose_s']:.1f} s; "
            f"overhead {time['overhead']:.1%} of the workers' time"
        )
        lines.append(f"next: mmmo export {history.name}; mmmo report {history.name}")
    return lines


def _share(trial: Trial) -> str:
    """The share of the items that is behind the scores, and the one they grow to."""
    now = f"{trial.share:.0%}"
    if trial.growth is None:
        return now
    failed = f": {trial.growth.failure['kind']}" if trial.growth.failure else ""
    return f"{now} → {trial.growth.share:.0%}{failed}"


def _cells(trial: Trial, objectives: Sequence[Objective]) -> list[str]:
    if trial.state != "completed":
        return [""] * len(objectives)
    measured = [trial.objective(o) for o in objectives]
    return [f"{m.value:.4g} ± {m.se:.2g}" if m.se else f"{m.value:.4g}" for m in measured]
