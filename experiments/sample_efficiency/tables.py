"""Real merges, scored once: outcomes of every item for a fixed design of recipes, one file a suite.

    nice -n 10 python -m experiments.sample_efficiency.tables digits
    nice -n 10 python -m experiments.sample_efficiency.tables quickstart encoder --processes 2

A suite is `experiments/NAME/campaign.yaml`, whose models must have been built; N recipes are its
anchors, then scrambled Sobol points of its search space. Every finished block is a file in
`runs/tables`: a killed run carries on. The whole is `tables/NAME.npz`; see `README.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluators.benchmarks.benchmark import Split

Array = NDArray[np.float64]

HERE = Path(__file__).parent
FOLDER, BLOCKS = HERE / "tables", HERE / "runs" / "tables"
SIZES = {"quickstart": 300, "encoder": 200, "digits": 1500}
"""Recipes of a suite."""
BLOCK = 10
"""Recipes of a file: what a killed run loses at most, per process."""
SEED = 0
SPLITS: tuple[Split, ...] = ("search", "held_out")


@dataclass(frozen=True)
class Table:
    """Outcomes of all items for N recipes.

    Attributes:
        X: `N x d` points of the campaign's search space; the first `anchors` are its anchors.
        delta_l1: `N` mean |delta| per parameter.
        outcomes: split → benchmark → `N x n`, in the seeded order of the items.
        objectives: documents of `mmmo.records.Objective`.
        columns: names of the d coordinates.
        made_of: what determined it: digests of the models, fingerprints of the items.
    """

    X: Array
    anchors: int
    delta_l1: Array
    outcomes: Mapping[str, Mapping[str, Array]]
    objectives: Sequence[Mapping[str, object]]
    columns: Sequence[str]
    made_of: Mapping[str, object]

    def save(self, path: Path) -> None:
        """Write it: zeros and ones as bits, other outcomes as float16."""
        arrays: dict[str, NDArray[np.generic]] = {"X": self.X, "delta_l1": self.delta_l1}
        binary: dict[str, int] = {}
        for split, outcomes in self.outcomes.items():
            for name, values in outcomes.items():
                key = f"{split}/{name}"
                if np.isin(values, (0.0, 1.0)).all():
                    binary[key] = values.shape[1]
                    arrays[key] = np.packbits(values.astype(bool), axis=1)
                else:
                    arrays[key] = values.astype(np.float16)
        facts = {
            "anchors": self.anchors,
            "binary": binary,
            "objectives": self.objectives,
            "columns": self.columns,
            "made_of": self.made_of,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]

    def split_anew(self, seed: int) -> Table:
        """Divide each benchmark's items anew at random, as many to search on as before.

        What one division favours by chance then differs from seed to seed. A difference in kind
        between the items of two files is no longer there.
        """
        rng = np.random.default_rng(seed)
        search, held_out = {}, {}
        for name, outcomes in self.outcomes["search"].items():
            together = np.concatenate([outcomes, self.outcomes["held_out"][name]], axis=1)
            order, n = rng.permutation(together.shape[1]), outcomes.shape[1]
            search[name], held_out[name] = together[:, order[:n]], together[:, order[n:]]
        return replace(self, outcomes={"search": search, "held_out": held_out})

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read what `save` wrote."""
        with np.load(path) as file:
            facts = json.loads(str(file["facts"]))
            outcomes: dict[str, dict[str, Array]] = {"search": {}, "held_out": {}}
            for key in (k for k in file.files if "/" in k):
                split, name = key.split("/", 1)
                n, values = facts["binary"].get(key), file[key]
                values = values if n is None else np.unpackbits(values, axis=1, count=n)
                outcomes[split][name] = values.astype(np.float64)
            parts = {k: facts[k] for k in ("anchors", "objectives", "columns", "made_of")}
            return cls(X=file["X"], delta_l1=file["delta_l1"], outcomes=outcomes, **parts)


def design(campaign: Path, count: int) -> tuple[Array, int]:
    """The points of a table, `count x d`, and how many of them are anchors, which come first.

    A longer design begins with the shorter one.
    """
    from acquisition.space_filling import sobol_points
    from mmmo.anchors import anchors
    from mmmo.config import load
    from mmmo.space import SearchSpace

    space = SearchSpace(load(campaign))
    first = np.array(list(anchors(space).values()))
    rest = sobol_points(space.size, count - len(first), SEED).numpy()
    return np.concatenate([first, rest]), len(first)


def make(campaign: Path, count: int, processes: int, blocks: Path) -> Table:
    """Score what is missing of the blocks, `processes` at a time; the table of all of them."""
    from mmmo.config import load
    from mmmo.preflight import Preflight
    from mmmo.space import SearchSpace

    X, anchors = design(campaign, math.ceil(count / BLOCK) * BLOCK)
    blocks.mkdir(parents=True, exist_ok=True)
    starts = [s for s in range(0, count, BLOCK) if not _block(blocks, s).exists()]
    shares = [(campaign, blocks, X, starts[i::processes]) for i in range(processes)]
    if processes == 1:
        _score_blocks(shares[0])
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            list(pool.map(_score_blocks, shares))
    found = [dict(np.load(_block(blocks, s))) for s in range(0, count, BLOCK)]
    whole = {key: np.concatenate([b[key] for b in found]) for key in found[0]}
    if not np.array_equal(whole["X"], X):
        raise ValueError(f"{blocks}: blocks of another design; delete them")
    config = load(campaign)
    facts = Preflight(config, thorough=False).facts
    return Table(
        X=X[:count],
        anchors=anchors,
        delta_l1=whole["delta_l1"][:count],
        outcomes={s: {n: whole[f"{s}/{n}"][:count] for n in config.benchmarks} for s in SPLITS},
        objectives=[asdict(o) for o in facts.objectives],
        columns=SearchSpace(config).columns,
        made_of={"sources": facts.sources, "fingerprints": facts.fingerprints, "seed": SEED},
    )


def _block(blocks: Path, start: int) -> Path:
    return blocks / f"{start:05d}.npz"


def _score_blocks(share: tuple[Path, Path, Array, list[int]]) -> None:
    """Score those blocks one after the other, with one warm worker."""
    campaign, blocks, X, starts = share
    for start, arrays in _scored(campaign, X, starts):
        draft = _block(blocks, start).with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(draft, **arrays)  # type: ignore[arg-type]
        draft.replace(_block(blocks, start))


def _scored(
    campaign: Path, X: Array, starts: Sequence[int]
) -> Iterator[tuple[int, dict[str, NDArray[np.generic]]]]:
    from evaluators.worker import EvaluationJob, Worker
    from mmmo.config import load
    from mmmo.preflight import workbench
    from mmmo.space import SearchSpace

    config = load(campaign)
    space, worker = SearchSpace(config), Worker(workbench(config))
    items = dict.fromkeys(config.benchmarks, slice(0, None))
    for start in starts:
        began, rows = time.process_time(), range(start, start + BLOCK)
        found: dict[str, list[object]] = {}
        for row in rows:
            for split in SPLITS:
                result = worker.run(EvaluationJob(row, space.decode(X[row]), items, split))
                if result.failure:
                    raise RuntimeError(f"recipe {row}: {result.failure.detail}")
                for name, score in result.scores.items():
                    found.setdefault(f"{split}/{name}", []).append(score.outcomes)
            found.setdefault("delta_l1", []).append(result.measures["delta_l1"])
        each = (time.process_time() - began) / len(rows)
        print(f"{config.name} {rows.stop} of {len(X)}: {each:.2f} CPU s each", flush=True)
        yield start, {"X": X[rows.start : rows.stop]} | {k: np.array(v) for k, v in found.items()}


def main(arguments: Sequence[str]) -> int:
    """Make the tables of the given suites, and say what they are like."""
    from experiments.sample_efficiency.references import describe
    from experiments.sample_efficiency.tabulated import open_table

    parser = argparse.ArgumentParser(
        prog="python -m experiments.sample_efficiency.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suites", nargs="+", choices=SIZES)
    parser.add_argument("--recipes", type=int, help="instead of those of SIZES")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--print-only", action="store_true", help="what the tables are like")
    given = parser.parse_args(arguments)
    for suite in given.suites:
        campaign, path = HERE.parent / suite / "campaign.yaml", FOLDER / f"{suite}.npz"
        if not given.print_only:
            count = given.recipes or SIZES[suite]
            make(campaign, count, given.processes, BLOCKS / suite).save(path)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
        for name in (suite, f"{suite}-scores"):
            print(describe(open_table(name)), flush=True)
    return 0


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, also by the processes
    sys.exit(main(sys.argv[1:]))
