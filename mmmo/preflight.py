"""Everything that can be found out before the first evaluation: `mmmo check`, and every launch.

Sources open and fit each other, benchmarks load and keep their splits apart, memory and disk are
estimated, and the objectives get their goals from the benchmarks' metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from evaluators.benchmarks.benchmark import Benchmark, Goal, Split
from evaluators.benchmarks.rows import DataError
from evaluators.benchmarks.table import misfit, open_benchmark, summed_up
from evaluators.worker import Workbench
from mmmo.complaints import shown
from mmmo.config import CampaignConfig
from mmmo.errors import Problems, StoreError
from mmmo.fidelity import Fidelity, reserve
from mmmo.records import Objective
from mmmo.space import SearchSpace
from mmmo.terminal import tell

if TYPE_CHECKING:
    from evaluators.sources import Checkpoint, Sources


@dataclass(frozen=True)
class Facts:
    """What a campaign is measured by, fixed when it is created and checked when it is resumed.

    Attributes:
        sources: model → digest of its weights.
        items: benchmark → split → number of items.
        fingerprints: benchmark → split → hash of the items in their order.
    """

    objectives: tuple[Objective, ...]
    sources: Mapping[str, str]
    items: Mapping[str, Mapping[str, int]]
    fingerprints: Mapping[str, Mapping[Split, str]]

    def document(self) -> dict[str, Any]:
        """As the *created* event keeps it."""
        return asdict(self)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Facts:
        """From a *created* event."""
        objectives = tuple(Objective(**o) for o in document["objectives"])
        return cls(**{**document, "objectives": objectives})

    def changes(self, now: Facts) -> Iterator[str]:
        """What is no longer as it was, a line each."""
        for name, digest in self.sources.items():
            if now.sources.get(name) != digest:
                yield f"sources.{name}: the weights changed since the campaign began"
        for name, fingerprints in self.fingerprints.items():
            if now.fingerprints.get(name) != fingerprints:
                yield f"benchmarks.{name}: the items changed since the campaign began"


class Preflight:
    """Opens what a campaign needs and looks at it; nothing is run. Only the cache is written to.

    Args:
        thorough: look at everything; else only open sources and benchmarks, for a campaign that
            passed before.
    """

    def __init__(self, config: CampaignConfig, thorough: bool = True) -> None:
        self.config = config
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self._benchmarks = dict(self._open_benchmarks())
        self._sources = self._open_sources()
        if thorough:
            self._look_at_space()
            self._look_at_strategy()
            self._look_at_items()
            self._look_at_store()
            self._look_at_device()
            self._look_at_sources()
        if thorough and not self.errors:
            self._check_constraints()

    @cached_property
    def facts(self) -> Facts:
        """What the campaign is measured by.

        Raises:
            Problems: something is wrong; one line each.
        """
        if self.errors or self._sources is None:
            raise Problems(self.errors)
        return Facts(
            objectives=self.objectives,
            sources={name: c.digest for name, c in self._sources.all.items()},
            items={
                name: {"search": b.size("search"), "held_out": b.size("held_out")}
                for name, b in self._benchmarks.items()
            },
            fingerprints={
                name: {s: b.fingerprint(s) for s in ("search", "held_out")}
                for name, b in self._benchmarks.items()
            },
        )

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Objectives with the goals that their metrics say."""
        return tuple(self._objectives())

    def _objectives(self) -> Iterator[Objective]:
        for name, o in self.config.objectives.items():
            if o.benchmark is None:
                yield Objective(name, None, o.measure, str(o.measure), -1.0, o.reference)
                continue
            metric = self._benchmarks[o.benchmark].metric
            sign = 1.0 if metric.goal == "maximize" else -1.0
            yield Objective(name, o.benchmark, None, metric.name, sign, o.reference)

    def _open_benchmarks(self) -> Iterator[tuple[str, Benchmark]]:
        for name, config in self.config.benchmarks.items():
            spec = config.spec()
            try:
                benchmark = open_benchmark(spec.kind, spec.options)
                problems = [*_broken_rules(benchmark)]
            except DataError as error:
                problems = [str(error)]
            except Exception as error:  # `_broken_rules` asks a user's own class
                problems = [f"{spec.kind!r} cannot be asked: {summed_up(error)}"]
            if problems:
                self.errors += [f"benchmarks.{name}: {problem}" for problem in problems]
                continue
            search, held_out = benchmark.size("search"), benchmark.size("held_out")
            self.notes.append(f"benchmark {name}: {search} search items, {held_out} held out")
            yield name, benchmark

    def _look_at_space(self) -> None:
        space = SearchSpace(self.config)
        self.notes.append(f"search space: {space.size} columns: {', '.join(space.columns)}")
        if space.size == 0:
            self.errors.append(
                "merge: found nothing to search, allowed: at least one range or choice"
            )

    def _look_at_strategy(self) -> None:
        from mmmo.strategies import build_strategy, refuse_unknown_importance

        try:
            build_strategy(self.config.search)
            refuse_unknown_importance(self.config.search, SearchSpace(self.config))
        except Problems as error:
            self.errors += error.problems

    def _look_at_items(self) -> None:
        """Say what a trial begins with, and whether the budget holds one."""
        sizes = {name: b.size("search") for name, b in self._benchmarks.items()}
        fidelity, start = Fidelity(self.config, sizes), self.config.search.items.start
        if start < 1:
            of = f"{fidelity.start} of {fidelity.items(1.0)} items"
            self.notes.append(f"a trial begins on {of}; its share of each benchmark is {start:g}")
        items = self.config.budget.items
        if items is None:
            return
        one = fidelity.items(1.0) - fidelity.start
        to_confirm = reserve([one], self.config.search.items.confirm, items)
        if items - to_confirm < fidelity.start:
            kept = f" and {to_confirm} to confirm the front" if to_confirm else ""
            self.errors.append(
                f"budget.items: found {items}, allowed: at least the {fidelity.start} items of one "
                f"trial{kept}"
            )

    def _look_at_store(self) -> None:
        """Read its URL; nothing is opened."""
        from mmmo.store import Store

        try:
            Store(self.config.store).close()
        except StoreError as error:
            self.errors.append(error.message)

    def _look_at_device(self) -> None:
        import torch

        name = self.config.pool.device
        try:
            device = torch.device(name)
            count = torch.get_device_module(device).device_count()
        except (RuntimeError, AttributeError):
            self.errors.append(f"pool.device: found {name!r}, allowed: cpu, cuda, cuda:1, mps, …")
            return
        if (device.index or 0) >= count:
            self.errors.append(
                f"pool.device: found {name!r}, allowed: what is there; torch sees {count} "
                f"{device.type} device(s)"
            )

    def _look_at_sources(self) -> None:
        from evaluators.inspection import estimate, inspect_sources

        sources = self._sources
        if sources is None:
            return  # which was said
        self._look_at_preparations(sources)
        for finding in inspect_sources(sources):
            kind = self.errors if finding.level == "error" else self.warnings
            kind.append(f"sources.{finding.where}: {finding.message}")
        self._look_at_blocks(sources.base.names)
        self._look_at_fit(sources.base)
        merge, workers = self.config.merge, self.config.pool.workers
        pool = (workers, self.config.pool.threads)
        needed = estimate(sources, pool, merge.dtype, merge.methods)
        self.notes.append(
            f"memory: about {_size(needed.memory_bytes)} for {workers} worker(s); "
            f"disk: {_size(needed.disk_bytes_per_export)} per exported model"
        )

    def _open_sources(self) -> Sources | None:
        """Base and experts, or None if one cannot be opened or its tokenizer not be read."""
        from evaluators.sources import SourceError, SourcesError, open_sources

        chosen, before = self.config.sources, len(self.errors)
        try:
            sources = open_sources(*chosen.refs(), tokenizer=chosen.tokenizer, say=tell)
        except SourcesError as error:
            self.errors += [f"sources.{where}: {what}" for where, what in error.problems.items()]
            return None
        for name, checkpoint in sources.all.items():
            try:
                _ = checkpoint.tokens
            except SourceError as error:
                self.errors.append(f"sources.{name}: {error}")
        return sources if len(self.errors) == before else None

    def _look_at_preparations(self, sources: Sources) -> None:
        """Say what was made for this campaign, and where it lies."""
        for name, checkpoint in sources.all.items():
            if (made := checkpoint.preparation) is None:
                continue
            size = _size(checkpoint.size_bytes)
            self.notes.append(f"{name}: {'; '.join(made.done)}; {size} in {checkpoint.folder}")
            self.warnings += [f"sources.{name}: {line}" for line in made.warnings]

    def _look_at_blocks(self, names: Iterable[str]) -> None:
        from evaluators.merging.blocks import Blocks

        try:
            Blocks(names, self.config.merge.layer_groups, self.config.merge.filters)
        except ValueError as error:
            self.errors.append(f"merge.{error}")

    def _look_at_fit(self, base: Checkpoint) -> None:
        architecture = next(iter(base.config.get("architectures") or [""]))
        for name in self._benchmarks:
            spec = self.config.benchmarks[name].spec()
            if problem := misfit(spec.kind, spec.options, architecture):
                self.errors.append(f"benchmarks.{name}: {problem}")

    def _check_constraints(self) -> None:
        goals = {o.name: o for o in self.objectives}
        for i, constraint in enumerate(self.config.constraints):
            objective = goals[constraint.objective]
            allowed = ">=" if objective.sign > 0 else "<="
            if constraint.sign != allowed:
                self.errors.append(
                    f"constraints.{i}: found {str(constraint)!r}, allowed: {objective.name} "
                    f"{allowed} number, since {objective.name} is {objective.goal}d"
                )


def _broken_rules(benchmark: Benchmark) -> Iterator[str]:
    """What a user's own class does that no benchmark may; classes of the table keep the rules."""
    goal, goals = benchmark.metric.goal, get_args(Goal)
    if goal not in goals:
        yield f"metric.goal: found {shown(goal)}, allowed: {', '.join(goals)}"
    for split in get_args(Split):
        size = benchmark.size(split)
        # The store writes an int as JSON, and no other integer.
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            yield f"size({split!r}): found {shown(size)}, allowed: an integer of 1 or more"
            return
        if not isinstance(found := benchmark.fingerprint(split), str):
            yield f"fingerprint({split!r}): found {shown(found)}, allowed: text"
            return


def workbench(config: CampaignConfig, facts: Facts | None = None) -> Workbench:
    """What the workers of this campaign load; with facts, nothing else.

    A worker that is replaced opens everything again, and files may have changed since the session
    began.
    """
    base, experts = config.sources.refs()
    return Workbench(
        base=base,
        experts=experts,
        benchmarks={name: b.spec() for name, b in config.benchmarks.items()},
        device=config.pool.device,
        merge_on_device=config.pool.merge_on == "device",
        threads=config.pool.threads,
        tokenizer=config.sources.tokenizer,
        digests=facts.sources if facts else {},
        fingerprints=facts.fingerprints if facts else {},
    )


def _size(n_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
