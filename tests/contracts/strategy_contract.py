"""What every strategy keeps to; inherit `StrategyContract` and give the fixture `strategy`.

Also the analytic problem that the tests of `acquisition` share.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from acquisition.strategy import KnownObjective, Observations, Proposal, Strategy

ORIGINS = {"anchor", "sobol", "acquisition", "local", "weak_to_strong"}
CENTRES = torch.tensor([0.2, 0.8, 0.5, 0.35, 0.65], dtype=torch.float64)


def bowls(X: Tensor, m: int) -> Tensor:
    """m smooth objectives that conflict: minus the squared distances to m centres."""
    return -((X.unsqueeze(-2) - CENTRES[:m, None]) ** 2).sum(dim=-1)


def known_bowl(k: int) -> KnownObjective:
    """Objective k of `bowls` as an exact function."""
    return lambda X: -((X - CENTRES[k]) ** 2).sum(dim=-1)


def random_points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def observe(X: Tensor, m: int = 2) -> Observations:
    """Observations of `bowls` at X with a known small variance and nothing else."""
    none = X.new_empty(0, X.shape[-1])
    Y = bowls(X, m)
    return Observations(
        X=X, Y=Y, Yvar=torch.full_like(Y, 1e-4), pending=none, failed=none, anchors=none
    )


def shared_errors(n: int, m: int, correlation: float) -> Tensor:
    """Covariances of errors with the variances of `observe` that all correlate alike."""
    alike = torch.full((n, n), correlation, dtype=torch.float64).fill_diagonal_(1.0)
    return 1e-4 * alike.expand(m, n, n)


def changed(observations: Observations, **changes: object) -> Observations:
    return dataclasses.replace(observations, **changes)


def grid(levels: int) -> Callable[[Tensor], Tensor]:
    """A space of choices: every coordinate at one of `levels` equally spaced values."""
    return lambda X: (X * (levels - 1)).round() / (levels - 1)


def assert_new(proposal: Proposal, observations: Observations, q: int) -> None:
    """q rows in the cube, snapped, described, and new."""
    X = proposal.X
    assert X.shape == (q, observations.X.shape[-1])
    assert X.dtype == torch.float64
    assert ((X >= 0) & (X <= 1)).all()
    assert torch.equal(observations.snap(X), X)
    before = torch.cat([observations.X, observations.pending, observations.failed])
    everything = torch.cat([before, X])
    distance = (X.unsqueeze(1) - everything.unsqueeze(0)).abs().amax(dim=-1)
    assert ((distance <= 1e-9).sum(dim=-1) == 1).all()  # each row meets itself only
    assert len(proposal.diagnostics) == q
    assert {d["origin"] for d in proposal.diagnostics} <= ORIGINS
    json.dumps(proposal.diagnostics, allow_nan=False)
    # A summary is nothing, or all that status and report read.
    assert not proposal.summary or {"gain", "observations", "objectives"} <= set(proposal.summary)
    json.dumps(proposal.summary, allow_nan=False)


SEEN = random_points(12, 3)


def cases() -> dict[str, Observations]:
    """Situations that a campaign can get into."""
    plain = observe(SEEN)
    tied = observe(torch.cat([SEEN, SEEN[:3]]))
    half_constant = changed(plain, Y=torch.stack([plain.Y[:, 0], torch.ones(12).double()], -1))
    return {
        "no scores, all failed": changed(observe(SEEN[:0]), failed=SEEN),
        "one score": changed(observe(SEEN[:1]), failed=SEEN[1:]),
        "all objectives constant": changed(plain, Y=torch.zeros(12, 2).double()),
        "one objective constant": half_constant,
        "constant and without noise": changed(half_constant, Yvar=torch.zeros(12, 2).double()),
        "the same points scored twice": tied,
        "scores in two values": changed(plain, Y=plain.Y.sign() + (plain.Y > -0.3)),
        "huge units": changed(plain, Y=plain.Y * 1e12, Yvar=plain.Yvar * 1e24),
        "tiny units": changed(plain, Y=plain.Y * 1e-9, Yvar=plain.Yvar * 1e-18),
        "many pending": changed(plain, pending=random_points(150, 3, seed=1)),
        "one objective": observe(SEEN, m=1),
        "one objective, known": changed(observe(SEEN, m=1), known=(known_bowl(0),)),
        "five objectives": observe(SEEN, m=5),
        "one coordinate": observe(random_points(12, 1)),
        "one objective known": changed(plain, known=(None, known_bowl(1))),
        "all objectives known": changed(plain, known=(known_bowl(0), known_bowl(1))),
        "reference above every score": changed(plain, reference=torch.ones(2).double()),
        "constraint that nothing meets": changed(
            plain, constraints=(torch.eye(2).double(), torch.full((2,), 5.0).double())
        ),
        "one constraint on one objective": changed(
            observe(SEEN, m=1),
            constraints=(torch.ones(1, 1).double(), torch.full((1,), -0.3).double()),
        ),
        "choices": changed(observe(grid(4)(SEEN)), snap=grid(4)),
        "errors of the same items": changed(plain, Ycov=shared_errors(12, 2, 0.9)),
        "the same error, and points scored twice": changed(tied, Ycov=shared_errors(15, 2, 1.0)),
        "five objectives, errors of the same items": changed(
            observe(SEEN, m=5), Ycov=shared_errors(12, 5, 0.9)
        ),
    }


class StrategyContract:
    """Inherit, and return a strategy from `strategy`."""

    @pytest.fixture
    def strategy(self) -> Strategy:
        raise NotImplementedError

    @pytest.mark.parametrize("case", cases())
    def test_new_points_in_every_situation(self, strategy: Strategy, case: str) -> None:
        observations = cases()[case]
        assert_new(strategy.propose(observations, 1, seed=3), observations, 1)

    @pytest.mark.parametrize(("n", "q"), [(0, 1), (0, 4), (8, 2), (8, 4), (12, 1), (12, 3)])
    def test_q_rows_before_across_and_after_the_initial_design(
        self, strategy: Strategy, n: int, q: int
    ) -> None:
        observations = changed(observe(SEEN[:n]), anchors=random_points(2, 3, seed=5))
        assert_new(strategy.propose(observations, q, seed=0), observations, q)

    @pytest.mark.parametrize("n", [4, 12])
    def test_same_arguments_same_bits(self, strategy: Strategy, n: int) -> None:
        first = strategy.propose(observe(SEEN[:n]), 2, seed=7)
        torch.rand(5)  # the global generator moves on; the answer must not notice
        again = strategy.propose(observe(SEEN[:n].clone()), 2, seed=7)
        assert torch.equal(first.X, again.X)
        assert first.diagnostics == again.diagnostics

    def test_no_trace_outside(self, strategy: Strategy) -> None:
        observations = observe(SEEN)
        state, X, Y = torch.get_rng_state(), observations.X.clone(), observations.Y.clone()
        strategy.propose(observations, 1, seed=7)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(observations.X, X)
        assert torch.equal(observations.Y, Y)

    def test_seed_matters(self, strategy: Strategy) -> None:
        one, two = (strategy.propose(observe(SEEN[:4]), 2, seed=seed).X for seed in (1, 2))
        assert not torch.equal(one, two)

    def test_initial_design_does_not_depend_on_batches(self, strategy: Strategy) -> None:
        at_once = strategy.propose(observe(SEEN[:0]), 4, seed=9).X
        pending = SEEN[:0]
        for _ in range(4):
            waiting = changed(observe(SEEN[:0]), pending=pending)
            pending = torch.cat([pending, strategy.propose(waiting, 1, seed=9).X])
        assert torch.equal(at_once, pending)

    def test_pending_points_move_the_proposal(self, strategy: Strategy) -> None:
        observations = observe(SEEN)
        first = strategy.propose(observations, 1, seed=2).X
        waiting = changed(observations, pending=first)
        second = strategy.propose(waiting, 1, seed=2).X
        assert (first - second).abs().max() > 1e-3

    def test_failed_points_are_not_approached_again(self, strategy: Strategy) -> None:
        observations = observe(SEEN)
        first = strategy.propose(observations, 1, seed=2).X
        second = strategy.propose(changed(observations, failed=first), 1, seed=2).X
        assert (first - second).abs().max() > 1e-3

    def test_ends_when_a_space_of_choices_is_used_up(self, strategy: Strategy) -> None:
        corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3)
        observations = changed(observe(corners[:7]), snap=grid(2))
        proposal = strategy.propose(observations, 3, seed=0)
        assert torch.equal(proposal.X, corners[7:])
        assert len(proposal.diagnostics) == 1
