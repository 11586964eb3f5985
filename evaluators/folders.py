"""Model folders, local or from the hub, as opened checkpoints.

A checkpoint is a folder with `config.json` and safetensors. Tensors are memory maps: opening costs
milliseconds, and worker processes share the pages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluators.digests import files_digest
from evaluators.merging.stored import (
    INDEX,
    SINGLE,
    SourceError,
    open_tensors,
    read_json,
    tensor_files,
)
from evaluators.recipe import ModelRef

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""How the names of input embeddings end."""

HEADS = ("lm_head.weight", "lm_head.bias", "embed_out.weight")
"""How the names of what maps to the vocabulary end."""

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    *SENTENCEPIECE_FILES,
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)

_COMPANIONS = (".json", ".model", ".txt", ".jinja")
"""How names end of what a model folder holds beside its weights."""

ADAPTER_CONFIG, ADAPTER_MODEL = "adapter_config.json", "adapter_model.safetensors"

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Preparation:
    """How a folder of the cache came about.

    Attributes:
        digest: of all that it was made of, and of what was done.
        done: what was done, a line each.
        warnings: what was left out on the way, a line each.
    """

    digest: str
    done: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """One opened model. Open it with `evaluators.sources.open_checkpoint`.

    Attributes:
        tensors: name → memory-mapped tensor, sorted by name; a tied head is not listed.
        preparation: how the folder was made, if it is not the user's own.
        about: the user's folder whose README speaks of the model, if that is not `folder`.
    """

    ref: ModelRef
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    preparation: Preparation | None = None
    about: Path | None = None

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
        """Token → id of its tokenizer, or None if that cannot be told; see `read_tokens`.

        Raises:
            SourceError: the file is no tokenizer.
        """
        return read_tokens(self.folder)

    @cached_property
    def digest(self) -> str:
        """Hash of the files that decide scores: tensors, configuration, all of the tokenizer.

        Of a prepared folder it is a hash of what it was made of: the same whenever it is made.
        """
        if self.preparation is not None:
            return self.preparation.digest
        extra = [self.folder / name for name in ("config.json", *TOKENIZER_FILES)]
        return files_digest([*tensor_files(self.folder), *filter(Path.exists, extra)])


def read_tokens(folder: Path) -> dict[str, int] | None:
    """Token → id of a folder's tokenizer, added tokens too, or None if it cannot be told.

    It is told by `tokenizer.json`; else by the files of older tokenizers: `vocab.json` or
    `vocab.txt`, and what was added to them; not by those of SentencePiece.

    Raises:
        SourceError: a file is no tokenizer's.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return _older_tokens(folder)
    content = read_json(path)
    try:
        vocabulary: Any = content["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: pairs of token and score
            vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
        added = {t["content"]: t["id"] for t in content.get("added_tokens", [])}
        return {token: int(i) for token, i in {**vocabulary, **added}.items()}
    except (KeyError, TypeError, ValueError):
        raise SourceError(f"{path}: has no model.vocab that maps tokens to ids") from None


def _older_tokens(folder: Path) -> dict[str, int] | None:
    """Token → id of a JSON object, or of a text with a token in each line, and added ones."""
    if (folder / "vocab.json").exists():
        tokens = read_json(folder / "vocab.json")
        if not all(isinstance(i, int) for i in tokens.values()):
            return None  # of several vocabularies, say
    elif (folder / "vocab.txt").exists():
        try:
            text = (folder / "vocab.txt").read_text(encoding="utf-8")
        except ValueError as error:
            raise SourceError(f"{folder / 'vocab.txt'}: is no text in UTF-8: {error}") from None
        tokens = {token: i for i, token in enumerate(text.removesuffix("\n").split("\n"))}
    else:
        return None
    more, config = folder / "added_tokens.json", folder / "tokenizer_config.json"
    try:
        tokens |= {t: int(i) for t, i in (read_json(more) if more.exists() else {}).items()}
        added = read_json(config).get("added_tokens_decoder") if config.exists() else None
        return tokens | {entry["content"]: int(i) for i, entry in (added or {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise SourceError(
            f"{folder}: {more.name} or added_tokens_decoder in {config.name} maps no tokens to ids"
        ) from None


def open_folder(ref: ModelRef, folder: Path, preparation: Preparation | None = None) -> Checkpoint:
    """Open a model folder under the reference that it is known by.

    Raises:
        SourceError: missing, truncated or unusable files, quantised weights; in one line.
    """
    config = read_json(folder / "config.json")
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise SourceError(
            f"{folder}: its weights are quantised ({method}), which cannot be averaged; take the "
            "model that it was made of"
        )
    tensors = open_tensors(folder)
    if config.get("tie_word_embeddings"):
        _drop_tied_head(folder, tensors)
    return Checkpoint(ref, folder, config, dict(sorted(tensors.items())), preparation)


def locate(ref: ModelRef) -> tuple[Path | None, Path | None]:
    """Find the folders of a reference's model and adapter, fetched from the hub if need be.

    Raises:
        SourceError: there is no such folder.
    """
    model, *adapters = map(_fetched, ref.parts)
    if not adapters:
        return (None, model) if is_adapter(model) else (model, None)
    if not is_adapter(adapters[0]):
        raise SourceError(f"{adapters[0]}: is no adapter, it has no {ADAPTER_CONFIG}")
    return model, adapters[0]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model beside it."""
    whole = (folder / SINGLE).exists() or (folder / INDEX).exists()
    return (folder / ADAPTER_CONFIG).exists() and not whole


def _fetched(ref: ModelRef) -> Path:
    """Find a folder, fetched from the hub if it is none of ours."""
    folder = os.path.expanduser(ref.path)  # unlike pathlib's, it takes any text
    if os.path.isdir(folder):
        if ref.revision is not None:
            raise SourceError(f"{ref}: a local folder has no revisions; write {ref.path}")
        return Path(folder)
    if os.path.exists(folder) or not _HUB_ID.fullmatch(ref.path):
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
    embedding = next((n for n in tensors if n.endswith(EMBEDDINGS)), None)
    head = next((n for n in tensors if n.endswith("lm_head.weight")), None)
    if embedding is None or head is None:
        return
    if not torch.equal(tensors[head], tensors[embedding]):
        raise SourceError(
            f"{folder}: tie_word_embeddings is true, but {head} differs from {embedding}"
        )
    del tensors[head]


def copy_companions(source: Path, target: Path, without: Collection[str] = ()) -> None:
    """Copy what a model folder holds beside its weights: tokenizer, templates, settings, modules.

    Args:
        source: a model folder.
        target: a folder that is there.
        without: names that are left out; so are weights, their indices and READMEs.
    """
    for path in sorted(source.iterdir()):
        unwanted = path.name in without or path.name.endswith(".index.json")
        if unwanted or path.name.lower().startswith("readme") or path.suffix not in _COMPANIONS:
            continue
        shutil.copyfile(path, target / path.name)
    for name in ("additional_chat_templates", *_modules(source)):
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, copy_function=shutil.copyfile)


def _modules(folder: Path) -> list[str]:
    """Folders of a sentence encoder's further modules, such as `1_Pooling`; they are not merged.

    Raises:
        SourceError: `modules.json` is no list of modules.
    """
    path = folder / "modules.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        paths = [str(module.get("path", "")) for module in content]
    except (ValueError, AttributeError, TypeError):
        raise SourceError(f"{path}: is no list of modules") from None
    return [p for p in paths if p and Path(p).name == p and p != ".."]


def some(names: Sequence[str], kind: str = "tensors", shown: int = 3) -> str:
    """Show the first few of many names, and how many there are."""
    first = ", ".join(names[:shown])
    return f"{len(names)} {kind} ({first}{', ...' if len(names) > shown else ''})"
