"""mergekit's configurations (version 0.1.5) in and out: a recipe as one, and one as a recipe.

`from_mergekit` reads what `to_mergekit` writes and what mergekit's users write; `differences` says
where mergekit would compute something else. What mergekit itself knows is in `dialect`.
"""

from __future__ import annotations

from evaluators.merging.mergekit.dialect import is_known
from evaluators.merging.mergekit.document import MergekitError
from evaluators.merging.mergekit.reading import Outline, Reading, from_mergekit
from evaluators.merging.mergekit.writing import differences, to_mergekit

__all__ = [
    "MergekitError",
    "Outline",
    "Reading",
    "differences",
    "from_mergekit",
    "is_known",
    "to_mergekit",
]
