"""Scores on held-out items: who gets them, how they are measured once, and how they are read back.

The search never sees these items, so the scores of the chosen models are free of the optimism of
having been chosen. The base and the experts are scored with them, as merges of the same code: task
arithmetic with every weight 0, or one weight 1, at the campaign's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evaluators.benchmarks.benchmark import Split
from evaluators.recipe import MergeRecipe
from evaluators.worker import RETRIED, EvaluationJob, EvaluationResult
from mmmo.errors import Fault, Problems
from mmmo.history import History
from mmmo.records import Measurement, stored_score
from mmmo.workers import open_workers

HELD_OUT: Split = "held_out"
"""The split, and the kind of the events that keep its scores."""

Z_95 = 1.959963984540054
"""A standard normal lies within ± this with a probability of 95 %."""


@dataclass(frozen=True)
class HeldOut:
    """What the held-out items say of one model: scores per benchmark, or why there are none."""

    scores: Mapping[str, Measurement] = field(default_factory=dict)
    failure: Mapping[str, str] | None = None

    def document(self) -> dict[str, Any]:
        """For people and programs, with 95 % intervals."""
        if self.failure is not None:
            return {"failure": {k: self.failure[k] for k in ("kind", "message")}}
        return {"scores": {name: measurement_document(m) for name, m in self.scores.items()}}


def references(history: History) -> dict[str, MergeRecipe]:
    """Say the sources as recipes of their own, by name; the first is the base."""
    base, experts = history.config.sources.refs()

    def alone(chosen: str | None) -> MergeRecipe:
        return MergeRecipe(
            method="task_arithmetic",
            base=base,
            experts=experts,
            parameters={name: {"weight": float(name == chosen)} for name in experts},
            dtype=history.config.merge.dtype,
        )

    return {"base": alone(None)} | {f"expert {name}": alone(name) for name in experts}


def held_out_scores(history: History) -> dict[str, HeldOut]:
    """Read what is known, by the recipe's key; the last word counts."""
    found = {}
    for event in history.store.events(history.name):
        if event.kind == HELD_OUT:
            scores = event.payload["scores"].items()
            found[str(event.payload["key"])] = HeldOut(
                {name: Measurement(**score) for name, score in scores}, event.payload["failure"]
            )
    return found


def score_held_out(
    history: History, models: Mapping[str, MergeRecipe], digests: Mapping[str, str], logs: Path
) -> Iterator[str]:
    """Score the models that have no held-out scores yet and record them one by one.

    Args:
        history: the campaign.
        models: name → recipe.
        digests: recipe key → digest of the weights that the search scored, where it did.
        logs: folder for the workers' output.

    Yields:
        A line per scored model.

    Raises:
        AlreadyRunning: another process writes this campaign.
        Problems: the held-out items are no longer what they were.
        Fault: a worker merged other weights than the search scored.
    """
    known = held_out_scores(history)
    waiting = {
        recipe.key: (name, recipe)
        for name, recipe in models.items()
        if recipe.key not in known or known[recipe.key].failure is not None
    }
    if not waiting:
        return
    _refuse_changed_items(history)
    with history.store.acquire(history.name) as lease:
        for done, (key, result) in enumerate(_evaluate(history, waiting, logs), start=1):
            name = waiting[key][0]
            if result.failure is None and digests.get(key, result.digest) != result.digest:
                raise Fault(f"{name}: the merged weights are not those that the search scored")
            history.store.append(lease, None, HELD_OUT, _payload(key, name, result))
            outcome = f"failed: {result.failure.message}" if result.failure else "scored"
            yield f"held-out items: {name} {outcome} ({done} of {len(waiting)})"


def trial_timeout_s(history: History) -> float:
    """Seconds for one model: the search's limit, and longer as there are more items than in it."""
    more = [n[HELD_OUT] / n["search"] for n in history.facts.items.values()]
    return history.config.pool.trial_timeout_s * max([1.0, *more])


def interval(measured: Measurement) -> tuple[float, float]:
    """95 % interval: Wilson's where every outcome is 0 or 1, else value ± 1.96 standard errors."""
    from evaluators.benchmarks.statistics import unpack, wilson_interval

    outcomes = unpack(measured.outcomes) if measured.outcomes else None
    if outcomes is not None and ((outcomes == 0) | (outcomes == 1)).all():
        successes = int(outcomes.sum())
        if math.isclose(successes / len(outcomes), measured.value):
            return wilson_interval(successes, len(outcomes))
    return measured.value - Z_95 * measured.se, measured.value + Z_95 * measured.se


def measurement_document(measured: Measurement) -> dict[str, Any]:
    """Give a score with its interval."""
    low, high = interval(measured)
    return {
        "value": measured.value,
        "se": measured.se,
        "n": measured.n,
        "interval_95": [low, high],
    }


def _evaluate(
    history: History, waiting: Mapping[str, tuple[str, MergeRecipe]], logs: Path
) -> Iterator[tuple[str, EvaluationResult]]:
    """Answer each key once, as soon as its result is there; what may pass is tried again."""
    pool, keys = history.config.pool, list(waiting)
    items = {name: slice(0, n[HELD_OUT]) for name, n in history.facts.items.items()}
    left = dict.fromkeys(keys, pool.retries)
    count, limit_s = min(pool.workers, len(keys)), trial_timeout_s(history)
    with open_workers(history.config, history.facts, count, limit_s, logs) as opened:
        jobs = [EvaluationJob(i, waiting[k][1], items, split=HELD_OUT) for i, k in enumerate(keys)]
        for job in jobs:
            opened.submit(job)
        open_jobs = len(jobs)
        while open_jobs:
            for result in opened.collect(None):
                key = keys[result.trial]
                if result.failure and RETRIED[result.failure.kind] and left[key] > 0:
                    left[key] -= 1
                    opened.submit(jobs[result.trial])
                    continue
                open_jobs -= 1
                yield key, result


def _payload(key: str, name: str, result: EvaluationResult) -> dict[str, Any]:
    return {
        "key": key,
        "model": name,
        "scores": {n: stored_score(score) for n, score in result.scores.items()},
        "failure": asdict(result.failure) if result.failure else None,
    }


def _refuse_changed_items(history: History) -> None:
    from evaluators.benchmarks.rows import DataError
    from evaluators.benchmarks.table import open_benchmark

    problems = []
    for name, config in history.config.benchmarks.items():
        spec = config.spec()
        try:
            now = open_benchmark(spec.kind, spec.options).fingerprint(HELD_OUT)
        except DataError as error:
            problems.append(f"benchmarks.{name}: {error}")
            continue
        if now != history.facts.fingerprints[name][HELD_OUT]:
            problems.append(f"benchmarks.{name}: the items changed since the campaign began")
    if problems:
        raise Problems(problems, "put them back; what was exported stays as it is")
