"""Generated kernels against torch, operation by operation and bit for bit.

Compiling is slow, so many operations share one kernel. Each has a name, and a failure says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from evaluators.merging import operations as lines
from evaluators.merging.codegen import Function, Signature, generate
from evaluators.merging.compiler import Kernel, build
from evaluators.merging.loops import Interpreted
from evaluators.merging.operations import UnsupportedError

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
I16, I32, I64, U8 = torch.int16, torch.int32, torch.int64, torch.uint8

SPECIAL = [
    *(0.0, -0.0, 1.0, -1.0, 0.1, 3.5, math.inf, -math.inf, math.nan),
    *(1e-45, -1e-45, 1.17e-38, 3.4028235e38, -3.4028235e38),  # denormals, the smallest, the largest
    *(1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-9),  # ties of 16-bit types
    *(65504.0, 65519.996, 65520.0, 2**-24, 2**-25, 3 * 2**-26, 3.39e38),  # ends of float16
]
TAILS = st.sampled_from([0, 1, 15, 16, 17, 32, 33, 50])

floats = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32))
numbers_of_kernels = st.one_of(st.sampled_from([0.0, -0.0, 0.5, -3.0, 1e-40]), st.floats(width=32))


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal, NaN in the same places and zeros of the same sign."""
    assert found.dtype == expected.dtype
    if not found.dtype.is_floating_point:
        return torch.equal(found, expected)
    there = ~expected.isnan()
    kind = {4: torch.int32, 2: torch.int16}[found.element_size()]
    bits, wanted = found[there].view(kind), expected[there].view(kind)
    return torch.equal(found.isnan(), ~there) and torch.equal(bits, wanted)


def together(
    operations: dict[str, Callable[..., Tensor]], blocks: int
) -> tuple[Function, list[str]]:
    """One function of many, called with blocks, then numbers, then the index."""

    def function(b: Sequence[Tensor], k: Sequence[Tensor], index: Tensor) -> list[Tensor]:
        return [operation(*b[:blocks], *k, index) for operation in operations.values()]

    return function, list(operations)


def check(
    kernel: Kernel,
    operations: tuple[Function, list[str]],
    outputs: Sequence[torch.dtype],
    blocks: Sequence[Tensor],
    numbers: Sequence[float] = (),
    start: int = 0,
) -> None:
    """Run a kernel, and the function by torch; tell which operations differ."""
    function, names = operations
    n = len(blocks[0])
    told = np.array(numbers, dtype=np.float32)
    found = [torch.full((n,), 77).to(dtype) for dtype in outputs]
    kernel(blocks, told, found, start)
    index = torch.arange(start, start + n)
    expected = function(blocks, torch.from_numpy(told)[:, None].unbind(), index)
    for name, one, other, dtype in zip(names, found, expected, outputs, strict=True):
        assert same_bits(one, other.expand(n).to(dtype)), name


FLOATING: dict[str, Callable[..., Tensor]] = {
    "add": lambda a, b, s, t, i: a + b,
    "sub": lambda a, b, s, t, i: a - b,
    "mul": lambda a, b, s, t, i: a * b,
    "div": lambda a, b, s, t, i: a / b,
    "neg": lambda a, b, s, t, i: -a,
    "abs": lambda a, b, s, t, i: a.abs(),
    "floor": lambda a, b, s, t, i: a.floor(),
    "sign of another": lambda a, b, s, t, i: torch.copysign(a, b),
    "turned": lambda a, b, s, t, i: a * torch.copysign(torch.ones_like(b), b),
    "reciprocal": lambda a, b, s, t, i: a.reciprocal(),
    "addcmul": lambda a, b, s, t, i: torch.addcmul(a, b, s),
    "no fusing": lambda a, b, s, t, i: a + b * b,
    "numbers": lambda a, b, s, t, i: (a * s + t) - s / t,
    "scalars": lambda a, b, s, t, i: (0.1 + a * 2.5) / 3,
    "rsub": lambda a, b, s, t, i: 1 - a,
    "dividend": lambda a, b, s, t, i: 1 / a,
    "clamp": lambda a, b, s, t, i: a.clamp(-1, 1),
    "clamp min": lambda a, b, s, t, i: a.clamp(min=1e-6),
    "clamp max": lambda a, b, s, t, i: a.clamp(max=0.25),
    # Which of two zeros is the larger one torch decides now so, now so.
    "clamp tensor": lambda a, b, s, t, i: a.clamp(min=b, max=s) + 0.0,
    "where": lambda a, b, s, t, i: torch.where(a > b, a, b),
    "where scalar": lambda a, b, s, t, i: torch.where(a < 0, -0.0, b),
    "where infinite": lambda a, b, s, t, i: torch.where(a > b, -math.inf, b),
    "where none": lambda a, b, s, t, i: torch.where(a > b, math.nan, b),
    "ge": lambda a, b, s, t, i: (a >= b).to(F32),
    "gt": lambda a, b, s, t, i: (a > b).to(F32),
    "le": lambda a, b, s, t, i: (a <= s).to(F32),
    "lt": lambda a, b, s, t, i: (a < 0.1).to(F32),
    "eq": lambda a, b, s, t, i: (a == b).to(F32),
    "ne": lambda a, b, s, t, i: (a != b).to(F32),
    "and": lambda a, b, s, t, i: ((a > 0) & (b > 0)).to(F32),
    "or": lambda a, b, s, t, i: ((a > 0) | (b > 0)).to(F32),
    "xor": lambda a, b, s, t, i: ((a > 0) ^ (b > 0)).to(F32),
    "not": lambda a, b, s, t, i: (~(a > 0)).to(F32),
    "logical": lambda a, b, s, t, i: torch.logical_or(
        torch.logical_and(a, b), torch.logical_not(s)
    ).to(F32),
    "masks added": lambda a, b, s, t, i: ((a > 0) + (b > 0)).to(F32) * 3,
    "masks multiplied": lambda a, b, s, t, i: ((a > 0) * (b > 0)).to(F32) * 3,
    "a mask times a number": lambda a, b, s, t, i: (a > 0) * s,
    "masks compared": lambda a, b, s, t, i: (((a > 0) == (b > 0)) != True).to(F32),  # noqa: E712
    "filled": lambda a, b, s, t, i: (
        torch.zeros_like(a) + torch.ones_like(a) + torch.full_like(a, 0.1) + torch.full((1,), 0.3)
        + torch.zeros(1) + torch.ones(1)
    ),
    "the same": lambda a, b, s, t, i: (
        a.clone().detach() + s.unsqueeze(0).view(1).expand(1) * torch.ops.aten.alias(b)
    ),
    "rounded on the way": lambda a, b, s, t, i: a.to(BF16).to(F32) + b.to(F16).to(F32),
    "the index": lambda a, b, s, t, i: i.to(F32),
}  # fmt: skip


@pytest.fixture(scope="module")
def floating() -> Kernel:
    outputs = (F32,) * len(FLOATING)
    return build(together(FLOATING, 2)[0], Signature((F32, F32), 2, outputs))


@settings(max_examples=150)
@given(data=st.data(), n=TAILS, s=numbers_of_kernels, t=numbers_of_kernels)
@example(data=None, n=0, s=0.5, t=1.0)
def test_floating_operations(
    floating: Kernel, data: st.DataObject | None, n: int, s: float, t: float
) -> None:
    if data is None:  # every special value with every other
        a, b = torch.cartesian_prod(torch.tensor(SPECIAL), torch.tensor(SPECIAL)).T.contiguous()
    else:
        a, b = (torch.tensor(data.draw(st.lists(floats, min_size=n, max_size=n))) for _ in "ab")
    start = 0 if data is None else data.draw(st.sampled_from([0, 3, 2**31, 2**40 + 1]))
    check(floating, together(FLOATING, 2), [F32] * len(FLOATING), (a, b), (s, t), start)


def piece(value: Tensor, number: int) -> Tensor:
    """16 bits of an integer."""
    return (value >> 16 * number).to(I16)


LONG: dict[str, Callable[..., Tensor]] = {
    "wraps": lambda a, b, i: a * 0x5851F42D4C957F2D + i * 0x14057B7EF767814F,
    "product": lambda a, b, i: a * i * i,
    "product of halves": lambda a, b, i: ((a * 0x5851F42D4C957F2D + i) & 0xFFFFFFFF) * 0xD2511F53,
    "sub": lambda a, b, i: i - a,
    "masks": lambda a, b, i: ((i ^ a) & 0xFFFFFFFF) | (b & 0xFF),
    "not": lambda a, b, i: ~i,
    "neg": lambda a, b, i: -i * a,
    "abs": lambda a, b, i: (a * 0x123456789ABCDEF * i).abs(),
    "shift": lambda a, b, i: a * 0x123456789ABCDEF >> 7,
    "shift again": lambda a, b, i: torch.bitwise_right_shift(a * 0x123456789ABCDEF, 33),
    "compared": lambda a, b, i: torch.where((a * i > 70000) & (i != 3), a, i),
    "clamp": lambda a, b, i: (a * i).clamp(-1000, 1 << 40),
    "where": lambda a, b, i: torch.where(i == 2, 1 << 40, a),
    "a mask": lambda a, b, i: (a > 0).to(I64) * 5 + i.to(torch.bool).to(I64),
    "from bits": lambda a, b, i: b + (a >> 1),
}
SHORT: dict[str, Callable[..., Tensor]] = {
    "wraps": lambda a, b: (a * 0x01000193 + b) * 0x01000193,
    "bits": lambda a, b: (a ^ b) & ~b | 3,
    "shift": lambda a, b: a * 0x01000193 >> 5,
    "cut": lambda a, b: (a.to(I64) * 0x5851F42D4C957F2D).to(I32),
    "abs": lambda a, b: (a * b).abs() - (a * 3).clamp(min=-5, max=5),
}
WHOLE: dict[str, Callable[..., Tensor]] = {
    **{
        f"long {name}, bits from {16 * k}": (
            lambda x, h, u, i, f=f, k=k: piece(f(h.to(I64), u.to(I64), i), k)
        )
        for name, f in LONG.items()
        for k in range(4)
    },
    **{
        f"short {name}, bits from {16 * k}": (
            lambda x, h, u, i, f=f, k=k: piece(f(h.to(I32), u.to(I32)), k)
        )
        for name, f in SHORT.items()
        for k in range(2)
    },
    "bits of float32": lambda x, h, u, i: piece(x.view(I32), 1),
    "bits of float32, low": lambda x, h, u, i: piece(x.view(I32), 0),
    "bits of bfloat16": lambda x, h, u, i: x.to(BF16).view(I16),
    "bits of float16": lambda x, h, u, i: x.to(F16).view(I16),
}


@pytest.fixture(scope="module")
def whole() -> Kernel:
    return build(together(WHOLE, 3)[0], Signature((F32, I16, U8), 0, (I16,) * len(WHOLE)))


@settings(max_examples=60)
@given(data=st.data(), n=TAILS, start=st.sampled_from([0, 1, 2**31 - 5, 2**32 - 5, 2**45]))
def test_integers(whole: Kernel, data: st.DataObject, n: int, start: int) -> None:
    numbers = floats.filter(lambda x: not math.isnan(x))  # whose bits may differ
    x = data.draw(st.lists(numbers, min_size=n, max_size=n))
    h = data.draw(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=n, max_size=n))
    u = data.draw(st.lists(st.integers(0, 255), min_size=n, max_size=n))
    blocks = (torch.tensor(x), torch.tensor(h, dtype=I16), torch.tensor(u, dtype=U8))
    check(whole, together(WHOLE, 3), [I16] * len(WHOLE), blocks, (), start)


STORED = [F32, BF16, F16]
BLOCKS = (F32, BF16, F16, I16, U8)
CONVERSIONS = [(source, kind) for source in range(len(BLOCKS)) for kind in STORED]


def converted(blocks: Sequence[Tensor], numbers: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """Every block in every type; whole numbers in their own, too."""
    shorter = [(numbers[0] * 0 + blocks[4].to(I32) * 7).to(U8), (index * 40503).to(I16)]
    return [*(blocks[source].to(kind) for source, kind in CONVERSIONS), *shorter, blocks[3]]


@pytest.fixture(scope="module")
def conversions() -> Kernel:
    outputs = (*(kind for _, kind in CONVERSIONS), U8, I16, I16)
    return build(converted, Signature(BLOCKS, 1, outputs))


@settings(max_examples=60)
@given(data=st.data(), n=TAILS)
def test_types_are_converted_as_torch_does(
    conversions: Kernel, data: st.DataObject, n: int
) -> None:
    x = torch.tensor(data.draw(st.lists(floats, min_size=n, max_size=n)))
    h = data.draw(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=n, max_size=n))
    u = data.draw(st.lists(st.integers(0, 255), min_size=n, max_size=n))
    blocks = (x, x.to(BF16), x.to(F16), torch.tensor(h, dtype=I16), torch.tensor(u, dtype=U8))
    names = [f"{BLOCKS[source]} to {kind}" for source, kind in CONVERSIONS]
    outputs = [*(kind for _, kind in CONVERSIONS), U8, I16, I16]
    named = (converted, [*names, "short", "shorter", "as it is"])
    check(conversions, named, outputs, blocks, (1.0,), 5)


@pytest.mark.parametrize("kind", [BF16, F16])
def test_every_16_bit_value_is_read_and_written_as_it_is(conversions: Kernel, kind: Any) -> None:
    """And every value half way between two of them is rounded to the even one."""
    x = torch.arange(-(2**15), 2**15).to(I16).view(kind)
    middle = (x.double() + torch.nextafter(x, x.new_tensor(math.inf)).double()) / 2
    whole = [middle.float(), x.to(BF16), x.to(F16)]
    short = [torch.zeros(2**16, dtype=I16), torch.zeros(2**16, dtype=U8)]
    outputs = [*(kind for _, kind in CONVERSIONS), U8, I16, I16]
    named = (converted, [f"{BLOCKS[s]} to {k}" for s, k in CONVERSIONS] + ["", "", ""])
    check(conversions, named, outputs, [*whole, *short], (1.0,))


def test_whole_numbers_of_32_bits_are_read_and_written_as_they_are() -> None:
    def function(b: Sequence[Tensor], k: Sequence[Tensor], index: Tensor) -> list[Tensor]:
        return [b[0], b[0] * 3 + 1, (index * 0x9E3779B9).to(I32)]

    kernel = build(function, Signature((I32,), 0, (I32,) * 3))
    for n in (0, 1, 31, 32, 33, 100):
        words = torch.arange(n, dtype=I32) * 0x01000193 - 2**31
        check(kernel, (function, ["read", "computed", "cut"]), (I32,) * 3, (words,), (), 7)


def chain(blocks: Sequence[Tensor], numbers: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """So long that a step is cut in two, and the next one begins before it ends."""
    a, b = (block.to(F32) for block in blocks)
    for _ in range(12):
        a = a * numbers[0] + b
        a = torch.where(a > 1, a - b, a)
    return [a, a.to(BF16), a.abs().clamp(max=1.0)]


CHAIN = Signature((F32, BF16), 1, (F32, BF16, None))


@pytest.fixture(scope="module")
def overlapping() -> Kernel:
    return build(chain, CHAIN)


@given(n=st.integers(0, 200), seed=st.integers(0, 2**32))
def test_steps_that_overlap_give_the_same(overlapping: Kernel, n: int, seed: int) -> None:
    a, b = torch.randn(2, n, generator=torch.Generator().manual_seed(seed))
    told, torchs = np.array([0.7], dtype=np.float32), Interpreted(chain, CHAIN)
    found, expected = ([torch.full((n + 40,), 3.0, dtype=d) for d in (F32, BF16)] for _ in "fe")
    sums = overlapping((a, b.to(BF16)), told, (*(x[:n] for x in found), None))
    wanted = torchs((a, b.to(BF16)), told, (*(x[:n] for x in expected), None))
    assert all(same_bits(*pair) for pair in zip(found, expected, strict=True))
    assert sums[2] == pytest.approx(wanted[2], rel=1e-13)


def test_steps_are_cut_where_few_numbers_are_alive() -> None:
    assert "begin" in generate(chain, CHAIN)

    def masked(b: Sequence[Tensor], k: Sequence[Tensor], _: Tensor) -> list[Tensor]:
        mask = b[0] > 0
        return [torch.where(mask, chain([b[0], b[1]], k, b[0])[0], 0.0)]

    assert "begin" not in generate(masked, Signature((F32, BF16), 1, (F32,)))  # which is a mask
    assert "begin" not in generate(measured, MEASURES)  # which is short


def measured(blocks: Sequence[Tensor], numbers: Sequence[Tensor], _: Tensor) -> list[Tensor]:
    a, b = (block.to(F32) for block in blocks)
    return [(a - b).abs(), a * numbers[0], (a > b).to(F32)]


MEASURES = Signature((F32, BF16), 1, (None, F32, None))


@settings(max_examples=40)
@given(n=st.integers(0, 100), seed=st.integers(0, 2**32))
def test_sums_are_those_of_float64(n: int, seed: int) -> None:
    kernel, torchs = build(measured, MEASURES), Interpreted(measured, MEASURES)
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, generator=generator) * 10.0 ** torch.randint(
        -6, 6, (n,), generator=generator
    )
    b = torch.randn(n, generator=generator).to(BF16)
    told, results = np.array([2.0], dtype=np.float32), torch.empty(2, n).unbind()
    found = kernel((a, b), told, (None, results[0], None))
    expected = torchs((a, b), told, (None, results[1], None))
    exact = math.fsum((a - b.float()).abs().tolist())
    assert found[0] == pytest.approx(exact, rel=1e-15 * max(n, 1))
    assert expected[0] == pytest.approx(exact, rel=1e-15 * max(n, 1))
    assert found[1] == expected[1] == 0
    assert found[2] == expected[2] == int((a > b.float()).sum())
    assert torch.equal(results[0], results[1])


def test_sums_are_not_finite_where_a_term_is_not() -> None:
    kernel = build(measured, MEASURES)
    for bad in (math.nan, math.inf):
        for place in (0, 16, 18):  # the last in the tail
            a = torch.zeros(19)
            a[place] = bad
            told, result = np.ones(1, dtype=np.float32), torch.empty(19)
            sums = kernel((a, torch.zeros(19, dtype=BF16)), told, (None, result, None))
            assert not math.isfinite(sums[0])


def test_nothing_is_written_beyond_the_block() -> None:
    kernel = build(measured, MEASURES)
    for n in (0, 1, 15, 16, 17, 31):
        room = torch.full((64,), 5.0)
        a, b = torch.ones(n), torch.zeros(n, dtype=BF16)
        kernel((a, b), np.ones(1, dtype=np.float32), (None, room[8 : 8 + n], None))
        assert (room == torch.tensor([5.0] * 8 + [1.0] * n + [5.0] * (56 - n))).all()


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "exp": (lambda a, b, k, i: a.exp(), "exp"),
    "in place": (lambda a, b, k, i: a.add_(1), "add_"),
    "random": (lambda a, b, k, i: torch.rand_like(a), "rand_like"),
    "sum": (lambda a, b, k, i: a - a.sum(), "sum"),
    "cumsum": (lambda a, b, k, i: a.cumsum(0), "cumsum"),
    "flip": (lambda a, b, k, i: a.flip(0), "flip"),
    "several results": (lambda a, b, k, i: a.sort().values, "sort"),
    "another shape": (lambda a, b, k, i: (a[:, None] * a)[0], "mul to another shape"),
    "stacked": (lambda a, b, k, i: torch.stack([a, a])[0], "stack to another shape"),
    "expanded": (lambda a, b, k, i: a.expand(2, -1)[0], "expand to another shape"),
    "alpha": (lambda a, b, k, i: torch.add(a, a, alpha=2), "add with alpha"),
    "value": (lambda a, b, k, i: torch.addcmul(a, a, a, value=2), "addcmul with value"),
    "mode": (lambda a, b, k, i: torch.div(a, a, rounding_mode="floor"), "rounding_mode"),
    "16-bit arithmetic": (lambda a, b, k, i: b + b, "add in torch.bfloat16"),
    "16-bit comparison": (lambda a, b, k, i: (b > 0).to(F32), "gt in torch.bfloat16"),
    "cut and read": (lambda a, b, k, i: i.to(I16).to(F32), "a computed torch.int16, read again"),
    "words": (lambda a, b, k, i: i.to(torch.uint16).to(F32), "a computed torch.uint16, read again"),
    "float64": (lambda a, b, k, i: a.double().float(), "torch.float64"),
    "another width": (lambda a, b, k, i: a.view(BF16)[:32].float(), "to another shape"),
    "a constant": (lambda a, b, k, i: a + ELSEWHERE, "a tensor that is no argument"),
    "a branch": (lambda a, b, k, i: a if bool(a[0] > 0) else -a, "cannot be traced"),
    "a Python number": (lambda a, b, k, i: a * float(k), "cannot be traced"),
}
ELSEWHERE = torch.ones(1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused_by_name(name: str) -> None:
    one, reason = REFUSED[name]
    signature = Signature((F32, BF16), 1, (F32,))
    with pytest.raises(UnsupportedError, match=reason) as caught:
        generate(lambda b, k, i: [one(*b, k[0], i)], signature)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "signature",
    [
        Signature((torch.float64,), 0, (F32,)),
        Signature((F32,), 0, (torch.float64,)),
        Signature((F32,), 0, (I64,)),
    ],
)
def test_types_of_blocks_that_are_not_known(signature: Signature) -> None:
    with pytest.raises(UnsupportedError, match=r"torch\.(float64|int64)"):
        generate(lambda b, k, i: [b[0]], signature)


def test_every_operation_is_tested_here() -> None:
    o = lines
    tables = (o._BINARY, o._COMPARISONS, o._CALLS, o._FILLED, o.SAME)
    written = {name for table in tables for name in table}
    one = torch.ones(1)
    blocks = [torch.zeros(32, dtype=kind) for kind in (F32, I16, U8)]
    seen: set[str] = set()
    for operations, inputs in (
        (FLOATING, [blocks[0], blocks[0], one, one, torch.arange(32)]),
        (WHOLE, [*blocks, torch.arange(32)]),
    ):
        for operation in operations.values():
            for node in make_fx(lambda *x, f=operation: f(*x))(*inputs).graph.nodes:
                seen.add(getattr(node.target, "_opname", ""))
    assert written - seen <= {"lift_fresh_copy"}  # which torch makes of constants only
