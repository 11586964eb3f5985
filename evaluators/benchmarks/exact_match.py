"""`exact_match`: how often the model writes exactly the answer.

Two ways: greedy generation compared as text, or one forward pass that asks whether the answer is
what greedy decoding would give, token by token (`forced`), several times faster.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from evaluators.benchmarks.benchmark import Metric, Outcomes, Positions, Split
from evaluators.benchmarks.data import Column, DataOptions, text
from evaluators.benchmarks.from_data import FromData
from evaluators.benchmarks.statistics import proportion

if TYPE_CHECKING:
    from evaluators.models import LiveModel

_GENERATION = ("max_new_tokens", "stop", "extract")


class ExactMatchOptions(DataOptions):
    """Options of `exact_match`.

    Attributes:
        prompt: field that the model continues, as it stands.
        answer: field with the expected text.
        max_new_tokens: length of a generation. A model that never ends by itself writes that
            many, so give the answers' own length, a stop string, or `extract`.
        stop: a generation ends before the first of these strings.
        extract: regular expression; its last match (first group, if it has one) is compared
            instead of the whole text, in the generation and in the answer field alike.
        forced: compare token by token in one forward pass; the answer field must then begin with
            whatever separates it from the prompt, and what would follow it does not matter.
    """

    prompt: str = "prompt"
    answer: str = "answer"
    max_new_tokens: int = Field(32, ge=1)
    stop: tuple[str, ...] = ("\n",)
    extract: str | None = None
    forced: bool = False

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty stop string would end every text at once")
        return stop

    @field_validator("extract")
    @classmethod
    def _compiles(cls, extract: str | None) -> str | None:
        try:
            re.compile(extract or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return extract

    @model_validator(mode="after")
    def _forced_generates_nothing(self) -> Self:
        unused = [name for name in _GENERATION if name in self.model_fields_set]
        if self.forced and unused:
            raise ValueError(f"`forced` generates nothing, so it has no {', '.join(unused)}")
        return self


class ExactMatch(FromData):
    """Share of items answered exactly. Outcome: 1 or 0."""

    Options = ExactMatchOptions
    metric = Metric("exact_match", "maximize")

    def __init__(self, options: ExactMatchOptions) -> None:
        self._options = options
        columns = [Column(options.prompt, text), Column(options.answer, self._answer, False)]
        super().__init__(options, columns)

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        """1 where the model writes the answer, 0 elsewhere."""
        rows = self.rows(split, items)
        if self._options.forced:
            found = model.log_likelihoods(rows)
            # A likelihood that is not finite is no wrong answer but a broken model.
            hits = [float(f.greedy) if np.isfinite(f.nats) else np.nan for f in found]
            return np.array(hits, dtype=np.float32)
        options = self._options
        prompts = [prompt for prompt, _ in rows]
        written = model.generate(prompts, options.max_new_tokens, options.stop)
        same = [self._extract(w) == a for w, (_, a) in zip(written, rows, strict=True)]
        return np.array(same, dtype=np.float32)

    def summary(self, outcomes: Outcomes) -> tuple[float, float]:
        """Share of exact answers and its standard error."""
        return proportion(outcomes)

    def _answer(self, value: object) -> str:
        """Read the expected text as it is compared: whole if forced, else as extracted."""
        answer = text(value)
        expected = answer if self._options.forced else self._extract(answer)
        if not expected:
            raise ValueError(f"a text that matches {self._options.extract or 'any character'}")
        return expected

    def _extract(self, written: str) -> str | None:
        if self._options.extract is None:
            return written.strip()
        found = list(re.finditer(self._options.extract, written))
        return (found[-1][1] if found[-1].re.groups else found[-1][0]).strip() if found else None
