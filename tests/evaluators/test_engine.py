"""The merge engine: in place, onto disk, reports, and one line for every recipe that cannot be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TINY_SHAPES, in_memory, merged, random_tensors, recipe_of
from safetensors.torch import load_file
from xxhash import xxh3_128_hexdigest

from evaluators.merging import loops
from evaluators.merging.engine import MergeEngine, RecipeError
from evaluators.merging.masks import uniform
from evaluators.merging.methods import METHODS
from evaluators.merging.passes import Pass
from evaluators.merging.stored import stored_digest
from evaluators.recipe import MergeRecipe, ModelRef
from evaluators.sources import SourceError, Sources

BASE = random_tensors(0)
SOURCES = in_memory(BASE, a=random_tensors(1, BASE), b=random_tensors(2, BASE))


def recipe(method: str = "task_arithmetic", parameters: Any = None, **more: Any) -> MergeRecipe:
    return recipe_of(SOURCES, method, parameters or {}, **more)


def target(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape, dtype=dtype) for name, shape in TINY_SHAPES.items()}


def test_the_report_by_hand(tmp_path: Path) -> None:
    base = {"w": torch.tensor([1.0, 2.0]), "v": torch.tensor([0.0])}
    sources = in_memory(base, a={"w": torch.tensor([2.0, 0.0]), "v": torch.tensor([3.0])})
    half = recipe_of(sources, "task_arithmetic", {"a": {"weight": 0.5}})
    live = {"w": torch.empty(2), "v": torch.empty(1)}
    report = MergeEngine(sources).merge_into(half, live)
    assert live["w"].tolist() == [1.5, 1.0]
    assert live["v"].tolist() == [1.5]
    assert report.parameters == 3
    assert report.non_finite == 0
    assert report.delta_l1 == (0.5 + 1.0 + 1.5) / 3
    assert report.seconds > 0
    parts = [
        xxh3_128_hexdigest(f"{name}\0float32\0{shape}\0".encode() + live[name].numpy().tobytes())
        for name, shape in (("v", [1]), ("w", [2]))
    ]
    assert report.digest == hashlib.sha256("\n".join(parts).encode()).hexdigest()
    assert MergeEngine(sources).write(half, tmp_path).digest == report.digest


def test_delta_is_measured_after_the_cast() -> None:
    sources = in_memory({"w": torch.tensor([1.0])}, a={"w": torch.tensor([1.0 + 2**-12])})
    live = {"w": torch.empty(1, dtype=torch.bfloat16)}
    once = recipe_of(sources, "task_arithmetic", {}, dtype="bfloat16")
    assert MergeEngine(sources).merge_into(once, live).delta_l1 == 0.0


def test_non_finite_values_are_counted() -> None:
    sources = in_memory({"w": torch.ones(3)}, a={"w": torch.tensor([1.0, 1e5, 2e5])})
    live = {"w": torch.empty(3, dtype=torch.float16)}
    once = recipe_of(sources, "task_arithmetic", {}, dtype="float16")
    assert MergeEngine(sources).merge_into(once, live).non_finite == 2


def test_live_parameters_are_written_in_place() -> None:
    live = {n: torch.nn.Parameter(t) for n, t in target(torch.bfloat16).items()}
    storage = {name: parameter.data_ptr() for name, parameter in live.items()}
    MergeEngine(SOURCES).merge_into(recipe(dtype="bfloat16"), live)
    assert {name: parameter.data_ptr() for name, parameter in live.items()} == storage
    expected = merged(SOURCES, recipe(dtype="bfloat16"))
    assert all(torch.equal(live[name], expected[name]) for name in live)


def test_live_tensors_may_lie_in_memory_as_they_like() -> None:
    live = {n: torch.zeros(t.shape[::-1]).T if t.dim() > 1 else t for n, t in target().items()}
    assert not live["head.weight"].is_contiguous()
    report = MergeEngine(SOURCES).merge_into(recipe("ties", {"a": {"density": 0.5}}), live)
    plain = target()
    expected = MergeEngine(SOURCES).merge_into(recipe("ties", {"a": {"density": 0.5}}), plain)
    assert report.digest == expected.digest
    assert all(torch.equal(live[name], plain[name]) for name in plain)


def test_sources_are_left_alone(tmp_path: Path) -> None:
    before = {n: t.clone() for n, t in SOURCES.base.tensors.items()}
    live = target()
    MergeEngine(SOURCES).merge_into(recipe("ties", {"a": {"density": 0.4}}), live)
    for tensor in live.values():
        tensor.zero_()
    assert all(torch.equal(before[n], t) for n, t in SOURCES.base.tensors.items())


def test_integer_tensors_come_from_the_base(tmp_path: Path) -> None:
    base = {"w": torch.ones(3), "steps": torch.tensor([7, 8])}
    sources = in_memory(base, a={"w": torch.zeros(3), "steps": torch.tensor([1, 2])})
    once = recipe_of(sources, "linear", {}, dtype="bfloat16")
    live = merged(sources, once)
    assert torch.equal(live["steps"], base["steps"])
    report = MergeEngine(sources).write(once, tmp_path)
    assert report.parameters == 3
    assert torch.equal(load_file(tmp_path / "model.safetensors")["steps"], base["steps"])


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "slerp"])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_result_does_not_depend_on_the_block_size(
    monkeypatch: pytest.MonkeyPatch, method: str, compiled: bool
) -> None:
    parameters = {"a": {"density": 0.5}} if method in ("ties", "dare_ties") else {}
    engine = MergeEngine(SOURCES, compiled=compiled)
    whole = engine.merge_into(recipe(method, parameters), target())
    monkeypatch.setattr(loops, "_CACHED", 10)
    split = engine.merge_into(recipe(method, parameters), target())
    assert (split.digest, split.delta_l1) == (whole.digest, whole.delta_l1)


@pytest.mark.parametrize("method", ["ties", "della", "breadcrumbs", "dare_ties"])
def test_large_tensors_are_the_same_compiled_and_interpreted(method: str) -> None:
    """Over several chunks of random numbers and blocks, the last of them broken off."""
    generator = torch.Generator().manual_seed(0)
    shape = (1031, 1031)  # a little more than 2^20
    base = {"w": torch.randn(shape, generator=generator).to(torch.bfloat16)}
    models = {
        name: {"w": (base["w"].float() + 0.01 * torch.randn(shape, generator=generator)).bfloat16()}
        for name in "ab"
    }
    sources = in_memory(base, **models)
    trimmed = {"a": {"density": 0.3}, "b": {"density": 0.77, "weight": -0.5}}
    once = recipe_of(sources, method, trimmed, dtype="bfloat16")
    reports = [
        MergeEngine(sources, compiled=compiled).merge_into(
            once, {"w": torch.empty(shape, dtype=torch.bfloat16)}
        )
        for compiled in (True, False)
    ]
    assert reports[0].digest == reports[1].digest
    assert reports[0].delta_l1 == reports[1].delta_l1 > 0


def test_masks_follow_seed_expert_and_tensor() -> None:
    found = merged(
        SOURCES,
        recipe(
            "dare_linear",
            {"a": {"density": 0.3}, "b": {"weight": 0.0}, "*": {"rescale": "none"}},
            seed=11,
        ),
    )
    name = "layers.0.mlp.weight"
    kept = (uniform(11, "a", name, 32) < 0.3).reshape(8, 4)
    assert torch.equal(found[name] != BASE[name], kept)


def test_every_variable_changes_exactly_its_own_tensors() -> None:
    shape = {"layer_groups": 2, "filters": ("attn",)}
    owned = {
        (0, 0): {"layers.0.attn.weight"},
        (0, 1): {"layers.1.attn.weight"},
        (1, 0): {"embed.weight", "layers.0.mlp.weight"},
        (1, 1): {"layers.1.mlp.weight", "norm.weight", "head.weight"},
    }
    for (row, group), names in owned.items():
        grid = [[0.0, 0.0], [0.0, 0.0]]
        grid[row][group] = 1.0
        weights = {"a": {"weight": grid}, "b": {"weight": 0.0}}
        found = merged(SOURCES, recipe("task_arithmetic", weights, **shape))
        assert {n for n in found if not torch.equal(found[n], BASE[n])} == names


def test_merge_parameters_may_be_grids() -> None:
    scale = {"*": {"lambda": [[0.0, 1.0]]}}
    found = merged(SOURCES, recipe("task_arithmetic", scale, layer_groups=2))
    plain = merged(SOURCES, recipe())
    assert torch.equal(found["layers.0.mlp.weight"], BASE["layers.0.mlp.weight"])
    assert torch.equal(found["layers.1.mlp.weight"], plain["layers.1.mlp.weight"])


def test_some_of_the_open_experts_can_be_merged() -> None:
    alone = MergeRecipe(
        method="linear",
        base=SOURCES.base.ref,
        experts={"b": SOURCES.experts["b"].ref},
        parameters={},
    )
    assert torch.equal(
        merged(SOURCES, alone)["norm.weight"], SOURCES.experts["b"].tensor("norm.weight")
    )


def test_slerp_runs_from_base_to_one_expert_and_between_two() -> None:
    two = merged(SOURCES, recipe("slerp", {"*": {"t": 1.0}}))
    assert torch.equal(two["head.weight"], SOURCES.experts["b"].tensor("head.weight"))
    one = Sources(SOURCES.base, {"b": SOURCES.experts["b"]})
    start = merged(one, recipe_of(one, "slerp", {"*": {"t": 0.0}}))
    assert torch.equal(start["head.weight"], BASE["head.weight"])


def test_shards_have_an_index_and_equal_bytes(tmp_path: Path) -> None:
    engine = MergeEngine(SOURCES)
    one = engine.write(recipe(), tmp_path / "one")
    many = engine.write(recipe(), tmp_path / "many", shard_size_bytes=200)
    again = engine.write(recipe(), tmp_path / "again", shard_size_bytes=200)
    assert one.digest == many.digest == again.digest
    files = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert files[0] == "model-00001-of-00005.safetensors"
    for name in files:
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * t.numel() for t in BASE.values())
    whole = load_file(tmp_path / "one" / "model.safetensors")
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "many" / file)[name], whole[name])


def test_stored_tensors_are_aligned(tmp_path: Path) -> None:
    base = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.tensor([1, 2]), "c": torch.ones(3)}
    sources = in_memory(base, e=dict(base))
    MergeEngine(sources).write(recipe_of(sources, "linear", {}, dtype="float16"), tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header["__metadata__"] == {"format": "pt"}
    starts = {name: (8 + length + header[name]["data_offsets"][0]) for name in base}
    assert starts["b"] % 8 == 0
    assert starts["c"] % 2 == 0


def test_tampering_changes_the_stored_digest(tmp_path: Path) -> None:
    report = MergeEngine(SOURCES).write(recipe(), tmp_path)
    assert stored_digest(tmp_path) == report.digest
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert stored_digest(tmp_path) != report.digest


@pytest.mark.parametrize(
    ("method", "parameters", "more", "expected"),
    [
        ("tiez", {}, {}, "did you mean 'ties'"),
        ("zzz", {}, {}, "known: linear"),
        ("linear", {"a": {"density": 0.5}}, {}, "a.density: linear has no such parameter"),
        ("ties", {"*": {"density": 0.5}}, {}, "density: ties has no such parameter per merge"),
        ("ties", {"a": {"lambda": 0.5}}, {}, "a.lambda: ties has no such parameter per expert"),
        ("ties", {"a": {"density": 1.5}}, {}, "a.density: found 1.5, allowed: 0.0 to 1.0"),
        ("ties", {"a": {"density": True}}, {}, "a.density: found True"),
        ("ties", {"a": {"weight": "much"}}, {}, "a.weight: found 'much'"),
        ("ties", {"*": {"normalize": 1}}, {}, "normalize: found 1"),
        ("dare_ties", {"*": {"rescale": "l2"}}, {}, "rescale: found 'l2', allowed: ('l1'"),
        ("slerp", {"*": {"t": [[0.5, 1.5]]}}, {"layer_groups": 2}, "t: found 1.5"),
        ("linear", {}, {"layer_groups": 3}, "layer_groups: found 3, allowed: 1 to 2"),
        ("linear", {}, {"filters": ("attention",)}, "filters: found 'attention'"),
    ],
)
def test_impossible_recipes(method: str, parameters: Any, more: Any, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        MergeEngine(SOURCES).merge_into(recipe(method, parameters, **more), target())
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipes_over_other_sources() -> None:
    other = ModelRef(path="elsewhere")
    engine = MergeEngine(SOURCES)
    with pytest.raises(RecipeError, match="base elsewhere is not open"):
        engine.merge_into(recipe().model_copy(update={"base": other}), target())
    with pytest.raises(RecipeError, match=r"expert a .* is not open"):
        engine.merge_into(recipe().model_copy(update={"experts": {"a": other}}), target())
    with pytest.raises(RecipeError, match="merges 1 or more experts; found 0"):
        engine.merge_into(recipe().model_copy(update={"experts": {}}), target())


def test_slerp_takes_two_models() -> None:
    three = in_memory(BASE, a=dict(BASE), b=dict(BASE), c=dict(BASE))
    with pytest.raises(RecipeError, match="slerp merges 1 or 2 experts; found 3"):
        merged(three, recipe_of(three, "slerp", {}))


def test_targets_that_do_not_fit() -> None:
    engine = MergeEngine(SOURCES)
    live = target()
    with pytest.raises(RecipeError, match="the live tensor is"):
        engine.merge_into(recipe(dtype="bfloat16"), live)
    del live["norm.weight"]
    with pytest.raises(RecipeError, match="the live model has no tensor"):
        engine.merge_into(recipe(), live)
    assert all(not tensor.any() for tensor in live.values())  # refused before any write


def test_sources_that_do_not_fit() -> None:
    with pytest.raises(SourceError, match="a: w is missing"):
        MergeEngine(in_memory({"w": torch.ones(2)}, a={"v": torch.ones(2)}))
    with pytest.raises(SourceError, match="another shape"):
        MergeEngine(in_memory({"w": torch.ones(2)}, a={"w": torch.ones(3)}))


def test_preparing_leaves_nothing_to_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMMO_CACHE", str(tmp_path))
    sources = in_memory(BASE, a=random_tensors(1, BASE), b=random_tensors(2, BASE))
    own = {"ties": 0.5, "della": 0.5, "breadcrumbs": 1.0}
    for method in ("ties", "della", "breadcrumbs", "slerp", "sce"):
        loops._opened.cache_clear()  # as in a process that just began
        density = {k: {"density": own[method]} for k in "ab"} if method in own else {}
        asked = recipe_of(sources, method, density, dtype="bfloat16")
        engine = MergeEngine(sources)
        engine.prepare(asked)
        made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        live = {n: torch.empty(t.shape, dtype=torch.bfloat16) for n, t in BASE.items()}
        engine.merge_into(asked, live)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == made


def test_a_kernel_is_given_as_many_numbers_as_it_reads() -> None:
    does = Pass.of(METHODS["linear"], {}, False, (torch.bfloat16,) * 3, torch.bfloat16)
    count = max(end for _, end in does.fields.values())
    told = {name: [0.5] * (end - first) for name, (first, end) in does.fields.items()}
    assert does.pack([told, told]).tolist() == [0.5] * (2 * count)
    (name, _), *_ = (field for field in does.fields.items() if field[1][1] > field[1][0])
    with pytest.raises(ValueError, match=f"{2 * count - 1} numbers for 2 parts of {count}"):
        does.pack([told, told | {name: told[name][1:]}])
