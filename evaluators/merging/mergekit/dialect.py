"""Facts about mergekit 0.1.5: its operators, what each takes, and what it makes of `base_model`.

Operators and parameters of ours that are not listed here are unknown to mergekit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BaseRole = Literal["origin", "optional", "input", "endpoint"]


@dataclass(frozen=True)
class Operator:
    """What mergekit says of an operator.

    Attributes:
        base: what `base_model` is. "origin": the model that task vectors are taken from, required.
            "optional": the same, but without one the operator works on the models themselves.
            "input": one of the models to merge, if given. "endpoint": the model at t = 0, required.
        required: parameters that have no default.
        optional: parameters that have one.
    """

    base: BaseRole
    required: frozenset[str]
    optional: frozenset[str]

    @property
    def parameters(self) -> frozenset[str]:
        """Everything that it takes."""
        return self.required | self.optional


IGNORED = frozenset({"int8_mask"})
"""Parameters that change memory and speed of mergekit, never the result."""


def _operator(base: BaseRole, required: str = "", optional: str = "") -> Operator:
    return Operator(base, frozenset(required.split()), frozenset(optional.split()))


_DELTAS = "int8_mask normalize rescale lambda density"

OPERATORS: dict[str, Operator] = {
    "linear": _operator("input", "weight", "normalize"),
    "slerp": _operator("endpoint", "t"),
    "nuslerp": _operator("optional", "weight", "nuslerp_row_wise nuslerp_flatten"),
    "multislerp": _operator("optional", "weight", "normalize_weights eps"),
    "karcher": _operator("input", "", "max_iter tol"),
    "passthrough": _operator("input", "", "scale"),
    "model_stock": _operator("origin", "", "filter_wise"),
    "sce": _operator("origin", "", "int8_mask select_topk"),
    "ram": _operator("origin", "", "epsilon"),
    "ramplus_tl": _operator("origin", "", "r alpha epsilon"),
    "nearswap": _operator("origin", "t"),
    "arcee_fusion": _operator("origin"),
    "task_arithmetic": _operator("origin", "weight", _DELTAS),
    "ties": _operator("origin", "weight", _DELTAS),
    "dare_linear": _operator("origin", "weight", _DELTAS),
    "dare_ties": _operator("origin", "weight", _DELTAS),
    "breadcrumbs": _operator("origin", "weight", f"{_DELTAS} gamma"),
    "breadcrumbs_ties": _operator("origin", "weight", f"{_DELTAS} gamma"),
    "della": _operator("origin", "weight", f"{_DELTAS} epsilon"),
    "della_linear": _operator("origin", "weight", f"{_DELTAS} epsilon"),
}

OURS = _operator("origin")
"""How an operator that mergekit lacks is written in its grammar."""


def operator(method: str) -> Operator:
    """Look up an operator; one that mergekit lacks has a base and no required parameter."""
    return OPERATORS.get(method, OURS)


def is_known(method: str) -> bool:
    """Whether mergekit has an operator of ours."""
    return method in OPERATORS
