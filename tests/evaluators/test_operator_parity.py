"""mergekit 0.1.5's merge functions as oracle, on plain tensors of many shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from checkpoints import in_memory, merged, recipe_of
from mergekit.merge_methods import merge_tensors
from operands import operate
from torch import Tensor

from evaluators.sources import Sources

SHAPES = ((64, 48), (40,), (1, 7), (9, 1), (1,), ())
DTYPES = (torch.float32, torch.bfloat16)
WEIGHTS = [0.7, 0.4, 0.9]


def models_of(shape: tuple[int, ...], experts: int = 3) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(len(shape))
    base = torch.randn(shape, generator=generator)
    return base, [base + 0.05 * torch.randn(shape, generator=generator) for _ in range(experts)]


def oracle(
    method: str,
    base: Tensor | None,
    models: Sequence[Tensor],
    dtype: torch.dtype = torch.float32,
    **parameters: Any,
) -> Tensor:
    """What mergekit makes of it; it works on models, not on task vectors, if there is no base."""
    everything = [*([] if base is None else [base]), *models]
    index = None if base is None else 0
    result: Tensor = merge_tensors(
        everything, method, parameters=parameters, base_index=index, out_dtype=dtype
    )
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("method", "experts", "parameters"),
    [
        ("linear", 3, {"weight": WEIGHTS}),
        ("task_arithmetic", 3, {"weight": WEIGHTS}),
        ("sce", 3, {}),
        ("sce", 3, {"select_topk": 0.4}),
        ("ram", 3, {"epsilon": 0.03}),
        ("ramplus_tl", 3, {"epsilon": 0.03, "r": 0.3, "alpha": 0.6}),
        ("nearswap", 1, {"t": 0.02}),
        ("arcee_fusion", 1, {}),
        ("passthrough", 1, {"scale": 0.9}),
    ],
)
def test_bit_equal(
    method: str,
    experts: int,
    parameters: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    base, models = models_of(shape, experts)
    start = None if method in ("linear", "passthrough") else base
    theirs = oracle(method, start, models, dtype, **parameters)
    assert torch.equal(operate(method, base, models, **parameters).to(dtype), theirs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("method", "experts", "parameters"),
    [
        ("slerp", 1, {"t": 0.3}),
        ("nuslerp", 2, {"weight": [0.7, 0.4]}),
        ("nuslerp", 2, {"weight": [0.7, -0.7]}),
        ("multislerp", 3, {"weight": WEIGHTS}),
        ("multislerp", 3, {"weight": WEIGHTS, "normalize_weights": False}),
        ("multislerp", 1, {"weight": [0.4]}),
        ("karcher", 3, {}),
        ("karcher", 3, {"max_iter": 1, "tol": 1e-3}),
        ("model_stock", 3, {}),
    ],
)
@pytest.mark.parametrize("task_vectors", [True, False])
def test_spherical_merges_differ_in_the_last_bits(
    method: str,
    experts: int,
    parameters: Mapping[str, Any],
    task_vectors: bool,
    shape: tuple[int, ...],
) -> None:
    # Coefficients are float64 here; there, every step rounds whole tensors to float32.
    switchable = method in ("nuslerp", "multislerp")
    if not switchable and task_vectors is (method == "karcher"):
        pytest.skip("mergekit has one form only")
    base, models = models_of(shape, experts)
    theirs = oracle(method, base if task_vectors else None, models, **parameters)
    switch = {"task_vectors": task_vectors} if switchable else {}
    ours = operate(method, base, models, **parameters, **switch)
    largest = max(float(tensor.abs().max()) for tensor in [base, *models, theirs])
    # Multislerp divides by the length of the mean direction, which magnifies rounding.
    bits = 16 if method == "multislerp" else 4
    assert float((ours - theirs).abs().max()) <= bits * ulp(largest)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 5, 7)])
@pytest.mark.parametrize(
    ("method", "experts", "weights", "switches"),
    [
        ("nuslerp", 2, [0.7, 0.4], {"nuslerp_flatten": False}),
        ("nuslerp", 2, [0.7, 0.4], {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
        ("nuslerp", 2, [0.7, 0.4], {"nuslerp_flatten": True, "nuslerp_row_wise": True}),
        ("model_stock", 3, [], {"filter_wise": True}),
    ],
)
def test_rows_have_coefficients_of_their_own(
    method: str,
    experts: int,
    weights: list[float],
    switches: dict[str, bool],
    shape: tuple[int, ...],
) -> None:
    base, models = models_of(shape, experts)
    if not shape:
        pytest.skip("mergekit's rows need a dimension")
    theirs = oracle(method, base, models, **({"weight": weights} if weights else {}), **switches)
    ours = engine(method, base, models, **({"weight": weights} if weights else {}), **switches)
    largest = max(float(tensor.abs().max()) for tensor in [base, *models, theirs])
    assert float((ours - theirs).abs().max()) <= 4 * ulp(largest)


def ulp(value: float) -> float:
    """The distance between float32 numbers of this size."""
    return float(torch.nextafter(torch.tensor(value), torch.tensor(torch.inf))) - float(
        torch.tensor(value)
    )


def stable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make mergekit's sort stable, which makes what it keeps of tied entries well defined."""
    plain = torch.argsort

    def argsort(x: Tensor, *, descending: bool) -> Tensor:
        return plain(x, descending=descending, stable=True)

    monkeypatch.setattr(torch, "argsort", argsort)


def sources_of(base: Tensor, models: Sequence[Tensor]) -> Sources:
    experts = {f"e{k}": {"weight": model} for k, model in enumerate(models)}
    return in_memory({"weight": base}, **experts)


def engine(
    method: str, base: Tensor, models: Sequence[Tensor], seed: int = 0, **parameters: Any
) -> Tensor:
    """What our engine makes of it; lists are one value per expert."""
    sources = sources_of(base, models)
    own = {n: v for n, v in parameters.items() if isinstance(v, list)}
    values = {f"e{k}": {n: v[k] for n, v in own.items()} for k in range(len(models))}
    values["*"] = {n: v for n, v in parameters.items() if n not in own}
    return merged(sources, recipe_of(sources, method, values, seed=seed))["weight"]


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_ties_is_bit_equal_where_magnitudes_tie(
    shape: tuple[int, ...], rescale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stable(monkeypatch)
    base, models = models_of(shape)
    base = (base * 8).round() / 8
    models = [base + ((m - base) * 64).round() / 64 for m in models]  # few distinct magnitudes
    given: dict[str, Any] = {"weight": WEIGHTS, "density": [0.3, 0.55, 0.8]}
    ours = engine("ties", base, models, **given, rescale="l1" if rescale else "none")
    theirs = oracle("ties", base, models, **given, rescale=rescale)
    if rescale:  # L1 norms are float64 sums here and float32 sums there
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("shape", SHAPES[:4])  # of one element, mergekit drops it at any density
@pytest.mark.parametrize("gamma", [0.01, 0.2, 0.9])
def test_breadcrumbs_is_bit_equal(method: str, shape: tuple[int, ...], gamma: float) -> None:
    base, models = models_of(shape)
    given: dict[str, Any] = {
        "weight": WEIGHTS, "density": [0.3, 0.55, 1.0], "gamma": [gamma] * 3
    }  # fmt: skip
    assert torch.equal(engine(method, base, models, **given), oracle(method, base, models, **given))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
@pytest.mark.parametrize("rescale", [True, False])
def test_random_trimming_is_one_more_draw_of_mergekits(method: str, rescale: bool) -> None:
    base, models = models_of((64, 48))
    given: dict[str, Any] = {"weight": WEIGHTS, "density": [0.3, 0.6, 0.5]}
    if method.startswith("della"):
        given["epsilon"] = [0.25, 0.1, 0.4]

    def theirs(seed: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return oracle(method, base, models, **given, rescale=rescale)

    draws = [theirs(seed) for seed in range(24)]
    own = engine(method, base, models, seed=5, **given, rescale="l1" if rescale else "none")
    for measure in (lambda t: (t - base).abs().mean(), lambda t: ((t - base) ** 2).mean()):
        sizes = torch.stack([measure(draw) for draw in draws]).double()
        assert abs(float(measure(own) - sizes.mean())) < 4 * float(sizes.std())
    # Ours is as far from a draw of mergekit's as two of these are from each other.
    apart = torch.tensor([float((a - b).abs().mean()) for a, b in pairwise(draws)])
    ours = torch.tensor([float((own - draw).abs().mean()) for draw in draws])
    assert float(ours.mean()) == pytest.approx(float(apart.mean()), rel=0.03)
