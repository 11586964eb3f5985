"""The merges that are timed, and the figures that the project set itself for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evaluators.merging.methods import METHODS
from evaluators.recipe import WHOLE, DType, MergeRecipe, Value
from evaluators.sources import Sources
from experiments.merge_speed.zoo import SEED

DENSITY = 0.5


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what the table calls it.
        method: a key of `METHODS`.
        whole: parameters of the merge that are not at their defaults.
        target: at most so many times the bandwidth floor; None = none was set.
    """

    name: str
    method: str
    whole: Mapping[str, Value] = field(default_factory=dict)
    target: float | None = None


CASES = (
    Case("task arithmetic", "task_arithmetic", target=1.3),
    Case("TIES, exact ties", "ties", target=2.0),
    Case("TIES, keep all ties", "ties", {"on_tie": "all"}),
    Case("DARE-TIES, L1 rescale", "dare_ties", target=3.0),
    Case("DARE-TIES, 1/density", "dare_ties", {"rescale": "inverse_density"}),
    Case("DELLA", "della", target=3.5),
    Case("linear", "linear"),
    Case("slerp (2 models)", "slerp"),
    Case("model_stock", "model_stock"),
    Case("breadcrumbs", "breadcrumbs"),
)

FASTER_THAN_PROCESS = 100.0
"""TIES against `mergekit-yaml -j 1` as a whole process: at least so many times."""
FASTER_THAN_KERNEL = 80.0
"""TIES against mergekit's own function in process: at least so many times."""
TABLES_S = 10.0
"""Magnitude tables for 3 x 0.5 billion parameters: at most so many CPU seconds."""
SWAP_MS = 5.0
"""A merge inside a campaign on the quickstart: at most so many milliseconds a trial."""


def recipe(case: Case, sources: Sources, number: int = 0, dtype: DType = "bfloat16") -> MergeRecipe:
    """Make the recipe of the `number`-th trial: every number has other weights and densities."""
    method = METHODS[case.method]
    experts = dict(list(sources.experts.items())[: method.most])
    whole: dict[str, Value] = dict(case.whole)
    if method.parameter("t"):
        whole["t"] = 0.3 + 0.1 * (number % 5)
    parameters = {WHOLE: whole}
    for k, name in enumerate(experts):
        own: dict[str, Value] = {}
        if method.parameter("weight"):
            own["weight"] = 0.4 + 0.05 * ((number + k) % 5)
        if method.parameter("density"):
            own["density"] = DENSITY + 0.01 * (number % 5)
        parameters[name] = own
    return MergeRecipe(
        method=case.method,
        base=sources.base.ref,
        experts={name: expert.ref for name, expert in experts.items()},
        parameters=parameters,
        dtype=dtype,
        seed=SEED,  # a campaign has one
    )
