"""A merged model as a folder that `transformers` loads: weights, configuration, tokenizer.

Everything but the weights is the base's. Both `mmmo export` and `mmmo merge` write it here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmmo.errors import UserError

if TYPE_CHECKING:
    from evaluators.merging.engine import MergeReport
    from evaluators.recipe import MergeRecipe
    from evaluators.sources import Sources

MERGEKIT_FILE = "mergekit_config.yml"

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

_WRITTEN = ("config.json", "manifest.json", "trainer_state.json")
"""Written anew, or of no use to the merge."""


def shard_size_bytes(text: str) -> int:
    """Read the value of `--shard-size`.

    Raises:
        UserError: it is no number with a unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)\s*", text, re.IGNORECASE)
    size = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
    if not 1 <= size < math.inf:
        allowed = "a number with KB, MB, GB or TB, such as 500MB or 5GB"
        raise UserError(f"--shard-size: found {text!r}, allowed: {allowed}")
    return round(size)


def write_model(
    sources: Sources, recipe: MergeRecipe, folder: Path, shard_size_bytes: int
) -> MergeReport:
    """Merge into a folder, with no more than one tensor per thread in memory.

    Raises:
        SourceError: the sources do not fit together.
        RecipeError: the recipe does not fit the operator or the sources.
    """
    from evaluators.folders import copy_companions
    from evaluators.merging.engine import MergeEngine

    report = MergeEngine(sources).write(recipe, folder, shard_size_bytes)
    copy_companions(sources.base.folder, folder, without=_WRITTEN)
    config = _config(sources.base.config, recipe.dtype)
    write_text(folder / "config.json", json.dumps(config, indent=2))
    return report


def write_mergekit(folder: Path, text: str, notes: Sequence[str]) -> None:
    """Write the mergekit configuration, with notes as comments before it."""
    comments = "".join(f"# {note}\n" for note in notes)
    write_text(folder / MERGEKIT_FILE, comments + text)


def write_text(path: Path, text: str) -> None:
    """Write a text file that ends in a line end."""
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def _config(base: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Take the base's configuration, with the merge's dtype under today's name."""
    dropped = ("torch_dtype", "_name_or_path")
    return {k: v for k, v in base.items() if k not in dropped} | {"dtype": dtype}
