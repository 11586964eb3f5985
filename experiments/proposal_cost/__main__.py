"""Times proposals of `mm_mo` and prints the table: processor seconds of one thread per candidate.

    python -m experiments.proposal_cost [--rounds 3] [--json FILE]

The observations are as a campaign leaves them: half of them Sobol points, half along the front,
measured on 1,300 items.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

ROUNDS = 3


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.proposal_cost")
    parser.add_argument("--strategy", default="mm_mo", help="a label, options included")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="seeds of the median")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    given = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    import torch

    from experiments.proposal_cost import study

    torch.set_num_threads(1)
    rows = study.measure(given.strategy, given.rounds)
    print("\n".join(study.lines(rows)))
    if given.json:
        command = shlex.join(["python", "-m", "experiments.proposal_cost", *arguments])
        given.json.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
