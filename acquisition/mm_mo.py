"""The MM-MO strategy (arXiv 2407.00487) and plain qLogNEHVI: one search with different settings.

Both begin with anchors and a scrambled Sobol sequence, then fit the surrogate to all observations
and choose points one after the other.

Preset `default` is what measured best (`docs/sample-efficiency.md`): measured noise, exactly known
objectives, noisy expected hypervolume improvement averaged over two surrogates, accuracies through
a logit, the reference point inferred from all observations, weak-to-strong points as additional
starts of the optimiser, no Fisher selection.

Preset `reference` is the released algorithm: one Gaussian process per objective with inferred noise
(the sparsity objective too), qEHVI over the front of posterior means, twice as many candidates as
asked for, each crossed with the five elites of largest sum, and of those the half with the lowest
Fisher information. Repaired where the release cannot work, or cannot be repeated:

- The reference point is standardised like the outcomes; in raw units the acquisition is flat 0.
- log EHVI instead of EHVI: the same maximiser, gradients that do not vanish.
- Outcomes are standardised once; with BoTorch today the release would do it twice.
- All random numbers are seeded; the release's are not.
- Pending points, and earlier candidates of the batch, enter the front by their posterior mean; the
  release ignores the former, and its joint EHVI of 10 candidates needs 2^10 boxes.
- Elites are found among the observations, not by row numbers of a file that a resumed run shifts;
  their sum is over standardised scores, for objectives here may differ in units.
- A candidate that was proposed before is not proposed again.
- Anchors come before the random initial points.
- One objective, and five or more, are searched as `acquisition.hypervolume` says.
- Optimiser and sampler settings are the light ones of `acquisition.maximise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from acquisition.draft import Draft
from acquisition.fisher import FisherRule
from acquisition.hypervolume import Criterion
from acquisition.model_search import (
    Extension,
    ReferenceRule,
    SearchSurrogate,
    Settings,
    extend_by_model,
)
from acquisition.space_filling import fill_initial_design, fill_with_sobol
from acquisition.strategy import Observations, Proposal
from acquisition.surrogates import LinkRule
from acquisition.weak_to_strong import WeakToStrongRule

Preset = Literal["default", "reference"]

PRESETS: Mapping[str, Settings] = {
    "default": Settings(
        initial=None,
        measured_noise=True,
        item_covariance=False,
        exact_known=True,
        criterion="qlognehvi",
        reference_from="observations",
        weak_to_strong="pool",
        fisher="off",
        local_slots=False,
        surrogate="mixed",
        link="logit",
        importance=False,
    ),
    "reference": Settings(
        initial=10,
        measured_noise=False,
        item_covariance=False,
        exact_known=False,
        criterion="qlogehvi",
        reference_from="design",
        weak_to_strong="replace",
        fisher="low",
        local_slots=False,
        surrogate="gp",
        link="off",
        importance=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class MMMO:
    """MM-MO: a preset, and any of its settings changed.

    Attributes:
        preset: `default` or `reference`, see the module.
        initial: this and the rest as in `Settings`; None keeps the preset's value.

    Raises:
        ValueError: an option has a value that is not allowed.
    """

    preset: Preset = "default"
    initial: int | None = None
    measured_noise: bool | None = None
    item_covariance: bool | None = None
    exact_known: bool | None = None
    criterion: Criterion | None = None
    reference_from: ReferenceRule | None = None
    weak_to_strong: WeakToStrongRule | None = None
    fisher: FisherRule | None = None
    local_slots: bool | None = None
    surrogate: SearchSurrogate | None = None
    link: LinkRule | None = None
    importance: bool | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset: found {self.preset!r}, allowed: {', '.join(PRESETS)}")
        _ = self.settings  # a wrong value is reported now, not at the first proposal

    @property
    def settings(self) -> Settings:
        """The preset with the given options in place."""
        options = {f.name: getattr(self, f.name) for f in fields(Settings)}
        given = {name: value for name, value in options.items() if value is not None}
        return replace(PRESETS[self.preset], **given)

    @property
    def uses_item_covariance(self) -> bool:
        """Whether it reads `Observations.Ycov`."""
        return self.settings.measured_noise and self.settings.item_covariance

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """Propose q points; `seed` is the campaign's, at least 0."""
        return _propose(self.settings, observations, q, seed)


@dataclass(frozen=True, kw_only=True)
class QLogNEHVI:
    """BoTorch's advice and nothing else: its default process, its rule for the reference point.

    Attributes:
        initial: trials of the initial design, anchors included; None as in `Settings`.

    Raises:
        ValueError: `initial` is negative.
    """

    initial: int | None = None

    def __post_init__(self) -> None:
        _ = self.settings  # a wrong value is reported now, not at the first proposal

    @property
    def settings(self) -> Settings:
        """Measured noise and exactly known objectives; else what BoTorch would do."""
        return replace(
            PRESETS["default"],
            initial=self.initial,
            reference_from="front",
            weak_to_strong="off",
            surrogate="gp",
            link="off",
        )

    def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
        """Propose q points; `seed` is the campaign's, at least 0."""
        return _propose(self.settings, observations, q, seed)


def _propose(settings: Settings, observations: Observations, q: int, seed: int) -> Proposal:
    """Fill the initial design up to its size, then ask the model, then Sobol for what is open."""
    draft = Draft(observations)
    design = settings.design(observations) - observations.count
    fill_initial_design(draft, observations, min(q, design), seed)
    made = Extension()
    if len(draft) < q:
        made = extend_by_model(draft, q, observations, settings, seed)
    fill_with_sobol(draft, q, seed, made.reason)
    return draft.proposal(made.summary)
