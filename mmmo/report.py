"""One HTML file about a campaign, to be opened anywhere: `mmmo report`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from itertools import cycle
from pathlib import Path

import yaml

from evaluators.durable import remove_leftovers, write_whole
from mmmo.beliefs import belief_table
from mmmo.config import BudgetConfig
from mmmo.errors import unwritable
from mmmo.figures import front_figures, gain_figure, held_out_figures, hypervolume_figure
from mmmo.held_out import held_out_scores
from mmmo.history import History
from mmmo.page import empty, page, section, tile
from mmmo.parallel import parameter_figure
from mmmo.plotting import Figure
from mmmo.report_tables import held_out_table, trial_table

PARTS = ("#2f7ed8", "#d9761a", "#4a9d7c", "#8a6bbf", "#c2577f", "#8a8f3c", "#4aa3b5", "#96705a")
"""Colours of the bar that shows where time went."""


def write_report(history: History, path: Path) -> Path:
    """Write the report; a file that is there is replaced.

    Raises:
        StoreError: the campaign was never started.
        UserError: the file cannot be written.
    """
    text = _Report(history).html()
    try:
        remove_leftovers(path.parent)
        write_whole(path, text)
    except OSError as error:
        raise unwritable(path, error) from None
    return path


class _Report:
    """Collects the figures while the sections are written; each section is a string of HTML."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._held_out = held_out_scores(history)
        self._figures: dict[str, Figure] = {}

    def html(self) -> str:
        sections = (
            self._header(),
            self._front(),
            self._hypervolume(),
            self._parameters(),
            self._beliefs(),
            self._held_out_section(),
            self._trials(),
            self._configuration(),
        )
        return page(f"{self._history.name} – mmmo", "\n".join(sections), self._figures)

    def _header(self) -> str:
        history = self._history
        objectives = ", ".join(
            f"{escape(o.name)} ({escape(o.metric)}, {o.goal}d)" for o in history.objectives
        )
        sources = history.config.sources
        experts = ", ".join(map(escape, sources.experts))
        return (
            f'<div class="head"><h1>{escape(history.name)}</h1>'
            f'<span class="state">{history.state}</span></div>'
            f"<p>Merges of {experts} by {escape(', '.join(history.config.merge.methods))}, "
            f"searched by {escape(history.config.search.strategy)}. Objectives: {objectives}.</p>"
            f'<div class="tiles">{"".join(self._tiles())}</div>{self._time()}'
        )

    def _tiles(self) -> Iterator[str]:
        history, pareto = self._history, self._history.pareto
        states = [t.state for t in history.trials.values()]
        budget = history.config.budget
        failed = f", {states.count('failed')} failed" if "failed" in states else ""
        planned = f" of {budget.trials}" if budget.trials is not None else ""
        yield tile(
            f"{states.count('completed')}{planned}",
            f"trials completed{failed}; budget {_limits(budget)}",
        )
        if budget.items is not None:
            yield tile(f"{history.scored_items}", f"items scored of {budget.items}")
        yield tile(str(len(pareto.front)), "on the front: no other trial beats them everywhere")
        alone = history.hypervolume_of_anchors
        beside = f"; sources and plain merges alone {alone:.4g}" if alone is not None else ""
        yield tile(f"{pareto.hypervolume():.4g}", f"hypervolume{beside}")
        yield tile(_duration(history.active_seconds), "in all sessions")

    def _time(self) -> str:
        """Where the workers' time went."""
        parts: dict[str, float] = {}
        for trial in self._history.completed:
            for part, seconds in trial.timings.items():
                name = part.removesuffix("_s")
                parts[name] = parts.get(name, 0.0) + seconds
        total = sum(parts.values())
        if not total:
            return ""
        shares = list(zip(parts.items(), cycle(PARTS), strict=False))
        bar = "".join(
            f'<i style="width:{100 * s / total:.2f}%;background:{color}"></i>'
            for (_, s), color in shares
        )
        key = "".join(
            f'<span><i style="background:{color}"></i>{escape(name)} {_duration(s)}</span>'
            for (name, s), color in shares
        )
        return (
            f'<div class="card"><h3>Workers’ time over completed trials</h3>'
            f'<div class="bar">{bar}</div><div class="key">{key}</div>{self._overhead()}</div>'
        )

    def _overhead(self) -> str:
        last = self._history.finished
        if not last:
            return ""
        return (
            f"<p>Last session: {_duration(last['wall_s'])} on {last['workers']:.0f} worker(s), "
            f"of which {_duration(last['propose_s'])} went into proposing; overhead (all that is "
            f"neither merging nor scoring) {last['overhead']:.1%} of the workers’ time.</p>"
        )

    def _front(self) -> str:
        figures = front_figures(self._history)
        if not figures:
            return section("Front", empty("No trial is completed yet."))
        note = (
            "Every axis improves to the right and upwards. Bars: ± one standard error on the "
            "search items. Diamonds: the sources and plain merges (TA: task arithmetic). "
            "Trials that are far worse than all of these lie outside; drag an axis to see them."
        )
        return section("Front", self._grid("front", figures), note)

    def _hypervolume(self) -> str:
        figure = hypervolume_figure(self._history)
        if figure is None:
            return ""
        note = "What the completed trials dominate together, all with today’s reference point."
        plot = self._place("volume", figure)
        return section("Hypervolume over trials", f'<div class="card">{plot}</div>', note)

    def _parameters(self) -> str:
        figure = parameter_figure(self._history)
        if figure is None:
            return ""
        axes = len(figure["layout"]["xaxis"]["tickvals"])
        plot = self._place("parameters", figure, least=100 * axes)
        note = (
            "A line per trial; the front is coloured, from orange where "
            f"{escape(self._history.objectives[0].name)} is worst to blue where it is best. "
            "Parameter axes run over their search ranges, objective axes (on the right) from the "
            "worst to the best of front and sources; what is worse lies on their foot."
        )
        return section("Merge parameters", f'<div class="card scroll">{plot}</div>', note)

    def _beliefs(self) -> str:
        beliefs = self._history.summaries
        if not beliefs:
            return ""
        note = (
            f"The last surrogate, of {beliefs[-1]['observations']} scored trials, each predicted "
            "from all others. R²: how much of the differences between trials it predicts; the "
            "noise of the scores limits it. Within 50% and 95%: how many scores lay in the "
            "intervals that should hold so many. Depends on: the part of the predicted differences "
            "that a parameter has a share in (total Sobol’ indices, scaled to add up to 100%)."
        )
        known = belief_table(beliefs[-1], [o.name for o in self._history.objectives])
        figure = gain_figure(beliefs, self._history.config.budget.stop_when_gain_below)
        grid = self._grid("gain", [figure]) if figure else ""
        content = f'<div class="card scroll" style="margin-bottom:14px">{known}</div>{grid}'
        return section("What the model knows", content, note)

    def _held_out_section(self) -> str:
        figures = held_out_figures(self._history, self._held_out)
        if not self._held_out:
            note = f"Nothing is exported yet: mmmo export {self._history.name}"
            return section("Held-out scores", empty(escape(note)))
        note = (
            "Items that the search never saw. On the dotted line, both scores are equal; the "
            "search chose these models by their search scores, so expect most of them below it."
        )
        grid = self._grid("held", figures) if figures else ""
        scores = held_out_table(self._history, self._held_out)
        card = f'<div class="card scroll" style="margin-top:14px">{scores}</div>'
        return section("Held-out scores", grid + card, note)

    def _trials(self) -> str:
        if not self._history.trials:
            return section("Trials", empty("No trial is proposed yet."))
        note = "A coloured edge marks the front. Click a heading to sort."
        trials = trial_table(self._history)
        return section("Trials", f'<div class="card scroll">{trials}</div>', note)

    def _configuration(self) -> str:
        """Give the file, without the store's address: it may hold a password."""
        history = self._history
        content = history.config.model_dump(mode="json", exclude={"store"})
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        created = history.store.get(history.name).versions
        versions = ", ".join(f"{k} {v}" for k, v in created.items())
        written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        return (
            "<h2>Configuration</h2>"
            f'<div class="card"><details><summary>campaign file</summary><pre>{escape(text)}</pre>'
            f"</details></div><footer>Created with {escape(versions)}. Report written {written}."
            "</footer>"
        )

    def _grid(self, prefix: str, figures: Sequence[Figure]) -> str:
        cards = (
            f'<div class="card"><h3>{f["title"]}</h3>{self._place(f"{prefix}-{i}", f)}</div>'
            for i, f in enumerate(figures)
        )
        return f'<div class="figures">{"".join(cards)}</div>'

    def _place(self, name: str, figure: Figure, least: int = 0) -> str:
        """Where a figure will be drawn; one that needs a least width (pixels) is also higher."""
        self._figures[name] = figure
        size = f'class="plot tall" style="--least:{least}px"' if least else 'class="plot"'
        return f'<div {size} id="{name}" data-testid="{name}"></div>'


def _limits(budget: BudgetConfig) -> str:
    hours = None if budget.hours is None else f"{budget.hours:g}"
    limits = {"trials": budget.trials, "items": budget.items, "h": hours}
    return " or ".join(f"{limit} {unit}" for unit, limit in limits.items() if limit is not None)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
