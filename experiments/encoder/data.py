"""TREC-6, SST-2 and AG News as training, search and held-out items.

They come from the files of a folder, or else from the Hugging Face hub. Their terms do not allow
copies in this repository: what is written here lands in `data/generated`, which git ignores.
"""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.zoo import Advance

VARIABLE = "MMMO_CLASSIFY_DATA"
DEFAULT = Path(__file__).parents[2].parent / "shared" / "data" / "classify"
CLASSES = {"trec": 6, "sst2": 2, "agnews": 4}
TRAINED_ON = 1500
SEARCHED_ON = 1000
REPORTED_ON = 2000

LabelledText = tuple[str, int]
Splits = tuple[Sequence[LabelledText], Sequence[LabelledText]]
"""Items to learn from, and items to test on."""


@dataclass(frozen=True)
class Source:
    """Where a task is on the hub: the data set and the field of the label."""

    name: str
    label: str = "label"


HUB = {
    "trec": Source("SetFit/TREC-QC", label="label_coarse"),
    "sst2": Source("SetFit/sst2"),
    "agnews": Source("fancyzhx/ag_news"),
}


def find(given: Path | None) -> Path | None:
    """Find the folder with the raw files: as given, from the environment, or the default.

    None means the hub.
    """
    named = given or (Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None)
    return named or (DEFAULT if DEFAULT.is_dir() else None)


def write_data(raw: Path | None, seed: int, folder: Path, advance: Advance) -> None:
    """Write `<task>_train.jsonl`, `<task>.jsonl` (search) and `<task>_held_out.jsonl`."""
    for task in CLASSES:
        learn, test = _from_hub(HUB[task]) if raw is None else _from_files(task, raw, seed)
        reported = {text for text, _ in test}
        distinct = [(text, label) for text, label in dict(learn).items() if text not in reported]
        items = random.Random(f"{seed} {task}").sample(distinct, TRAINED_ON + SEARCHED_ON)
        _write(folder / f"{task}_train.jsonl", items[:TRAINED_ON])
        _write(folder / f"{task}.jsonl", items[TRAINED_ON:])
        _write(folder / f"{task}_held_out.jsonl", test[:REPORTED_ON])
        advance()


def read(file: Path) -> tuple[list[str], list[int]]:
    """Texts and labels of a file written here."""
    items = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [item["text"] for item in items], [item["label"] for item in items]


def _from_files(task: str, raw: Path, seed: int) -> Splits:
    if task == "trec":
        return _lines(raw / "TREC.train.all", "latin-1"), _lines(raw / "TREC.test.all", "latin-1")
    if task == "sst2":
        return _lines(raw / "stsa.binary.train"), _lines(raw / "stsa.binary.test")
    return _cut(raw / "ag_test.csv", seed)


def _cut(file: Path, seed: int) -> Splits:
    """Cut the test file of AG News in two; its training file is too large to come along."""
    with file.open(encoding="utf-8", newline="") as lines:
        items = [(f"{title} {body}", int(label) - 1) for label, title, body in csv.reader(lines)]
    random.Random(seed).shuffle(items)
    return items[REPORTED_ON:], items[:REPORTED_ON]


def _lines(file: Path, encoding: str = "utf-8") -> list[LabelledText]:
    lines = (line.partition(" ") for line in file.read_text(encoding).splitlines())
    return [(text, int(label)) for label, _, text in lines]


def _from_hub(source: Source) -> Splits:
    from datasets import load_dataset

    def items(split: str) -> list[LabelledText]:
        rows = load_dataset(source.name, split=split)
        return list(zip(rows["text"], rows[source.label], strict=True))

    return items("train"), items("test")


def _write(file: Path, items: Sequence[LabelledText]) -> None:
    rows = ({"text": text, "label": label} for text, label in items)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")
