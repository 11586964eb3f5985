"""`pareto.json` and `pareto.csv`: the front with its held-out scores, for other programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluators.durable import write_whole
from mmmo.card import flat_parameters
from mmmo.held_out import HeldOut, measurement_document
from mmmo.history import History
from mmmo.records import Measurement, Trial
from mmmo.views import pareto_document


def write_front(history: History, held_out: Mapping[str, HeldOut], folder: Path) -> None:
    """Write both files; held-out scores are there for the trials that have been exported.

    Args:
        history: the campaign.
        held_out: recipe key → what the held-out items say.
        folder: where to.

    Raises:
        OSError: they cannot be written.
    """
    document = pareto_document(history)
    for entry in document["front"]:
        found = held_out.get(entry["key"])
        entry["held_out"] = found.document() if found else None
    write_whole(folder / "pareto.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    rows = [_row(history, trial, held_out) for trial in history.pareto.front]
    write_whole(folder / "pareto.csv", _table(rows))


def _row(history: History, trial: Trial, held_out: Mapping[str, HeldOut]) -> dict[str, Any]:
    found = held_out.get(trial.key, HeldOut())
    row: dict[str, Any] = {"trial": trial.number, "key": trial.key}
    for o in history.objectives:
        if o.benchmark is None:
            row[o.name] = trial.objective(o).value
        else:
            row |= _columns(o.name, trial.objective(o))
            row |= _columns(f"{o.name}_held_out", found.scores.get(o.benchmark))
    return row | flat_parameters(trial.recipe)


def _columns(name: str, found: Measurement | None) -> dict[str, Any]:
    names = (name, f"{name}_se", f"{name}_low", f"{name}_high", f"{name}_n")
    if found is None:
        return dict.fromkeys(names, "")
    low, high = measurement_document(found)["interval_95"]
    return dict(zip(names, (found.value, found.se, low, high, found.n), strict=True))


def _table(rows: list[dict[str, Any]]) -> str:
    names = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    table = csv.DictWriter(text, list(names), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
