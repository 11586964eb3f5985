"""Every key that a user may write, strict and frozen.

`load(path)` reads the YAML (`mmmo.yamlfile` reports syntax), checks every value and reports all
mistakes at once, one line each: `path.to.key: what was found, what is allowed`. Nothing heavy is
imported here.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from evaluators.benchmarks.table import options_of
from evaluators.merging.methods import METHODS, Method, Parameter
from evaluators.recipe import DType, Frozen, ModelRef
from evaluators.worker import BenchmarkSpec
from mmmo.complaints import complaint, complaints, shown, unknown
from mmmo.errors import Problems, UserError
from mmmo.yamlfile import read_yaml

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Names become folder and file names."""

Measure = Literal["delta_l1"]
"""Objectives that are facts of the merge and need no benchmark."""


class Strict(Frozen):
    """Every section of the file: `true` is no number, and text is not read as one."""

    model_config = ConfigDict(strict=True)


class Range(Strict):
    """A number to search: any value of the closed interval."""

    low: float
    high: float

    @model_serializer
    def _as_written(self) -> dict[str, list[float]]:
        return {"range": [self.low, self.high]}

    def __str__(self) -> str:
        return f"range [{self.low:g}, {self.high:g}]"


class Choice(Strict):
    """A value to search: one of at least two."""

    options: tuple[bool | float | str, ...]

    @model_serializer
    def _as_written(self) -> dict[str, list[bool | float | str]]:
        return {"choice": list(self.options)}

    def __str__(self) -> str:
        return f"choice [{', '.join(map(str, self.options))}]"


Fixed = bool | float | str
Setting = Fixed | Range | Choice


def _setting(raw: Any) -> Any:
    """Read `0.5`, `true`, `l1`, `{range: [0, 1]}`, `{choice: [a, b]}` or `{expert: setting, …}`."""
    if isinstance(raw, dict) and raw and not {"range", "choice"} & set(raw):
        return {str(name): _one_setting(value) for name, value in raw.items()}
    return _one_setting(raw)


def _one_setting(raw: Any) -> Setting:
    if isinstance(raw, Range | Choice | bool | int | float | str):
        return float(raw) if isinstance(raw, int) and not isinstance(raw, bool) else raw
    if isinstance(raw, dict) and set(raw) == {"range"}:
        return _range(raw["range"])
    if isinstance(raw, dict) and set(raw) == {"choice"}:
        return _choice(raw["choice"])
    allowed = "a value, {range: [low, high]}, {choice: [a, b]}, or one of these per expert"
    raise ValueError(f"found {shown(raw)}, allowed: {allowed}")


def _range(raw: Any) -> Range:
    numbers = isinstance(raw, list) and len(raw) == 2 and all(map(_is_number, raw))
    if not numbers or not raw[0] < raw[1]:
        raise ValueError(f"found range {shown(raw)}, allowed: [low, high], two numbers, low < high")
    return Range(low=raw[0], high=raw[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _choice(raw: Any) -> Choice:
    plain = isinstance(raw, list) and all(isinstance(o, bool | int | float | str) for o in raw)
    if not plain or len(raw) < 2 or len(set(map(repr, raw))) < len(raw):
        raise ValueError(f"found choice {shown(raw)}, allowed: a list of two or more that differ")
    return Choice(options=tuple(raw))


def _method(raw: Any) -> str | Choice:
    """Read `ties` or `{choice: [ties, slerp]}`."""
    method = _choice(raw["choice"]) if isinstance(raw, dict) and set(raw) == {"choice"} else raw
    for name in method.options if isinstance(method, Choice) else (method,):
        if not isinstance(name, str) or name not in METHODS:
            raise ValueError(unknown(name, METHODS))
    return cast("str | Choice", method)


class SourcesConfig(Strict):
    """The base and its fine-tunes: folders, or hub ids with `@revision`."""

    base: str = Field(min_length=1)
    experts: dict[Annotated[str, Field(pattern=NAME)], Annotated[str, Field(min_length=1)]] = Field(
        min_length=1
    )

    def refs(self) -> tuple[ModelRef, dict[str, ModelRef]]:
        """Base and experts as the evaluators open them."""
        return (
            ModelRef.parse(self.base),
            {name: ModelRef.parse(path) for name, path in self.experts.items()},
        )


PARAMETERS: frozenset[str] = frozenset(p.name for m in METHODS.values() for p in m.parameters)
"""Every parameter of every operator; in the file they stand directly under `merge`."""


class MergeConfig(Strict):
    """The operator and its parameters; whatever is a range or a choice is searched."""

    method: Annotated[str | Choice, BeforeValidator(_method)]
    parameters: dict[str, Annotated[Setting | dict[str, Setting], BeforeValidator(_setting)]] = (
        Field(default_factory=dict)
    )
    layer_groups: int = Field(1, ge=1, le=1000)
    filters: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), strict=False)
    dtype: DType = "float32"

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, raw: Any) -> Any:
        """Move operator parameters from `merge`, where they are written, into `parameters`."""
        if not isinstance(raw, dict):
            return raw
        if "parameters" in raw:
            raise ValueError("found the key parameters, allowed: its content, directly under merge")
        own = {k: v for k, v in raw.items() if k not in PARAMETERS}
        return {**own, "parameters": {k: v for k, v in raw.items() if k in PARAMETERS}}

    @model_serializer(mode="wrap")
    def _scatter(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the parameters where the user writes them."""
        content: dict[str, Any] = dump(self)
        parameters: dict[str, Any] = content.pop("parameters", {})
        return content | parameters

    @property
    def methods(self) -> dict[str, Method]:
        """The operators that this campaign may use."""
        names = self.method.options if isinstance(self.method, Choice) else (self.method,)
        return {str(name): METHODS[str(name)] for name in names}


class BenchmarkConfig(Strict):
    """One benchmark. Keys that only some kinds have stand under `options`."""

    kind: str = Field(min_length=1)
    data: str = Field(min_length=1)
    held_out: str | None = None
    limit: int | None = Field(None, ge=1)
    held_out_limit: int | None = Field(None, ge=1)
    held_out_share: float = Field(0.5, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    subset: str | None = None
    data_split: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    def spec(self) -> BenchmarkSpec:
        """As a worker opens it."""
        common = self.model_dump(exclude={"kind", "options"}, exclude_none=True)
        return BenchmarkSpec(self.kind, {**common, **self.options})


class ObjectiveConfig(Strict):
    """One objective: the score of a benchmark, or a measure of the merge itself."""

    benchmark: str | None = None
    measure: Measure | None = None
    reference: float | None = None
    """Worst value that still counts in the hypervolume, in the objective's own units."""

    @model_validator(mode="after")
    def _one_source(self) -> ObjectiveConfig:
        if (self.benchmark is None) == (self.measure is None):
            found = "neither" if self.benchmark is None else "both"
            raise ValueError(f"found {found}, allowed: exactly one of benchmark and measure")
        return self


class Constraint(Strict):
    """`objective >= bound` or `objective <= bound`, in the objective's own units."""

    objective: str
    sign: Literal[">=", "<="]
    bound: float

    @model_serializer
    def __str__(self) -> str:
        return f"{self.objective} {self.sign} {self.bound!r}"


def _constraint(raw: Any) -> Any:
    match = re.fullmatch(r"\s*(\S+)\s*(>=|<=)\s*(\S+)\s*", raw) if isinstance(raw, str) else None
    if not match:
        return raw if isinstance(raw, Constraint) else _no_constraint(raw)
    try:
        bound = float(match[3])
    except ValueError:
        return _no_constraint(raw)
    return {"objective": match[1], "sign": match[2], "bound": bound}


def _no_constraint(raw: Any) -> Any:
    raise ValueError(f'found {shown(raw)}, allowed: "objective >= number" or "objective <= number"')


class SearchConfig(Strict):
    """Which strategy proposes, and how many candidates at once."""

    strategy: str = "mm_mo"
    initial: int = Field(10, ge=1)
    batch: int = Field(5, ge=1)
    synchronous: bool = False
    """Wait for a whole batch before proposing the next; else refill a worker as it gets free."""
    options: dict[str, Any] = Field(default_factory=dict)


class BudgetConfig(Strict):
    """The campaign ends when any limit is reached."""

    trials: int = Field(30, ge=1)
    hours: float | None = Field(None, gt=0)


class PoolConfig(Strict):
    """Who evaluates."""

    executor: Literal["inline", "process"] = "process"
    workers: int = Field(1, ge=1)
    threads: int = Field(1, ge=1)
    device: str = "cpu"
    trial_timeout_s: float = Field(3600.0, gt=0)
    retries: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _inline_is_one(self) -> PoolConfig:
        if self.executor == "inline" and self.workers != 1:
            raise ValueError(f"found {self.workers} workers, allowed: 1 with the inline executor")
        return self


class CampaignConfig(Strict):
    """The whole file."""

    schema_version: Literal[1]
    name: str = Field(pattern=NAME, max_length=100)
    seed: int = Field(0, ge=0, lt=2**63)
    sources: SourcesConfig
    merge: MergeConfig
    benchmarks: dict[Annotated[str, Field(pattern=NAME)], BenchmarkConfig] = Field(
        default_factory=dict
    )
    objectives: dict[Annotated[str, Field(pattern=NAME)], ObjectiveConfig] = Field(min_length=1)
    constraints: tuple[Annotated[Constraint, BeforeValidator(_constraint)], ...] = Field(
        (), strict=False
    )
    search: SearchConfig = SearchConfig()
    budget: BudgetConfig = BudgetConfig()
    pool: PoolConfig = PoolConfig()
    store: str = "sqlite:///runs/mmmo.db"

    def identity(self) -> str:
        """Hash of all that decides the results: everything but budget, pool and store."""
        content = self.model_dump(mode="json", exclude={"budget", "pool", "store"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """The resolved configuration as YAML, as a user could have written it."""
        content = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def load(path: Path) -> CampaignConfig:
    """Read and check a campaign file; relative paths in it are relative to the file.

    Raises:
        UserError: the file cannot be read, or is no YAML (line and column are named).
        Problems: one line per mistake.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise UserError(f"{path}: found {found}, allowed: keys with their values")
    return parse(raw, path.resolve().parent)


def parse(raw: Mapping[str, Any], folder: Path) -> CampaignConfig:
    """Check the content of a campaign file.

    Raises:
        Problems: one line per mistake.
    """
    try:
        config = CampaignConfig.model_validate(raw)
    except ValidationError as error:
        raise Problems(complaints(error, CampaignConfig)) from None
    problems = [*_cross_checks(config), *_benchmark_options(config)]
    if problems:
        raise Problems(problems)
    return _absolute(config, folder)


def _cross_checks(config: CampaignConfig) -> list[str]:
    """Mistakes that only show when keys are read together."""
    problems = _parameter_problems(config)
    for name, method in config.merge.methods.items():
        if method.pairwise and len(config.sources.experts) > 2:
            found = len(config.sources.experts)
            problems.append(f"merge.method: found {found} experts, allowed: 1 or 2 with {name}")
    if "base" in config.sources.experts:
        problems.append("sources.experts.base: found 'base', allowed: any name but the base's own")
    for name, objective in config.objectives.items():
        if objective.benchmark is not None and objective.benchmark not in config.benchmarks:
            where = f"objectives.{name}.benchmark"
            problems.append(complaint(where, objective.benchmark, config.benchmarks))
    for i, constraint in enumerate(config.constraints):
        if constraint.objective not in config.objectives:
            where = f"constraints.{i}"
            problems.append(complaint(where, constraint.objective, config.objectives))
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
        missing = [e for e in config.sources.experts if e not in setting]
        if missing:
            found = ", ".join(setting)
            problems.append(
                f"merge.{name}: found {found}, allowed: every expert; {', '.join(missing)} missing"
            )
    return problems


def _setting_problems(where: str, setting: Setting, spec: Parameter) -> list[str]:
    if spec.choices is not None:
        values = setting.options if isinstance(setting, Choice) else (setting,)
        wrong = [v for v in values if v not in spec.choices]
        allowed = ", ".join(_plain(c) for c in spec.choices)
        return [f"{where}: found {_plain(v)}, allowed: {allowed}" for v in wrong]
    low, high = spec.domain or (-math.inf, math.inf)
    if isinstance(setting, Range):
        values = (setting.low, setting.high)
    else:
        values = setting.options if isinstance(setting, Choice) else (setting,)
    allowed = "a finite number" if math.isinf(low) else f"numbers in [{low:g}, {high:g}]"
    return [
        f"{where}: found {_plain(v)}, allowed: {allowed}"
        for v in values
        if isinstance(v, bool | str) or not low <= v <= high or not math.isfinite(v)
    ]


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _benchmark_options(config: CampaignConfig) -> list[str]:
    """Mistakes in the options of each kind, found by the kind's own model."""
    problems = []
    for name, benchmark in config.benchmarks.items():
        where = f"benchmarks.{name}"
        twice = [key for key in benchmark.options if key in BenchmarkConfig.model_fields]
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
    if path.partition(".")[0] in BenchmarkConfig.model_fields:
        return f"{where}.{path}"
    return f"{where}.options.{path}" if path else where


def _absolute(config: CampaignConfig, folder: Path) -> CampaignConfig:
    """Resolve what is a path beside the file; leave hub ids and absolute paths as they are."""

    def resolve(text: str) -> str:
        path, at, revision = text.partition("@")
        here = folder / Path(path).expanduser()
        looks_local = path.startswith((".", "/", "~")) or here.exists() or here.suffix != ""
        return f"{here.resolve()}{at}{revision}" if looks_local else text

    sources = SourcesConfig(
        base=resolve(config.sources.base),
        experts={name: resolve(path) for name, path in config.sources.experts.items()},
    )
    benchmarks = {name: _with_paths(b, resolve) for name, b in config.benchmarks.items()}
    return config.model_copy(update={"sources": sources, "benchmarks": benchmarks})


def _with_paths(benchmark: BenchmarkConfig, resolve: Callable[[str], str]) -> BenchmarkConfig:
    """Resolve the data files, and the options that the kind declares as paths."""
    paths = _path_fields(options_of(benchmark.kind))
    options = {k: resolve(v) if k in paths else v for k, v in benchmark.options.items()}
    held_out = resolve(benchmark.held_out) if benchmark.held_out else None
    return benchmark.model_copy(
        update={"data": resolve(benchmark.data), "held_out": held_out, "options": options}
    )


def _path_fields(options: type[BaseModel]) -> set[str]:
    fields = options.model_fields.items()
    return {name for name, f in fields if Path in (f.annotation, *get_args(f.annotation))}
