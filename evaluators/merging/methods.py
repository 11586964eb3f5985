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
_HALF_WIDTH = Parameter("epsilon", "expert", 0.15, domain=(0.0, 1.0))
_CHANGED = Parameter("epsilon", "merge", 1e-5, domain=(0.0, _INF))

_ON_TIE = Parameter("on_tie", "merge", "first", choices=("first", "all"))
"""Of entries that tie at the threshold: those of lowest index survive, as many as fit, or all."""

_FORMULAS = "evaluators.merging.formulas:"
_SCORED = "evaluators.merging.scored:"
_SPECTRAL = "evaluators.merging.spectral:"


def _number(
    name: str, default: float, high: float = _INF, search: tuple[float, float] | None = None
) -> Parameter:
    """Make a number of the merge that is 0 or more."""
    return Parameter(name, "merge", default, domain=(0.0, high), search=search)


def _switch(name: str, default: bool) -> Parameter:
    return Parameter(name, "merge", default, choices=(True, False))


def _trimmed(
    trim: Trim, formula: str, *more: Parameter, normalize: bool = False, rescale: str = "l1"
) -> Method:
    """Make an operator that trims task vectors, then adds them up or lets them elect signs."""
    kinds = Parameter("rescale", "merge", rescale, choices=("l1", "inverse_density", "none"))
    ties = (_ON_TIE,) if trim == "magnitude" else ()
    parameters = (_WEIGHT, _DENSITY, *more, _LAMBDA, _switch("normalize", normalize), kinds, *ties)
    return Method(_FORMULAS + formula, parameters, trim)


def _mixed(mixer: str, *parameters: Parameter, fewest: int = 1, most: int | None = None) -> Method:
    """Make an operator that combines the tensors linearly, knowing their inner products."""
    mix = "evaluators.merging.spherical:" + mixer
    return Method(_FORMULAS + "combination", parameters, mix=mix, fewest=fewest, most=most)


# mergekit reads "work on task vectors" off whether a base is named; our recipes always name one.
_TASK_VECTORS = _switch("task_vectors", True)

METHODS: dict[str, Method] = {
    "linear": Method(_FORMULAS + "linear", (_WEIGHT, _switch("normalize", True))),
    "task_arithmetic": Method(
        _FORMULAS + "task_arithmetic", (_WEIGHT, _LAMBDA, _switch("normalize", False))
    ),
    "ties": _trimmed("magnitude", "ties", normalize=True, rescale="none"),
    "dare_linear": _trimmed("random", "task_arithmetic"),
    "dare_ties": _trimmed("random", "ties"),
    "breadcrumbs": _trimmed("magnitude", "task_arithmetic", _GAMMA, rescale="none"),
    "breadcrumbs_ties": _trimmed("magnitude", "ties", _GAMMA, rescale="none"),
    "della": _trimmed("ranked", "ties", _HALF_WIDTH, normalize=True),
    "della_linear": _trimmed("ranked", "task_arithmetic", _HALF_WIDTH),
    "consensus_ta": Method(
        _FORMULAS + "consensus_ta",
        (
            _WEIGHT,
            _number("tall_lambda", 0.4, search=(0.2, 0.6)),
            Parameter("k", "merge", 2.0, domain=(1.0, _INF)),
            _LAMBDA,
        ),
    ),
    "ram": Method(_FORMULAS + "ram", (_CHANGED,)),
    "nearswap": Method(_FORMULAS + "nearswap", (_number("t", 1e-4, search=(0.0, 1e-3)),), most=1),
    "passthrough": Method(
        _FORMULAS + "passthrough",
        (Parameter("scale", "expert", 1.0, domain=(-_INF, _INF), search=(0.8, 1.2)),),
        most=1,
    ),
    "slerp": _mixed("slerp", _number("t", 0.5, high=1.0, search=(0.0, 1.0)), most=2),
    "nuslerp": _mixed(
        "nuslerp",
        _WEIGHT,
        _TASK_VECTORS,
        _switch("nuslerp_flatten", True),
        _switch("nuslerp_row_wise", False),
        fewest=2,
        most=2,
    ),
    "multislerp": _mixed(
        "multislerp",
        _WEIGHT,
        _switch("normalize_weights", True),
        _number("eps", 1e-8),
        _TASK_VECTORS,
    ),
    "karcher": _mixed("karcher", _number("max_iter", 10.0, high=1000.0), _number("tol", 1e-5)),
    "model_stock": _mixed("model_stock", _switch("filter_wise", False), fewest=2),
    "sce": Method(
        _SCORED + "sce", (_number("select_topk", 1.0, high=1.0, search=(0.1, 1.0)),), whole=True
    ),
    "arcee_fusion": Method(_SCORED + "arcee_fusion", (), whole=True, most=1),
    "ramplus_tl": Method(
        _SCORED + "ramplus_tl",
        (_number("r", 0.1, search=(0.0, 0.5)), _number("alpha", 0.2), _CHANGED),
        whole=True,
    ),
    "pcb": Method(
        _SCORED + "pcb",
        (
            _WEIGHT,
            Parameter("density", "expert", 0.1, domain=(0.0, 1.0), search=(0.05, 0.3)),
            _LAMBDA,
        ),
        whole=True,
    ),
    "tsv_m": Method(_SPECTRAL + "tsv_m", (_WEIGHT, _LAMBDA), whole=True),
    "iso_c": Method(_SPECTRAL + "iso_c", (_WEIGHT, _LAMBDA), whole=True),
}
