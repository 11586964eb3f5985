"""The checks that sources can be merged, and what merging them needs.

Opening is `evaluators.sources`; here the weights are read.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from evaluators.folders import SENTENCEPIECE_FILES, Checkpoint, some
from evaluators.merging.methods import METHODS
from evaluators.recipe import DType
from evaluators.sources import Sources

FAR_NORM = 1.0
"""A fine-tune moves by less than the length of its base: ‖θ_k - θ_0‖ < ‖θ_0‖."""

FAR_COSINE = 0.5
"""A fine-tune points where its base points; weights of unrelated models have cosines near 0."""


@dataclass(frozen=True)
class Finding:
    """One result of the preflight: `where` is "base" or an expert's name."""

    level: Literal["error", "warning"]
    where: str
    message: str


@dataclass(frozen=True)
class Estimate:
    """What a campaign needs: bytes per exported model, bytes of memory of all workers together."""

    disk_bytes_per_export: int
    memory_bytes: int


def inspect_sources(sources: Sources) -> list[Finding]:
    """Check that the sources can be merged and that merging them makes sense.

    Errors: another architecture, other tensor names, shapes, vocabulary or tied head; weights that
    are not finite; an expert equal to the base. Warnings: other dtypes, other integers, identical
    experts, and an expert that looks like no fine-tune of the base (`FAR_NORM`, `FAR_COSINE`).
    """
    findings = list(_non_finite("base", sources.base))
    for name, expert in sources.experts.items():
        structure = list(compare(name, sources.base, expert))
        broken = list(_non_finite(name, expert))
        findings += structure + broken
        if not broken:
            findings += _distance(name, sources)
    for (a, first), (b, second) in combinations(sources.experts.items(), 2):
        if _identical(first, second):
            findings.append(Finding("warning", b, f"has the same weights as expert {a}"))
    return findings


def estimate(
    sources: Sources, pool: tuple[int, int], dtype: DType, methods: Iterable[str] = ()
) -> Estimate:
    """Estimate disk and memory. The maps of the sources are shared; models and scratch are not.

    Args:
        sources: what is merged.
        pool: number of workers, and of threads of each.
        dtype: of the merged models.
        methods: operators that merge.
    """
    width = getattr(torch, dtype).itemsize
    tensors = list(sources.base.tensors.values())
    model = sum(t.numel() * width if t.is_floating_point() else t.nbytes for t in tensors)
    largest = max((t.numel() for t in tensors), default=0)
    # Per element of the largest tensor: a byte of marks; or, where an operator takes it whole, all
    # of its versions and a few results in float32.
    whole = any(METHODS[method].whole for method in methods)
    scratch = largest * (4 * (len(sources.experts) + 5) if whole else 1)
    maps = sources.base.size_bytes + sum(e.size_bytes for e in sources.experts.values())
    workers, threads = pool  # every thread has a tensor in hand
    return Estimate(model, maps + workers * (model + threads * scratch))


def compare(where: str, base: Checkpoint, expert: Checkpoint) -> Iterator[Finding]:
    """Compare the structure of an expert with the base's; of the weights, only integers are read.

    Args:
        where: the expert's name.
        base: that it is merged with.
        expert: to compare.
    """

    def error(message: str) -> Finding:
        return Finding("error", where, message)

    yield from compare_kinds(where, base, expert)
    ours, theirs = set(base.names), set(expert.names)
    if missing := sorted(ours - theirs):
        yield error(f"lacks {some(missing)} of the base")
    if extra := sorted(theirs - ours):
        yield error(f"has {some(extra)} that the base lacks")
    common = sorted(ours & theirs)
    if shapes := [n for n in common if expert.shape(n) != base.shape(n)]:
        n = shapes[0]
        yield error(
            f"other shapes in {some(shapes)}: found {tuple(expert.shape(n))}, the base has "
            f"{tuple(base.shape(n))}"
        )
    if dtypes := [n for n in common if expert.dtype(n) != base.dtype(n)]:
        n = dtypes[0]
        message = f"found {expert.dtype(n)}, the base has {base.dtype(n)}"
        yield Finding("warning", where, f"other dtypes in {some(dtypes)}: {message}")
    if integers := [n for n in common if _other_integers(base.tensor(n), expert.tensor(n))]:
        message = f"other integers in {some(integers)}: merges keep the base's"
        yield Finding("warning", where, message)
    if expert.vocabulary != base.vocabulary:
        yield error(f"vocabulary of {expert.vocabulary}, the base has {base.vocabulary}")
    if expert.tokens is not None and base.tokens is not None and expert.tokens != base.tokens:
        pairs = set(expert.tokens.items()) ^ set(base.tokens.items())
        tokens = sorted({token for token, _ in pairs})
        yield error(f"tokenizer differs from the base in {some(tokens, 'tokens')}")
    if (expert.tokens is None or base.tokens is None) and (file := _other_pieces(base, expert)):
        message = f"{file} differs from the base's: tokens are taken for the same, id by id"
        yield Finding("warning", where, f"{message}; save both models with tokenizer.json")


def compare_kinds(where: str, base: Checkpoint, other: Checkpoint) -> Iterator[Finding]:
    """Compare what two configurations say of the kind of the model, whatever its tensors are.

    Args:
        where: the other's name.
        base: that it is merged with, or whose configuration a stack of its layers has.
        other: to compare.
    """
    for key in ("model_type", "architectures", "tie_word_embeddings"):
        found, expected = other.config.get(key), base.config.get(key)
        if found != expected:
            message = f"config {key}: found {found}, the base has {expected}"
            yield Finding("error", where, message)


def _other_pieces(base: Checkpoint, expert: Checkpoint) -> str:
    """Name a file of SentencePiece that both have, with other content; "" if there is none."""
    for name in SENTENCEPIECE_FILES:
        ours, theirs = (checkpoint.folder / name for checkpoint in (base, expert))
        both = ours.exists() and theirs.exists()
        if both and not filecmp.cmp(ours, theirs, shallow=False):
            return name
    return ""


def _other_integers(base: Tensor, expert: Tensor) -> bool:
    """Whether a tensor that is copied from the base, for it cannot be averaged, differs."""
    return not base.is_floating_point() and not torch.equal(base, expert)


def _non_finite(where: str, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Report tensors with NaN or infinity."""
    floating = {n: t for n, t in checkpoint.tensors.items() if t.is_floating_point()}
    if bad := [n for n, t in floating.items() if not torch.isfinite(t).all()]:
        yield Finding("error", where, f"weights that are not finite in {some(bad)}")


def _distance(where: str, sources: Sources) -> Iterator[Finding]:
    """Report an expert that equals the base or that looks unrelated to it."""
    relation = sources.relations[where]
    if relation.relative_norm == 0:
        yield Finding("error", where, "has the same weights as the base")
    elif relation.relative_norm > FAR_NORM or relation.cosine < FAR_COSINE:
        yield Finding(
            "warning",
            where,
            f"looks like no fine-tune of the base: relative norm {relation.relative_norm:.2f} "
            f"(expected below {FAR_NORM}), cosine {relation.cosine:.2f} (above {FAR_COSINE})",
        )


def _identical(a: Checkpoint, b: Checkpoint) -> bool:
    return a.names == b.names and all(torch.equal(a.tensor(n), b.tensor(n)) for n in a.names)
