"""A campaign on real models, from the file to the exported front, through the command line."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file
from terminals import Terminal, children
from transformers import AutoModelForImageClassification

from evaluators.benchmarks.benchmark import score
from evaluators.benchmarks.classification import Classification
from evaluators.benchmarks.statistics import unpack
from evaluators.benchmarks.table import open_benchmark
from evaluators.models import open_model
from mmmo.held_out import held_out_scores

VIEWS = ("upright", "rotated", "mirrored")
TRIAL_KEYS = {"number", "key", "state", "recipe", "scores", "measures", "timings", "failure"}
ENDLESS = 100_000
"""More trials than any test waits for."""


@pytest.fixture(scope="module")
def exported(finished: Terminal) -> Path:
    """The whole front of the finished campaign."""
    finished.run("export", "digits")
    return finished.folder / "runs" / "digits" / "exports"


@pytest.fixture
def copied(finished: Terminal, tmp_path: Path) -> Terminal:
    """The finished campaign, without its exports, to change at will."""
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("exports"))
    return replace(finished, folder=folder)


def test_check_says_ready_and_runs_nothing(terminal: Callable[..., Terminal]) -> None:
    opened = terminal()
    said = opened.run("check", "campaign.yaml").stdout
    assert "3 objectives, ready to launch" in said
    assert "399 search items, 398 held out" in said
    assert not (opened.folder / "runs").exists()


def test_the_front_beats_sources_and_plain_averages(finished: Terminal) -> None:
    pareto = finished.history().pareto
    origins = {t.number: t.origin for t in pareto.trials}
    anchors = [number for number, origin in origins.items() if origin == "anchor"]
    assert anchors == [0, 1, 2, 3, 4, 5]  # three experts, then averages
    assert len(pareto.front) >= 5
    assert pareto.hypervolume() > 1.05 * pareto.hypervolume(anchors)
    assert pareto.hypervolume(anchors) > pareto.hypervolume(anchors[:3])
    assert pareto.hypervolume(anchors) > pareto.hypervolume(anchors[3:])


def test_reading_verbs_print_what_the_store_holds(finished: Terminal) -> None:
    history = finished.history()
    status, trials = finished.read("status", "digits"), finished.read("trials", "digits")
    front = finished.read("pareto", "digits")
    assert finished.read("status") == [status]
    assert (status["state"], status["trials"]["completed"]) == ("finished", 12)
    assert [t["number"] for t in trials] == list(range(12))
    for document in trials:
        assert set(document) >= TRIAL_KEYS
        assert (document["state"], document["failure"]) == ("completed", None)
        assert set(document["scores"]) == set(VIEWS)
        for name, measured in document["scores"].items():
            stored = history.trials[document["number"]].scores[name]
            assert measured == {"value": stored.value, "se": stored.se, "n": 399}
    assert finished.read("show", "digits", "7") == trials[7]
    assert [t["number"] for t in front["front"]] == status["front"]
    assert [t for t in trials if t["number"] in status["front"]] == front["front"]
    assert front["hypervolume"] == pytest.approx(history.pareto.hypervolume())
    assert front["knee"] in status["front"]


def test_reading_verbs_print_tables_for_people(finished: Terminal) -> None:
    assert "digits: finished, 12 completed of 12" in finished.run("status").stdout
    assert len(finished.run("trials", "digits").stdout.splitlines()) == 13
    assert finished.read("show", "digits", "3")["recipe"]["method"] in (
        finished.run("show", "digits", "3").stdout
    )
    assert "non-dominated; hypervolume" in finished.run("pareto", "digits").stdout


def test_launched_again_it_says_finished_and_changes_nothing(finished: Terminal) -> None:
    before = finished.events()
    assert "digits: finished, 12 completed of 12" in finished.run("launch", "campaign.yaml").stdout
    assert "digits: finished, 12 completed of 12" in finished.run("resume", "digits").stdout
    assert finished.events() == before


def test_a_larger_budget_lets_it_grow(copied: Terminal) -> None:
    before = copied.history().trials
    copied.run("resume", "digits", "--trials", "14")
    after = copied.history().trials
    assert {n: after[n] for n in before} == before
    assert [after[n].state for n in range(14)] == ["completed"] * 14
    assert copied.read("status", "digits")["budget"]["trials"] == 14


def test_stop_from_another_process(terminal: Callable[..., Terminal]) -> None:
    opened = terminal(budget={"trials": ENDLESS})
    with opened.start("launch", "campaign.yaml") as campaign:
        opened.wait_for("completed", 3, campaign)
        assert opened.read("status", "digits")["state"] == "running"
        refused = opened.run("launch", "campaign.yaml", code=3)
        assert f"already running: process {campaign.pid} on" in refused.stderr
        opened.run("stop", "digits")
        assert campaign.wait(60) == 0
    assert opened.read("status", "digits")["state"] == "stopped"
    opened.run("stop", "digits", code=2)  # it is not running any more
    assert_resume_completes(opened)


def test_a_stop_during_start_up_counts(terminal: Callable[..., Terminal]) -> None:
    opened = terminal(budget={"trials": ENDLESS})
    with opened.start("launch", "campaign.yaml") as campaign:
        opened.wait_for("started_session", 1, campaign)
        opened.store.request("digits", "stop_requested")
        assert campaign.wait(60) == 0
    assert opened.read("status", "digits")["state"] == "stopped"
    assert opened.count("completed") <= 6


def test_ctrl_c_finishes_what_is_running(terminal: Callable[..., Terminal]) -> None:
    pool = {"executor": "process", "workers": 2}
    opened = terminal(budget={"trials": ENDLESS}, pool=pool)
    with opened.start("launch", "campaign.yaml") as campaign:
        opened.wait_for("completed", 3, campaign)
        campaign.send_signal(signal.SIGINT)
        assert campaign.wait(60) == 130
    assert "interrupted; running trials were finished, the state is safe: mmmo resume digits" in (
        (opened.folder / "output").read_text()
    )
    assert opened.read("status", "digits")["state"] == "stopped"
    states = {t.state for t in opened.history().trials.values()}
    assert states <= {"completed", "proposed"}
    assert_resume_completes(opened)


def test_after_ctrl_c_in_a_proposal_no_trial_begins(terminal: Callable[..., Terminal]) -> None:
    opened = terminal(search={"strategy": "interrupted:Interrupted"})
    opened.run("launch", "campaign.yaml", code=130)
    assert [t.attempts for t in opened.history().trials.values()] == [0] * 6
    opened.run("resume", "digits", code=130)
    assert [t.attempts for t in opened.history().trials.values()] == [1] * 6 + [0] * 3


def assert_resume_completes(opened: Terminal) -> None:
    """Nothing that was completed is done again, and nothing that was proposed is forgotten."""
    before = opened.history()
    wanted = len(before.trials) + 2
    assert wanted < ENDLESS
    opened.run("resume", "digits", "--trials", str(wanted))
    after = opened.history()
    assert after.finished is not None
    assert [t.state for t in after.trials.values()] == ["completed"] * wanted
    for trial in before.completed:
        assert after.trials[trial.number] == trial
    assert opened.count("completed") == wanted


def test_exported_models_load_and_reproduce_their_scores(
    finished: Terminal, exported: Path
) -> None:
    history = finished.history()
    benchmarks = {
        name: open_benchmark(c.spec().kind, c.spec().options)
        for name, c in history.config.benchmarks.items()
    }
    held_out = held_out_scores(history)
    for trial in history.pareto.front:
        folder = exported / f"trial-{trial.number:04d}"
        model = open_model(folder)
        for name, benchmark in benchmarks.items():
            for found, recorded in (
                (score(benchmark, model, "search", slice(None)), trial.scores[name]),
                (
                    score(benchmark, model, "held_out", slice(None)),
                    held_out[trial.key].scores[name],
                ),
            ):
                assert (found.value, found.n) == (recorded.value, recorded.n)
                assert np.array_equal(found.outcomes, unpack(recorded.outcomes))
    assert {p.name for p in exported.glob("trial-*")} == {
        f"trial-{t.number:04d}" for t in history.pareto.front
    }


def test_exported_models_are_ordinary_transformers_folders(
    finished: Terminal, exported: Path
) -> None:
    """Asked by transformers alone, the knee answers as it did in the search."""
    history = finished.history()
    knee = history.pareto.knee
    folder = exported / f"trial-{knee.number:04d}"
    model = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    for name, config in history.config.benchmarks.items():
        items = open_benchmark(config.kind, config.spec().options)
        assert isinstance(items, Classification)
        images, labels = zip(*items.rows("search", slice(None)), strict=True)
        pixels = torch.tensor(np.stack(images)).reshape(-1, 1, 8, 8)
        with torch.inference_mode():
            answers = model(pixel_values=pixels).logits.argmax(1).numpy()
        assert np.array_equal(answers == labels, unpack(knee.scores[name].outcomes))


def test_exporting_twice_writes_the_same_bytes(finished: Terminal, exported: Path) -> None:
    again = finished.folder / "again"
    finished.run("export", "digits", "--out", str(again))
    weights = sorted(p.relative_to(exported) for p in exported.rglob("*.safetensors"))
    assert len(weights) >= 5
    for path in weights:
        assert (again / path).read_bytes() == (exported / path).read_bytes()
    before = {p: p.stat().st_mtime_ns for p in exported.rglob("*.safetensors")}
    finished.run("export", "digits")  # whole folders are left alone
    assert {p: p.stat().st_mtime_ns for p in exported.rglob("*.safetensors")} == before


def test_knee_and_preference(finished: Terminal, exported: Path, tmp_path: Path) -> None:
    pareto = finished.read("pareto", "digits")
    finished.run("export", "digits", "--knee", "--out", str(tmp_path / "knee"))
    assert [p.name for p in tmp_path.glob("knee/trial-*")] == [f"trial-{pareto['knee']:04d}"]
    for view in VIEWS:
        best = max(pareto["front"], key=lambda t: t["scores"][view]["value"])
        out = tmp_path / view
        finished.run("export", "digits", "--prefer", f"{view}=1", "--out", str(out))
        assert [p.name for p in out.glob("trial-*")] == [f"trial-{best['number']:04d}"]


def change_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + np.float32(1e-3)
    save_file(tensors, path, {"format": "pt"})


def change_recipe(folder: Path) -> None:
    path = folder / "recipe.yaml"
    recipe: dict[str, Any] = yaml.safe_load(path.read_text())
    recipe["mask_seed"] = recipe.get("mask_seed", 0) + 1
    path.write_text(yaml.safe_dump(recipe))


@pytest.mark.parametrize("tamper", [change_weights, change_recipe])
def test_tampering_is_detected(
    finished: Terminal, exported: Path, tmp_path: Path, tamper: Callable[[Path], None]
) -> None:
    shutil.copytree(exported, tmp_path / "exports")
    folder = min((tmp_path / "exports").glob("trial-*"))
    finished.run("export", "digits", "--out", str(folder.parent))
    tamper(folder)
    refused = finished.run("export", "digits", "--out", str(folder.parent), code=2)
    assert "differs from what was exported" in refused.stderr
    assert str(folder) in refused.stderr


def test_the_report_is_one_file_that_needs_no_other(finished: Terminal, exported: Path) -> None:
    said = finished.run("report", "digits").stdout.strip()
    page = finished.folder / said
    assert os.listdir(page.parent) == [page.name]
    html = page.read_text()
    assert html.lstrip().lower().startswith("<!doctype html>")
    assert "<script src=" not in html
    assert "<link" not in html


def test_hours_end_a_campaign_with_trials_left(
    digits: dict[str, Any], terminal: Callable[..., Terminal]
) -> None:
    opened = terminal(budget={"trials": 12, "hours": 1e-6})  # spent when the first are proposed
    opened.run("launch", "campaign.yaml", code=1)
    assert {t.state for t in opened.history().trials.values()} == {"proposed"}
    assert opened.read("status", "digits")["state"] == "finished"
    opened.write({**digits, "budget": {"trials": 12}})
    opened.run("launch", "campaign.yaml")
    assert opened.read("status", "digits")["trials"]["completed"] == 12


@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "changed"])
def test_workers_that_cannot_load_cost_no_trial(
    digits: dict[str, Any], terminal: Callable[..., Terminal], tmp_path: Path, replaced: bool
) -> None:
    sources = {"base": str(tmp_path / "base"), "experts": {}}
    shutil.copytree(digits["sources"]["base"], sources["base"])
    for name, folder in digits["sources"]["experts"].items():
        sources["experts"][name] = shutil.copytree(folder, str(tmp_path / name))
    opened = terminal(
        sources=sources,
        search={"strategy": "sobol"},
        budget={"trials": 200},
        pool={"executor": "process", "workers": 1},
    )
    with opened.start("launch", "campaign.yaml") as running:
        opened.wait_for("completed", 2, running)
        (tmp_path / "upright").rename(tmp_path / "elsewhere")
        if replaced:
            shutil.copytree(sources["base"], tmp_path / "upright")
        os.kill(children(running.pid)[0], signal.SIGKILL)
        assert running.wait(60) == 1
    assert {t.state for t in opened.history().trials.values()} <= {"completed", "proposed"}
    shutil.rmtree(tmp_path / "upright", ignore_errors=True)
    (tmp_path / "elsewhere").rename(tmp_path / "upright")
    opened.run("resume", "digits")
    assert opened.read("status", "digits")["trials"]["completed"] == 200
