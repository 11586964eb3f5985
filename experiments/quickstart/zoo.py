"""Builds the quickstart's zoo: stories260K, a base warmed up on four tasks, and three experts.

The warm-up is shared: experts trained from the raw checkpoint end too far apart to be merged. See
README.md for the measured effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from experiments import training, zoo
from experiments.quickstart import data, llama2c
from experiments.training import Schedule, fit
from experiments.zoo import Advance, Part

HERE = Path(__file__).parent
BUNDLED = HERE / "data"
SOURCES = [Path(str(m.__file__)) for m in (data, llama2c, training)] + [Path(__file__)]
CHECKPOINT, TOKENS = BUNDLED / "stories260K.bin", BUNDLED / "tok512.bin"
SEED = 7
CONTEXT = 64
IGNORED = -100


@dataclass(frozen=True)
class Training:
    """How a model comes about: from which one, on how many examples of each task per step."""

    start: str
    mix: Mapping[str, int]
    schedule: Schedule
    seed: int


TRAININGS = {
    "base": Training(
        "stories260K",
        {"sums": 72, "python": 12, "spanish": 12, "stories": 12},
        Schedule(steps=160, lr=2e-3),
        SEED,
    ),
    "maths": Training("base", {"sums": 128}, Schedule(steps=240, lr=2e-3), SEED + 1),
    "code": Training("base", {"python": 24}, Schedule(steps=100, lr=2e-3), SEED + 2),
    "spanish": Training("base", {"spanish": 24}, Schedule(steps=100, lr=2e-3), SEED + 3),
}


def build(
    root: Path = HERE, trainings: Mapping[str, Training] = TRAININGS, workers: int = 2
) -> list[str]:
    """Make `root/data/generated` and `root/zoo/<model>`; names of what was not there yet."""
    texts, models = root / "data" / "generated", root / "zoo"
    bundled = [CHECKPOINT, TOKENS, data.MBPP, data.TATOEBA]
    source_key = zoo.content_key({"seed": SEED}, [*bundled, *SOURCES])
    built = zoo.build([Part(models / "stories260K", source_key, write_source)])
    write_data = partial(data.write_data, models / "stories260K", SEED)
    built += zoo.build([Part(texts, source_key, write_data)])

    plan = {name: asdict(training) for name, training in trainings.items()}
    key = zoo.content_key({"trainings": plan, "sources": source_key}, [])
    parts = {
        name: Part(models / name, key, partial(train, t, texts, models), t.schedule.steps)
        for name, t in trainings.items()
    }
    built += zoo.build([parts.pop("base")])
    return built + zoo.build(list(parts.values()), workers)


def write_source(folder: Path, advance: Advance) -> None:
    """Convert the bundled checkpoint and its tokenizer."""
    llama2c.read_model(CHECKPOINT).save_pretrained(folder)
    llama2c.read_tokenizer(TOKENS).save_pretrained(folder)
    advance()


def train(training: Training, texts: Path, models: Path, folder: Path, advance: Advance) -> None:
    """Train a model; each step sums the losses of one batch per task."""
    start = models / training.start
    model = AutoModelForCausalLM.from_pretrained(start)
    tokenizer = AutoTokenizer.from_pretrained(start)
    rows = {
        task: encode(tokenizer, data.read(texts / "train" / f"{task}.jsonl"))
        for task in training.mix
    }

    def loss(generator: torch.Generator) -> torch.Tensor:
        total = torch.zeros(())
        for task, n in training.mix.items():
            chosen = torch.randint(len(rows[task]), (n,), generator=generator)
            ids, labels = pad([rows[task][i] for i in chosen.tolist()])
            total = total + model(input_ids=ids, labels=labels).loss
        return total

    fit(model.parameters(), loss, training.schedule, training.seed, advance)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


Row = tuple[list[int], int]
"""Token ids of one example, and how many of them are given rather than learnt."""


def encode(tokenizer: Tokenizer, items: Sequence[data.Item]) -> list[Row]:
    """Encode each item; of a text only `<s>` is given, of a pair the whole prompt."""
    if "text" in items[0]:
        return [(ids, 1) for ids in tokenizer([item["text"] for item in items])["input_ids"]]
    prompts = tokenizer([item["prompt"] for item in items])["input_ids"]
    whole = tokenizer([item["prompt"] + item["answer"] for item in items])["input_ids"]
    return [(ids, len(prompt)) for ids, prompt in zip(whole, prompts, strict=True)]


def pad(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, both n x length, cut at `CONTEXT`; no loss on what is given or padded."""
    length = min(CONTEXT, max(len(ids) for ids, _ in rows))
    batch = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full_like(batch, IGNORED)
    for i, (ids, given) in enumerate(rows):
        cut = torch.tensor(ids[:length])
        batch[i, : len(cut)] = cut
        labels[i, given : len(cut)] = cut[given:]
    return batch, labels
