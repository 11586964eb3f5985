"""The contestants by name, each with its batch sizes, all behind `acquisition.strategy.Strategy`.

A label is a name, or a name with options: `mm_mo:local_slots=true,fisher=high`. Options are those
of the strategy's constructor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acquisition.draft import Draft
from acquisition.strategy import STRATEGIES, Observations, Proposal, Strategy, open_strategy

INITIAL, BATCH = 10, 5


@dataclass(frozen=True)
class Contestant:
    """A strategy and how it is asked.

    Attributes:
        first: trials of the first proposal.
        batch: trials of every other one.
    """

    strategy: Strategy
    first: int = INITIAL
    batch: int = BATCH


class Random:
    """Independent uniform points."""

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """Draw q points."""
        draft = Draft(observations)
        rng = np.random.default_rng((seed, observations.count))
        while len(draft) < q:
            x = torch.from_numpy(rng.random(observations.X.shape[1]))
            draft.offer(x, {"origin": "random"})
        return draft.proposal()


def open_contestant(label: str, dimension: int, budget: int) -> Contestant:
    """Build the contestant of a label for a problem of so many parameters and evaluations.

    Raises:
        KeyError: no contestant of that name.
        TypeError: an option that it does not have.
    """
    name, options = parse(label)
    if name in STRATEGIES:
        return Contestant(open_strategy(name, options))
    return NAMES[name](options, dimension, budget)


def parse(label: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of a label; values are JSON, or else text."""
    name, _, text = label.partition(":")
    pairs = [item.partition("=")[::2] for item in text.split(",") if item]
    return name, {key: _value(value) for key, value in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


Options = Mapping[str, Any]


def _random(options: Options, dimension: int, budget: int) -> Contestant:
    return Contestant(Random(**options))


def _nsga2(options: Options, dimension: int, budget: int) -> Contestant:
    from experiments.sample_efficiency.evolution import NSGA2

    strategy = NSGA2(**options)
    return Contestant(strategy, strategy.batch, strategy.batch)


def _cmaes(options: Options, dimension: int, budget: int) -> Contestant:
    from experiments.sample_efficiency.evolution import CMAES

    strategy = CMAES(**{"batch": CMAES.population(dimension)} | dict(options))
    return Contestant(strategy, strategy.batch, strategy.batch)


def _map(options: Options, dimension: int, budget: int) -> Contestant:
    from experiments.sample_efficiency.model_based import MAP

    return Contestant(MAP(**{"design": 2 * budget // 3} | dict(options)))


def _parego(options: Options, dimension: int, budget: int) -> Contestant:
    from experiments.sample_efficiency.model_based import ParEGO

    return Contestant(ParEGO(**options))


def _ax(options: Options, dimension: int, budget: int) -> Contestant:
    from experiments.sample_efficiency.model_based import AxDefault

    return Contestant(AxDefault(**options))


def _released(options: Options, dimension: int, budget: int) -> Contestant:
    from experiments.sample_efficiency.released import Released

    return Contestant(Released(**options))


def _reference(options: Options, dimension: int, budget: int) -> Contestant:
    return Contestant(open_strategy("mm_mo", {"preset": "reference", **options}))


NAMES: Mapping[str, Callable[[Options, int, int], Contestant]] = {
    "random": _random,
    "nsga2": _nsga2,
    "cmaes": _cmaes,
    "map": _map,
    "qlognparego": _parego,
    "ax_default": _ax,
    "mm_mo_released": _released,
    "mm_mo_reference": _reference,
}
ALL = (*STRATEGIES, *NAMES)
