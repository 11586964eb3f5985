"""Elementwise torch functions as one C++ loop over vectors of 16 elements.

A function of blocks of n elements is traced once (`make_fx`), and every operation of the trace
becomes one line of C++ in GCC's vector types, which GCC and Clang lower to whatever the processor
has. Nothing is reordered, fused or contracted, so a kernel gives the bits that torch gives. Values
of a kernel stay in registers: each input is read once and each output written once.

torch's own compiler writes loops, too: those for these functions take two to three times as long,
some thirty times, and take longer to compile (`python -m experiments.merge_speed.compilers`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

Function = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Sequence[Tensor]]
"""(blocks of n elements, one-element numbers, n element numbers) → n elements per output."""

LANES = 16

_TRACED = 2 * LANES
"""Elements of a block that is traced: not 1, or it would look like a number."""

_VECTORS = {
    torch.float32: "F",
    torch.int32: "I",
    torch.int64: "L",
    torch.bool: "I",
}
_STORED = {
    torch.float32: "float",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int16: "int16_t",
    torch.uint8: "uint8_t",
}
_BINARY = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "bitwise_and": "&",
    "bitwise_or": "|",
    "bitwise_xor": "^",
    "logical_and": "&",
    "logical_or": "|",
    "__rshift__": ">>",
    "bitwise_right_shift": ">>",
}
_COMPARISONS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "eq": "==", "ne": "!="}
_CALLS = {
    "bitwise_not": "~",
    "logical_not": "~",
    "neg": "-",
    "abs": "magnitude",
    "reciprocal": "inverse",
    "addcmul": "fused",  # torch fuses this one: the product is not rounded
}
_FILLED = {"zeros": 0, "zeros_like": 0, "ones": 1, "ones_like": 1}
_NARROW = {torch.bfloat16, torch.float16, torch.int16, torch.uint8}
"""Types in which nothing is computed: they are converted when read and when written."""

_CONVERSIONS = {"_to_copy", "view"}
_MORE = {"alpha", "value", "rounding_mode"}
_SAME = {"alias", "detach", "lift_fresh_copy", "clone", "expand", "view", "unsqueeze"}


class UnsupportedError(Exception):
    """An operation that has no line of C++ here."""


@dataclass(frozen=True)
class Signature:
    """What a kernel reads and writes.

    Attributes:
        blocks: dtypes of the blocks that are read.
        numbers: how many numbers it is told.
        outputs: dtypes of the blocks that are written; None = not written, but added up in float64.
    """

    blocks: tuple[torch.dtype, ...]
    numbers: int
    outputs: tuple[torch.dtype | None, ...]


def generate(function: Function, signature: Signature) -> str:
    """Write the C++ of a function: `kernel(blocks, numbers, outputs, sums, start, n)`.

    Raises:
        UnsupportedError: the function does what cannot be written so.
    """
    blocks = [torch.zeros(_TRACED, dtype=dtype) for dtype in signature.blocks]
    numbers = [torch.ones(1) for _ in range(signature.numbers)]
    index = torch.arange(_TRACED)

    def flat(*inputs: Tensor) -> tuple[Tensor, ...]:
        b, k = inputs[: len(blocks)], inputs[len(blocks) : -1]
        return tuple(function(b, k, inputs[-1]))

    try:
        graph = make_fx(flat)(*blocks, *numbers, index).graph
    except RuntimeError as error:  # such as a branch on a value
        reason = str(error).splitlines()[0]
        raise UnsupportedError(f"a function that cannot be traced: {reason}") from None
    return _Writer(signature).write(graph)


class _Writer:
    """Turns a trace into C++, one line per operation."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._names: dict[torch.fx.Node, tuple[str, torch.dtype]] = {}
        self._lines: list[str] = []

    def write(self, graph: torch.fx.Graph) -> str:
        holders = [node for node in graph.nodes if node.op == "placeholder"]
        self._read(holders)
        for node in graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "get_attr":
                raise UnsupportedError("a tensor that is no argument")
        result = next(node for node in graph.nodes if node.op == "output").args[0]
        self._put([node for node in result if isinstance(node, torch.fx.Node)])
        signature = self._signature
        reads = [
            f"const {_stored(dtype)}* b{k} = (const {_stored(dtype)}*)blocks[{k}];"
            for k, dtype in enumerate(signature.blocks)
        ]
        writes = [
            f"{_stored(dtype)}* o{k} = ({_stored(dtype)}*)outputs[{k}];"
            for k, dtype in enumerate(signature.outputs)
            if dtype is not None
        ]
        told = [f"const F s{k} = all<F>(numbers[{k}]);" for k in range(signature.numbers)]
        # Each total is a variable of its own, so that it stays in registers.
        summed = [k for k, dtype in enumerate(signature.outputs) if dtype is None]
        totals = [f"Total total{k} = {{}};" for k in summed]
        after = [f"sums[{k}] = sum(total{k});" for k in summed]
        return _FRAME.format(
            before="\n".join(f"  {line}" for line in (*reads, *writes, *told, *totals)),
            body="\n".join(f"    {line}" for line in self._lines),
            after="\n".join(f"  {line}" for line in after),
        )

    def _read(self, holders: list[torch.fx.Node]) -> None:
        """Load blocks and count elements; numbers are spread over the lanes before the loop."""
        blocks = self._signature.blocks
        for k, (node, dtype) in enumerate(zip(holders, blocks, strict=False)):
            self._names[node] = (f"x{k}", dtype)
            self._lines.append(f"{_VECTORS[_held(dtype)]} x{k} = load<TAIL>(b{k} + i, left);")
        for k, node in enumerate(holders[len(blocks) : -1]):
            self._names[node] = (f"s{k}", torch.float32)
        self._names[holders[-1]] = ("at", torch.int64)
        self._lines.append("L at = lanes() + (start + i);")

    def _put(self, results: list[torch.fx.Node]) -> None:
        for k, (node, dtype) in enumerate(zip(results, self._signature.outputs, strict=True)):
            if dtype is not None:
                self._lines.append(f"store<TAIL>(o{k} + i, {self._as(node, dtype)}, left);")
            else:
                self._lines.append(f"add<TAIL>(total{k}, {self._as(node, torch.float32)}, left);")

    def _call(self, node: torch.fx.Node) -> None:
        """Write one operation."""
        name = str(getattr(node.target, "_opname", node.target))
        if node.target is operator.getitem:
            raise UnsupportedError("an operation with several results")
        value = node.meta["val"] if "val" in node.meta else node.meta["tensor_meta"]
        self._check(name, node, value)
        if name in _SAME and not isinstance(node.args[-1], torch.dtype):
            self._names[node] = self._names[node.args[0]]  # type: ignore[index]
            return
        text = self._expression(name, node, value.dtype)
        own = f"v{len(self._names)}"
        self._names[node] = (own, value.dtype)
        self._lines.append(f"{_VECTORS[_held(value.dtype)]} {own} = {text};")

    def _check(self, name: str, node: torch.fx.Node, value: Any) -> None:
        """Refuse what would be written, but wrongly."""
        if isinstance(value, tuple | list):
            raise UnsupportedError(f"{name}, which has several results")
        if value.shape.numel() not in (1, _TRACED):
            raise UnsupportedError(f"{name} to another shape than that of a block")
        if found := _MORE & node.kwargs.keys():
            raise UnsupportedError(f"{name} with {', '.join(found)}")
        read = [self._names[arg][1] for arg in node.args if isinstance(arg, torch.fx.Node)]
        narrow = _NARROW.intersection([*read, value.dtype])
        if narrow and name not in _CONVERSIONS | _SAME:
            raise UnsupportedError(f"{name} in {', '.join(map(str, narrow))}")

    def _expression(self, name: str, node: torch.fx.Node, dtype: torch.dtype) -> str:
        """Write the right-hand side of an operation."""
        args = list(node.args)
        if name in _BINARY:
            return self._binary(name, args, dtype)
        if name in _COMPARISONS:
            return self._comparison(name, args)
        if name in _CALLS:
            return f"{_CALLS[name]}({', '.join(self._as(arg, dtype) for arg in args)})"
        if name in _FILLED:
            return self._as(_FILLED[name], dtype)
        special: dict[str, Callable[[list[Any], torch.dtype], str]] = {
            "where": self._where,
            "view": self._bits,
            "_to_copy": lambda args, dtype: self._as(args[0], dtype),
            "rsub": lambda args, dtype: self._binary("sub", args[1::-1], dtype),
            "clamp": self._clamped,
            "full": lambda args, dtype: self._as(args[1], dtype),
            "full_like": lambda args, dtype: self._as(args[1], dtype),
            "scalar_tensor": lambda args, dtype: self._as(args[0], dtype),
        }
        if name not in special:
            raise UnsupportedError(name)
        return special[name](args, dtype)

    def _binary(self, name: str, args: list[Any], dtype: torch.dtype) -> str:
        a, b = (self._as(arg, dtype) for arg in args[:2])
        sign = {"mul": "&", "add": "|"}[name] if _is_logic(name, dtype) else _BINARY[name]
        return f"({a} {sign} {b})"

    def _comparison(self, name: str, args: list[Any]) -> str:
        common = self._promoted(args[:2])
        a, b = (self._as(arg, common) for arg in args[:2])
        text = f"({a} {_COMPARISONS[name]} {b})"
        return f"cast<I>{text}" if common == torch.int64 else text

    def _where(self, args: list[Any], dtype: torch.dtype) -> str:
        mask, *chosen = self._as(args[0], torch.bool), *(self._as(arg, dtype) for arg in args[1:])
        return f"choose<{_VECTORS[dtype]}>({mask}, {', '.join(chosen)})"

    def _bits(self, args: list[Any], dtype: torch.dtype) -> str:
        """Read a float's bits as an integer of the same width."""
        text, own = self._names[args[0]]
        if (own, dtype) == (torch.float32, torch.int32):
            return f"(I){text}"
        if (own, dtype) in ((torch.bfloat16, torch.int16), (torch.float16, torch.int16)):
            return f"(I){str(own).removeprefix('torch.')}_bits({text})"
        raise UnsupportedError(f"{own} as {dtype}")

    def _clamped(self, args: list[Any], dtype: torch.dtype) -> str:
        value, low, high = (*args, None)[:3]
        text = self._as(value, dtype)
        if low is not None:
            text = f"at_least({text}, {self._as(low, dtype)})"
        if high is not None:
            text = f"at_most({text}, {self._as(high, dtype)})"
        return text

    def _promoted(self, args: Sequence[Any]) -> torch.dtype:
        """Find the type in which torch compares two operands."""
        found = [self._names[a][1] for a in args if isinstance(a, torch.fx.Node)]
        if len(found) == 2:
            return torch.promote_types(*found)
        number = next(a for a in args if not isinstance(a, torch.fx.Node))
        return torch.result_type(torch.empty(1, dtype=found[0]), number)

    def _as(self, value: Any, dtype: torch.dtype) -> str:
        """Write an operand in a type, converted if it has another."""
        if not isinstance(value, torch.fx.Node):
            value = -bool(value) if dtype == torch.bool else value
            return _literal(value, _VECTORS[_held(dtype)])
        name, own = self._names[value]
        if own in (torch.int16, torch.uint8) and dtype != own and name.startswith("v"):
            raise UnsupportedError(f"a computed {own}, read again")
        if own == dtype or (_held(own) == dtype and own != torch.bool):
            return name
        if dtype in (torch.bfloat16, torch.float16):  # rounded, and held in float32
            return f"{str(dtype).removeprefix('torch.')}_rounded({self._as(value, torch.float32)})"
        if dtype == torch.bool:
            return f"cast<I>({name} != 0)"
        if own == torch.bool:  # a true lane is -1
            name = f"(-{name})"
        # What is stored in 16 or 8 bits is cut off then.
        same = _VECTORS[_held(own)] == _VECTORS[_held(dtype)]
        return name if same else f"cast<{_VECTORS[_held(dtype)]}>({name})"


def _is_logic(name: str, dtype: torch.dtype) -> bool:
    """Whether torch takes the sum or product of masks, which is a mask."""
    return dtype == torch.bool and name in ("add", "mul")


def _literal(value: float, vector: str) -> str:
    """Write a number, the same in every lane."""
    if vector != "F":
        return f"all<{vector}>((int64_t){int(value)})"
    if math.isinf(value):
        return f"all<F>({'-' if value < 0 else ''}__builtin_inff())"
    if math.isnan(value):
        return 'all<F>(__builtin_nanf(""))'
    return f"all<F>({float(value).hex()}f)"


def _stored(dtype: torch.dtype) -> str:
    """Tell what a block of this type is in C++."""
    if dtype in _STORED:
        return _STORED[dtype]
    raise UnsupportedError(f"blocks of {dtype}")


def _held(dtype: torch.dtype) -> torch.dtype:
    """Tell in which type values are held between memory and memory."""
    if dtype in (torch.bfloat16, torch.float16):
        return torch.float32
    if dtype in (torch.int16, torch.uint8):
        return torch.int32
    if dtype in _VECTORS:
        return dtype
    raise UnsupportedError(f"{dtype}")


_FRAME = """\
#include "vectors.h"

extern "C" void kernel(const void* const* blocks, const float* numbers, void* const* outputs,
                       double* sums, int64_t start, int64_t n) {{
{before}
  auto step = [&](auto tail, int64_t i, int64_t left) __attribute__((always_inline)) {{
    constexpr bool TAIL = decltype(tail)::value;
{body}
  }};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) step(std::false_type(), i, LANES);
  if (i < n) step(std::true_type(), i, n - i);
{after}
}}
"""
