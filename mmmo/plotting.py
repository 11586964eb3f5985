"""What all figures share: plain data for Plotly's `newPlot(place, data, layout)`.

Every axis of an objective improves to the right or upwards, whatever its goal. Colours are legible
on a light and on a dark page; the page that shows a figure adds its own font and text colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from mmmo.history import History
from mmmo.records import Measurement, Objective

Figure = dict[str, Any]
"""`{"title": …, "data": [traces], "layout": {…}}`; text in it is escaped for HTML."""

FRONT = "#2f7ed8"
OTHER = "rgba(140,140,150,0.55)"
ANCHOR = "#d9761a"
GRID = "rgba(140,140,150,0.22)"


def layout_of(x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    """Lay out a figure with these axes: transparent, small margins, the legend on top."""
    return {
        "xaxis": x,
        "yaxis": y,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 16, "t": 12, "b": 48},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        "hoverlabel": {"align": "left"},
    }


def axis(title: str) -> dict[str, Any]:
    """Give an axis its title, which is text."""
    return {
        "title": {"text": escape(title), "font": {"size": 12}, "standoff": 12},
        "gridcolor": GRID,
        "zeroline": False,
        "automargin": True,
    }


def objective_axis(objective: Objective, where: str = "") -> dict[str, Any]:
    """Name objective and metric; turn the axis so that it improves to the right or upwards."""
    better = "higher" if objective.sign > 0 else "lower"
    title = objective.name + where
    if objective.metric != objective.name:
        title += f" ({objective.metric}, {better} is better)"
    else:
        title += f" ({better} is better)"
    drawn = axis(title)
    return drawn if objective.sign > 0 else drawn | {"autorange": "reversed"}


def framed_axis(history: History, objective: Objective) -> dict[str, Any]:
    """Let the axis leave out what is far worse than the front and the anchors."""
    worst, best = frame(history, objective)
    limit = worst - 0.25 * ((best - worst) or objective.sign * max(abs(worst), 1.0))
    bound = "clipmin" if objective.sign > 0 else "clipmax"
    return objective_axis(objective) | {"autorangeoptions": {bound: limit}}


def frame(history: History, objective: Objective) -> tuple[float, float]:
    """Find the worst and the best value of the front and the anchors, in the objective's units.

    Trials that broke a model can be so far off that nothing else could be told apart beside them.
    """
    shown = [*history.pareto.front, *(history.trials[n] for n in history.anchors)]
    values = [t.objective(objective).value for t in shown or history.completed]
    low, high = min(values), max(values)
    return (low, high) if objective.sign > 0 else (high, low)


def line(
    name: str, x: Sequence[int], y: Sequence[float], hover: str, shape: str = "linear"
) -> dict[str, Any]:
    """A line with a mark at every value; `hover` is what Plotly says of a mark."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [*x],
        "y": [*y],
        "hovertemplate": f"{hover}<extra></extra>",
        "line": {"color": FRONT, "width": 2, "shape": shape},
        "marker": {"color": FRONT, "size": 4},
    }


def level(name: str, value: float, ends: Sequence[int]) -> dict[str, Any]:
    """A dashed line at this height, to compare with."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [*ends],
        "y": [value, value],
        "hovertemplate": f"{name}: %{{y:.5g}}<extra></extra>",
        "line": {"color": ANCHOR, "width": 1.5, "dash": "dash"},
    }


def error_bars(measured: Sequence[Measurement], color: str) -> dict[str, Any]:
    """One standard error to each side."""
    errors = [m.se for m in measured]
    return {
        "type": "data",
        "array": errors,
        "visible": any(errors),
        "color": color,
        "thickness": 1,
        "width": 0,
    }
