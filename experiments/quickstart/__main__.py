"""Builds the quickstart's models, runs its campaign with the verbs a user types, and reports.

    python -m experiments.quickstart [--build-only]

Models that are built already are kept; an unfinished campaign is resumed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

CAMPAIGN = Path(__file__).parent / "campaign.yaml"
VERBS = (
    ("launch", str(CAMPAIGN)),
    ("export", "quickstart"),
    ("report", "quickstart"),
    ("pareto", "quickstart"),
)


def main() -> int:
    """Run all phases and print what each took; returns the exit code of the first that fails."""
    parser = argparse.ArgumentParser(description="Build the quickstart's models and merge them.")
    parser.add_argument("--build-only", action="store_true", help="build the models, no campaign")
    verbs = () if parser.parse_args().build_only else VERBS
    seconds = {"build": _build()}
    for verb, subject in verbs:
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "mmmo", verb, subject], check=False)
        if done.returncode != 0:
            return done.returncode
        seconds[verb] = time.perf_counter() - started
    total = sum(seconds.values())
    phases = ", ".join(f"{phase} {spent:.0f} s" for phase, spent in seconds.items())
    print(f"{phases}; {total:.0f} s in all")
    if seconds.get("launch", 0.0) >= (spent := _campaign_time())["wall_s"] > 0.0:
        overhead = spent["wall_s"] - spent["work_s"] / spent["workers"]
        print(
            f"the campaign's own overhead (its wall time but merging and scoring): "
            f"{overhead:.0f} s, {overhead / total:.0%} of all"
        )
    return 0


def _campaign_time() -> dict[str, float]:
    """Where the time of the session that finished the campaign went; zeros if none did."""
    status = [sys.executable, "-m", "mmmo", "status", "quickstart", "--json"]
    shown = subprocess.run(status, check=False, capture_output=True, text=True)
    time_spent = json.loads(shown.stdout)["time"] if shown.returncode == 0 else None
    return dict(time_spent or {"wall_s": 0.0})


def _build() -> float:
    from experiments.quickstart.zoo import build

    started = time.perf_counter()
    print(f"models: built {', '.join(build()) or 'nothing, all are there'}", flush=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
