"""The HTML report: self-contained, escaped, and there for a campaign in any state."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from histories import Scribe, nll_of, right_of

from mmmo.anchors import anchors
from mmmo.errors import StoreError, UserError
from mmmo.history import History
from mmmo.records import Objective, proposed, stored_score
from mmmo.report import write_report

PLACES = ["front-0", "front-1", "front-2", "volume", "parameters"]


class Reader(HTMLParser):
    """Collects what a browser would fetch, the ids of plots, the visible text and the data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.places: list[str] = []
        self.open: list[str] = []
        self.text = self.data = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.fetched += [str(named[key]) for key in ("src", "href") if key in named]
        if tag == "div" and "plot" in str(named.get("class")).split():
            self.places.append(str(named["id"]))
        if tag not in ("meta", "br"):
            self.open.append(str(named.get("id", tag)) if tag == "script" else tag)

    def handle_endtag(self, tag: str) -> None:
        opened = self.open.pop()
        assert tag in (opened, "script"), f"<{opened}> closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "figures":
            self.data += data
        elif not {"script", "style"} & set(self.open):
            self.text += data


def report(written: Scribe, folder: Path) -> Reader:
    read = Reader(write_report(written.history(), folder / "out" / "index.html"))
    assert read.open == []
    assert sorted(json.loads(read.data)) == sorted(read.places)  # each plot has its figure
    return read


def test_the_report_holds_everything_and_fetches_nothing(tmp_path: Path) -> None:
    written = Scribe(tmp_path)
    anchor = anchors(written.space)["expert code"]
    written.complete(0, anchor, 10, 1.0, origin="anchor")
    key = written.complete(1, [0.5] * 6, 20, 0.5)
    written.fail(2, [0.1] * 6, "timeout", "the worker did not finish in time")
    scores = {"sums": stored_score(right_of(40, 18)), "python": stored_score(nll_of(40, 0.6))}
    event = {"key": key, "model": "trial 1", "scores": scores, "failure": None}
    written.record(None, "held_out", event)
    summary = {"wall_s": 10.0, "work_s": 8.5, "propose_s": 1.0, "workers": 1.0, "overhead": 0.15}
    written.record(None, "finished", summary)
    read = report(written, tmp_path)
    assert read.fetched == []
    assert read.places == [*PLACES, "held-0", "held-1"]
    for text in [
        "2 of 12",
        "1 failed",
        "expert code",
        "timeout: the worker did not finish in time",
        "0.25 ± 0.067",
        "overhead (all that is neither merging nor scoring) 15.0%",
        "merge 0.0 s",
        "0.45 0.307 to 0.602",
        "finished",
    ]:
        assert text in " ".join(read.text.split()), text


def test_the_library_is_inside_and_the_policy_forbids_the_network(tmp_path: Path) -> None:
    path = write_report(Scribe(tmp_path).history(), tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    assert len(text) > 3_000_000
    assert "default-src 'none'" in text
    assert re.search(r"plotly\.js v\d", text)


def test_sources_that_dominate_nothing_are_said(tmp_path: Path) -> None:
    written = Scribe(tmp_path, [Objective("maths", "sums", None, "accuracy", 1.0, reference=0.9)])
    anchor = anchors(written.space)["expert code"]
    written.complete(0, anchor, 10, 1.0, origin="anchor")
    assert "hypervolume; sources and plain merges alone 0" in report(written, tmp_path).text


def test_a_campaign_without_trials_has_a_report(tmp_path: Path) -> None:
    read = report(Scribe(tmp_path), tmp_path)
    assert read.places == []
    assert "No trial is completed yet." in read.text
    assert "No trial is proposed yet." in read.text


def test_a_campaign_of_failures_has_a_report(tmp_path: Path) -> None:
    written = Scribe(tmp_path)
    written.fail(0, [0.1] * 6, "worker_lost", "killed by signal 9")
    read = report(written, tmp_path)
    assert read.places == []
    assert "worker_lost: killed by signal 9" in read.text
    assert "0 of 12" in read.text


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_any_number_of_objectives_has_a_report(tmp_path: Path, m: int) -> None:
    objectives = [Objective(f"o{i}", "sums", None, "accuracy", 1.0) for i in range(m)]
    written = Scribe(tmp_path, objectives)
    written.complete(0, [0.5] * 6, 10, 1.0)
    read = report(written, tmp_path)
    assert len(read.places) == max(1, m * (m - 1) // 2) + 2


def test_nothing_that_a_user_wrote_becomes_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><b>"
    merge = {"method": "linear", "weight": {"range": [0.0, 1.0]}, "filters": [evil]}
    written = Scribe(tmp_path, changes={"merge": merge})
    point = [0.5] * written.space.size
    written.complete(0, point, 10, 1.0, origin=evil)
    written.fail(1, point, "benchmark_error", evil)
    read = report(written, tmp_path)
    assert evil in read.text
    assert "<script>alert" not in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_a_password_in_the_store_is_not_told(tmp_path: Path) -> None:
    url = "postgresql+psycopg://me:secret@host/db"
    path = write_report(
        Scribe(tmp_path, changes={"store": url}).history(), tmp_path / "report.html"
    )
    assert "secret" not in path.read_text(encoding="utf-8")


def test_a_budget_of_items_and_shares_of_them_are_told(tmp_path: Path) -> None:
    written = Scribe(tmp_path, changes={"budget": {"items": 5000, "hours": 1.5}})
    written.complete(0, [0.5] * 6, 10, 1.0)
    assert "100%" not in report(written, tmp_path).text
    x = [0.25] * 6
    quarter = proposed(x, written.space.decode(x), {"origin": "sobol"}, share=0.25)
    written.record(1, "proposed", quarter)
    read = report(written, tmp_path)
    for text in ["budget 5000 items or 1.5 h", "items scored of 5000", "25%", "100%"]:
        assert text in " ".join(read.text.split()), text


def test_what_the_model_knows_is_told_once_there_is_one(tmp_path: Path) -> None:
    written = Scribe(tmp_path)
    written.complete(0, [0.5] * 6, 10, 1.0)
    assert "What the model knows" not in report(written, tmp_path).text
    judged = {"r2": 0.87, "coverage50": 0.5, "coverage95": 0.9, "rms_z": 1.0}
    objectives = [
        {**judged, "importance": {"maths.weight": 0.8, "code.weight": 0.2}},
        {**judged, "r2": -0.21, "rms_z": 3.0, "importance": {"maths.weight": 1.0}},
        {"exact": True},
    ]
    for observations, gain in ((10, 0.2), (15, 0.05)):
        summary = {"objectives": objectives, "observations": observations, "gain": gain}
        written.record(None, "modelled", summary)
    read = report(written, tmp_path)
    assert "gain-0" in read.places
    for text in [
        "What the model knows",
        "of 15 scored trials",
        "maths.weight 80%, code.weight 20%",
        "-0.21",
        "too sure",
        "exact",
    ]:
        assert text in " ".join(read.text.split()), text


def test_failed_held_out_scoring_is_named(tmp_path: Path) -> None:
    written = Scribe(tmp_path)
    key = written.complete(0, [0.5] * 6, 10, 1.0)
    failure = {"kind": "out_of_memory", "message": "no memory", "detail": ""}
    event = {"key": key, "model": "trial 0", "scores": {}, "failure": failure}
    written.record(None, "held_out", event)
    read = report(written, tmp_path)
    assert "out_of_memory" in read.text
    assert not any(place.startswith("held") for place in read.places)


def test_a_report_is_replaced(tmp_path: Path) -> None:
    written = Scribe(tmp_path)
    report(written, tmp_path)
    written.complete(0, [0.5] * 6, 10, 1.0)
    assert report(written, tmp_path).places == PLACES
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["index.html"]


def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/index\.html: cannot be written"):
        write_report(Scribe(tmp_path).history(), tmp_path / "file" / "index.html")


def test_what_is_no_file_is_not_replaced_by_the_report(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    history = Scribe(tmp_path).history()
    with pytest.raises(UserError, match=r"pipe: cannot be written: found a device, pipe or socket"):
        write_report(history, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(UserError, match=r"^/: cannot be written: Is a directory$"):
        write_report(history, Path("/"))


def test_a_campaign_that_never_started_is_one_line(tmp_path: Path) -> None:
    written = Scribe(tmp_path)
    written.store.create("unborn", written.config.text(), "", {}, {})
    with pytest.raises(StoreError, match="never started"):
        write_report(History(written.store, "unborn"), tmp_path / "report.html")
