"""The table of merge operators: which parameters each has, their domains and search ranges.

Nothing heavy is imported here: the configuration reads this table before torch is needed. The
formulas themselves are in `evaluators.merging.formulas`. Names and defaults are mergekit's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scope = Literal["expert", "merge"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of an operator.

    Attributes:
        scope: "expert" if each expert has its own value, "merge" if the operator has one.
        default: used when the user says nothing and nothing is searched.
        domain: allowed closed interval of a number.
        search: interval that a campaign searches when the user gives none; None = fixed at default.
        choices: allowed values of a parameter that is no number.
    """

    name: str
    scope: Scope
    default: float | bool | str
    domain: tuple[float, float] | None = None
    search: tuple[float, float] | None = None
    choices: tuple[bool | str, ...] | None = None


Trim = Literal["magnitude", "random", "ranked"]


@dataclass(frozen=True)
class Method:
    """One merge operator. Dotted paths are opened with `pkgutil.resolve_name`.

    Attributes:
        formula: path of an `evaluators.merging.formulas.Formula`.
        trim: which entries of a task vector its `density` keeps: the largest ("magnitude", of
            which `gamma` drops the very largest), random ones, or random ones of which larger ones
            are likelier ("ranked", by `epsilon`).
        mix: path of an `evaluators.merging.spherical.Mixer`, where the coefficients of a linear
            combination follow from the angles between the tensors.
        whole: the formula takes whole tensors in their own shape, not blocks.
        most: how many experts it takes at most; None = any number.
        fewest: how many it takes at least.
    """

    formula: str
    parameters: tuple[Parameter, ...]
    trim: Trim | None = None
    mix: str | None = None
    whole: bool = False
    fewest: int = 1
    most: int | None = None

    @property
    def counts(self) -> str:
        """How many experts it takes, in words."""
        if self.most is None:
            return f"{self.fewest} or more"
        return " or ".join(map(str, range(self.fewest, self.most + 1)))

    def takes(self, experts: int) -> bool:
        """Whether it merges so many experts."""
        return self.fewest <= experts <= (self.most or experts)

    def parameter(self, name: str) -> Parameter | None:
        """Look up the parameter of that name, if the operator has it."""
        return next((p for p in self.parameters if p.name == name), None)


_INF = float("inf")
_WEIGHT = Parameter("weight", "expert", 1.0, domain=(-_INF, _INF), search=(0.0, 1.5))
_DENSITY = Parameter("density", "expert", 1.0, domain=(0.0, 1.0), search=(0.1, 1.0))
_LAMBDA = Parameter("lambda", "merge", 1.0, domain=(-_INF, _INF))
_GAMMA = Parameter("gamma", "expert", 0.01, domain=(0.0, 1.0))
_EPSILON = Parameter("epsilon", "expert", 0.15, domain=(0.0, 1.0))


def _normalize(default: bool) -> Parameter:
    return Parameter("normalize", "merge", default, choices=(True, False))


def _trimmed(
    trim: Trim, formula: str, *more: Parameter, normalize: bool = False, rescale: str = "l1"
) -> Method:
    """Make an operator that trims task vectors, then adds them up or lets them elect signs."""
    kinds = Parameter("rescale", "merge", rescale, choices=("l1", "inverse_density", "none"))
    parameters = (_WEIGHT, _DENSITY, *more, _LAMBDA, _normalize(normalize), kinds)
    return Method(_FORMULAS + formula, parameters, trim)


_FORMULAS = "evaluators.merging.formulas:"

METHODS: dict[str, Method] = {
    "linear": Method(_FORMULAS + "linear", (_WEIGHT, _normalize(True))),
    "task_arithmetic": Method(_FORMULAS + "task_arithmetic", (_WEIGHT, _LAMBDA, _normalize(False))),
    "ties": _trimmed("magnitude", "ties", normalize=True, rescale="none"),
    "dare_linear": _trimmed("random", "task_arithmetic"),
    "dare_ties": _trimmed("random", "ties"),
    "breadcrumbs": _trimmed("magnitude", "task_arithmetic", _GAMMA, rescale="none"),
    "breadcrumbs_ties": _trimmed("magnitude", "ties", _GAMMA, rescale="none"),
    "della": _trimmed("ranked", "ties", _EPSILON, normalize=True),
    "della_linear": _trimmed("ranked", "task_arithmetic", _EPSILON),
    "slerp": Method(
        _FORMULAS + "combination",
        (Parameter("t", "merge", 0.5, domain=(0.0, 1.0), search=(0.0, 1.0)),),
        mix="evaluators.merging.spherical:slerp",
        most=2,
    ),
}
