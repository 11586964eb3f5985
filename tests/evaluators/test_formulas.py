"""The merge operators: hand-computed answers, a scalar reference, and the operator contract."""

from __future__ import annotations

from dataclasses import replace
from pkgutil import resolve_name

import pytest
import torch
from contracts.operator_contract import OperatorContract
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import operate

from evaluators.merging import formulas
from evaluators.merging.formulas import Operands
from evaluators.merging.methods import METHODS
from evaluators.merging.sums import absolute_sum, dot


@pytest.mark.parametrize("method", METHODS)
class TestEveryOperator(OperatorContract):
    """All of `METHODS` keep the contract."""


BASE = torch.tensor([1.0, 1.0, 1.0, 1.0])
DELTAS = torch.tensor([[4.0, -2.0, 1.0, 0.0], [2.0, 6.0, -1.0, 0.5]])


def operands(weights: tuple[float, ...] = (1.0, 0.5), *, normalize: bool = False) -> Operands:
    one = [torch.ones(1)] * len(weights)
    return Operands(
        base=BASE,
        models=(BASE + DELTAS).unbind(),
        experts={"weight": torch.tensor(weights)[:, None].unbind()},
        keep=one,
        rescale=one,
        merge={"lambda": torch.ones(1)},
        options={"normalize": normalize},
    )


def test_linear_by_hand() -> None:
    # models: 5 -1 2 1 and 3 7 0 1.5; sums with weights 1 and 1/2
    torch.testing.assert_close(formulas.linear(operands()), torch.tensor([6.5, 2.5, 2.0, 1.75]))
    average = torch.tensor([6.5, 2.5, 2.0, 1.75]) / 1.5
    torch.testing.assert_close(formulas.linear(operands(normalize=True)), average)


def test_linear_without_weights_is_the_base_and_cancelling_weights_have_no_average() -> None:
    assert torch.equal(formulas.linear(operands((0.0, 0.0), normalize=True)), BASE)
    assert not torch.isfinite(formulas.linear(operands((1.0, -1.0), normalize=True))).any()


def test_task_arithmetic_by_hand() -> None:
    x = replace(operands(), merge={"lambda": torch.tensor([2.0])})
    # weighted sums: 5 1 .5 .25, doubled, on a base of 1
    torch.testing.assert_close(formulas.task_arithmetic(x), torch.tensor([11.0, 3.0, 2.0, 1.5]))
    normalized = formulas.task_arithmetic(replace(x, options={"normalize": True}))
    torch.testing.assert_close(normalized, 1 + torch.tensor([10.0, 2.0, 1.0, 0.5]) / 1.5)


def test_task_arithmetic_does_not_divide_by_cancelling_weights() -> None:
    x = operands((1.0, -1.0), normalize=True)
    torch.testing.assert_close(formulas.task_arithmetic(x), BASE + DELTAS[0] - DELTAS[1])


def test_ties_by_hand() -> None:
    # weighted: (4, -2, 1, 0) and (1, 3, -.5, .25); elected signs + + + +
    torch.testing.assert_close(formulas.ties(operands()), torch.tensor([6.0, 4.0, 2.0, 1.25]))
    # divided by the weights of those that agree: 1.5, .5, 1, .5
    expected = 1 + torch.tensor([5 / 1.5, 3 / 0.5, 1.0, 0.25 / 0.5])
    torch.testing.assert_close(formulas.ties(operands(normalize=True)), expected)


def test_ties_elects_plus_when_the_sum_is_zero() -> None:
    x = replace(operands((1.0, 1.0)), models=(BASE + 2.0, BASE - 2.0))
    torch.testing.assert_close(formulas.ties(x), BASE + 2)


def test_ties_counts_only_survivors() -> None:
    keep = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    x = replace(operands((1.0, 0.5), normalize=True), keep=keep.unbind())
    # survivors weighted: (4, -2, 0, 0) and (0, 3, -.5, 0); nothing survives in the last
    expected = 1 + torch.tensor([4.0, 3 / 0.5, -0.5 / 0.5, 0.0])
    torch.testing.assert_close(formulas.ties(x), expected)


def test_dare_by_hand() -> None:
    keep = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    rescale = torch.tensor([[2.0], [4.0]]).unbind()
    x = replace(operands((1.0, 1.0)), keep=keep.unbind(), rescale=rescale)
    # survivors rescaled: (8, 0, 0, 0) and (0, 24, -4, 0)
    expected = torch.tensor([9.0, 25.0, -3.0, 1.0])
    torch.testing.assert_close(formulas.task_arithmetic(x), expected)
    torch.testing.assert_close(formulas.ties(x), expected)


def test_consensus_by_hand() -> None:
    # Alone against the other times 1/2: |4 -2 1 0| > |2 6 -1 .5| / 2, and the other way round.
    base, models = torch.zeros(4), DELTAS.unbind()
    ones = {"weight": 1.0, "tall_lambda": 0.5}
    # expert 1 claims the first and third entry, expert 2 the second, third and fourth
    both = operate("consensus_ta", base, models, **ones)
    torch.testing.assert_close(both, torch.tensor([0.0, 0.0, 0.0, 0.0]))
    any_one = operate("consensus_ta", base, models, **ones, k=1.0)
    torch.testing.assert_close(any_one, torch.tensor([6.0, 4.0, 0.0, 0.5]))
    # at weights 1 and 2 both claim the first entry and the third: 4 > 4 / 3, 1 > 2 / 3, 2 > 1 / 3
    weighted = operate("consensus_ta", base, models, weight=[1.0, 2.0], tall_lambda=1 / 3)
    torch.testing.assert_close(weighted, torch.tensor([8.0, 0.0, -1.0, 0.0]))


def test_no_more_votes_are_needed_than_there_are_experts() -> None:
    alone = operate("consensus_ta", BASE, [BASE + DELTAS[0]], k=9.0)
    torch.testing.assert_close(alone, BASE + DELTAS[0])


def test_ram_by_hand() -> None:
    # Changes above 0.6: 4 2 averaged, -2 6 averaged, 1 -1 averaged, none
    merged = operate("ram", BASE, (BASE + DELTAS).unbind(), epsilon=0.6)
    torch.testing.assert_close(merged, BASE + torch.tensor([3.0, 2.0, 0.0, 0.0]))
    # above 1: the third is changed by none; above 2: the first and second by one each
    merged = operate("ram", BASE, (BASE + DELTAS).unbind(), epsilon=2.0)
    torch.testing.assert_close(merged, BASE + torch.tensor([4.0, 6.0, 0.0, 0.0]))


def test_nearswap_by_hand() -> None:
    merged = operate("nearswap", BASE, [BASE + DELTAS[0]], t=1.5)
    torch.testing.assert_close(merged, BASE + torch.tensor([1.5, -1.5, 1.0, 0.0]))


def test_passthrough_scales() -> None:
    assert torch.equal(operate("passthrough", BASE, [BASE + DELTAS[0]]), BASE + DELTAS[0])
    assert torch.equal(
        operate("passthrough", BASE, [DELTAS[0]], scale=0.5), torch.tensor([2.0, -1.0, 0.5, 0.0])
    )


def test_batches_broadcast() -> None:
    weights = torch.tensor([[1.0, 0.5], [0.0, 0.0], [-1.0, 2.0]])
    for name in ("linear", "task_arithmetic", "ties"):
        formula = resolve_name(METHODS[name].formula)
        own = {"weight": weights.T.unsqueeze(-1).unbind()}
        batch = formula(replace(operands(), experts=own))
        for row, w in zip(batch, weights, strict=True):
            assert torch.equal(row, formula(operands(tuple(w.tolist()))))


def scalar_ties(deltas: list[list[float]], weights: list[float], *, normalize: bool) -> list[float]:
    """TIES after trimming, one number at a time."""
    result = []
    for column in zip(*deltas, strict=True):
        terms = [(w * d, w) for d, w in zip(column, weights, strict=True)]
        sign = 1 if sum(v for v, _ in terms) >= 0 else -1
        agreeing = [(v, w) for v, w in terms if v * sign > 0]
        total = sum(w for _, w in agreeing) if normalize else 1.0
        result.append(sum(v for v, _ in agreeing) / (total if total != 0 else 1.0))
    return result


quarters = st.integers(-12, 12).map(lambda i: i / 4)  # exact in float32, and often tied or zero


@settings(max_examples=60, deadline=None)
@given(data=st.data(), normalize=st.booleans())
def test_ties_equals_the_scalar_reference(data: st.DataObject, normalize: bool) -> None:
    K, n = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    deltas = data.draw(st.lists(st.lists(quarters, min_size=n, max_size=n), min_size=K, max_size=K))
    weights = data.draw(st.lists(quarters, min_size=K, max_size=K))
    x = replace(
        operands(tuple(weights), normalize=normalize),
        base=torch.zeros(n),
        models=torch.tensor(deltas).unbind(),
    )
    expected = torch.tensor(scalar_ties(deltas, weights, normalize=normalize))
    torch.testing.assert_close(formulas.ties(x), expected, rtol=1e-6, atol=1e-6)


def test_sums_do_not_depend_on_threads() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    found = set()
    for count in (1, 2):
        torch.set_num_threads(count)
        found.add((absolute_sum(x), dot(x, x)))
    torch.set_num_threads(threads)
    assert len(found) == 1
    assert found.pop() == pytest.approx(
        (float(x.abs().double().sum()), float((x.double() ** 2).sum()))
    )
