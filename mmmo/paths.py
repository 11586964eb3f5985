"""The paths in a campaign file: they are relative to the file; hub ids stay as they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from evaluators.benchmarks.rows import is_file
from evaluators.benchmarks.table import options_of
from evaluators.recipe import ModelRef

if TYPE_CHECKING:
    from mmmo.config import BenchmarkConfig, CampaignConfig


def with_absolute_paths(config: CampaignConfig, folder: Path) -> CampaignConfig:
    """Resolve what is a path beside the campaign file, which lies in this folder."""
    sources, benchmarks = config.sources, config.benchmarks
    update = {
        "base": _source(sources.base, folder),
        "experts": {name: _source(text, folder) for name, text in sources.experts.items()},
    }
    return config.model_copy(
        update={
            "sources": sources.model_copy(update=update),
            "benchmarks": {name: _benchmark(b, folder) for name, b in benchmarks.items()},
        }
    )


def _source(text: str, folder: Path) -> str:
    if os.path.isdir(_beside(text, folder)):  # also one with + or @ in its name
        return _resolved(text, folder)
    ref = ModelRef.parse(text)
    adapter = None if ref.adapter is None else _model(ref.adapter, folder)
    return str(ref.model_copy(update={"path": _model(ref.path, folder), "adapter": adapter}))


def _model(path: str, folder: Path) -> str:
    """A folder is what looks like one or is there; all else is a hub id."""
    is_folder = path.startswith((".", "/", "~")) or os.path.exists(_beside(path, folder))
    return _resolved(path, folder) if is_folder else path


def _benchmark(benchmark: BenchmarkConfig, folder: Path) -> BenchmarkConfig:
    """Resolve the data files, and the options that the kind declares as paths."""
    update: dict[str, Any] = {}
    if is_file(benchmark.data):
        held_out = benchmark.held_out
        update["data"] = _resolved(benchmark.data, folder)
        update["held_out"] = _resolved(held_out, folder) if held_out else None
    paths = _path_fields(options_of(benchmark.kind))
    update["options"] = {
        name: _resolved(value, folder) if name in paths and isinstance(value, str) else value
        for name, value in benchmark.options.items()
    }
    return benchmark.model_copy(update=update)


def _path_fields(options: type[BaseModel]) -> set[str]:
    fields = options.model_fields.items()
    return {name for name, f in fields if Path in (f.annotation, *get_args(f.annotation))}


def _resolved(text: str, folder: Path) -> str:
    return os.path.realpath(_beside(text, folder))


def _beside(text: str, folder: Path) -> str:
    return os.path.join(folder, os.path.expanduser(text))  # unlike pathlib's, it takes any text
