"""Tables of real merges: how they are made, kept, and searched."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.benchmarks.statistics import mean, proportion
from experiments.digits import zoo as digits
from experiments.sample_efficiency import tables
from experiments.sample_efficiency.believed_fronts import chosen, lacks
from experiments.sample_efficiency.contestants import open_contestant
from experiments.sample_efficiency.problems import open_problem
from experiments.sample_efficiency.references import describe, greedy, open_reference
from experiments.sample_efficiency.spending import search
from experiments.sample_efficiency.study import Run, execute
from experiments.sample_efficiency.tables import Table
from experiments.sample_efficiency.tabulated import Tabulated


@pytest.fixture(scope="module")
def real() -> Tabulated:
    """A table of real merges."""
    problem = open_problem("digits")
    assert isinstance(problem, Tabulated)
    return problem


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


SUITES = sorted(path.stem for path in tables.FOLDER.glob("*.npz"))


def objective(name: str, sign: float, reference: float | None) -> dict[str, object]:
    return {"name": f"o-{name}", "benchmark": name, "sign": sign, "reference": reference}


def small() -> Table:
    """Two recipes of one weight: right answers of four items, and nats of two."""
    outcomes = {
        "search": {
            "sums": np.array([[1.0, 0, 0, 0], [1, 1, 1, 0]]),
            "nll": np.array([[2.0, 3], [4, 6]]),
        },
        "held_out": {
            "sums": np.array([[0.0, 1, 0], [0, 0, 1]]),
            "nll": np.array([[1.0, 2], [5, 6]]),
        },
    }
    objectives = [objective("sums", 1.0, 0.1), objective("nll", -1.0, None)]
    X, delta = np.array([[0.0], [1.0]]), np.array([0.0, 0.5])
    return Table(X, 1, delta, outcomes, objectives, ["a.weight"], {"seed": 0})


def test_values_by_hand() -> None:
    problem = Tabulated("small", small(), sparsity=True)
    x = torch.tensor([[0.2], [0.9]]).double()  # nearest: 0 and 1
    assert problem.truth(x).tolist() == [[0.25, -2.5, 0.0], [0.75, -5.0, -0.5]]
    assert problem.held_out(x).numpy() == pytest.approx(
        np.array([[1 / 3, -1.5, 0.0], [1 / 3, -5.5, -0.5]])
    )
    # the file's; the worst less a tenth of 2.5; the worst less a tenth of 0.5
    assert problem.reference.tolist() == pytest.approx([0.1, -5.25, -0.55])
    assert problem.anchors.tolist() == [[0.0]]
    assert (problem.items, problem.points, problem.dimension) == (4, 2, 1)
    reference = open_reference(problem)
    assert reference.front.tolist() == problem.truth(problem.recipes).tolist()
    first, second = 0.15 * 2.75 * 0.55, 0.65 * 0.25 * 0.05
    assert reference.hypervolume == pytest.approx(first + second - 0.15 * 0.25 * 0.05)
    assert describe(problem, budget=2, draws=1) == (
        "small: 2 recipes, 2 on the front; 2 random ones reach 100 %, the 1 anchors 97 %, "
        "the greedily best 100.0 %, held-out 100.0 %"
    )
    scores = Tabulated("small-scores", small(), sparsity=False)
    assert scores.truth(x).tolist() == [[0.25, -2.5], [0.75, -5.0]]
    assert scores.known == (None, None)


def test_errors_are_those_of_a_campaign() -> None:
    problem = Tabulated("small", small(), sparsity=True)
    Y, Yvar = problem.evaluate(torch.ones(1, 1).double(), rng())
    assert Y.tolist() == [[0.75, -5.0, -0.5]]
    found = [proportion(np.array([1, 1, 1, 0]))[1], mean(np.array([4.0, 6.0]))[1], 0.0]
    assert Yvar.sqrt()[0].tolist() == pytest.approx(found)
    # half of the items: two of four, one of two
    halves = [
        problem.evaluate(torch.ones(1, 1).double(), rng(s), 2)[0][0].tolist() for s in range(40)
    ]
    assert {y[0] for y in halves} == {0.5, 1.0}
    assert {y[1] for y in halves} == {-4.0, -6.0}


def test_errors_on_the_same_items_are_correlated_by_hand() -> None:
    problem = Tabulated("small", small(), sparsity=True)
    found = problem.correlations(problem.recipes, rng(), (4, 4))
    # sums: deviations (3, -1, -1, -1)/4 and (1, 1, 1, -3)/4 of the four items: product 1/4,
    # squared lengths 3/4 + 1; nats: of two items both rise. Sparsity has no error.
    assert found[:, 0, 1].tolist() == pytest.approx([1 / 7, 1.0, 0.0])
    assert (found.diagonal(dim1=1, dim2=2) == 1).all()


def test_correlations_are_of_the_items_that_were_answered(real: Tabulated) -> None:
    rows, items = real.recipes[[3, 500]], (40, 120)
    found = real.correlations(rows, rng(7), items)
    orders = rng(7)
    for k, name in enumerate(real._names):
        order = orders.permutation(real.items)
        outcomes = real._table.outcomes["search"][name][:, order]
        for row, x, n in zip((3, 500), rows, items, strict=True):
            if k == 0:  # the same items as `evaluate` takes
                Y, _ = real.evaluate(x.unsqueeze(0), rng(7), n)
                assert Y[0, 0].item() == pytest.approx(outcomes[row, :n].mean())
        a, b = outcomes[3, :40], outcomes[500, :120]
        product = ((a - a.mean()) * (b[:40] - b.mean())).sum()
        expected = product / ((40 * a.var() + 1) * (120 * b.var() + 1)) ** 0.5
        assert found[k, 0, 1].item() == pytest.approx(expected)


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    before = small()
    before.save(tmp_path / "small.npz")
    after = Table.read(tmp_path / "small.npz")
    assert np.array_equal(before.X, after.X)
    assert np.array_equal(before.delta_l1, after.delta_l1)
    for split in tables.SPLITS:
        for name, outcomes in before.outcomes[split].items():
            assert np.array_equal(outcomes, after.outcomes[split][name])
    assert (after.anchors, after.objectives, after.made_of) == (1, before.objectives, {"seed": 0})


def test_a_new_division_keeps_every_item_once() -> None:
    def columns(*outcomes: np.ndarray) -> list[tuple[float, ...]]:
        return sorted(map(tuple, np.concatenate(outcomes, axis=1).T.tolist()))

    before, divisions = small(), set()
    for seed in range(20):
        after = before.split_anew(seed)
        for name, outcomes in before.outcomes["search"].items():
            own, others = after.outcomes["search"][name], after.outcomes["held_out"][name]
            assert own.shape == outcomes.shape
            assert columns(own, others) == columns(outcomes, before.outcomes["held_out"][name])
        divisions.add(after.outcomes["search"]["nll"][0].tobytes())
    assert len(divisions) > 4  # of twelve: two of four items in order
    again = [before.split_anew(3).outcomes["search"]["nll"] for _ in range(2)]
    assert np.array_equal(*again)


def test_the_seed_divides_the_items_of_a_resplit_table_alone() -> None:
    def values(name: str, seed: int) -> list[list[float]]:
        problem = open_problem(name, seed)
        return problem.truth(problem.anchors).tolist()  # type: ignore[no-any-return]

    assert values("digits", 0) == values("digits", 1)
    assert values("digits-resplit", 0) != values("digits-resplit", 1)
    assert values("digits-scores-resplit", 1) == [y[:-1] for y in values("digits-resplit", 1)]
    with pytest.raises(KeyError):
        open_problem("digits-resplit-scores")


@pytest.mark.parametrize("suite", SUITES)
def test_committed_tables(suite: str) -> None:
    path = tables.FOLDER / f"{suite}.npz"
    assert path.stat().st_size < 3e6
    problem = open_problem(suite)
    assert isinstance(problem, Tabulated)
    recipes, taken = problem.recipes, problem.recipes[:0]
    assert torch.equal(problem.snap(recipes, taken), recipes)
    assert torch.equal(problem.sparsity(recipes), problem.truth(recipes)[:, -1])
    base = problem.sparsity(torch.zeros(1, problem.dimension).double())
    assert base.item() == 0.0
    assert open_reference(problem).hypervolume > 0
    both = torch.stack([problem.truth(recipes)[:, 0], problem.held_out(recipes)[:, 0]])
    assert torch.corrcoef(both)[0, 1] > 0.8  # of the same task
    with np.load(path) as file:
        assert (file["X"] == problem.recipes.numpy()).all()


@settings(max_examples=30)
@given(rows=st.lists(st.integers(0, 99), max_size=30, unique=True), seed=st.integers(0, 2**31))
def test_points_stand_for_the_nearest_new_recipe(
    real: Tabulated, rows: list[int], seed: int
) -> None:
    taken = real.recipes[rows]
    X = torch.from_numpy(rng(seed).random((2, 1, 3)))
    found = real.snap(X, taken)
    assert found.shape == X.shape
    for x, y in zip(X.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        distances = (real.recipes - x).norm(dim=-1)
        distances[rows] = np.inf
        assert torch.equal(y, real.recipes[distances.argmin()])
    assert torch.equal(real.snap(found, taken), found)


def test_the_size_between_recipes_has_the_gradient_of_the_size(real: Tabulated) -> None:
    X = torch.from_numpy(rng().uniform(0.2, 0.9, (50, 3))).requires_grad_()
    sparsity = real.sparsity(X)
    (slope,) = torch.autograd.grad(sparsity.sum(), X)
    # |Σ w τ| is homogeneous of degree 1 in the weights (Euler)
    along = (slope * X).sum(-1)
    assert along.detach().numpy() == pytest.approx(sparsity.detach().numpy(), rel=0.15)
    nearest = real.sparsity(real.recipes[real.rows(X.detach())])
    gap = (nearest - sparsity).detach().abs()
    assert gap.median() < 0.1 * sparsity.detach().abs().median()


@pytest.mark.parametrize("label", ["random", "nsga2", "cmaes", "map", "parego_rf"])
def test_contestants_never_repeat_a_recipe(real: Tabulated, label: str) -> None:
    problem, budget = real, 36
    run = Run("digits", label, 1, budget)
    found = search(run, problem, open_contestant(label, 3, budget))
    rows = problem.rows(found.X)
    assert torch.equal(problem.recipes[rows], found.X)
    assert len(set(rows.tolist())) == budget
    assert torch.allclose(found.Y, problem.truth(found.X))  # all items: the truth of the search


def test_all_recipes_can_be_evaluated_and_then_it_ends() -> None:
    problem = Tabulated("small", small(), sparsity=True)
    found = search(Run("small", "random", 0, 9), problem, open_contestant("random", 1, 9))
    assert sorted(problem.rows(found.X).tolist()) == [0, 1]
    assert found.steps[-1].spent == 2


def test_held_out_is_of_the_front_by_search_items() -> None:
    record = execute(Run("digits-scores", "sobol", 0, 15))
    assert len(record["held_out_hypervolume"]) == 15
    assert 0.3 < record["held_out_hypervolume"][-1] < 1.0
    assert record["hypervolume"][-1] == record["front_hypervolume"][-1]  # nothing is noisy


def test_references_of_a_table_by_throwing_darts(real: Tabulated) -> None:
    reference, low = open_reference(real), real.reference
    for values, volume in (
        (real.truth(real.recipes), reference.hypervolume),
        (real.held_out(real.recipes), reference.held_out),
    ):
        box = values.amax(0) - low
        darts = low + box * torch.from_numpy(rng().random((2000, 4)))
        hit = (values[None] >= darts[:, None]).all(-1).any(-1).double().mean()
        assert volume == pytest.approx(float(hit * box.prod()), rel=0.1)


def test_a_table_is_made_of_blocks_and_carried_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits.build(tmp_path)
    campaign = tmp_path / "campaign.yaml"
    shutil.copy(Path(digits.__file__).parent / "campaign.yaml", campaign)
    monkeypatch.setattr(tables, "BLOCK", 4)
    blocks = tmp_path / "blocks"
    first = tables.make(campaign, 7, 1, blocks)
    stamps = {path.name: path.stat().st_mtime_ns for path in blocks.iterdir()}
    assert sorted(stamps) == ["00000.npz", "00004.npz"]
    second = tables.make(campaign, 9, 1, blocks)
    assert {p.name: p.stat().st_mtime_ns for p in blocks.iterdir()}.items() >= stamps.items()
    assert first.X.shape == (7, 3)
    assert np.array_equal(second.X[:7], first.X)
    assert (second.anchors, second.columns[0]) == (7, "upright.weight")
    problem = Tabulated("made", second, sparsity=True)
    experts = problem.truth(problem.recipes[:3])[:, :3]
    assert torch.equal(experts.argmax(0), torch.arange(3))  # each is best at its own view
    assert problem.reference[:3].tolist() == [0.25] * 3
    assert problem.truth(torch.zeros(1, 3).double())[0, 3] == 0.0


def test_the_greedy_choice_takes_the_largest_area_then_what_adds_most() -> None:
    # Above (0, 0): areas 4, 3, 3, 1. After (2, 2) the points (3, 1) and (1, 3) add 1 each, and
    # (1, 1) is dominated; the second row of equal gain waits its turn.
    values = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [1.0, 1.0]])
    assert greedy(values, np.zeros(2), 2) == [2, 0]
    assert greedy(values, np.zeros(2), 9) == [2, 0, 1]


def test_what_dominated_points_lack_by_hand() -> None:
    Y = np.array([[0.0, 10.0], [1.0, 0.0], [0.4, 4.0], [0.2, 3.0]])
    np.testing.assert_allclose(lacks(Y), [-0.6, -0.6, -0.2, 0.1])


def test_fronts_are_chosen_by_measurements_and_by_means() -> None:
    measured, few, believed, many, as_many = chosen("digits-scores-resplit", "random", 0)
    assert few >= 1
    assert many >= 1
    assert 0 < measured < 100
    assert 0 < believed < 100
    assert (as_many == measured) or few != many
