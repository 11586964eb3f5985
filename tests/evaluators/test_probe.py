"""The probe: exact when it sees every coordinate, close when it samples, with right gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoints import in_memory, merged, random_tensors, recipe_of
from contracts.operator_contract import choices
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluators.merging.engine import MergeEngine
from evaluators.merging.methods import METHODS
from evaluators.merging.probe import DeltaProbe, smooth_step
from evaluators.merging.sample import rank_fractions
from evaluators.recipe import WHOLE
from evaluators.sources import Sources

SHAPE: dict[str, Any] = {"layer_groups": 2, "filters": ("attn",)}
SEED = 5


def tiny(method: str) -> Sources:
    base = random_tensors(0)
    count = 2 if METHODS[method].most else 3
    return in_memory(base, **{f"e{k}": random_tensors(k + 1, base) for k in range(count)})


def large(method: str) -> Sources:
    """About 200 000 parameters, with rows of very different movement."""
    generator = torch.Generator().manual_seed(0)
    shapes = {f"layers.{i}.{n}.weight": (128, 256) for i in range(3) for n in ("attn", "mlp")}
    base = {n: 0.1 * torch.randn(s, generator=generator) for n, s in shapes.items()}

    def tuned(seed: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed)
        scale = {n: 0.02 * torch.rand(128, 1, generator=g) ** 2 for n in base}
        return {n: t + scale[n] * torch.randn(t.shape, generator=g) for n, t in base.items()}

    count = 2 if METHODS[method].most else 3
    return in_memory(base, **{f"e{k}": tuned(k + 1) for k in range(count)})


def measured(
    sources: Sources, method: str, values: dict[str, Tensor], options: dict[str, Any]
) -> float:
    """The engine's measure of the same recipe."""
    own = {n: v for n, v in values.items() if v.dim() == 3}
    whole = {n: v.tolist() for n, v in values.items() if v.dim() == 2}
    parameters = {
        expert: {n: v[k].tolist() for n, v in own.items()}
        for k, expert in enumerate(sources.experts)
    }
    recipe = recipe_of(
        sources, method, {**parameters, WHOLE: {**whole, **options}}, seed=SEED, **SHAPE
    )
    live = {n: torch.empty_like(t) for n, t in sources.base.tensors.items()}
    return MergeEngine(sources).merge_into(recipe, live).delta_l1


def random_values(method: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Numbers for every parameter of an operator."""
    values: dict[str, Tensor] = {}
    for p in METHODS[method].parameters:
        if p.choices is None:
            shape = (3, 2, 2) if p.scope == "expert" else (2, 2)
            values[p.name] = 0.1 + 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return values


@pytest.mark.parametrize("method", METHODS)
def test_exact_when_every_coordinate_is_seen(method: str) -> None:
    sources = tiny(method)
    probe = DeltaProbe(sources, **SHAPE, seed=SEED, smoothing=0.0)
    generator = torch.Generator().manual_seed(1)
    for options in choices(method):
        values = random_values(method, generator)
        found = float(probe.delta_l1(method, values, options))
        assert found == pytest.approx(measured(sources, method, values, options), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_close_when_it_samples(method: str) -> None:
    sources = large(method)
    probe = DeltaProbe(sources, **SHAPE, seed=SEED)
    generator = torch.Generator().manual_seed(2)
    for options in choices(method):
        values = random_values(method, generator)
        found = float(probe.delta_l1(method, values, options))
        # A plain sum is moved by what the weights lack to one: no task vector, hence less exact.
        tolerance = 0.06 if method == "linear" and not options["normalize"] else 0.03
        assert found == pytest.approx(measured(sources, method, values, options), rel=tolerance)


def test_smoothing_hardly_changes_the_value() -> None:
    sources = large("ties")
    probes = [DeltaProbe(sources, **SHAPE, seed=SEED, smoothing=s) for s in (0.0, 0.01)]
    generator = torch.Generator().manual_seed(3)
    for method in ("ties", "dare_ties"):
        values = random_values(method, generator)
        hard, smooth = (float(p.delta_l1(method, values, {})) for p in probes)
        assert smooth == pytest.approx(hard, rel=5e-3)


@pytest.mark.parametrize("method", METHODS)
def test_batches_are_rows(method: str) -> None:
    probe = DeltaProbe(tiny(method), **SHAPE, seed=SEED)
    generator = torch.Generator().manual_seed(4)
    rows = [random_values(method, generator) for _ in range(4)]
    batch = {n: torch.stack([row[n] for row in rows]).unflatten(0, (2, 2)) for n in rows[0]}
    found = probe.delta_l1(method, batch, {})
    assert found.shape == (2, 2)
    single = torch.stack([probe.delta_l1(method, row, {}) for row in rows])
    torch.testing.assert_close(found.flatten(), single)


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method: str) -> None:
    probe = DeltaProbe(large(method), **SHAPE, seed=SEED, coordinates=256)
    values = random_values(method, torch.Generator().manual_seed(5))
    names = list(values)

    def value(*tensors: Tensor) -> Tensor:
        return probe.delta_l1(method, dict(zip(names, tensors, strict=True)), {})

    inputs = [values[n].requires_grad_() for n in names]
    # Sign election and magnitudes have kinks; steps this small do not cross one.
    assert torch.autograd.gradcheck(value, inputs, eps=1e-8, atol=1e-5, rtol=1e-3)
    gradients = torch.autograd.grad(value(*inputs), inputs)
    assert all(g.abs().sum() > 0 for g in gradients)


def test_experts_that_did_not_move() -> None:
    base = {"w": torch.randn(100, 100)}
    probe = DeltaProbe(in_memory(base, a=dict(base)), 1, (), coordinates=64)
    assert float(probe.delta_l1("ties", {}, {})) == 0.0


def test_defaults_are_the_table_s() -> None:
    sources = tiny("ties")
    probe = DeltaProbe(sources, 1, (), seed=SEED)
    full = {"weight": torch.ones(3, 1, 1).double(), "density": torch.ones(3, 1, 1).double()}
    torch.testing.assert_close(
        probe.delta_l1("ties", {}, {}), probe.delta_l1("ties", full, {"normalize": True})
    )


def test_the_seed_decides_the_sample() -> None:
    sources = large("linear")
    found = [
        float(DeltaProbe(sources, 1, (), seed=s).delta_l1("linear", {}, {})) for s in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]


quarters = st.integers(-8, 8).map(lambda i: i / 4)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(quarters, min_size=1, max_size=40), data=st.data())
def test_ranks_equal_a_stable_sort(values: list[float], data: st.DataObject) -> None:
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    index = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=10))
    expected = []
    for i in index:
        place = order.index(i)
        fraction = 0.0 if place == 0 else (place + 1) / len(values)
        expected.append(1.0 if values[i] == 0 else fraction)
    found = rank_fractions(torch.tensor(values), torch.tensor(index))
    assert found.tolist() == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(density=st.floats(0, 1), width=st.sampled_from([0.0, 0.01, 0.2]))
def test_the_step_keeps_the_density_on_average(density: float, width: float) -> None:
    position = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    kept = smooth_step(torch.tensor(density, dtype=torch.float64), position, width)
    assert float(kept.mean()) == pytest.approx(density, abs=1e-4)
    assert (kept.diff() <= 0).all()
    if density in (0, 1):
        assert (kept == density).all()


def test_the_measure_is_the_mean_over_all_parameters() -> None:
    sources = tiny("linear")
    plain = merged(sources, recipe_of(sources, "task_arithmetic", {}))
    total = sum(float((plain[n] - t).abs().sum()) for n, t in sources.base.tensors.items())
    count = sum(t.numel() for t in sources.base.tensors.values())
    probe = DeltaProbe(sources, 1, ())
    assert float(probe.delta_l1("task_arithmetic", {}, {})) == pytest.approx(total / count)
