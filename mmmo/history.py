"""A campaign as its events tell it: configuration, facts, trials, sessions, front.

Everything that reads a campaign goes through here: the loop, the verbs, export and report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from mmmo.anchors import anchors
from mmmo.config import BudgetConfig, CampaignConfig, PoolConfig
from mmmo.errors import StoreError
from mmmo.folding import fold
from mmmo.pareto import ParetoSet
from mmmo.preflight import Facts
from mmmo.records import Objective, Trial
from mmmo.space import SearchSpace
from mmmo.store import Event, Store

_OF_THE_LOOP = frozenset(
    {"proposed", "promoted", "started", "completed", "grown", "failed", "finished", "paused"}
)
"""Events that show that the campaign's loop was running."""


class History:
    """Folds a campaign's events; `update` reads the new ones.

    Attributes:
        trials: number → trial.
        summaries: what the strategy believed at each proposal that it had a model for.
        confirming: trials of the front that were ordered to be scored on all items since the
            search proposed its last candidate.
        finished: summary of the *finished* event, or None.

    Raises:
        StoreError: there is no such campaign, or what is stored cannot be read.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        row = store.get(name)
        self.created_at, self.identity = row.created_at, row.config_digest
        self.trials: dict[int, Trial] = {}
        self.summaries: list[Mapping[str, Any]] = []
        self.confirming: set[int] = set()
        self.finished: Mapping[str, Any] | None = None
        self._asked_to_stop = self._held_after = 0
        self._facts: Facts | None = None
        self._paused = False
        self._last_event = 0
        self._sessions: list[list[float]] = []
        try:
            self.config = CampaignConfig.model_validate(yaml.safe_load(row.config))
            self.update()
        except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise StoreError(
                f"campaign {name!r}: what is stored cannot be read: {reason}",
                "was it written by another version of mmmo?",
            ) from error

    def update(self) -> list[Event]:
        """Read and fold what is new."""
        events = self.store.events(self.name, after=self._last_event)
        fold(events, self.trials)
        for event in events:
            self._last_event = event.id
            self._note(event)
        return events

    @property
    def facts(self) -> Facts:
        """What the campaign is measured by.

        Raises:
            StoreError: it was never really started.
        """
        if self._facts is None:
            raise StoreError(
                f"campaign {self.name!r} never started", f"mmmo resume {self.name} starts it"
            )
        return self._facts

    @property
    def has_facts(self) -> bool:
        """Whether the campaign got as far as its first event."""
        return self._facts is not None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The resolved objectives."""
        return self.facts.objectives

    @property
    def completed(self) -> list[Trial]:
        """Completed trials, in the order of completion."""
        done = [t for t in self.trials.values() if t.state == "completed"]
        return sorted(done, key=lambda t: (t.at, t.number))

    @property
    def open(self) -> list[Trial]:
        """Trials that still need a worker, as ordered."""
        waiting = [t for t in self.trials.values() if t.is_open]
        return sorted(waiting, key=lambda t: (t.since, t.number))

    @property
    def summary(self) -> Mapping[str, Any]:
        """What the strategy believed at its last proposal with a model; empty before."""
        return self.summaries[-1] if self.summaries else {}

    @property
    def scored_items(self) -> int:
        """How many items were scored for all trials and benchmarks together."""
        return sum(t.scored for t in self.trials.values())

    @property
    def pareto(self) -> ParetoSet:
        """The Pareto set of the completed trials that meet every constraint.

        Once the front is being confirmed or the campaign is finished, only trials that answered
        all items are in it, if there is any.
        """
        done = self._feasible
        if self._settled:
            done = [t for t in done if t.share >= 1] or done
        return ParetoSet(tuple(done), self.objectives)

    @property
    def leading(self) -> tuple[Trial, ...]:
        """The feasible completed trials that no other dominates, however few items they answered.

        Before the front is confirmed, and without shares of the items, that is the front.
        """
        return ParetoSet(tuple(self._feasible), self.objectives).front

    @property
    def anchors(self) -> dict[int, str]:
        """Completed trials that somebody would have tried by hand: number → the anchor's name."""
        space = SearchSpace(self.config)
        names = {space.decode(x).key: name for name, x in anchors(space).items()}
        found: dict[int, str] = {}
        for trial in sorted(self.completed, key=lambda t: t.number):
            if trial.key in names and names[trial.key] not in found.values():
                found[trial.number] = names[trial.key]
        return found

    @property
    def hypervolume_of_anchors(self) -> float | None:
        """What the anchors dominate; None where there are none, or the front is of trials that
        answered all items and not every anchor is one.
        """
        found = [self.trials[n] for n in self.anchors]
        if not found or (self._settled and any(t.share < 1 for t in found)):
            return None
        return self.pareto.hypervolume([t.number for t in found])

    @property
    def _feasible(self) -> list[Trial]:
        """The completed trials that meet every constraint."""
        return [t for t in self.completed if self._is_feasible(t)]

    @property
    def _settled(self) -> bool:
        """Whether the front is being confirmed, or was."""
        return bool(self.confirming) or self.finished is not None

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked to stop since the last session took its lease."""
        return self._asked_to_stop > self._held_after

    @property
    def active_seconds(self) -> float:
        """How long the campaign has run, over all its sessions."""
        return sum(end - begin for begin, end in self._sessions)

    @property
    def state(self) -> str:
        """`running`, `finished`, `stopped` in good order, or `interrupted`: its process died or was
        told twice to end.
        """
        if self.store.writer(self.name) is not None:
            return "running"
        if self.finished is not None:
            return "finished"
        return "stopped" if self._paused or not self._sessions else "interrupted"

    def trial(self, number: int) -> Trial:
        """One trial.

        Raises:
            StoreError: there is no such trial.
        """
        if number not in self.trials:
            allowed = f"0 to {len(self.trials) - 1}" if self.trials else "none yet"
            raise StoreError(f"campaign {self.name!r} has no trial {number}; trials: {allowed}")
        return self.trials[number]

    def _is_feasible(self, trial: Trial) -> bool:
        """Whether the measured values meet every constraint."""
        found = {o.name: trial.objective(o).value for o in self.objectives}
        return all(c.holds(found[c.objective]) for c in self.config.constraints)

    def _note(self, event: Event) -> None:
        """What an event says about the campaign itself."""
        if event.kind == "created":
            self._facts = Facts.read(event.payload)
        elif event.kind == "started_session":
            self._sessions.append([event.at, event.at])
            self.finished, self._paused = None, False
            self._held_after = event.payload.get("held_after", event.id)
            self._reconfigure(event.payload)
        elif event.kind == "stop_requested":
            self._asked_to_stop = event.id
        elif event.kind == "finished":
            self.finished = event.payload
        elif event.kind == "modelled":
            self.summaries.append(event.payload)
        elif event.kind == "proposed":
            self.confirming.clear()
        elif event.kind == "promoted" and event.payload["confirms"] and event.trial is not None:
            self.confirming.add(event.trial)
        self._paused = event.kind == "paused" or (self._paused and event.kind not in _OF_THE_LOOP)
        if self._sessions and event.kind in _OF_THE_LOOP:
            self._sessions[-1][1] = event.at

    def _reconfigure(self, payload: Mapping[str, Any]) -> None:
        """Budget and pool may change from session to session; they decide no result."""
        self.config = self.config.model_copy(
            update={
                "budget": BudgetConfig.model_validate(payload["budget"]),
                "pool": PoolConfig.model_validate(payload["pool"]),
            }
        )
