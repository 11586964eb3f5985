"""`nll` and `perplexity`: how improbable a model finds texts, or answers to prompts.

Outcome per item: mean nats per token. `nll` is the mean over items, each item counting the same;
`perplexity` is e to that mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import model_validator

from evaluators.benchmarks.benchmark import Metric, Outcomes, Positions, Split
from evaluators.benchmarks.data import Column, DataOptions, text
from evaluators.benchmarks.from_data import FromData
from evaluators.benchmarks.statistics import exponential, mean

if TYPE_CHECKING:
    from evaluators.models import LiveModel


class LikelihoodOptions(DataOptions):
    """Options of `nll` and `perplexity`.

    Attributes:
        on: score the whole field `text`, or only `answer` given `prompt`, which it follows as it
            stands (begin it with a space where one is due).
        text: field with the whole text.
        prompt: field that is read and not scored.
        answer: field that is scored.
    """

    on: Literal["text", "answer"] = "text"
    text: str = "text"
    prompt: str = "prompt"
    answer: str = "answer"

    @model_validator(mode="after")
    def _no_field_unused(self) -> Self:
        unused = {"prompt", "answer"} if self.on == "text" else {"text"}
        given = sorted(unused & self.model_fields_set)
        if given:
            raise ValueError(f"`on: {self.on}` does not read {', '.join(given)}")
        return self


class NLL(FromData):
    """Mean negative log-likelihood per token, in nats."""

    Options = LikelihoodOptions
    metric = Metric("nll", "minimize")

    def __init__(self, options: LikelihoodOptions) -> None:
        fields = [options.text] if options.on == "text" else [options.prompt, options.answer]
        super().__init__(options, [Column(field, text) for field in fields])

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        """Mean nats per token of each item."""
        pairs = [("", *row) if len(row) == 1 else row for row in self.rows(split, items)]
        found = model.log_likelihoods(pairs)
        return np.array([-f.nats / f.tokens for f in found], dtype=np.float32)

    def summary(self, outcomes: Outcomes) -> tuple[float, float]:
        """Mean over items and its standard error, in nats per token."""
        return mean(outcomes)


class Perplexity(NLL):
    """e to the mean negative log-likelihood per token."""

    metric = Metric("perplexity", "minimize")

    def summary(self, outcomes: Outcomes) -> tuple[float, float]:
        """Perplexity and its standard error by the delta method."""
        return exponential(*mean(outcomes))
