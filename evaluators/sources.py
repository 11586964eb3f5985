"""Base and experts as opened checkpoints, and the checks that they can be merged.

A checkpoint is a folder with `config.json` and safetensors, local or from the hub. Tensors are
memory maps: opening costs milliseconds, and worker processes share the pages.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from evaluators.merging.stored import SourceError, open_tensors, read_json, tensor_files
from evaluators.merging.sums import dot
from evaluators.recipe import DType, ModelRef

__all__ = [
    "Checkpoint",
    "Estimate",
    "Finding",
    "Relation",
    "SourceError",
    "Sources",
    "estimate",
    "inspect_sources",
    "open_checkpoint",
    "open_sources",
]

FAR_NORM = 1.0
"""A fine-tune moves by less than the length of its base: ‖θ_k - θ_0‖ < ‖θ_0‖."""

FAR_COSINE = 0.5
"""A fine-tune points where its base points; weights of unrelated models have cosines near 0."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Checkpoint:
    """One opened model. Open it with `open_checkpoint`.

    Attributes:
        tensors: name → memory-mapped tensor, sorted by name; a tied head is not listed.
    """

    ref: ModelRef
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names, sorted."""
        return tuple(self.tensors)

    def tensor(self, name: str) -> Tensor:
        """Return the mapped tensor; treat it as read-only."""
        return self.tensors[name]

    def shape(self, name: str) -> torch.Size:
        """Return a tensor's shape; nothing is read."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's stored type; nothing is read."""
        return self.tensors[name].dtype

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def vocabulary(self) -> int | None:
        """`vocab_size` of the configuration, if it has one."""
        nested = self.config.get("text_config")
        text = nested if isinstance(nested, dict) else {}
        size = self.config.get("vocab_size", text.get("vocab_size"))
        return size if isinstance(size, int) else None

    @cached_property
    def tokens(self) -> Mapping[str, int] | None:
        """Token → id of `tokenizer.json`, or None without one.

        Raises:
            SourceError: the file is no tokenizer.
        """
        path = self.folder / "tokenizer.json"
        if not path.exists():
            return None
        content = read_json(path)
        try:
            vocabulary: Any = content["model"]["vocab"]
            if isinstance(vocabulary, list):  # Unigram: pairs of token and score
                vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
            added = {t["content"]: t["id"] for t in content.get("added_tokens", [])}
            return {**vocabulary, **added}
        except (KeyError, TypeError, ValueError):
            raise SourceError(f"{path}: has no model.vocab that maps tokens to ids") from None

    @cached_property
    def digest(self) -> str:
        """Hash of the files that decide scores: tensors, configuration, all of the tokenizer."""
        extra = [self.folder / name for name in ("config.json", *_TOKENIZER_FILES)]
        digest = hashlib.sha256()
        for path in (*tensor_files(self.folder), *filter(Path.exists, extra)):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name} {content}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Relation:
    """How far an expert is from the base, over the floating tensors that both have.

    Attributes:
        relative_norm: ‖θ_k − θ_0‖ / ‖θ_0‖; infinite if nothing of θ_0 can be compared.
        cosine: of the angle between θ_k and θ_0.
    """

    relative_norm: float
    cosine: float


@dataclass(frozen=True)
class Sources:
    """The base and its experts, by name."""

    base: Checkpoint
    experts: Mapping[str, Checkpoint]

    @cached_property
    def relations(self) -> Mapping[str, Relation]:
        """Expert → its relation to the base. Reads every tensor once, one at a time."""
        return {name: _relation(self.base, expert) for name, expert in self.experts.items()}


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


def open_checkpoint(ref: ModelRef) -> Checkpoint:
    """Open a local folder, or a hub id at its revision.

    Raises:
        SourceError: missing, truncated or unusable files, in one line.
    """
    folder = _folder(ref)
    config = read_json(folder / "config.json")
    tensors = open_tensors(folder)
    if config.get("tie_word_embeddings"):
        _drop_tied_head(folder, tensors)
    return Checkpoint(ref, folder, config, dict(sorted(tensors.items())))


def open_sources(base: ModelRef, experts: Mapping[str, ModelRef]) -> Sources:
    """Open the base and all experts.

    Raises:
        SourceError: the first that cannot be opened.
    """
    return Sources(
        open_checkpoint(base), {name: open_checkpoint(ref) for name, ref in experts.items()}
    )


def inspect_sources(sources: Sources) -> list[Finding]:
    """Check that the sources can be merged and that merging them makes sense.

    Errors: another architecture, other tensor names, shapes, vocabulary or tied head; weights that
    are not finite; an expert equal to the base. Warnings: other dtypes, identical experts, and an
    expert that looks like no fine-tune of the base (`FAR_NORM`, `FAR_COSINE`).
    """
    findings = list(_non_finite("base", sources.base))
    for name, expert in sources.experts.items():
        structure = list(_differences(name, sources.base, expert))
        broken = list(_non_finite(name, expert))
        findings += structure + broken
        if not broken:
            findings += _distance(name, sources)
    for (a, first), (b, second) in combinations(sources.experts.items(), 2):
        if _identical(first, second):
            findings.append(Finding("warning", b, f"has the same weights as expert {a}"))
    return findings


def estimate(sources: Sources, workers: int, dtype: DType) -> Estimate:
    """Estimate disk and memory. The maps of the sources are shared; models and scratch are not."""
    width = getattr(torch, dtype).itemsize
    tensors = list(sources.base.tensors.values())
    model = sum(t.numel() * width if t.is_floating_point() else t.nbytes for t in tensors)
    largest = max((t.numel() for t in tensors), default=0)
    # Per element of the largest tensor: delta and magnitude in float32, a mask byte per expert.
    scratch = largest * (8 + width + len(sources.experts))
    maps = sources.base.size_bytes + sum(e.size_bytes for e in sources.experts.values())
    return Estimate(model, maps + workers * (model + scratch))


def _folder(ref: ModelRef) -> Path:
    """Find the folder of a reference, fetched from the hub if it is none of ours."""
    folder = Path(ref.path).expanduser()
    if folder.is_dir():
        if ref.revision is not None:
            raise SourceError(f"{ref}: a local folder has no revisions; write {ref.path}")
        return folder
    if folder.exists() or not _HUB_ID.fullmatch(ref.path):
        raise SourceError(f"{ref.path}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(ref.path, revision=ref.revision, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(f"{ref}: no such folder, nor fetched from the hub: {reason}") from None


def _drop_tied_head(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Forget the stored copy of a tied embedding, which would be merged and counted twice."""
    embedding = next((n for n in tensors if n.endswith(_EMBEDDINGS)), None)
    head = next((n for n in tensors if n.endswith(_HEAD)), None)
    if embedding is None or head is None:
        return
    if not torch.equal(tensors[head], tensors[embedding]):
        raise SourceError(
            f"{folder}: tie_word_embeddings is true, but {head} differs from {embedding}"
        )
    del tensors[head]


def _differences(where: str, base: Checkpoint, expert: Checkpoint) -> Iterator[Finding]:
    """Compare the structure of an expert with the base's."""

    def error(message: str) -> Finding:
        return Finding("error", where, message)

    for key in ("model_type", "architectures", "tie_word_embeddings"):
        found, expected = expert.config.get(key), base.config.get(key)
        if found != expected:
            yield error(f"config {key}: found {found}, the base has {expected}")
    ours, theirs = set(base.names), set(expert.names)
    if missing := sorted(ours - theirs):
        yield error(f"lacks {_some(missing)} of the base")
    if extra := sorted(theirs - ours):
        yield error(f"has {_some(extra)} that the base lacks")
    common = sorted(ours & theirs)
    if shapes := [n for n in common if expert.shape(n) != base.shape(n)]:
        n = shapes[0]
        yield error(
            f"other shapes in {_some(shapes)}: found {tuple(expert.shape(n))}, the base has "
            f"{tuple(base.shape(n))}"
        )
    if dtypes := [n for n in common if expert.dtype(n) != base.dtype(n)]:
        n = dtypes[0]
        message = f"found {expert.dtype(n)}, the base has {base.dtype(n)}"
        yield Finding("warning", where, f"other dtypes in {_some(dtypes)}: {message}")
    if expert.vocabulary != base.vocabulary:
        yield error(f"vocabulary of {expert.vocabulary}, the base has {base.vocabulary}")
    if expert.tokens is not None and base.tokens is not None and expert.tokens != base.tokens:
        pairs = set(expert.tokens.items()) ^ set(base.tokens.items())
        tokens = sorted({token for token, _ in pairs})
        yield error(f"tokenizer differs from the base in {_some(tokens, 'tokens')}")


def _non_finite(where: str, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Report tensors with NaN or infinity."""
    floating = {n: t for n, t in checkpoint.tensors.items() if t.is_floating_point()}
    if bad := [n for n, t in floating.items() if not torch.isfinite(t).all()]:
        yield Finding("error", where, f"weights that are not finite in {_some(bad)}")


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


def _relation(base: Checkpoint, expert: Checkpoint) -> Relation:
    moved = base_square = expert_square = product = 0.0
    for name, tensor in base.tensors.items():
        other = expert.tensors.get(name)
        if other is None or other.shape != tensor.shape or not tensor.is_floating_point():
            continue
        a, b = tensor.flatten(), other.flatten()
        delta = b.float() - a.float()
        moved += dot(delta, delta)
        base_square += dot(a, a)
        expert_square += dot(b, b)
        product += dot(a, b)
    norms = (base_square * expert_square) ** 0.5
    length = (moved / base_square) ** 0.5 if base_square > 0 else math.inf
    return Relation(length, product / norms if norms > 0 else 0.0)


def _identical(a: Checkpoint, b: Checkpoint) -> bool:
    return a.names == b.names and all(torch.equal(a.tensor(n), b.tensor(n)) for n in a.names)


def _some(names: list[str], kind: str = "tensors") -> str:
    """Show the first few of many names, and how many there are."""
    shown = ", ".join(names[:3])
    return f"{len(names)} {kind} ({shown}{', ...' if len(names) > 3 else ''})"
