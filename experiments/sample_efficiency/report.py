"""The table, the small results file and the plot of finished runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

Record = Mapping[str, Any]
MEASURES = ("hypervolume", "front_hypervolume", "front_igd_plus", "held_out_hypervolume")
"""The last only where a problem has held-out items."""
HELD_OUT = MEASURES[-1]
GRID = 120
"""Points of a line of the plot."""


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


def value(record: Record, measure: str, spent: float) -> float:
    """A measure when so many full evaluations were spent; NaN before the first."""
    steps = int(np.searchsorted(record["spent"], spent + 1e-6, side="right"))
    return float(record[measure][steps - 1]) if steps else math.nan


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student); NaN for one value."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(student.ppf(0.975, len(values) - 1) * error)


def lines(records: Iterable[Record], at: Sequence[float], against: str) -> list[str]:
    """Markdown: hypervolume when `at` full evaluations are spent, then what the front is worth.

    The front is of the points that answered all items; where some did not, a column more has the
    front of all points. Held-out hypervolume before the end is of the front of all points so far.
    The contestant `against` is subtracted from the others, seed by seed, at the end.
    """
    result: list[str] = []
    groups = grouped(records)
    for name in dict.fromkeys(s for s, _ in groups):
        rows = [(c, rs) for (s, c), rs in groups.items() if s == name]
        rows.sort(key=lambda row: -interval([_final(r) for r in row[1]])[0])
        columns = _columns([r for _, rs in rows for r in rs], at, against)
        result += ["", f"**{name}**", "", f"| contestant | {' | '.join(columns)} |"]
        result.append("|---" * (len(columns) + 1) + "|")
        for contestant, rs in rows:
            cells = [cell(rs) for cell in columns.values()]
            result.append(f"| `{contestant}` | {' | '.join(cells)} |")
    return result


def _columns(
    records: Sequence[Record], at: Sequence[float], against: str
) -> Mapping[str, Callable[[Sequence[Record]], str]]:
    """Headings of the table of one setting, and what a contestant's records say under each."""
    budget = max(r["run"]["budget"] for r in records)
    shown = [n for n in at if n <= budget]
    others = [r for r in records if r["run"]["contestant"] == against]

    def percent(of: Callable[[Record], float]) -> Callable[[Sequence[Record]], str]:
        return lambda rs: _cell([100 * of(r) for r in rs])

    def less(of: Callable[[Record], float]) -> Callable[[Sequence[Record]], str]:
        return lambda rs: _cell(_differences(of, rs, others))

    def spent(measure: str, n: float) -> Callable[[Sequence[Record]], str]:
        return percent(lambda r: value(r, measure, n))

    columns = {f"HV % at {n:g}": spent("hypervolume", n) for n in shown}
    columns[f"less `{against}`"] = less(_final)
    columns["measured front HV %"] = percent(lambda r: r["confirmed"]["front_hypervolume"])
    columns["its IGD+ x 100"] = percent(lambda r: r["confirmed"]["front_igd_plus"])
    if all(HELD_OUT in r for r in records):
        columns["its held-out HV %"] = percent(_unseen)
        columns[f"that less `{against}`"] = less(_unseen)
        early = [n for n in shown if n < budget]
        columns |= {f"held-out HV % at {n:g}": spent(HELD_OUT, n) for n in early}
    if any("@" in r["run"]["contestant"] for r in records):
        columns["HV % with unconfirmed points"] = spent("front_hypervolume", budget)
    columns["points"] = lambda rs: f"{np.mean([r['points'] for r in rs]):.0f}"
    columns["proposals, CPU s"] = lambda rs: f"{np.mean([r['proposal_cpu_s'] for r in rs]):.1f}"
    columns["seeds"] = lambda rs: str(len(rs))
    return columns


def _final(record: Record) -> float:
    return float(record["hypervolume"][-1])


def _unseen(record: Record) -> float:
    return float(record["confirmed"][HELD_OUT])


def _differences(
    of: Callable[[Record], float], records: Sequence[Record], others: Sequence[Record]
) -> list[float]:
    """A final share in percent less that of the other contestant with the same seed."""
    final = {r["run"]["seed"]: of(r) for r in others}
    both = [r for r in records if r["run"]["seed"] in final]
    return [100 * (of(r) - final[r["run"]["seed"]]) for r in both]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, half = interval(values)
    return f"{mean:.1f} ± {half:.1f}" if len(values) > 1 else f"{mean:.1f}"


def save(records: Iterable[Record], at: Sequence[float], command: str, path: Path) -> None:
    """Write per setting and contestant what each seed had when `at` full evaluations were spent,
    and what its confirmed front is worth.
    """
    content: dict[str, Any] = {"command": command, "measures": MEASURES, "results": {}}
    for (name, contestant), rs in grouped(records).items():
        content["results"].setdefault(name, {})[contestant] = {
            str(r["run"]["seed"]): {
                f"{n:g}": [round(value(r, m, n), 4) for m in MEASURES if m in r]
                for n in at
                if r["spent"][0] <= n <= r["run"]["budget"]
            }
            | {"confirmed": [round(v, 4) for v in r["confirmed"].values()]}
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
            n = np.linspace(0, rs[0]["run"]["budget"], GRID + 1)[1:]
            n = n[n >= max(r["spent"][0] for r in rs)]
            traces = [[value(r, "hypervolume", spent) for spent in n] for r in rs]
            low, middle, high = np.quantile(traces, (0.25, 0.5, 0.75), 0)
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
            xaxis_title="full evaluations spent",
            yaxis_title="hypervolume, % of the reference",
        )
        charts.append(figure.to_html(full_html=False, include_plotlyjs=not charts))
    path.write_text("<!doctype html><meta charset=utf-8>" + "\n".join(charts))
