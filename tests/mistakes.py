"""A campaign that is right in everything, to make mistakes in, and `mmmo` to complain about them.

Use it with `pytest_plugins = ("mistakes",)`. `world` is a fresh copy of the campaign's folder, in
which the test then runs; `complaints_of` runs the real command there.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama

from mmmo.cli import main

EXPERTS = ("maths", "code", "spanish")

CAMPAIGN = """\
schema_version: 1
name: example
seed: 3
sources:
  base: ./base
  experts: {maths: ./maths, code: ./code, spanish: ./spanish}
merge:
  method: ties
  weight: {range: [0.0, 1.5]}
  density: {range: [0.1, 1.0]}
  layer_groups: 1
  filters: []
  dtype: float32
benchmarks:
  sums: {kind: exact_match, data: sums.jsonl, limit: 4, options: {max_new_tokens: 2}}
  python: {kind: nll, data: python.jsonl, limit: 4}
objectives:
  maths: {benchmark: sums}
  code: {benchmark: python}
constraints: ["maths >= 0.0"]
search: {strategy: sobol, initial: 2, batch: 2}
budget: {trials: 2}
pool: {executor: inline, workers: 1}
"""


class CommandLine:
    """Runs `mmmo` in this process and reads what it says."""

    def __init__(self, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = patch, capsys

    def run(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of `mmmo <arguments>`."""
        self._capsys.readouterr()
        self._patch.setattr(sys, "argv", ["mmmo", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = self._capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, out, err

    def complaints(self, *arguments: object) -> list[str]:
        """The lines of a command that ends in exit code 2 and says nothing else."""
        code, out, err = self.run(*arguments)
        assert "Traceback" not in out + err
        assert (code, out) == (2, ""), err
        lines = err.splitlines()
        assert all(line.startswith("mmmo: ") for line in lines), err
        return [line.removeprefix("mmmo: ") for line in lines]

    def complaint(self, *arguments: object) -> str:
        """The one line of such a command."""
        lines = self.complaints(*arguments)
        assert len(lines) == 1, lines
        return lines[0]


@pytest.fixture(scope="session")
def right_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The campaign's folder without mistakes; tests get copies."""
    folder = tmp_path_factory.mktemp("right")
    base = load_file(tiny_llama(folder / "base", 0) / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for expert in EXPERTS:
        shutil.copytree(folder / "base", folder / expert)
        moved = {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        save_file(moved, folder / expert / "model.safetensors", {"format": "pt"})
    sums = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(20)]
    snippets = [{"text": f"print({i})"} for i in range(20)]
    for name, rows in (("sums", sums), ("python", snippets)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "campaign.yaml").write_text(CAMPAIGN)
    return folder


@pytest.fixture
def world(right_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the right world, and the current folder."""
    folder = tmp_path / "world"
    shutil.copytree(right_world, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MMMO_STORE", raising=False)
    return folder


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """Where the user types, quickly: in this process."""
    return CommandLine(monkeypatch, capsys)
