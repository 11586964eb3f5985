"""Runs what is missing of a study, prints its table, and writes its plot.

    python -m experiments.sample_efficiency --reduced
    python -m experiments.sample_efficiency --problems merge6 merge12 --seeds 10
    python -m experiments.sample_efficiency --contestants mm_mo mm_mo:local_slots=true
    python -m experiments.sample_efficiency --contestants mm_mo mm_mo@start=0.2,promote=gain

Runs are kept in `experiments/sample_efficiency/runs`; a killed study carries on where it was.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

REDUCED = {"problems": ["merge6"], "seeds": 3, "processes": 2}
"""The acceptance run: all contestants, about five processor minutes."""


def main(arguments: Sequence[str]) -> int:
    """Run, print, plot."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.reduced:  # what is given besides still counts
        parser.set_defaults(**REDUCED)
        given = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    import torch

    from experiments.sample_efficiency import contestants, problems, report, study

    torch.set_num_threads(1)
    sizes = {name: problems.open_problem(name).items or given.items for name in given.problems}
    runs = [
        study.Run(
            problem,
            label,
            seed,
            given.budget,
            min(given.items, sizes[problem]),
            given.anchors,
            given.reference,
        )
        for problem in given.problems
        for seed in range(given.first_seed, given.first_seed + given.seeds)
        for label in given.contestants or contestants.ALL
    ]
    if given.print_only:
        records = list(study.finished(runs, given.runs))
    else:
        records = study.run_all(runs, given.processes, given.runs, lambda s: print(s, flush=True))
    print("\n".join(report.lines(records, given.at, given.against)))
    if records:
        given.runs.mkdir(parents=True, exist_ok=True)
        report.plot(records, given.runs / "plot.html")
        print(f"\nplot: {given.runs / 'plot.html'}")
    if given.save:
        command = shlex.join(["python", "-m", "experiments.sample_efficiency", *arguments])
        report.save(records, given.at, command, given.save)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sample_efficiency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--reduced", action="store_true", help="the acceptance run: one problem, three seeds")
    add("--problems", nargs="+", default=["merge6"], help="names of problems.py")
    add("--contestants", nargs="+", help="labels of contestants.py; all by default")
    add("--seeds", type=int, default=10)
    add("--first-seed", type=int, default=0)
    add("--budget", type=int, default=30, help="full evaluations: items are what is spent")
    add("--items", type=int, default=1300, help="per benchmark and full evaluation, at most all")
    add("--anchors", action="store_true", help="tell strategies the problem's anchors")
    add("--reference", action="store_true", help="tell strategies the reference point")
    add("--processes", type=int, default=1)
    add("--at", type=float, nargs="+", default=[7.5, 15, 30, 50, 100], help="columns of the table")
    add("--against", default="mm_mo", help="the contestant that others are compared with")
    add("--runs", type=Path, default=Path(__file__).parent / "runs", help="folder of the runs")
    add("--save", type=Path, metavar="FILE", help="write a small results file")
    add("--print-only", action="store_true", help="only what is finished")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
