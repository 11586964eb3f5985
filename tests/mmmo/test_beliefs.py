"""What a model says of itself, in words and as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from histories import Scribe

from acquisition.diagnostics import summary
from acquisition.strategy import Observations
from acquisition.surrogates import fit_surrogate
from mmmo.beliefs import belief_lines, belief_table, judgement, parameter_shares
from mmmo.views import status_document, status_lines

THREE = ["maths", "code", "sparsity"]
SHARES = {"density": 0.04, "method=ties": 0.25, "method=linear": 0.11, "maths.weight": 0.6}


def judged(r2: float | None, rms_z: float | None) -> dict[str, Any]:
    inside = (None, None) if r2 is None else (0.55, 0.9)
    figures = {"r2": r2, "coverage50": inside[0], "coverage95": inside[1], "rms_z": rms_z}
    return {**figures, "importance": SHARES}


BELIEF = {
    "objectives": [judged(0.874, 1.1), judged(None, None), {"exact": True}],
    "observations": 20,
    "gain": None,
}


def test_lines_tell_what_each_objective_depends_on_and_how_well_it_is_predicted() -> None:
    assert belief_lines(BELIEF, THREE) == [
        "  model, each of 20 scored trials predicted from the others:",
        "    maths     R² 0.87, calibrated; depends on maths.weight 60%, method 36%",
        "    code      too few or equal scores to judge; depends on maths.weight 60%, method 36%",
        "    sparsity  exact",
    ]


def test_status_tells_what_the_model_of_a_campaign_knows(tmp_path: Path) -> None:
    written = Scribe(tmp_path)
    assert len(status_lines(status_document(written.history()))) == 1
    written.record(None, "modelled", BELIEF)
    document = status_document(written.history())
    assert document["model"] == BELIEF
    assert status_lines(document)[1:] == belief_lines(BELIEF, THREE)


def test_without_a_model_there_is_nothing_to_tell() -> None:
    assert belief_lines({}, THREE) == []


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        ({"density": 0.0, "weight": 0.0}, "nothing"),
        ({f"w{i}": 0.04 if i == 3 else 0.03 for i in range(32)}, "many a little, most on w3 4%"),
        ({"a": 0.06, "b": 0.04, "c": 0.2, "d": 0.3, "e": 0.4}, "e 40%, d 30%, c 20%"),
        ({"a": 0.049, "b": 0.951}, "b 95%"),
    ],
)
def test_the_main_parameters_are_named(importance: dict[str, float], expected: str) -> None:
    known = {**judged(0.5, 1.0), "importance": importance}
    _, line = belief_lines({"objectives": [known], "observations": 9, "gain": None}, THREE[:1])
    assert line.endswith(f"; depends on {expected}")


@pytest.mark.parametrize(
    ("observations", "rms_z", "expected"),
    [
        (1000, 1.24, "calibrated"),
        (1000, 1.26, "too sure"),
        (1000, 0.74, "too cautious"),
        (8, 1.74, "calibrated"),  # chance allows 3 / √16 = 0.75
        (8, 1.76, "too sure"),
    ],
)
def test_judgement_allows_for_chance(observations: int, rms_z: float, expected: str) -> None:
    assert judgement(observations, rms_z) == expected


def test_the_columns_of_a_choice_are_one_parameter_and_the_largest_is_first() -> None:
    shares = parameter_shares(SHARES)
    assert list(shares) == ["maths.weight", "method", "density"]
    assert shares["method"] == pytest.approx(0.36)


def test_the_table_has_a_row_per_objective() -> None:
    text = belief_table(BELIEF, THREE)
    assert text.count("<tr") == 1 + len(THREE)
    for part in ["0.87", "55%", "90%", "calibrated", "too few or equal scores", "exact"]:
        assert f">{part}</td>" in text, part
    assert "density: 4.0%" in text


def test_names_in_the_table_are_escaped() -> None:
    evil = {**judged(0.5, 1.0), "importance": {"weight[<i>attn]": 1.0}}
    text = belief_table({"objectives": [evil], "observations": 3, "gain": None}, THREE[:1])
    assert "<i>" not in text
    assert "&lt;i&gt;attn" in text


def test_what_acquisition_writes_is_what_is_told() -> None:
    X = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)).double()
    Y = torch.stack([torch.sin(3 * X[:, 0]), X.sum(dim=-1)], dim=-1)
    none = X[:0]
    known = (None, lambda X: X.sum(dim=-1))
    observations = Observations(
        X, Y, torch.full_like(Y, 1e-4), none, none, none, known=known, names=("weight", "density")
    )
    told = summary(fit_surrogate(X, Y, observations.Yvar, known), observations, 0.25)
    _, first, second = belief_lines(told, ["maths", "sparsity"])
    assert "depends on weight 100%" in first
    assert second.endswith("exact")
    assert "weight: 100.0%" in belief_table(told, ["maths", "sparsity"])
