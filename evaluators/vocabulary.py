"""Sources of several vocabularies: rows of embeddings and heads brought in line by token string.

With the base's tokens, an expert's rows are put in the base's order; a token that it lacks gets the
base's row, so that its task vector is zero there, and a token that only it has is dropped. With the
union of all tokens the base grows first: a new token's row is the mean of the experts that have it
(as in mergekit, whose models without the token get that row, too). Ids without a token (padding)
are the base's.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from evaluators.folders import EMBEDDINGS, HEADS, Checkpoint, some
from evaluators.merging.stored import SourceError, read_json
from evaluators.prepared import Change, Draft

BASE_ROW = -1
"""In place of an expert's row: the base's."""

_OPTIONS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""How an added token is matched, in `tokenizer.json` and in `AddedToken`."""


def is_of_vocabulary(name: str) -> bool:
    """Whether a tensor has one row per token."""
    return name.endswith((*EMBEDDINGS, *HEADS))


def with_vocabulary(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Set `vocab_size` wherever a configuration has it."""
    changed = dict(config)
    if "vocab_size" in changed:
        changed["vocab_size"] = rows
    nested = changed.get("text_config")
    if isinstance(nested, dict) and "vocab_size" in nested:
        changed["text_config"] = {**nested, "vocab_size": rows}
    return changed


@dataclass(frozen=True)
class _Vocabulary:
    """What a model knows of tokens.

    Attributes:
        tokens: string → id.
        rows: of its embedding; an id beyond them has none, a row may have no id.
        names: tensors of so many rows.
    """

    tokens: Mapping[str, int]
    rows: int
    names: tuple[str, ...]

    @property
    def known(self) -> dict[str, int]:
        """Tokens that have a row."""
        return {token: i for token, i in self.tokens.items() if i < self.rows}


def extended(base: Checkpoint, experts: Mapping[str, Draft]) -> Draft:
    """Draft the base with the tokens of all experts: its own ids stay, then expert by expert.

    Raises:
        SourceError: the tokenizer cannot take the new tokens.
    """
    draft = Draft.of(base)
    if all(_same_tokenizer(draft, expert) for expert in experts.values()):
        return draft
    ours = _vocabulary(draft)
    theirs = {name: v for name, e in experts.items() if (v := _vocabulary(e)) is not None}
    if ours is None:
        return draft
    every = (t for v in theirs.values() for t in sorted(v.known, key=lambda t: v.known[t]))
    new = [token for token in dict.fromkeys(every) if token not in ours.known]
    if not new:
        return draft
    _refuse_unknown(base, ours)
    tokenizer = _tokenizer_with(base, ours, new, experts)
    ids = _ids(tokenizer, ours, new)
    rows = max(ours.rows, *(i + 1 for i in ids.values()))
    donors = {
        i: [(name, v.known[token]) for name, v in theirs.items() if token in v.known]
        for token, i in ids.items()
    }
    changes = {}
    for name in ours.names:
        dtype, shape = draft.spec(name)
        make = partial(_grown, base.tensor(name), name, rows, donors, experts)
        changes[name] = Change((dtype, torch.Size((rows, *shape[1:]))), make)
    return replace(
        draft,
        config=with_vocabulary(base.config, rows),
        tokenizer_texts=_texts(base, tokenizer, ids),
        changes=changes,
        inputs=("union", *(e.digest for e in experts.values())),
        done=(f"{some(new, 'tokens')} of the experts added to the base",),
    )


def assumed(base: Checkpoint, expert: Draft) -> Draft:
    """Give an expert whose tokens cannot be told the base's, if it has as many rows."""
    if expert.tokens is not None or not _same_rows(Draft.of(base), expert):
        return expert
    return replace(expert, tokenizer=base.folder)


def aligned(base: Checkpoint, expert: Draft) -> Draft:
    """Draft an expert with the base's tokens at the base's ids; itself if that is how it is.

    What cannot be aligned stays as it is, and the checks of the sources report it.

    Raises:
        SourceError: the model has tensors of which it is not known whether they have rows of
            tokens, too.
    """
    root = Draft.of(base)
    if _same_rows(root, expert) and _same_tokenizer(root, expert):
        return expert
    ours, theirs = _vocabulary(root), _vocabulary(expert)
    if ours is None or theirs is None or ours.names != theirs.names:
        return expert
    if (ours.tokens, ours.rows) == (theirs.tokens, theirs.rows):
        return expert
    if any(root.spec(n)[1][1:] != expert.spec(n)[1][1:] for n in ours.names):
        return expert  # of another width: another model
    _refuse_unknown(base, ours)
    known = theirs.known
    take = torch.full((ours.rows,), BASE_ROW)
    for token, i in ours.known.items():
        if token in known:
            take[i] = known[token]
    changes = {name: _aligned_change(base, expert, name, take) for name in ours.names}
    return replace(
        expert,
        config=with_vocabulary(expert.config, ours.rows),
        tokenizer=base.folder,
        tokenizer_texts={},
        changes={**expert.changes, **changes},
        inputs=(*expert.inputs, "aligned", base.digest),
        done=(*expert.done, _summary(ours, theirs)),
        warnings=(*expert.warnings, *_dropped(ours, theirs)),
    )


def _vocabulary(draft: Draft) -> _Vocabulary | None:
    """What a model knows of tokens; None if its embedding or its tokens cannot be told."""
    names = tuple(name for name in draft.names if is_of_vocabulary(name))
    rows = {draft.spec(name)[1][0] for name in names}
    if len(rows) != 1 or not any(n.endswith(EMBEDDINGS) for n in names) or draft.tokens is None:
        return None
    return _Vocabulary(draft.tokens, rows.pop(), names)


def _same_rows(base: Draft, expert: Draft) -> bool:
    names = [n for n in base.names if is_of_vocabulary(n) and n in expert.names]
    return all(base.spec(n)[1] == expert.spec(n)[1] for n in names)


def _same_tokenizer(base: Draft, expert: Draft) -> bool:
    """Whether their tokens are the same, or cannot be told; of equal files nothing is parsed."""
    ours, theirs = (draft.tokenizer / "tokenizer.json" for draft in (base, expert))
    if ours.exists() and theirs.exists():
        return ours == theirs or filecmp.cmp(ours, theirs, shallow=False)
    return base.tokens is None or expert.tokens in (None, base.tokens)


def _refuse_unknown(base: Checkpoint, vocabulary: _Vocabulary) -> None:
    """Refuse to move the rows of some tensors where others may need it, too."""
    others = (name for name in base.names if name not in vocabulary.names)
    if found := [name for name in others if vocabulary.rows in base.shape(name)]:
        raise SourceError(
            f"tokenizers differ, and {some(found)} may have rows for tokens, too; only embedding "
            "and head can be aligned"
        )


def _tokenizer_with(
    base: Checkpoint, ours: _Vocabulary, tokens: Sequence[str], experts: Mapping[str, Draft]
) -> Tokenizer:
    """Add tokens to the base's tokenizer, each as the first expert that added it has it."""
    if not (base.folder / "tokenizer.json").exists():
        raise SourceError(
            f"{base.folder}: has no tokenizer.json to add {some(tokens, 'tokens')} to; save it "
            "with AutoTokenizer"
        )
    known: dict[str, AddedToken] = {}
    for expert in experts.values():
        path = expert.tokenizer / "tokenizer.json"
        for entry in read_json(path).get("added_tokens", []) if path.exists() else []:
            options = {k: entry[k] for k in _OPTIONS if k in entry}
            known.setdefault(entry["content"], AddedToken(entry["content"], **options))
    tokenizer: Tokenizer = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    new = [known.get(t, AddedToken(t, normalized=False)) for t in tokens if t not in ours.tokens]
    tokenizer.add_tokens(new)
    return tokenizer


def _ids(tokenizer: Tokenizer, ours: _Vocabulary, new: Sequence[str]) -> dict[str, int]:
    """Ids of new tokens, if they are free ones and the base's are what they were."""
    found = tokenizer.get_vocab(with_added_tokens=True)
    ids = {token: found[token] for token in new if token in found}
    old = {i for token, i in ours.tokens.items() if token not in ids}
    kept = all(found.get(token) == i for token, i in ours.tokens.items())
    if not kept or len({*ids.values()} - old) < len(new):
        raise SourceError("the base's tokenizer cannot take the experts' tokens")
    return ids


def _texts(base: Checkpoint, tokenizer: Tokenizer, ids: Mapping[str, int]) -> dict[str, str]:
    """Write the grown tokenizer; the model library knows some by the other file alone."""
    content = tokenizer.to_str(pretty=True)
    entries = {t["id"]: t for t in json.loads(content)["added_tokens"] if t["content"] in ids}
    path = base.folder / "tokenizer_config.json"
    if not path.exists():
        return {"tokenizer.json": content}
    config = read_json(path)
    added = {str(i): {k: t[k] for k in ("content", *_OPTIONS)} for i, t in entries.items()}
    config["added_tokens_decoder"] = {**(config.get("added_tokens_decoder") or {}), **added}
    return {"tokenizer.json": content, path.name: json.dumps(config, indent=2)}


def _grown(
    base: Tensor,
    name: str,
    rows: int,
    donors: Mapping[int, Sequence[tuple[str, int]]],
    experts: Mapping[str, Draft],
) -> Tensor:
    """Add rows to a tensor: each the mean of its donors' rows, or of all rows without a donor."""
    result = torch.empty((rows, *base.shape[1:]), dtype=base.dtype)
    result[: base.shape[0]] = base
    result[base.shape[0] :] = base.float().mean(0).to(base.dtype)
    tensors = {expert: draft.tensor(name) for expert, draft in experts.items()}
    for i, found in donors.items():
        own = torch.stack([tensors[expert][row].float() for expert, row in found])
        result[i] = own.mean(0).to(base.dtype)
    return result


def _aligned_change(base: Checkpoint, expert: Draft, name: str, take: Tensor) -> Change:
    """Rows of the expert where `take` names one, else of the base.

    The type holds both: a row of the base that were rounded would be a task vector.
    """
    dtype = torch.promote_types(base.dtype(name), expert.spec(name)[0])

    def make() -> Tensor:
        result = base.tensor(name).to(dtype, copy=True)
        has = take != BASE_ROW
        result[has] = expert.tensor(name)[take[has]].to(dtype)
        return result

    return Change((dtype, base.shape(name)), make)


def _summary(ours: _Vocabulary, theirs: _Vocabulary) -> str:
    lacking = [token for token in ours.known if token not in theirs.known]
    line = f"{len(ours.names)} tensors aligned by token"
    if theirs.rows != ours.rows:
        line += f", from {theirs.rows} rows to {ours.rows}"
    return line + (f", {some(lacking, 'tokens')} taken from the base" if lacking else "")


def _dropped(ours: _Vocabulary, theirs: _Vocabulary) -> Iterator[str]:
    extra = [token for token in theirs.known if token not in ours.known]
    if extra:
        yield f"{some(extra, 'tokens', shown=10)} that the base lacks are dropped"
