"""The strategy that a campaign file asks for: looked up, checked and built.

A strategy's options are the keyword arguments of its class, so that a user's own class is checked
like ours.
"""

from __future__ import annotations

import inspect
from pkgutil import resolve_name

from acquisition.allocation import Allocation
from acquisition.strategy import STRATEGIES, Strategy, open_strategy
from mmmo.complaints import unknown
from mmmo.config import SearchConfig
from mmmo.delta_l1 import is_known
from mmmo.errors import Problems
from mmmo.space import SearchSpace


def build_strategy(search: SearchConfig) -> Strategy:
    """Build the strategy; `search.initial` goes along if it has an initial design.

    Raises:
        Problems: no such strategy, no such option, or a value that the strategy refuses.
    """
    known = _options_of(search.strategy)
    own = [name for name in known if name != "initial"]
    wrong = [name for name in search.options if name not in own]
    if wrong:
        raise Problems([f"search.options.{name}: {unknown(name, own)}" for name in wrong])
    design = {"initial": search.initial} if "initial" in known and search.initial else {}
    try:
        return open_strategy(search.strategy, {**design, **search.options})
    except (TypeError, ValueError) as error:
        raise Problems([f"search.options: {error}"]) from None


def wants_importance(search: SearchConfig) -> bool:
    """Whether the strategy asks how much each coordinate moves the merge."""
    return bool(search.options.get("importance"))


def wants_item_covariance(strategy: Strategy) -> bool:
    """Whether the strategy asks what errors trials share; most do not even say that they do not."""
    return bool(getattr(strategy, "uses_item_covariance", False))


def refuse_unknown_importance(search: SearchConfig, space: SearchSpace) -> None:
    """Look whether the strategy wants to know what nobody knows.

    Raises:
        Problems: it asks how much each coordinate moves the merge, and merges cannot be sampled.
    """
    if wants_importance(search) and not is_known(space):
        methods = ", ".join(space.methods)
        raise Problems(
            [f"search.options.importance: found true, allowed: false; {methods} cannot be sampled"]
        )


def build_allocation(search: SearchConfig) -> Allocation:
    """What divides orders among new points and promotions."""
    return Allocation(start=search.items.start, promote=search.items.promote)


def _options_of(strategy: str) -> list[str]:
    """Names of the options of a strategy of the table, or of a dotted path `module:Class`."""
    path = STRATEGIES.get(strategy, strategy)
    if ":" not in path:
        raise Problems([f"search.strategy: {unknown(strategy, STRATEGIES)}, or module:Class"])
    try:
        return list(inspect.signature(resolve_name(path)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise Problems([f"search.strategy: found {strategy!r}, no class: {error}"]) from None
