"""Figures as data: what is drawn where, for every number of objectives and state of a campaign."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path

import pytest
from histories import Scribe, nll_of, right_of

from mmmo.anchors import anchors
from mmmo.figures import front_figures, gain_figure, held_out_figures, hypervolume_figure
from mmmo.held_out import HeldOut, held_out_scores
from mmmo.parallel import parameter_figure
from mmmo.records import Measurement, Objective, stored_score

TWO = ("maths", "code")


def scribe(folder: Path) -> Scribe:
    """Trial 0 is a single expert; 0 and 2 are the front: 1 is worse than 2, 3 failed."""
    written = Scribe(folder, TWO)
    anchor = anchors(written.space)["expert code"]
    written.complete(0, anchor, 10, 1.0, origin="anchor")
    written.complete(1, [0.5] * 6, 20, 2.5)
    written.complete(2, [0.25, 0.5, 1.0, 0.0, 0.5, 1.0], 30, 2.0)
    written.fail(3, [0.1] * 6, "timeout", "too slow")
    return written


def traces(figure: dict) -> dict:
    return {trace["name"]: trace for trace in figure["data"]}


def test_the_front_is_set_apart_with_its_errors(tmp_path: Path) -> None:
    history = scribe(tmp_path).history()
    (figure,) = front_figures(history)
    drawn = traces(figure)
    assert drawn["front"]["x"] == [0.25, 0.75]
    assert drawn["front"]["y"] == pytest.approx([1.0, 2.0])
    assert drawn["other trials"]["x"] == [0.5]
    errors = [history.trial(n).scores["sums"].se for n in (0, 2)]
    assert drawn["front"]["error_x"]["array"] == errors
    assert "trial 2" in drawn["front"]["text"][1]


def test_every_axis_improves_to_the_right_and_upwards(tmp_path: Path) -> None:
    (figure,) = front_figures(scribe(tmp_path).history())
    assert "autorange" not in figure["layout"]["xaxis"]
    assert figure["layout"]["yaxis"]["autorange"] == "reversed"
    assert figure["layout"]["yaxis"]["title"]["text"] == "code (nll, lower is better)"


def test_trials_far_off_do_not_set_the_scale(tmp_path: Path) -> None:
    written = scribe(tmp_path)
    written.complete(4, [0.9] * 6, 0, 80.0)
    (figure,) = front_figures(written.history())
    # The front and the expert reach from nll 1 to 2 and from maths 0.25 to 0.75; a quarter more.
    layout = figure["layout"]
    assert layout["yaxis"]["autorangeoptions"]["clipmax"] == pytest.approx(2.25)
    assert layout["xaxis"]["autorangeoptions"]["clipmin"] == pytest.approx(0.125)
    assert max(traces(figure)["other trials"]["y"]) == pytest.approx(80.0)


def test_sources_are_reference_points(tmp_path: Path) -> None:
    history = scribe(tmp_path).history()
    assert history.anchors == {0: "expert code"}
    marked = traces(front_figures(history)[0])["sources and plain merges"]
    assert (marked["x"], marked["customdata"]) == ([0.25], ["code"])
    assert marked["y"] == pytest.approx([1.0])


def test_the_hypervolume_grows_and_is_compared(tmp_path: Path) -> None:
    # Front (0.25, 1.0) and (0.75, 2.0); reference point one tenth of the extents beyond its worst
    # values: maths 0.25 - 0.05 = 0.2, nll 2.0 + 0.1 = 2.1.
    drawn = traces(hypervolume_figure(scribe(tmp_path).history()) or {})
    alone = 0.05 * 1.1
    assert drawn["all trials"]["x"] == [1, 2, 3]
    assert drawn["all trials"]["y"] == pytest.approx([alone, alone, alone + 0.5 * 0.1])
    plain = drawn["sources and plain merges alone"]["y"]
    assert plain == pytest.approx([alone, alone])


def test_the_expected_gain_is_drawn_where_it_is_known() -> None:
    gains = {10: 0.25, 15: None, 20: 0.01, 25: 0.0}
    beliefs = [{"observations": n, "gain": gain} for n, gain in gains.items()]
    figure = gain_figure(beliefs)
    assert figure is not None
    assert set(traces(figure)) == {"expected gain"}
    drawn = traces(figure)["expected gain"]
    assert (drawn["x"], drawn["y"]) == ([10, 20], [25.0, 1.0])
    assert figure["layout"]["yaxis"]["type"] == "log"
    level = traces(gain_figure(beliefs, stop=0.02) or {})["the search ends below"]
    assert (level["x"], level["y"]) == ([10, 20], [2.0, 2.0])


@pytest.mark.parametrize("beliefs", [[], [{"observations": 10, "gain": None}]])
def test_an_unknown_gain_is_not_drawn(beliefs: list) -> None:
    assert gain_figure(beliefs) is None


def test_a_line_runs_through_parameters_and_objectives(tmp_path: Path) -> None:
    figure = parameter_figure(scribe(tmp_path).history())
    assert figure is not None
    drawn = traces(figure)
    assert set(drawn) == {"other trials", "trial 0", "trial 2"}
    line = drawn["trial 2"]["y"]
    assert line[:6] == pytest.approx([0.25, 0.5, 1.0, 0.0, 0.5, 1.0])
    assert line[6:8] == pytest.approx([1.0, 0.0])  # of the front: best maths, worst code
    other = drawn["other trials"]["y"]
    assert other[6:8] == pytest.approx([0.5, 0.0])  # its code of 2.5 is below the foot
    assert line[8] is None
    labels = figure["layout"]["xaxis"]["ticktext"]
    assert labels[0] == "maths.weight<br>0 … 1.5"
    assert labels[-1] == "code<br>2 … 1"
    assert drawn["trial 0"]["line"]["color"] == "rgb(217,118,26)"
    assert drawn["trial 2"]["line"]["color"] == "rgb(47,126,216)"
    assert drawn["trial 2"]["text"][0] == "trial 2: maths.weight 0.375"


def test_a_parameter_that_plays_no_part_leaves_a_gap(tmp_path: Path) -> None:
    merge = {"method": {"choice": ["task_arithmetic", "ties"]}, "weight": 1.0}
    written = Scribe(tmp_path, TWO, {"merge": merge})
    names = written.space.columns
    assert names[:2] == ("method=task_arithmetic", "method=ties")
    point = [1.0, 0.0] + [0.5] * (len(names) - 2)
    written.complete(0, point, 10, 1.0)
    figure = parameter_figure(written.history())
    assert figure is not None
    line = traces(figure)["trial 0"]
    assert line["text"][0] == "trial 0: method task_arithmetic"
    assert line["y"][0] == 0.0
    assert line["y"][1:4] == [None, None, None]  # densities
    assert line["y"][4:6] == [1.0, 1.0]  # one trial is the best of all


def test_held_out_scores_stand_against_search_scores(tmp_path: Path) -> None:
    written = scribe(tmp_path)
    history = written.history()
    scores = {"sums": stored_score(right_of(40, 26)), "python": stored_score(nll_of(40, 2.25))}
    key = history.trial(2).key
    payload = {"key": key, "model": "trial 2", "scores": scores, "failure": None}
    written.record(None, "held_out", payload)
    maths, code = held_out_figures(history, held_out_scores(history))
    assert traces(maths)["exported trials"]["x"] == [0.75]
    assert traces(maths)["exported trials"]["y"] == [0.65]
    assert traces(code)["exported trials"]["y"] == pytest.approx([2.25])
    assert code["layout"]["xaxis"]["autorange"] == "reversed"


def test_a_failed_held_out_scoring_is_no_point(tmp_path: Path) -> None:
    history = scribe(tmp_path).history()
    failed = HeldOut(failure={"kind": "timeout", "message": "too slow", "detail": ""})
    assert held_out_figures(history, {history.trial(2).key: failed}) == []


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_any_number_of_objectives_is_drawn_pair_by_pair(tmp_path: Path, m: int) -> None:
    objectives = [
        Objective(f"o{i}", "sums" if i % 2 else "python", None, "score", 1.0 if i % 2 else -1.0)
        for i in range(m)
    ]
    written = Scribe(tmp_path, objectives)
    written.complete(0, [0.5] * 6, 10, 1.0)
    history = written.history()
    figures = front_figures(history)
    assert len(figures) == (comb(m, 2) if m > 1 else 1)
    json.dumps([*figures, hypervolume_figure(history), parameter_figure(history)], allow_nan=False)


@pytest.mark.parametrize("failed", [0, 2])
def test_without_a_completed_trial_there_is_nothing_to_draw(tmp_path: Path, failed: int) -> None:
    written = Scribe(tmp_path)
    for number in range(failed):
        written.fail(number, [0.1] * 6, "timeout", "too slow")
    history = written.history()
    assert front_figures(history) == []
    assert hypervolume_figure(history) is None
    assert parameter_figure(history) is None


def test_a_trial_that_breaks_a_constraint_is_not_on_the_front(tmp_path: Path) -> None:
    written = Scribe(tmp_path, TWO, {"constraints": ["maths >= 0.9"]})
    written.complete(0, [0.5] * 6, 10, 1.0)
    history = written.history()
    assert set(traces(front_figures(history)[0])) == {"other trials"}
    assert hypervolume_figure(history) is None
    assert set(traces(parameter_figure(history) or {})) == {"other trials"}


def test_texts_are_escaped(tmp_path: Path) -> None:
    merge = {"method": "linear", "weight": {"range": [0.0, 1.0]}, "filters": ["<i>attn"]}
    written = Scribe(tmp_path, TWO, {"merge": merge})
    written.complete(0, [0.5] * written.space.size, 10, 1.0, origin="<script>")
    figures = [*front_figures(written.history()), parameter_figure(written.history())]
    text = json.dumps(figures)
    assert "<i>" not in text
    assert "<script>" not in text
    assert "&lt;i&gt;attn" in text


def test_a_score_without_error_has_no_bar(tmp_path: Path) -> None:
    written = Scribe(tmp_path, ("maths", "sparsity"))
    written.complete(0, [0.5] * 6, 10, 1.0, delta_l1=0.25)
    (figure,) = front_figures(written.history())
    assert traces(figure)["front"]["error_y"]["visible"] is False
    assert traces(figure)["front"]["y"] == [0.25]
    assert written.history().trial(0).objective(written.history().objectives[1]) == Measurement(
        0.25, 0.0, 0
    )
