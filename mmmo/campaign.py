"""The only loop: propose, record, submit, collect, record.

Intent is recorded before anything is dispatched, and every change of state is one committed event,
so the process may die at any moment. What is open in the store is done again on the next start;
what is completed is never done twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.pool import EvaluatorPool
from evaluators.worker import BLAMELESS, RETRIED, EvaluationJob, EvaluationResult
from mmmo.config import CampaignConfig
from mmmo.errors import Fault, Problems
from mmmo.history import History
from mmmo.interrupts import Interrupts
from mmmo.leases import Lease
from mmmo.limits import Limits
from mmmo.preflight import Facts, Preflight
from mmmo.preparation import open_optimizer, prepare_merges
from mmmo.records import Trial, answered, completed, own_order, promoted, proposed
from mmmo.space import SearchSpace
from mmmo.store import NewEvent, Store
from mmmo.workers import open_workers

if TYPE_CHECKING:
    from acquisition.allocation import Allocation
    from mmmo.optimizer import Orders, PromotedTrial

Watcher = Callable[[History], None]
"""Called after every change, to show progress."""

_POLL_S = 0.5
"""How often the loop looks up from waiting, for Ctrl-C and stop requests."""


@dataclass
class Account:
    """Where a session's time went, in seconds.

    Attributes:
        work_s: merging and scoring, summed over workers.
        propose_s: asking the strategy.
    """

    workers: int
    began: float
    work_s: float = 0.0
    propose_s: float = 0.0

    def summary(self) -> dict[str, float]:
        """Wall time, and the share of the workers' time that was neither merging nor scoring."""
        wall = time.perf_counter() - self.began
        return {
            "wall_s": wall,
            "work_s": self.work_s,
            "propose_s": self.propose_s,
            "workers": float(self.workers),
            "overhead": 1.0 - self.work_s / (wall * self.workers),
        }


class Campaign:
    """Runs one campaign until its budget is spent, or somebody stops it.

    Args:
        config: budget and pool of this session; everything else is as it was recorded.
        runs: folder for logs.
        facts: what a preflight of this process found; None to look again.
        allocation: divides orders among new trials and promotions; what `search.items` says if
            None.
    """

    def __init__(  # noqa: PLR0913
        self,
        store: Store,
        config: CampaignConfig,
        runs: Path,
        watch: Watcher = lambda _: None,
        facts: Facts | None = None,
        allocation: Allocation | None = None,
    ) -> None:
        self._store, self._config, self._watch, self._facts = store, config, watch, facts
        self._folder, self._allocation = runs / config.name, allocation
        self._space = SearchSpace(config)
        self._account = Account(config.pool.workers, time.perf_counter())
        self._running: set[int] = set()
        self._exhausted = False
        self._confirmed = False
        self._helpless = 0
        self._interrupts = Interrupts()

    def run(self) -> History:
        """Work until the budget is spent or the campaign is stopped; the history says which.

        Raises:
            AlreadyRunning: another process has the lease.
            Problems: sources or items are no longer what they were.
            UserError: no folder for logs can be made, or no worker can be started.
            KeyboardInterrupt: pressed a second time; running trials are abandoned and will be
                done again on resume.
        """
        with ExitStack() as stack:
            self._lease: Lease = stack.enter_context(self._store.acquire(self._config.name))
            self._history = History(self._store, self._config.name)
            self._limits = Limits(self._config, self._history)
            if self._history.finished is not None and self._ended():
                return self._history
            self._verify_facts()
            self._begin_session()
            merges = prepare_merges(self._config, self._space)
            # Workers import and load while this process imports Ax: construct the pool first.
            self._pool = self._open_workers(stack)
            self._optimizer = open_optimizer(
                self._config, self._space, self._history.facts, merges, self._allocation
            )
            stack.enter_context(self._interrupts)
            self._loop()
            ending = "finished" if self._done() else "paused"
            self._record(None, ending, self._account.summary())
        return self._history

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the loop."""
        return self._interrupts.count > 0

    def _verify_facts(self) -> None:
        """The same weights and the same items as when the campaign was created."""
        now = self._facts or Preflight(self._config, thorough=False).facts
        if not self._history.has_facts:  # killed between creation and its first event
            self._store.append(self._lease, None, "created", now.document())
        elif changes := list(self._history.facts.changes(now)):
            raise Problems(changes, "put them back, or begin a campaign of another name")

    def _begin_session(self) -> None:
        """Record that it begins; it heeds every stop asked for since it holds the lease."""
        session = {
            "budget": self._config.budget.model_dump(mode="json"),
            "pool": self._config.pool.model_dump(mode="json"),
            "held_after": self._lease.after,
        }
        self._record(None, "started_session", session)

    def _open_workers(self, stack: ExitStack) -> EvaluatorPool:
        pool, logs = self._config.pool, self._folder / "logs"
        facts, limit_s = self._history.facts, pool.trial_timeout_s
        opened = open_workers(self._config, facts, pool.workers, limit_s, logs)
        return stack.enter_context(opened)

    def _loop(self) -> None:
        while True:
            self._history.update()
            self._refill()
            if not self._running:
                return
            answers = self._pool.collect(_POLL_S)
            for result in sorted(answers, key=lambda a: a.failure is not None):
                self._take(result)  # scores first: a failure may end the session

    def _refill(self) -> None:
        """Keep every worker busy, first with what is open, then with new candidates.

        Workers in processes go on while this one proposes, so candidates are proposed as soon as
        none is waiting, not only when a worker is free: no worker waits for a proposal. With one
        worker this depends on no clock: a resumed campaign proposes at the same points.
        """
        ahead = self._config.pool.executor != "inline"
        while not self._told_to_stop and (self._pool.free > 0 or ahead):
            waiting = [t for t in self._history.open if t.number not in self._running]
            if self._limits.late:
                return
            if waiting:
                if self._pool.free == 0 or not self._dispatch(waiting):
                    return
            elif (q := self._wanted()) > 0:
                self._plan(q)
            elif self._over() and not (self._running or self._confirmed):
                self._confirm()
            else:
                return

    @property
    def _told_to_stop(self) -> bool:
        """Whether nothing new is to begin; asked after every proposal, for it takes a while."""
        return self.interrupted or self._history.stop_requested

    def _wanted(self) -> int:
        """How many orders to plan now."""
        waits = self._config.search.synchronous and self._running
        return 0 if waits or self._over() else self._limits.orders()

    def _over(self) -> bool:
        """Whether the search is over: budget spent, or nothing in the space to try."""
        return self._exhausted or self._limits.spent

    def _ended(self) -> bool:
        """Whether the budget is spent; hours that are spent leave what was ordered undone."""
        return self._limits.late or (self._over() and not self._history.open)

    def _done(self) -> bool:
        """Whether nothing is left to do."""
        return self._ended() and (self._confirmed or self._limits.late)

    def _plan(self, q: int) -> None:
        """Order new trials and promotions, and record them together, so that a resumed campaign
        sees all.
        """
        began = time.perf_counter()
        orders = self._optimizer.plan(self._history.trials, q, self._limits.of_the_search)
        self._account.propose_s += time.perf_counter() - began
        if not orders.candidates and not orders.promoted:
            self._exhausted = True
            return
        self._confirmed = False  # the pace of the last trials may have left time for more
        self._store.append_many(
            self._lease, [*self._proposals(orders), *_promotions(orders.promoted)]
        )
        self._changed()

    def _proposals(self, orders: Orders) -> Iterator[NewEvent]:
        if orders.summary:
            yield None, "modelled", orders.summary
        own, seed = self._config.search.items.order == "own", self._config.seed
        for number, c in enumerate(orders.candidates, start=len(self._history.trials)):
            recipe = self._space.decode(c.x)
            order = own_order(seed, recipe.key) if own else None
            yield number, "proposed", proposed(c.x, recipe, c.diagnostics, orders.share, order)

    def _confirm(self) -> None:
        """Order the most valuable trials that did not answer all items to be scored on all, as far
        as affordable; again and again, for others may be the most valuable then.
        """
        history, count = self._history, self._config.search.items.confirm
        partial = any(t.share < 1 for t in history.completed)
        chosen = self._optimizer.confirm(history.trials, count) if partial and count > 0 else ()
        events = [*_promotions(self._limits.of_all(chosen), confirms=True)]
        if events:
            self._store.append_many(self._lease, events)
            self._changed()
        self._confirmed = not events

    def _dispatch(self, waiting: list[Trial]) -> bool:
        """Start the first waiting trial that no running one will answer; False if there is none.

        What is known of the same recipe is not scored again.
        """
        running = {self._history.trials[n].key for n in self._running}
        trial = next((t for t in waiting if t.key not in running), None)
        if trial is None:
            return False
        twins = [t for t in self._history.completed if t.key == trial.key]
        known = max(twins, key=lambda t: t.share, default=None)
        if known is not None and known.share >= trial.wanted:
            self._record(trial.number, "grown" if trial.growth else "completed", answered(known))
            return True
        self._record(trial.number, "started", {})
        self._running.add(trial.number)
        self._pool.submit(self._job(self._history.trials[trial.number], known))
        return True

    def _job(self, trial: Trial, known: Trial | None) -> EvaluationJob:
        """Score the items up to the wanted share that are not known."""
        from evaluators.benchmarks.statistics import unpack

        counts = self._limits.fidelity.counts(trial.wanted)
        outcomes = {n: unpack(m.outcomes) for n, m in (known.scores.items() if known else ())}
        return EvaluationJob(
            trial.number,
            trial.recipe,
            {name: slice(len(outcomes.get(name, ())), n) for name, n in counts.items()},
            attempt=trial.attempts,
            order=trial.order,
            known=outcomes,
            digest=known.digest if known else "",
        )

    def _take(self, result: EvaluationResult) -> None:
        """Record a result; a failure of a kind that may pass is tried again.

        Raises:
            Fault: workers cannot open what they need, or have no disk space; no trial is to pay
                for that.
        """
        self._running.discard(result.trial)
        trial, failure = self._history.trials[result.trial], result.failure
        blameless = failure is not None and failure.kind in BLAMELESS
        self._helpless = self._helpless + 1 if blameless else 0
        if failure is None:
            self._account.work_s += sum(s for part, s in result.timings.items() if part != "load_s")
            self._record(trial.number, "grown" if trial.growth else "completed", completed(result))
            return
        again = blameless or (RETRIED[failure.kind] and trial.tried < self._config.pool.retries)
        self._record(trial.number, "failed", {**asdict(failure), "final": not again})
        if self._helpless > self._config.pool.retries:
            raise Fault(
                f"workers cannot work ({failure.kind}): {failure.message}",
                f"the state is safe; when it is mended: mmmo resume {self._config.name}",
            )

    def _record(self, trial: int | None, kind: str, payload: dict[str, Any]) -> None:
        self._store.append(self._lease, trial, kind, payload)
        self._changed()

    def _changed(self) -> None:
        self._history.update()
        self._watch(self._history)


def _promotions(chosen: Iterable[PromotedTrial], confirms: bool = False) -> Iterator[NewEvent]:
    for p in chosen:
        yield p.number, "promoted", promoted(p.share, p.diagnostics, confirms)
