"""Experts of other tokens than the base: rows aligned by token string, or all tokens united."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import recipe_of, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import byte_tokenizer, tiny_llama
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from evaluators.inspection import compare, inspect_sources
from evaluators.merging.engine import MergeEngine
from evaluators.models import open_model
from evaluators.recipe import ModelRef, TokenizerSource
from evaluators.sources import SourceError, Sources, SourcesError, open_sources

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
WIDTH = 23
"""Another number than any of the rows."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMMO_CACHE", str(tmp_path / "cache"))


def write_model(
    folder: Path,
    tokens: Mapping[str, int] | None,
    rows: int,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    added: Sequence[str] = (),
    head: bool = True,
) -> ModelRef:
    """A model of `WIDTH` columns; `tokens` is its tokenizer, of which `added` are added tokens."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {EMBED: (rows, WIDTH), HEAD: (rows, WIDTH), NORM: (WIDTH,)}
    tensors = {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}
    if not head:
        del tensors[HEAD]
    config = {"model_type": "tiny", "vocab_size": rows, "tie_word_embeddings": not head}
    ref = write_checkpoint(folder, tensors, config)
    if tokens is not None:
        own = {token: i for token, i in tokens.items() if token not in added}
        entries = [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": token.startswith("<r"),
                "normalized": False,
                "special": token.startswith("<s"),
            }
            for token, i in tokens.items()
            if token in added
        ]
        model = {"type": "WordLevel", "vocab": own, "unk_token": "a"}
        content: dict[str, Any] = {"version": "1.0", "model": model, "added_tokens": entries}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    return ref


def opened(base: ModelRef, tokenizer: TokenizerSource = "base", **experts: ModelRef) -> Sources:
    return open_sources(base, experts, tokenizer=tokenizer)


def rows_of(sources: Sources, name: str, tensor: str = EMBED) -> Tensor:
    return sources.all[name].tensor(tensor)


def raw(ref: ModelRef, tensor: str = EMBED) -> Tensor:
    return open_sources(ref, {}).base.tensor(tensor)


ABC = {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize("mode", ["base", "union"])
def test_equal_vocabularies_are_left_alone(tmp_path: Path, mode: TokenizerSource) -> None:
    base = write_model(tmp_path / "base", ABC, 3, seed=0)
    same = write_model(tmp_path / "same", {"c": 2, "b": 1, "a": 0}, 3, seed=1)
    silent = write_model(tmp_path / "silent", None, 3, seed=2)
    found = opened(base, mode, same=same, silent=silent)
    assert [c.folder for c in found.all.values()] == [
        tmp_path / name for name in ("base", "same", "silent")
    ]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("tensor", [EMBED, HEAD])
def test_rows_follow_the_base_by_token(tmp_path: Path, tensor: str) -> None:
    base = write_model(tmp_path / "base", ABC, 4, seed=0)  # a row of padding
    expert = write_model(tmp_path / "e", {"c": 0, "new": 1, "a": 2}, 3, seed=1)
    found = opened(base, e=expert)
    own, theirs = raw(base, tensor), raw(expert, tensor)
    expected = torch.stack([theirs[2], own[1], theirs[0], own[3]])
    assert torch.equal(rows_of(found, "e", tensor), expected)
    assert torch.equal(rows_of(found, "e", NORM), raw(expert, NORM))
    assert found.base.folder == tmp_path / "base"
    made = found.experts["e"].preparation
    assert made is not None
    assert made.done == (
        "2 tensors aligned by token, from 3 rows to 4, 1 tokens (b) taken from the base",
    )
    assert made.warnings == ("1 tokens (new) that the base lacks are dropped",)
    assert found.experts["e"].tokens == ABC
    assert found.experts["e"].vocabulary == 4
    assert [f for f in inspect_sources(found) if f.level == "error"] == []


@pytest.mark.parametrize(("own", "theirs"), [(3, 5), (5, 3), (4, 5)])
def test_padding_follows_the_base(tmp_path: Path, own: int, theirs: int) -> None:
    base = write_model(tmp_path / "base", ABC, own, seed=0)
    expert = write_model(tmp_path / "e", ABC, theirs, seed=1)
    found = opened(base, e=expert)
    expected = torch.cat([raw(expert)[:3], raw(base)[3:]])
    assert torch.equal(rows_of(found, "e"), expected)
    made = found.experts["e"].preparation
    assert made is not None
    assert made.done == (f"2 tensors aligned by token, from {theirs} rows to {own}",)
    assert made.warnings == ()


def test_a_token_in_a_padding_row_is_dropped(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", ABC, 5, seed=0)
    expert = write_model(tmp_path / "e", {**ABC, "new": 3}, 5, seed=1, added=["new"])
    found = opened(base, e=expert)
    assert torch.equal(rows_of(found, "e"), torch.cat([raw(expert)[:3], raw(base)[3:]]))


def test_a_row_of_the_base_is_no_task_vector_at_another_dtype(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", ABC, 3, seed=0)
    expert = write_model(tmp_path / "e", {"a": 0}, 1, seed=1, dtype=torch.bfloat16)
    found = opened(base, e=expert)
    assert rows_of(found, "e").dtype == torch.float32
    assert torch.equal(rows_of(found, "e")[1:], raw(base)[1:])
    assert torch.equal(rows_of(found, "e")[0], raw(expert)[0].float())


def test_the_union_grows_the_base(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", ABC, 4, seed=0)
    first = write_model(tmp_path / "x", {"p": 0, "<s1>": 1, "a": 2}, 3, seed=1, added=["<s1>"])
    second = write_model(tmp_path / "y", {**ABC, "q": 3, "p": 4}, 5, seed=2)
    silent = write_model(tmp_path / "z", None, 4, seed=3)
    found = opened(base, "union", x=first, y=second, z=silent)
    own, x, y = raw(base), raw(first), raw(second)
    assert found.base.tokens == {**ABC, "p": 3, "<s1>": 4, "q": 5}
    p, s, q = (x[0] + y[4]) / 2, x[1], y[3]
    assert torch.equal(rows_of(found, "base"), torch.stack([*own[:3], p, s, q]))
    assert torch.equal(rows_of(found, "x"), torch.stack([x[2], own[1], own[2], x[0], s, q]))
    assert torch.equal(rows_of(found, "y"), torch.stack([*y[:3], y[4], s, q]))
    assert torch.equal(rows_of(found, "z"), torch.stack([*raw(silent)[:3], p, s, q]))
    for checkpoint in found.all.values():
        assert checkpoint.tokens == found.base.tokens
        assert checkpoint.vocabulary == 6
    assert found.base.preparation is not None
    assert found.base.preparation.done == (
        "3 tokens (p, <s1>, q) of the experts added to the base",
    )
    assert [f for f in inspect_sources(found) if f.level == "error"] == []


def test_added_tokens_stay_what_they_are(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", ABC, 3, seed=0)
    tokens = {**ABC, "<s1>": 3, "<r1>": 4}
    expert = write_model(tmp_path / "e", tokens, 5, seed=1, added=["<s1>", "<r1>"])
    folder = opened(base, "union", e=expert).base.folder
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = {t["content"]: (t["special"], t["rstrip"]) for t in content["added_tokens"]}
    assert flags == {"<s1>": (True, False), "<r1>": (False, True)}


def test_a_union_of_known_tokens_changes_no_base(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", ABC, 3, seed=0)
    expert = write_model(tmp_path / "e", {"b": 0, "a": 1}, 2, seed=1)
    found = opened(base, "union", e=expert)
    assert found.base.preparation is None
    assert torch.equal(rows_of(found, "e"), rows_of(opened(base, e=expert), "e"))


tokens = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True)


@given(tokens, tokens, st.integers(0, 3), st.integers(0, 3))
def test_any_vocabularies_align(
    tmp_path_factory: pytest.TempPathFactory,
    ours: list[str],
    theirs: list[str],
    our_padding: int,
    their_padding: int,
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    first, second = ({t: i for i, t in enumerate(v)} for v in (ours, theirs))
    base = write_model(folder / "base", first, len(ours) + our_padding, seed=0)
    expert = write_model(folder / "e", second, len(theirs) + their_padding, seed=1)
    own, other = raw(base), raw(expert)
    for mode in ("base", "union"):
        found = opened(base, mode, e=expert)  # type: ignore[arg-type]
        united, aligned = found.base.tokens, rows_of(found, "e")
        assert united is not None
        assert set(united) == (set(first) if mode == "base" else {*first, *second})
        assert aligned.shape == rows_of(found, "base").shape
        for token, i in united.items():
            row = other[second[token]] if token in second else own[first[token]]
            assert torch.equal(aligned[i], row)
            if token in first:
                assert i == first[token]
                assert torch.equal(rows_of(found, "base")[i], own[i])


def test_a_width_or_a_tensor_that_nobody_knows(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", ABC, 4, seed=0)
    (tmp_path / "e").mkdir()
    wide = {EMBED: torch.ones(2, 5), HEAD: torch.ones(2, 5), NORM: torch.ones(WIDTH)}
    expert = write_checkpoint(tmp_path / "e", wide, {"model_type": "tiny", "vocab_size": 2})
    (tmp_path / "e" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}}}')
    errors = [f.message for f in inspect_sources(opened(base, e=expert)) if f.level == "error"]
    assert any("other shapes in 2 tensors" in message for message in errors)
    assert any("tokenizer differs from the base in 1 tokens (c)" in m for m in errors)
    odd = {EMBED: torch.ones(4, 3), "per_token.bias": torch.ones(4)}
    for name, vocabulary in {"b": '{"a": 0}', "o": '{"b": 0}'}.items():
        write_checkpoint(tmp_path / name, odd)
        (tmp_path / name / "tokenizer.json").write_text(f'{{"model": {{"vocab": {vocabulary}}}}}')
    with pytest.raises(SourceError, match=r"1 tensors \(per_token.bias\) may have rows"):
        opened(ModelRef(path=str(tmp_path / "b")), e=ModelRef(path=str(tmp_path / "o")))


def test_without_tokenizers_sizes_are_an_error(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", ABC, 4, seed=0)
    expert = write_model(tmp_path / "e", None, 5, seed=1)
    errors = [f.message for f in inspect_sources(opened(base, e=expert)) if f.level == "error"]
    assert any("other shapes in 2 tensors" in message for message in errors)
    assert "vocabulary of 5, the base has 4" in errors


def older(folder: Path, kind: str) -> None:
    """Keep a tokenizer in the files of its kind, with one token that was added to them."""
    content = json.loads((folder / "tokenizer.json").read_text())
    *own, (last, number) = content["model"]["vocab"].items()
    (folder / "tokenizer.json").unlink()
    if kind == "vocab.txt":
        (folder / kind).write_text("".join(f"{token}\n" for token, _ in own))
        (folder / "added_tokens.json").write_text(json.dumps({last: number}))
    else:
        (folder / kind).write_text(json.dumps(dict(own)))
        added = {"added_tokens_decoder": {str(number): {"content": last}}}
        (folder / "tokenizer_config.json").write_text(json.dumps(added))


@pytest.mark.parametrize("base_kind", ["vocab.txt", "vocab.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["vocab.txt", "vocab.json"])
def test_tokens_of_older_files_are_aligned(tmp_path: Path, base_kind: str, kind: str) -> None:
    base = write_model(tmp_path / "base", ABC, 3, seed=0)
    expert = write_model(tmp_path / "e", {"c": 0, "b": 1, "a": 2}, 3, seed=1)
    if base_kind != "tokenizer.json":
        older(tmp_path / "base", base_kind)
    older(tmp_path / "e", kind)
    found = opened(base, e=expert)
    assert torch.equal(rows_of(found, "e"), raw(expert)[[2, 1, 0]])
    assert found.experts["e"].tokens == found.base.tokens == ABC


def test_older_files_with_the_bases_tokens_change_nothing(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", ABC, 3, seed=0)
    expert = write_model(tmp_path / "e", ABC, 3, seed=1)
    older(tmp_path / "e", "vocab.txt")
    assert opened(base, e=expert).experts["e"].folder == tmp_path / "e"


def test_several_vocabularies_in_a_file_tell_nothing(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", ABC, 3, seed=0)
    expert = write_model(tmp_path / "e", None, 3, seed=1)
    (tmp_path / "e" / "vocab.json").write_text(json.dumps({"one": ABC, "other": ABC}))
    found = opened(base, e=expert).experts["e"]
    assert (found.tokens, found.folder) == (None, tmp_path / "e")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.txt", b"\xff"),
        ("vocab.json", b"[]"),
        ("added_tokens.json", b"{"),
        ("added_tokens.json", b'{"c": "two"}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "a"}}}'),
    ],
)
def test_older_files_that_are_broken(tmp_path: Path, name: str, content: bytes) -> None:
    base = write_model(tmp_path / "base", ABC, 3, seed=0)
    expert = write_model(tmp_path / "e", ABC, 3, seed=1)
    older(tmp_path / "e", "vocab.txt")
    (tmp_path / "e" / name).write_bytes(content)
    with pytest.raises(SourcesError, match=name):
        opened(base, e=expert)


def test_new_tokens_need_a_file_that_takes_them(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", ABC, 3, seed=0)
    expert = write_model(tmp_path / "e", {**ABC, "new": 3}, 4, seed=1)
    older(tmp_path / "base", "vocab.txt")
    with pytest.raises(SourcesError, match=r"has no tokenizer.json to add 1 tokens \(new\) to"):
        opened(base, "union", e=expert)


def test_pieces_that_differ_are_a_warning(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", None, 3, seed=0)
    expert = write_model(tmp_path / "e", None, 3, seed=1)
    for name in ("base", "e"):
        (tmp_path / name / "tokenizer.model").write_bytes(b"pieces")
    found = opened(base, e=expert)
    assert list(compare("e", found.base, found.experts["e"])) == []
    (tmp_path / "e" / "tokenizer.model").write_bytes(b"others")
    (finding,) = compare("e", found.base, found.experts["e"])
    assert (finding.level, finding.where) == ("warning", "e")
    assert finding.message.startswith("tokenizer.model differs from the base's: ")


def test_every_source_that_fails_is_named(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", ABC, 3, seed=0)
    broken = write_model(tmp_path / "broken", {"a": 0}, 1, seed=1)
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    missing = ModelRef(path=str(tmp_path / "missing"))
    with pytest.raises(SourcesError) as caught:
        opened(base, broken=broken, missing=missing)
    assert list(caught.value.problems) == ["missing"]
    with pytest.raises(SourcesError) as caught:
        opened(base, broken=broken)
    assert "tokenizer.json" in caught.value.problems["broken"]


def grown_llama(folder: Path, tied: bool) -> Path:
    """A tiny Llama that learned two tokens more, saved by the model library."""
    tiny_llama(folder, 1, tied=tied)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>", special=True), AddedToken("hello")])
    tokenizer.save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    torch.manual_seed(5)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("tied", "tokenizer_class"), [(True, "TokenizersBackend"), (False, "Qwen2Tokenizer")]
)
def test_a_united_llama_reads_the_new_tokens(
    tmp_path: Path, tied: bool, tokenizer_class: str
) -> None:
    base = ModelRef(path=str(tiny_llama(tmp_path / "base", 0, tied=tied)))
    config = tmp_path / "base" / "tokenizer_config.json"
    content = json.loads(config.read_text()) | {"tokenizer_class": tokenizer_class}
    config.write_text(json.dumps(content))
    expert = ModelRef(path=str(grown_llama(tmp_path / "expert", tied)))
    found = opened(base, "union", e=expert)
    tokenizer = AutoTokenizer.from_pretrained(found.base.folder)
    assert tokenizer("a<think>hello")["input_ids"][-2:] == [259, 260]
    assert tokenizer.decode([259, 260], skip_special_tokens=True) == "hello"
    model = open_model(found.base.folder, "float32", "cpu")
    parameters = {"e": {"weight": 1.0}}
    MergeEngine(found).merge_into(recipe_of(found, "task_arithmetic", parameters), model.tensors)
    torch.testing.assert_close(model.tensors[EMBED][259:], raw(expert)[259:])
    assert model.tensors[EMBED].shape == (261, 16)
    dropped = opened(base, e=expert).experts["e"].preparation
    assert dropped is not None
    assert dropped.warnings == ("2 tokens (<think>, hello) that the base lacks are dropped",)
