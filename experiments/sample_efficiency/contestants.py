"""The contestants by name, each with its batch sizes, all behind `acquisition.strategy.Strategy`.

A label is a name, or a name with options: `mm_mo:local_slots=true,fisher=high`. Options are those
of the strategy's constructor. What follows `@` says how items are spent:
`mm_mo@start=0.2,promote=gain,order=shared,confirm=10`; see `Fidelity`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch

from acquisition.allocation import Allocation
from acquisition.draft import Draft
from acquisition.strategy import STRATEGIES, Observations, Proposal, Strategy, open_strategy

INITIAL, BATCH = 10, 5

Order = Literal["own", "shared"]


@dataclass(frozen=True)
class Fidelity:
    """How items are spent.

    Attributes:
        allocation: the share that a point begins with, and who is promoted.
        order: every point answers items in an order of its `own`, or all in one that is `shared`.
        confirm: points at most that answer all items at the end.

    Raises:
        ValueError: an order that there is not.
    """

    allocation: Allocation = field(default_factory=Allocation)
    order: Order = "own"
    confirm: int = 30

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ValueError(f"order: found {self.order!r}, allowed: {', '.join(get_args(Order))}")


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
    fidelity: Fidelity = field(default_factory=Fidelity)


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
        ValueError: an option with a value that is not allowed.
    """
    asked, _, items = label.partition("@")
    name, options = parse(asked)
    fidelity = _fidelity(_pairs(items))
    trials = math.floor(budget / fidelity.allocation.start)
    if name in STRATEGIES:
        batch = options.pop("batch", 1 if name == "mm_mo" else BATCH)
        first = 1 if batch == 1 else options.get("initial", INITIAL)
        return Contestant(open_strategy(name, options), first, batch, fidelity)
    return replace(NAMES[name](options, dimension, trials), fidelity=fidelity)


def parse(label: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of a label; values are JSON, or else text."""
    name, _, text = label.partition(":")
    return name, _pairs(text)


def _pairs(text: str) -> dict[str, Any]:
    pairs = [item.partition("=")[::2] for item in text.split(",") if item]
    return {key: _value(value) for key, value in pairs}


def _fidelity(options: Mapping[str, Any]) -> Fidelity:
    own = {key: options[key] for key in ("order", "confirm") if key in options}
    others = {key: value for key, value in options.items() if key not in own}
    return Fidelity(Allocation(**others), **own)


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


def _parego_rf(options: Options, dimension: int, budget: int) -> Contestant:
    from experiments.sample_efficiency.forest import ForestParEGO

    return Contestant(ForestParEGO(**options))


def _sip_bmm(options: Options, dimension: int, budget: int) -> Contestant:
    from experiments.sample_efficiency.sip_bmm import SIPBMM

    return Contestant(SIPBMM(**options))


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
    "parego_rf": _parego_rf,
    "sip_bmm": _sip_bmm,
    "ax_default": _ax,
    "mm_mo_released": _released,
    "mm_mo_reference": _reference,
}
ALL = (*STRATEGIES, *NAMES)
