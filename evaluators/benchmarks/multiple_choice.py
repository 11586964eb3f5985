"""`multiple_choice`: how often the right choice is the most probable after the question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from evaluators.benchmarks.benchmark import Metric, Outcomes, Positions, Split
from evaluators.benchmarks.data import Column, DataOptions, Row, index, text, texts
from evaluators.benchmarks.from_data import FromData
from evaluators.benchmarks.statistics import proportion

if TYPE_CHECKING:
    from evaluators.models import LiveModel


class MultipleChoiceOptions(DataOptions):
    """Options of `multiple_choice`.

    Attributes:
        question: field that the model reads first.
        choices: field with the list of choices.
        answer: field with the index of the right choice, from 0.
        separator: put between question and choice.
        normalize: compare log-likelihoods as they are, or divided by the choice's length in
            characters, so that long choices are not at a disadvantage.
    """

    question: str = "question"
    choices: str = "choices"
    answer: str = "answer"
    separator: str = " "
    normalize: Literal["none", "length"] = "none"


class MultipleChoice(FromData):
    """Share of items whose right choice is the most probable. Outcome: 1 or 0."""

    Options = MultipleChoiceOptions
    metric = Metric("accuracy", "maximize")

    def __init__(self, options: MultipleChoiceOptions) -> None:
        self._options = options
        columns = [
            Column(options.question, text),
            Column(options.choices, texts),
            Column(options.answer, index, read_by_model=False),
        ]
        super().__init__(options, columns, _answer_is_a_choice)

    def outcomes(self, model: LiveModel, split: Split, items: Positions) -> Outcomes:
        """1 where the right choice is the most probable, 0 elsewhere; of equals the first."""
        rows = self.rows(split, items)
        separator = self._options.separator
        pairs = [
            (question, separator + choice) for question, choices, _ in rows for choice in choices
        ]
        found = iter(model.log_likelihoods(pairs))
        scored = []
        for _, choices, answer in rows:
            nats = np.array([next(found).nats for _ in choices])
            if self._options.normalize == "length":
                nats = nats / [len(choice) for choice in choices]
            scored.append(float(nats.argmax() == answer) if np.isfinite(nats).all() else np.nan)
        return np.array(scored, dtype=np.float32)

    def summary(self, outcomes: Outcomes) -> tuple[float, float]:
        """Accuracy and its standard error."""
        return proportion(outcomes)


def _answer_is_a_choice(row: Row) -> None:
    _, choices, answer = row
    if answer >= len(choices):
        raise ValueError(f"answer: found {answer}, expected 0 to {len(choices) - 1}")
