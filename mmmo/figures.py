"""The figures of a campaign: front, hypervolume, expected gain, held-out scores.

Its parallel coordinates are in `mmmo.parallel`, what all figures share in `mmmo.plotting`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any

from mmmo.beliefs import Belief
from mmmo.held_out import HeldOut
from mmmo.history import History
from mmmo.plotting import (
    ANCHOR,
    FRONT,
    OTHER,
    Figure,
    axis,
    error_bars,
    framed_axis,
    layout_of,
    level,
    line,
    objective_axis,
)
from mmmo.records import Measurement, Objective, Trial

SIDES = ("top center", "bottom center", "top right", "bottom right")
"""Names of neighbouring anchors stand on different sides of their marks."""


def front_figures(history: History) -> list[Figure]:
    """One scatter per pair of objectives; a single objective is drawn over the trials."""
    if not history.completed:
        return []
    objectives = history.objectives
    if len(objectives) == 1:
        return [_over_trials(history, objectives[0])]
    return [_scatter(history, x, y) for x, y in combinations(objectives, 2)]


def hypervolume_figure(history: History) -> Figure | None:
    """How the hypervolume grew, and what the sources and plain merges reach alone."""
    pareto = history.pareto
    if not pareto.trials:
        return None
    counts = list(range(1, len(pareto.trials) + 1))
    text = [f"after trial {t.number}" for t in pareto.trials]
    grown = line("all trials", counts, pareto.trace, "%{text}: %{y:.5g}", shape="hv")
    data = [grown | {"text": text}]
    alone = history.hypervolume_of_anchors
    if alone is not None:
        name, ends = "sources and plain merges alone", [counts[0], counts[-1]]
        data.append(level(name, alone, ends))
    layout = layout_of(axis("completed trials"), axis("hypervolume"))
    return {"title": "Hypervolume", "data": data, "layout": layout}


def gain_figure(beliefs: Sequence[Belief], stop: float | None = None) -> Figure | None:
    """What the best candidate was expected to add, on a logarithmic scale, which shows no 0.

    `stop` is the gain below which the search ends, as a share of the hypervolume.
    """
    known = [(belief["observations"], belief["gain"]) for belief in beliefs if belief["gain"]]
    if not known:
        return None
    scored, gains = [n for n, _ in known], [100 * gain for _, gain in known]
    data = [line("expected gain", scored, gains, "%{x} scored: %{y:.3g}%")]
    if stop is not None:
        data.append(level("the search ends below", 100 * stop, [scored[0], scored[-1]]))
    layout = layout_of(
        axis("scored trials"),
        axis("expected gain (% of the hypervolume)") | {"type": "log", "dtick": "D2"},
    )
    return {"title": "Expected gain of the next trial", "data": data, "layout": layout}


def held_out_figures(history: History, held_out: Mapping[str, HeldOut]) -> list[Figure]:
    """Held-out against search scores, a figure per benchmark of an objective."""
    figures = []
    for objective in history.objectives:
        name = str(objective.benchmark)
        pairs = [
            (t, t.scores[name], held_out[t.key].scores[name])
            for t in history.completed
            if t.key in held_out and name in t.scores and name in held_out[t.key].scores
        ]
        if pairs:
            figures.append(_search_and_held_out(objective, pairs))
    return figures


def _scatter(history: History, x: Objective, y: Objective) -> Figure:
    def points(trials: Sequence[Trial], color: str) -> dict[str, Any]:
        return _points(
            trials,
            history,
            [t.objective(x) for t in trials],
            [t.objective(y) for t in trials],
            color,
        )

    data = [*_groups(history, points)]
    layout = layout_of(framed_axis(history, x), framed_axis(history, y))
    return {"title": f"{escape(x.name)} and {escape(y.name)}", "data": data, "layout": layout}


def _over_trials(history: History, y: Objective) -> Figure:
    def points(trials: Sequence[Trial], color: str) -> dict[str, Any]:
        numbers = [Measurement(float(t.number), 0.0, 0) for t in trials]
        return _points(trials, history, numbers, [t.objective(y) for t in trials], color)

    layout = layout_of(axis("trial"), framed_axis(history, y))
    return {"title": escape(y.name), "data": [*_groups(history, points)], "layout": layout}


def _groups(
    history: History, points: Callable[[Sequence[Trial], str], dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    """Every completed trial once as dominated or not, and the anchors marked and named on top."""
    front = {t.number for t in history.pareto.front}
    groups = [
        ("other trials", [t for t in history.completed if t.number not in front], OTHER, 6),
        ("front", [t for t in history.completed if t.number in front], FRONT, 8),
    ]
    for name, trials, color, size in groups:
        if trials:
            trace = points(trials, color)
            yield trace | {"name": name, "marker": {"color": color, "size": size}}
    names = history.anchors
    if names:
        trials = [history.trials[number] for number in names]
        yield points(trials, ANCHOR) | {
            "name": "sources and plain merges",
            "mode": "markers+text",
            "texttemplate": "%{customdata}",
            "customdata": [escape(_short(names[t.number])) for t in trials],
            "textposition": [SIDES[i % len(SIDES)] for i in range(len(trials))],
            "textfont": {"size": 10, "color": ANCHOR},
            "marker": {
                "symbol": "diamond-open",
                "color": ANCHOR,
                "size": 11,
                "line": {"width": 1.5},
            },
        }


def _short(anchor: str) -> str:
    """Shorten an anchor's name to stand in a figure."""
    if anchor.startswith("expert "):
        return anchor.removeprefix("expert ")
    return anchor.replace("task arithmetic", "TA").replace("uniform ", "")


def _points(
    trials: Sequence[Trial],
    history: History,
    xs: Sequence[Measurement],
    ys: Sequence[Measurement],
    color: str,
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [m.value for m in xs],
        "y": [m.value for m in ys],
        "error_x": error_bars(xs, color),
        "error_y": error_bars(ys, color),
        "text": [_describe(t, history.objectives) for t in trials],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _describe(trial: Trial, objectives: Sequence[Objective]) -> str:
    lines = [f"<b>trial {trial.number}</b> {escape(trial.origin)}"]
    for o in objectives:
        m = trial.objective(o)
        lines.append(f"{escape(o.name)} {m.value:.4g}" + (f" ± {m.se:.2g}" if m.se else ""))
    return "<br>".join(lines)


def _search_and_held_out(
    objective: Objective, pairs: Sequence[tuple[Trial, Measurement, Measurement]]
) -> Figure:
    search, held_out = [p[1] for p in pairs], [p[2] for p in pairs]
    ends = [m.value + sign * m.se for m in (*search, *held_out) for sign in (-1, 1)]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "equal",
            "x": [min(ends), max(ends)],
            "y": [min(ends), max(ends)],
            "hoverinfo": "skip",
            "line": {"color": OTHER, "width": 1, "dash": "dot"},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "exported trials",
            "x": [m.value for m in search],
            "y": [m.value for m in held_out],
            "error_x": error_bars(search, FRONT),
            "error_y": error_bars(held_out, FRONT),
            "text": [
                f"<b>trial {t.number}</b><br>search {s.value:.4g} ± {s.se:.2g} (n={s.n})"
                f"<br>held out {h.value:.4g} ± {h.se:.2g} (n={h.n})"
                for t, s, h in pairs
            ],
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": FRONT, "size": 8},
        },
    ]
    layout = layout_of(
        objective_axis(objective, " on search items"),
        objective_axis(objective, " on held-out items"),
    )
    title = f"{escape(objective.name)}: held-out and search"
    return {"title": title, "data": data, "layout": layout}
