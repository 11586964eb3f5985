"""Tables of the sources: by hand, kept on disk, shared by threads, killed while they are made."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import in_memory, random_tensors, recipe_of, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from evaluators.merging.engine import MergeEngine
from evaluators.merging.masks import RANK_STEPS
from evaluators.merging.methods import METHODS
from evaluators.merging.tables import Tables, row_ranks
from evaluators.recipe import ModelRef
from evaluators.sources import Sources, open_sources

ROOT = Path(__file__).parents[2]

MAKER = """
import os, signal, sys
from pathlib import Path
import test_tables
from evaluators.merging.tables import Tables

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def watch(event, arguments):
    if event == sys.argv[2]:
        die()

sources = test_tables.opened(Path(sys.argv[1]))
sys.addaudithook(watch)
Tables(sources, kept=True, compiled=False, say=die if sys.argv[2] == "say" else print).gram("w")
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("MMMO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(folder: Path) -> Sources:
    refs = {path.name: ModelRef(path=str(path)) for path in sorted(folder.iterdir())}
    return open_sources(refs.pop("base"), refs)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    base = random_tensors(0)
    write_checkpoint(tmp_path / "models" / "base", base)
    for k, name in enumerate("ab"):
        write_checkpoint(tmp_path / "models" / name, random_tensors(k + 1, base))
    return opened(tmp_path / "models")


def digest(sources: Sources, tables: Tables | None, method: str, experts: Iterable[str]) -> str:
    recipe = recipe_of(
        Sources(sources.base, {name: sources.experts[name] for name in experts}),
        method,
        {name: {"density": 0.4} for name in experts} if METHODS[method].trim else {},
    )
    live = {n: torch.empty(t.shape) for n, t in sources.base.tensors.items()}
    return MergeEngine(sources, tables, compiled=False).merge_into(recipe, live).digest


def test_row_ranks_by_hand() -> None:
    rows = torch.tensor([[0.5, -3.0, 1.0], [-2.0, 0.0, 1.0]])
    assert row_ranks(rows).tolist() == [0, 254, 127, 254, 0, 127]
    assert row_ranks(torch.tensor([5.0, 1.0])).tolist() == [254, 0]  # one dimension is one row
    assert row_ranks(torch.tensor([3.0, 3.0, -3.0])).tolist() == [0, 127, 254]  # ties by index
    # A row of four: places 0, 1/3, 2/3 and 1 of 254.
    assert row_ranks(torch.tensor([[4.0, 3.0, 2.0, 1.0]])).tolist() == [254, 169, 85, 0]
    # A tensor of three dimensions has rows, too.
    assert row_ranks(rows.reshape(2, 1, 3)).tolist() == [0, 254, 127, 254, 0, 127]


def test_rows_of_one_entry_are_in_the_middle() -> None:
    assert RANK_STEPS // 2 == 127
    assert row_ranks(torch.tensor([[1.0], [9.0]])).tolist() == [127, 127]
    assert row_ranks(torch.tensor([4.0])).tolist() == [127]
    assert row_ranks(torch.tensor(4.0)).tolist() == [127]
    assert row_ranks(torch.zeros(0)).tolist() == []
    assert row_ranks(torch.zeros(0, 3)).tolist() == []
    assert row_ranks(torch.zeros(3, 0)).tolist() == []


@given(st.lists(st.floats(-4, 4, width=16), min_size=2, max_size=300))
def test_ranks_are_those_of_a_stable_sort(values: list[float]) -> None:
    order = sorted(range(len(values)), key=lambda i: (abs(values[i]), i))
    expected = [0] * len(values)
    for place, i in enumerate(order):
        expected[i] = round(float(np.float32(place) * 254 / np.float32(len(values) - 1)))
    assert row_ranks(torch.tensor(values)).tolist() == expected


@pytest.mark.parametrize("epsilon", [0.15, 0.3])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_larger_entries_survive_more_often(density: float, epsilon: float) -> None:
    """DELLA: with probability density + epsilon (2 rank / 254 - 1), cut to 0 … 1."""
    rows, width = 600, 509  # every rank twice in a row, but the ends
    generator = torch.Generator().manual_seed(0)
    delta = torch.rand(rows, width, generator=generator) + 0.1
    one = in_memory({"w": torch.zeros(rows, width)}, a={"w": delta})
    settings = {"a": {"density": density, "epsilon": epsilon}, "*": {"rescale": "none"}}
    live = {"w": torch.empty(rows, width)}
    MergeEngine(one).merge_into(recipe_of(one, "della_linear", settings, seed=3), live)
    kept = (live["w"] != 0).flatten().double()
    rank = row_ranks(delta).long()
    counts = torch.bincount(rank, minlength=255)
    found = torch.bincount(rank, kept, minlength=255) / counts
    chance = (density + epsilon * (2 * torch.arange(255) / 254 - 1)).clamp(0, 1)
    error = (chance * (1 - chance) / counts).sqrt() + 2.0**-16
    assert float(((found - chance).abs() / error).max()) < 5  # false alarm 1.5e-4 with 255 ranks
    if epsilon < min(density, 1 - density):
        assert abs(float(kept.mean()) - density) < 5 * (0.25 / len(kept)) ** 0.5


def test_no_width_where_everything_or_nothing_survives() -> None:
    delta = torch.rand(40, 40, generator=torch.Generator().manual_seed(0)) + 0.1
    one = in_memory({"w": torch.zeros(40, 40)}, a={"w": delta})
    for density in (0.0, 1.0):
        settings = {"a": {"density": density, "epsilon": 0.5}, "*": {"rescale": "none"}}
        live = {"w": torch.empty(40, 40)}
        MergeEngine(one, compiled=False).merge_into(recipe_of(one, "della_linear", settings), live)
        assert ((live["w"] != 0) == bool(density)).all()


@pytest.mark.parametrize("method", ["ties", "della", "slerp", "dare_ties"])
def test_kept_tables_are_those_in_memory(cache: Path, sources: Sources, method: str) -> None:
    said: list[str] = []
    expected = digest(sources, None, method, "ab")
    for _ in range(2):  # made, then found
        tables = Tables(sources, kept=True, compiled=False, say=said.append)
        assert digest(sources, tables, method, "ab") == expected
    needed = {"ties": 2, "della": 2, "slerp": 1, "dare_ties": 0}[method]
    assert len(said) == needed
    assert all("7 tensors" in line for line in said)
    kept = list((cache / "tables").iterdir()) if needed else []
    assert len(kept) == needed


@pytest.mark.parametrize("method", ["ties", "della", "slerp", "multislerp"])
@pytest.mark.parametrize("experts", ["a", "b", "ba"])
def test_some_experts_in_another_order(sources: Sources, method: str, experts: str) -> None:
    alone = Sources(sources.base, {name: sources.experts[name] for name in experts})
    tables = Tables(sources, compiled=False)
    assert digest(sources, tables, method, experts) == digest(alone, None, method, experts)


def test_other_sources_have_other_tables(cache: Path, sources: Sources, tmp_path: Path) -> None:
    Tables(sources, kept=True, compiled=False).gram("norm.weight")
    write_checkpoint(tmp_path / "models" / "b", random_tensors(9))
    other = opened(tmp_path / "models")
    fresh = Tables(other, compiled=False).gram("norm.weight")
    assert torch.equal(Tables(other, kept=True, compiled=False).gram("norm.weight"), fresh)
    assert len(list((cache / "tables").iterdir())) == 2


def test_threads_make_a_table_once(sources: Sources) -> None:
    said: list[str] = []
    tables = Tables(sources, kept=True, compiled=False, say=said.append)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        digest(sources, tables, "ties", "ab")
    finally:
        torch.set_num_threads(threads)
    assert len(said) == 2


def test_a_cache_that_cannot_be_written_keeps_tables_in_memory(
    cache: Path, sources: Sources
) -> None:
    cache.write_text("a file")
    said: list[str] = []
    tables = Tables(sources, kept=True, compiled=False, say=said.append)
    assert digest(sources, tables, "slerp", "ab") == digest(sources, None, "slerp", "ab")
    assert any("no tables can be kept here" in line for line in said)


def test_a_full_disk_keeps_tables_in_memory(cache: Path, sources: Sources) -> None:
    """As far as a limit on the size of files is one."""
    said: list[str] = []
    tables = Tables(sources, kept=True, compiled=False, say=said.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        found = digest(sources, tables, "slerp", "ab")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found == digest(sources, None, "slerp", "ab")
    assert any("no tables can be kept here" in line for line in said)
    assert os.listdir(cache / "tables") == []


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"{"), Path.unlink])
def test_a_table_that_cannot_be_read_is_made_again(
    damage: Callable[[Path], object], cache: Path, sources: Sources
) -> None:
    before = digest(sources, Tables(sources, kept=True, compiled=False), "slerp", "ab")
    for path in cache.glob("tables/*/table.safetensors"):
        damage(path)
    said: list[str] = []
    tables = Tables(sources, kept=True, compiled=False, say=said.append)
    assert digest(sources, tables, "slerp", "ab") == before
    assert any("no tables can be kept here" in line for line in said)


@pytest.mark.parametrize("moment", ["say", "os.rename"])
def test_a_killed_maker_leaves_no_table(cache: Path, sources: Sources, moment: str) -> None:
    """Killed before anything is computed, and when all is written but not yet in place."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}{os.pathsep}{Path(__file__).parent}"
    done = subprocess.run(
        [sys.executable, "-c", MAKER, str(sources.base.folder.parent), moment],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = os.listdir(cache / "tables")
    assert left.startswith(".")
    assert (moment == "os.rename") == (cache / "tables" / left / "table.safetensors").exists()
    tables = Tables(sources, kept=True, compiled=False)
    assert digest(sources, tables, "slerp", "ab") == digest(sources, None, "slerp", "ab")
    (kept,) = os.listdir(cache / "tables")
    assert not kept.startswith(".")
