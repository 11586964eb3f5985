"""Campaign files for tests, as the mappings that YAML would give."""

from __future__ import annotations

from typing import Any


def campaign(**changes: Any) -> dict[str, Any]:
    """A valid campaign over three experts; keyword arguments replace whole sections."""
    return {
        "schema_version": 1,
        "name": "example",
        "seed": 3,
        "sources": {
            "base": "./base",
            "experts": {"maths": "./maths", "code": "./code", "spanish": "./spanish"},
        },
        "merge": {
            "method": "ties",
            "weight": {"range": [0.0, 1.5]},
            "density": {"range": [0.1, 1.0]},
        },
        "benchmarks": {
            "sums": {
                "kind": "exact_match",
                "data": "./sums.jsonl",
                "limit": 40,
                "options": {"prompt": "prompt", "answer": "answer"},
            },
            "python": {"kind": "nll", "data": "./python.jsonl", "options": {"text": "text"}},
        },
        "objectives": {
            "maths": {"benchmark": "sums"},
            "code": {"benchmark": "python"},
            "sparsity": {"measure": "delta_l1"},
        },
        "budget": {"trials": 12},
    } | changes
