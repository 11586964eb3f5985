"""Spherical merges from Gram matrices: hand-computed answers, and the vectors' own arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import operate
from torch import Tensor

from evaluators.merging.spherical import arc, gram, of_models

X, Y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
ORIGIN = torch.zeros(2)


def test_slerp_by_hand() -> None:
    # A quarter turn between vectors of lengths 1 and 3, a third of the way: 30 degrees.
    merged = operate("slerp", X, [3 * Y], t=1 / 3)
    torch.testing.assert_close(merged, torch.tensor([cos(pi / 6), 3 * sin(pi / 6)]))


@pytest.mark.parametrize("value", [1.0, 0.9996, -0.9996, -1.0])
def test_nearly_collinear_vectors_are_mixed_linearly(value: float) -> None:
    mix = arc(torch.tensor(value), torch.tensor(0.25), 0.9995)
    torch.testing.assert_close(mix, torch.tensor([0.75, 0.25]))


def test_a_zero_vector_is_interpolated_as_at_a_right_angle() -> None:
    merged = operate("slerp", torch.zeros(3), [torch.ones(3)], t=0.5)
    torch.testing.assert_close(merged, torch.full((3,), 0.5**0.5))


def test_products_of_models_follow_from_those_of_task_vectors() -> None:
    base, models = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).split([1, 2])
    everything = torch.cat([base, models]).double()
    products = of_models(gram(base[0], models.unbind()))
    torch.testing.assert_close(products, everything @ everything.T, rtol=1e-6, atol=1e-6)


def test_nuslerp_by_hand() -> None:
    # Weights 1 and 2: two thirds of a quarter turn, from length 1 to length 3.
    expected = torch.tensor([cos(pi / 3), 3 * sin(pi / 3)])
    merged = operate("nuslerp", ORIGIN, [X, 3 * Y], weight=[1.0, 2.0])
    torch.testing.assert_close(merged, expected)
    moved = operate("nuslerp", 5 * Y, [X + 5 * Y, 8 * Y], weight=[1.0, 2.0])
    torch.testing.assert_close(moved, expected + 5 * Y)
    models = operate("nuslerp", 5 * Y, [X, 3 * Y], weight=[1.0, 2.0], task_vectors=False)
    torch.testing.assert_close(models, expected)


def test_nuslerp_goes_half_way_without_weights_and_straight_between_antipodes() -> None:
    half = operate("nuslerp", ORIGIN, [X, Y], weight=[0.0, 0.0])
    torch.testing.assert_close(half, torch.full((2,), 0.5**0.5))
    straight = operate("nuslerp", ORIGIN, [X, -3 * X], weight=[1.0, 1.0])
    torch.testing.assert_close(straight, -X)


def test_multislerp_by_hand() -> None:
    # Lengths 1 and 3 at equal weights: the bisector, at length 2.
    merged = operate("multislerp", ORIGIN, [X, 3 * Y])
    torch.testing.assert_close(merged, 2 * torch.full((2,), 0.5**0.5))
    longer = operate("multislerp", ORIGIN, [X, 3 * Y], normalize_weights=False)
    torch.testing.assert_close(longer, 4 * torch.full((2,), 0.5**0.5))


@pytest.mark.parametrize("task_vectors", [True, False])
def test_multislerp_at_its_edges(task_vectors: bool) -> None:
    start = 2 * Y
    shift = start if task_vectors else ORIGIN

    def merge(vectors: Sequence[Tensor], weight: list[float], normalize: bool = True) -> Tensor:
        models = [v + shift for v in vectors]
        switches = {"normalize_weights": normalize, "task_vectors": task_vectors}
        return operate("multislerp", start, models, weight=weight, **switches) - shift

    assert torch.equal(merge([X, Y], [0.0, 0.0]) + shift, start)
    assert not torch.isfinite(merge([X, Y], [1.0, -1.0])).any()
    torch.testing.assert_close(merge([X, -3 * X], [1.0, 1.0]), -X)  # antipodes: a plain mean
    torch.testing.assert_close(merge([X, -X, ORIGIN], [2.0, 2.0, 5.0]), ORIGIN)
    for normalize in (True, False):
        torch.testing.assert_close(merge([X], [0.3], normalize), X)  # alone: itself


def test_a_task_vector_that_is_short_or_zero_costs_no_precision() -> None:
    # Its direction counts as much as the others', so its coefficient is large.
    base, unit = torch.full((4,), 3.0), torch.eye(4)
    models = [base + unit[0], base + 2**-12 * unit[1], base]
    merged = operate("multislerp", base, models) - base
    expected = (1 + 2**-12) / 3 * (unit[0] + unit[1]) / 2**0.5
    torch.testing.assert_close(merged, expected, rtol=0, atol=3e-5)  # eps / 2^-12 = 4e-5


def test_karcher_by_hand() -> None:
    # Directions at 0, 90 and 30 degrees: the mean angle is 40, the mean length (1 + 3 + 2) / 3.
    slanted = 2 * torch.tensor([cos(pi / 6), sin(pi / 6)])
    merged = operate("karcher", 7 * Y, [X, 3 * Y, slanted])
    expected = 2 * torch.tensor([cos(2 * pi / 9), sin(2 * pi / 9)])
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


def test_karcher_at_its_edges() -> None:
    torch.testing.assert_close(operate("karcher", Y, [X]), X)
    torch.testing.assert_close(operate("karcher", Y, [X, -3 * X]), 2 * X)  # antipodes: the first
    zeros = [ORIGIN, 2 * Y]  # zeros count for the length only
    torch.testing.assert_close(operate("karcher", X, zeros), Y)
    tiny = [1e-7 * X, 3e-7 * X]  # no directions: the plain mean
    torch.testing.assert_close(operate("karcher", ORIGIN, tiny), 2e-7 * X, rtol=1e-6, atol=0)
    start = operate("karcher", X, [X, Y], max_iter=0.0)
    torch.testing.assert_close(start, torch.full((2,), 0.5**0.5))


def test_model_stock_by_hand() -> None:
    # Two task vectors at 60 degrees: c = 1/2 and t = 2 c / (1 + c) = 2/3.
    a, b = 2 * X, torch.tensor([cos(pi / 3), sin(pi / 3)])
    merged = operate("model_stock", Y, [Y + a, Y + b])
    torch.testing.assert_close(merged, Y + (a + b) / 3)


def test_model_stock_stays_where_task_vectors_oppose_each_other_or_are_zero() -> None:
    assert torch.equal(operate("model_stock", Y, [Y, Y, Y]), Y)
    torch.testing.assert_close(operate("model_stock", Y, [Y + X, Y - X]), Y)
    torch.testing.assert_close(operate("model_stock", Y, [Y + X, Y + Y]), Y)  # right angle: t = 0


def nuslerp(vectors: Tensor, weights: Tensor) -> Tensor:
    a, b = vectors
    angle = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    t = weights[1] / weights.sum()
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def multislerp(vectors: Tensor, weights: Tensor) -> Tensor:
    """As published: project the unit vectors onto the tangent space at their mean, average, go."""
    lengths, weights = vectors.norm(dim=1), weights / weights.sum()
    units = vectors / lengths[:, None]
    mean = weights @ units
    mean = mean / mean.norm()
    tangent = weights @ (units - (units @ mean)[:, None] * mean)
    way = tangent.norm() + 1e-30
    return (weights @ lengths) * (mean * torch.cos(way) + tangent * (torch.sin(way) / way))


def karcher(vectors: Tensor, _: Tensor) -> Tensor:
    lengths = vectors.norm(dim=1)
    units = vectors / lengths[:, None]
    mean = units.mean(0) / units.mean(0).norm()
    for _step in range(10):
        angles = torch.acos((units @ mean).clamp(-1, 1))
        pull = torch.zeros_like(mean)
        for unit, angle in zip(units, angles, strict=True):
            if angle >= 1e-5:
                pull += angle / torch.sin(angle) * (unit - (unit @ mean) * mean) / len(units)
        if pull.norm() < 1e-5:
            break
        mean = torch.cos(pull.norm()) * mean + torch.sin(pull.norm()) * pull / pull.norm()
        mean = mean / mean.norm()
    return lengths.mean() * mean


def slerp(vectors: Tensor, weights: Tensor) -> Tensor:
    return nuslerp(vectors, torch.stack([1 - weights[1], weights[1]]))


DIRECT = {"slerp": slerp, "nuslerp": nuslerp, "multislerp": multislerp, "karcher": karcher}


@pytest.mark.parametrize("method", DIRECT)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), K=st.integers(2, 5), n=st.integers(4, 40))
def test_products_say_as_much_as_the_vectors(method: str, seed: int, K: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    K = 2 if method in ("slerp", "nuslerp") else K
    # Exact in float32, so that the Gram matrix knows the vectors to float64's precision.
    vectors = torch.randint(-999, 1000, (K, n), generator=generator).double() / 1024
    vectors += torch.randint(1, 999, (n,), generator=generator).double() / 1024
    weights = 0.1 + 0.8 * torch.rand(K, generator=generator, dtype=torch.double)
    given_: dict[str, float | list[float]] = {"weight": weights.tolist()}
    if method == "multislerp":
        given_["eps"] = 0.0
    if method == "slerp":
        given_ = {"t": float(weights[1])}
    ours = operate(method, torch.zeros(n).double(), list(vectors), **given_)
    torch.testing.assert_close(ours, DIRECT[method](vectors, weights), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["multislerp", "karcher", "model_stock"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_models_does_not_matter(method: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = 1 + torch.randn(4, 9, generator=generator, dtype=torch.double)
    turn = torch.randperm(4, generator=generator)
    weights = torch.rand(4, generator=generator) + 0.1
    one = operate(method, vectors[0] * 0, list(vectors), weight=weights.tolist())
    two = operate(method, vectors[0] * 0, list(vectors[turn]), weight=weights[turn].tolist())
    torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)
