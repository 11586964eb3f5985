"""What the surrogate said about itself, for people: lines of `status`, a table of the report.

A belief is the summary that a strategy gives with a proposal, as `acquisition.diagnostics`
describes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import sqrt
from typing import Any

from mmmo.page import Cell, table

Belief = Mapping[str, Any]
"""Such a summary; empty where there is no model."""

TOLERANCE = 0.25
"""A root mean square of z this far from 1 counts as calibrated, however many the observations."""

SHOWN, LEAST_SHARE = 3, 0.05
"""How many parameters are named in words, and what share one must have."""


def belief_lines(belief: Belief, objectives: Sequence[str]) -> list[str]:
    """Say what the model knows: a line, and one per objective; nothing without a model."""
    if not belief:
        return []
    width = max(map(len, objectives))
    return [
        f"  model, each of {belief['observations']} scored trials predicted from the others:",
        *(
            f"    {name.ljust(width)}  {_words(known, belief['observations'])}"
            for name, known in zip(objectives, belief["objectives"], strict=True)
        ),
    ]


def belief_table(belief: Belief, objectives: Sequence[str]) -> str:
    """Make the HTML table of what a model knows, a row per objective."""
    head = ["objective", "R²", "within 50%", "within 95%", "calibration", "depends on"]
    rows = [
        [(escape(name), name), *_cells(known, belief["observations"])]
        for name, known in zip(objectives, belief["objectives"], strict=True)
    ]
    return table(head, rows)


def judgement(observations: int, rms_z: float) -> str:
    """Whether predicted errors are as large as they turn out: rms_z = 1 up to chance.

    Chance is three standard errors of the root mean square of n normal numbers, 1 / √(2 n) each.
    """
    allowed = max(TOLERANCE, 3 / sqrt(2 * observations))
    if abs(rms_z - 1) <= allowed:
        return "calibrated"
    return "too sure" if rms_z > 1 else "too cautious"


def parameter_shares(importance: Mapping[str, float]) -> dict[str, float]:
    """Add up the columns of each choice, `method=ties` and so on; the largest share first."""
    shares: dict[str, float] = {}
    for column, share in importance.items():
        name = column.rpartition("=")[0] or column
        shares[name] = shares.get(name, 0.0) + share
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _words(known: Mapping[str, Any], observations: int) -> str:
    """One objective in a line."""
    if known.get("exact"):
        return "exact"
    depends = f"depends on {_main_shares(known['importance'])}"
    if known["r2"] is None:
        return f"too few or equal scores to judge; {depends}"
    return f"R² {known['r2']:.2f}, {judgement(observations, known['rms_z'])}; {depends}"


def _main_shares(importance: Mapping[str, float]) -> str:
    shares = [*parameter_shares(importance).items()][:SHOWN]
    named = [f"{name} {share:.0%}" for name, share in shares if share >= LEAST_SHARE]
    (most, share), *_ = shares
    if named or not share:
        return ", ".join(named) or "nothing"
    return f"many a little, most on {most} {share:.0%}"


def _cells(known: Mapping[str, Any], observations: int) -> list[Cell]:
    if known.get("exact"):
        return [("", ""), ("", ""), ("", ""), ("exact", "exact"), ("", "")]
    figures: list[Cell] = [("", "")] * 3
    verdict = "too few or equal scores"
    if known["r2"] is not None:
        verdict = judgement(observations, known["rms_z"])
        inside = known["coverage50"], known["coverage95"]
        figures = [(f"{known['r2']:.2f}", known["r2"]), *((f"{c:.0%}", c) for c in inside)]
    return [*figures, (verdict, verdict), (_shares(known["importance"]), "")]


def _shares(importance: Mapping[str, float]) -> str:
    """Name the main parameters; all of them on demand."""
    shares = parameter_shares(importance)
    every = "\n".join(f"{name}: {share:.1%}" for name, share in shares.items())
    return (
        f"<details><summary>{escape(_main_shares(importance))}</summary>"
        f"<pre>{escape(every)}</pre></details>"
    )
