"""Parallel coordinates of a campaign: a line per trial through its parameters and its objectives.

Drawn as ordinary scatter lines on scaled axes: Plotly's own `parcoords` needs WebGL, and with it
`unsafe-eval`, which a page of ours never allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from mmmo.history import History
from mmmo.plotting import GRID, OTHER, Figure, frame, layout_of
from mmmo.records import Objective, Trial
from mmmo.settings import Choice
from mmmo.space import Dimension, SearchSpace

WORST, BEST = (217, 118, 26), (47, 126, 216)
"""Red, green and blue of the front's lines, by the first objective: orange and blue."""

Axis = tuple[str, str, str, Callable[[Trial], tuple[float | None, str]]]
"""Name, what its foot and its head stand for, and trial → (position in [0, 1], value in words)."""


def parameter_figure(history: History) -> Figure | None:
    """Draw every completed trial; a line has a gap where a parameter has no part in its trial.

    The front's colours run from its worst (orange) to its best (blue) in the first objective.
    """
    trials = history.completed
    if not trials:
        return None
    axes = [*_parameter_axes(history), *_objective_axes(history)]
    first = history.objectives[0]
    front = sorted(history.pareto.front, key=lambda t: first.sign * t.objective(first).value)
    others = [t for t in trials if t not in front]
    data = [_lines(others, axes, "other trials", OTHER, 1.0)] + [
        _lines([t], axes, f"trial {t.number}", _blend(i / max(len(front) - 1, 1)), 2.0)
        for i, t in enumerate(front)
    ]
    layout = layout_of(
        {
            "tickvals": list(range(len(axes))),
            "ticktext": [_axis_label(a) for a in axes],
            "range": [-0.4, len(axes) - 0.6],
            "tickangle": 0,
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
        {"visible": False, "range": [-0.04, 1.04], "fixedrange": True},
    )
    layout["shapes"] = [
        {"type": "line", "x0": i, "x1": i, "y0": 0, "y1": 1, "line": {"color": GRID, "width": 1}}
        for i in range(len(axes))
    ]
    layout |= {"hovermode": "closest", "showlegend": False}
    return {"title": "Parameters and objectives", "data": data, "layout": layout}


def _parameter_axes(history: History) -> Iterable[Axis]:
    space = SearchSpace(history.config)
    for d in space.dimensions:
        column = space.columns[d.start]
        if isinstance(d.setting, Choice):
            options = [str(o) for o in d.setting.options]
            yield column.rpartition("=")[0], options[0], options[-1], _reader(d)
        else:
            yield column, f"{d.setting.low:g}", f"{d.setting.high:g}", _reader(d)


def _reader(d: Dimension) -> Callable[[Trial], tuple[float | None, str]]:
    def read(trial: Trial) -> tuple[float | None, str]:
        if trial.recipe.method not in d.methods:
            return None, ""
        value = d.read(trial.x)
        if isinstance(d.setting, Choice):
            return d.setting.options.index(value) / (len(d.setting.options) - 1), str(value)
        return (float(value) - d.setting.low) / (d.setting.high - d.setting.low), f"{value:.4g}"

    return read


def _objective_axes(history: History) -> Iterable[Axis]:
    for objective in history.objectives:
        worst, best = frame(history, objective)
        yield objective.name, f"{worst:.3g}", f"{best:.3g}", _scaler(objective, worst, best)


def _scaler(
    objective: Objective, worst: float, best: float
) -> Callable[[Trial], tuple[float | None, str]]:
    def read(trial: Trial) -> tuple[float | None, str]:
        value = trial.objective(objective).value
        scaled = (value - worst) / (best - worst) if best != worst else 1.0
        return min(1.0, max(0.0, scaled)), f"{value:.4g}"

    return read


def _lines(
    trials: Sequence[Trial], axes: Sequence[Axis], name: str, color: str, width: float
) -> dict[str, Any]:
    """All trials' lines in one trace; a gap ends each, and one is where a parameter has no part."""
    x: list[int | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for trial in trials:
        for i, (axis, _, _, read) in enumerate(axes):
            position, value = read(trial)
            x.append(i)
            y.append(position)
            text.append(f"trial {trial.number}: {escape(axis)} {escape(value)}")
        x.append(None)
        y.append(None)
        text.append("")
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": x,
        "y": y,
        "text": text,
        "hovertemplate": "%{text}<extra></extra>",
        "connectgaps": False,
        "line": {"color": color, "width": width},
        "marker": {"color": color, "size": 4},
    }


def _blend(share: float) -> str:
    """Mix a colour: `WORST` at 0, `BEST` at 1."""
    mixed = [round(w + share * (b - w)) for w, b in zip(WORST, BEST, strict=True)]
    return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})"


def _axis_label(axis: Axis) -> str:
    name, foot, head, _ = axis
    return f"{escape(name)}<br>{escape(foot)} … {escape(head)}"
