"""One merge without a campaign, as a mergekit configuration asks for it: `mmmo merge`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import cast, get_args

import torch

from evaluators.durable import remove_leftovers, whole_folder
from evaluators.folders import locate, open_folder, some
from evaluators.inspection import compare, compare_kinds
from evaluators.merging.engine import MergeReport, RecipeError
from evaluators.merging.mergekit import (
    MergekitError,
    Outline,
    Reading,
    differences,
    from_mergekit,
)
from evaluators.merging.stack import stacked_sources
from evaluators.merging.tables import Tables
from evaluators.recipe import WHOLE, DType, MergeRecipe, ModelRef
from evaluators.sources import Checkpoint, SourceError, Sources, SourcesError, open_sources
from mmmo.errors import Problems, UserError, advice, unwritable
from mmmo.model_folder import write_mergekit, write_model
from mmmo.terminal import tell
from mmmo.writing import WritingDisplay
from mmmo.yamlfile import parse_yaml, read_text


def merge(
    config: Path, out: Path, dtype: str | None, shard_size_bytes: int, seed: int
) -> Iterator[str]:
    """Write the model that a mergekit configuration asks for; paths in it are relative to here.

    Args:
        config: the YAML file.
        out: the folder to be; it is there whole, or not at all.
        dtype: of the merged weights, in place of the configuration's.
        shard_size_bytes: of a file of weights.
        seed: of the random masks.

    Yields:
        Lines to print.

    Raises:
        UserError: a mistake in the file, sources that cannot be opened or merged, a folder that is
            there already, weights that are not finite.
    """
    if dtype is not None and dtype not in get_args(DType):
        raise UserError(f"--dtype: found {dtype!r}, allowed: {', '.join(get_args(DType))}")
    try:
        if out.exists() or out.is_symlink():
            raise UserError(f"{out}: exists already; remove it, or name another folder")
        yield from _Merge(config, out, cast("DType | None", dtype), seed).run(shard_size_bytes)
    except OSError as error:
        raise unwritable(error.filename or out, error) from None


class _Merge:
    def __init__(self, config: Path, out: Path, dtype: DType | None, seed: int) -> None:
        self._config, self._out, self._dtype, self._seed = config, out, dtype, seed

    def run(self, shard_size_bytes: int) -> Iterator[str]:
        try:
            with _readable():
                notes = [*self._reading.notes, *differences(self._recipe), *self._warnings()]
                self._refuse_non_finite_sources()
            remove_leftovers(self._out.parent, self._out.name)  # the folder may be anyone's
            with whole_folder(self._out) as partial, WritingDisplay(partial):
                report = write_model(self._sources, self._recipe, partial, shard_size_bytes)
                self._refuse_non_finite(report)
                write_mergekit(partial, self._text, [self._origin(report), *notes])
        except (SourceError, RecipeError) as error:
            raise UserError(f"{self._config}: {error}") from None
        yield f"{self._out}: {self._recipe.method}, {report.parameters:,} parameters"
        yield f"digest {report.digest}"
        yield f"delta_l1 {report.delta_l1:.6g} from {self._recipe.base}"
        yield f"seconds {report.seconds:.3g}"
        yield from (f"note: {note}" for note in notes)

    @cached_property
    def _text(self) -> str:
        """The file, read once: it may be a pipe, and may change while the merge runs."""
        if not self._config.exists():
            raise UserError(f"{self._config}: no such file")
        return read_text(self._config)

    @cached_property
    def _reading(self) -> Reading:
        content = parse_yaml(self._text, self._config)
        try:
            return from_mergekit(content, self._look, self._seed)
        except MergekitError as error:
            raise Problems([f"{self._config}: {line}" for line in error.problems]) from None

    @cached_property
    def _recipe(self) -> MergeRecipe:
        recipe = self._reading.recipe
        return recipe.model_copy(update={"dtype": self._dtype}) if self._dtype else recipe

    @property
    def _owners(self) -> Mapping[str, ModelRef]:
        return {WHOLE: self._recipe.base} | self._recipe.experts

    @cached_property
    def _opened(self) -> Sources:
        """Base and experts; where any is a stack, its donor and all that it is made of."""
        recipe, stacks = self._recipe, self._reading.stacks
        if not stacks:
            return self._open(recipe.base, recipe.experts)
        models = [ref for owner, ref in self._owners.items() if owner not in stacks]
        models += [ref for layers in stacks.values() for ref, _ in layers]
        return self._open(self._reading.donor, {str(ref): ref for ref in models})

    @cached_property
    def _sources(self) -> Sources:
        """Base and experts of the recipe."""
        stacks = self._reading.stacks
        return stacked_sources(self._opened, self._owners, stacks) if stacks else self._opened

    def _open(self, base: ModelRef, experts: Mapping[str, ModelRef]) -> Sources:
        try:
            return open_sources(base, experts, tokenizer=self._reading.tokenizer, say=tell)
        except SourcesError as error:
            lines = [f"{self._config}: {line}" for line in error.problems.values()]
            raise Problems(list(dict.fromkeys(lines))) from None

    def _look(self, ref: ModelRef) -> Outline:
        """Look at a model's headers; an adapter changes neither names nor types."""
        try:
            folder, _ = locate(ref)
            if folder is None:
                raise SourceError(f"{ref}: is an adapter (LoRA); write model+{ref}")
            checkpoint = open_folder(ref, folder)
        except SourceError as error:
            raise MergekitError([str(error)]) from None
        return Outline(checkpoint.names, _stored_dtype(checkpoint))

    def _warnings(self) -> Iterator[str]:
        """What is lost or rounded, or looks strange, of these very sources.

        Raises:
            Problems: sources that do not fit together, one line each.
        """
        opened, sources = self._opened, self._sources
        parts = opened.experts if self._reading.stacks else {}
        found = [f for n, part in parts.items() for f in compare_kinds(n, opened.base, part)]
        found += [f for n, e in sources.experts.items() for f in compare(n, sources.base, e)]
        if errors := [f"{f.where}: {f.message}" for f in found if f.level == "error"]:
            raise Problems([f"{self._config}: {line}" for line in errors])
        for checkpoint in opened.all.values():
            if (made := checkpoint.preparation) is not None:
                yield from (f"{checkpoint.ref}: {line}" for line in made.warnings)
        yield from (f"{f.where}: {f.message}" for f in found)
        yield from self._rounded()

    def _rounded(self) -> Iterator[str]:
        """Say which tensors of a base of several types lose bits, for nobody chose that."""
        base, dtype = self._sources.base, getattr(torch, self._recipe.dtype)
        stored = {n: t.dtype for n, t in base.tensors.items() if t.is_floating_point()}
        wider = [n for n, found in stored.items() if torch.promote_types(found, dtype) != dtype]
        if wider and len(set(stored.values())) > 1:
            yield (
                f"{some(wider)} of {base.ref}: stored as {_word(stored[wider[0]])}, rounded to "
                f"{self._recipe.dtype}; see --dtype"
            )

    def _refuse_non_finite_sources(self) -> None:
        """Trimming and election of signs would drop a NaN without a word."""
        sources, tables = self._sources, Tables(self._sources)
        for expert in sources.experts:
            for name, tensor in sources.base.tensors.items():
                if tensor.is_floating_point() and not isfinite(tables.mass(expert, name)):
                    raise UserError(
                        f"{self._config}: {expert} or the base has weights that are not finite in "
                        f"{name}"
                    )

    def _refuse_non_finite(self, report: MergeReport) -> None:
        if report.non_finite:
            raise UserError(
                f"{self._config}: {report.non_finite} merged values are not finite; nothing was "
                "written",
                "look for weights that add up to 0, or that are very large",
            )

    def _origin(self, report: MergeReport) -> str:
        dtype, seed = self._recipe.dtype, self._recipe.seed
        return f"Merged by mmmo {version('mmmo')} (--dtype {dtype} --seed {seed}): {report.digest}"


def _stored_dtype(checkpoint: Checkpoint) -> DType:
    """Find the type in which most of a model's tensors are stored."""
    types = [_word(t.dtype) for t in checkpoint.tensors.values()]
    found = [name for name in types if name in get_args(DType)]
    return cast("DType", max(set(found), key=found.count)) if found else "float32"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _readable() -> Iterator[None]:
    """Name the file that the system refused, which may be a source or one of the cache."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{error.strerror or error}", advice(error)) from None
