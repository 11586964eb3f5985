"""Opening checkpoints, one line for everything that is wrong with them, and the preflight."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import in_memory, random_tensors, write_checkpoint
from safetensors.torch import load_file, save_file
from tiny_models import tiny_bert, tiny_llama

from evaluators.inspection import Finding, estimate, inspect_sources
from evaluators.merging.stored import ShardWriter
from evaluators.recipe import ModelRef
from evaluators.sources import SourceError, Sources, open_checkpoint, open_sources

BASE = random_tensors(0)
TUNED = random_tensors(1, BASE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", BASE, {"model_type": "tiny", "vocab_size": 12})
    return tmp_path / "model"


def refusal(folder: Path | str) -> str:
    """The one line that refuses to open a folder."""
    with pytest.raises(SourceError) as caught:
        open_checkpoint(ModelRef(path=str(folder)))
    message = str(caught.value)
    assert message.count("\n") == 0
    return message


def test_a_checkpoint_knows_its_tensors(folder: Path) -> None:
    checkpoint = open_checkpoint(ModelRef(path=str(folder)))
    assert checkpoint.names == tuple(sorted(BASE))
    assert checkpoint.shape("layers.0.mlp.weight") == (8, 4)
    assert checkpoint.dtype("norm.weight") == torch.float32
    assert torch.equal(checkpoint.tensor("head.weight"), BASE["head.weight"])
    assert checkpoint.vocabulary == 12
    assert checkpoint.config["model_type"] == "tiny"


def test_shards_are_one_checkpoint(tmp_path: Path, folder: Path) -> None:
    ref = write_checkpoint(tmp_path / "sharded", BASE, shard_size_bytes=200)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    one, many = open_checkpoint(ModelRef(path=str(folder))), open_checkpoint(ref)
    assert one.names == many.names
    assert all(torch.equal(one.tensor(n), many.tensor(n)) for n in one.names)


def test_models_saved_by_transformers_open(tmp_path: Path) -> None:
    llama = open_checkpoint(ModelRef(path=str(tiny_llama(tmp_path / "llama", 0, tied=True))))
    assert "model.embed_tokens.weight" in llama.names
    assert "lm_head.weight" not in llama.names
    assert llama.tokens is not None
    assert llama.tokens["<s>"] == 0
    bert = open_checkpoint(ModelRef(path=str(tiny_bert(tmp_path / "bert", 0))))
    assert "embeddings.word_embeddings.weight" in bert.names


def test_the_digest_is_of_contents(tmp_path: Path, folder: Path) -> None:
    before = open_checkpoint(ModelRef(path=str(folder))).digest
    twin = write_checkpoint(tmp_path / "twin", BASE, {"model_type": "tiny", "vocab_size": 12})
    assert open_checkpoint(twin).digest == before
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", "vocab_size": 13}))
    changed = open_checkpoint(ModelRef(path=str(folder))).digest
    assert changed != before
    write_checkpoint(folder, TUNED, {"model_type": "tiny", "vocab_size": 13})
    assert open_checkpoint(ModelRef(path=str(folder))).digest not in (before, changed)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "merges.txt", "tokenizer.model"],
)
def test_the_digest_is_of_every_tokenizer_file(folder: Path, name: str) -> None:
    def digest() -> str:
        return open_checkpoint(ModelRef(path=str(folder))).digest

    without = digest()
    (folder / "README.md").write_text("decides nothing")
    assert digest() == without
    (folder / name).write_text("one")
    first = digest()
    (folder / name).write_text("two")
    assert len({without, first, digest()}) == 3


def test_a_tied_head_is_dropped_and_checked(tmp_path: Path) -> None:
    embedding = torch.randn(6, 2)
    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    tied = write_checkpoint(tmp_path / "tied", tensors, {"tie_word_embeddings": True})
    assert open_checkpoint(tied).names == ("model.embed_tokens.weight",)
    free = write_checkpoint(tmp_path / "free", tensors, {"tie_word_embeddings": False})
    assert len(open_checkpoint(free).names) == 2
    tensors["lm_head.weight"] = embedding + 1
    wrong = write_checkpoint(tmp_path / "wrong", tensors, {"tie_word_embeddings": True})
    assert "lm_head.weight differs" in refusal(wrong.path)


def test_missing_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").endswith("no such folder")
    assert "no such folder" in refusal("no/such/model")
    assert refusal("~no-such-user/model").endswith("no such folder")
    assert "no such folder" in refusal("long" * 100)


def test_a_file_is_no_folder(folder: Path) -> None:
    assert "no such folder" in refusal(folder / "config.json")


def test_a_local_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(SourceError, match="no revisions"):
        open_checkpoint(ModelRef.parse(f"{folder}@main"))


def test_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_bad_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder)


def test_no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(folder)
    (folder / "pytorch_model.bin").touch()
    assert "convert" in refusal(folder)
    (folder / "adapter_model.safetensors").touch()
    assert "LoRA" in refusal(folder)


@pytest.mark.parametrize("size", [0, 4, 100, -8])
def test_truncated_safetensors(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "truncated or corrupt" in refusal(folder)


def test_corrupt_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:40] = b"\xff" * 32
    path.write_bytes(content)
    assert "truncated or corrupt" in refusal(folder)


def test_types_that_are_not_merged(tmp_path: Path) -> None:
    eighths = {"w": torch.ones(3).to(torch.float8_e4m3fn), "v": torch.ones(3)}
    save_file(eighths, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert "w is of type torch.float8_e4m3fn, which is not merged" in refusal(tmp_path)


def test_quantised_weights_are_refused(folder: Path) -> None:
    config = {"model_type": "tiny", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "its weights are quantised (gptq), which cannot be averaged" in refusal(folder)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    assert open_checkpoint(ModelRef(path=str(folder))).names == tuple(sorted(BASE))


def test_broken_shards(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, BASE, shard_size_bytes=300)
    shards = sorted(tmp_path.glob("*.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = shards[0].name
    index.write_text(json.dumps(content))
    assert "ghost" in refusal(tmp_path)
    shards[1].unlink()
    assert f"shard {shards[1].name} is missing" in refusal(tmp_path)
    index.write_text("{}")
    assert "weight_map" in refusal(tmp_path)


def test_the_index_decides_whose_tensor_it_is(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, BASE, shard_size_bytes=300)
    first, *_, last = sorted(tmp_path.glob("*.safetensors"))
    name = next(iter(load_file(first)))
    stale = {name: torch.full_like(BASE[name], 7), "unknown": torch.ones(1)}
    save_file(load_file(last) | stale, last)
    opened = open_checkpoint(ModelRef(path=str(tmp_path)))
    assert opened.names == tuple(sorted(BASE))
    assert torch.equal(opened.tensor(name), BASE[name])


def test_shards_in_a_folder_of_their_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, BASE, shard_size_bytes=300)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (tmp_path / "parts").mkdir()
    for shard in tmp_path.glob("*.safetensors"):
        shard.rename(tmp_path / "parts" / shard.name)
    content["weight_map"] = {n: f"./parts/{file}" for n, file in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    assert open_checkpoint(ModelRef(path=str(tmp_path))).names == tuple(sorted(BASE))


def test_no_shard_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    specs = {str(i): (torch.float32, torch.Size([8])) for i in range(9)}
    writer = ShardWriter(tmp_path, specs, 40)
    writer.write("3", torch.ones(8))
    assert len(list(tmp_path.glob("*.safetensors"))) == 9
    assert len(os.listdir("/proc/self/fd")) == before


def sources(**experts: dict[str, torch.Tensor]) -> Sources:
    return in_memory(BASE, **experts)


def messages(findings: list[Finding], level: str) -> str:
    return "\n".join(f"{f.where}: {f.message}" for f in findings if f.level == level)


def test_good_sources_have_no_findings() -> None:
    assert inspect_sources(sources(a=TUNED, b=random_tensors(2, BASE))) == []


def test_missing_extra_and_reshaped_tensors() -> None:
    broken = dict(TUNED)
    broken["extra"] = broken.pop("norm.weight")
    broken["head.weight"] = torch.ones(3, 4)
    found = messages(inspect_sources(sources(a=broken)), "error")
    assert "a: lacks 1 tensors (norm.weight) of the base" in found
    assert "a: has 1 tensors (extra) that the base lacks" in found
    assert "found (3, 4), the base has (12, 4)" in found


def test_other_dtypes_are_a_warning() -> None:
    half = {name: tensor.bfloat16() for name, tensor in TUNED.items()}
    findings = inspect_sources(sources(a=half))
    assert "a: other dtypes in 7 tensors" in messages(findings, "warning")
    assert messages(findings, "error") == ""


def test_other_integers_are_a_warning() -> None:
    steps = {"norm.steps": torch.tensor([3])}
    pair = in_memory(BASE | steps, a=TUNED | steps, b=TUNED | {"norm.steps": torch.tensor([4])})
    found = messages(inspect_sources(pair), "warning")
    assert "b: other integers in 1 tensors (norm.steps): merges keep the base's" in found
    assert "a: other integers" not in found


@pytest.mark.parametrize("where", ["base", "a"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights(where: str, value: float) -> None:
    broken = {name: tensor.clone() for name, tensor in TUNED.items()}
    broken["norm.weight"][1] = value
    pair = in_memory(broken, a=TUNED) if where == "base" else sources(a=broken)
    found = messages(inspect_sources(pair), "error")
    assert f"{where}: weights that are not finite in 1 tensors (norm.weight)" in found


def test_experts_that_equal_something() -> None:
    found = inspect_sources(sources(a=dict(BASE), b=TUNED, c=dict(TUNED)))
    assert messages(found, "error") == "a: has the same weights as the base"
    assert messages(found, "warning") == "c: has the same weights as expert b"


def test_an_unrelated_model_is_reported() -> None:
    found = messages(inspect_sources(sources(a=random_tensors(9))), "warning")
    assert "a: looks like no fine-tune of the base" in found
    scaled = {name: 3 * tensor for name, tensor in BASE.items()}
    assert "relative norm 2.00" in messages(inspect_sources(sources(a=scaled)), "warning")


def test_relations_by_hand() -> None:
    pair = in_memory({"w": torch.tensor([3.0, 4.0])}, a={"w": torch.tensor([3.0, 5.0])})
    assert pair.relations["a"].relative_norm == pytest.approx(1 / 5)
    assert pair.relations["a"].cosine == pytest.approx((9 + 20) / (5 * 34**0.5))


def on_disk(tmp_path: Path, base: dict[str, Any], expert: dict[str, Any]) -> list[Finding]:
    """Findings on two models that differ in these configurations, or `tokenizer` vocabularies."""
    refs = []
    for name, config, tensors in [("base", base, BASE), ("a", expert, TUNED)]:
        tokenizer = config.pop("tokenizer", None)
        refs.append(write_checkpoint(tmp_path / name, tensors, {"model_type": "tiny"} | config))
        if tokenizer is not None:
            content = {"model": {"vocab": tokenizer}, "added_tokens": [{"id": 9, "content": "<s>"}]}
            (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
    return inspect_sources(open_sources(refs[0], {"a": refs[1]}))


@pytest.mark.parametrize(
    ("base", "expert", "expected"),
    [
        ({}, {"model_type": "other"}, "config model_type: found other, the base has tiny"),
        ({"architectures": ["A"]}, {"architectures": ["B"]}, "config architectures: found ['B']"),
        ({}, {"tie_word_embeddings": True}, "config tie_word_embeddings: found True"),
        ({"vocab_size": 3}, {"vocab_size": 4}, "vocabulary of 4, the base has 3"),
        (
            {"tokenizer": {"a": 0, "b": 1}},
            {"tokenizer": {"a": 1, "c": 0}},
            "tokenizer differs from the base in 3 tokens (a, b, c)",
        ),
        (
            {"tokenizer": [["a", -1.0], ["b", -2.0]]},
            {"tokenizer": [["b", -1.0], ["a", -2.0]]},
            "tokenizer differs from the base in 2 tokens (a, b)",
        ),
    ],
)
def test_differing_configurations(
    tmp_path: Path, base: dict[str, Any], expert: dict[str, Any], expected: str
) -> None:
    assert expected in messages(on_disk(tmp_path, base, expert), "error")


def test_equal_tokenizers_are_no_finding(tmp_path: Path) -> None:
    assert on_disk(tmp_path, {"tokenizer": {"a": 0}}, {"tokenizer": {"a": 0}}) == []


@pytest.mark.parametrize("text", ["{}", '{"model": null}', '{"model": {"vocab": [1]}}', "{"])
def test_a_broken_tokenizer(tmp_path: Path, text: str) -> None:
    ref = write_checkpoint(tmp_path, BASE)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(SourceError, match=r"tokenizer\.json"):
        inspect_sources(open_sources(ref, {"a": ref}))


def test_models_with_nothing_in_common_are_not_equal() -> None:
    found = inspect_sources(sources(a={"other": torch.ones(2)}))
    assert "same weights" not in messages(found, "error")
    assert "no fine-tune" in messages(found, "warning")


def test_estimate_by_hand() -> None:
    tensors = {"w": torch.ones(10), "steps": torch.ones(2, dtype=torch.int64)}
    found = estimate(in_memory(tensors, a=dict(tensors)), pool=(2, 1), dtype="bfloat16")
    assert found.disk_bytes_per_export == 10 * 2 + 2 * 8
    # two maps of 56 bytes, and per worker a model and a byte of marks for each of the ten floats
    assert found.memory_bytes == 2 * 56 + 2 * (36 + 10)


def test_operators_that_take_whole_tensors_need_copies() -> None:
    tensors = {"w": torch.ones(10)}
    found = estimate(in_memory(tensors, a=dict(tensors)), (1, 3), "float32", ["ties", "sce"])
    assert found.memory_bytes == 2 * 40 + 40 + 3 * 10 * 4 * (1 + 5)


def test_shards_are_closed_where_one_of_them_cannot_be_begun(tmp_path: Path) -> None:
    # A device has no length to reserve; an open file would be a warning, hence an error here.
    (tmp_path / "model-00002-of-00002.safetensors").symlink_to("/dev/full")
    specs = {name: (torch.float32, torch.Size([8])) for name in "ab"}
    with pytest.raises(OSError, match=r"Invalid argument|No space left"):
        ShardWriter(tmp_path, specs, 40)
    gc.collect()
