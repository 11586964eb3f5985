"""Compares strategies on the encoder campaign at equal budget: hypervolume on search and held-out.

    python -m experiments.encoder.study [--seeds 3] [--trials 30] [--workers 2]

Every run is an ordinary campaign in `runs/study.db`: a killed study carries on where it was, and
`mmmo --store …` reads its campaigns. The front of each run is scored on the held-out items; both
hypervolumes have the reference point of `campaign.yaml` and are given in percent of the box above
it. Writes `results.json` and prints the table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from mmmo.campaign import Campaign
from mmmo.config import CampaignConfig, load
from mmmo.creation import create
from mmmo.held_out import held_out_scores, score_held_out
from mmmo.history import History
from mmmo.pareto import hypervolume
from mmmo.store import Store

HERE = Path(__file__).parent
RUNS = HERE / "runs"
STRATEGIES = {
    "mm_mo": {"strategy": "mm_mo", "options": {}},
    "mm_mo_reference": {"strategy": "mm_mo", "options": {"preset": "reference"}},
    "qlognehvi": {"strategy": "qlognehvi", "options": {}},
    "sobol": {"strategy": "sobol", "options": {}},
}


def configure(label: str, seed: int, trials: int, workers: int) -> CampaignConfig:
    """The campaign file with another strategy, seed and name."""
    config = load(HERE / "campaign.yaml")
    return config.model_copy(
        update={
            "name": f"encoder-{label}-{seed}",
            "seed": seed,
            "search": config.search.model_copy(update=STRATEGIES[label]),
            "budget": config.budget.model_copy(update={"trials": trials}),
            "pool": config.pool.model_copy(update={"workers": workers}),
        }
    )


def run(store: Store, config: CampaignConfig) -> History:
    """The finished campaign, its front scored on held-out items."""
    create(store, config)
    history = History(store, config.name)
    if history.finished is None:
        history = Campaign(store, config, RUNS).run()
    front = {f"trial {t.number}": t for t in history.pareto.front}
    recipes = {name: t.recipe for name, t in front.items()}
    digests = {t.key: t.digest for t in front.values()}
    for line in score_held_out(history, recipes, digests, RUNS / config.name / "logs"):
        print(f"  {line}", flush=True)
    return history


def volumes(history: History) -> dict[str, float]:
    """Hypervolume of the front on both splits, in percent of the box above the reference."""
    objectives = history.objectives
    reference = np.array([o.reference for o in objectives], dtype=float)
    box = float(np.prod(1.0 - reference))
    held_out = held_out_scores(history)
    rows = {
        "search": [[t.objective(o).value for o in objectives] for t in history.pareto.front],
        "held_out": [
            [held_out[t.key].scores[str(o.benchmark)].value for o in objectives]
            for t in history.pareto.front
        ],
    }
    return {split: 100 * hypervolume(np.array(y), reference) / box for split, y in rows.items()}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    store = Store(f"sqlite:///{RUNS / 'study.db'}")
    results: dict[str, list[dict[str, float]]] = {label: [] for label in STRATEGIES}
    for seed in range(arguments.seeds):
        for label in STRATEGIES:
            history = run(store, configure(label, seed, arguments.trials, arguments.workers))
            results[label].append({"seed": seed} | volumes(history))
            print(label, results[label][-1], flush=True)
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print("\nhypervolume in % of the box above the reference, mean ± standard error")
    for label, rows in results.items():
        cells = [_interval([row[split] for row in rows]) for split in ("search", "held_out")]
        print(f"{label:16s} search {cells[0]}   held-out {cells[1]}   ({len(rows)} seeds)")


def _interval(values: list[float]) -> str:
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{mean(values):5.1f} ± {error:.1f}"


if __name__ == "__main__":
    main()
