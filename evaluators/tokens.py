"""Texts to token ids, once: the tokenizer of one model with a memory of what it has seen.

Only inputs are remembered; what a model says about them is not, since its weights change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

UNLIMITED = 2**30
"""Maximum length of a model without positions of its own; tokenizers say 1e30 when unset."""


@dataclass(frozen=True)
class Row:
    """Token ids of which those from `start` on are scored; `start` is at least 1."""

    ids: list[int]
    start: int

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - self.start


class Tokens:
    """A tokenizer with its model's limits.

    Attributes:
        max_length: tokens that the model can read at once.
        pad: id that fills rows up; masked or never looked at.
        ends: ids that end a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
        positions = getattr(config, "max_position_embeddings", None) or UNLIMITED
        self.max_length = int(min(positions, tokenizer.model_max_length, UNLIMITED))
        self.pad: int = tokenizer.pad_token_id or 0
        self.ends = _ends(tokenizer, config)
        self._tokenizer = tokenizer
        self._bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._always_bos = tokenizer("")["input_ids"][:1] == self._bos
        self._plain: dict[str, list[int]] = {}
        self._special: dict[str, list[int]] = {}

    def rows(self, pairs: Sequence[tuple[str, str]]) -> list[Row]:
        """Each context with its continuation, tokenised as one text.

        The context's tokens are those that the whole text shares with the context alone, so a
        token that spans the border is scored. A row is cut on the left to `max_length + 1`: its
        last token is predicted, never read.
        """
        self._learn([text for context, more in pairs for text in (context, context + more)])
        return [self._row(context, more) for context, more in pairs]

    def prompts(self, texts: Sequence[str], room: int) -> list[list[int]]:
        """Each text to be continued, with BOS where the tokenizer puts it, its last `room` ids."""
        self._learn(texts)
        return [(self._prefix(text) + self._plain[text])[-room:] for text in texts]

    def sequences(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text as an encoder reads it: with special tokens, cut on the right to the model."""
        new = [text for text in dict.fromkeys(texts) if text not in self._special]
        if new:
            encoded = self._tokenizer(new, truncation=True, max_length=self.max_length)
            self._special.update(zip(new, encoded["input_ids"], strict=True))
        return [self._special[text] for text in texts]

    def text(self, ids: list[int]) -> str:
        """Ids back to text, without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _learn(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._plain]
        if new:
            encoded = self._tokenizer(new, add_special_tokens=False)
            self._plain.update(zip(new, encoded["input_ids"], strict=True))

    def _prefix(self, text: str) -> list[int]:
        """BOS where the tokenizer puts it, and before an empty text, which has nothing else."""
        return self._bos if self._always_bos or not text else []

    def _row(self, context: str, more: str) -> Row:
        prefix = self._prefix(context)
        whole = prefix + self._plain[context + more]
        before = prefix + self._plain[context]
        pairs = zip(before, whole, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(before), len(whole)))
        cut = max(0, len(whole) - 1 - self.max_length)
        return Row(whole[cut:], max(1, shared - cut))


def _ends(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> frozenset[int]:
    """Collect the end tokens of the tokenizer and of the model's configuration."""
    named = getattr(config, "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    return frozenset(i for i in [tokenizer.eos_token_id, *named] if i is not None)
