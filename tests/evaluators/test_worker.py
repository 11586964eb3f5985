"""One worker in this process: what it answers, how it fails, what it keeps."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.pool_contract import job, workbench_of
from safetensors.torch import load_file

from evaluators.benchmarks.benchmark import order_of
from evaluators.benchmarks.table import open_benchmark
from evaluators.merging.placed import Placed
from evaluators.recipe import MergeRecipe
from evaluators.sources import open_checkpoint
from evaluators.worker import (
    RETRIED,
    BenchmarkSpec,
    EvaluationJob,
    FailureKind,
    Workbench,
    Worker,
)


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return workbench_of(tmp_path_factory.mktemp("worker"))


@pytest.fixture
def worker(workbench: Workbench) -> Iterator[Worker]:
    before = torch.get_num_threads()
    yield Worker(workbench)
    torch.set_num_threads(before)


def changed(asked: EvaluationJob, **recipe: object) -> EvaluationJob:
    content = asked.recipe.model_dump() | recipe
    return replace(asked, recipe=MergeRecipe.model_validate(content))


def embeddings(workbench: Workbench, owner: str) -> torch.Tensor:
    ref = workbench.base if owner == "base" else workbench.experts[owner]
    return load_file(Path(ref.path) / "model.safetensors")["model.embed_tokens.weight"].flatten()


def test_scores_are_of_the_merged_model(worker: Worker, workbench: Workbench) -> None:
    result = worker.run(job(workbench, 7, "first", weight=0.25))
    base, expert = embeddings(workbench, "base"), embeddings(workbench, "expert")
    expected = (base + 0.25 * (expert - base))[:8].numpy()
    assert result.failure is None
    score = result.scores["first"]
    np.testing.assert_allclose(score.outcomes, expected, rtol=1e-5)
    assert score.value == pytest.approx(expected.mean(), rel=1e-5)
    assert (result.trial, result.attempt, score.n, score.split) == (7, 1, 8, "search")
    assert list(result.measures) == ["delta_l1"]
    assert result.measures["delta_l1"] > 0
    assert set(result.timings) == {"load_s", "merge_s", "first_s"}
    assert len(result.digest) == 64


def test_the_device_may_merge(
    monkeypatch: pytest.MonkeyPatch, worker: Worker, workbench: Workbench
) -> None:
    asked, places = job(workbench, 1, "first", weight=0.25), []
    by_processor = worker.run(asked)
    trusted = Placed.trusted
    monkeypatch.setattr(Placed, "trusted", lambda *given: places.append(1) or trusted(*given))
    by_device = Worker(replace(workbench, merge_on_device=True)).run(asked)
    assert (by_device.failure, by_device.digest) == (None, by_processor.digest)
    assert by_device.scores["first"].value == by_processor.scores["first"].value
    assert len(places) == len(load_file(Path(workbench.base.path) / "model.safetensors"))


def test_only_the_items_asked_for_are_scored(worker: Worker, workbench: Workbench) -> None:
    asked = job(workbench, 1, "first")
    whole = worker.run(asked).scores["first"]
    part = worker.run(replace(asked, items={"first": slice(2, 5)}, split="held_out"))
    assert list(part.scores) == ["first"]
    assert part.scores["first"].split == "held_out"
    assert np.array_equal(part.scores["first"].outcomes, whole.outcomes[2:5])


def test_a_score_grows_by_new_items_only(worker: Worker, workbench: Workbench) -> None:
    asked = job(workbench, 1, "first", "memory")
    whole = worker.run(asked)
    half = worker.run(replace(asked, items=dict.fromkeys(("first", "memory"), slice(0, 4))))
    assert (whole.scored, half.scored) == (16, 8)
    known = {name: score.outcomes for name, score in half.scores.items()}
    rest = dict.fromkeys(known, slice(4, 8))
    grown = worker.run(replace(asked, items=rest, known=known, digest=half.digest))
    assert (grown.failure, grown.scored) == (None, 8)
    first = grown.scores["first"]
    assert np.array_equal(first.outcomes, whole.scores["first"].outcomes)
    assert (first.n, first.value) == (8, whole.scores["first"].value)
    # What is known is taken as it is: `memory` would answer other numbers now.
    assert np.array_equal(grown.scores["memory"].outcomes[:4], known["memory"])
    nothing_new = dict.fromkeys(known, slice(4, 4))
    same = worker.run(replace(asked, items=nothing_new, known=known, digest=half.digest))
    assert (same.scored, same.scores["first"].value) == (0, half.scores["first"].value)


def test_an_order_of_its_own_permutes_the_items(worker: Worker, workbench: Workbench) -> None:
    asked = job(workbench, 1, "first")
    whole = worker.run(asked).scores["first"].outcomes
    own = order_of(8, 5)
    mine = worker.run(replace(asked, order=5, items={"first": slice(2, 6)}))
    assert np.array_equal(mine.scores["first"].outcomes, whole[own[2:6]])
    assert sorted(own) == list(range(8))
    assert own.tolist() != order_of(8, 6).tolist()


def test_other_weights_than_those_that_were_scored_are_a_failure(
    worker: Worker, workbench: Workbench
) -> None:
    result = worker.run(replace(job(workbench, 1, "first"), digest="0" * 64))
    assert result.failure is not None
    assert (result.failure.kind, result.scores) == ("other_weights", {})
    assert result.failure.message.endswith("scored before 000000000000…")


def test_one_live_model_serves_until_the_type_changes(worker: Worker, workbench: Workbench) -> None:
    asked = job(workbench, 1, "memory")
    narrow = changed(asked, dtype="bfloat16")
    jobs = [asked, asked, narrow, narrow, asked]
    results = [worker.run(j) for j in jobs]
    facts = [r.scores["memory"].outcomes[1:3].tolist() for r in results]
    assert facts == [[1, 1], [2, 1], [3, 2], [4, 2], [5, 3]]  # calls, live models seen
    assert results[0].digest == results[1].digest == results[4].digest != results[2].digest


def test_the_thread_count_is_set(workbench: Workbench) -> None:
    before = torch.get_num_threads()
    try:
        Worker(replace(workbench, threads=3)).warm()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_clock_starts_when_all_is_loaded(worker: Worker, workbench: Workbench) -> None:
    starts: list[str] = []
    worker.run(job(workbench, 1, "first"), lambda: starts.append("first"))
    worker.run(job(workbench, 2, "raise"), lambda: starts.append("second"))
    absent = replace(workbench, experts={"expert": workbench.base.model_copy(update={"path": "?"})})
    failed = Worker(absent).run(job(workbench, 3, "first"), lambda: starts.append("third"))
    assert failed.failure is not None
    assert starts == ["first", "second"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("expert/model.safetensors", "SourcesError"),
        ("base/tokenizer.json", "ModelError"),
        ("texts.jsonl", "DataError"),
    ],
    ids=["source", "model", "data"],
)
def test_files_that_come_back_are_opened_then(tmp_path: Path, name: str, error: str) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "a cat {i}"}}\n' for i in range(20)))
    workbench = workbench_of(tmp_path)
    texts = BenchmarkSpec("nll", {"data": str(tmp_path / "texts.jsonl")})
    worker = Worker(replace(workbench, benchmarks={"texts": texts}))
    away = (tmp_path / name).rename(tmp_path / "away")
    before = torch.get_num_threads()
    lost = worker.run(job(workbench, 1, "texts"))
    away.rename(tmp_path / name)
    found = worker.run(job(workbench, 1, "texts"))
    torch.set_num_threads(before)
    assert lost.failure is not None
    assert lost.failure.kind == "loading_error"
    assert lost.failure.message.startswith(f"{error}: ")
    assert RETRIED[lost.failure.kind]
    assert (found.failure, found.scores["texts"].n) == (None, 8)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"digests": {"expert": "1" * 64}}, "sources.expert: the weights changed"),
        ({"fingerprints": {"first": {"held_out": ""}}}, "benchmarks.first: the held_out items"),
    ],
    ids=["weights", "items"],
)
def test_other_files_than_expected_are_not_scored(
    workbench: Workbench, expected: dict[str, Any], message: str
) -> None:
    before = torch.get_num_threads()
    result = Worker(replace(workbench, **expected)).run(job(workbench, 1, "first"))
    torch.set_num_threads(before)
    assert result.failure is not None
    assert result.failure.kind == "loading_error"
    assert result.failure.message.startswith(f"ChangedError: {message}")


def test_the_files_that_are_expected_are_scored(workbench: Workbench) -> None:
    expert = open_checkpoint(workbench.experts["expert"])
    spec = workbench.benchmarks["first"]
    held_out = open_benchmark(spec.kind, spec.options).fingerprint("held_out")
    told = replace(
        workbench,
        digests={"expert": expert.digest},
        fingerprints={"first": {"held_out": held_out}},
    )
    before = torch.get_num_threads()
    result = Worker(told).run(job(workbench, 1, "first"))
    torch.set_num_threads(before)
    assert result.failure is None


@pytest.mark.parametrize(
    ("benchmark", "kind", "message"),
    [
        ("raise", "benchmark_error", "RuntimeError: this benchmark cannot score"),
        ("outofmemory", "out_of_memory", "allocate memory"),
        ("wrapped", "out_of_memory", "ValueError: too big"),
        ("writer", "full_disk", "ValueError: no answer ([Errno 28] No space left on device)"),
        ("full", "full_disk", "OSError: [Errno 28] No space left on device: '/data/answers'"),
        ("cycle", "benchmark_error", "ValueError: raised from itself"),
    ],
)
def test_an_error_while_scoring_is_typed(
    workbench: Workbench, benchmark: str, kind: FailureKind, message: str, tmp_path: Path
) -> None:
    (tmp_path / "answers").symlink_to("/dev/full")
    more = {
        "wrapped": BenchmarkSpec("plugins:Wrapped", {}),
        "writer": BenchmarkSpec("plugins:Writer", {"pids": tmp_path}),
        "full": BenchmarkSpec("plugins:Full", {}),
        "cycle": BenchmarkSpec("plugins:Cycle", {}),
    }
    worker = Worker(replace(workbench, benchmarks=dict(workbench.benchmarks) | more))
    result = worker.run(job(workbench, 1, "first", benchmark))
    assert result.failure is not None
    assert result.failure.kind == kind
    assert message in result.failure.message
    assert "\n" not in result.failure.message
    assert "Traceback (most recent call last)" in result.failure.detail
    assert "plugins.py" in result.failure.detail
    assert result.scores == {}
    assert {"merge_s", f"{benchmark}_s"} < set(result.timings)
    assert pickle.loads(pickle.dumps(result)) == result


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "no_such"},
        {"parameters": {"expert": {"no_such": 1.0}}},
        {"base": {"path": "elsewhere"}},
    ],
    ids=["method", "parameters", "base"],
)
def test_a_recipe_that_does_not_fit_is_invalid(
    worker: Worker, workbench: Workbench, recipe: dict[str, object]
) -> None:
    result = worker.run(changed(job(workbench, 1, "first"), **recipe))
    assert result.failure is not None
    assert result.failure.kind == "invalid_recipe"


def test_weights_that_overflow_are_not_scored(worker: Worker, workbench: Workbench) -> None:
    asked = changed(job(workbench, 1, "first", weight=1e6), dtype="float16")
    result = worker.run(asked)
    assert result.failure is not None
    assert result.failure.kind == "non_finite"
    assert result.scores == {}
    again = worker.run(job(workbench, 2, "first"))
    assert again.failure is None
