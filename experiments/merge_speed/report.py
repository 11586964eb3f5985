"""The measurements as a table to read."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.merge_speed.cases import SWAP_MS, TABLES_S
from experiments.merge_speed.merges import MergeRow, Merges
from experiments.merge_speed.study import MAGNITUDES, Results, SizeResults


def lines(results: Results) -> Iterator[str]:
    """Write a run."""
    for key, value in results.about.items():
        yield f"{key}: {value}"
    for size in results.sizes:
        yield ""
        yield from _size(size)
    yield from _compiling(results)
    yield from _campaign(results)


def _size(size: SizeResults) -> Iterator[str]:
    merges = size.merges
    yield (
        f"{size.size}: {size.parameters:,} parameters in {size.tensors} tensors, bfloat16, base + 3"
    )
    yield (
        f"floor (read 4, write 1): {1e3 * merges.floor_s:.1f} ms, {merges.floor_gb_s:.1f} GB/s, "
        f"{merges.floor_how}; digest {1e3 * merges.digest_s:.1f} ms; medians of {merges.rounds}"
    )
    heads = ("merge", "x floor", "at most", "+ digest", "eager")
    yield f"{'into live tensors, CPU ms':26s}" + "".join(f"{head:>9s}" for head in heads)
    for row in merges.rows:
        yield _merge(row, merges)
    for peer in size.mergekit:
        wanted = f"   at least {peer.target:.0f} x" if peer.target else ""
        yield (
            f"against mergekit 0.1.5 {peer.what:28s}{peer.theirs_s:8.2f} s (n = 1)"
            f"{peer.faster:7.1f} x faster{wanted}"
        )
    yield from _once(size)


def _merge(row: MergeRow, merges: Merges) -> str:
    text = f"{row.name:26s}{1e3 * row.pass_s:9.1f}{row.pass_s / merges.floor_s:9.2f}"
    text += f"{row.target:9.1f}" if row.target else " " * 9
    text += f"{1e3 * row.whole_s:9.1f}"
    if row.eager_s is not None:
        text += f"{1e3 * row.eager_s:9.0f}   {'equal' if row.equal else 'NOT EQUAL'}"
    return text


def _once(size: SizeResults) -> Iterator[str]:
    for kind, seconds in size.tables_s.items():
        wanted = f"   at most {TABLES_S:.0f}" if (size.size, kind) == ("0.5b", MAGNITUDES) else ""
        yield f"tables of three experts, {kind}: {seconds:.2f} CPU s{wanted}"
    yield (
        f"first TIES merge of a process, more than the second: {size.first_cold.cpu_s:.1f} CPU s "
        f"without tables on disk, {size.first_warm.cpu_s:.1f} with"
    )
    memory = size.memory
    yield (
        f"peak memory {memory.peak_mb:.0f} MB: {5 * memory.model_mb:.0f} for four sources and a "
        f"model, {memory.start_mb:.0f} for Python and torch, "
        f"{memory.peak_mb - 5 * memory.model_mb - memory.start_mb:.0f} else"
    )


def _compiling(results: Results) -> Iterator[str]:
    if results.compiling:
        yield ""
        yield "compiling, wall s: nothing cached, and in the next process"
    for row in results.compiling:
        yield f"{row.name:26s}{row.cold_s:9.2f}{row.warm_s:9.2f}"


def _campaign(results: Results) -> Iterator[str]:
    yield ""
    if not results.campaign_ms:
        yield "quickstart: not built (python -m experiments.quickstart --build-only)"
        return
    yield f"a trial's merge on the quickstart, CPU ms (at most {SWAP_MS:.0f})"
    for name, milliseconds in results.campaign_ms.items():
        yield f"{name:26s}{milliseconds:9.1f}"
