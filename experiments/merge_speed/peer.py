"""mergekit 0.1.5 at the same merges: as a whole process, and its own functions in this one.

Both work in bfloat16 throughout (`dtype: bfloat16`), as its users' configurations say; ours compute
in float32.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml

from evaluators.merging.mergekit import to_mergekit
from evaluators.recipe import MergeRecipe
from evaluators.sources import Sources
from experiments.merge_speed.clock import child_cpu_seconds, cpu_seconds


def process_cpu_seconds(recipe: MergeRecipe, layers: int) -> float:
    """CPU seconds of `mergekit-yaml -j 1`, from its start to the written model.

    Raises:
        subprocess.CalledProcessError: mergekit failed; what it said is on stderr.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "merge.yml"
        content = to_mergekit(recipe, layers) | {"dtype": "bfloat16", "out_dtype": "bfloat16"}
        file.write_text(yaml.safe_dump(content))
        program = str(Path(sys.executable).with_name("mergekit-yaml"))
        command = [program, "-j", "1", "--quiet", str(file), str(Path(scratch) / "out")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return child_cpu_seconds(_run(command, environment))


def _run(command: list[str], environment: dict[str, str]) -> Callable[[], object]:
    return lambda: subprocess.run(
        command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr
    )


def kernel_cpu_seconds(recipe: MergeRecipe, sources: Sources) -> float:
    """CPU seconds of mergekit's merge function, over all tensors, all inputs in memory."""
    from mergekit.merge_methods import registry  # type: ignore[import-untyped]
    from mergekit.merge_methods.base import (  # type: ignore[import-untyped]
        PerInputValues,
        TensorGroup,
    )

    method = registry.get(recipe.method)
    experts = [sources.experts[name] for name in recipe.experts]
    ids = list(range(1 + len(experts)))
    given = {spec.name: spec.default for spec in method.spec.parameters}
    for name in ("weight", "density"):
        if name in given:
            values = [recipe.parameters[expert].get(name, 1.0) for expert in recipe.experts]
            given[name] = PerInputValues(list(zip(ids[1:], values, strict=True)))

    def merge() -> None:
        for name in sources.base.names:
            tensors = [sources.base.tensor(name), *(e.tensor(name) for e in experts)]
            group = TensorGroup.from_tensors(tensors, ids=ids, base_index=0, name=name)
            method.merge_group(group, **given)

    return cpu_seconds(merge)
