"""Choosing points with a model: fit, optimise one point after the other, cross, select."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import moocore
import numpy as np
import torch
from torch import Tensor

from acquisition.boxes import MOST_OBJECTIVES
from acquisition.diagnostics import summary
from acquisition.draft import Draft
from acquisition.fisher import FisherRule, fisher_information, select
from acquisition.fronts import feasible, given_or, infer_reference, released_reference
from acquisition.hypervolume import Criterion, Target
from acquisition.maximise import maximise
from acquisition.reproducible import reproducible
from acquisition.space_filling import design_size
from acquisition.strategy import Observations
from acquisition.surrogates import (
    NUMERICAL_ERRORS,
    LinkRule,
    Surrogate,
    SurrogateRule,
    fit_surrogate,
)
from acquisition.weak_to_strong import (
    WeakToStrongRule,
    best_sums,
    directions,
    least_dominated,
    weak_to_strong,
)

ReferenceRule = Literal["front", "observations", "design"]

SearchSurrogate = SurrogateRule | Literal["mixed"]

MIXED: tuple[SurrogateRule, ...] = ("concentrated", "quadratic")
"""With few points neither is right: one knows no shape, the other only one."""

MIXED_UNTIL = (30, 5)
"""Trials, and trials per coordinate, from which on the first predicts better alone."""

ELITES = 5
MUTANTS = 32
OVERGENERATION = 2
LOCAL_HALF_WIDTH = 0.2

_Candidate = tuple[Tensor, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How points are chosen.

    Attributes:
        initial: trials of the initial design, anchors included; None for as many as
            `acquisition.space_filling.design_size` says.
        measured_noise: use the variances of the measurements; else infer one per objective.
        item_covariance: with measured noise, use also the covariances that measurements on the same
            items have, where they are known; not in the acquisition of five objectives and more.
        exact_known: use the functions of known objectives; else model them like the others.
        criterion: `qlognehvi`, or `qlogehvi` over the front of posterior means.
        reference_from: where the reference point comes from unless the caller gives one: the
            present `front`, all `observations`, or the worst of the initial `design` as in the
            released MM-MO.
        weak_to_strong: `off`; `pool`: crossed points, and points beyond the front as seen from any
            other, compete as starts of the optimiser; `replace`: every candidate is crossed with
            five best sums.
        fisher: `off`, or twice as many candidates are made and half are kept: `low` information,
            `high` information, or jointly least known (`logdet`).
        local_slots: every second trial is sought near a random point of the front.
        surrogate: what models a score, see `acquisition.surrogates.fit_surrogate`; `mixed`: the
            two of `MIXED` side by side, what a candidate gains is averaged over them; the first
            alone from `MIXED_UNTIL` trials on, and with five objectives and more.
        link: likewise, for bounded accuracies.
        importance: use the sizes of what coordinates move, where they are known.

    Raises:
        ValueError: a value that is not allowed.
    """

    initial: int | None
    measured_noise: bool
    item_covariance: bool
    exact_known: bool
    criterion: Criterion
    reference_from: ReferenceRule
    weak_to_strong: WeakToStrongRule
    fisher: FisherRule
    local_slots: bool
    surrogate: SearchSurrogate
    link: LinkRule
    importance: bool

    def __post_init__(self) -> None:
        if self.initial is not None and self.initial < 0:
            raise ValueError(f"initial: found {self.initial}, allowed: 0 or more")
        for name, allowed in ALLOWED.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"{name}: found {value!r}, allowed: {', '.join(map(str, allowed))}"
                )

    def design(self, observations: Observations) -> int:
        """How many trials come before the model."""
        return design_size(len(observations.anchors)) if self.initial is None else self.initial


ALLOWED: Mapping[str, tuple[object, ...]] = {
    "measured_noise": (True, False),
    "item_covariance": (True, False),
    "exact_known": (True, False),
    "criterion": get_args(Criterion),
    "reference_from": get_args(ReferenceRule),
    "weak_to_strong": get_args(WeakToStrongRule),
    "fisher": get_args(FisherRule),
    "local_slots": (True, False),
    "surrogate": (*get_args(SurrogateRule), "mixed"),
    "link": get_args(LinkRule),
    "importance": (True, False),
}


@dataclass(frozen=True)
class Extension:
    """How far a draft was extended.

    Attributes:
        reason: why it stayed short, or "".
        summary: what the model believes; empty where there was none.
    """

    reason: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)


def extend_by_model(
    draft: Draft, rows: int, observations: Observations, settings: Settings, seed: int
) -> Extension:
    """Extend the draft towards `rows` rows."""
    if len(observations.X) < 2:
        return Extension("fewer than two scored trials")
    torch_seed, own_seed = _seeds(seed, observations.count)
    try:
        with reproducible(torch_seed):
            search = _ModelSearch(settings, observations, torch.Generator().manual_seed(own_seed))
            search.extend(draft, rows)
            believed = search.summary()
    except NUMERICAL_ERRORS as error:
        return Extension(f"{type(error).__name__}: {error}")
    short = len(draft) < rows
    return Extension("all good points of the model were proposed before" if short else "", believed)


def _seeds(seed: int, count: int) -> tuple[int, int]:
    """Two seeds for the call that proposes trial number `count`, unrelated to other calls'."""
    first, second = np.random.SeedSequence((seed, count)).generate_state(2)
    return int(first), int(second)


class _ModelSearch:
    """The fitted model and the random numbers of one call. Lives within `reproducible`."""

    def __init__(
        self, settings: Settings, observations: Observations, generator: torch.Generator
    ) -> None:
        self._settings = settings
        self._observations = observations
        self._generator = generator
        surrogates = tuple(self._fit(rule) for rule in self._rules())
        self._surrogate = surrogates[0]
        scale = self._surrogate.scale
        self._Z = scale.standardise(observations.Y)
        limits = observations.constraints
        constraints = None if limits is None else scale.constraints(*limits)
        self._target = Target(
            surrogates,
            observations.X,
            self._reference(constraints),
            constraints,
            settings.criterion,
        )
        front = least_dominated(self._Z, feasible(self._Z, constraints), ELITES)
        self._front = observations.X[front]
        self._log_gain: float | None = None

    def extend(self, draft: Draft, rows: int) -> None:
        """Make candidates, cross and select them, and offer them to the draft."""
        wanted = rows - len(draft)
        made = wanted * (1 if self._settings.fisher == "off" else OVERGENERATION)
        candidates = self._candidates(draft, made)
        if not candidates:
            return
        if self._settings.weak_to_strong == "replace":
            candidates = self._crossed(draft, candidates)
        if self._settings.fisher != "off":
            candidates = self._selected(candidates, wanted)
        for x, diagnostics in candidates:
            draft.offer(x, diagnostics)

    def summary(self) -> Mapping[str, Any]:
        """What the model believes, and what it expects of its best candidate."""
        gain = None
        if self._log_gain is not None and len(self._target.reference) <= MOST_OBJECTIVES:
            ok = feasible(self._Z, self._target.constraints)
            reached = moocore.hypervolume(
                self._Z[ok].numpy(), ref=self._target.reference.numpy(), maximise=True
            )
            gain = math.exp(self._log_gain) / reached if reached > 0 else None
        return summary(self._surrogate, self._observations, gain)

    def _rules(self) -> tuple[SurrogateRule, ...]:
        rule = self._settings.surrogate
        if rule != "mixed":
            return (rule,)
        n, d = self._observations.X.shape
        scalarised = self._observations.Y.shape[-1] > MOST_OBJECTIVES  # that asks only the first
        fewest, per_coordinate = MIXED_UNTIL
        return MIXED[:1] if scalarised or n >= max(fewest, per_coordinate * d) else MIXED

    def _fit(self, kind: SurrogateRule) -> Surrogate:
        seen, settings = self._observations, self._settings
        nothing_known = (None,) * seen.Y.shape[-1]
        return fit_surrogate(
            seen.X,
            seen.Y,
            seen.Yvar if settings.measured_noise else None,
            (seen.known or nothing_known) if settings.exact_known else nothing_known,
            Ycov=seen.Ycov if settings.measured_noise and settings.item_covariance else None,
            kind=kind,
            link=settings.link,
            importance=seen.importance if settings.importance else None,
        )

    def _reference(self, constraints: tuple[Tensor, Tensor] | None) -> Tensor:
        seen, scale = self._observations, self._surrogate.scale
        if self._settings.reference_from == "design":
            design = seen.Y[: max(self._settings.design(seen), 1)]
            inferred = scale.standardise(released_reference(design))
        else:
            rows = self._settings.reference_from
            inferred = infer_reference(self._Z, constraints, of_front=rows == "front")
        return given_or(
            None if seen.reference is None else scale.standardise(seen.reference), inferred
        )

    def _candidates(self, draft: Draft, count: int) -> list[_Candidate]:
        """Maximise the acquisition `count` times, each point aware of the ones before it."""
        branch = draft.branch()
        gains = self._target.gains(branch.unanswered)
        for _ in range(count):
            bounds, origin = self._box(branch.position)
            points, values = maximise(gains.gain(), bounds, self._extra_starts(), branch.snap)
            if self._log_gain is None and origin == "acquisition":
                self._log_gain = float(values[0])
            if not any(
                branch.offer(x, {"origin": origin, "acquisition": float(value)})
                for x, value in zip(points, values, strict=True)
            ):
                break
            gains = gains.with_points(branch.rows[-1:])
        made = branch.proposal()
        return list(zip(made.X, made.diagnostics, strict=True))[len(draft) :]

    def _box(self, position: int) -> tuple[Tensor, str]:
        """Where trial number `position` is sought (`2 x d`), and the name of that."""
        d = self._observations.X.shape[-1]
        if not self._settings.local_slots or position % 2 == 0:
            return torch.stack([torch.zeros(d), torch.ones(d)]).double(), "acquisition"
        which = int(torch.randint(len(self._front), (1,), generator=self._generator))
        centre = self._front[which]
        box = torch.stack([centre - LOCAL_HALF_WIDTH, centre + LOCAL_HALF_WIDTH])
        return box.clamp(0.0, 1.0), "local"

    def _extra_starts(self) -> Tensor:
        """Points of the front crossed with each other, and some beyond it, or none: `r x d`."""
        if self._settings.weak_to_strong != "pool":
            return self._front[:0]
        targets = self._front[torch.arange(MUTANTS) % len(self._front)]
        crossed = weak_to_strong(targets, self._front, self._generator)
        everything = self._observations.X
        weak = torch.randint(len(everything), (MUTANTS,), generator=self._generator)
        steps = torch.rand(MUTANTS, generator=self._generator, dtype=torch.float64)
        return torch.cat([crossed, directions(everything[weak], targets, steps)])

    def _crossed(self, draft: Draft, candidates: list[_Candidate]) -> list[_Candidate]:
        """Replace each candidate by its weak-to-strong mutant, unless that was proposed before."""
        measured = [k for k, known in enumerate(self._observations.known) if known is None]
        elites = self._observations.X[best_sums(self._Z[:, measured or slice(None)], ELITES)]
        X = torch.stack([x for x, _ in candidates])
        branch = draft.branch()
        for mutant, (x, diagnostics) in zip(
            weak_to_strong(X, elites, self._generator), candidates, strict=True
        ):
            parent = {"origin": "weak_to_strong", "parent_acquisition": diagnostics["acquisition"]}
            if not branch.offer(mutant, parent):
                branch.offer(x, diagnostics)
        made = branch.proposal()
        return list(zip(made.X, made.diagnostics, strict=True))[len(draft) :]

    def _selected(self, candidates: list[_Candidate], wanted: int) -> list[_Candidate]:
        """Keep the `wanted` candidates of the Fisher rule, with their information."""
        covariance = self._surrogate.covariance(torch.stack([x for x, _ in candidates]))
        information = fisher_information(covariance.diagonal(dim1=-2, dim2=-1).transpose(0, 1))
        kept = select(self._settings.fisher, covariance, min(wanted, len(candidates)))
        return [
            (candidates[i][0], {**candidates[i][1], "information": float(information[i])})
            for i in kept
        ]
