"""The table, the small results file and the plot of finished runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

Record = Mapping[str, Any]
MEASURES = ("hypervolume", "front_hypervolume", "front_igd_plus")


def grouped(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Records by problem (with its settings) and contestant, in order of appearance."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        run = record["run"]
        groups.setdefault((setting(run), run["contestant"]), []).append(record)
    return groups


def setting(run: Mapping[str, Any]) -> str:
    """What a run shares with those it may be compared with."""
    extra = "".join(f", {name}" for name in ("anchors", "reference") if run[name])
    return f"{run['problem']}, {run['budget']} x {run['items']} items{extra}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student); NaN for one value."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(student.ppf(0.975, len(values) - 1) * error)


def lines(records: Iterable[Record], at: Sequence[int], against: str) -> list[str]:
    """Markdown: hypervolume after `at` evaluations, then what the final front is worth.

    The final hypervolume of the contestant `against` is subtracted from the others', seed by seed.
    """
    result: list[str] = []
    groups = grouped(records)
    for name in dict.fromkeys(s for s, _ in groups):
        shown = [n for n in at if n <= _budget(groups, name)]
        columns = [f"HV % at {n}" for n in shown]
        columns += [
            f"less `{against}`",
            "measured front HV %",
            "its IGD+ x 100",
            "proposals, CPU s",
            "seeds",
        ]
        result += ["", f"**{name}**", "", "| contestant | " + " | ".join(columns) + " |"]
        result.append("|---" * (len(columns) + 1) + "|")
        rows = [(c, rs) for (s, c), rs in groups.items() if s == name]
        rows.sort(key=lambda row: -interval(_last(row[1], "hypervolume"))[0])
        for contestant, rs in rows:
            cells = [_cell([100 * r["hypervolume"][n - 1] for r in rs]) for n in shown]
            cells.append(_cell(_differences(rs, groups.get((name, against), []))))
            cells.append(_cell([100 * v for v in _last(rs, "front_hypervolume")]))
            cells.append(_cell([100 * v for v in _last(rs, "front_igd_plus")]))
            cells.append(f"{np.mean([r['proposal_cpu_s'] for r in rs]):.1f}")
            result.append(f"| `{contestant}` | " + " | ".join([*cells, str(len(rs))]) + " |")
    return result


def _budget(groups: Mapping[tuple[str, str], list[Record]], name: str) -> int:
    return max(r["run"]["budget"] for (s, _), rs in groups.items() if s == name for r in rs)


def _last(records: Sequence[Record], measure: str) -> list[float]:
    return [r[measure][-1] for r in records]


def _differences(records: Sequence[Record], others: Sequence[Record]) -> list[float]:
    """Final hypervolume in percent less that of the other contestant with the same seed."""
    final = {r["run"]["seed"]: r["hypervolume"][-1] for r in others}
    both = [r for r in records if r["run"]["seed"] in final]
    return [100 * (r["hypervolume"][-1] - final[r["run"]["seed"]]) for r in both]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, half = interval(values)
    return f"{mean:.1f} ± {half:.1f}" if len(values) > 1 else f"{mean:.1f}"


def save(records: Iterable[Record], at: Sequence[int], command: str, path: Path) -> None:
    """Write per setting and contestant what each seed reached after `at` evaluations."""
    content: dict[str, Any] = {"command": command, "measures": MEASURES, "results": {}}
    for (name, contestant), rs in grouped(records).items():
        content["results"].setdefault(name, {})[contestant] = {
            str(r["run"]["seed"]): {
                str(n): [round(r[m][n - 1], 4) for m in MEASURES]
                for n in at
                if n <= r["run"]["budget"]
            }
            for r in rs
        }
    text = json.dumps(content, indent=1)
    path.write_text(_flat(text) + "\n")


def _flat(text: str) -> str:
    """Put the innermost lists on one line each."""
    pieces = text.split("[\n")
    flat = [pieces[0]]
    for piece in pieces[1:]:
        inside, closed, rest = piece.partition("]")
        flat.append("[" + " ".join(inside.split()) + closed + rest)
    return "".join(flat)


def plot(records: Iterable[Record], path: Path) -> None:
    """One chart per setting: median of the hypervolume, and the band between the quartiles."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative

    groups = grouped(records)
    charts = []
    for name in dict.fromkeys(s for s, _ in groups):
        figure = go.Figure()
        contestants = [(c, rs) for (s, c), rs in groups.items() if s == name]
        for i, (contestant, rs) in enumerate(contestants):
            colour = qualitative.Dark24[i % len(qualitative.Dark24)]
            low, middle, high = np.quantile([r["hypervolume"] for r in rs], (0.25, 0.5, 0.75), 0)
            n = np.arange(1, len(middle) + 1)
            common = {"legendgroup": contestant, "name": contestant}
            figure.add_scatter(x=n, y=100 * middle, line={"color": colour}, **common)
            figure.add_scatter(
                x=np.concatenate([n, n[::-1]]),
                y=100 * np.concatenate([high, low[::-1]]),
                fill="toself",
                fillcolor=colour,
                opacity=0.12,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                **common,
            )
        figure.update_layout(
            title=f"{name}: median and quartiles over seeds",
            xaxis_title="evaluations",
            yaxis_title="hypervolume, % of the reference",
        )
        charts.append(figure.to_html(full_html=False, include_plotlyjs=not charts))
    path.write_text("<!doctype html><meta charset=utf-8>" + "\n".join(charts))
