"""Reference points and feasibility by hand."""

from __future__ import annotations

import torch
from tensors import rows

from acquisition.fronts import feasible, infer_reference, released_reference


class TestReference:
    def test_nadir_minus_a_tenth_of_the_range(self) -> None:
        # the front is (0, 4), (1, 2), (2, 0); (0.5, 1) is dominated
        Y = rows([0.0, 4.0], [1.0, 2.0], [2.0, 0.0], [0.5, 1.0])
        assert torch.allclose(infer_reference(Y), rows([-0.2, -0.4])[0])

    def test_a_range_of_nothing_counts_as_one_unit(self) -> None:
        assert torch.allclose(infer_reference(rows([3.0, 0.0])), rows([2.9, -0.1])[0])

    def test_the_front_is_that_of_the_feasible_rows(self) -> None:
        Y = rows([0.0, 4.0], [1.0, 2.0], [2.0, 0.0])
        second_at_least_one = (rows([0.0, 1.0]), rows([1.0])[0])
        assert torch.allclose(infer_reference(Y, second_at_least_one), rows([-0.1, 1.8])[0])

    def test_with_nothing_feasible_the_front_is_that_of_all(self) -> None:
        Y = rows([0.0, 4.0], [2.0, 0.0])
        assert torch.allclose(
            infer_reference(Y, (rows([1.0, 0.0]), rows([9.0])[0])), infer_reference(Y)
        )

    def test_released_rule_moves_the_minimum_away_from_zero_gain(self) -> None:
        Y = rows([50.0, -2.0], [60.0, -1.0])
        assert torch.allclose(released_reference(Y), rows([45.0, -2.2])[0])


def test_feasible_includes_equality() -> None:
    constraints = (rows([1.0, 1.0], [1.0, 0.0]), rows([2.0, 0.5])[0])
    Y = rows([1.0, 1.0], [0.4, 3.0], [0.5, 1.4])
    assert feasible(Y, constraints).tolist() == [True, False, False]
    assert feasible(Y, None).tolist() == [True, True, True]
