"""The merge speed experiment on its smallest model: every row is there, and equal either way.

No time is asserted: the figures are for people to run and read.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from experiments.merge_speed import campaign, device, peer, report
from experiments.merge_speed.cases import CASES, recipe
from experiments.merge_speed.floor import floor
from experiments.merge_speed.study import CompileRow, Results, SizeResults, about, measure
from experiments.merge_speed.zoo import NOISE, ROW_SPREAD, SIZES, STD, build, open_zoo


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("merge_speed")


@pytest.fixture(scope="module")
def results(root: Path) -> SizeResults:
    return measure("tiny", 1, mergekit=False, root=root)


@pytest.mark.parametrize(
    ("size", "tensors", "parameters"),
    [
        ("tiny", 57, 3_148_224),
        ("0.1b", 111, 124_668_672),
        ("0.5b", 219, 496_026_624),
        ("7b", 291, 6_738_415_616),  # Llama 2
    ],
)
def test_sizes(size: str, tensors: int, parameters: int) -> None:
    shapes = SIZES[size].shapes
    assert len(shapes) == tensors
    assert SIZES[size].parameters == parameters == sum(s.numel() for s in shapes.values())


def test_fine_tunes_are_noise_around_the_base(root: Path) -> None:
    sources = open_zoo(build("tiny", root))
    name = "model.layers.3.mlp.up_proj.weight"
    base = sources.base.tensor(name).double()
    deltas = [expert.tensor(name).double() - base for expert in sources.experts.values()]
    assert base.std() == pytest.approx(STD, rel=0.01)
    for delta in deltas:
        # Of a normal variable whose scale is lognormal the mean square is e^(2 s^2).
        expected = NOISE * STD * torch.tensor(ROW_SPREAD).square().exp()
        assert delta.std() == pytest.approx(float(expected), rel=0.15)
        row_std = delta.std(dim=1).log()
        assert row_std.std() == pytest.approx(ROW_SPREAD, rel=0.15)
    assert abs(torch.corrcoef(torch.stack([d.flatten() for d in deltas]))[0, 1]) < 0.02


def test_models_are_the_same_each_time(root: Path, tmp_path: Path) -> None:
    first, second = (build("tiny", folder) for folder in (root, tmp_path))
    for model in ("base", "a", "c"):
        weights = [
            (folder / model / "model.safetensors").read_bytes() for folder in (first, second)
        ]
        assert weights[0] == weights[1]


def test_every_case_is_measured_and_equal_either_way(results: SizeResults) -> None:
    rows = {row.name: row for row in results.merges.rows}
    assert list(rows) == [case.name for case in CASES]
    for row in rows.values():
        assert row.equal, row.name
        assert row.whole_s > 0
    assert results.merges.floor_s > 0
    assert results.memory.peak_mb > 4 * results.memory.model_mb


def test_floor_without_a_compiler_is_that_of_a_copy() -> None:
    bandwidth = floor(1024, compiled=False)
    bandwidth.run()
    assert bandwidth.scale == 2.5
    assert bandwidth.size_bytes == 5 * 1024 * 2


def test_recipes_of_a_case_differ_by_number(root: Path) -> None:
    sources = open_zoo(build("tiny", root))
    for case in CASES:
        assert recipe(case, sources, 1) == recipe(case, sources, 1)
        keys = {recipe(case, sources, number).key for number in range(5)}
        assert len(keys) == 5 or case.method == "model_stock"  # which has no parameters


def test_mergekit_merges_the_same_recipe(root: Path) -> None:
    sources = open_zoo(build("tiny", root))
    ties = next(case for case in CASES if case.method == "ties")
    assert peer.kernel_cpu_seconds(recipe(ties, sources), sources) > 0


def test_report_shows_every_row_and_json_keeps_it(results: SizeResults, tmp_path: Path) -> None:
    swaps = campaign.swap_ms(1, tmp_path)  # where nothing is built
    compiling = (CompileRow(CASES[0].name, 1.5, 0.25),)
    whole = Results(about("this test", "a note"), (results,), compiling, swaps)
    text = "\n".join(report.lines(whole))
    for part in (*(case.name for case in CASES), "a note", "1.50", "0.25", "not built"):
        assert part in text
    assert "NOT EQUAL" not in text
    assert json.loads(json.dumps(asdict(whole)))["sizes"][0]["tensors"] == 57


def test_merges_on_a_device_are_measured_against_its_copies() -> None:
    rows = {row.name: row for row in device.measure("tiny", torch.device("cpu"), rounds=1)}
    assert list(rows) == ["copy", "task_arithmetic", "ties", "dare_ties"]
    elements = SIZES["tiny"].parameters
    assert [row.size_bytes for row in rows.values()] == [4 * elements, *[10 * elements] * 3]
    assert all(row.seconds > 0 for row in rows.values())
