"""Live models against plain transformers calls on one text at a time, and opening folders."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import (
    MAX_LENGTH,
    byte_tokenizer,
    tiny_bert,
    tiny_bert_classifier,
    tiny_llama,
    tiny_vit,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from evaluators.decoding import batches
from evaluators.models import LiveModel, ModelError, open_model


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"), 0)


@pytest.fixture(scope="module")
def llama(llama_folder):
    return open_model(llama_folder)


@pytest.fixture(scope="module")
def plain(llama_folder):
    """The same model and its tokenizer, without anything of ours."""
    model = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
    return model, AutoTokenizer.from_pretrained(llama_folder)


def reference(plain, text, scored):
    """Log-likelihood of the last `scored` tokens, and whether each is the most probable."""
    model, tokenizer = plain
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits[0].double().log_softmax(-1)
    places = range(ids.shape[1] - scored, ids.shape[1])
    nats = sum(float(logits[i - 1, ids[0, i]]) for i in places)
    return nats, all(int(logits[i - 1].argmax()) == int(ids[0, i]) for i in places)


# -- likelihoods -----------------------------------------------------------------------------------

PAIRS = [("12+34=", "64"), ("", "hello world"), ("a", "b"), ("long " * 9, "x"), ("é", "ü b")]


def test_likelihoods_agree_with_one_text_at_a_time(llama, plain):
    for (context, more), found in zip(PAIRS, llama.log_likelihoods(PAIRS), strict=True):
        scored = len(more.encode())
        nats, greedy = reference(plain, context + more, scored)
        assert found.nats == pytest.approx(nats, rel=1e-5)
        assert found.tokens == scored
        assert found.greedy == greedy


def test_greedy_is_what_generation_writes(llama):
    contexts = [f"{a}{b}" for a in "abcdefgh" for b in "0123456789"]
    pairs = zip(contexts, llama.generate(contexts, 1), strict=True)
    written = [pair for pair in pairs if pair[1].isascii() and pair[1]]
    assert len(written) > 10
    assert all(found.greedy for found in llama.log_likelihoods(written))
    others = [(context, "~" if more != "~" else "-") for context, more in written]
    assert not any(found.greedy for found in llama.log_likelihoods(others))


@given(order=st.permutations(range(len(PAIRS))), budget=st.integers(1, 200))
def test_order_and_company_do_not_matter(llama, order, budget):
    alone = [llama.log_likelihoods([pair])[0] for pair in PAIRS]
    found = llama.log_likelihoods([PAIRS[i] for i in order], batch_tokens=budget)
    for i, likelihood in zip(order, found, strict=True):
        assert likelihood.nats == pytest.approx(alone[i].nats, rel=1e-5)
        assert likelihood.tokens == alone[i].tokens


def test_too_long_a_text_is_cut_on_the_left(llama, plain):
    context, more = "0123456789" * 30, "abc"
    found = llama.log_likelihoods([(context, more)])[0]
    # The last byte is predicted and not read: MAX_LENGTH + 1 bytes in all, and no BOS is left.
    model, tokenizer = plain
    whole = tokenizer(context + more, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([whole[-(MAX_LENGTH + 1) :]])
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits[0].double().log_softmax(-1)
    nats = sum(float(logits[-i, ids[0, -i]]) for i in (3, 2, 1))
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.tokens == 3
    assert llama.log_likelihoods([("", "x" * 500)])[0].tokens == MAX_LENGTH


def test_nothing_to_score_is_an_error(llama):
    with pytest.raises(ModelError, match="no token to score in ''"):
        llama.log_likelihoods([("context", "")])


def pair_tokenizer(bos):
    """Bytes "a", "b", "c" and one token for "bc"; with BOS known but never put by itself."""
    vocabulary = {"<s>": 0, "a": 1, "b": 2, "c": 3, "bc": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "c")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>" if bos else None)


@pytest.mark.parametrize("bos", [True, False])
def test_a_token_across_the_border_is_scored(llama_folder, tmp_path, bos):
    shutil.copytree(llama_folder, tmp_path / "model")
    pair_tokenizer(bos).save_pretrained(tmp_path / "model")
    model = open_model(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        read = plain(torch.tensor([[1, 4]])).logits[0].log_softmax(-1)  # a, bc
        start = plain(torch.tensor([[0, 1]])).logits[0].log_softmax(-1)  # BOS, a
    crossing, whole = model.log_likelihoods([("ab", "c"), ("", "abc")])
    assert crossing.tokens == 1
    assert crossing.nats == pytest.approx(float(read[0, 4]), rel=1e-5)
    # An empty context: the first token is conditioned on BOS, or not scored without one.
    assert whole.tokens == (2 if bos else 1)
    if bos:
        assert whole.nats < float(start[0, 1])
    else:
        assert whole.nats == pytest.approx(float(read[0, 4]), rel=1e-5)


# -- generation ------------------------------------------------------------------------------------

PROMPTS = [f"{'7' * (i % 5)}{i}+{i * 7}=" for i in range(12)]


def generated(plain, prompt, count):
    model, tokenizer = plain
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    new = out[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_generation_agrees_with_transformers(llama, plain, batch_tokens):
    expected = [generated(plain, prompt, 8) for prompt in PROMPTS]
    assert llama.generate(PROMPTS, 8, batch_tokens=batch_tokens) == expected


def test_generation_stops_before_the_first_stop_string(llama):
    whole = llama.generate(PROMPTS, 12)
    stop = (whole[0][4:6], whole[1][2])
    found = llama.generate(PROMPTS, 12, stop)
    for text, cut in zip(whole, found, strict=True):
        places = [text.find(mark) for mark in stop if mark in text]
        assert cut == text[: min(places, default=None)]
    assert len(found[0]) <= 4
    assert len(found[1]) <= 2


def test_generation_ends_at_the_end_token(llama_folder, tmp_path, plain):
    shutil.copytree(llama_folder, tmp_path / "model")
    model, tokenizer = plain
    first = model(**tokenizer("ab", return_tensors="pt")).logits[0, -1].argmax()
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["eos_token_id"] = [int(first)]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with_end = open_model(tmp_path / "model")
    assert with_end.generate(["ab"], 5) == [tokenizer.decode([first])]


def test_a_long_prompt_keeps_its_end(llama):
    prompt = "0123456789" * 30
    room = MAX_LENGTH - 4
    bos = byte_tokenizer().bos_token_id
    rows = llama._tokenizer.prompts([prompt, "ab"], room)
    assert len(rows[0]) == room
    assert bos not in rows[0]
    assert rows[1][0] == bos
    assert len(llama.generate([prompt], 4)) == 1


def test_generation_needs_room(llama):
    with pytest.raises(ModelError, match=f"max_new_tokens = {MAX_LENGTH}, but the model holds"):
        llama.generate(["ab"], MAX_LENGTH)


# -- classifiers and encoders ----------------------------------------------------------------------

TEXTS = ["good film", "the cat was not a sad dog", "zzz", "bad " * 300]


def test_classifier_agrees_with_one_text_at_a_time(tmp_path):
    folder = tiny_bert_classifier(tmp_path, 0)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH)
    live = open_model(folder)
    with torch.no_grad():
        rows = [model(**tokenizer(t, truncation=True, return_tensors="pt")).logits for t in TEXTS]
    for budget in (1, 16, 4096):
        np.testing.assert_allclose(live.classify(TEXTS, budget), torch.cat(rows), rtol=1e-4)


def test_a_decoder_that_classifies_reads_its_last_token(tmp_path):
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=3,
        initializer_range=0.4,
    )
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    with torch.no_grad():
        rows = [model(**tokenizer(t, return_tensors="pt")).logits for t in TEXTS[:3]]
    found = open_model(tmp_path).classify(TEXTS[:3])
    np.testing.assert_allclose(found, torch.cat(rows), rtol=1e-4, atol=1e-6)


def test_embedding_is_the_mean_over_tokens(tmp_path):
    folder = tiny_bert(tmp_path, 0)
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state for t in TEXTS[:3]]
    expected = torch.cat([state.mean(1) for state in states])
    np.testing.assert_allclose(open_model(folder).embed(TEXTS[:3]), expected, rtol=1e-4, atol=1e-6)


def test_pixels_flat_or_nested(tmp_path):
    live = open_model(tiny_vit(tmp_path, 0))
    pixels = np.random.default_rng(0).normal(size=(300, 1, 8, 8)).astype(np.float32)
    logits = live.classify(pixels)
    assert logits.shape == (300, 3)
    np.testing.assert_array_equal(live.classify(pixels.reshape(300, 64)), logits)
    np.testing.assert_allclose(live.classify(pixels[256:]), logits[256:], rtol=1e-4, atol=1e-6)
    with pytest.raises(ModelError, match="pixels of shape 63, but the model reads 1x8x8"):
        live.classify(pixels.reshape(300, 64)[:, :63])


def test_the_wrong_question_is_an_error(llama, tmp_path):
    with pytest.raises(ModelError, match=r"found LlamaForCausalLM \(language model\), .* encoder"):
        llama.embed(["ab"])
    with pytest.raises(ModelError, match="needs: text classifier"):
        llama.classify(["ab"])
    with pytest.raises(ModelError, match="needs: image classifier"):
        llama.classify(np.zeros((1, 64), np.float32))
    with pytest.raises(ModelError, match="needs: language model"):
        open_model(tiny_bert(tmp_path, 0)).generate(["ab"], 1)


# -- tensors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [tiny_llama, tiny_bert_classifier, tiny_bert, tiny_vit])
def test_tensors_are_live_and_named_as_in_the_files(tmp_path, build):
    first, second = build(tmp_path / "0", 0), build(tmp_path / "1", 1)
    digest = hashlib.sha256((first / "model.safetensors").read_bytes()).hexdigest()
    live, other = open_model(first), open_model(second)
    wanted = load_file(second / "model.safetensors")
    assert set(live.tensors) == set(wanted)
    assert not torch.equal(answers(live), answers(other))
    for name, tensor in live.tensors.items():
        tensor.copy_(wanted[name])
    assert torch.equal(answers(live), answers(other))
    assert hashlib.sha256((first / "model.safetensors").read_bytes()).hexdigest() == digest


def answers(live: LiveModel) -> torch.Tensor:
    """Whatever that kind of model can be asked."""
    kind = live._kind
    if kind == "language_model":
        return torch.tensor([found.nats for found in live.log_likelihoods(PAIRS)])
    if kind == "image_classifier":
        return torch.from_numpy(live.classify(np.ones((2, 64), np.float32)))
    return torch.from_numpy(live.embed(TEXTS) if kind == "encoder" else live.classify(TEXTS))


def test_a_tied_head_has_the_name_in_the_file(tmp_path):
    live = open_model(tiny_llama(tmp_path, 0, tied=True))
    assert "lm_head.weight" not in live.tensors
    assert "model.embed_tokens.weight" in live.tensors
    before = answers(live)
    live.tensors["model.embed_tokens.weight"].mul_(0.5)
    assert live._model.lm_head.weight.data_ptr() == live._model.model.embed_tokens.weight.data_ptr()
    assert not torch.equal(answers(live), before)


def test_a_checkpoint_without_the_prefix_of_its_model(tmp_path):
    """The hub's gpt2 says `wte.weight` where the live model says `transformer.wte.weight`."""
    config = GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=MAX_LENGTH)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    GPT2Model.save_pretrained(model.transformer, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["architectures"] = ["GPT2LMHeadModel"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    byte_tokenizer().save_pretrained(tmp_path)
    live = open_model(tmp_path)
    assert "wte.weight" in live.tensors
    found = live.log_likelihoods([("ab", "c"), ("", "hello")])[1]
    nats, _ = reference((model.eval(), byte_tokenizer()), "hello", 5)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    plain = (model, byte_tokenizer())
    assert live.generate(["abc", "d"], 4) == [generated(plain, p, 4) for p in ("abc", "d")]


def test_sharded_checkpoints(llama_folder, llama, tmp_path):
    AutoModelForCausalLM.from_pretrained(llama_folder).save_pretrained(
        tmp_path, max_shard_size="20kB"
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    byte_tokenizer().save_pretrained(tmp_path)
    assert torch.equal(answers(open_model(tmp_path)), answers(llama))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(llama_folder, llama, dtype):
    live = open_model(llama_folder, dtype)
    assert {t.dtype for t in live.tensors.values()} == {getattr(torch, dtype)}
    assert torch.allclose(answers(live), answers(llama), rtol=0.05)


def test_nothing_learns_and_nothing_drops_out(llama):
    assert not llama._model.training
    assert not any(tensor.requires_grad for tensor in llama.tensors.values())


# -- folders that cannot be opened -----------------------------------------------------------------


def edit_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def add_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    more = {f"model.extra.{i}.weight": torch.zeros(2) for i in range(5)}
    save_file({**tensors, **more}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "not a model folder, it has no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "cannot be opened"),
        (lambda d: (d / "config.json").write_text("{}"), "cannot be opened"),
        (lambda d: edit_config(d, architectures=None), "names no architecture"),
        (lambda d: edit_config(d, model_type="no_such_type"), "cannot be opened.*no_such_type"),
        (lambda d: edit_config(d, is_encoder_decoder=True), "an encoder and a decoder"),
        (lambda d: edit_config(d, hidden_size=32), "cannot be opened"),
        (lambda d: (d / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b"junk"), "unreadable safetensors"),
        (lambda d: (d / "model.safetensors.index.json").write_text("{}"), "unreadable safetensors"),
        (add_tensor, r"5 of 26 tensors have no place in LlamaForCausalLM: model\.extra.*, \.\.\."),
        (lambda d: (d / "tokenizer.json").unlink(), "cannot be opened"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "cannot be opened"),
    ],
)
def test_spoilt_folders_give_one_line(llama_folder, tmp_path, spoil, message):
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        open_model(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value)


def test_remote_code_is_never_run(llama_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    (folder / "trap.py").write_text("raise SystemExit('remote code ran')\n")
    edit_config(
        folder,
        model_type="trap",
        auto_map={"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"},
    )
    with pytest.raises(ModelError, match="cannot be opened"):
        open_model(folder)


# -- batches ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    found = list(batches(lengths, budget))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
