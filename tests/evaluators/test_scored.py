"""Operators that compare the entries of a tensor: hand-computed answers and edges."""

from __future__ import annotations

from math import exp, log, tanh

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import operate

from evaluators.merging.scored import first_largest

BASE = torch.ones(4)
DELTAS = torch.tensor([[4.0, -2.0, 1.0, 0.0], [2.0, 6.0, -1.0, 0.0]])
MODELS = (BASE + DELTAS).unbind()


def test_sce_by_hand() -> None:
    # energies 21/4 and 41/4; signs of the sums: + + + +; the second expert alone agrees in 2
    total = 21 + 41
    a, b = 21 / total, 41 / total
    expected = torch.tensor([(4 * a + 2 * b) / (a + b), 6.0, 1.0, 0.0])
    torch.testing.assert_close(operate("sce", BASE, MODELS), BASE + expected)


def test_sce_selects_where_the_experts_differ_most() -> None:
    # variances 1, 16, 1, 0: of three entries that vary two thirds are two, the first of equals
    merged = operate("sce", BASE, MODELS, select_topk=0.67)
    a, b = 20 / 60, 40 / 60
    torch.testing.assert_close(merged, BASE + torch.tensor([4 * a + 2 * b, 6.0, 0.0, 0.0]))
    assert torch.equal(operate("sce", BASE, MODELS, select_topk=0.0), BASE)
    assert torch.equal(operate("sce", BASE, MODELS[:1], select_topk=0.9), BASE)  # nothing varies


def test_sce_takes_small_task_vectors_as_equal() -> None:
    merged = operate("sce", torch.zeros(2), [torch.tensor([1e-4, 0.0]), torch.tensor([3e-4, 0.0])])
    torch.testing.assert_close(merged, torch.tensor([2e-4, 0.0]))


def test_arcee_fusion_by_hand() -> None:
    # Rows of two: importance is |change| times the divergence of the row.
    base = torch.zeros(4, 2)
    model = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.1], [0.0, log(3.0)]])
    # row 4: softmax (1/4, 3/4) against (1/2, 1/2); rows 1 and 2 do not diverge
    row = 0.25 * log(0.5) + 0.75 * log(1.5)
    # sorted importance: six times 0, then row 3's, then row 4's; all quartiles are 0 but for the
    # entries of index 1, 3 and 5, so the threshold is 0 and everything is taken
    assert row > 0
    torch.testing.assert_close(operate("arcee_fusion", base, [model]), model)
    # With importances 0 .. 7 times a constant the threshold is 3 + 1.5 (5 - 1) = 9: none is taken.
    steep = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7]])
    torch.testing.assert_close(operate("arcee_fusion", 0 * steep, [steep]), 0 * steep)
    # One entry that stands out is.
    outlier = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 100]])
    taken = torch.where(outlier == 100, outlier, 0.0)
    torch.testing.assert_close(operate("arcee_fusion", 0 * outlier, [outlier]), taken)


def test_ramplus_by_hand() -> None:
    # Changed above 1.5: the first and second by both; above 3: 4 by one, 6 by the other.
    both = operate("ramplus_tl", BASE, MODELS, epsilon=1.5)
    torch.testing.assert_close(both, BASE + torch.tensor([3.0, 2.0, 0.0, 0.0]))
    alone = operate("ramplus_tl", BASE, MODELS, epsilon=3.0)
    torch.testing.assert_close(alone, BASE + torch.tensor([4.0, 6.0, 0.0, 0.0]))
    # above 1.9 of (4 -2 0 3) and (2 6 0 0): two shared for one alone, 1 + .1 min(2, .2)
    models = [BASE + torch.tensor([4.0, -2.0, 0.0, 3.0]), MODELS[1]]
    mixed = operate("ramplus_tl", BASE, models, epsilon=1.9)
    torch.testing.assert_close(mixed, BASE + torch.tensor([3.0, 2.0, 0.0, 3 * 1.02]))
    further = operate("ramplus_tl", BASE, models, epsilon=1.9, alpha=5.0)
    torch.testing.assert_close(further, BASE + torch.tensor([3.0, 2.0, 0.0, 3 * 1.2]))


def test_pcb_by_hand() -> None:
    # sums 6 4 0 0; |a| scaled: 1 .5 .25 0 and 1/3 1 1/6 0
    first = [exp(2) * tanh(24), exp(0.5) * tanh(-8), 0.0, 0.0]
    second = [exp(2 / 9) * tanh(12), exp(2) * tanh(24), 0.0, 0.0]
    # half survives: the best two, measured from the best that is dropped (0 in both)
    shares = [first[0] / first[0], 0.0], [second[0] / second[1], 1.0]
    a = (4 * shares[0][0] + 2 * shares[1][0]) / (shares[0][0] + shares[1][0])
    merged = operate("pcb", BASE, MODELS, density=0.5)
    torch.testing.assert_close(merged, BASE + torch.tensor([a, 6.0, 0.0, 0.0]))
    # weights scale the task vectors, not the competition
    weighted = operate("pcb", BASE, MODELS, density=0.5, weight=[1.0, 3.0])
    b = (4 * shares[0][0] + 6 * shares[1][0]) / (shares[0][0] + shares[1][0])
    torch.testing.assert_close(weighted, BASE + torch.tensor([b, 18.0, 0.0, 0.0]))


@pytest.mark.parametrize("method", ["sce", "ramplus_tl", "pcb"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), K=st.integers(1, 4))
def test_nothing_is_added_that_no_expert_wants(method: str, seed: int, K: int) -> None:
    """Each entry moves by a weighted mean of its task vectors (RAM+ adds a tenth of 0.2)."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(3, 5, generator=generator, dtype=torch.double)
    deltas = torch.randn(K, 3, 5, generator=generator, dtype=torch.double).round(decimals=1)
    given_ = {"pcb": {"density": 0.6}, "sce": {"select_topk": 0.6}}.get(method, {})
    moved = operate(method, base, list(base + deltas), **given_) - base
    low, high = deltas.amin(0).clamp(max=0), deltas.amax(0).clamp(min=0)
    slack = 1.02 if method == "ramplus_tl" else 1.0
    assert ((moved >= slack * low - 1e-12) & (moved <= slack * high + 1e-12)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), max_size=12), st.integers(0, 12))
def test_the_first_of_equal_entries_are_the_largest(values: list[int], count: int) -> None:
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    found = first_largest(torch.tensor(values, dtype=torch.float32), count)
    assert found.nonzero().flatten().tolist() == sorted(order)
