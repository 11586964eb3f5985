"""Front, hypervolume, knee and preference, against answers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluators.recipe import MergeRecipe, ModelRef
from mmmo.config import LARGEST
from mmmo.errors import UserError
from mmmo.pareto import ParetoSet, hypervolume, non_dominated, reference_point
from mmmo.records import Measurement, Objective, Trial

RECIPE = MergeRecipe(
    method="linear",
    base=ModelRef(path="b"),
    experts={"e": ModelRef(path="e")},
    parameters={"e": {"weight": 1.0}},
)
MAXIMIZE = Objective("maths", "sums", None, "accuracy", 1.0)
MINIMIZE = Objective("code", "python", None, "nll", -1.0)


def pareto(values: list[tuple[float, float]], *objectives: Objective) -> ParetoSet:
    trials = tuple(
        Trial(
            number=i,
            key=str(i),
            x=(0.0,),
            recipe=RECIPE,
            diagnostics={},
            state="completed",
            scores={"sums": Measurement(a, 0.1, 10), "python": Measurement(b, 0.1, 10)},
        )
        for i, (a, b) in enumerate(values)
    )
    return ParetoSet(trials, objectives or (MAXIMIZE, MINIMIZE))


@pytest.mark.parametrize(
    ("Y", "expected"),
    [
        ([[1, 2], [2, 1], [0, 0]], [True, True, False]),
        ([[1, 1], [1, 1], [0, 2]], [True, True, True]),  # ties are kept
        ([[1, 1], [1, 0]], [True, False]),  # equal in one, worse in the other
        ([[3, 3]], [True]),
        (np.zeros((0, 2)), []),
    ],
)
def test_non_dominated(Y: list[list[float]], expected: list[bool]) -> None:
    assert non_dominated(np.array(Y, dtype=float)).tolist() == expected


@given(arrays(float, st.tuples(st.integers(1, 8), st.integers(1, 4)), elements=st.integers(0, 3)))
def test_non_dominated_is_what_the_definition_says(Y: np.ndarray) -> None:
    expected = [not any((other >= row).all() and (other > row).any() for other in Y) for row in Y]
    assert non_dominated(Y).tolist() == expected


def test_hypervolume_of_two_boxes() -> None:
    # 2x1 and 1x2 above the origin overlap in 1x1.
    assert hypervolume(np.array([[2.0, 1.0], [1.0, 2.0]]), np.zeros(2)) == pytest.approx(3.0)
    assert hypervolume(np.array([[-1.0, 5.0]]), np.zeros(2)) == 0.0
    assert hypervolume(np.zeros((0, 2)), np.zeros(2)) == 0.0


def test_hypervolume_of_twenty_objectives_is_finite_with_the_largest_references() -> None:
    assert np.isfinite(hypervolume(np.zeros((1, 20)), np.full(20, -LARGEST)))


def test_reference_point_is_a_tenth_below_the_front_or_what_is_given() -> None:
    Y = np.array([[0.0, 10.0], [1.0, 0.0], [-5.0, -5.0]])  # the last is dominated
    assert reference_point(Y, [None, None]).tolist() == pytest.approx([-0.1, -1.0])
    assert reference_point(Y, [0.3, None]).tolist() == pytest.approx([0.3, -1.0])
    flat = np.array([[1.0, 4.0], [2.0, 4.0]])  # one winner: no extent
    assert reference_point(flat, [None, None]).tolist() == pytest.approx([1.8, 3.6])


def test_front_turns_what_is_minimized() -> None:
    view = pareto([(0.9, 3.0), (0.5, 1.0), (0.4, 2.0)])
    assert [t.number for t in view.front] == [0, 1]


def test_trace_ends_in_the_hypervolume_and_never_falls() -> None:
    view = pareto([(0.4, 2.0), (0.9, 3.0), (0.5, 1.0)])
    assert view.trace[-1] == pytest.approx(view.hypervolume())
    assert view.trace == sorted(view.trace)
    assert view.hypervolume([2]) <= view.hypervolume()


def test_knee_is_nearest_to_the_ideal() -> None:
    view = pareto([(1.0, 3.0), (0.8, 1.2), (0.0, 1.0)])
    assert view.knee.number == 1


def test_preference_moves_along_the_front_even_where_it_is_concave() -> None:
    view = pareto([(1.0, 3.0), (0.4, 2.2), (0.0, 1.0)])  # trial 1 lies inside the hull's edge
    assert view.choose({"maths": 1.0}).number == 0
    assert view.choose({"code": 1.0}).number == 2
    assert view.choose({"maths": 0.5, "code": 0.5}).number == 1


@pytest.mark.parametrize("size", [1e308, 1.0, 1e-320])
def test_preference_is_a_matter_of_proportions(size: float) -> None:
    view = pareto([(0.0, 1.0), (1.0, 3.0), (0.4, 1.2)])
    assert view.choose({"maths": size, "code": size}).number == 2
    assert view.choose({"maths": size, "code": size / 10}).number == 1


@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ({"speed": 1.0}, "'speed' is no objective; allowed: maths, code"),
        ({"maths": -1.0}, "a weight is a number of 0 or more"),
        ({"maths": float("nan")}, "a weight is a number of 0 or more"),
        ({"maths": 0.0}, "at least one weight must be above 0"),
    ],
)
def test_bad_preferences_are_refused(preference: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pareto([(1.0, 3.0)]).choose(preference)


def test_nothing_completed_yet() -> None:
    view = pareto([])
    assert view.front == ()
    assert view.hypervolume() == 0.0
    assert view.trace == []
