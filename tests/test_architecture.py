"""The boundaries between the packages, and what may be imported where and when."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import acquisition
import evaluators
import mmmo

FOLDERS = {p.__name__: Path(str(p.__file__)).parent for p in (acquisition, evaluators, mmmo)}
ROOT = FOLDERS["mmmo"].parent
MODULES = sorted(path for folder in FOLDERS.values() for path in folder.rglob("*.py"))

MAY_NOT = {
    "acquisition": {"evaluators", "mmmo"},
    "evaluators": {"acquisition", "mmmo"},
    "mmmo": set[str](),
}
"""Package → those of ours that it must not know."""

ONLY_IN = {
    "ax": "mmmo/optimizer.py",
    "botorch": "acquisition/",
    "gpytorch": "acquisition/",
    "linear_operator": "acquisition/",
    "transformers": "evaluators/",
    "datasets": "evaluators/",
    "mergekit": "tests/",
    "experiments": "tests/",
}
"""Library → the one place where it may be imported."""

SLOW = {
    "torch",
    "botorch",
    "gpytorch",
    "ax",
    "transformers",
    "datasets",
    "pandas",
    "scipy",
    "numpy",
}
"""What `--help` must do without: importing it takes too long."""


def imports(path: Path) -> Iterator[str]:
    """Top-level packages that a module imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield str(node.module).partition(".")[0]


def loaded_by(code: str) -> set[str]:
    """Top-level packages in memory after running that code in a new process."""
    show = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_there_are_modules_to_look_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(FOLDERS)
    assert "torch" in set(imports(FOLDERS["acquisition"] / "surrogates.py"))
    assert "ax" in set(imports(FOLDERS["mmmo"] / "optimizer.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stay_inside_their_borders(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    found = set(imports(path))
    assert not found & MAY_NOT[place.partition("/")[0]]
    misplaced = {name for name in found & set(ONLY_IN) if not place.startswith(ONLY_IN[name])}
    assert not misplaced


def test_the_three_packages_lie_beside_each_other() -> None:
    """No installed package of the same name shadows one of ours."""
    assert {folder.parent for folder in FOLDERS.values()} == {ROOT}
    assert {folder.name for folder in FOLDERS.values()} == set(FOLDERS)


def test_slow_is_seen_where_it_is_imported() -> None:
    assert {"torch", "botorch"} <= loaded_by("import acquisition.surrogates")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["launch", "--help"]])
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    code = "import mmmo.cli, sys"
    if arguments:
        code += (
            f"\nsys.argv = {['mmmo', *arguments]}\ntry: mmmo.cli.main()\nexcept SystemExit: pass"
        )
    assert not loaded_by(code) & SLOW


def test_loading_a_campaign_file_imports_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "campaign.yaml"
    code = f"import mmmo.example, mmmo.config, pathlib\nfile = pathlib.Path({str(file)!r})"
    code += "\nfile.write_text(mmmo.example.EXAMPLE)\nmmmo.config.load(file)"
    assert not loaded_by(code) & (SLOW - {"numpy"})
