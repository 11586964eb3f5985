"""What stands around the generated lines of a kernel: its loop, and what calls the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

HEADER = '#include "vectors.h"\n'


@dataclass
class Lines:
    """The lines of one function, by where they stand.

    Attributes:
        before: once, before the loop.
        load: once per 32 elements.
        half: once for those of even and once for those of odd index.
        store: once per 32 elements, behind both.
        after: once, behind the loop.
    """

    before: list[str] = field(default_factory=list)
    load: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)
    store: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


def loop(name: str, lines: Lines) -> str:
    """Write a function that takes blocks of n elements, the first of which is number `start`."""
    return _LOOP.format(name=name, **_step(lines), after=_indented(lines.after, 2))


def search(lines: Lines) -> str:
    """Write a function that finds the index behind the `rank`-th element that is true, else -1."""
    return _SEARCH.format(**_step(lines))


def plain() -> str:
    """Write a kernel that is one loop."""
    return _PLAIN


def chunked(
    read: Sequence[int], written: Sequence[int], keys: Sequence[int], chunk: int, runs: int
) -> str:
    """Write a kernel that draws random words for a chunk, then runs over the chunk.

    Args:
        read: bytes per element of what is read.
        written: bytes per element of what is written, 0 of sums.
        keys: for every block of words, number of the first of the numbers that `draw` is told.
        chunk: elements.
        runs: blocks in which `draw` returns a chunk's words.
    """
    sizes = {"read": read, "written": written, "keys": keys}
    lists = {name: ", ".join(map(str, values)) or "0" for name, values in sizes.items()}
    counts = {f"n_{name}": len(values) for name, values in sizes.items()}
    return _CHUNKED.format(**lists, **counts, chunk=chunk, runs=runs)


def _step(lines: Lines) -> dict[str, str]:
    return {
        "before": _indented(lines.before, 2),
        "load": _indented(lines.load, 4),
        "half": _indented(lines.half, 6),
        "store": _indented(lines.store, 4),
    }


def _indented(lines: Sequence[str], depth: int) -> str:
    return "\n".join(" " * depth + line for line in lines)


_STEP = """\
{before}
  auto step = [&](auto tail, int64_t i, int64_t left) __attribute__((always_inline)) {{
    constexpr bool TAIL = decltype(tail)::value;
{load}
    auto half = [&](auto odd) __attribute__((always_inline)) {{
      constexpr bool ODD = decltype(odd)::value;
{half}
    }};
    half(std::false_type()), half(std::true_type());
{store}
  }};
"""

_LOOP = f"""
static void {{name}}(const void* const* blocks, const float* numbers, void* const* outputs,
                 double* sums, int64_t start, int64_t n, int64_t whole) {{{{
{_STEP}
  int64_t i = 0;
  for (; i + STEP <= n; i += STEP) step(std::false_type(), i, STEP);
  if (i < n) step(std::true_type(), i, n - i);
{{after}}
}}}}
"""

_SEARCH = f"""
extern "C" int64_t kernel(const void* const* blocks, const float* numbers, int64_t rank,
                          int64_t n) {{{{
  const int64_t start = 0;
  int64_t missing = rank;
{_STEP}
  for (int64_t i = 0; i < n; i += STEP) {{{{
    const int64_t left = n - i;
    const Hits hits =
        left < STEP ? step(std::true_type(), i, left) : step(std::false_type(), i, STEP);
    const int found = count(hits.even) + count(hits.odd);
    if (found >= missing) return i + behind(hits, missing);
    missing -= found;
  }}}}
  return -1;
}}}}
"""

_PLAIN = """
extern "C" void kernel(const void* const* blocks, const float* numbers, void* const* outputs,
                       double* sums, int64_t start, int64_t n) {
  each(blocks, numbers, outputs, sums, start, n, n);
  fence();
}
"""

_CHUNKED = """
extern "C" void kernel(const void* const* blocks, const float* numbers, void* const* outputs,
                       double* sums, int64_t start, int64_t n) {{
  constexpr int64_t READ = {n_read}, DRAWN = {n_keys}, WRITTEN = {n_written};
  constexpr int64_t CHUNK = {chunk}, RUNS = {runs}, RUN = CHUNK / RUNS;
  // Memory is asked for what comes next piece by piece, between drawings that need none of it.
  constexpr int64_t PIECES = 4, PIECE = RUN / PIECES, PARTS = DRAWN * PIECES;
  constexpr int64_t read[] = {{{read}}}, written[] = {{{written}}}, keys[] = {{{keys}}};
  alignas(64) int16_t words[DRAWN][CHUNK];
  const int64_t stop = start + n;
  for (int64_t first = start - start % CHUNK; first < stop; first += CHUNK) {{
    const int64_t next = first + CHUNK;
    const int64_t from = first < start ? start : first, to = next < stop ? next : stop;
    const void* here[READ + DRAWN];
    void* there[WRITTEN];
    for (int k = 0; k < READ; k++) here[k] = (const char*)blocks[k] + read[k] * (from - start);
    for (int k = 0; k < WRITTEN; k++) there[k] = (char*)outputs[k] + written[k] * (from - start);
    for (int k = 0; k < DRAWN; k++) here[READ + k] = words[k] + (from - first);
    for (int part = 0; part < PARTS; part++) {{
      for (int k = 0; k < READ; k++) {{
        const int64_t size = read[k] * (to - from) / PARTS;
        for (int64_t at = 0; at < size; at += 64) ahead((const char*)here[k] + part * size + at);
      }}
      const int64_t place = part % PIECES * PIECE;
      void* runs[RUNS];
      for (int run = 0; run < RUNS; run++) runs[run] = words[part / PIECES] + run * RUN + place;
      const float* key = numbers + keys[part / PIECES];
      draw(nullptr, key, runs, nullptr, first / RUNS + place, PIECE, PIECE);
    }}
    each(here, numbers, there, sums, from, to - from, n);
  }}
  fence();
}}
"""
