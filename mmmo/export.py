"""Chosen trials → model folders that can be published: `mmmo export`.

A folder is made whole or not at all, holds the very weights that were scored (their digest is taken
again from the disk), and is left alone when it is already there and nobody changed it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.durable import remove_leftovers, whole_folder
from mmmo.card import model_card
from mmmo.errors import Fault, Problems, UserError, unwritable
from mmmo.exported import MANIFEST, RECIPE, file_digests, read_manifest, recipe_text, verify_export
from mmmo.front_files import write_front
from mmmo.held_out import (
    HeldOut,
    held_out_scores,
    measurement_document,
    references,
    score_held_out,
)
from mmmo.history import History
from mmmo.model_folder import write_mergekit, write_model, write_text
from mmmo.pareto import ParetoSet
from mmmo.records import Trial

if TYPE_CHECKING:
    from evaluators.recipe import MergeRecipe
    from evaluators.sources import Sources

_VERSIONED = ("mmmo", "torch", "transformers", "safetensors")


def choose(
    pareto: ParetoSet, history: History, trial: Sequence[int], knee: bool, prefer: str | None
) -> list[Trial]:
    """Pick the trials to export: those asked for, the knee, the best by preference, or the front.

    Raises:
        UserError: more than one way to choose; a trial without scores; no front.
    """
    if bool(trial) + knee + (prefer is not None) > 1:
        raise UserError("give at most one of --trial, --knee and --prefer")
    if trial:
        return [_completed(history, number) for number in dict.fromkeys(trial)]
    if not pareto.front:
        if history.completed:
            raise UserError("no completed trial meets the constraints", "--trial N exports any")
        raise UserError(f"campaign {history.name!r} has no completed trial yet")
    if knee:
        return [pareto.knee]
    return [pareto.choose(_preference(prefer))] if prefer is not None else list(pareto.front)


def export_trials(
    history: History, trials: Sequence[Trial], folder: Path, shard_size_bytes: int = 5 * 10**9
) -> Iterator[str]:
    """Write one folder per trial, and `pareto.csv` and `pareto.json` beside them.

    The size of the files of weights does not change their digest; a folder that is there stays.

    Yields:
        Lines to print.

    Raises:
        UserError: a source changed or is gone, an exported folder was changed, the disk is full.
        AlreadyRunning: the campaign runs, and there are models to score on held-out items.
        Fault: the weights that were written are not those that were scored.
    """
    try:
        yield from _Export(history, trials, folder, shard_size_bytes).run()
    except OSError as error:
        raise unwritable(error.filename or folder, error) from None


class _Export:
    def __init__(
        self, history: History, trials: Sequence[Trial], folder: Path, shard_size_bytes: int
    ) -> None:
        self._history, self._trials, self._folder = history, trials, folder
        self._shard_size_bytes = shard_size_bytes
        self._references = references(history)

    def run(self) -> Iterator[str]:
        remove_leftovers(self._folder)
        for trial in self._trials:
            self._refuse_changed(trial)
        if any(not self._target(t).exists() for t in self._trials):
            _ = self._sources  # that one of them changed is better known before the scoring
        self._folder.mkdir(parents=True, exist_ok=True)  # and so is that it cannot be written to
        digests = {t.key: t.digest for t in self._history.completed}
        yield from score_held_out(self._history, self._models(), digests, self._folder / ".logs")
        self._held_out = held_out_scores(self._history)
        for trial in self._trials:
            yield self._export(trial)
        write_front(self._history, self._held_out, self._folder)
        yield f"{self._folder / 'pareto.csv'}: the front, {len(self._history.pareto.front)} models"

    @cached_property
    def _sources(self) -> Sources:
        """Base and experts, the same as when the campaign began."""
        from evaluators.sources import SourcesError, open_sources

        chosen = self._history.config.sources
        try:
            sources = open_sources(*chosen.refs(), tokenizer=chosen.tokenizer)
        except SourcesError as error:
            raise Problems([f"sources.{w}: {m}" for w, m in error.problems.items()]) from None
        now = {name: c.digest for name, c in sources.all.items()}
        was = self._history.facts.sources
        if changed := [name for name, digest in now.items() if was.get(name) != digest]:
            line = "sources.{}: the weights changed since the campaign began"
            changes = [line.format(name) for name in changed]
            raise Problems(changes, "put them back; what is exported must be what was scored")
        return sources

    def _models(self) -> dict[str, Any]:
        chosen = {f"trial {t.number}": t.recipe for t in self._trials}
        return self._references | chosen

    def _target(self, trial: Trial) -> Path:
        return self._folder / f"trial-{trial.number:04d}"

    def _refuse_changed(self, trial: Trial) -> None:
        target = self._target(trial)
        if not target.exists():
            return
        if problems := verify_export(target):
            raise Problems(
                [f"{target}: {problem}" for problem in problems],
                "remove that folder, or export elsewhere with --out",
            )
        manifest = read_manifest(target)
        if (manifest["key"], manifest["digest"]) != (trial.key, trial.digest):
            raise UserError(
                f"{target}: holds another model, trial {manifest['trial']} of campaign "
                f"{manifest['campaign']!r}",
                "remove that folder, or export elsewhere with --out",
            )

    def _export(self, trial: Trial) -> str:
        target, facts = self._target(trial), self._facts(trial)
        manifest = read_manifest(target) if target.exists() else {}
        if all(manifest.get(name) == value for name, value in facts.items()):
            return f"{target}: unchanged; {self._summary(trial)}"
        # What is there was verified, and all of it is written anew.
        with whole_folder(target, replace=bool(manifest)) as partial:
            self._fill(partial, trial)
            versions = {package: version(package) for package in _VERSIONED}
            content = facts | {"versions": versions, "files": file_digests(partial)}
            write_text(partial / MANIFEST, json.dumps(content, indent=2, allow_nan=False))
        return f"{target}: {self._summary(trial)}"

    def _fill(self, folder: Path, trial: Trial) -> None:
        from evaluators.merging.blocks import Blocks
        from evaluators.merging.mergekit import differences, to_mergekit
        from evaluators.merging.stored import SourceError, stored_digest

        recipe, tokenizer = trial.recipe, self._history.config.sources.tokenizer
        try:
            write_model(self._sources, recipe, folder, self._shard_size_bytes)
        except SourceError as error:
            raise UserError(str(error)) from None
        if stored_digest(folder) != trial.digest:
            raise Fault(
                f"trial {trial.number}: the weights to export are not those that were scored",
                f"no source changed; packages: {self._changed_packages()}",
            )
        write_text(folder / RECIPE, recipe_text(recipe))
        layers = Blocks(self._sources.base.names, 1, ()).layers
        content = to_mergekit(_with_whole_references(recipe), layers, tokenizer)
        write_mergekit(folder, _yaml(content), differences(recipe))
        write_text(folder / "README.md", self._card(trial))

    def _card(self, trial: Trial) -> str:
        folders = {name: c.about or c.folder for name, c in self._sources.all.items()}
        architectures = self._sources.base.config.get("architectures") or ["AutoModel"]
        return model_card(self._history, trial, folders, architectures[0], self._held_out_of(trial))

    def _held_out_of(self, trial: Trial) -> dict[str, HeldOut]:
        models = {"this model": trial.recipe} | self._references
        return {name: self._held_out[recipe.key] for name, recipe in models.items()}

    def _facts(self, trial: Trial) -> dict[str, Any]:
        """Give what the manifest says that does not depend on when and with what it was written."""
        refs = {"base": trial.recipe.base} | dict(trial.recipe.experts)
        return {
            "campaign": self._history.name,
            "trial": trial.number,
            "key": trial.key,
            "digest": trial.digest,
            "sources": {
                name: {"model": str(ref), "digest": self._history.facts.sources[name]}
                for name, ref in refs.items()
            },
            "search": {name: measurement_document(m) for name, m in trial.scores.items()},
            "measures": dict(trial.measures),
            "held_out": {n: h.document() for n, h in self._held_out_of(trial).items()},
        }

    def _summary(self, trial: Trial) -> str:
        found = self._held_out[trial.key]
        if found.failure is not None:
            return f"held-out scoring failed ({found.failure['kind']}): {found.failure['message']}"
        return "held out: " + ", ".join(
            f"{name} {m.value:.4g} ± {m.se:.2g}" for name, m in found.scores.items()
        )

    def _changed_packages(self) -> str:
        was = self._history.store.get(self._history.name).versions
        changed = [f"{p} {v} → {version(p)}" for p, v in was.items() if version(p) != v]
        return ", ".join(changed) or "none changed either"


def _completed(history: History, number: int) -> Trial:
    trial = history.trial(number)
    if trial.state != "completed":
        raise UserError(f"trial {number} is {trial.state}; only completed trials can be exported")
    return trial


def _preference(text: str) -> dict[str, float]:
    """Read `maths=0.7,code=0.3`."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(number)
        except ValueError:
            equals = ""
        if not equals or not name:
            allowed = "objective=weight, with commas between: maths=0.7,code=0.3"
            raise UserError(f"--prefer: found {part.strip()!r}, allowed: {allowed}")
        if name in weights:
            raise UserError(f"--prefer: {name} is there twice")
        weights[name] = weight
    return weights


def _with_whole_references(recipe: MergeRecipe) -> MergeRecipe:
    """Write an expert that is an adapter alone as mergekit does: base+adapter."""
    from evaluators.folders import locate

    adapters = {
        name: recipe.base.model_copy(update={"adapter": r.path, "adapter_revision": r.revision})
        for name, r in recipe.experts.items()
        if locate(r)[0] is None
    }
    return recipe.model_copy(update={"experts": {**recipe.experts, **adapters}})


def _yaml(content: Any) -> str:
    import yaml

    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
