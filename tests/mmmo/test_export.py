"""Export of a small campaign over real tiny checkpoints: files, proofs, repetition, tampering."""

from __future__ import annotations

import csv
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluators.merging.stored import stored_digest
from evaluators.recipe import MergeRecipe
from evaluators.worker import EvaluationJob, Worker
from mmmo.config import parse
from mmmo.creation import create
from mmmo.errors import AlreadyRunning, Fault, MmmoError, Problems, UserError
from mmmo.export import choose, export_trials
from mmmo.exported import read_recipe, recipe_text, verify_export
from mmmo.held_out import held_out_scores
from mmmo.history import History
from mmmo.merge import merge
from mmmo.preflight import workbench
from mmmo.records import completed, proposed
from mmmo.space import SearchSpace
from mmmo.store import Store

NAME = "tiny"
POINTS = [[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sources, data and the store of a campaign of four trials; the last failed."""
    folder = tmp_path_factory.mktemp("campaign")
    write_sources(folder)
    rows = [{"text": f"the cat number {i} sat on mat {i * i}"} for i in range(30)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sums = [{"question": f"{i}+1=", "answer": str(i + 1)} for i in range(30)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    store = Store(f"sqlite:///{folder / 'store.db'}")
    config = parse(document(), folder)
    before = torch.get_num_threads()
    create(store, config)
    space, worker = SearchSpace(config), Worker(workbench(config))
    items = {"texts": slice(0, 15), "sums": slice(0, 15)}
    with store.acquire(NAME) as lease:
        for number, x in enumerate([*POINTS, [0.2, 0.2]]):
            recipe = space.decode(x)
            store.append(lease, number, "proposed", proposed(x, recipe, {"origin": "sobol"}))
            store.append(lease, number, "started", {})
            if number == len(POINTS):
                failure = {"kind": "timeout", "message": "too slow", "detail": "", "final": True}
                store.append(lease, number, "failed", failure)
                continue
            result = worker.run(EvaluationJob(number, recipe, items))
            assert result.failure is None
            store.append(lease, number, "completed", completed(result))
    torch.set_num_threads(before)
    store.close()
    return folder


def write_sources(folder: Path) -> None:
    """A base with a README and a chat template, and two fine-tunes of it."""
    base = tiny_llama(folder / "base", 0)
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    for seed, name in enumerate(["maths", "code"], start=1):
        expert = shutil.copytree(base, folder / name)
        tensors = load_file(base / "model.safetensors")
        generator = torch.Generator().manual_seed(seed)
        moved = {
            n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in tensors.items()
        }
        save_file(moved, expert / "model.safetensors", {"format": "pt"})


def document() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": NAME,
        "sources": {"base": "./base", "experts": {"maths": "./maths", "code": "./code"}},
        "merge": {
            "method": "dare_linear",
            "weight": {"range": [0.0, 1.0]},
            "density": 0.5,
            "dtype": "bfloat16",
        },
        "benchmarks": {
            "texts": {"kind": "nll", "data": "./texts.jsonl"},
            "sums": {
                "kind": "exact_match",
                "data": "./sums.jsonl",
                "options": {"prompt": "question", "max_new_tokens": 2},
            },
        },
        "objectives": {
            "fluency": {"benchmark": "texts"},
            "size": {"measure": "delta_l1"},
        },
        "pool": {"executor": "inline"},
    }


@pytest.fixture
def history(finished: Path, tmp_path: Path) -> Iterator[History]:
    """The campaign with a store of its own."""
    shutil.copyfile(finished / "store.db", tmp_path / "store.db")
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    before = torch.get_num_threads()
    yield History(store, NAME)
    torch.set_num_threads(before)
    store.close()


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store and exports of trials 0 and 2, for tests that only look, or copy it."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copyfile(finished / "store.db", folder / "store.db")
    store = Store(f"sqlite:///{folder / 'store.db'}")
    before = torch.get_num_threads()
    history = History(store, NAME)
    lines = list(
        export_trials(
            history, choose(history.pareto, history, [0, 2], False, None), folder / "exports"
        )
    )
    (folder / "lines.txt").write_text("\n".join(lines))
    torch.set_num_threads(before)
    store.close()
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Iterator[tuple[History, Path]]:
    """The exported campaign, to be changed."""
    folder = shutil.copytree(exported, tmp_path / "copy")
    store = Store(f"sqlite:///{folder / 'store.db'}")
    yield History(store, NAME), folder / "exports"
    store.close()


def export(history: History, folder: Path, *numbers: int) -> list[str]:
    return list(export_trials(history, [history.trial(n) for n in numbers], folder))


def test_an_exported_model_is_the_scored_one_and_opens(exported: Path, finished: Path) -> None:
    folder = exported / "exports" / "trial-0002"
    manifest = json.loads((folder / "manifest.json").read_text())
    store = Store(f"sqlite:///{exported / 'store.db'}")
    trial = History(store, NAME).trial(2)
    assert manifest["digest"] == trial.digest == stored_digest(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (
        tokenizer("a cat").input_ids
        == AutoTokenizer.from_pretrained(finished / "base")("a cat").input_ids
    )
    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "mergekit_config.yml",
        "model.safetensors",
        "recipe.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "README.md").read_text() != (finished / "base" / "README.md").read_text()
    assert verify_export(folder) == []


def test_the_recipe_is_read_back_exactly(exported: Path) -> None:
    folder = exported / "exports" / "trial-0000"
    recipe = read_recipe(folder / "recipe.yaml")
    assert recipe.parameters["maths"]["weight"] == 0.9
    assert recipe.key == json.loads((folder / "manifest.json").read_text())["key"]
    merge = yaml.safe_load((folder / "mergekit_config.yml").read_text())
    assert (merge["merge_method"], merge["out_dtype"]) == ("dare_linear", "bfloat16")
    assert (folder / "mergekit_config.yml").read_text().startswith("# Random masks")


def test_the_size_of_files_does_not_change_the_weights(exported: Path, tmp_path: Path) -> None:
    shutil.copyfile(exported / "store.db", tmp_path / "store.db")
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    history = History(store, NAME)
    list(export_trials(history, [history.trial(0)], tmp_path / "exports", 10_000))
    store.close()
    folder = tmp_path / "exports" / "trial-0000"
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert verify_export(folder) == []
    assert stored_digest(folder) == stored_digest(exported / "exports" / "trial-0000")


def test_the_mergekit_configuration_gives_the_same_weights(exported: Path, tmp_path: Path) -> None:
    folder = exported / "exports" / "trial-0000"
    seed = read_recipe(folder / "recipe.yaml").seed
    list(merge(folder / "mergekit_config.yml", tmp_path / "merged", None, 10**9, seed))
    assert stored_digest(tmp_path / "merged") == stored_digest(folder)


def test_chosen_models_and_sources_are_scored_on_held_out_items(exported: Path) -> None:
    manifest = json.loads((exported / "exports/trial-0000/manifest.json").read_text())
    assert list(manifest["held_out"]) == ["this model", "base", "expert maths", "expert code"]
    for document_ in manifest["held_out"].values():
        for score in document_["scores"].values():
            low, high = score["interval_95"]
            assert low <= score["value"] <= high
            assert score["n"] == 15
    held_out = manifest["held_out"]["this model"]["scores"]["texts"]["value"]
    assert held_out != manifest["search"]["texts"]["value"]
    lines = (exported / "lines.txt").read_text().splitlines()
    assert lines[0] == "held-out items: base scored (1 of 5)"
    assert sum("trial-0000: held out: texts" in line for line in lines) == 1


def test_the_base_is_scored_as_it_is(exported: Path, finished: Path) -> None:
    manifest = json.loads((exported / "exports/trial-0000/manifest.json").read_text())
    store = Store(f"sqlite:///{exported / 'store.db'}")
    history = History(store, NAME)
    worker = Worker(workbench(history.config))
    alone = MergeRecipe(
        method="linear",
        base=history.config.sources.refs()[0],
        experts={"code": history.config.sources.refs()[1]["code"]},
        parameters={"code": {"weight": 1.0}},
        dtype="bfloat16",
    )
    before = torch.get_num_threads()
    result = worker.run(EvaluationJob(0, alone, {"texts": slice(0, 15)}, split="held_out"))
    torch.set_num_threads(before)
    code = manifest["held_out"]["expert code"]["scores"]["texts"]["value"]
    assert code == pytest.approx(result.scores["texts"].value, rel=1e-3)


def test_the_front_is_a_table(exported: Path) -> None:
    document_ = json.loads((exported / "exports" / "pareto.json").read_text())
    with (exported / "exports" / "pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["trial"]) for r in rows] == [t["number"] for t in document_["front"]]
    for row, entry in zip(rows, document_["front"], strict=True):
        assert float(row["fluency"]) == entry["scores"]["fluency"]["value"]
        assert float(row["maths.weight"]) == entry["recipe"]["parameters"]["maths"]["weight"]
        if entry["number"] in (0, 2):
            assert float(row["fluency_held_out"]) == (entry["held_out"]["scores"]["texts"]["value"])
        else:
            assert row["fluency_held_out"] == ""
            assert entry["held_out"] is None


def test_the_card_can_be_read_by_a_hub(exported: Path) -> None:
    text = (exported / "exports/trial-0002/README.md").read_text()
    _, front_matter, body = text.split("---\n", 2)
    assert yaml.safe_load(front_matter) == {
        "base_model": ["base", "maths", "code"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["mergekit", "merge"],
        "license": "mit",
    }
    assert "from transformers import LlamaForCausalLM" in body
    assert "mmmo export tiny --trial 2" in body
    assert "| expert maths |" in body


def test_exporting_again_changes_nothing(copy: tuple[History, Path]) -> None:
    history, folder = copy
    before = contents(folder)
    lines = export(history, folder, 0, 2)
    assert [line.split(": ")[1].split(";")[0] for line in lines[:2]] == ["unchanged", "unchanged"]
    assert contents(folder) == before


def test_exporting_elsewhere_gives_the_same_bytes(
    copy: tuple[History, Path], tmp_path: Path
) -> None:
    history, folder = copy
    known = len(held_out_scores(history))
    export(history, tmp_path / "elsewhere", 0, 2)
    assert contents(tmp_path / "elsewhere") == contents(folder)
    assert len(held_out_scores(history)) == known


def contents(folder: Path) -> dict[str, bytes]:
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.yaml", "config.json", "README.md"])
def test_a_changed_file_is_named_and_nothing_is_touched(
    copy: tuple[History, Path], name: str
) -> None:
    history, folder = copy
    path = folder / "trial-0002" / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(Problems) as caught:
        export(history, folder, 0, 2)
    assert caught.value.exit_code == 2
    assert caught.value.lines() == [
        f"{folder / 'trial-0002'}: {name} differs from what was exported"
    ]
    assert path.read_bytes() == bytes(content)


def test_missing_and_additional_files_are_named(copy: tuple[History, Path]) -> None:
    folder = copy[1] / "trial-0000"
    (folder / "tokenizer.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    (folder / ".gitattributes").write_text("")
    assert verify_export(folder) == [
        "tokenizer.json is missing",
        "adapter_config.json is not part of the export",
    ]
    (folder / "manifest.json").unlink()
    assert verify_export(folder) == ["manifest.json is missing"]


def test_a_manifest_that_was_made_to_fit_is_not_believed(copy: tuple[History, Path]) -> None:
    history, folder = copy
    chosen = folder / "trial-0002"
    other = read_recipe(folder / "trial-0000" / "recipe.yaml")
    rewrite(chosen, "recipe.yaml", recipe_text(other))
    assert verify_export(chosen) == ["recipe.yaml is not the recipe that manifest.json names"]
    text = recipe_text(other).replace("0.9", "0.8")
    rewrite(chosen, "recipe.yaml", text)
    assert verify_export(chosen) == [f"recipe.yaml says another recipe than its key {other.key}"]
    manifest = json.loads((chosen / "manifest.json").read_text())
    shutil.rmtree(chosen)
    shutil.copytree(folder / "trial-0000", chosen)
    assert manifest["key"] != other.key
    with pytest.raises(UserError, match="holds another model, trial 0 of campaign 'tiny'"):
        export(history, folder, 2)


def rewrite(folder: Path, name: str, text: str) -> None:
    """Change a file and its hash in the manifest."""
    import hashlib

    (folder / name).write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_changed_source_is_named_before_anything_is_scored(
    finished: Path, history: History, tmp_path: Path
) -> None:
    path = finished / "code" / "model.safetensors"
    original = path.read_bytes()
    path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        with pytest.raises(Problems) as caught:
            export(history, tmp_path / "exports", 0)
    finally:
        path.write_bytes(original)
    assert caught.value.lines() == ["sources.code: the weights changed since the campaign began"]
    assert not held_out_scores(history)
    assert not list((tmp_path / "exports").glob("*"))


def test_weights_other_than_the_scored_ones_are_not_exported(
    copy: tuple[History, Path], tmp_path: Path
) -> None:
    history, _ = copy
    trial = history.trial(0)
    scores = {name: score.__dict__ for name, score in trial.scores.items()}
    with history.store.acquire(NAME) as lease:
        payload = {"scores": scores, "measures": {}, "timings": {}, "digest": "0" * 64}
        history.store.append(lease, 0, "completed", payload)
    history.update()
    with pytest.raises(Fault, match="not those that were scored"):
        export(history, tmp_path / "exports", 0)
    assert not list((tmp_path / "exports").glob("*"))


def test_a_running_campaign_is_not_scored_beside(history: History, tmp_path: Path) -> None:
    with history.store.acquire(NAME), pytest.raises(AlreadyRunning):
        export(history, tmp_path / "exports", 0)


def test_changed_items_are_named(history: History, finished: Path, tmp_path: Path) -> None:
    path = finished / "texts.jsonl"
    original = path.read_text()
    path.write_text(original + '\n{"text": "one more"}')
    try:
        with pytest.raises(Problems, match=r"benchmarks\.texts: the items changed"):
            export(history, tmp_path / "exports", 0)
    finally:
        path.write_text(original)


def test_a_failed_held_out_scoring_is_a_failure_and_is_tried_again(
    copy: tuple[History, Path], tmp_path: Path
) -> None:
    history, folder = copy
    key = history.trial(0).key
    failure = {"kind": "out_of_memory", "message": "no memory", "detail": ""}
    with history.store.acquire(NAME) as lease:
        payload = {"key": key, "model": "trial 0", "scores": {}, "failure": failure}
        history.store.append(lease, None, "held_out", payload)
    found = held_out_scores(history)[key]
    assert found.document() == {"failure": {"kind": "out_of_memory", "message": "no memory"}}
    lines = export(history, folder, 0)
    assert lines[0] == "held-out items: trial 0 scored (1 of 1)"
    assert held_out_scores(history)[key].failure is None


def test_a_folder_that_is_written_anew_is_replaced_as_a_whole(
    copy: tuple[History, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    history, folder = copy
    key, removed = history.trial(0).key, []
    texts = held_out_scores(history)[key].scores["texts"]
    with history.store.acquire(NAME) as lease:
        payload = {"key": key, "model": "trial 0", "scores": {"texts": asdict(texts)}}
        history.store.append(lease, None, "held_out", payload | {"failure": None})
    remove = shutil.rmtree

    def watched(path: Path, ignore_errors: bool = False) -> None:
        removed.append(path.name)
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", watched)
    export(history, folder, 0)
    manifest = json.loads((folder / "trial-0000" / "manifest.json").read_text())
    assert list(manifest["held_out"]["this model"]["scores"]) == ["texts"]
    assert verify_export(folder / "trial-0000") == []
    assert any(name.startswith(".trial-0000.old") for name in removed)
    assert all(name.startswith(".") for name in removed)
    assert not list(folder.glob(".trial*"))


def test_what_a_killed_export_left_is_removed(copy: tuple[History, Path]) -> None:
    history, folder = copy
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    left = folder / f".trial-0001.partial-{platform.node()}-{dead.pid}"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    export(history, folder, 0)
    assert not left.exists()


def test_an_unwritable_folder_is_one_line(copy: tuple[History, Path], tmp_path: Path) -> None:
    history, _ = copy
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(history, tmp_path / "file" / "exports", 0)


def test_the_whole_front_is_the_default_choice(history: History) -> None:
    front = list(history.pareto.front)
    assert choose(history.pareto, history, [], False, None) == front
    assert choose(history.pareto, history, [], True, None) == [history.pareto.knee]
    best = min(front, key=lambda t: t.scores["texts"].value)
    assert choose(history.pareto, history, [], False, " fluency = 1 ,size=0") == [best]
    chosen = choose(history.pareto, history, [2, 0, 2], False, None)
    assert [t.number for t in chosen] == [2, 0]


@pytest.mark.parametrize(
    ("trials", "knee", "prefer", "message"),
    [
        ([1], True, None, "at most one of --trial, --knee and --prefer"),
        ([], True, "fluency=1", "at most one of --trial, --knee and --prefer"),
        ([3], False, None, "trial 3 is failed; only completed trials can be exported"),
        ([4], False, None, "has no trial 4; trials: 0 to 3"),
        ([], False, "fluency", "--prefer: found 'fluency', allowed: objective=weight"),
        ([], False, "", "--prefer: found '', allowed: objective=weight"),
        ([], False, "=1", "--prefer: found '=1', allowed: objective=weight"),
        ([], False, "fluency=much", "--prefer: found 'fluency=much', allowed: objective=weight"),
        ([], False, "fluency=1,fluency=2", "--prefer: fluency is there twice"),
        ([], False, "speed=1", "'speed' is no objective; allowed: fluency, size"),
        ([], False, "fluency=nan", "a weight is a number of 0 or more"),
        ([], False, "fluency=0", "at least one weight must be above 0"),
    ],
)
def test_a_choice_that_cannot_be_is_one_line(
    history: History, trials: list[int], knee: bool, prefer: str | None, message: str
) -> None:
    with pytest.raises(MmmoError) as caught:
        choose(history.pareto, history, trials, knee, prefer)
    assert caught.value.exit_code == 2
    assert message in caught.value.message
