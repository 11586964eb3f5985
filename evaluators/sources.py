"""Base and experts, opened and made ready to be merged.

A source may be a model folder, a LoRA adapter, or a model with other tokens than the base. What is
no ordinary folder that fits the base is made one first, in the cache (`evaluators.prepared`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

from evaluators.adapters import adapted
from evaluators.folders import Checkpoint, locate, open_folder
from evaluators.merging.stored import SourceError
from evaluators.merging.sums import dot
from evaluators.prepared import Draft, publish
from evaluators.recipe import ModelRef, TokenizerSource
from evaluators.vocabulary import aligned, assumed, extended

__all__ = [
    "Checkpoint",
    "Relation",
    "SourceError",
    "Sources",
    "SourcesError",
    "open_checkpoint",
    "open_sources",
]

Say = Callable[[str], object]
"""Takes one line about what is being done."""


class SourcesError(SourceError):
    """Sources that cannot be opened.

    Attributes:
        problems: "base" or an expert's name → what is wrong with it, one line.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{where}: {line}" for where, line in problems.items()))
        self.problems = dict(problems)


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

    @property
    def all(self) -> Mapping[str, Checkpoint]:
        """The base as "base", then the experts."""
        return {"base": self.base, **self.experts}


def _silent(line: str) -> None:
    """Say nothing."""


def open_checkpoint(ref: ModelRef) -> Checkpoint:
    """Open a model by itself: a local folder, or a hub id at its revision, with its adapter.

    Raises:
        SourceError: missing, truncated or unusable files, in one line.
    """
    return publish(_draft(ref, None), _silent)


def open_sources(
    base: ModelRef,
    experts: Mapping[str, ModelRef],
    *,
    tokenizer: TokenizerSource = "base",
    say: Say = _silent,
) -> Sources:
    """Open the base and all experts, the same tokens at the same ids.

    Args:
        base: what task vectors are taken from; experts that are adapters alone are applied to it.
        experts: name → model.
        tokenizer: whose tokens the sources get where they differ.
        say: told in a line before something is made that may take minutes.

    Raises:
        SourcesError: some cannot be opened; says of each why.
    """
    problems: dict[str, str] = {}
    opened: Checkpoint | None = None
    drafts: dict[str, Draft] = {}
    with _noted(problems, "base"):
        opened = publish(_draft(base, None), _telling(say, "base"))
    for name, ref in experts.items():
        with _noted(problems, name):
            if opened is not None or locate(ref)[0] is not None:  # else the base's mistake only
                drafts[name] = _draft(ref, opened)
    if tokenizer == "union" and opened is not None and not problems:
        drafts = {name: assumed(opened, draft) for name, draft in drafts.items()}
        with _noted(problems, "base"):
            opened = publish(extended(opened, drafts), _telling(say, "base"))
    if problems or opened is None:
        raise SourcesError(problems)
    ready: dict[str, Checkpoint] = {}
    for name, draft in drafts.items():
        with _noted(problems, name):
            ready[name] = publish(aligned(opened, draft), _telling(say, name))
    if problems:
        raise SourcesError(problems)
    return Sources(opened, ready)


def _draft(ref: ModelRef, base: Checkpoint | None) -> Draft:
    """Draft what a reference means; an adapter alone is applied to the base, if there is one."""
    model, adapter = locate(ref)
    if model is not None:
        opened = open_folder(ModelRef(path=ref.path, revision=ref.revision), model)
    elif base is not None:
        opened = base
    else:
        raise SourceError(f"{ref}: is an adapter (LoRA) without a model; write model+adapter")
    if adapter is not None:
        return adapted(opened, adapter, ref)
    return Draft.of(replace(opened, ref=ref))


@contextmanager
def _noted(problems: dict[str, str], where: str) -> Iterator[None]:
    """Note what is wrong with a source, the first thing only."""
    try:
        yield
    except SourceError as error:
        problems.setdefault(where, str(error))


def _telling(say: Say, where: str) -> Say:
    return lambda line: say(f"sources.{where}: {line}")


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
