"""What stands around the generated lines of a kernel: its loop, and what calls the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

HEADER = '#include "vectors.h"\n'


_LONG = 40
"""Lines of a chain that is worth cutting: shorter ones the processor overlaps by itself."""
_TAKEN = 8
"""Values that the second part of a step takes over, at most: twice as many registers are full."""


@dataclass(frozen=True)
class Line:
    """A line of what is done to 16 elements.

    Attributes:
        text: in C++.
        kind: type of the value that it defines, if it defines one.
        name: of that value.
        reads: names of the values that it reads.
    """

    text: str
    kind: str = ""
    name: str = ""
    reads: frozenset[str] = frozenset()


@dataclass
class Lines:
    """The lines of one function, by where they stand.

    Attributes:
        before: once, before the loop.
        load: once per 32 elements.
        half: once for those of even and once for those of odd index.
        hold: once per 32 elements: declares what `half` fills and `store` stores.
        store: once per 32 elements, behind both halves.
        after: once, behind the loop.
    """

    before: list[str] = field(default_factory=list)
    load: list[str] = field(default_factory=list)
    half: list[Line] = field(default_factory=list)
    hold: list[str] = field(default_factory=list)
    store: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    def cut(self) -> tuple[int, list[Line]] | None:
        """Find where to cut a step in two: around its middle, where the fewest values are alive.

        Returns:
            how many lines of a half come first, and those whose values the others read; None where
            these are too many, or masks, which do not keep well, or the step is short.
        """
        n = len(self.half)
        if n < _LONG:
            return None
        cuts = [(k, self._alive(k)) for k in range(n // 3, 2 * n // 3 + 1)]
        fit = [(k, own) for k, own in cuts if all(x.kind in ("F", "I") for x in own)]
        best = min(fit, key=lambda cut: len(cut[1]), default=None)
        return best if best and 0 < len(best[1]) <= _TAKEN else None

    def _alive(self, cut: int) -> list[Line]:
        read = frozenset[str]().union(*(line.reads for line in self.half[cut:]))
        return [line for line in self.half[:cut] if line.name in read]


def loop(name: str, lines: Lines) -> str:
    """Write a function that takes blocks of n elements, the first of which is number `start`."""
    around = {"name": name, "after": _indented(lines.after, 2)}
    cut = lines.cut()
    if cut is None:
        return _LOOP.format(**around, **_step(lines))
    first, taken = cut
    names = ", ".join(line.name for line in taken)
    own = {
        "first": _indented([line.text for line in lines.half[:first]], 6),
        "second": _indented([line.text for line in lines.half[first:]], 6),
        "fields": " ".join(f"{line.kind} {line.name};" for line in taken),
        "names": names,
    }
    return _OVERLAPPED.format(**around, **_step(lines), **own)


def search(lines: Lines) -> str:
    """Write a function that finds the index behind the `rank`-th element that is true, else -1."""
    return _SEARCH.format(**_step(lines))


def kernel(run: str, read: Sequence[int], written: Sequence[int], numbers: int) -> str:
    """Write a kernel that runs a function over parts of its blocks, each with numbers of its own.

    Args:
        run: the function.
        read: bytes per element of what is read.
        written: bytes per element of what is written, 0 of sums.
        numbers: how many numbers it is told.
    """
    return _KERNEL.format(run=run, numbers=numbers, **_listed(read=read, written=written))


def chunked(
    read: Sequence[int], written: Sequence[int], keys: Sequence[int], chunk: int, runs: int
) -> str:
    """Write a function that draws random words for a chunk, then runs over the chunk.

    Args:
        read: bytes per element of what is read.
        written: bytes per element of what is written, 0 of sums.
        keys: for every block of words, number of the first of the numbers that `draw` is told.
        chunk: elements.
        runs: blocks in which `draw` returns a chunk's words.
    """
    sizes = _listed(read=read, written=written, keys=keys)
    return _CHUNKED.format(chunk=chunk, runs=runs, **sizes)


def _listed(**sizes: Sequence[int]) -> dict[str, object]:
    """Write lists, of which none is empty in C++, and how long they are."""
    lists = {name: ", ".join(map(str, values)) or "0" for name, values in sizes.items()}
    return {**lists, **{f"n_{name}": len(values) for name, values in sizes.items()}}


def _step(lines: Lines) -> dict[str, str]:
    return {
        "before": _indented(lines.before, 2),
        "load": _indented(lines.load, 4),
        "half": _indented([line.text for line in lines.half], 6),
        "hold": _indented(lines.hold, 4),
        "store": _indented(lines.store, 4),
    }


def _indented(lines: Sequence[str], depth: int) -> str:
    return "\n".join(" " * depth + line for line in lines)


_STEP = """\
{before}
  auto step = [&](auto tail, int64_t i, int64_t left) __attribute__((always_inline)) {{
    constexpr bool TAIL = decltype(tail)::value;
{load}
{hold}
    auto half = [&](auto odd) __attribute__((always_inline)) {{
      constexpr bool ODD = decltype(odd)::value;
{half}
    }};
    half(std::false_type()), half(std::true_type());
{store}
  }};
"""

_OPENING = """
static void {name}(const void* const* blocks, const float* numbers, void* const* outputs,
                 double* sums, int64_t start, int64_t n, int64_t whole) {{"""

_LOOP = f"""{_OPENING}
{_STEP}
  int64_t i = 0;
  for (; i + STEP <= n; i += STEP) step(std::false_type(), i, STEP);
  if (i < n) step(std::true_type(), i, n - i);
{{after}}
}}}}
"""

# A step is a chain of results, too long for the processor to look beyond it to the next steps. So
# each step's second part stands beside the first part of the next step, which does not wait for it.
_OVERLAPPED = f"""{_OPENING}
{{before}}
  struct Taken {{{{ {{fields}} }}}};
  auto begin = [&](auto tail, int64_t i, int64_t left) __attribute__((always_inline)) {{{{
    constexpr bool TAIL = decltype(tail)::value;
{{load}}
    auto half = [&](auto odd) __attribute__((always_inline)) {{{{
      constexpr bool ODD = decltype(odd)::value;
{{first}}
      return Taken{{{{{{names}}}}}};
    }}}};
    return Both<Taken>{{{{half(std::false_type()), half(std::true_type())}}}};
  }}}};
  auto end = [&](auto tail, int64_t i, int64_t left, Both<Taken> taken)
      __attribute__((always_inline)) {{{{
    constexpr bool TAIL = decltype(tail)::value;
{{hold}}
    auto half = [&](auto odd, Taken own) __attribute__((always_inline)) {{{{
      constexpr bool ODD = decltype(odd)::value;
      const auto [{{names}}] = own;
{{second}}
    }}}};
    half(std::false_type(), taken.even), half(std::true_type(), taken.odd);
{{store}}
  }}}};

  int64_t i = 0;
  if (n >= STEP) {{{{
    Both<Taken> next = begin(std::false_type(), 0, STEP);
    for (; i + 2 * STEP <= n; i += STEP) {{{{
      const Both<Taken> now = next;
      next = begin(std::false_type(), i + STEP, STEP);
      end(std::false_type(), i, STEP, now);
    }}}}
    end(std::false_type(), i, STEP, next), i += STEP;
  }}}}
  if (i < n) end(std::true_type(), i, n - i, begin(std::true_type(), i, n - i));
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

_KERNEL = """
extern "C" void kernel(const void* const* blocks, const float* numbers, void* const* outputs,
                       double* sums, int64_t start, const int64_t* ends, int64_t parts) {{
  constexpr int64_t READ = {n_read}, WRITTEN = {n_written};
  constexpr int64_t read[] = {{{read}}}, written[] = {{{written}}};
  int64_t at = 0;
  for (int64_t part = 0; part < parts; at = ends[part++], numbers += {numbers}) {{
    const void* here[READ + 1];
    void* there[WRITTEN + 1];
    for (int k = 0; k < READ; k++) here[k] = (const char*)blocks[k] + read[k] * at;
    for (int k = 0; k < WRITTEN; k++) there[k] = (char*)outputs[k] + written[k] * at;
    {run}(here, numbers, there, sums, start + at, ends[part] - at, ends[parts - 1]);
  }}
  fence();
}}
"""

_CHUNKED = """
static void chunks(const void* const* blocks, const float* numbers, void* const* outputs,
                   double* sums, int64_t start, int64_t n, int64_t whole) {{
  constexpr int64_t READ = {n_read}, DRAWN = {n_keys}, WRITTEN = {n_written};
  constexpr int64_t CHUNK = {chunk}, RUNS = {runs}, RUN = CHUNK / RUNS;
  constexpr int64_t read[] = {{{read}}}, written[] = {{{written}}}, keys[] = {{{keys}}};
  alignas(64) uint16_t words[DRAWN][CHUNK];
  const int64_t stop = start + n;
  for (int64_t first = start - start % CHUNK; first < stop; first += CHUNK) {{
    const int64_t next = first + CHUNK;
    const int64_t from = first < start ? start : first, to = next < stop ? next : stop;
    const void* here[READ + DRAWN];
    void* there[WRITTEN];
    for (int k = 0; k < READ; k++) here[k] = (const char*)blocks[k] + read[k] * (from - start);
    for (int k = 0; k < WRITTEN; k++) there[k] = (char*)outputs[k] + written[k] * (from - start);
    for (int k = 0; k < DRAWN; k++) {{
      here[READ + k] = words[k] + (from - first);
      void* runs[RUNS];
      for (int run = 0; run < RUNS; run++) runs[run] = words[k] + run * RUN;
      draw(nullptr, numbers + keys[k], runs, nullptr, first / 2 / RUNS, RUN / 2, RUN / 2);
    }}
    each(here, numbers, there, sums, from, to - from, whole);
  }}
}}
"""
