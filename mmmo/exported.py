"""An exported model folder: its manifest, its recipe, and whether it is still what was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from evaluators.recipe import MergeRecipe
from mmmo.errors import UserError

MANIFEST = "manifest.json"
RECIPE = "recipe.yaml"


def verify_export(folder: Path) -> list[str]:
    """List what is wrong with an exported folder, a line each: nothing if it is as it was written.

    The manifest lists every file with its hash; the recipe must have the key, and the stored
    weights the digest, that the manifest names. Hidden files are nobody's business.
    """
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return [error.message]
    written, now = manifest["files"], file_digests(folder)
    lost = [f"{name} is missing" for name in written if name not in now]
    differ = [
        f"{name} differs from what was exported"
        for name, digest in written.items()
        if now.get(name, digest) != digest
    ]
    extra = [f"{name} is not part of the export" for name in now if name not in written]
    return [*lost, *differ, *extra] or _contradictions(folder, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an exported folder.

    Raises:
        UserError: there is none, or it is no manifest.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError):
        raise UserError(f"{MANIFEST} cannot be read") from None
    needed = {"campaign": str, "trial": int, "key": str, "digest": str, "files": dict}
    whole = isinstance(content, dict) and all(
        isinstance(content.get(name), kind) for name, kind in needed.items()
    )
    if not whole:
        raise UserError(f"{MANIFEST} is not what mmmo writes")
    return dict(content)


def file_digests(folder: Path) -> dict[str, str]:
    """Relative path → SHA-256 of every file but the manifest and what is hidden."""
    paths = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file()]
    shown = [p for p in paths if not any(part.startswith(".") for part in p.parts)]
    digests = {}
    for path in shown:
        if path != Path(MANIFEST):
            with (folder / path).open("rb") as file:
                digests[path.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def recipe_text(recipe: MergeRecipe) -> str:
    """Write the recipe and its key as YAML; `read_recipe` reads it back exactly."""
    content = {"key": recipe.key, "recipe": recipe.model_dump(mode="json")}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def read_recipe(path: Path) -> MergeRecipe:
    """Read a `recipe.yaml`.

    Raises:
        UserError: it cannot be read, or its key is not the recipe's.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe = MergeRecipe.model_validate(content["recipe"])
        key = content["key"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError, ValidationError):
        raise UserError(f"{path.name} is no recipe that mmmo wrote") from None
    if key != recipe.key:
        raise UserError(f"{path.name} says another recipe than its key {key}")
    return recipe


def _contradictions(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Where manifest, recipe and weights do not belong together."""
    from evaluators.merging.stored import SourceError, stored_digest

    try:
        if read_recipe(folder / RECIPE).key != manifest["key"]:
            return [f"{RECIPE} is not the recipe that {MANIFEST} names"]
        if stored_digest(folder) != manifest["digest"]:
            return [f"the weights are not those that {MANIFEST} names"]
    except UserError as error:
        return [error.message]
    except SourceError as error:
        return [str(error)]
    return []
