"""What is said on the terminal beside results."""

from __future__ import annotations

import sys


def tell(line: str) -> None:
    """Say on stderr why nothing moves for a while."""
    print(line, file=sys.stderr, flush=True)
