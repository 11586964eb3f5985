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
from evaluators.merging.spherical import along
from evaluators.merging.tables import Tables
from evaluators.recipe import WHOLE
from evaluators.sources import Sources

PROBED = [name for name, method in METHODS.items() if not method.whole]
TRIMMING = [name for name in PROBED if METHODS[name].trim]
SHAPE: dict[str, Any] = {"layer_groups": 2, "filters": ("attn",)}
SEED = 5


def sampled(method: str) -> list[dict[str, Any]]:
    """The choices of an operator for which one number per tensor is enough."""
    return [options for options in choices(method) if along(options) is None]


def tiny(method: str) -> Sources:
    base = random_tensors(0)
    count = METHODS[method].most or 3
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

    count = METHODS[method].most or 3
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
    live = {n: torch.empty(t.shape) for n, t in sources.base.tensors.items()}
    return MergeEngine(sources, compiled=False).merge_into(recipe, live).delta_l1


RANGES = {
    **{"gamma": (0.01, 0.1), "k": (1.0, 3.0), "max_iter": (5.0, 12.0), "eps": (1e-9, 1e-7)},
    **{"tol": (1e-6, 1e-4), ("ram", "epsilon"): (1e-3, 1e-2), ("nearswap", "t"): (1e-3, 1e-2)},
}
"""Where numbers between 0.1 and 0.9 would make no sense."""


def random_values(method: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Numbers for every parameter of an operator, of as many experts as `tiny` and `large` have."""
    values: dict[str, Tensor] = {}
    for p in METHODS[method].parameters:
        if p.choices is None:
            shape = (METHODS[method].most or 3, 2, 2) if p.scope == "expert" else (2, 2)
            low, high = RANGES.get(p.name, RANGES.get((method, p.name), (0.1, 0.9)))
            share = torch.rand(shape, generator=generator, dtype=torch.float64)
            values[p.name] = low + (high - low) * share
    return values


@pytest.mark.parametrize("method", PROBED)
def test_exact_when_every_coordinate_is_seen(method: str) -> None:
    sources = tiny(method)
    probe = DeltaProbe(sources, **SHAPE, seed=SEED, smoothing=0.0)
    generator = torch.Generator().manual_seed(1)
    for options in sampled(method):
        values = random_values(method, generator)
        found = float(probe.delta_l1(method, values, options))
        assert found == pytest.approx(measured(sources, method, values, options), rel=1e-6)


@pytest.mark.parametrize("method", TRIMMING)
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float16", "float32")])
def test_exact_for_other_types_and_at_the_ends(method: str, dtypes: tuple[str, str]) -> None:
    """In bfloat16 many magnitudes tie."""
    ours = tiny(method)
    base, *experts = (
        {n: t.to(getattr(torch, dtype)) for n, t in checkpoint.tensors.items()}
        for checkpoint, dtype in zip(ours.all.values(), dtypes[:1] + dtypes[1:] * 3, strict=True)
    )
    sources = in_memory(base, **dict(zip(ours.experts, experts, strict=True)))
    probe = DeltaProbe(sources, **SHAPE, seed=SEED, smoothing=0.0)
    values = random_values(method, torch.Generator().manual_seed(1))
    values["density"][0], values["density"][1, 0] = 0.0, 1.0
    values["density"][2, 1] = 1e-6  # one element, if it is the largest
    for name in {"gamma", "epsilon"} & set(values):
        values[name][:, 0] = 1.0
    for rescale in ("none", "l1", "inverse_density"):
        options = {"rescale": rescale}
        found = float(probe.delta_l1(method, values, options))
        assert found == pytest.approx(measured(sources, method, values, options), rel=1e-5)


@pytest.mark.parametrize("method", PROBED)
def test_close_when_it_samples(method: str) -> None:
    sources = large(method)
    probe = DeltaProbe(sources, **SHAPE, seed=SEED)
    generator = torch.Generator().manual_seed(2)
    for options in sampled(method):
        values = random_values(method, generator)
        found = float(probe.delta_l1(method, values, options))
        # A plain sum is moved by what the weights lack to one: no task vector, hence less exact.
        tolerance = 0.06 if method == "linear" and not options["normalize"] else 0.03
        if METHODS[method].parameter("gamma"):  # what is likeliest to be drawn is trimmed
            tolerance = 0.05
        assert found == pytest.approx(measured(sources, method, values, options), rel=tolerance)


def test_smoothing_hardly_changes_the_value() -> None:
    sources = large("ties")
    probes = [DeltaProbe(sources, **SHAPE, seed=SEED, smoothing=s) for s in (0.0, 0.01)]
    generator = torch.Generator().manual_seed(3)
    for method in TRIMMING:
        values = random_values(method, generator)
        hard, smooth = (float(p.delta_l1(method, values, {})) for p in probes)
        assert smooth == pytest.approx(hard, rel=1e-2)


@pytest.mark.parametrize("method", [m for m in PROBED if m != "model_stock"])  # has no numbers
def test_batches_are_rows(method: str) -> None:
    probe = DeltaProbe(tiny(method), **SHAPE, seed=SEED)
    generator = torch.Generator().manual_seed(4)
    rows = [random_values(method, generator) for _ in range(4)]
    batch = {n: torch.stack([row[n] for row in rows]).unflatten(0, (2, 2)) for n in rows[0]}
    found = probe.delta_l1(method, batch, {})
    assert found.shape == (2, 2)
    single = torch.stack([probe.delta_l1(method, row, {}) for row in rows])
    torch.testing.assert_close(found.flatten(), single)


STEPS = {"k", "tall_lambda", "tol", "max_iter", ("ram", "epsilon")}
"""Parameters that decide what is counted: between jumps nothing depends on them."""


def smooth_numbers(method: str) -> list[str]:
    numbers = [p.name for p in METHODS[method].parameters if p.choices is None]
    return [name for name in numbers if not {name, (method, name)} & STEPS]


@pytest.mark.parametrize("method", [m for m in PROBED if smooth_numbers(m)])
def test_gradients(method: str) -> None:
    probe = DeltaProbe(large(method), **SHAPE, seed=SEED, coordinates=256)
    values = random_values(method, torch.Generator().manual_seed(5))
    names = smooth_numbers(method)

    def value(*tensors: Tensor) -> Tensor:
        return probe.delta_l1(method, values | dict(zip(names, tensors, strict=True)), {})

    inputs = [values[n].requires_grad_() for n in names]
    # Sign election and magnitudes have kinks; steps this small do not cross one.
    assert torch.autograd.gradcheck(value, inputs, eps=1e-8, atol=1e-5, rtol=1e-3)
    gradients = torch.autograd.grad(value(*inputs), inputs)
    assert all(g.abs().sum() > 0 for g in gradients)


def test_l1_keeps_the_mass_of_a_single_task_vector() -> None:
    """Whatever is trimmed, and however: the factor of magnitudes is not 1/density."""
    ours = large("ties")
    one = Sources(ours.base, {"e0": ours.experts["e0"]})
    probe = DeltaProbe(one, 1, (), seed=SEED)
    full = float(probe.delta_l1("task_arithmetic", {}, {}))
    for method in ("breadcrumbs", "dare_linear", "della_linear"):
        for density in (0.1, 0.4, 0.8):
            values = {"density": torch.full((1, 1, 1), density).double()}
            found = float(probe.delta_l1(method, values, {"rescale": "l1"}))
            assert found == pytest.approx(full, rel=1e-9)
            plain = float(probe.delta_l1(method, values, {"rescale": "none"}))
            assert plain < 0.99 * full


@pytest.mark.parametrize("density", [0.1, 0.3, 0.7])
def test_l1_of_magnitudes_is_that_of_the_merge(density: float) -> None:
    sources = large("ties")
    probe = DeltaProbe(sources, **SHAPE, seed=SEED)
    values = {"density": torch.full((3, 2, 2), density).double()}
    found = float(probe.delta_l1("ties", values, {"rescale": "l1"}))
    # What half survives a smooth step counts more, the fewer survive (see `probe._NEARER`).
    tolerance = 0.04 if density == 0.1 else 0.02
    expected = measured(sources, "ties", values, {"rescale": "l1"})
    assert found == pytest.approx(expected, rel=tolerance)


def test_tables_may_be_shared() -> None:
    sources = large("ties")
    tables = Tables(sources)
    for method in ("della", "karcher"):
        values = random_values(method, torch.Generator().manual_seed(6))
        shared, own = (
            float(DeltaProbe(sources, **SHAPE, tables=t).delta_l1(method, values, {}))
            for t in (tables, None)
        )
        assert shared == own


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
