"""Peaks that are known; random numbers and threads that stay inside."""

from __future__ import annotations

import pytest
import torch
from tensors import rows
from torch import Tensor

from acquisition.maximise import maximise
from acquisition.reproducible import reproducible


class TestReproducible:
    def test_random_numbers_are_seeded_inside_and_untouched_outside(self) -> None:
        before = torch.get_rng_state()
        with reproducible(3):
            first = torch.rand(2)
        with reproducible(3):
            again = torch.rand(2)
        assert torch.equal(first, again)
        assert torch.equal(torch.get_rng_state(), before)

    def test_one_thread_inside_and_as_before_after_an_error(self) -> None:
        def fail_inside() -> None:
            with reproducible(0):
                assert torch.get_num_threads() == 1
                raise ArithmeticError

        before = torch.get_num_threads()
        with pytest.raises(ArithmeticError):
            fail_inside()
        assert torch.get_num_threads() == before


class TestMaximise:
    bounds = rows([0.0, 0.0], [1.0, 1.0])

    @staticmethod
    def peak(X: Tensor) -> Tensor:
        """One narrow peak of height 5 at (0.9, 0.9) beside a broad one of height 1."""
        narrow = 5 * torch.exp(-((X - 0.9) ** 2).sum(dim=(-1, -2)) / 1e-6)
        return narrow + torch.exp(-((X - 0.3) ** 2).sum(dim=(-1, -2)))

    def test_finds_the_broad_peak_and_sorts(self) -> None:
        with reproducible(0):
            X, values = maximise(self.peak, self.bounds, rows([0.0, 0.0])[:0], lambda X: X)
        assert torch.allclose(X[0], rows([0.3, 0.3])[0], atol=1e-4)
        assert (values.diff() <= 0).all()

    def test_an_extra_start_finds_the_narrow_one(self) -> None:
        with reproducible(0):
            X, _ = maximise(self.peak, self.bounds, rows([0.9, 0.9]), lambda X: X)
        assert torch.allclose(X[0], rows([0.9, 0.9])[0], atol=1e-4)

    def test_stays_in_its_box(self) -> None:
        box = rows([0.5, 0.0], [0.7, 0.2])
        with reproducible(0):
            X, _ = maximise(self.peak, box, rows([0.9, 0.9]), lambda X: X)
        assert torch.allclose(X[0], rows([0.5, 0.2])[0])
        assert ((box[0] <= X) & (box[1] >= X)).all()

    def test_judges_the_snapped_point(self) -> None:
        with reproducible(0):
            X, values = maximise(self.peak, self.bounds, self.bounds[:0], torch.round)
        assert X[0].tolist() == [0.0, 0.0]
        assert float(values[0]) == pytest.approx(float(self.peak(rows([0.0, 0.0]).unsqueeze(0))))

    def test_a_value_that_is_no_number_never_wins(self) -> None:
        hole = rows([0.9, 0.9])

        def broken(X: Tensor) -> Tensor:
            return self.peak(X) + torch.where((hole == X).all(dim=-1), torch.nan, 0.0).squeeze(-1)

        with reproducible(0):
            X, values = maximise(broken, self.bounds, hole, lambda X: X)
        assert torch.isfinite(values).all()
        assert torch.allclose(X[0], rows([0.3, 0.3])[0], atol=1e-4)
