"""Compilers: found, missing, failing, killed; and what is kept of their work."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import in_memory, random_tensors, recipe_of
from torch import Tensor

from evaluators.merging import compiler
from evaluators.merging.codegen import Function, Signature
from evaluators.merging.compiler import CompilerError, Kernel, NoCompilerError, build
from evaluators.merging.engine import MergeEngine
from evaluators.merging.loops import Interpreted, loop

ROOT = Path(__file__).parents[2]
SIGNATURE = Signature((torch.float32,), 1, (torch.float32,))

RECIPES = {
    "ties": {"a": {"density": 0.4}, "b": {"density": 0.7}},
    "dare_linear": {"a": {"density": 0.5}, "b": {"weight": 0.3}},
}

MERGE = """
import test_compiler
print(*test_compiler.digests(compiled=True), sep="\\n")
"""

BUILD = """
import test_compiler
test_compiler.build(test_compiler.tripled, test_compiler.SIGNATURE)
"""


def digests(*, compiled: bool) -> list[str]:
    """What is merged by the operators of `RECIPES`, one that sorts and one that draws numbers."""
    base = random_tensors(0)
    sources = in_memory(base, a=random_tensors(1, base), b=random_tensors(2, base))
    found = []
    for method, parameters in RECIPES.items():
        live = {n: torch.empty(t.shape, dtype=torch.bfloat16) for n, t in base.items()}
        recipe = recipe_of(sources, method, parameters, dtype="bfloat16")
        found.append(MergeEngine(sources, compiled=compiled).merge_into(recipe, live).digest)
    return found


def tripled(blocks: Sequence[Tensor], numbers: Sequence[Tensor], _: Tensor) -> list[Tensor]:
    return [blocks[0] * 3 + numbers[0]]


def halved(blocks: Sequence[Tensor], numbers: Sequence[Tensor], _: Tensor) -> list[Tensor]:
    return [blocks[0] * 0.5 + numbers[0]]


def another() -> Function:
    """The same function, of which no loop is open yet."""
    return lambda blocks, numbers, index: [*tripled(blocks, numbers, index)]


def run(kernel: Callable[..., list[float]]) -> list[float]:
    """Apply `tripled` to 0 … 4, plus 1."""
    result = torch.empty(5)
    kernel((torch.arange(5.0),), np.ones(1, dtype=np.float32), (result,))
    return result.tolist()


def child(script: str, **more: str) -> subprocess.Popen[str]:
    """Run a script in a process of its own, in which a warning is an error."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}{os.pathsep}{Path(__file__).parent}"
    return subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", "-c", script],
        env={**os.environ, "PYTHONPATH": path, **more},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("MMMO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Make a shell script the compiler; `$@` are the arguments."""

    def use(script: str) -> Path:
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        compiler._compiler.cache_clear()
        return path

    yield use
    compiler._compiler.cache_clear()


def compiles(cache: Path) -> int:
    """How many kernels are there."""
    return len(list((cache / "kernels").glob("[!.]*/kernel.so")))


def real() -> str:
    path = shutil.which("g++")
    if path is None:
        pytest.skip("no g++ here")
    return path


def test_a_kernel_is_compiled_once_and_kept(cache: Path, use: Callable[[str], Path]) -> None:
    calls = cache.parent / "calls"
    use(f'echo "$@" >> {calls}; exec {real()} "$@"')
    assert run(build(tripled, SIGNATURE)) == [1.0, 4.0, 7.0, 10.0, 13.0]
    (kernel,) = (cache / "kernels").iterdir()
    assert sorted(os.listdir(kernel)) == ["kernel.cpp", "kernel.so", "vectors.h"]
    before = (kernel / "kernel.so").stat()
    assert run(build(tripled, SIGNATURE)) == [1.0, 4.0, 7.0, 10.0, 13.0]
    assert (kernel / "kernel.so").stat() == before
    with child(BUILD) as other:  # where it has the same name
        assert other.wait() == 0
    assert len([line for line in calls.read_text().splitlines() if "kernel.cpp" in line]) == 1
    assert compiles(cache) == 1


def test_another_function_or_signature_is_another_kernel(cache: Path) -> None:
    half = Signature((torch.bfloat16,), 1, (torch.float32,))
    build(tripled, SIGNATURE)
    build(lambda b, k, i: [b[0] * 2 + k[0]], SIGNATURE)
    build(lambda b, k, i: [b[0].to(torch.float32) * 3 + k[0]], half)
    assert compiles(cache) == 3
    build(lambda b, k, i: [3 * b[0] + k[0]], SIGNATURE)  # does the same
    assert compiles(cache) == 3


def test_threads_that_need_one_kernel_compile_it_once(
    cache: Path, use: Callable[[str], Path]
) -> None:
    calls = cache.parent / "calls"
    use(f'echo "$@" >> {calls}; exec {real()} "$@"')
    function = another()
    with ThreadPoolExecutor(4) as pool:
        loops = list(pool.map(lambda _: loop(function, SIGNATURE, True), range(4)))
    assert len(set(map(id, loops))) == 1
    assert isinstance(loops[0], Kernel)
    assert len([line for line in calls.read_text().splitlines() if "kernel.cpp" in line]) == 1


def test_no_compiler_is_no_warning(
    cache: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[str], Path]
) -> None:
    use("exit 1").unlink()
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(NoCompilerError, match="install g"):
        build(tripled, SIGNATURE)
    found = loop(another(), SIGNATURE, True)
    assert isinstance(found, Interpreted)
    assert run(found) == [1.0, 4.0, 7.0, 10.0, 13.0]
    assert not cache.exists()


def test_what_is_no_program_is_no_compiler(
    monkeypatch: pytest.MonkeyPatch, cache: Path, use: Callable[[str], Path]
) -> None:
    use("exit 1").write_bytes(b"\0")
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(NoCompilerError):
        build(tripled, SIGNATURE)


def test_a_compiler_that_fails_is_a_warning(cache: Path, use: Callable[[str], Path]) -> None:
    path = use('[ "$1" = --version ] || { echo "no such processor" >&2; echo more >&2; exit 1; }')
    with pytest.raises(CompilerError, match=f"{path} failed: no such processor$"):
        build(tripled, SIGNATURE)
    with pytest.warns(UserWarning, match="merging is slow: .*no such processor"):
        found = loop(another(), SIGNATURE, True)
    assert run(found) == [1.0, 4.0, 7.0, 10.0, 13.0]
    assert os.listdir(cache / "kernels") == []


def test_what_cannot_be_written_in_cpp_is_a_warning(cache: Path) -> None:
    with pytest.warns(UserWarning, match="merging is slow: exp"):
        found = loop(lambda b, k, i: [b[0].exp() * 0 + 1], SIGNATURE, True)
    assert run(found) == [1.0] * 5


def test_a_cache_that_cannot_be_written_is_a_warning(cache: Path) -> None:
    cache.write_text("a file")
    expected = f"merging is slow: {cache}: no kernels can be kept here"
    with pytest.warns(UserWarning, match=expected) as seen:
        found = [loop(function, SIGNATURE, True) for function in (another(), halved)]
    assert run(found[0]) == [1.0, 4.0, 7.0, 10.0, 13.0]
    # Python shows a warning once per text and place.
    assert len(seen) == 2
    assert len({(str(one.message), one.filename, one.lineno) for one in seen}) == 1


def test_a_loop_is_opened_once_per_process() -> None:
    assert loop(tripled, SIGNATURE, True) is loop(tripled, SIGNATURE, True)
    assert loop(tripled, SIGNATURE, False) is not loop(tripled, SIGNATURE, True)


def test_merges_without_a_compiler_have_the_same_digest(tmp_path: Path) -> None:
    without = {"PATH": str(tmp_path), "CXX": str(tmp_path / "none"), "MMMO_CACHE": str(tmp_path)}
    with child(MERGE, **without) as process:
        said, _ = process.communicate()
    assert said.split() == digests(compiled=False)  # as kernels give, too: see the contract
    assert not (tmp_path / "kernels").exists()


def test_a_killed_compiler_leaves_nothing_to_stumble_over(
    cache: Path, use: Callable[[str], Path]
) -> None:
    begun = cache.parent / "begun"
    use(f'[ "$SLOW" ] && [ "$1" != --version ] && : > kernel.so && : > {begun} && exec sleep 600\n'
        f'exec {real()} "$@"')  # fmt: skip
    with child(BUILD, SLOW="yes") as process:
        deadline = time.monotonic() + 60
        while not begun.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert begun.exists()
        os.killpg(process.pid, signal.SIGKILL)
    (left,) = os.listdir(cache / "kernels")
    assert left.startswith(".")
    assert "kernel.so" in os.listdir(cache / "kernels" / left)  # half a kernel
    assert run(build(tripled, SIGNATURE)) == [1.0, 4.0, 7.0, 10.0, 13.0]
    assert left not in os.listdir(cache / "kernels")
    assert compiles(cache) == 1


def test_processors_without_wide_vectors(tmp_path: Path) -> None:
    """The header's other half, where this processor would take the first."""
    if "avx512f" not in compiler._processor():
        pytest.skip("all tests of kernels run on it already")
    path = tmp_path / "narrow"
    path.write_text(f'#!/bin/sh\nexec {real()} "$@" -mno-avx512f\n')
    path.chmod(0o755)
    tests = [f"{Path(__file__).parent}/test_codegen.py", "-k", "floating or 16_bit"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command,
        env={**os.environ, "CXX": str(path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
