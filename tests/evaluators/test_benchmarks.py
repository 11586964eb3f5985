"""Every kind against the contract, and each kind's own rules, on tiny real models.

The language-model oracle is built by hand: it writes the byte after the last one ("abc" → "def").
Classifier oracles are models that the labels were taken from, through plain transformers calls.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from contracts.benchmark_contract import BenchmarkContract
from pydantic import ValidationError
from safetensors.torch import save_file
from tiny_models import WORDS, tiny_bert, tiny_bert_classifier, tiny_llama, tiny_vit
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from evaluators.benchmarks.benchmark import BenchmarkError, score
from evaluators.benchmarks.rows import DataError
from evaluators.benchmarks.table import BENCHMARKS, open_benchmark, options_of
from evaluators.models import open_model

WHOLE = slice(None)
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def write(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def successor(folder):
    """A Llama that always writes the next byte: attention and MLP off, head = shifted embedding."""
    model = open_model(tiny_llama(folder, 0))
    for name, tensor in model.tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    embedding = model.tensors["model.embed_tokens.weight"]
    embedding.normal_(generator=torch.Generator().manual_seed(0))
    embedding.div_(embedding.norm(dim=1, keepdim=True))
    # Of unit vectors, each has its largest product with itself.
    model.tensors["lm_head.weight"].copy_(embedding.roll(1, dims=0) * 1.5)
    return model


def without_numbers(model):
    for tensor in model.tensors.values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    return model


class LanguageModels:
    @pytest.fixture(scope="class")
    def oracle(self, tmp_path_factory):
        return successor(tmp_path_factory.mktemp("oracle"))

    @pytest.fixture(scope="class")
    def stranger(self, tmp_path_factory):
        return open_model(tiny_llama(tmp_path_factory.mktemp("stranger"), 1))

    @pytest.fixture(scope="class")
    def broken(self, tmp_path_factory):
        return without_numbers(open_model(tiny_llama(tmp_path_factory.mktemp("broken"), 0)))


def sequels():
    """Rows like {"prompt": "7: h", "answer": "ijk"}."""
    for i in range(60):
        at = i % 20
        yield {"prompt": f"{i}: {ALPHABET[at]}", "answer": ALPHABET[at + 1 : at + 4]}


class TestExactMatch(LanguageModels, BenchmarkContract):
    kind = "exact_match"

    @pytest.fixture(scope="class")
    def options(self, tmp_path_factory):
        return {"data": write(tmp_path_factory.mktemp("data"), sequels()), "max_new_tokens": 3}


class TestForcedExactMatch(LanguageModels, BenchmarkContract):
    kind = "exact_match"

    @pytest.fixture(scope="class")
    def options(self, tmp_path_factory):
        return {"data": write(tmp_path_factory.mktemp("data"), sequels()), "forced": True}


class TestAnswerNLL(LanguageModels, BenchmarkContract):
    kind = "nll"

    @pytest.fixture(scope="class")
    def options(self, tmp_path_factory):
        return {"data": write(tmp_path_factory.mktemp("data"), sequels()), "on": "answer"}


class TestPerplexity(LanguageModels, BenchmarkContract):
    kind = "perplexity"

    @pytest.fixture(scope="class")
    def options(self, tmp_path_factory):
        texts = [ALPHABET[a : a + n] for a in range(12) for n in range(3, 8)]
        return {"data": write(tmp_path_factory.mktemp("data"), [{"text": t} for t in texts])}

    def inputs(self, benchmark, split):
        return set(benchmark.rows(split, WHOLE))


class TestMultipleChoice(LanguageModels, BenchmarkContract):
    kind = "multiple_choice"

    @pytest.fixture(scope="class")
    def options(self, tmp_path_factory):
        rows = []
        for i, row in enumerate(sequels()):
            choices = ["zyx", "qqq", "8 8"]
            choices.insert(i % 4, row["answer"])
            rows.append({"question": row["prompt"], "choices": choices, "answer": i % 4})
        return {"data": write(tmp_path_factory.mktemp("data"), rows), "separator": ""}


def sentences():
    return [f"{a} {b} {c}" for a in WORDS[:4] for b in WORDS[4:8] for c in WORDS[8:12]]


class TestTextClassification(BenchmarkContract):
    kind = "classification"

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return tiny_bert_classifier(tmp_path_factory.mktemp("oracle"), 0)

    @pytest.fixture(scope="class")
    def options(self, folder, tmp_path_factory):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = []
        for sentence in sentences():
            with torch.no_grad():
                logits = model(**tokenizer(sentence, return_tensors="pt")).logits
            rows.append({"sentence": sentence, "class": int(logits.argmax())})
        data = write(tmp_path_factory.mktemp("data"), rows)
        return {"data": data, "text": "sentence", "label": "class"}

    @pytest.fixture(scope="class")
    def oracle(self, folder):
        return open_model(folder)

    @pytest.fixture(scope="class")
    def stranger(self, tmp_path_factory):
        return open_model(tiny_bert_classifier(tmp_path_factory.mktemp("stranger"), 1))

    @pytest.fixture(scope="class")
    def broken(self, folder):
        return without_numbers(open_model(folder))


class TestFrozenHead(BenchmarkContract):
    kind = "classification"

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return tiny_bert(tmp_path_factory.mktemp("oracle"), 0)

    @pytest.fixture(scope="class")
    def options(self, folder, tmp_path_factory):
        out = tmp_path_factory.mktemp("data")
        head = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
        bias = torch.tensor([0.1, -0.2, 0.3, 0.0])
        save_file({"weight": head, "bias": bias}, out / "head.safetensors")
        model = AutoModel.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = []
        for sentence in sentences():
            with torch.no_grad():
                states = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state
            rows.append(
                {"text": sentence, "label": int((head @ states[0].mean(0) + bias).argmax())}
            )
        return {"data": write(out, rows), "head": str(out / "head.safetensors")}

    @pytest.fixture(scope="class")
    def oracle(self, folder):
        return open_model(folder)

    @pytest.fixture(scope="class")
    def stranger(self, tmp_path_factory):
        return open_model(tiny_bert(tmp_path_factory.mktemp("stranger"), 1))

    @pytest.fixture(scope="class")
    def broken(self, folder):
        return without_numbers(open_model(folder))


class TestImages(BenchmarkContract):
    kind = "classification"

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return tiny_vit(tmp_path_factory.mktemp("oracle"), 0)

    @pytest.fixture(scope="class")
    def options(self, folder, tmp_path_factory):
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        images = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            labels = model(pixel_values=images).logits.argmax(1)
        rows = [
            {"pixels": image.tolist(), "label": int(label)}
            for image, label in zip(images, labels, strict=True)
        ]
        return {"data": write(tmp_path_factory.mktemp("data"), rows), "pixels": "pixels"}

    @pytest.fixture(scope="class")
    def oracle(self, folder):
        return open_model(folder)

    @pytest.fixture(scope="class")
    def stranger(self, tmp_path_factory):
        return open_model(tiny_vit(tmp_path_factory.mktemp("stranger"), 1))

    @pytest.fixture(scope="class")
    def broken(self, folder):
        return without_numbers(open_model(folder))

    def inputs(self, benchmark, split):
        return {pixels.tobytes() for pixels, _ in benchmark.rows(split, WHOLE)}


# -- each kind's own rules -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    return successor(tmp_path_factory.mktemp("letters"))


def all_outcomes(kind, model, options):
    benchmark = open_benchmark(kind, options)
    splits = [benchmark.rows(s, WHOLE) for s in ("search", "held_out")]
    found = [benchmark.outcomes(model, s, WHOLE) for s in ("search", "held_out")]
    rows = [row for split in splits for row in split]
    return {row[0]: o for row, o in zip(rows, np.concatenate(found), strict=True)}


def test_exact_match_extracts_the_last_match_and_stops(tmp_path, letters):
    rows = [
        {"prompt": "1 a", "answer": "bcd, then: ef"},  # writes "bcdefg", cut before "g"
        {"prompt": "2 a", "answer": "no, yes: fe"},
    ]
    options = {"data": write(tmp_path, rows), "max_new_tokens": 6, "stop": ["g"]}
    options["extract"] = "([a-z])([a-z])"  # last match of "bcdef": "de"; of "... ef": "ef"
    assert all_outcomes("exact_match", letters, options) == {"1 a": 0, "2 a": 0}
    options["extract"] = ".*([a-z])"
    assert all_outcomes("exact_match", letters, options) == {"1 a": 1, "2 a": 0}


def test_exact_match_ignores_blanks_around_the_answer(tmp_path, letters):
    rows = [{"prompt": f"{i} a", "answer": " bcd\n"} for i in range(2)]
    options = {"data": write(tmp_path, rows), "max_new_tokens": 3}
    assert set(all_outcomes("exact_match", letters, options).values()) == {1}


def test_an_answer_that_extract_cannot_match_is_an_error(tmp_path):
    data = write(tmp_path, [{"prompt": "p", "answer": "none"}] * 2)
    with pytest.raises(
        DataError, match=r"rows\.jsonl:1: answer: found 'none', expected a text that"
    ):
        open_benchmark("exact_match", {"data": data, "extract": "[0-9]+"})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("exact_match", {"extract": "("}, "not a regular expression"),
        ("exact_match", {"stop": [""]}, "empty stop"),
        ("exact_match", {"max_new_tokens": 0}, "max_new_tokens"),
        ("exact_match", {"forced": True, "stop": ["x"]}, "no stop"),
        ("exact_match", {"forced": True, "max_new_tokens": 3, "extract": "x"}, "no max_new_tokens"),
        ("nll", {"on": "answer", "text": "t"}, "does not read text"),
        ("perplexity", {"prompt": "p", "answer": "a"}, "does not read answer, prompt"),
        ("multiple_choice", {"normalize": "words"}, "normalize"),
        ("classification", {"pixels": "p", "text": "t"}, "give one of them"),
        ("classification", {"pixels": "p", "head": "h.safetensors"}, "is for texts"),
    ],
)
def test_options_that_contradict_are_refused(kind, options, message):
    with pytest.raises(ValidationError, match=message):
        options_of(kind).model_validate({"data": "rows.jsonl", **options})


def test_nll_by_hand(tmp_path, letters):
    """The successor's logits depend on the last byte alone."""
    data = write(tmp_path, [{"prompt": "a", "answer": "bc"}, {"prompt": "b", "answer": "cd"}])
    found = all_outcomes("nll", letters, {"data": data, "on": "answer"})
    embedding = letters.tensors["model.embed_tokens.weight"].double()
    norm = embedding / (embedding.square().mean(1, keepdim=True) + 1e-6).sqrt()
    logits = norm @ letters.tensors["lm_head.weight"].double().T
    a = 3 + ord("a") - ord("!")  # ids: three special tokens, then "!" and on
    nats = [float(logits[t].logsumexp(0) - logits[t, t + 1]) for t in (a, a + 1, a + 2)]
    assert found["a"] == pytest.approx((nats[0] + nats[1]) / 2, rel=1e-4)
    assert found["b"] == pytest.approx((nats[1] + nats[2]) / 2, rel=1e-4)


def test_perplexity_is_e_to_the_nll(tmp_path, letters):
    data = write(tmp_path, [{"text": ALPHABET[i : i + 5]} for i in range(10)])
    nll = score(open_benchmark("nll", {"data": data}), letters, "search", WHOLE)
    perplexity = score(open_benchmark("perplexity", {"data": data}), letters, "search", WHOLE)
    assert perplexity.value == pytest.approx(np.exp(nll.value))
    assert perplexity.standard_error == pytest.approx(perplexity.value * nll.standard_error)


def test_length_decides_between_long_and_short_choices(tmp_path, letters):
    # Many likely bytes cost more in sum than one unlikely byte, and less per character.
    long = ALPHABET[1:20]
    likelihoods = letters.log_likelihoods([("1 a", "z"), ("1 a", long)])
    assert likelihoods[0].nats > likelihoods[1].nats
    assert likelihoods[0].nats < likelihoods[1].nats / len(long)
    rows = [{"question": f"{i} a", "choices": ["z", long], "answer": 1} for i in range(2)]
    options = {"data": write(tmp_path, rows), "separator": ""}
    assert set(all_outcomes("multiple_choice", letters, options).values()) == {0}
    options["normalize"] = "length"
    assert set(all_outcomes("multiple_choice", letters, options).values()) == {1}


def test_an_answer_that_is_no_choice_names_the_line(tmp_path):
    rows = [{"question": "q", "choices": ["a", "b"], "answer": i} for i in (1, 2)]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: answer: found 2, expected 0 to 1"):
        open_benchmark("multiple_choice", {"data": write(tmp_path, rows)})


def test_a_label_without_a_class_is_an_error(tmp_path):
    data = write(tmp_path, [{"text": "good", "label": 3}, {"text": "bad", "label": 3}])
    model = open_model(tiny_bert_classifier(tmp_path / "model", 0))
    with pytest.raises(BenchmarkError, match="label 3, but the model has classes 0 to 2"):
        score(open_benchmark("classification", {"data": data}), model, "search", WHOLE)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(2, 16)}, "expected weight C x H and bias C"),
        ({"weight": torch.zeros(2, 16), "bias": torch.zeros(3)}, "expected weight C x H"),
        (None, "no such file"),
        (b"junk", "not a safetensors file"),
    ],
)
def test_heads_are_checked(tmp_path, tensors, message):
    data = write(tmp_path, [{"text": "good", "label": 0}, {"text": "bad", "label": 1}])
    head = tmp_path / "head.safetensors"
    if isinstance(tensors, bytes):
        head.write_bytes(tensors)
    elif tensors is not None:
        save_file(tensors, head)
    with pytest.raises(DataError, match=message):
        open_benchmark("classification", {"data": data, "head": str(head)})


def test_a_head_of_another_width(tmp_path):
    data = write(tmp_path, [{"text": "good", "label": 0}, {"text": "bad", "label": 1}])
    save_file({"weight": torch.zeros(2, 8), "bias": torch.zeros(2)}, tmp_path / "h.safetensors")
    options = {"data": data, "head": str(tmp_path / "h.safetensors")}
    model = open_model(tiny_bert(tmp_path / "model", 0))
    with pytest.raises(BenchmarkError, match="a head of width 8 on states of 16"):
        score(open_benchmark("classification", options), model, "search", WHOLE)


def test_images_of_several_shapes(tmp_path):
    rows = [{"pixels": [0.5] * (64 + i), "label": 0} for i in range(8)]
    model = open_model(tiny_vit(tmp_path / "model", 0))
    benchmark = open_benchmark(
        "classification", {"data": write(tmp_path, rows), "pixels": "pixels"}
    )
    with pytest.raises(BenchmarkError, match="images of several shapes"):
        score(benchmark, model, "search", WHOLE)


# -- a user's own ----------------------------------------------------------------------------------


def own_score(summary):
    benchmark = open_benchmark("plugins:Rules", {"summary": summary})
    return score(benchmark, None, "search", WHOLE)


def test_a_negative_standard_error_is_no_score():
    message = r"^weight of 8 items is 0.5 with the standard error -0.1, allowed: 0 or more$"
    with pytest.raises(BenchmarkError, match=message):
        own_score((0.5, -0.1))
    assert own_score((0.5, 0)).standard_error == 0


def test_numbers_of_numpy_become_floats():
    found = own_score((np.float32(0.5), np.array([0.25], dtype=np.float32)[0]))
    assert (type(found.value), type(found.standard_error)) == (float, float)
    assert (found.value, found.standard_error) == (0.5, 0.25)


@pytest.mark.parametrize(
    "summary", [None, 0.5, (0.5,), (0.5, 0.1, 8), (0.5, None), ("half", 0.1), (10**400, 0.1)]
)
def test_what_is_no_number_is_no_score(summary):
    with pytest.raises(BenchmarkError, match=r"^weight of 8 items is .*, allowed: two numbers"):
        own_score(summary)


# -- the table -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("exactmatch", "found 'exactmatch', allowed: .*did you mean 'exact_match'"),
        ("no.such.module:Class", "cannot be imported"),
        ("json:NoSuch", "cannot be imported"),
        ("json:JSONDecoder", "no pydantic model"),
    ],
)
def test_unknown_kinds(kind, message):
    with pytest.raises(LookupError, match=message):
        options_of(kind)


def test_a_dotted_path_is_a_kind(tmp_path):
    options = {"data": write(tmp_path, sequels())}
    dotted = open_benchmark("evaluators.benchmarks.exact_match:ExactMatch", options)
    assert dotted.fingerprint("search") == open_benchmark("exact_match", options).fingerprint(
        "search"
    )


def test_reading_options_imports_nothing_heavy():
    code = f"""
import sys
from evaluators.benchmarks.table import options_of
for kind in {list(BENCHMARKS)}:
    options_of(kind).model_validate({{"data": "rows.jsonl"}})
heavy = {{"torch", "transformers", "datasets", "pyarrow", "pandas"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
