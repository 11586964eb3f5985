"""Operators on singular vectors: hand-computed answers and the properties that define them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import operate


def test_iso_c_by_hand() -> None:
    # Singular values 3 and 1 of diag(2, 1) + diag(1, -2): both become their mean, 2.
    base = torch.ones(2, 2)
    deltas = torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, -2.0]))
    merged = operate("iso_c", base, [base + d for d in deltas])
    torch.testing.assert_close(merged - base, torch.diag(torch.tensor([2.0, -2.0])))


def test_tsv_m_by_hand() -> None:
    # Each keeps its leading direction of two: 3 along the first axis, 5 along the second.
    base = torch.ones(2, 2)
    deltas = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([2.0, 5.0]))
    merged = operate("tsv_m", base, [base + d for d in deltas], weight=[1.0, 2.0])
    torch.testing.assert_close(merged - base, torch.diag(torch.tensor([3.0, 10.0])))


def test_tsv_m_turns_directions_apart() -> None:
    # Leading directions 60 degrees apart on both sides: the nearest orthogonal pair spreads both
    # by 15 degrees, so that the singular values of the merge are those of the experts, 2 and 1.
    e, angle = torch.eye(2), torch.tensor(torch.pi / 3)
    slanted = torch.stack([torch.cos(angle), torch.sin(angle)])
    deltas = 2 * torch.outer(e[0], e[0]), torch.outer(slanted, slanted)
    merged = operate("tsv_m", torch.zeros(2, 2), deltas)
    apart = torch.tensor(-torch.pi / 12)
    first = torch.stack([torch.cos(apart), torch.sin(apart)])
    second = torch.stack([-first[1], first[0]])
    expected = 2 * torch.outer(first, first) + torch.outer(second, second)
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["tsv_m", "iso_c"])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (0, 3)])
def test_what_is_no_matrix_is_averaged(method: str, shape: tuple[int, ...]) -> None:
    base = torch.full(shape, 2.0)
    merged = operate(method, base, [base + 1, base + 3], weight=[1.0, 0.5], **{"lambda": 2.0})
    torch.testing.assert_close(merged, base + 2.5)


@pytest.mark.parametrize("method", ["tsv_m", "iso_c"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 2, 4)])
def test_thin_matrices_and_more_experts_than_ranks(method: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    base, *models = torch.randn(5, *shape, generator=generator)
    merged = operate(method, base, models)
    assert merged.shape == base.shape
    assert torch.isfinite(merged).all()
    assert torch.equal(operate(method, base, models, weight=0.0), base)
    assert torch.equal(operate(method, base, [base] * 4), base)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), K=st.integers(1, 4))
def test_singular_values_are_as_promised(seed: int, K: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, *models = torch.randn(K + 1, 8, 6, generator=generator, dtype=torch.double)
    deltas = torch.stack(models) - base
    flat = torch.linalg.svdvals(operate("iso_c", base, models) - base)
    mean = torch.linalg.svdvals(deltas.sum(0)).mean()
    torch.testing.assert_close(flat, mean.expand(6), rtol=1e-6, atol=1e-6)
    kept = torch.cat([torch.linalg.svdvals(delta)[: 6 // K] for delta in deltas])
    found = torch.linalg.svdvals(operate("tsv_m", base, models) - base)[: len(kept)]
    torch.testing.assert_close(found, kept.sort(descending=True).values, rtol=1e-6, atol=1e-6)
