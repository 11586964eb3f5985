"""What a session makes before its loop: all that merges need, and the proposer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmmo.config import CampaignConfig
from mmmo.delta_l1 import known_delta_l1
from mmmo.space import SearchSpace
from mmmo.strategies import wants_importance
from mmmo.terminal import tell

if TYPE_CHECKING:
    from acquisition.allocation import Allocation
    from acquisition.strategy import KnownObjective
    from evaluators.merging.tables import Tables
    from evaluators.sources import Sources
    from mmmo.optimizer import Optimizer
    from mmmo.preflight import Facts


@dataclass(frozen=True)
class Merges:
    """The sources, and what is counted of them once for all merges."""

    sources: Sources
    tables: Tables


def prepare_merges(config: CampaignConfig, space: SearchSpace) -> Merges:
    """Make once what every worker needs for its merges; workers find it in the cache."""
    from evaluators.merging.engine import MergeEngine
    from evaluators.merging.tables import Tables
    from evaluators.sources import open_sources

    sources = open_sources(*config.sources.refs(), tokenizer=config.sources.tokenizer)
    tables = Tables(sources, kept=True, say=tell)
    engine = MergeEngine(sources, tables)
    for method in space.methods:
        engine.prepare(space.recipe(method, lambda *_: None), tell)
    return Merges(sources, tables)


def open_optimizer(
    config: CampaignConfig,
    space: SearchSpace,
    facts: Facts,
    merges: Merges,
    allocation: Allocation | None,
) -> Optimizer:
    """Import Ax, which takes seconds, and tell the proposer what is known of every merge."""
    logging.disable(logging.INFO)  # Ax greets on import
    from mmmo.optimizer import Optimizer

    logging.disable(logging.NOTSET)
    objectives = facts.objectives
    asked = wants_importance(config.search) or any(o.measure == "delta_l1" for o in objectives)
    known = _delta_l1(config, space, merges) if asked else None
    sizes = {name: n["search"] for name, n in facts.items.items()}
    return Optimizer(config, space, objectives, known, allocation, sizes)


def _delta_l1(config: CampaignConfig, space: SearchSpace, merges: Merges) -> KnownObjective | None:
    from evaluators.merging.probe import DeltaProbe

    chosen = config.merge
    probe = DeltaProbe(
        merges.sources, chosen.layer_groups, chosen.filters, seed=config.seed, tables=merges.tables
    )
    return known_delta_l1(space, probe)
