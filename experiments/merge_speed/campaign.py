"""A trial's merge inside a campaign on the quickstart: into its live model, guards included."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median

from evaluators.merging.engine import MergeEngine
from evaluators.models import open_model
from evaluators.recipe import ModelRef
from evaluators.sources import open_sources
from experiments.merge_speed.cases import CASES, Case, recipe
from experiments.merge_speed.clock import cpu_seconds

ZOO = Path(__file__).parents[1] / "quickstart" / "zoo"
EXPERTS = ("maths", "code", "spanish")


def swap_ms(trials: int, zoo: Path = ZOO) -> Mapping[str, float]:
    """Median processor milliseconds of one trial's merge, per case; empty without the models."""
    if not all((zoo / name / "model.safetensors").is_file() for name in ("base", *EXPERTS)):
        return {}
    experts = {name: ModelRef(path=str(zoo / name)) for name in EXPERTS}
    sources = open_sources(ModelRef(path=str(zoo / "base")), experts)
    engine, model = MergeEngine(sources), open_model(zoo / "base", "float32")
    found = {}

    def merge(case: Case, number: int) -> None:
        report = engine.merge_into(recipe(case, sources, number, "float32"), model.tensors)
        if report.non_finite:
            raise RuntimeError(f"{case.name}: {report.non_finite} values are not finite")

    for case in CASES:
        seconds = [cpu_seconds(partial(merge, case, number)) for number in range(trials + 1)]
        found[case.name] = 1e3 * median(seconds[1:])  # the first compiles and builds tables
    return found
