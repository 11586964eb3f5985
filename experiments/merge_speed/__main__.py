"""Times our merges against memory bandwidth and against mergekit, and prints the table.

    python -m experiments.merge_speed [--sizes 0.1b 0.5b] [--json FILE]

Times are processor seconds of one thread unless the table says otherwise. The models are built on
the first run, in `experiments/merge_speed/zoo`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

ROUNDS = 5
TRIALS = 20
"""Merges on the quickstart that its median is of."""


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    given = _parser().parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for child processes
    import torch

    from experiments.merge_speed import campaign, report, study

    torch.set_num_threads(1)
    command = shlex.join(["python", "-m", "experiments.merge_speed", *arguments])
    about = study.about(command, given.note)
    sizes = [study.measure(s, given.rounds, mergekit=given.mergekit) for s in given.sizes]
    results = study.Results(about, tuple(sizes), study.compiling(), campaign.swap_ms(TRIALS))
    if given.json:
        given.json.write_text(json.dumps(asdict(results), indent=2) + "\n")
    print("\n".join(report.lines(results)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.merge_speed")
    parser.add_argument(
        "--sizes", nargs="+", choices=["tiny", "0.1b", "0.5b"], default=["0.1b", "0.5b"]
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="repetitions of every merge")
    parser.add_argument(
        "--mergekit",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time mergekit, too (two minutes at 0.5b)",
    )
    parser.add_argument("--note", default="", help="what else to record about the machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
