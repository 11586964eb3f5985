"""Tensors in a folder of safetensors files: mapped, written as a stream, and digested.

A folder holds `model.safetensors`, or several shards with `model.safetensors.index.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from xxhash import xxh3_128

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

Spec = tuple[torch.dtype, torch.Size]

_FORMAT_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class SourceError(Exception):
    """A model folder that cannot be used; one clear line."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SourceError: no such file, no JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path.parent}: has no {path.name}") from None
    except (ValueError, OSError) as error:
        raise SourceError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise SourceError(f"{path}: found {type(content).__name__}, allowed: a JSON object")
    return content


def tensor_files(folder: Path) -> list[Path]:
    """List the safetensors files of a model folder.

    Raises:
        SourceError: there are none, or the index names a shard that is not there.
    """
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise SourceError(f"{folder / INDEX}: has no weight_map from tensor to file")
        files = [folder / name for name in sorted(set(shards.values()))]
        for file in files:
            if not file.is_file():
                raise SourceError(f"{folder}: shard {file.name} is missing, the index names it")
        return files
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / "adapter_model.safetensors").is_file():
        raise SourceError(f"{folder}: is an adapter (LoRA); merge it into its base model first")
    if any(folder.glob("*.bin")):
        raise SourceError(
            f"{folder}: pytorch .bin files are not read; convert them to safetensors "
            "(AutoModel.from_pretrained(...).save_pretrained(...))"
        )
    raise SourceError(f"{folder}: has no {SINGLE}")


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Map every stored tensor; nothing is read before it is used, and processes share the pages.

    Raises:
        SourceError: files missing, truncated or corrupt, or tensors of a type that is not written.
    """
    tensors: dict[str, Tensor] = {}
    files = tensor_files(folder)
    index = read_json(folder / INDEX)["weight_map"] if (folder / INDEX).exists() else None
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    # A shard may hold what the index places elsewhere, or does not know.
                    if index is None or (name in index and folder / index[name] == path):
                        tensors[name] = file.get_tensor(name)
        except (FileNotFoundError, PermissionError):  # the former of a file that is there, too
            raise SourceError(f"{path}: cannot be read; see who may") from None
        except (SafetensorError, OSError, RuntimeError) as error:
            raise SourceError(f"{path}: truncated or corrupt safetensors: {error}") from None
    if strange := [name for name, t in tensors.items() if t.dtype not in _FORMAT_NAMES]:
        raise SourceError(
            f"{folder}: {strange[0]} is of type {tensors[strange[0]].dtype}, which is not merged; "
            "convert the model to bfloat16"
        )
    if index is not None and (lost := sorted(set(index) - set(tensors))):
        raise SourceError(f"{folder}: the index names {lost[0]}, {index[lost[0]]} does not hold it")
    return tensors


class ShardWriter:
    """Writes tensors to safetensors files one at a time, in any order.

    The layout follows from the specifications alone, so equal tensors give equal bytes, and no more
    than one tensor need be in memory. A file is open only while a tensor is written: there may be
    more shards than a process may have open. Nothing is atomic here.
    """

    def __init__(self, folder: Path, specs: Mapping[str, Spec], shard_size_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shards = _partition(specs, shard_size_bytes)
        self._places: dict[str, tuple[Path, int]] = {}
        names = [SINGLE]
        if len(shards) > 1:
            names = [
                f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
            ]
            _write_index(folder / INDEX, dict(zip(names, shards, strict=True)), specs)
        for name, shard in zip(names, shards, strict=True):
            self._start(folder / name, {tensor: specs[tensor] for tensor in shard})

    def write(self, name: str, tensor: Tensor) -> None:
        """Put one tensor in its place."""
        path, offset = self._places[name]
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(tensor_bytes(tensor).data)

    def _start(self, path: Path, specs: Mapping[str, Spec]) -> None:
        """Write a shard's header and reserve its space."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        # Wide types first, as safetensors itself does: every tensor is then aligned.
        for name in sorted(specs, key=lambda name: (-specs[name][0].itemsize, name)):
            dtype, shape = specs[name]
            start, end = end, end + _size_bytes(specs[name])
            header[name] = {
                "dtype": _FORMAT_NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        for name in specs:
            self._places[name] = (path, 8 + len(text) + header[name]["data_offsets"][0])


def tensor_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """View a tensor's elements in row-major order as bytes."""
    flat: NDArray[np.uint8] = (
        tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    )
    return flat


def tensor_digest(name: str, tensor: Tensor) -> str:
    """Hash a tensor's name, dtype, shape and bytes with XXH3: 32 hex digits.

    It tells one merge from another at the speed of memory; it does not guard against forgery.
    """
    label = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0"
    digest = xxh3_128(label.encode())
    digest.update(tensor_bytes(tensor).data)
    return digest.hexdigest()


def combined_digest(digests: Mapping[str, str]) -> str:
    """Hash tensor digests in the order of their names: 64 hex digits for the whole model."""
    return hashlib.sha256("\n".join(digests[name] for name in sorted(digests)).encode()).hexdigest()


def stored_digest(folder: Path) -> str:
    """Digest the tensors stored in a folder, as `MergeReport.digest` digests merged ones.

    Raises:
        SourceError: files missing, truncated or corrupt.
    """
    tensors = open_tensors(folder)
    return combined_digest({name: tensor_digest(name, t) for name, t in tensors.items()})


def _partition(specs: Mapping[str, Spec], limit_bytes: int) -> list[list[str]]:
    """Cut the sorted names into runs of at most `limit_bytes`, one tensor at least."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(specs):
        size = _size_bytes(specs[name])
        if shards[-1] and filled + size > limit_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_index(path: Path, shards: Mapping[str, list[str]], specs: Mapping[str, Spec]) -> None:
    weight_map = {tensor: file for file, tensors in shards.items() for tensor in tensors}
    content = {
        "metadata": {"total_size": sum(map(_size_bytes, specs.values()))},
        "weight_map": dict(sorted(weight_map.items())),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _size_bytes(spec: Spec) -> int:
    dtype, shape = spec
    return dtype.itemsize * shape.numel()
