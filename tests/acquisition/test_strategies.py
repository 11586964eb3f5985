"""Every strategy of the table, and MM-MO's variants, against the contract; the table itself."""

from __future__ import annotations

from typing import Any

import pytest
from contracts.strategy_contract import StrategyContract

from acquisition.strategy import STRATEGIES, Strategy, open_strategy

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in STRATEGIES},
    "reference": ("mm_mo", {"preset": "reference"}),
    "every option": (
        "mm_mo",
        {
            "fisher": "logdet",
            "local_slots": True,
            "item_covariance": True,
            "surrogate": "mixed",
            "link": "logit",
        },
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
class TestStrategies(StrategyContract):
    @pytest.fixture
    def strategy(self, variant: str) -> Strategy:
        name, options = VARIANTS[variant]
        return open_strategy(name, options)


def test_a_dotted_path_opens_a_class_of_ones_own() -> None:
    opened = open_strategy("acquisition.baselines:Sobol", {})
    assert type(opened) is type(open_strategy("sobol", {}))


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="soboll"):
        open_strategy("soboll", {})


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="elites"):
        open_strategy("mm_mo", {"elites": 3})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"preset": "fast"}, "preset: found 'fast', allowed: default, reference"),
        ({"fisher": "asc"}, "fisher: found 'asc', allowed: off, low, high, logdet"),
        ({"initial": -1}, "initial: found -1"),
        ({"local_slots": "yes"}, "local_slots: found 'yes', allowed: True, False"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        open_strategy("mm_mo", options)
