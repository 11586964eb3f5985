"""`mmmo merge`: what it writes and says, what it refuses, and that it writes all or nothing."""

from __future__ import annotations

import io
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from checkpoints import recipe_of, write_checkpoint
from rich.console import Console
from safetensors.torch import load_file, save_file
from terminals import MMMO, SETTINGS, without_progress
from tiny_models import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from evaluators.merging.engine import MergeEngine
from evaluators.merging.mergekit import to_mergekit
from evaluators.merging.stored import stored_digest
from evaluators.recipe import ModelRef
from evaluators.sources import open_sources
from mmmo.errors import UserError
from mmmo.model_folder import shard_size_bytes
from mmmo.writing import WritingDisplay, written_bytes

if TYPE_CHECKING:
    from mistakes import CommandLine

pytest_plugins = ("mistakes",)

TIES = """\
# my first merge
merge_method: dare_ties
base_model: base
models:
  - {model: a, parameters: {weight: 0.5, density: 0.4}}
  - {model: b, parameters: {weight: [0.2, 0.8]}}
dtype: float32
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    base = load_file(tiny_llama(folder / "base", 0) / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name in "ab":
        tiny_llama(folder / name, 0)
        moved = {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        save_file(moved, folder / name / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def _inside(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work beside the models."""
    for name in ("base", "a", "b"):
        (tmp_path / name).symlink_to(zoo / name)
    (tmp_path / "config.yml").write_text(TIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMMO_CACHE", str(tmp_path / "cache"))


def digest_of(command_line: CommandLine, *arguments: object) -> str:
    code, out, err = command_line.run("merge", *arguments)
    assert (code, without_progress(err)) == (0, "")
    line = next(line for line in out.splitlines() if line.startswith("digest "))
    return line.removeprefix("digest ")


def test_a_model_that_loads_and_says_where_it_comes_from(command_line: CommandLine) -> None:
    digest = digest_of(command_line, "config.yml", "out", "--dtype", "bfloat16", "--seed", "3")
    assert stored_digest(Path("out")) == digest
    kept = Path("out/mergekit_config.yml").read_text()
    assert kept.endswith(TIES)
    assert f"# Merged by mmmo 0.1.0 (--dtype bfloat16 --seed 3): {digest}\n" in kept
    assert "# Random masks come from a counter-based generator with seed 3" in kept
    model = AutoModelForCausalLM.from_pretrained("out")
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained("out")("a").input_ids
    assert Path("out/generation_config.json").is_file()


def test_the_seed_decides_the_masks_and_nothing_else_the_digest(command_line: CommandLine) -> None:
    first = digest_of(command_line, "config.yml", "one")
    assert digest_of(command_line, "config.yml", "two", "--shard-size", "9KB") == first
    assert digest_of(command_line, "one/mergekit_config.yml", "again") == first
    assert digest_of(command_line, "config.yml", "three", "--seed", "1") != first
    assert len(list(Path("two").glob("*.safetensors"))) > 1
    assert len(list(Path("one").glob("*.safetensors"))) == 1


def test_a_recipe_that_was_written_gives_the_same_weights(command_line: CommandLine) -> None:
    sources = open_sources(ModelRef(path="base"), {n: ModelRef(path=n) for n in "ab"})
    parameters = {
        "a": {"weight": [[0.2, 1.1], [0.5, 0.4]], "density": 0.5},
        "b": {"weight": 0.7, "density": [[0.9, 0.3], [0.4, 0.6]]},
        "*": {"lambda": 1.2, "rescale": "none"},
    }
    more: dict[str, Any] = {"layer_groups": 2, "filters": ("mlp",), "dtype": "float16", "seed": 5}
    recipe = recipe_of(sources, "dare_ties", parameters, **more)
    expected = MergeEngine(sources).write(recipe, Path("expected")).digest
    Path("written.yml").write_text(yaml.safe_dump(to_mergekit(recipe, 2)))
    assert digest_of(command_line, "written.yml", "out", "--seed", "5") == expected


def test_tokens_of_all_models(zoo: Path, command_line: CommandLine) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>"], special_tokens=True)
    model = LlamaForCausalLM.from_pretrained(zoo / "a")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained("grown")
    tokenizer.save_pretrained("grown")
    config = (
        "merge_method: linear\nmodels:\n- model: base\n- model: grown\nparameters: {weight: 1}\n"
    )
    Path("base.yml").write_text(config)
    Path("union.yml").write_text(config + "tokenizer_source: union\n")
    sizes = {}
    for name in ("base", "union"):
        assert command_line.run("merge", f"{name}.yml", f"of_{name}")[0] == 0
        sizes[name] = len(AutoTokenizer.from_pretrained(f"of_{name}"))
        merged = AutoModelForCausalLM.from_pretrained(f"of_{name}")
        assert len(merged.get_input_embeddings().weight) >= sizes[name]
    assert sizes == {"base": 259, "union": 260}
    # The dropped token is spoken of every time, also when the aligned model is in the cache.
    again = command_line.run("merge", "base.yml", "again")[1]
    assert "note: grown: 1 tokens (<think>) that the base lacks are dropped" in again


def test_what_the_file_said_when_the_merge_began(command_line: CommandLine) -> None:
    os.mkfifo("config.fifo")
    writer = threading.Thread(target=Path("config.fifo").write_text, args=("\ufeff" + TIES,))
    writer.start()
    expected = digest_of(command_line, "config.fifo", "out")
    writer.join()
    kept = Path("out/mergekit_config.yml")
    assert kept.read_text().endswith(TIES)
    assert digest_of(command_line, kept, "again") == expected


def notes_of(command_line: CommandLine, config: str) -> list[str]:
    """What a merge says about a configuration."""
    Path("noted.yml").write_text(config)
    code, out, _ = command_line.run("merge", "noted.yml", "noted")
    assert code == 0
    return [line.removeprefix("note: ") for line in out.splitlines() if line.startswith("note: ")]


def test_a_filter_that_fits_nothing(command_line: CommandLine) -> None:
    filtered = "weight: [{filter: self_atn, value: 0.1}, {filter: mlp, value: 1}, {value: 0.5}]"
    config = TIES.replace("weight: 0.5", filtered)
    idle = [line for line in notes_of(command_line, config) if "filter" in line]
    assert idle == ["the filter 'self_atn' is ignored, as by mergekit: no tensor's name has it"]


def test_other_types_than_the_bases(command_line: CommandLine) -> None:
    shutil.copytree("b", "rounded")
    half = {n: t.to(torch.float16) for n, t in load_file("b/model.safetensors").items()}
    save_file(half, "rounded/model.safetensors", {"format": "pt"})
    found = notes_of(command_line, TIES.replace("model: b,", "model: rounded,"))
    assert any(line.startswith("rounded: other dtypes in ") for line in found), found


def test_bits_of_a_base_of_several_types_that_nobody_gave_up(command_line: CommandLine) -> None:
    shutil.copytree("base", "mixed")
    tensors = load_file("base/model.safetensors")
    mixed = {n: t if "norm" in n else t.to(torch.bfloat16) for n, t in tensors.items()}
    save_file(mixed, "mixed/model.safetensors", {"format": "pt"})
    found = notes_of(command_line, "merge_method: passthrough\nmodels: [{model: mixed}]\n")
    expected = "of mixed: stored as float32, rounded to bfloat16; see --dtype"
    assert [line for line in found if line.endswith(expected)], found
    assert "5 tensors" in found[-1]


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"- a\n", b"\xff\xfe\x00", b"a: \0", b"a: [", b"[" * 5000]
)
def test_what_is_no_yaml(content: bytes, command_line: CommandLine) -> None:
    Path("bad.yml").write_bytes(content)
    assert command_line.complaint("merge", "bad.yml", "out").startswith("bad.yml: ")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("dtype: float32", "--- {}", ["line 7, column 1: expected a single document"]),
        ("dare_ties", "dare_tis", ["merge_method: found 'dare_tis'; did you mean \"dare_ties\"?"]),
        (
            "density: 0.4",
            "density: 2",
            ["models.0.parameters.density: found 2, allowed: numbers in"],
        ),
        (
            "dtype: float32",
            "modules: {a: 1}\ndtyp: x",
            ["modules: not supported", "dtyp: unknown key; found 'dtyp'; did you mean \"dtype\"?"],
        ),
        ("model: a,", "model: nowhere/at/all,", ["nowhere/at/all: no such folder"]),
        ("model: a,", "model: a+b,", ["is no adapter"]),
        ("model: a, p", "model: no/a}\n  - {model: no/b, p", ["no/a: no s", "no/b: no such"]),
        ("weight: 0.5, density: 0.4", "weight: 1.0e+300", ["merged values are not finite"]),
    ],
)
def test_mistakes_in_the_file(
    old: str, new: str, lines: list[str], command_line: CommandLine
) -> None:
    assert old in TIES
    Path("bad.yml").write_text(TIES.replace(old, new))
    found = command_line.complaints("merge", "bad.yml", "out")
    assert all(line.startswith("bad.yml: ") for line in found)
    for expected in lines:
        assert any(expected in line for line in found), found
    assert not Path("out").exists()
    assert not list(Path().glob(".out*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing.yml", "out"], "nothing.yml: no such file"),
        (["config.yml", "a"], "a: exists already; remove it, or name another folder"),
        (["config.yml", "config.yml"], "config.yml: exists already"),
        (["config.yml", "config.yml/out"], "cannot be written: Not a directory"),
        (["config.yml", "a" * 300], "cannot be written: File name too long"),
        (["a" * 300, "out"], f"{'a' * 300}: File name too long"),
        (["config.yml", "out", "--dtype", "int4"], "--dtype: found 'int4', allowed: float32, bf"),
        (["config.yml", "out", "--shard-size", "5"], "--shard-size: found '5', allowed: a number"),
        (["config.yml", "out", "--seed", "-1"], "'--seed': Input should be greater than or equal"),
        (["config.yml"], "Missing argument 'OUT'"),
    ],
)
def test_wrong_arguments(arguments: list[str], expected: str, command_line: CommandLine) -> None:
    assert expected in command_line.complaint("merge", *arguments)
    assert not Path("out").exists()


@pytest.mark.parametrize("method", ["ties", "dare_ties", "task_arithmetic"])
def test_a_source_that_is_not_finite(method: str, command_line: CommandLine) -> None:
    tensors = load_file("b/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][0, 0] = float("nan")
    Path("b").unlink()
    tiny_llama(Path("b"), 0)
    save_file(tensors, "b/model.safetensors", {"format": "pt"})
    Path("bad.yml").write_text(TIES.replace("dare_ties", method))
    found = command_line.complaint("merge", "bad.yml", "out")
    assert f"or the base has weights that are not finite in {name}" in found
    assert not Path("out").exists()


def test_models_that_do_not_fit(command_line: CommandLine) -> None:
    tiny_llama(Path("deep"), 0, layers=3)
    Path("bad.yml").write_text(TIES.replace("model: b,", "model: deep,"))
    line = command_line.complaint("merge", "bad.yml", "out")
    assert "models: found layers 2 of a, 3 of deep, 2 of base; allowed: equally many" in line


def test_a_slerp_has_two_ends(command_line: CommandLine) -> None:
    config = (
        "merge_method: slerp\nbase_model: base\nmodels: [{model: a}, {model: b}]\n"
        "parameters: {t: 0.25}\n"
    )
    Path("bad.yml").write_text(config)
    line = command_line.complaint("merge", "bad.yml", "out")
    assert line.endswith("found 2 models beside the base, allowed: 1 with slerp")


def test_another_architecture(zoo: Path, command_line: CommandLine) -> None:
    shutil.copytree(zoo / "b", "other")
    config = Path("other/config.json")
    config.write_text(config.read_text().replace('"llama"', '"mistral"'))
    Path("bad.yml").write_text(TIES.replace("model: b,", "model: other,"))
    line = command_line.complaint("merge", "bad.yml", "out")
    assert line == "bad.yml: other: config model_type: found mistral, the base has llama"
    slices = "".join(f"- sources: [{{model: {m}, layer_range: [0, 2]}}]\n" for m in ("a", "other"))
    Path("bad.yml").write_text(f"merge_method: passthrough\nslices:\n{slices}")
    assert command_line.complaint("merge", "bad.yml", "out") == line


def test_tensors_that_the_base_lacks_are_not_dropped(zoo: Path, command_line: CommandLine) -> None:
    shutil.copytree(zoo / "b", "more")
    tensors = load_file("more/model.safetensors")
    save_file(
        {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.ones(16)},
        "more/model.safetensors",
    )
    Path("bad.yml").write_text(TIES.replace("model: b,", "model: more,"))
    line = command_line.complaint("merge", "bad.yml", "out")
    assert "more: has 1 tensors (model.layers.0.self_attn.q_proj.bias) that the base lacks" in line
    assert not Path("out").exists()


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "1"])
def test_modules_that_are_none(text: str, zoo: Path, command_line: CommandLine) -> None:
    shutil.copytree(zoo / "base", "encoder")
    Path("encoder/modules.json").write_text(text)
    Path("bad.yml").write_text(TIES.replace("base_model: base", "base_model: encoder"))
    assert "modules.json: is no list of modules" in command_line.complaint(
        "merge", "bad.yml", "out"
    )


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), (" 1.5 mb", 1_500_000), ("10KB", 10_000)]
)
def test_shard_sizes(text: str, size: int) -> None:
    assert shard_size_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "5", "5B", "-5GB", "0GB", "5 GiB", "1e3MB", "9" * 400 + "GB"]
)
def test_no_shard_sizes(text: str) -> None:
    with pytest.raises(UserError, match="--shard-size: found"):
        shard_size_bytes(text)


# Large models -----------------------------------------------------------------------------------


def test_progress_is_what_is_on_disk(tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(1 << 20)
        file.write(b"x" * (1 << 19))
        file.flush()
        os.fsync(file.fileno())
        written, total = written_bytes(folder)
    assert total == 1 << 20
    assert 1 << 19 <= written < 1 << 20


def test_a_short_merge_shows_nothing(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    with WritingDisplay(tmp_path, console):
        pass
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_what_is_killed_leaves_no_model_that_looks_whole(command_line: CommandLine) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (300_000,)
    for name in ("large", "other"):
        tensors = {f"layers.{i}.weight": torch.randn(shape, generator=generator) for i in range(24)}
        write_checkpoint(Path(name), tensors, {"model_type": "x", "num_hidden_layers": 24})
    Path("large.yml").write_text(
        "merge_method: ties\nbase_model: large\nmodels: [{model: other}]\n"
        "parameters: {weight: 1, density: 0.5}\ndtype: float32\n"
    )
    expected = digest_of(command_line, "large.yml", "uninterrupted")
    command = [*MMMO, "merge", "large.yml", "out"]
    process = subprocess.Popen(
        command, env=os.environ | SETTINGS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    partial = Path(f".out.partial-{platform.node()}-{process.pid}")
    another = Path(f".another.partial-{platform.node()}-{process.pid}")
    another.mkdir()
    while written_bytes(partial)[0] == 0:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert not Path("out").exists()
    assert partial.is_dir()
    assert digest_of(command_line, "large.yml", "out") == expected
    assert stored_digest(Path("out")) == expected
    assert not partial.exists()
    assert another.is_dir()  # the folder may hold what is none of ours


def test_help_is_quick() -> None:
    code = "import sys; sys.argv = ['mmmo', 'merge', '--help']; import mmmo.cli\n"
    code += "try: mmmo.cli.main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_a_compiler_that_fails_is_one_line(command_line: CommandLine) -> None:
    compiler = Path("cxx")
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no >&2\nexit 1\n')
    compiler.chmod(0o755)
    settings = {**os.environ, **SETTINGS, "CXX": str(compiler.absolute())}
    command = [*MMMO, "merge", "config.yml", "out"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=settings)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("merging: ")]
    assert done.returncode == 0
    assert len(lines) == len(set(lines)) >= 1
    assert all(line.startswith("warning: no compiled kernel, merging is slow: ") for line in lines)
