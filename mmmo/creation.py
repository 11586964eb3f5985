"""How a campaign comes into the store, after a preflight."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from mmmo.config import MAY_CHANGE, CampaignConfig
from mmmo.errors import UserError
from mmmo.history import History
from mmmo.preflight import Preflight
from mmmo.store import Store

_VERSIONED = ("mmmo", "torch", "transformers", "botorch", "gpytorch", "ax-platform", "numpy")
"""Packages whose versions can change a campaign's numbers."""


def create(store: Store, config: CampaignConfig) -> Preflight | None:
    """Record a new campaign, after a preflight, and return that; None if the campaign exists.

    Raises:
        Problems: the preflight found mistakes; nothing was recorded.
        UserError: a campaign of that name exists with another configuration.
    """
    if store.find(config.name) is not None:
        _refuse_if_changed(store, config)
        return None
    preflight = Preflight(config)
    facts = preflight.facts
    versions = {package: version(package) for package in _VERSIONED}
    store.create(config.name, config.text(), config.identity(), versions, facts.sources)
    with store.acquire(config.name) as lease:
        store.append(lease, None, "created", facts.document())
    return preflight


def refuse_taken_folder(store: Store, folder: Path) -> None:
    """Look, before a campaign is recorded, whether the folder of its logs can be one.

    Raises:
        UserError: a file has its name, or the store will.
    """
    is_store = folder.resolve() in [file.resolve() for file in store.files]
    if is_store or (folder.exists() and not folder.is_dir()):
        found = "the store's own file" if is_store else "a file"
        raise UserError(
            f"name: found {folder.name!r}, but {folder} is {found}, allowed: any other name"
        )


def _refuse_if_changed(store: Store, config: CampaignConfig) -> None:
    history = History(store, config.name)
    if history.identity == config.identity():
        return
    then, now = (c.model_dump(mode="json") for c in (history.config, config))
    changed = [key for key in now if then[key] != now[key] and key not in MAY_CHANGE]
    raise UserError(
        f"campaign {config.name!r} exists with another {' and '.join(changed)}",
        "choose another name, or put the file back as it was; budget and pool may change",
    )
