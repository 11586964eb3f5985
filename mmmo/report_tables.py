"""The tables of the report: every trial, and what the held-out items say of the exported models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from mmmo.card import flat_parameters
from mmmo.held_out import HeldOut, interval, references
from mmmo.history import History
from mmmo.page import Cell, table
from mmmo.records import Measurement, Objective, Trial

NOTHING: Cell = ("", "")


def trial_table(history: History) -> str:
    """Make the HTML table of all trials; rows of the front have the class `front`."""
    front = {t.number for t in history.pareto.front}
    trials, anchors = _by_number(history.trials.values()), history.anchors
    partial = any(t.share < 1 for t in trials)
    names = [escape(o.name) for o in history.objectives]
    items = ["items"] if partial else []
    head = ["trial", "state", "origin", *items, *names, "seconds", "recipe or failure"]
    rows = [[*_cells(t, history.objectives, anchors.get(t.number), partial)] for t in trials]
    return table(head, rows, ["front" if t.number in front else "" for t in trials])


def held_out_table(history: History, held_out: Mapping[str, HeldOut]) -> str:
    """Make the HTML table of held-out scores: the sources first, then trials by number."""
    models = {name: recipe.key for name, recipe in references(history).items()}
    models |= {f"trial {t.number}": t.key for t in _by_number(history.completed)}
    benchmarks = list(history.config.benchmarks)
    rows = [
        [(escape(model), model), *_held_out_cells(held_out[key], benchmarks)]
        for model, key in models.items()
        if key in held_out
    ]
    return table(["model", *benchmarks], rows)


def _cells(
    trial: Trial, objectives: Sequence[Objective], anchor: str | None, partial: bool
) -> Iterator[Cell]:
    yield str(trial.number), trial.number
    failed = ' class="failed"' if trial.state == "failed" else ""
    yield f"<span{failed}>{trial.state}</span>", trial.state
    origin = f'<span class="anchor">{escape(anchor)}</span>' if anchor else escape(trial.origin)
    yield origin, anchor or trial.origin
    if partial:
        yield f"{trial.share:.0%}", trial.share
    for objective in objectives:
        done = trial.state == "completed"
        yield _measured(trial.objective(objective)) if done else NOTHING
    spent = ", ".join(f"{k.removesuffix('_s')} {v:.2f}" for k, v in trial.timings.items())
    yield f'<span title="{escape(spent)}">{trial.seconds:.2f}</span>', trial.seconds
    yield _details(trial), ""


def _held_out_cells(found: HeldOut, benchmarks: Sequence[str]) -> Iterator[Cell]:
    for name in benchmarks:
        if found.failure is not None:
            yield f'<span class="failed">{escape(found.failure["kind"])}</span>', ""
        elif name in found.scores:
            low, high = interval(found.scores[name])
            value = found.scores[name].value
            yield f'{value:.4g} <span class="soft">{low:.3g} to {high:.3g}</span>', value
        else:
            yield NOTHING


def _measured(found: Measurement) -> Cell:
    error = f' <span class="soft">± {found.se:.2g}</span>' if found.se else ""
    return f"{found.value:.4g}{error}", found.value


def _details(trial: Trial) -> str:
    """Say what is behind a trial: why it failed, and its recipe."""
    failure = ""
    if trial.failure:
        said = f"{trial.failure['kind']}: {trial.failure['message']}"
        failure = f'<span class="failed">{escape(said)}</span>'
        if log := trial.failure.get("detail"):
            failure += f"<details><summary>log</summary><pre>{escape(log)}</pre></details>"
    lines = "\n".join(f"{k}: {_plain(v)}" for k, v in flat_parameters(trial.recipe).items())
    keys = f"key {trial.key}" + (f"\ndigest {trial.digest}" if trial.digest else "")
    summary = escape(trial.recipe.method)
    return (
        f"{failure}<details><summary>{summary}</summary><pre>{escape(lines)}\n{escape(keys)}</pre>"
        "</details>"
    )


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower()


def _by_number(trials: Iterable[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda t: t.number)
