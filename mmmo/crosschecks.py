"""Mistakes in a campaign file that only show when its keys are read together."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from evaluators.benchmarks.data import DataOptions
from evaluators.benchmarks.table import options_of
from evaluators.merging.methods import Parameter
from mmmo.complaints import complaint, complaints
from mmmo.settings import Choice, Fixed, Gradient, Range, Setting

if TYPE_CHECKING:
    from mmmo.config import CampaignConfig

BENCHMARK_KEYS = frozenset({"kind", "options", *DataOptions.model_fields})
"""Keys that stand under a benchmark itself; all others stand under its `options`."""

MOST_WITH_GAIN = 4
"""With more objectives a search has no expected hypervolume gain (`acquisition.boxes`)."""

_TIMED = {"load", "merge"}
"""Parts of a trial that are timed beside its benchmarks."""


def cross_checks(config: CampaignConfig) -> list[str]:
    """Mistakes that only show when keys are read together."""
    problems = _parameter_problems(config)
    for name, method in config.merge.methods.items():
        found = len(config.sources.experts)
        if not method.takes(found):
            problems.append(
                f"merge.method: found {found} experts, allowed: {method.counts} with {name}"
            )
    if "base" in config.sources.experts:
        problems.append("sources.experts.base: found 'base', allowed: any name but the base's own")
    for name, objective in config.objectives.items():
        if objective.benchmark is not None and objective.benchmark not in config.benchmarks:
            where = f"objectives.{name}.benchmark"
            problems.append(complaint(where, objective.benchmark, config.benchmarks))
    problems += _item_problems(config)
    for name in _TIMED & set(config.benchmarks):
        problems.append(f"benchmarks.{name}: found a name that timings use, allowed: any other")
    for i, constraint in enumerate(config.constraints):
        if constraint.objective not in config.objectives:
            where = f"constraints.{i}"
            problems.append(complaint(where, constraint.objective, config.objectives))
    return problems


def _item_problems(config: CampaignConfig) -> list[str]:
    """Keys that would do nothing."""
    items, budget = config.search.items, config.budget
    problems = []
    if items.start == 1:
        for key, found, allowed in (
            ("promote", items.promote, "never"),
            ("order", items.order, "shared"),
        ):
            if found != allowed:
                problems.append(
                    f"search.items.{key}: found {found!r}, allowed with start 1: {allowed}"
                )
    if not config.benchmarks and (items.start < 1 or budget.items is not None):
        where = "search.items.start" if items.start < 1 else "budget.items"
        problems.append(f"{where}: found no benchmark, allowed: only with items to score")
    if budget.stop_when_gain_below is not None:
        where, least = "budget.stop_when_gain_below", budget.stop_when_gain_below
        if config.search.strategy == "sobol":
            problems.append(f"{where}: found {least}, allowed: with a model, which sobol has not")
        elif len(config.objectives) > MOST_WITH_GAIN:
            problems.append(
                f"{where}: found {least} with {len(config.objectives)} objectives, "
                f"allowed: with at most {MOST_WITH_GAIN}"
            )
    return problems


def _parameter_problems(config: CampaignConfig) -> list[str]:
    problems = []
    for name, setting in config.merge.parameters.items():
        specs = [p for m in config.merge.methods.values() if (p := m.parameter(name))]
        if not specs:
            known = sorted({p.name for m in config.merge.methods.values() for p in m.parameters})
            methods = " or ".join(config.merge.methods)
            problems.append(f"merge.{name}: no parameter of {methods}; allowed: {', '.join(known)}")
            continue
        if not isinstance(setting, dict):
            problems += _setting_problems(f"merge.{name}", setting, specs[0])
            problems += _gradient_problems(f"merge.{name}", setting, config)
            continue
        if specs[0].scope == "merge":
            problems.append(f"merge.{name}: found one per expert, allowed: one for the whole merge")
            continue
        for expert, value in setting.items():
            where = f"merge.{name}.{expert}"
            if expert not in config.sources.experts:
                problems.append(complaint(where, expert, config.sources.experts))
            else:
                problems += _setting_problems(where, value, specs[0])
                problems += _gradient_problems(where, value, config)
        missing = [e for e in config.sources.experts if e not in setting]
        if missing:
            found = ", ".join(setting)
            problems.append(
                f"merge.{name}: found {found}, allowed: every expert; {', '.join(missing)} missing"
            )
    return problems


def _setting_problems(where: str, setting: Setting, spec: Parameter) -> list[str]:
    values = _written(setting)
    if spec.choices is not None:
        # `1` is no `true` here, though Python finds them equal.
        allowed_values = {(type(choice), choice) for choice in spec.choices}
        wrong = [v for v in values if (type(v), v) not in allowed_values]
        allowed = ", ".join(_plain(c) for c in spec.choices)
        return [f"{where}: found {_plain(v)}, allowed: {allowed}" for v in wrong]
    low, high = spec.domain or (-math.inf, math.inf)
    allowed = "a finite number" if math.isinf(low) else f"numbers in [{low:g}, {high:g}]"
    return [
        f"{where}: found {_plain(v)}, allowed: {allowed}"
        for v in values
        if isinstance(v, bool | str) or not low <= v <= high or not math.isfinite(v)
    ]


def _written(setting: Setting) -> tuple[Fixed, ...]:
    """Every value that stands in a setting."""
    if isinstance(setting, Range):
        return setting.low, setting.high
    if isinstance(setting, Gradient):
        return setting.values
    return setting.options if isinstance(setting, Choice) else (setting,)


def _gradient_problems(where: str, setting: Setting, config: CampaignConfig) -> list[str]:
    if not isinstance(setting, Gradient) or config.merge.layer_groups > 1:
        return []
    found = ", ".join(f"{v:g}" for v in setting.values)
    return [
        f"{where}: found [{found}], allowed with layer_groups 1: one value; set "
        "merge.layer_groups to more, as many as the model has layers at most"
    ]


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def option_problems(config: CampaignConfig) -> list[str]:
    """Mistakes in the options of each kind, found by the kind's own model."""
    problems = []
    for name, benchmark in config.benchmarks.items():
        where = f"benchmarks.{name}"
        twice = [key for key in benchmark.options if key in BENCHMARK_KEYS]
        if twice:
            lines = [f"{where}.options.{key}: allowed: only as {where}.{key}" for key in twice]
            problems += lines
            continue
        try:
            model = options_of(benchmark.kind)
        except LookupError as error:
            problems.append(f"{where}.kind: {error.args[0]}")
            continue
        try:
            model.model_validate(dict(benchmark.spec().options))
        except ValidationError as error:
            problems += complaints(error, model, partial(_written_at, where))
    return problems


def _written_at(where: str, path: str) -> str:
    """Where a benchmark's option stands in the file: what all kinds have is not in `options`."""
    if path.partition(".")[0] in BENCHMARK_KEYS:
        return f"{where}.{path}"
    return f"{where}.options.{path}" if path else where
