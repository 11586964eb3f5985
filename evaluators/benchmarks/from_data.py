"""What the benchmarks that read rows have in common: their items."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.benchmarks.benchmark import Positions, Split
from evaluators.benchmarks.data import Check, Column, DataOptions, Row, accept, open_items


class FromData:
    """Half a benchmark: size, fingerprint and rows; a kind adds metric, outcomes and summary."""

    def __init__(
        self, options: DataOptions, columns: Sequence[Column], check: Check = accept
    ) -> None:
        self._items = open_items(options, columns, check)

    def size(self, split: Split) -> int:
        """How many items the split holds (after `limit`)."""
        return len(self._items.of(split))

    def fingerprint(self, split: Split) -> str:
        """Hash of the split's items, answers included, in their order."""
        return self._items.fingerprint(split)

    def rows(self, split: Split, items: Positions) -> tuple[Row, ...]:
        """Those items of the seeded order."""
        rows = self._items.of(split)
        return rows[items] if isinstance(items, slice) else tuple(rows[i] for i in items)
