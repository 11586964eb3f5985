"""Every key that a user may write, strict and frozen.

`load(path)` reads the YAML (`mmmo.yamlfile` reports syntax), checks every value and reports all
mistakes at once, one line each: `path.to.key: what was found, what is allowed`. Nothing heavy is
imported here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from evaluators.benchmarks.data import DataOptions
from evaluators.merging.methods import METHODS, Method
from evaluators.recipe import DType, ModelRef, TokenizerSource
from evaluators.worker import BenchmarkSpec
from mmmo.complaints import complaints, shown
from mmmo.constraints import Constraint, read_constraint
from mmmo.crosschecks import cross_checks, option_problems
from mmmo.errors import Problems, UserError
from mmmo.paths import with_absolute_paths
from mmmo.settings import Choice, Setting, Strict, read_method, read_setting
from mmmo.yamlfile import read_yaml

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Names become folder and file names."""

DEFAULT_STORE = "sqlite:///runs/mmmo.db"
"""Relative to where a command runs."""

MAY_CHANGE = ("budget", "pool", "store")
"""Sections that decide no result: they may change from session to session."""

LARGEST = 1e15
"""Size of a reference value at most: a hypervolume multiplies the distances to the reference in all
objectives, and must be a finite number with twenty of them.
"""

Measure = Literal["delta_l1"]
"""Objectives that are facts of the merge and need no benchmark."""


class SourcesConfig(Strict):
    """The base and its fine-tunes: folders, or hub ids with `@revision`; `+adapter` behind either.

    An expert may be an adapter alone; it is applied to the base.
    """

    base: str = Field(min_length=1)
    experts: dict[Annotated[str, Field(pattern=NAME)], Annotated[str, Field(min_length=1)]] = Field(
        min_length=1
    )
    tokenizer: TokenizerSource = "base"
    """Whose tokens the merged models have where experts have others."""

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

    method: Annotated[str | Choice, BeforeValidator(read_method)]
    parameters: dict[
        str, Annotated[Setting | dict[str, Setting], BeforeValidator(read_setting)]
    ] = Field(default_factory=dict)
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


def _storable(options: dict[str, Any]) -> dict[str, Any]:
    """Take only what JSON can hold: the options are hashed, stored and read back."""

    def refuse(value: object) -> None:
        allowed = "text, numbers, true, false, null, and lists and keys with these"
        raise ValueError(f"found {shown(value)}, allowed: {allowed}")

    json.dumps(options, default=refuse)
    return options


Options = Annotated[dict[str, Any], AfterValidator(_storable)]
"""What a kind of benchmark or a strategy checks itself."""


class BenchmarkConfig(DataOptions):
    """One benchmark. Keys that only some kinds have stand under `options`."""

    model_config = ConfigDict(strict=True)

    kind: str = Field(min_length=1)
    options: Options = Field(default_factory=dict)

    def spec(self) -> BenchmarkSpec:
        """As a worker opens it."""
        common = self.model_dump(exclude={"kind", "options"}, exclude_none=True)
        return BenchmarkSpec(self.kind, {**common, **self.options})


class ObjectiveConfig(Strict):
    """One objective: the score of a benchmark, or a measure of the merge itself."""

    benchmark: str | None = None
    measure: Measure | None = None
    reference: float | None = Field(None, ge=-LARGEST, le=LARGEST)
    """Worst value that still counts in the hypervolume, in the objective's own units."""

    @model_validator(mode="after")
    def _one_source(self) -> ObjectiveConfig:
        if (self.benchmark is None) == (self.measure is None):
            found = "neither" if self.benchmark is None else "both"
            raise ValueError(f"found {found}, allowed: exactly one of benchmark and measure")
        return self


class ItemsConfig(Strict):
    """How many items a trial begins with, and which trials are scored on more.

    Attributes:
        start: share of the search items of every benchmark that a new trial is scored on.
        promote: `never`; `halving`: successive halving; `gain`: where it gains most per cost.
        order: `shared`: all trials answer the same first items; `own`: each trial has an order of
            its own, so that the errors of two trials are independent.
        confirm: so many trials, the most valuable ones, answer all items before the end.
    """

    start: float = Field(1.0, ge=0.001, le=1)
    promote: Literal["never", "halving", "gain"] = "never"
    order: Literal["shared", "own"] = "shared"
    confirm: int = Field(30, ge=0)


class SearchConfig(Strict):
    """Which strategy proposes, how many candidates at once, and on how many items they begin."""

    strategy: str = "mm_mo"
    initial: int | None = Field(None, ge=1)
    """Trials before the strategy's model; None leaves it to the anchors, see `design_size`."""
    batch: int = Field(1, ge=1)
    synchronous: bool = False
    """Wait for a whole batch before proposing the next, so that with a batch of 1 one worker is
    busy; else refill a worker as it gets free.
    """
    items: ItemsConfig = ItemsConfig()
    options: Options = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_whole_items(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what changes nothing: a campaign's identity stays what it always was."""
        content: dict[str, Any] = dump(self)
        if self.items == ItemsConfig():
            del content["items"]
        return content


def _given(number: Any) -> Any:
    if number is None:
        raise ValueError("found None, allowed: an integer")
    return number


class BudgetConfig(Strict):
    """The campaign ends when any limit is reached.

    Attributes:
        trials: how many; 30 if neither items nor hours are given, else as many as these allow.
        items: how many search items are scored in all, those of all benchmarks together.
        hours: of all sessions.
        stop_when_gain_below: a share of the hypervolume. The search ends when two proposals in a
            row expected less of their best candidate. No gain is known, and none ends a search,
            with five objectives and more or without a model (`sobol`).
    """

    trials: Annotated[int | None, BeforeValidator(_given)] = Field(None, ge=1)
    items: Annotated[int | None, BeforeValidator(_given)] = Field(None, ge=1)
    hours: float | None = Field(None, gt=0)
    stop_when_gain_below: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _some_limit(cls, raw: Any) -> Any:
        """Write 30 trials where the user gave no limit."""
        limits = ("items", "hours")
        if isinstance(raw, dict) and "trials" not in raw and not any(map(raw.get, limits)):
            return {**raw, "trials": 30}
        return raw

    @model_serializer(mode="wrap")
    def _without_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the limits that are not set."""
        content: dict[str, Any] = dump(self)
        return {key: value for key, value in content.items() if value is not None}


class PoolConfig(Strict):
    """Who evaluates.

    Attributes:
        device: where models are scored, as torch names it.
        merge_on: who merges: the processor, and models elsewhere are copied there; or the device,
            which then keeps the sources, too. Results are the same.
    """

    executor: Literal["inline", "process"] = "process"
    workers: int = Field(1, ge=1)
    threads: int = Field(1, ge=1)
    device: str = "cpu"
    merge_on: Literal["processor", "device"] = "processor"
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
    constraints: tuple[Annotated[Constraint, BeforeValidator(read_constraint)], ...] = Field(
        (), strict=False
    )
    search: SearchConfig = SearchConfig()
    budget: BudgetConfig = BudgetConfig()
    pool: PoolConfig = PoolConfig()
    store: str = DEFAULT_STORE

    def identity(self) -> str:
        """Hash of all that decides the results: everything but budget, pool and store."""
        content = self.model_dump(mode="json", exclude=set(MAY_CHANGE))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """The resolved configuration as YAML, as a user could have written it."""
        content = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def load(path: Path) -> CampaignConfig:
    """Read and check a campaign file; sources and data in it are relative to the file,
    `store` is relative to where the command runs.

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
    problems = [*cross_checks(config), *option_problems(config)]
    if problems:
        raise Problems(problems)
    return with_absolute_paths(config, folder)
