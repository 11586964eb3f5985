"""llama2.c's formats against a reference encoder, the quickstart's data, and the smallest zoos."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer

from experiments.digits import zoo as digits
from experiments.quickstart import data, llama2c
from experiments.quickstart import zoo as quickstart

TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "  two  spaces, a tab\tand\n\na blank line ",
    "def f(x):\n    return [x ** 2 for _ in range(10)] if x != 3 else {'k': \"v\"}",
    "¿Dónde está la niña? ¡Aquí! “Sí…” — 日本 🙂",
    "12+34=640",
    "aaaaaaa heheheh ththth    x",
    "<s> is no token here, nor is <unk or 0x0A",
    " ",
    "",
]


def reference_encode(text: str, pieces: list[llama2c.Piece]) -> list[int]:
    """llama2.c's encoder: characters or their bytes, then the best-scored pair, again and again."""
    ids = {piece.text: i for i, piece in enumerate(pieces)}
    tokens = []
    for character in f" {text}" if text else "":
        known = ids.get(character)
        tokens += [b + 3 for b in character.encode()] if known is None else [known]
    while True:
        pairs = (pieces[a].text + pieces[b].text for a, b in pairwise(tokens))
        found = [(pieces[ids[p]].score, -i, ids[p]) for i, p in enumerate(pairs) if p in ids]
        if not found:
            return tokens
        _, place, merged = max(found)
        tokens[-place : -place + 2] = [merged]


def test_reference_encoder_by_hand() -> None:
    pieces = [llama2c.Piece(t, s) for t, s in [("a", -3), ("b", -4), ("ab", -2), ("ba", -1)]]
    pieces.append(llama2c.Piece(" ", -5))
    assert reference_encode("abab", pieces) == [4, 0, 3, 1]  # " ", "a", "ba", "b"


def test_tokenizer_encodes_as_llama2c_does(tmp_path: Path) -> None:
    llama2c.read_tokenizer(quickstart.TOKENS).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    pieces = llama2c.read_pieces(quickstart.TOKENS)
    snippets = [item["text"] for item in data.snippets()[:60]]
    pairs = [item["prompt"] + item["answer"] for item in data.translations()[:200]]
    plain = [text for text in TEXTS if "<s>" not in text]  # in a text, <s> means the token
    for text in [*plain, *snippets, *pairs]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == reference_encode(text, pieces), text
        assert tokenizer.decode(ids) == text
        assert tokenizer(text)["input_ids"] == [1, *ids]


def test_converted_llama_tells_a_story() -> None:
    model = llama2c.read_model(quickstart.CHECKPOINT).eval()
    tokenizer = llama2c.read_tokenizer(quickstart.TOKENS)
    prompt = tokenizer("Once upon a time, there was a little girl", return_tensors="pt")
    with torch.no_grad():
        story = model.generate(**prompt, do_sample=False, max_new_tokens=48)
        nll = model(input_ids=story, labels=story).loss
    text = tokenizer.decode(story[0], skip_special_tokens=True)
    assert "named Lily. She loved to play" in text
    assert nll < 1.0


def test_sums_are_right_and_reversed() -> None:
    items = {item["prompt"]: item["answer"] for item in data.sums()}
    assert len(items) == 10_000
    assert items["12+34="] == "640"
    assert items["99+99="] == "891"
    assert items["00+07="] == "700"


def test_padding_learns_the_answer_only() -> None:
    ids, labels = quickstart.pad([([1, 5, 6, 7], 2), ([1, 8], 1)])
    assert ids.tolist() == [[1, 5, 6, 7], [1, 8, 0, 0]]
    assert labels.tolist() == [[-100, -100, 6, 7], [-100, 8, -100, -100]]


def test_quickstart_builds(tmp_path: Path) -> None:
    trainings = {
        name: replace(t, schedule=replace(t.schedule, steps=2), mix=dict.fromkeys(t.mix, 4))
        for name, t in quickstart.TRAININGS.items()
    }
    names = ["stories260K", "generated", "base", "maths", "code", "spanish"]
    assert quickstart.build(tmp_path, trainings, workers=1) == names
    assert quickstart.build(tmp_path, trainings, workers=1) == []
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "zoo" / "base")
    maths = AutoModelForCausalLM.from_pretrained(tmp_path / "zoo" / "maths")
    assert not torch.equal(base.lm_head.weight, maths.lm_head.weight)
    for task in data.TASKS:
        trained = data.read(tmp_path / "data" / "generated" / "train" / f"{task}.jsonl")
        asked = data.read(tmp_path / "data" / "generated" / f"{task}.jsonl")
        assert len(asked) == data.HELD_BACK[task]
        assert not {data.content(i) for i in trained} & {data.content(i) for i in asked}


def test_a_sum_asks_the_same_in_either_order() -> None:
    prompts = ["12+34=", "34+12=", "12+43="]
    first, swapped, other = (data.content({"prompt": p, "answer": "640"}) for p in prompts)
    assert first == swapped
    assert first != other


def accuracy(folder: Path, file: Path) -> float:
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    items = [json.loads(line) for line in file.read_text().splitlines()]
    pixels = torch.tensor([item["pixels"] for item in items]).view(-1, 1, 8, 8)
    with torch.no_grad():
        found = model(pixel_values=pixels).logits.argmax(1)
    return (found == torch.tensor([item["label"] for item in items])).float().mean().item()


def test_digits_experts_know_their_own_view(tmp_path: Path) -> None:
    assert digits.build(tmp_path) == ["generated", "base", *digits.VIEWS]
    files = {view: tmp_path / "data" / "generated" / f"{view}.jsonl" for view in digits.VIEWS}
    for view in digits.VIEWS:
        scores = {v: accuracy(tmp_path / "zoo" / view, file) for v, file in files.items()}
        assert scores[view] > accuracy(tmp_path / "zoo" / "base", files[view]), view
        assert all(score < scores[view] - 0.1 for v, score in scores.items() if v != view)


def test_training_repeats_bit_for_bit(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        torch.rand(7)  # the caller's generator must not matter
        digits.write_base(folder, lambda: None)
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second
