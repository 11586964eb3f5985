"""Cases, observations like a campaign's, and the processor time of proposals on them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
import torch
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.optimize import minimize

from acquisition.space_filling import sobol_points
from acquisition.strategy import Observations
from experiments.sample_efficiency.contestants import open_contestant
from experiments.sample_efficiency.problems import Problem, open_problem
from experiments.sample_efficiency.references import Archive

CASES: Sequence[tuple[str, int, float]] = (
    ("merge12", 100, 1.0),
    ("merge12", 400, 5.0),
    ("merge12a4", 100, 3.0),
)
"""Problem, observations, and the goal in seconds: 3, 3 and 5 objectives of 12 parameters."""

BATCHES = (1, 5)
GENERATIONS = 20


def observe(problem: Problem, count: int, seed: int) -> Observations:
    """`count` measured points: half Sobol, half a population of NSGA-II near the front."""
    near = minimize(Archive(problem), NSGA2(pop_size=count // 2), ("n_gen", GENERATIONS), seed=seed)
    found = torch.from_numpy(near.pop.get("X"))
    X = torch.cat([sobol_points(problem.dimension, count - len(found), seed), found])
    Y, Yvar = problem.evaluate(X, np.random.default_rng(seed))
    none = X[:0]
    return Observations(
        X=X, Y=Y, Yvar=Yvar, pending=none, failed=none, anchors=none, known=problem.known
    )


def measure(label: str, rounds: int) -> list[dict[str, object]]:
    """A row per case and batch: the median over seeds, after one proposal that is not counted."""
    rows: list[dict[str, object]] = []
    for name, count, goal in CASES:
        problem = open_problem(name)
        strategy = open_contestant(label, problem.dimension, count).strategy
        seen = [observe(problem, count, seed) for seed in range(rounds)]
        strategy.propose(observe(problem, 20, 0), 1, 0)
        for q in BATCHES:
            seconds = []
            for seed, observations in enumerate(seen):
                start = time.process_time()
                strategy.propose(observations, q, seed)
                seconds.append((time.process_time() - start) / q)
            rows.append(
                {
                    "strategy": label,
                    "objectives": len(problem.reference),
                    "parameters": problem.dimension,
                    "observations": count,
                    "q": q,
                    "cpu_s_per_candidate": round(median(seconds), 3),
                    "range": [round(min(seconds), 3), round(max(seconds), 3)],
                    "goal_s": goal,
                }
            )
    return rows


def lines(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """A Markdown table."""
    result = [
        "| strategy | objectives | parameters | observations | q | CPU s each | range | goal |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        low, high = row["range"]
        result.append(
            f"| `{row['strategy']}` | {row['objectives']} | {row['parameters']} | "
            f"{row['observations']} | {row['q']} | {row['cpu_s_per_candidate']:.2f} | "
            f"{low:.2f} to {high:.2f} | {row['goal_s']:g} |"
        )
    return result
