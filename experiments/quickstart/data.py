"""The quickstart's texts: four tasks, each as training items and as benchmark items (JSONL).

Sums are computed, Python and Spanish come from the bundled files, and the stories are written by
stories260K itself. Nothing that trains a model is in a benchmark file; the campaign splits the
benchmark files further, into items to search by and items to report.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.training import seeded
from experiments.zoo import Advance

BUNDLED = Path(__file__).parent / "data"
MBPP = BUNDLED / "mbpp.jsonl.gz"
TATOEBA = BUNDLED / "tatoeba_en_es.tsv.gz"

TASKS = ("sums", "python", "spanish", "stories")
HELD_BACK = {"sums": 1600, "python": 360, "spanish": 600, "stories": 320}
"""How many items of each task go to the benchmark file; the others train."""
STORIES = 800
STORY_TOKENS = 96
SNIPPET_CHARS = 160

Item = dict[str, str]


def write_data(author: Path, seed: int, folder: Path, advance: Advance) -> None:
    """Write `<task>.jsonl` and `train/<task>.jsonl`; the model `author` writes the stories."""
    texts = {"sums": sums(), "python": snippets(), "spanish": translations()}
    texts["stories"] = stories(author, STORIES, seed)
    (folder / "train").mkdir()
    for task in TASKS:
        items = random.Random(f"{seed} {task}").sample(texts[task], len(texts[task]))
        asked = items[: HELD_BACK[task]]
        known = {content(item) for item in asked}
        _write(folder / f"{task}.jsonl", asked)
        _write(folder / "train" / f"{task}.jsonl", [i for i in items if content(i) not in known])
    advance()


def read(file: Path) -> list[Item]:
    """Read the items of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def sums() -> list[Item]:
    """List all sums of two two-digit numbers; the answer's three digits last one first."""
    pairs = ((a, b) for a in range(100) for b in range(100))
    return [{"prompt": f"{a:02}+{b:02}=", "answer": f"{a + b:03}"[::-1]} for a, b in pairs]


def snippets() -> list[Item]:
    """Cut the first lines off each different MBPP solution."""
    with gzip.open(MBPP, "rt", encoding="utf-8") as lines:
        codes = (json.loads(line)["code"] for line in lines)
        texts = dict.fromkeys(_first_lines(code.replace("\r\n", "\n")) for code in codes)
    return [{"text": text} for text in texts if text]


def translations() -> list[Item]:
    """Pair English sentences with their Spanish translations; no sentence occurs twice."""
    with gzip.open(TATOEBA, "rt", encoding="utf-8") as lines:
        pairs = [line.split("\t")[:2] for line in lines]
    return [{"prompt": f"{english} =", "answer": f" {spanish}"} for english, spanish in pairs]


def stories(author: Path, n: int, seed: int) -> list[Item]:
    """Sample the beginnings of `n` stories from a model at temperature 1."""
    model = AutoModelForCausalLM.from_pretrained(author)
    tokenizer = AutoTokenizer.from_pretrained(author)
    start = torch.full((n, 1), tokenizer.bos_token_id)
    with seeded(seed):
        ids: torch.Tensor = model.generate(  # type: ignore[misc,assignment]
            start, do_sample=True, top_k=0, max_new_tokens=STORY_TOKENS
        )
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [{"text": text} for text in dict.fromkeys(texts)]


def content(item: Item) -> tuple[str, ...]:
    """Say what an item asks; a sum asks the same with its summands in the other order."""
    return tuple(sorted(item.get("prompt", item.get("text", "")).removesuffix("=").split("+")))


def _first_lines(code: str) -> str:
    """Whole lines up to `SNIPPET_CHARS` characters, tabs as four spaces."""
    text = code.replace("\t", "    ")
    return text if len(text) <= SNIPPET_CHARS else text[: text.rfind("\n", 0, SNIPPET_CHARS) + 1]


def _write(file: Path, items: Sequence[Item]) -> None:
    lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    file.write_text("".join(lines), encoding="utf-8")
