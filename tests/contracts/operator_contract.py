"""What every merge operator must do. Inherit the class; tests take `method`, a key of `METHODS`.

    @pytest.mark.parametrize("method", METHODS)
    class TestEveryOperator(OperatorContract): ...

`_parameters` says how parameters express "no effect" and "this expert alone"; an operator with
another such parameter adds it there, and one that cannot express it is listed with the reason.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import in_memory, random_tensors, recipe_of
from torch import Tensor

from evaluators.merging.compiler import NoCompilerError, build
from evaluators.merging.engine import MergeEngine, MergeReport
from evaluators.merging.methods import METHODS
from evaluators.merging.passes import Merge, Pass
from evaluators.merging.spherical import along
from evaluators.merging.stored import stored_digest
from evaluators.recipe import WHOLE, MergeRecipe
from evaluators.sources import Sources, open_checkpoint

DTYPES = ("float32", "bfloat16", "float16")
TYPES = (
    *((dtype, dtype, dtype) for dtype in DTYPES),
    ("float32", "bfloat16", "bfloat16"),
    ("bfloat16", "float32", "float16"),
)
"""Of the base, of the experts, and of what is merged."""

TINY = {"one": (1,), "scalar": (), "row": (1, 5), "none": (0,), "empty": (0, 3), "pair": (2,)}


def choices(method: str) -> list[dict[str, Any]]:
    """Every combination of the operator's choices."""
    options = [p for p in METHODS[method].parameters if p.choices]
    return [
        dict(zip([p.name for p in options], values, strict=True))
        for values in product(*[p.choices or () for p in options])
    ]


NEVER_THE_BASE = {
    "arcee_fusion": "has no parameters",
    "karcher": "averages the models, all alike",
    "model_stock": "has no parameters",
    "nuslerp": "goes half way where weights sum to 0",
    "passthrough": "scales the expert, and does not know the base",
}
NEVER_ONE_EXPERT = {
    "arcee_fusion": "takes the outstanding entries only",
    "iso_c": "makes all singular values equal",
    "model_stock": "treats two experts or more alike",
}


def _parameters(sources: Sources, method: str, strength: float, **more: Any) -> dict[str, Any]:
    """Every expert at about weight `strength` (or t), and whatever else fits.

    At 0 the merge has no effect; at 1 the first expert has weight 1 and the others none.
    """
    entry = METHODS[method]
    whole = {"t": strength} | more
    if strength == 0:
        whole |= {"select_topk": 0.0, "epsilon": 1e9}
    if strength == 1:
        whole |= {"epsilon": 0.0}
    spread = [1, 0, 0] if strength == 1 else [1, 1.4, 0.6]
    weights = {
        name: strength * spread[number] for number, name in enumerate(sorted(sources.experts))
    }
    return {
        owner: {k: v for k, v in values.items() if (p := entry.parameter(k)) and p.scope == scope}
        for owner, values, scope in [
            *[(e, {"weight": w, "density": 1.0} | more, "expert") for e, w in weights.items()],
            (WHOLE, whole, "merge"),
        ]
    }


def _count(method: str, wanted: int) -> int:
    """As many experts as wanted, if the operator takes them."""
    entry = METHODS[method]
    return min(max(wanted, entry.fewest), entry.most or wanted)


def _sources(method: str, dtype: torch.dtype = torch.float32, experts: int = 3) -> Sources:
    """A base and experts around it; as many as the operator takes."""
    base = random_tensors(0)
    models = {f"e{k}": random_tensors(k + 1, base) for k in range(_count(method, experts))}
    cast = {n: {k: v.to(dtype) for k, v in m.items()} for n, m in {"base": base, **models}.items()}
    return in_memory(cast.pop("base"), **cast)


def _mixed(method: str, base: str, experts: str) -> Sources:
    """Sources of which the base is stored in another type than the experts."""
    sources = _sources(method)

    def stored(tensors: Any, dtype: str) -> dict[str, Tensor]:
        return {name: t.to(getattr(torch, dtype)) for name, t in tensors.items()}

    return in_memory(
        stored(sources.base.tensors, base),
        **{name: stored(e.tensors, experts) for name, e in sources.experts.items()},
    )


def merged(sources: Sources, recipe: MergeRecipe) -> dict[str, Tensor]:
    """Merge by torch, operation by operation; compiled merges are the same, which has its test."""
    return _merge(sources, recipe, compiled=False)[0]


def _merge(
    sources: Sources, recipe: MergeRecipe, *, compiled: bool, threads: int = 1
) -> tuple[dict[str, Tensor], MergeReport]:
    dtype = getattr(torch, recipe.dtype)
    target = {n: torch.empty(t.shape, dtype=dtype) for n, t in sources.base.tensors.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        report = MergeEngine(sources, compiled=compiled).merge_into(recipe, target)
    finally:
        torch.set_num_threads(before)
    return target, report


class OperatorContract:
    """The contract."""

    def test_compiled_and_interpreted_merges_are_the_same(
        self, method: str, tmp_path: Path
    ) -> None:
        """For all types, for any number of threads, in place or on disk."""
        options = choices(method)
        for number, (base, experts, stored) in enumerate(TYPES):
            chosen = options[5 * number % len(options)]  # some of each kind
            sources = _mixed(method, base, experts)
            parameters = _parameters(sources, method, 0.4, density=0.6, **chosen)
            recipe = recipe_of(sources, method, parameters, dtype=stored, seed=number)
            plain = _merge(sources, recipe, compiled=False)
            kernel = _merge(sources, recipe, compiled=True, threads=2)
            streamed = MergeEngine(sources).write(recipe, tmp_path / str(number))
            where = (chosen, base, experts, stored)
            assert all(torch.equal(plain[0][n], t) for n, t in kernel[0].items()), where
            assert plain[1].digest == kernel[1].digest == streamed.digest, where
            assert plain[1].delta_l1 == kernel[1].delta_l1 == streamed.delta_l1, where
            assert plain[1].non_finite == kernel[1].non_finite == 0

    def test_it_compiles(self, method: str) -> None:
        entry = METHODS[method]
        if entry.whole:
            pytest.skip("takes whole tensors, not blocks")
        options = next(chosen for chosen in choices(method) if along(chosen) is None)
        for trimmed in {False, entry.trim is not None}:
            sources = [torch.float32] * (1 + _count(method, 3))
            merge = Merge(Pass.of(entry, options, trimmed, sources, torch.float32))
            try:
                build(merge, merge.signature)
            except NoCompilerError as error:
                pytest.skip(str(error))

    def test_some_of_the_experts_in_another_order(self, method: str) -> None:
        """Which of the open experts a recipe names decides, not which others are open."""
        sources = _sources(method)
        for names in (list(sources.experts)[::-1], list(sources.experts)[1:]):
            if not METHODS[method].takes(len(names)):
                continue
            alone = Sources(sources.base, {name: sources.experts[name] for name in names})
            recipe = recipe_of(alone, method, _parameters(alone, method, 0.4, density=0.6))
            one, other = merged(alone, recipe), merged(sources, recipe)
            assert all(torch.equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_zero_weights_give_the_base_bit_for_bit(self, method: str, dtype: str) -> None:
        if method in NEVER_THE_BASE:
            pytest.skip(NEVER_THE_BASE[method])
        experts = 1 if METHODS[method].parameter("t") else 3
        sources = _sources(method, getattr(torch, dtype), experts)
        for options in choices(method):
            parameters = _parameters(sources, method, 0.0, density=0.5, **options)
            result = merged(sources, recipe_of(sources, method, parameters, dtype=dtype))
            for name, tensor in result.items():
                assert torch.equal(tensor, sources.base.tensor(name)), (options, name)

    @pytest.mark.parametrize("experts", [1, 3])
    def test_one_expert_at_full_weight_is_that_expert(self, method: str, experts: int) -> None:
        if method in NEVER_ONE_EXPERT:
            pytest.skip(NEVER_ONE_EXPERT[method])
        if experts > 1 and not METHODS[method].parameter("weight"):
            pytest.skip("has no weights to tell experts apart")
        if experts > 1 and method in ("consensus_ta", "pcb", "tsv_m"):
            pytest.skip("lets all experts vote or share, whatever their weights")
        sources = _sources(method, experts=experts)
        for options in choices(method):
            parameters = _parameters(sources, method, 1.0, **options)
            result = merged(sources, recipe_of(sources, method, parameters))
            for name, tensor in result.items():
                torch.testing.assert_close(
                    tensor, sources.experts["e0"].tensor(name), rtol=1e-6, atol=1e-6
                )

    def test_the_order_of_experts_does_not_matter(self, method: str) -> None:
        if METHODS[method].most == 1:
            pytest.skip("takes one expert only")
        sources = _sources(method)
        turned = Sources(sources.base, dict(reversed(sources.experts.items())))
        for options in choices(method):
            parameters = _parameters(sources, method, 0.3, density=0.6, **options)
            mirrored = _parameters(sources, method, 0.7, density=0.6, **options)
            other = mirrored if METHODS[method].parameter("t") else parameters
            one = merged(sources, recipe_of(sources, method, parameters))
            two = merged(turned, recipe_of(turned, method, other))
            for name in one:
                torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_type_is_the_rounded_float32_result(self, method: str, dtype: str) -> None:
        sources = _sources(method, getattr(torch, dtype))
        for options in choices(method):
            parameters = _parameters(sources, method, 0.4, density=0.6, **options)
            exact = merged(sources, recipe_of(sources, method, parameters))
            cast = merged(sources, recipe_of(sources, method, parameters, dtype=dtype))
            for name in exact:
                assert torch.equal(cast[name], exact[name].to(getattr(torch, dtype)))

    @pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
    def test_tiny_and_empty_tensors(self, method: str, density: float) -> None:
        base = {name: torch.full(shape, 2.0) for name, shape in TINY.items()}
        first = {name: torch.full(shape, 3.0) for name, shape in TINY.items()}
        second = {name: torch.full(shape, 2.5) for name, shape in TINY.items()}
        experts = dict([("e0", first), ("e1", second)][: _count(method, 2)])
        sources = in_memory(base, **experts)
        for options in choices(method):
            parameters = _parameters(sources, method, 0.5, density=density, **options)
            for name, tensor in merged(sources, recipe_of(sources, method, parameters)).items():
                assert tensor.shape == TINY[name]
                assert torch.isfinite(tensor).all()

    def test_density_zero_keeps_nothing_and_one_everything(self, method: str) -> None:
        if METHODS[method].parameter("density") is None:
            pytest.skip("has no density")
        sources = _sources(method)
        for options in choices(method):
            nothing = recipe_of(
                sources, method, _parameters(sources, method, 0.8, density=0.0, **options)
            )
            for name, tensor in merged(sources, nothing).items():
                assert torch.equal(tensor, sources.base.tensor(name))
            full = _parameters(sources, method, 0.8, density=1.0, **options)
            one = merged(sources, recipe_of(sources, method, full, seed=1))
            two = merged(sources, recipe_of(sources, method, full, seed=2))
            assert all(torch.equal(one[name], two[name]) for name in one)
            assert not torch.equal(one["head.weight"], sources.base.tensor("head.weight"))

    def test_identical_models_merge_to_themselves(self, method: str) -> None:
        base = random_tensors(0)
        sources = in_memory(base, **{f"e{k}": base for k in range(_count(method, 2))})
        for options in choices(method):
            if method == "linear" and not options["normalize"]:
                continue  # a plain weighted sum is no average
            if method == "multislerp" and not any(options.values()):
                continue  # nor is one of models on spheres
            parameters = _parameters(sources, method, 0.7, density=0.5, **options)
            for name, tensor in merged(sources, recipe_of(sources, method, parameters)).items():
                torch.testing.assert_close(tensor, base[name], rtol=1e-6, atol=1e-6)

    def test_live_and_streamed_results_are_the_same(self, method: str, tmp_path: Path) -> None:
        sources = _sources(method)
        recipe = recipe_of(
            sources, method, _parameters(sources, method, 0.4, density=0.6), dtype="bfloat16"
        )
        target = {
            n: torch.empty(t.shape, dtype=torch.bfloat16) for n, t in sources.base.tensors.items()
        }
        live = MergeEngine(sources).merge_into(recipe, target)
        streamed = MergeEngine(sources).write(recipe, tmp_path)
        (tmp_path / "config.json").write_text("{}")
        stored = open_checkpoint(sources.base.ref.model_copy(update={"path": str(tmp_path)}))
        assert live.digest == streamed.digest == stored_digest(tmp_path)
        assert live.delta_l1 == streamed.delta_l1
        assert all(torch.equal(target[name], stored.tensor(name)) for name in target)
