"""Elementwise torch functions as one C++ loop over vectors.

A function of blocks of n elements is traced once (`make_fx`), and every operation of the trace
becomes one line of C++ in the types of `vectors.h`, which GCC and Clang lower to whatever the
processor has. Nothing is reordered, fused or contracted, so a kernel gives the bits that torch
gives. Values of a kernel stay in registers: each input is read once and each output written once.
What depends on no element is computed before the loop.

torch's own compiler writes loops, too: those for these functions take three to four times as long,
some thirty times, and take longer to compile (`python -m experiments.merge_speed.compilers`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from evaluators.merging import frames
from evaluators.merging.frames import Line, Lines
from evaluators.merging.operations import (
    SAME,
    TRACED,
    VECTORS,
    Expressions,
    UnsupportedError,
    held,
    operation,
    stored,
)

Function = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Sequence[Tensor]]
"""(blocks of n elements, one-element numbers, n element numbers) → n elements per output."""


@dataclass(frozen=True)
class Drawing:
    """How blocks of random words are made where they are needed, chunk by chunk.

    Attributes:
        function: (nothing, a key, counters) → `runs` blocks of int32 whose halves, lower ones
            first and one block behind the other, are the words of a chunk; a chunk has
            `chunk / runs / 2` counters.
        key: how many numbers are a key.
        chunk: elements that are made together.
        runs: blocks in which they are returned.
    """

    function: Function
    key: int
    chunk: int
    runs: int

    @property
    def signature(self) -> Signature:
        """What a loop of the function reads and writes."""
        return Signature((), self.key, (torch.int32,) * self.runs)


@dataclass(frozen=True)
class Signature:
    """What a kernel reads and writes.

    Attributes:
        blocks: dtypes of the blocks that are read.
        numbers: how many numbers it is told.
        outputs: dtypes of the blocks that are written; None = not written, but added up in float64;
            bool = searched, alone.
        drawing: how blocks of uint16 are made that are not read; the function gets them last.
        keys: for each of these the number of the first of the numbers that are its key.
    """

    blocks: tuple[torch.dtype, ...]
    numbers: int
    outputs: tuple[torch.dtype | None, ...]
    drawing: Drawing | None = None
    keys: tuple[int, ...] = ()


def generate(function: Function, signature: Signature) -> str:
    """Write the C++ of a function: `kernel(blocks, numbers, outputs, sums, start, ends, parts)`.

    Raises:
        UnsupportedError: the function does what cannot be written so.
    """
    read = [dtype.itemsize for dtype in signature.blocks]
    written = [dtype.itemsize if dtype else 0 for dtype in signature.outputs]
    parts, run = [frames.HEADER, frames.loop("each", _lines(function, signature))], "each"
    if (drawing := signature.drawing) is not None:
        parts.append(frames.loop("draw", _lines(drawing.function, drawing.signature)))
        keys, chunk, runs = signature.keys, drawing.chunk, drawing.runs
        parts.append(frames.chunked(read, written, keys, chunk, runs))
        run = "chunks"
    return "".join([*parts, frames.kernel(run, read, written, signature.numbers)])


def generate_search(function: Function, signature: Signature) -> str:
    """Write the C++ of a search, `kernel(blocks, numbers, rank, n)`: the index behind the `rank`-th
    element (from 1) of which a function with one result, a mask, is true, or -1.

    Raises:
        UnsupportedError: the function does what cannot be written so.
    """
    return frames.HEADER + frames.search(_lines(function, signature))


def _lines(function: Function, signature: Signature) -> Lines:
    """Trace a function and write its lines."""
    dtypes = (*signature.blocks, *[torch.uint16] * len(signature.keys))
    blocks = [torch.zeros(TRACED, dtype=dtype) for dtype in dtypes]
    numbers = [torch.ones(1) for _ in range(signature.numbers)]
    index = torch.arange(TRACED)

    def flat(*inputs: Tensor) -> tuple[Tensor, ...]:
        b, k = inputs[: len(blocks)], inputs[len(blocks) : -1]
        return tuple(function(b, k, inputs[-1]))

    try:
        graph = make_fx(flat)(*blocks, *numbers, index).graph
    except RuntimeError as error:  # such as a branch on a value
        reason = str(error).splitlines()[0]
        raise UnsupportedError(f"a function that cannot be traced: {reason}") from None
    return _Writer(dtypes, signature).write(graph)


class _Writer:
    """Turns a trace into C++, one line per operation."""

    def __init__(self, blocks: Sequence[torch.dtype], signature: Signature) -> None:
        self._blocks, self._outputs = blocks, signature.outputs
        self._asked = len(signature.blocks) if signature.drawing else 0
        self._values = Expressions()
        self._uniform: set[torch.fx.Node] = set()  # the same for all elements
        self._lines = Lines()

    def write(self, graph: torch.fx.Graph) -> Lines:
        self._read([node for node in graph.nodes if node.op == "placeholder"])
        for node in graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "get_attr":
                raise UnsupportedError("a tensor that is no argument")
        result = next(node for node in graph.nodes if node.op == "output").args[0]
        self._put([node for node in result if isinstance(node, torch.fx.Node)])
        return self._lines

    def _read(self, holders: list[torch.fx.Node]) -> None:
        """Load blocks and count elements; numbers are spread over the lanes before the loop."""
        lines, count = self._lines, len(self._blocks)
        for k, (node, dtype) in enumerate(zip(holders, self._blocks, strict=False)):
            self._values.names[node] = (f"x{k}", dtype)
            kind, vector = stored(dtype), VECTORS[held(dtype)]
            lines.before.append(f"const {kind}* b{k} = (const {kind}*)blocks[{k}];")
            lines.load.append(f"const Pairs<{kind}> p{k} = load<TAIL>(b{k} + i, left);")
            if k < self._asked:  # drawing in between, no pattern is left for the processor to see
                lines.load.append(f"ahead(b{k} + i);")
            lines.half.append(Line(f"{vector} x{k} = take<ODD>(p{k});", vector, f"x{k}"))
        for k, node in enumerate(holders[count:-1]):
            self._values.names[node] = (f"s{k}", torch.float32)
            self._uniform.add(node)
            lines.before.append(f"const F s{k} = all<F>(numbers[{k}]);")
        self._values.names[holders[-1]] = ("at", torch.int64)
        lines.half.append(Line("L at = places<ODD>(start + i);", "L", "at"))

    def _put(self, results: list[torch.fx.Node]) -> None:
        """Store what is written, add up what is summed."""
        lines = self._lines
        for k, (node, dtype) in enumerate(zip(results, self._outputs, strict=True)):
            value = self._values.converted(node, dtype or torch.float32)
            if dtype is None:  # each total is a variable of its own, so that it stays in registers
                lines.before.append(f"Total total{k} = {{}};")
                text = f"add<TAIL, ODD>(total{k}, {value}, left);"
                lines.after.append(f"sums[{k}] += sum(total{k});")
            elif dtype == torch.bool:
                lines.hold.append("Hits hits;")
                text = f"note<TAIL, ODD>(hits, {value}, left);"
                lines.store.append("return hits;")
            else:
                kind = stored(dtype)
                lines.before.append(f"{kind}* o{k} = ({kind}*)outputs[{k}];")
                lines.hold.append(f"Pairs<{kind}> q{k};")
                text = f"put<ODD>(q{k}, {value});"
                past = ""
                if dtype == torch.bfloat16:
                    lines.before.append(f"const bool past{k} = past_caches(o{k}, whole);")
                    past = f", past{k}"
                lines.store.append(f"store<TAIL>(o{k} + i, q{k}, left{past});")
            lines.half.append(Line(text, reads=self._named(node)))

    def _call(self, node: torch.fx.Node) -> None:
        """Write one operation."""
        name = operation(node)
        if node.target is operator.getitem:
            raise UnsupportedError("an operation with several results")
        value = node.meta["val"] if "val" in node.meta else node.meta["tensor_meta"]
        self._values.check(name, node, value)
        if name in SAME and not isinstance(node.args[-1], torch.dtype):
            self._values.names[node] = self._values.names[node.args[0]]  # type: ignore[index]
            self._uniform |= {node} if node.args[0] in self._uniform else set()
            return
        text = self._values.written(name, node, value.dtype)
        own = f"v{len(self._values.names)}"
        self._values.names[node] = (own, value.dtype)
        kind = VECTORS[held(value.dtype)]
        line = Line(f"const {kind} {own} = {text};", kind, own, self._named(*node.all_input_nodes))
        if self._uniform.issuperset(node.all_input_nodes):
            self._uniform.add(node)
            self._lines.before.append(line.text)
        else:
            self._lines.half.append(line)

    def _named(self, *nodes: torch.fx.Node) -> frozenset[str]:
        return frozenset(self._values.names[node][0] for node in nodes)
