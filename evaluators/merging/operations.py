"""Operations of torch's traces as expressions in C++, in the types and functions of `vectors.h`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

TRACED = 32
"""Elements of a block that is traced: not 1, or it would look like a number."""

_WORD = 0xFFFFFFFF
VECTORS = {
    torch.float32: "F",
    torch.int32: "I",
    torch.int64: "L",
    torch.bool: "M",
}
STORED = {
    torch.float32: "float",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.uint16: "uint16_t",
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
_COMPARISONS = {"ge", "gt", "le", "lt", "eq", "ne"}
_CALLS = {
    "bitwise_not": "~",
    "logical_not": "~",
    "neg": "-",
    "abs": "magnitude",
    "reciprocal": "inverse",
    "floor": "down",
    "copysign": "with_sign",
    "addcmul": "fused",  # torch fuses this one: the product is not rounded
}
_FILLED = {"zeros": 0, "zeros_like": 0, "ones": 1, "ones_like": 1}
_NARROW = {torch.bfloat16, torch.float16, torch.int16, torch.uint16, torch.uint8}
"""Types in which nothing is computed: they are converted when read and when written."""

_CONVERSIONS = {"_to_copy", "view"}
_MORE = {"alpha", "value", "rounding_mode"}
SAME = {"alias", "detach", "lift_fresh_copy", "clone", "expand", "view", "unsqueeze"}


class UnsupportedError(Exception):
    """An operation that has no line of C++ here."""


class Expressions:
    """Values of a trace by name, and expressions of them."""

    def __init__(self) -> None:
        self.names: dict[torch.fx.Node, tuple[str, torch.dtype]] = {}

    def check(self, name: str, node: torch.fx.Node, value: Any) -> None:
        """Refuse what would be written, but wrongly."""
        if isinstance(value, tuple | list):
            raise UnsupportedError(f"{name}, which has several results")
        if value.shape.numel() not in (1, TRACED):
            raise UnsupportedError(f"{name} to another shape than that of a block")
        if found := _MORE & node.kwargs.keys():
            raise UnsupportedError(f"{name} with {', '.join(found)}")
        read = [self.names[arg][1] for arg in node.args if isinstance(arg, torch.fx.Node)]
        narrow = _NARROW.intersection([*read, value.dtype])
        if narrow and name not in _CONVERSIONS | SAME:
            raise UnsupportedError(f"{name} in {', '.join(map(str, narrow))}")

    def written(self, name: str, node: torch.fx.Node, dtype: torch.dtype) -> str:
        """Write the right-hand side of an operation."""
        args = list(node.args)
        if name in _BINARY:
            return self._binary(name, args, dtype)
        if name in _COMPARISONS:
            return self._comparison(name, args)
        if name in _CALLS:
            return f"{_CALLS[name]}({', '.join(self.converted(arg, dtype) for arg in args)})"
        if name in _FILLED:
            return self.converted(_FILLED[name], dtype)
        special: dict[str, Callable[[list[Any], torch.dtype], str]] = {
            "where": self._where,
            "view": self._bits,
            "_to_copy": lambda args, dtype: self.converted(args[0], dtype),
            "rsub": lambda args, dtype: self._binary("sub", args[1::-1], dtype),
            "clamp": self._clamped,
            "full": lambda args, dtype: self.converted(args[1], dtype),
            "full_like": lambda args, dtype: self.converted(args[1], dtype),
            "scalar_tensor": lambda args, dtype: self.converted(args[0], dtype),
        }
        if name not in special:
            raise UnsupportedError(name)
        return special[name](args, dtype)

    def _binary(self, name: str, args: list[Any], dtype: torch.dtype) -> str:
        word = _word(*args[:2]) if name == "mul" and dtype == torch.int64 else None
        if word is not None:
            return f"wide({self.converted(word, dtype)}, {self.converted(args[1], dtype)})"
        of = _sign(args[1]) if name == "mul" and dtype == torch.float32 else None
        if of is not None:
            return f"turned({self.converted(args[0], dtype)}, {self.converted(of, dtype)})"
        a, b = (self.converted(arg, dtype) for arg in args[:2])
        sign = {"mul": "&", "add": "|"}[name] if _is_logic(name, dtype) else _BINARY[name]
        return f"({a} {sign} {b})"

    def _comparison(self, name: str, args: list[Any]) -> str:
        common = self._promoted(args[:2])
        a, b = (self.converted(arg, common) for arg in args[:2])
        if common == torch.bool and name not in ("eq", "ne"):
            raise UnsupportedError(f"{name} of masks")
        return f"{name}({a}, {b})"

    def _where(self, args: list[Any], dtype: torch.dtype) -> str:
        mask, *chosen = (
            self.converted(args[0], torch.bool),
            *(self.converted(arg, dtype) for arg in args[1:]),
        )
        return f"choose<{VECTORS[dtype]}>({mask}, {', '.join(chosen)})"

    def _bits(self, args: list[Any], dtype: torch.dtype) -> str:
        """Read a float's bits as an integer of the same width."""
        text, own = self.names[args[0]]
        if (own, dtype) == (torch.float32, torch.int32):
            return f"(I){text}"
        if (own, dtype) in ((torch.bfloat16, torch.int16), (torch.float16, torch.int16)):
            return f"(I){str(own).removeprefix('torch.')}_bits({text})"
        raise UnsupportedError(f"{own} as {dtype}")

    def _clamped(self, args: list[Any], dtype: torch.dtype) -> str:
        value, low, high = (*args, None)[:3]
        text = self.converted(value, dtype)
        if low is not None:
            text = f"at_least({text}, {self.converted(low, dtype)})"
        if high is not None:
            text = f"at_most({text}, {self.converted(high, dtype)})"
        return text

    def _promoted(self, args: Sequence[Any]) -> torch.dtype:
        """Find the type in which torch compares two operands."""
        found = [self.names[a][1] for a in args if isinstance(a, torch.fx.Node)]
        if len(found) == 2:
            return torch.promote_types(*found)
        number = next(a for a in args if not isinstance(a, torch.fx.Node))
        return torch.result_type(torch.empty(1, dtype=found[0]), number)

    def converted(self, value: Any, dtype: torch.dtype) -> str:
        """Write an operand in a type, converted if it has another."""
        if not isinstance(value, torch.fx.Node):
            return _literal(value, VECTORS[held(dtype)])
        name, own = self.names[value]
        cut = own in (torch.int16, torch.uint16, torch.uint8) and name.startswith("v")
        if cut and dtype != own:
            raise UnsupportedError(f"a computed {own}, read again")
        if own == dtype or (held(own) == dtype and own != torch.bool):
            return name
        if dtype in (torch.bfloat16, torch.float16):  # rounded, and held in float32
            wide = self.converted(value, torch.float32)
            return f"{str(dtype).removeprefix('torch.')}_rounded({wide})"
        if dtype == torch.bool:
            return f"ne({name}, {_literal(0, VECTORS[held(own)])})"
        if own == torch.bool:
            vector = VECTORS[held(dtype)]
            return f"choose<{vector}>({name}, {_literal(1, vector)}, {_literal(0, vector)})"
        # What is stored in 16 or 8 bits is cut off then.
        same = VECTORS[held(own)] == VECTORS[held(dtype)]
        return name if same else f"cast<{VECTORS[held(dtype)]}>({name})"


def _word(a: Any, b: Any) -> torch.fx.Node | None:
    """Tell of which integer the lower half is multiplied by a number of 32 bits, if that is so."""
    if not isinstance(a, torch.fx.Node) or not isinstance(b, int) or not 0 <= b <= _WORD:
        return None
    half = operation(a) == "bitwise_and" and a.args[1] == _WORD
    return a.args[0] if half else None  # type: ignore[return-value]


def _sign(factor: Any) -> torch.fx.Node | None:
    """Tell whose sign a factor of 1 or -1 has, if it is one."""
    if not isinstance(factor, torch.fx.Node) or operation(factor) != "copysign":
        return None
    one, of = factor.args
    ones = isinstance(one, torch.fx.Node) and operation(one) in ("ones", "ones_like")
    return of if ones else None  # type: ignore[return-value]


def operation(node: torch.fx.Node) -> str:
    """Name an operation."""
    return str(getattr(node.target, "_opname", node.target))


def _is_logic(name: str, dtype: torch.dtype) -> bool:
    """Whether torch takes the sum or product of masks, which is a mask."""
    return dtype == torch.bool and name in ("add", "mul")


def _literal(value: float, vector: str) -> str:
    """Write a number, the same in every lane."""
    if vector == "M":
        return f"mask({str(bool(value)).lower()})"
    if vector != "F":
        return f"all<{vector}>((int64_t){int(value)})"
    if math.isinf(value):
        return f"all<F>({'-' if value < 0 else ''}__builtin_inff())"
    if math.isnan(value):
        return 'all<F>(__builtin_nanf(""))'
    return f"all<F>({float(value).hex()}f)"


def stored(dtype: torch.dtype) -> str:
    """Tell what a block of this type is in C++."""
    if dtype in STORED:
        return STORED[dtype]
    raise UnsupportedError(f"blocks of {dtype}")


def held(dtype: torch.dtype) -> torch.dtype:
    """Tell in which type values are held between memory and memory."""
    if dtype in (torch.bfloat16, torch.float16):
        return torch.float32
    if dtype in (torch.int16, torch.uint16, torch.uint8):
        return torch.int32
    if dtype in VECTORS:
        return dtype
    raise UnsupportedError(f"{dtype}")
