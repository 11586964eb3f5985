"""Merges by the device that a model is on: the processor's bits, or the processor's merge."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import in_memory, recipe_of
from torch import Tensor

from evaluators.merging import engine as engines
from evaluators.merging.codegen import Signature
from evaluators.merging.engine import MergeEngine
from evaluators.merging.methods import METHODS
from evaluators.merging.passes import Merge, Pass
from evaluators.merging.placed import PROBED, Placed, placed
from evaluators.sources import Sources

CPU = torch.device("cpu")
DEVICES = [
    CPU,
    pytest.param(
        torch.device("cuda", 0),
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
    ),
]
SHAPES = {"large": (300, 331), "row": (1, 40), "one": (1,), "odd": (33,), "none": (0, 4)}
TRIMMED = {"a": {"weight": 0.7, "density": 0.4}, "b": {"weight": 1.3, "density": 0.61}}
WEIGHED = {"a": {"weight": 0.3}, "b": {"weight": 1.1}}
F32 = torch.float32


def sources(dtype: torch.dtype) -> Sources:
    generator = torch.Generator().manual_seed(5)
    base = {n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}
    models = {
        name: {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        for name in ("a", "b")
    }
    stored = {name: {n: t.to(dtype) for n, t in model.items()} for name, model in models.items()}
    return in_memory({n: t.to(dtype) for n, t in base.items()}, **stored)


def live(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in SHAPES.items()}


def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether tensors are merged by their device, from now on."""
    found: list[bool] = []
    trusted = Placed.trusted

    def noted(loop: Placed, *given: Any) -> bool:
        found.append(trusted(loop, *given))
        return found[-1]

    monkeypatch.setattr(Placed, "trusted", noted)
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("method", "parameters", "dtype"),
    [
        ("task_arithmetic", WEIGHED, torch.bfloat16),
        ("ties", TRIMMED, torch.float32),
        ("ties", TRIMMED, torch.bfloat16),
        ("dare_ties", TRIMMED, torch.bfloat16),
        ("model_stock", {}, torch.float32),
    ],
)
def test_a_device_makes_the_bits_of_the_processor(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    method: str,
    parameters: Mapping[str, Any],
    dtype: torch.dtype,
) -> None:
    opened, found = sources(dtype), asked(monkeypatch)
    once = recipe_of(opened, method, parameters, dtype=str(dtype).removeprefix("torch."))
    here, there = live(CPU, dtype), live(device, dtype)
    expected = MergeEngine(opened).merge_into(once, here)
    report = MergeEngine(opened, on_device=True).merge_into(once, there)
    assert report.digest == expected.digest
    assert report.delta_l1 == pytest.approx(expected.delta_l1, rel=1e-6)
    assert all(torch.equal(there[name].cpu(), here[name]) for name in SHAPES)
    assert found == [True] * 4  # all but the tensor without elements


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["linear", "della"])
def test_what_torch_fuses_is_left_to_the_processor(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, method: str
) -> None:
    opened, found = sources(F32), asked(monkeypatch)
    once = recipe_of(opened, method, TRIMMED if method == "della" else WEIGHED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = MergeEngine(opened, on_device=True).merge_into(once, live(device, F32))
    assert report.digest == MergeEngine(opened).merge_into(once, live(CPU, F32)).digest
    assert found == []


def test_sources_that_do_not_fit_are_left_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, found = sources(F32), asked(monkeypatch)
    once = recipe_of(opened, "task_arithmetic", WEIGHED)
    assert engines._free_bytes(torch.device("mps")) == 0  # which cannot say it
    needed = sum(source.size_bytes for source in opened.all.values())
    for free_bytes, merged_there in ((2 * needed - 1, False), (2 * needed, True)):
        monkeypatch.setattr(engines, "_free_bytes", lambda _, free=free_bytes: free)
        MergeEngine(opened, on_device=True).merge_into(once, live(CPU, F32))
        assert bool(found) == merged_there


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if not m.whole])
def test_a_loop_stays_on_its_device(method: str) -> None:
    entry, anywhere = METHODS[method], torch.device("meta")
    dtypes = (torch.bfloat16,) * (1 + (entry.most or 3))
    options = {p.name: p.default for p in entry.parameters if isinstance(p.default, bool | str)}
    merge = Merge(Pass.of(entry, options, entry.trim is not None, dtypes, torch.bfloat16))
    nodes = Placed(merge, merge.signature, anywhere).traced.graph.nodes
    values = [node.meta["val"] for node in nodes if isinstance(node.meta.get("val"), Tensor)]
    assert {value.device for value in values} == {anywhere}


@dataclass(frozen=True)
class Fickle:
    """Doubles when it is traced, and triples when it is run."""

    def __call__(self, blocks: Sequence[Tensor], _: Sequence[Tensor], __: Tensor) -> list[Tensor]:
        return [blocks[0] * (3 if type(blocks[0]) is Tensor else 2)]


@dataclass(frozen=True)
class Branching:
    """Cannot be traced."""

    def __call__(self, blocks: Sequence[Tensor], _: Sequence[Tensor], __: Tensor) -> list[Tensor]:
        return [blocks[0] if bool(blocks[0].sum() > 0) else -blocks[0]]


def test_other_bits_are_not_trusted() -> None:
    loop = Placed(Fickle(), Signature((F32,), 1, (F32,)), CPU)
    with pytest.warns(UserWarning, match="cpu: its kernels make other bits; the processor merges"):
        assert not loop.trusted([torch.ones(9)], np.ones(1, np.float32))


def test_what_cannot_be_traced_is_not_placed() -> None:
    with pytest.warns(UserWarning, match="cpu: torch cannot trace for it .*; the processor merges"):
        assert placed(Branching(), Signature((F32,), 1, (F32,)), CPU) is None


@dataclass(frozen=True)
class Scaled:
    """The block times the number, and the sum of the numbers of its elements."""

    def __call__(
        self, blocks: Sequence[Tensor], numbers: Sequence[Tensor], index: Tensor
    ) -> list[Tensor]:
        return [blocks[0] * numbers[0], index.to(F32)]


def test_parts_are_told_their_own_numbers() -> None:
    told = np.array([2, 3], np.float32)
    loop = Placed(Scaled(), Signature((F32,), 1, (F32, None)), CPU)
    out = torch.empty(5)
    assert loop([torch.ones(5)], told, (out, None), start=100, ends=(2, 5)) == [0, 510]
    assert out.tolist() == [2, 2, 3, 3, 3]


def test_what_cannot_be_compiled_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Tensor) -> Tensor:
        raise RuntimeError("no compiler")

    loop = Placed(Scaled(), Signature((F32,), 1, (F32, None)), CPU)
    monkeypatch.setattr(loop, "_run", broken)
    with pytest.warns(UserWarning, match="cpu: torch cannot compile for it .RuntimeError.; the"):
        assert not loop.trusted([torch.ones(5)], np.ones(1, np.float32))


def test_tensors_are_probed_until_enough_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Placed(Scaled(), Signature((F32,), 1, (F32, None)), CPU)
    told, made = np.ones(1, np.float32), []
    monkeypatch.setattr(loop, "_run", lambda *given, run=loop._run: made.append(1) or run(*given))
    small, large = torch.ones(10), torch.ones(PROBED + 1)
    assert all(loop.trusted([block], told) for block in (small, large, small, large))
    assert len(made) == 2
