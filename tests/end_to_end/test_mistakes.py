"""Mistakes in a campaign file and in what it names: one clear line each, exit code 2."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from terminals import Terminal
from torch import Tensor

from evaluators.benchmarks.table import misfit

if TYPE_CHECKING:
    from mistakes import CommandLine

pytest_plugins = ("mistakes",)

WEIGHTS = "model.safetensors"
WEIGHT = "weight: {range: [0.0, 1.5]}"
DENSITY = "density: {range: [0.1, 1.0]}"
EXPERTS = "experts: {maths: ./maths, code: ./code, spanish: ./spanish}"
OBJECTIVES = "objectives:\n  maths: {benchmark: sums}\n  code: {benchmark: python}\n"
CONSTRAINT = '["maths >= 0.0"]'
SUMS = "sums: {kind: exact_match, data: sums.jsonl, limit: 4, options: {max_new_tokens: 2}}"

Damage = Callable[[Path], object]
"""Breaks something in the folder of a campaign."""

FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "found nothing, allowed: keys"),
    "list": (b"- a\n- b\n", "found a list, allowed: keys"),
    "text": (b"hello\n", "found a str, allowed: keys"),
    "binary": (b"\xff\xfe\x00", "not a text file in UTF-8"),
    "null byte": (b"a: \0\n", "no valid YAML…#x0000"),
    "two documents": (b"--- {}\n--- {}\n", "line 2, column 1…another document"),
    "python": (b"!!python/object:os.system x\n", "line 1, column 1…python/object"),
    "a list as key": (b"? [a, b]\n: 1\n", "line 1, column 3: keys are plain words"),
    "a NUL": (b'a: ["\\0", 1]\n', "line 1, column 5: text with a NUL in it"),
    "merge key": (b"a: &x {b: 1}\nc:\n  <<: *x\n", "line 3, column 3: keys are not merged"),
    "endless depth": (b"[" * 5000, "no valid YAML"),
}
"""Content of the whole file → what is said."""

SYNTAX = [
    ("name: example", "name: [example", "line 3, column 5…',' or ']'"),
    ("seed: 3", "\tseed: 3", "line 3, column 1…'\\t'…spaces, not by tabs"),
    ("seed: 3", "seed: 3\nseed: 4", "line 4, column 1: key 'seed' is written twice"),
    (WEIGHT, "weight: .nan", "line 9, column 11: .nan is not a finite number"),
    ("{trials: 2}", "{hours: .inf}", ".inf is not a finite number"),
]

TYPOS = [
    ("budget:", "bugdet:", 'bugdet: unknown key; did you mean "budget"?; allowed: schema_version'),
    ("seed: 3", "seeds: 3", 'seeds: unknown key; did you mean "seed"?'),
    (EXPERTS, EXPERTS + "\n  expert: x", 'sources.expert: unknown key; did you mean "experts"?'),
    (WEIGHT, "wieght: 1", 'merge.wieght: unknown key; did you mean "weight"?; allowed: method'),
    ("nll, data: python.jsonl, limit", "nll, data: python.jsonl, limt", "benchmarks.python.limt"),
    ("maths: {benchmark: sums}", "maths: {benchmark: sums, refrence: 0}", '"reference"?'),
    ("initial: 2", "intial: 2", 'search.intial: unknown key; did you mean "initial"?'),
    ("trials: 2", "trails: 2", 'budget.trails: unknown key; did you mean "trials"?'),
    ("workers: 1", "worker: 1", 'pool.worker: unknown key; did you mean "workers"?'),
    ("max_new_tokens", "max_new_tokns", 'sums.options.max_new_tokns: unknown…"max_new_tokens"?'),
    ("method: ties", "method: tis", "merge.method: found 'tis'; did you mean \"ties\"?"),
    ("kind: nll", "kind: nil", "benchmarks.python.kind: found 'nil', allowed: exact_match…'nll'?"),
    (
        "{benchmark: sums}",
        "{benchmark: sum}",
        "maths.benchmark: found 'sum'; did you mean \"sums\"?",
    ),
    (CONSTRAINT, '["math >= 0"]', "constraints.0: found 'math'; did you mean \"maths\"?"),
    ("strategy: sobol", "strategy: sobl", "search.strategy: found 'sobl'; did you mean \"sobol\"?"),
]

MISSING = [
    ("schema_version: 1\n", "", "schema_version: missing"),
    ("name: example\n", "", "name: missing; this key is required"),
    ("  base: ./base\n", "", "sources.base: missing"),
    (f"  {EXPERTS}\n", "", "sources.experts: missing"),
    ("  method: ties\n", "", "merge.method: missing"),
    ("kind: nll, ", "", "benchmarks.python.kind: missing"),
    (", data: python.jsonl", "", "benchmarks.python.data: missing"),
    (OBJECTIVES, "", "objectives: missing"),
    (OBJECTIVES, "objectives: {}\n", "objectives: found {}, allowed: at least one"),
    (EXPERTS, "experts: {}", "sources.experts: found {}, allowed: at least one"),
]

VALUES = [
    ("schema_version: 1", "schema_version: 2", "schema_version: found 2, allowed: 1"),
    ("name: example", "name: ../../etc", "name: found '../../etc', allowed: letters, digits"),
    ("name: example", "name: 2026", "name: found 2026, allowed: text"),
    ("name: example", f"name: {'a' * 101}", "name: found…allowed: at most 100 characters"),
    ("{maths: ./maths,", "{a/b: ./maths,", "sources.experts.a/b: found 'a/b', allowed: letters"),
    (
        "{maths: ./maths,",
        "{base: ./maths,",
        "sources.experts.base: found 'base', allowed: any name",
    ),
    (f"  {SUMS}", f"  ../x: {{kind: nll, data: python.jsonl}}\n  {SUMS}", "benchmarks.../x"),
    ("seed: 3", "seed: -3", "seed: found -3, allowed: greater than or equal to 0"),
    ("seed: 3", "seed: 1.5", "seed: found 1.5, allowed: an integer"),
    ("./base", "''", "sources.base: found '', allowed: text that is not empty"),
    (EXPERTS, "experts: [./maths]", "sources.experts: found ['./maths'], allowed: keys"),
    ("trials: 2", "trials: many", "budget.trials: found 'many', allowed: an integer"),
    ("trials: 2", "trials: '2'", "budget.trials: found '2', allowed: an integer"),
    ("trials: 2", "trials: true", "budget.trials: found True, allowed: an integer"),
    ("trials: 2", "trials: 0", "budget.trials: found 0, allowed: greater than or equal to 1"),
    ("trials: 2", "hours: -1", "budget.hours: found -1, allowed: greater than 0"),
    ("budget: {trials: 2}", "budget:", "budget: found None, allowed: keys with values"),
    ("{benchmark: sums}", "{benchmark: sums, reference: nan}", "found 'nan', allowed: a number"),
    ("{benchmark: sums}", "{benchmark: sums, reference: -1e308}", "maths.reference: found -1e+308"),
    (
        "{benchmark: sums}",
        "{benchmark: sums, reference: 2e15}",
        "found 2000000000000000.0, allowed: less",
    ),
    ("initial: 2", "initial: 0", "search.initial: found 0"),
    ("workers: 1", "workers: 2", "pool: found 2 workers, allowed: 1 with the inline executor"),
    ("executor: inline", "executor: ray", "pool.executor: found 'ray', allowed: 'inline' or 'proc"),
    ("workers: 1", "trial_timeout_s: 0", "pool.trial_timeout_s: found 0, allowed: greater than 0"),
    ("workers: 1", "retries: -1", "pool.retries: found -1"),
    ("workers: 1", "device: warp", "pool.device: found 'warp', allowed: cpu, cuda"),
    ("workers: 1", "device: cuda:99", "pool.device: found 'cuda:99', allowed: what is there"),
    ("seed: 3", "store: runs/x.db", "store: not a database URL: 'runs/x.db'"),
]

MERGE = [
    (WEIGHT, "weight: {range: [1.5, 0.0]}", "merge.weight: found range [1.5, 0.0], allowed: [low"),
    (WEIGHT, "weight: {range: [1.5]}", "merge.weight: found range [1.5], allowed: [low, high]"),
    (WEIGHT, "weight: {range: [0, big]}", "merge.weight: found range [0, 'big'], allowed"),
    (WEIGHT, "weight: {choice: [1]}", "merge.weight: found choice [1], allowed: a list of two"),
    (
        WEIGHT,
        "weight: [0, 1]",
        "merge.weight: found [0, 1], allowed with layer_groups 1: one value",
    ),
    (WEIGHT, "weight: [0]", "merge.weight: found [0], allowed: a value, [first, …, last] over"),
    (WEIGHT, "weight: [0, big]", "merge.weight: found [0, 'big'], allowed: a value, [first"),
    (WEIGHT, "weight: heavy", "merge.weight: found heavy, allowed: a finite number"),
    (WEIGHT, "weight: {maths: 1, code: 1}", "merge.weight: found maths, code…spanish missing"),
    (WEIGHT, "weight: {maths: {a: 1}, code: 1, spanish: 1}", "merge.weight: found {'a': 1}"),
    (
        WEIGHT,
        "weight: {maths: 1, code: 1, spanish: 1, french: 1}",
        "merge.weight.french: found 'french'; allowed: maths, code, spanish",
    ),
    (DENSITY, "density: {range: [0.1, 1.2]}", "merge.density: found 1.2, allowed: numbers in [0,"),
    (DENSITY, "density: -0.1", "merge.density: found -0.1, allowed: numbers in [0, 1]"),
    (DENSITY, "normalize: maybe", "merge.normalize: found maybe, allowed: true, false"),
    (DENSITY, "gamma: 0.1", "merge.gamma: no parameter of ties; allowed: density, lambda"),
    (DENSITY, "lambda: {maths: 1, code: 1, spanish: 1}", "merge.lambda: found one per expert"),
    (DENSITY, "parameters: {density: 1}", "merge: found the key parameters, allowed: its content"),
    (
        f"{WEIGHT}\n  {DENSITY}",
        "weight: 1\n  density: 1",
        "merge: found nothing to search, allowed",
    ),
    (f"ties\n  {WEIGHT}\n  {DENSITY}", "slerp", "merge.method: found 3 experts, allowed: 1 or 2"),
    ("method: ties", "method: {choice: [ties]}", "merge.method: found choice ['ties'], allowed"),
    ("method: ties", "method: {choice: [ties, 3]}", "merge.method: found 3…allowed: linear"),
    ("groups: 1", "groups: 0", "merge.layer_groups: found 0"),
    ("groups: 1", "groups: 3", "merge.layer_groups: found 3, allowed: 1 to 2; the model has 2 lay"),
    ("filters: []", "filters: self_attn", "merge.filters: found 'self_attn', allowed: a list"),
    ("filters: []", "filters: [attn, nose]", "merge.filters: found 'nose', allowed: part of the"),
    ("filters: []", "filters: [mlp, mlp]", "merge.filters: found 'mlp', allowed: part of the name"),
    ("float32", "float64", "merge.dtype: found 'float64', allowed: 'float32', 'bfloat16'"),
]

SCORES_AND_SEARCH = [
    ("kind: nll", "kind: no_such:Thing", "benchmarks.python.kind: 'no_such:Thing' cannot be impor"),
    ("kind: nll", "kind: os:path", "benchmarks.python.kind: 'os:path' has no pydantic model"),
    ("data: sums.jsonl", f"data: {'x' * 300}", "benchmarks.sums: xxx"),
    (
        "{max_new_tokens: 2}",
        "{max_new_tokens: 2, stop: [{a: !!binary gIE=}]}",
        r"sums.options: found b'\x80\x81', allowed: text, numbers, true, false, null, and lists",
    ),
    (
        "strategy: sobol",
        "options: {preset: !!set {a}}",
        "search.options: found {'a'}, allowed: text",
    ),
    ("{max_new_tokens: 2}", "&a {stop: *a}", "benchmarks.sums.options: Circular reference"),
    ("max_new_tokens: 2", "max_new_tokens: 0", "sums.options.max_new_tokens: found 0, allowed"),
    ("max_new_tokens: 2", "extract: '('", "sums.options.extract: not a regular expression"),
    ("max_new_tokens: 2", "limit: 3", "sums.options.limit: allowed: only as benchmarks.sums.limit"),
    ("max_new_tokens: 2", "forced: true, stop: [x]", "benchmarks.sums: `forced` generates nothing"),
    ("sums.jsonl, limit: 4", "sums.jsonl, limit: 0", "benchmarks.sums.limit: found 0"),
    (
        "sums.jsonl, limit: 4",
        "sums.jsonl, held_out_share: 1",
        "held_out_share: found 1, allowed: l",
    ),
    ("sums.jsonl, limit: 4", "sums.jsonl, subset: main", "`subset`…are for `datasets` names"),
    ("{benchmark: sums}", "{}", "objectives.maths: found neither, allowed: exactly one of"),
    ("{benchmark: sums}", "{benchmark: sums, measure: delta_l1}", "objectives.maths: found both"),
    ("{benchmark: sums}", "{measure: delta_l2}", "found 'delta_l2', allowed: 'delta_l1'"),
    (CONSTRAINT, '["maths > 0"]', "constraints.0: found 'maths > 0', allowed: \"objective >= num"),
    (CONSTRAINT, '["maths >= big"]', "constraints.0: found 'maths >= big', allowed"),
    (CONSTRAINT, '["maths >= nan"]', "constraints.0.bound: found nan, allowed: a finite number"),
    (CONSTRAINT, '"maths >= 0"', "constraints: found 'maths >= 0', allowed: a list"),
    (CONSTRAINT, '["maths <= 0.5"]', "constraints.0: found 'maths <= 0.5', allowed: maths >= numb"),
    (CONSTRAINT, '["code >= 0.5"]', "constraints.0: found 'code >= 0.5', allowed: code <= number"),
    ("strategy: sobol", "strategy: os:path", "search.strategy: found 'os:path', no class"),
    ("strategy: sobol", "options: {presett: x}", 'options.presett…did you mean "preset"?; allowed'),
    ("strategy: sobol", "options: {preset: fast}", "preset: found 'fast', allowed: default, refer"),
    ("sobol", "sobol, options: {initial: 3}", "search.options.initial: found 'initial'; allowed"),
]

EDITS = [*SYNTAX, *TYPOS, *MISSING, *VALUES, *MERGE, *SCORES_AND_SEARCH]
"""What stands in the campaign file, what is written instead, and what is said about it."""


def says(line: str, expected: str) -> bool:
    """Whether all parts of `expected` (between …) are in the line."""
    return all(part in line for part in expected.split("…"))


def edit(folder: Path, old: str, new: str) -> None:
    """Change the campaign file in one place."""
    text = (folder / "campaign.yaml").read_text()
    assert text.count(old) == 1, old
    (folder / "campaign.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize("kind", FILES)
def test_no_campaign_file(kind: str, world: Path, command_line: CommandLine) -> None:
    content, expected = FILES[kind]
    (world / "campaign.yaml").write_bytes(content)
    line = command_line.complaint("check", "campaign.yaml")
    assert line.startswith("campaign.yaml: ")
    assert says(line, expected)


@pytest.mark.parametrize(("old", "new", "expected"), EDITS)
def test_one_mistake_in_the_file(
    old: str, new: str, expected: str, world: Path, command_line: CommandLine
) -> None:
    edit(world, old, new)
    assert says(command_line.complaint("check", "campaign.yaml"), expected)


def test_the_file_without_mistakes(world: Path, command_line: CommandLine) -> None:
    code, out, err = command_line.run("check", "campaign.yaml")
    assert (code, err) == (0, "")
    assert "2 objectives, ready to launch" in out


def test_every_mistake_has_its_line(world: Path, command_line: CommandLine) -> None:
    edit(world, "seed: 3", "seed: -3")
    edit(world, "trials: 2", "trails: 2")
    edit(world, "float32", "float64")
    lines = command_line.complaints("check", "campaign.yaml")
    assert [line.split(":")[0] for line in lines] == ["seed", "merge.dtype", "budget.trails"]


def test_every_mistake_of_the_preflight_has_its_line(
    world: Path, command_line: CommandLine
) -> None:
    edit(world, "strategy: sobol", "strategy: mm_mo, options: {fisher: yes}")
    (world / "sums.jsonl").unlink()
    (world / "maths" / "config.json").unlink()
    shutil.rmtree(world / "code")
    lines = command_line.complaints("check", "campaign.yaml")
    assert [line.split(":")[0] for line in lines] == [
        "benchmarks.sums",
        "sources.maths",
        "sources.code",
        "search.options",
    ]


def test_a_mistake_records_no_campaign(world: Path, command_line: CommandLine) -> None:
    edit(world, "filters: []", "filters: [nose]")
    assert "merge.filters" in command_line.complaint("launch", "campaign.yaml")
    assert not (world / "runs").exists()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("nothing.yaml", "nothing.yaml: no such file; mmmo init writes an example"),
        ("base", "base: cannot be read: Is a directory"),
        ("sums.jsonl", "sums.jsonl: line 2, column 1"),
        ("base/model.safetensors", "not a text file in UTF-8"),
        ("/proc/self/mem", "/proc/self/mem: cannot be read"),
    ],
)
def test_paths_that_are_no_campaign(
    path: str, expected: str, world: Path, command_line: CommandLine
) -> None:
    assert expected in command_line.complaint("check", path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(world: Path, command_line: CommandLine) -> None:
    (world / "campaign.yaml").chmod(0)
    assert "cannot be read: Permission denied" in command_line.complaint("check", "campaign.yaml")


def rewrite(**changes: object) -> Damage:
    """Change keys of an expert's configuration."""

    def damage(folder: Path) -> None:
        path = folder / "code" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def store(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Damage:
    """Write other tensors into a model's folder."""

    def damage(folder: Path) -> None:
        path = folder / name / WEIGHTS
        tensors = {n: t.clone() for n, t in load_file(path).items()}  # not of the file any more
        save_file(change(tensors), path)

    return damage


def overwrite(path: str, content: bytes) -> Damage:
    return lambda folder: (folder / path).write_bytes(content)


NORM = "model.norm.weight"
MODELS: dict[str, tuple[Damage, str]] = {
    "no folder": (lambda f: shutil.rmtree(f / "code"), "code: no such folder"),
    "a file": (lambda f: edit(f, "./code", "./sums.jsonl"), "sums.jsonl: no such folder"),
    "a revision": (lambda f: edit(f, "./code", "./code@main"), "local folder has no revisions"),
    "no weights": (lambda f: (f / "code" / WEIGHTS).unlink(), "code: has no model.safetensors"),
    "pickled": (
        lambda f: (f / "code" / WEIGHTS).rename(f / "code" / "pytorch_model.bin"),
        "pytorch .bin files are not read; convert them to safetensors",
    ),
    "adapter": (
        lambda f: (f / "code" / WEIGHTS).rename(f / "code" / "adapter_model.safetensors"),
        "is an adapter (LoRA); merge it into its base",
    ),
    "truncated": (
        lambda f: os.truncate(f / "code" / WEIGHTS, 5000),
        "truncated or corrupt safetensors",
    ),
    "garbage": (overwrite(f"code/{WEIGHTS}", b"\xff" * 99), "header too large"),
    "no bytes": (overwrite(f"code/{WEIGHTS}", b""), "header too small"),
    "no shard": (
        overwrite(f"code/{WEIGHTS}.index.json", b'{"weight_map": {"a": "one.safetensors"}}'),
        "shard one.safetensors is missing",
    ),
    "bad index": (overwrite(f"code/{WEIGHTS}.index.json", b"{}"), "has no weight_map"),
    "no config": (lambda f: (f / "code" / "config.json").unlink(), "code: has no config.json"),
    "half a config": (overwrite("code/config.json", b"{"), "config.json: not readable as JSON"),
    "list as config": (overwrite("code/config.json", b"[]"), "found list, allowed: a JSON object"),
    "no tokenizer": (overwrite("code/tokenizer.json", b"{}"), "tokenizer.json: has no model.vocab"),
    "other architecture": (
        rewrite(architectures=["MistralForCausalLM"]),
        "architectures: found ['MistralForCausalLM'], the base has ['LlamaForCausalLM']",
    ),
    "other vocabulary": (rewrite(vocab_size=300), "vocabulary of 300, the base has 259"),
    "other shapes": (
        store("code", lambda t: t | {NORM: torch.ones(8)}),
        "other shapes in 1 tensors (model.norm.weight): found (8,), the base has (16,)",
    ),
    "fewer tensors": (
        store("code", lambda t: {n: v for n, v in t.items() if n != NORM}),
        "lacks 1 tensors (model.norm.weight) of the base",
    ),
    "more tensors": (store("code", lambda t: t | {"x": torch.ones(1)}), "has 1 tensors (x) that"),
    "the base": (
        lambda f: shutil.copyfile(f / "base" / WEIGHTS, f / "code" / WEIGHTS),
        "has the same weights as the base",
    ),
    "not finite": (
        store("code", lambda t: t | {NORM: torch.full((16,), torch.nan)}),
        "weights that are not finite in 1 tensors (model.norm.weight)",
    ),
}
"""What happens to an expert, and what is said about it."""


@pytest.mark.parametrize("kind", MODELS)
def test_broken_models(kind: str, world: Path, command_line: CommandLine) -> None:
    damage, expected = MODELS[kind]
    damage(world)
    line = command_line.complaint("check", "campaign.yaml")
    assert line.startswith("sources.code: ")
    assert expected in line


def test_a_tokenizer_with_other_words(world: Path) -> None:
    path = world / "code" / "tokenizer.json"
    path.write_text(path.read_text().replace('"a": ', '"@@": '))
    said = Terminal(world).run("check", "campaign.yaml").stderr
    assert "warning: sources.code: 1 tokens (@@) that the base lacks are dropped" in said


def test_a_model_that_is_nowhere(world: Path) -> None:
    edit(world, "./code", "nobody/nothing")
    done = Terminal(world).run("check", "campaign.yaml", code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("mmmo: sources.code: nobody/nothing: no such folder, nor fetched")
    assert len(done.stderr.splitlines()) == 1


def rows(count: int) -> str:
    return "".join(f'{{"prompt": "{i}+1=", "answer": "{i + 1}"}}\n' for i in range(count))


def replaced(content: str, name: str = "sums.jsonl", kind: str = "exact_match") -> Damage:
    """Give the benchmark another file, whose name says another format."""

    def damage(folder: Path) -> None:
        edit(folder, SUMS, f"sums: {{kind: {kind}, data: {name}}}")
        (folder / name).write_text(content)

    return damage


def held_out(name: str, content: str | None = None) -> Damage:
    def damage(folder: Path) -> None:
        edit(folder, "data: sums.jsonl,", f"data: sums.jsonl, held_out: {name},")
        if content is not None:
            (folder / name).write_text(content)

    return damage


CHOICES = '{"question": "a", "choices": ["a", "b"], "answer": 2}\n'
DATA: dict[str, tuple[Damage, str]] = {
    "no file": (lambda f: (f / "sums.jsonl").unlink(), "sums.jsonl: no such file"),
    "empty": (overwrite("sums.jsonl", b""), "sums.jsonl: no rows"),
    "binary": (overwrite("sums.jsonl", b"\xff\xfe"), "sums.jsonl: not UTF-8 text"),
    "no JSON": (replaced(rows(3) + "{oops\n"), "sums.jsonl:4: not JSON…column 2"),
    "a list": (replaced(rows(3) + "[1]\n"), "sums.jsonl:4: found list, expected an object"),
    "no field": (replaced(rows(3) + '{"prompt": "x"}\n'), "sums.jsonl:4: no field 'answer'; found"),
    "a number": (
        replaced(rows(3) + '{"prompt": "x", "answer": 3}\n'),
        "sums.jsonl:4: answer: found 3, expected a non-empty string",
    ),
    "too few": (replaced(rows(1)), "1 distinct rows, too few for held_out_share 0.5"),
    "overlap": (held_out("b.jsonl", rows(3)), "b.jsonl: shares…rows…for example"),
    "no held-out file": (held_out("b.jsonl"), "b.jsonl: no such file"),
    "held-out name": (held_out("test"), "`held_out`: found 'test', expected a file"),
    "suffix": (replaced(rows(3), "sums.txt"), "found another kind of file, allowed: .jsonl, "),
    "no Parquet": (replaced(rows(3), "sums.parquet"), "sums.parquet: not a Parquet file"),
    "not zipped": (replaced(rows(3), "sums.jsonl.gz"), "sums.jsonl.gz: cannot be read"),
    "cells": (
        replaced("prompt,answer\n1,2,3\n", "sums.csv"),
        "sums.csv:2: found 3 cells, expected",
    ),
    "no choice": (
        replaced(CHOICES, kind="multiple_choice"),
        "sums.jsonl:1: answer: found 2, expected 0 to 1",
    ),
    "no class": (
        replaced('{"text": "a", "label": -1}\n', kind="classification"),
        "sums.jsonl:1: label: found -1, expected an integer from 0",
    ),
}
"""What happens to the data of a benchmark, and what is said about it."""


@pytest.mark.parametrize("kind", DATA)
def test_broken_data(kind: str, world: Path, command_line: CommandLine) -> None:
    damage, expected = DATA[kind]
    damage(world)
    line = command_line.complaint("check", "campaign.yaml")
    assert line.startswith("benchmarks.sums: ")
    assert says(line, expected)


def test_a_benchmark_that_does_not_fit_the_model(world: Path, command_line: CommandLine) -> None:
    for model in ("base", "maths", "code", "spanish"):
        config = json.loads((world / model / "config.json").read_text())
        text = json.dumps({**config, "architectures": ["LlamaModel"]})
        (world / model / "config.json").write_text(text)
    lines = command_line.complaints("check", "campaign.yaml")
    assert lines == [
        "benchmarks.sums: found 'exact_match' for LlamaModel, "
        "allowed: 'exact_match' for a language model",
        "benchmarks.python: found 'nll' for LlamaModel, allowed: 'nll' for a language model",
    ]


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        (
            "import pydantic\nclass Options(pydantic.BaseModel): data: str\n",
            "options_only:",
            "found 'options_only:', a module, allowed: module:Class",
        ),
        ("f(", "half_written:Own", "'half_written:Own' cannot be imported: SyntaxError: "),
    ],
)
def test_an_own_module_that_holds_no_benchmark(
    code: str, kind: str, expected: str, world: Path, command_line: CommandLine
) -> None:
    (world / f"{kind.partition(':')[0]}.py").write_text(code)
    edit(world, SUMS, f"sums: {{kind: '{kind}', data: x}}")
    line = command_line.complaint("check", "campaign.yaml")
    assert line.startswith(f"benchmarks.sums.kind: {expected}")


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("goal: bigger", "metric.goal: found 'bigger', allowed: maximize, minimize"),
        ("goal: [maximize]", "metric.goal: found ['maximize'], allowed: maximize, minimize"),
        ("sizes: {search: 0}", "size('search'): found 0, allowed: an integer of 1 or more"),
        ("sizes: {search: 4.0}", "size('search'): found 4.0, allowed: an integer of 1 or more"),
        ("sizes: {search: true}", "size('search'): found True, allowed: an integer of 1 or more"),
        ("sizes: {held_out: 0}", "size('held_out'): found 0, allowed: an integer of 1 or more"),
        ("sizes: {held_out: -3}", "size('held_out'): found -3, allowed: an integer of 1 or more"),
        ("fingerprint: 7", "fingerprint('search'): found 7, allowed: text"),
        ("fingerprint: null", "'plugins:Rules' cannot be asked: LookupError: no items"),
        (r'error: "no\nluck"', "'plugins:Rules' cannot be opened: RuntimeError: no"),
        ("error: ''", "'plugins:Rules' cannot be opened: RuntimeError"),
    ],
)
def test_an_own_benchmark_that_breaks_the_rules(
    option: str, expected: str, world: Path, command_line: CommandLine
) -> None:
    edit(world, SUMS, f"sums: {{kind: 'plugins:Rules', data: x, options: {{{option}}}}}")
    assert command_line.complaint("check", "campaign.yaml") == f"benchmarks.sums: {expected}"


@pytest.mark.parametrize(
    ("kind", "options", "architecture", "fits"),
    [
        ("nll", {}, "GPT2LMHeadModel", True),
        ("nll", {}, "BertModel", False),
        ("classification", {}, "ViTForImageClassification", True),
        ("classification", {}, "LlamaForCausalLM", False),
        ("classification", {}, "BertModel", False),
        ("classification", {"head": "h.safetensors"}, "BertModel", True),
        ("mine:Own", {}, "BertModel", True),
    ],
)
def test_misfit(kind: str, options: dict[str, str], architecture: str, fits: bool) -> None:
    assert (misfit(kind, options, architecture) == "") is fits
