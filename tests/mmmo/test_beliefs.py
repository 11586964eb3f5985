"""What a model says of itself, in words and as a table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from histories import OBJECTIVES

from acquisition.diagnostics import summary
from acquisition.strategy import Observations
from acquisition.surrogates import fit_surrogate
from mmmo.beliefs import belief_lines, belief_table, judgement, parameter_shares

THREE = [OBJECTIVES[name] for name in ("maths", "code", "sparsity")]
SHARES = {"density": 0.04, "method=ties": 0.25, "method=linear": 0.11, "maths.weight": 0.6}


def judged(r2: float | None, rms_z: float | None) -> dict[str, Any]:
    inside = (None, None) if r2 is None else (0.55, 0.9)
    figures = {"r2": r2, "coverage50": inside[0], "coverage95": inside[1], "rms_z": rms_z}
    return {**figures, "importance": SHARES}


def belief(gain: float | None = 0.0314) -> dict[str, Any]:
    known = [judged(0.874, 1.1), judged(None, None), {"exact": True}]
    return {"objectives": known, "observations": 20, "gain": gain}


def test_lines_tell_the_last_belief() -> None:
    before = {"objectives": [], "observations": 15, "gain": 0.5}
    assert belief_lines([before, belief()], THREE) == [
        "model of 20 scored trials: the next is expected to add 3.1% of the hypervolume",
        "  maths     R² 0.87, calibrated; depends on maths.weight 60%, method 36%",
        "  code      too few or equal scores to judge; depends on maths.weight 60%, method 36%",
        "  sparsity  exact",
    ]


def test_an_unknown_gain_is_not_told() -> None:
    assert belief_lines([belief(None)], THREE)[0] == "model of 20 scored trials"


def test_without_a_model_there_is_nothing_to_tell() -> None:
    assert belief_lines([], THREE) == []


def test_nothing_moves_a_constant() -> None:
    flat = {**judged(None, None), "importance": {"density": 0.0, "weight": 0.0}}
    said = {"objectives": [flat], "observations": 9, "gain": None}
    (_, line) = belief_lines([said], THREE[:1])
    assert line.endswith("depends on nothing much")


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
    text = belief_table(belief(), THREE)
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
    lines = belief_lines([told], [THREE[0], THREE[2]])
    assert lines[0].endswith("add 25% of the hypervolume")
    assert "depends on weight 100%" in lines[1]
    assert lines[2].endswith("exact")
    assert "weight: 100.0%" in belief_table(told, [THREE[0], THREE[2]])
