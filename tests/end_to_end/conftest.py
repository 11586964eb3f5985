"""What end-to-end tests share: the digits models, and terminals to run campaigns on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from terminals import Terminal

from experiments.digits import zoo

OpenTerminal = Callable[..., Terminal]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The digits campaign over freshly built models, all paths absolute."""
    folder = tmp_path_factory.mktemp("digits")
    zoo.build(folder)
    campaign: dict[str, Any] = yaml.safe_load((zoo.HERE / "campaign.yaml").read_text())
    sources = campaign["sources"]
    sources["base"] = str(folder / sources["base"])
    sources["experts"] = {name: str(folder / p) for name, p in sources["experts"].items()}
    for benchmark in campaign["benchmarks"].values():
        benchmark["data"] = str(folder / benchmark["data"])
    return campaign


@pytest.fixture(scope="session")
def terminal(digits: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> OpenTerminal:
    """Opens terminals with the digits campaign; keyword arguments change its sections."""

    def open_terminal(settings: dict[str, str] | None = None, **changes: Any) -> Terminal:
        campaign = copy.deepcopy(digits)
        for section, value in changes.items():
            whole = section in campaign and isinstance(value, dict)
            campaign[section] = {**campaign[section], **value} if whole else value
        opened = Terminal(tmp_path_factory.mktemp("terminal"), settings or {})
        opened.write(campaign)
        return opened

    return open_terminal


@pytest.fixture(scope="session")
def finished(terminal: OpenTerminal) -> Terminal:
    """The digits campaign, run to its end without a break by one worker; tests only read it."""
    opened = terminal()
    opened.run("launch", "campaign.yaml")
    return opened
