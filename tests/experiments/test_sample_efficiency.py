"""The sample efficiency study: problems with known answers, contestants, runs done only once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cma
import numpy as np
import pytest
import torch
from botorch.models import ModelListGP
from pymoo.algorithms.moo import nsga2
from pymoo.optimize import minimize
from torch import Tensor

from acquisition.strategy import Observations, Proposal
from experiments.proposal_cost import study as cost
from experiments.sample_efficiency import contestants, report, spending, study
from experiments.sample_efficiency.contestants import Contestant, open_contestant, parse
from experiments.sample_efficiency.evolution import CMAES, NSGA2
from experiments.sample_efficiency.model_based import Quadratic, fit_quadratic
from experiments.sample_efficiency.problems import (
    MergingLike,
    Problem,
    Response,
    open_problem,
)
from experiments.sample_efficiency.references import (
    FOLDER,
    Archive,
    Reference,
    open_reference,
    search,
)
from experiments.sample_efficiency.released import Released, expected_improvement
from experiments.sample_efficiency.spending import Search, Step
from experiments.sample_efficiency.study import Run

pytestmark = [
    pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.BotorchWarning"),
    pytest.mark.filterwarnings("ignore::linear_operator.utils.warnings.NumericalWarning"),
]

PROBLEMS = ("merge6", "merge12a3", "layers24a4", "dtlz2", "zdt1", "vehicle", "penicillin")


def line(floor: float = 0.2) -> MergingLike:
    """Accuracies σ(−(x − 1)²) and σ(−x²), scaled, of one coefficient whose delta is x itself."""
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    responses = tuple(
        Response(floor, 0.5, centre, one.unsqueeze(0), zero, zero, peak=0.0, ripple=0.0)
        for centre in (one, zero)
    )
    return MergingLike("line", responses, one)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_response_by_hand() -> None:
    expected = [0.2 + 0.5 * sigmoid(-0.5625), 0.2 + 0.5 * sigmoid(-0.0625), -0.25]
    assert line().truth(torch.tensor([[0.25]]).double())[0].tolist() == pytest.approx(expected)


def test_interactions_and_ripple_by_hand() -> None:
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    half = torch.tensor([0.5, 0.5]).double()
    waves, phases = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.0, math.pi / 2]).double()
    response = Response(0.1, 0.8, half, A, waves, phases, peak=1.0, ripple=0.3)
    # x − c = (¼, ½): 2/16 + 2 · 1/8 + 3/4 = 1.125; sin(2π · ¾) = −1, sin(4π + π/2) = 1
    found = response(torch.tensor([[0.75, 1.0]]).double())
    assert found.item() == pytest.approx(0.1 + 0.8 * sigmoid(1.0 - 1.125 + 0.3 * 0.0))
    # x − c = (−½, 0): 2/4; sin(0) = 0, sin(2π + π/2) = 1
    found = response(torch.tensor([[0.0, 0.5]]).double())
    assert found.item() == pytest.approx(0.1 + 0.8 * sigmoid(1.0 - 0.5 + 0.3 * 0.5))


@pytest.mark.parametrize("name", ["merge6", "merge12", "merge24a4i2", "merge48", "layers24"])
def test_merging_like_problems_are_what_they_claim(name: str) -> None:
    problem = open_problem(name)
    assert isinstance(problem, MergingLike)
    X = torch.from_numpy(rng().random((4000, problem.dimension)))
    truth = problem.truth(X)
    assert (truth > problem.reference).all()
    for response in problem.responses:
        assert (torch.linalg.eigvalsh(response.A) > 0).all()  # concave
        offset = X - response.centre
        assert ((offset @ response.A) * offset).sum(-1).mean() == pytest.approx(2.0, rel=0.1)
        flat = replace(response, ripple=0.0)
        best = flat(response.centre.unsqueeze(0))
        assert best.item() == pytest.approx(response.floor + response.range * sigmoid(2.0))
        assert (flat(X) <= best).all()
    sparsity = problem.known[-1]
    assert sparsity is not None
    assert torch.equal(sparsity(X), truth[:, -1])
    assert truth[:, -1].amin() >= -1.0
    base = problem.anchors[-1]
    assert sparsity(base).item() == 0.0
    assert sparsity(torch.ones_like(base)).item() == pytest.approx(-1.0)


def test_norms_of_layers_tell_what_matters_but_not_all_of_it() -> None:
    for name in ("layers24", "layers24i1", "layers48"):
        problem = open_problem(name)
        assert problem.importance.mean().item() == pytest.approx(1.0)
        x = torch.eye(problem.dimension).double()
        assert torch.allclose(-problem.sparsity(x) * problem.dimension, problem.importance)
        for response in problem.responses:
            pair = torch.stack([problem.importance, response.A.diagonal()])
            assert 0.6 < torch.corrcoef(pair.log())[0, 1].item() < 0.95
    for name in ("merge24", "misled24"):
        problem = open_problem(name)
        for response in problem.responses:
            pair = torch.stack([problem.importance, response.A.diagonal()])
            assert abs(torch.corrcoef(pair.log())[0, 1].item()) < 0.5


def test_names_determine_problems() -> None:
    X = torch.full((1, 6), 0.3).double()
    values = [open_problem(n).truth(X) for n in ("merge6", "merge6a2i0", "merge6i1", "merge6a3")]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert values[3].shape == (1, 4)
    for unknown in ("merge", "digits-measured", "atlas"):
        with pytest.raises(KeyError):
            open_problem(unknown)


@pytest.mark.parametrize("name", PROBLEMS)
def test_noise_is_around_the_truth_and_as_large_as_told(name: str) -> None:
    problem, draws = open_problem(name), 3_000
    x = torch.from_numpy(rng(1).random((1, problem.dimension)))
    Y, Yvar = problem.evaluate(x.expand(draws, -1), rng(), items=300)
    truth, known = problem.truth(x)[0], [k is not None for k in problem.known]
    error = (Y.var(0) / draws).sqrt()
    assert ((Y.mean(0) - truth).abs() <= 4.5 * error + 1e-12).all()
    for k, exact in enumerate(known):
        if exact:
            assert torch.allclose(Y[:, k], truth[k], rtol=0, atol=1e-12)
            assert (Yvar[:, k] == 0).all()
        else:
            assert Yvar[:, k].mean().item() == pytest.approx(Y[:, k].var().item(), rel=0.1)


def test_test_functions_are_maximised_in_the_cube() -> None:
    # ZDT1 at x = (¼, 0, …): f1 = ¼, g = 1, f2 = 1 − ½
    x = torch.tensor([[0.25, 0, 0, 0, 0, 0]]).double()
    assert open_problem("zdt1").truth(x)[0].tolist() == pytest.approx([-0.25, -0.5])
    # DTLZ2 with all at ½ after the first two: on the unit sphere
    x = torch.tensor([[0.0, 1.0, 0.5, 0.5, 0.5, 0.5]]).double()
    assert open_problem("dtlz2").truth(x)[0].tolist() == pytest.approx([0, -1, 0], abs=1e-9)
    # VehicleSafety with every plate 1 mm thick: its mass is a sum of coefficients
    mass = 1640.2823 + 2.3573285 + 2.3220035 + 4.5688768 + 7.7213633 + 4.4559504
    x = torch.zeros(1, 5).double()
    assert open_problem("vehicle").truth(x)[0, 0].item() == pytest.approx(-mass)


def test_references_of_known_fronts() -> None:
    # above (1.1, 1.1) in ZDT1: 1.21 − ∫₀¹ (1 − √x) dx = 1.21 − 1/3 − 2 · 0 = 0.8767
    zdt1 = open_reference(open_problem("zdt1"))
    assert zdt1.hypervolume == pytest.approx(1.21 - 1 / 3, rel=1e-3)
    # DTLZ2: the cube of 1.1 less an eighth of the unit ball
    dtlz2 = open_reference(open_problem("dtlz2"))
    assert dtlz2.hypervolume == pytest.approx(1.331 - math.pi / 6, rel=0.02)
    assert np.linalg.norm(dtlz2.front, axis=1) == pytest.approx(1.0, abs=0.02)
    assert zdt1.front[:, 1] == pytest.approx(-1 + np.sqrt(-zdt1.front[:, 0]), abs=0.01)


def test_reference_of_the_line() -> None:
    # Along the line every point is on the front, and its hypervolume is what a grid gives.
    problem = line()
    found = search(problem, population=40, generations=25, seed=0)
    grid = problem.truth(torch.linspace(0, 1, 3001).double().unsqueeze(1)).numpy()
    exact = study.hypervolume(grid, problem.reference.numpy())
    assert found.hypervolume == pytest.approx(exact, rel=0.01)


def test_igd_plus_by_hand() -> None:
    reference = Reference(1.0, np.array([[0.0, 10.0], [2.0, 0.0]]))
    # Scaled: front (0, 1) and (1, 0); the point (½, ½) lacks ½ to each, and exceeds elsewhere.
    assert reference.igd_plus(np.array([[1.0, 5.0]])) == pytest.approx(0.5)
    assert reference.igd_plus(np.array([[2.0, 10.0]])) == 0.0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_committed_references_are_of_these_problems(path: Path) -> None:
    problem = open_problem(path.stem)
    found = open_reference(problem)
    thinned = study.hypervolume(found.front, problem.reference.numpy())
    assert 0.85 < thinned / found.hypervolume <= 1.0001
    again = search(problem, population=40, generations=12, seed=1)
    assert again.hypervolume <= 1.001 * found.hypervolume
    if isinstance(problem, MergingLike):
        assert again.hypervolume > 0.6 * found.hypervolume


@pytest.mark.parametrize("label", contestants.ALL)
def test_contestants_stay_in_the_cube_and_never_repeat(label: str) -> None:
    problem = open_problem("merge6")
    budget = 24 if label in ("nsga2", "cmaes", "random", "sobol", "map") else 12
    run = Run("merge6", label, seed=3, budget=budget)
    found = spending.search(run, problem, open_contestant(label, 6, budget))
    X, Y = found.X, found.Y
    assert X.shape == (budget, 6)
    assert Y.shape == (budget, 3)
    assert ((X >= 0) & (X <= 1)).all()
    distance = torch.cdist(X, X, p=math.inf) + torch.eye(len(X))
    assert distance.min() > 1e-9


@pytest.mark.parametrize("label", ["random", "nsga2", "cmaes", "map"])
def test_contestants_repeat_themselves_with_a_seed(label: str) -> None:
    problem, budget = open_problem("merge6"), 18
    runs = [Run("merge6", label, seed, budget) for seed in (0, 0, 1)]
    found = [spending.search(r, problem, open_contestant(label, 6, budget)).X for r in runs]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_labels() -> None:
    assert parse("mm_mo:local_slots=true,fisher=high,initial=5") == (
        "mm_mo",
        {"local_slots": True, "fisher": "high", "initial": 5},
    )
    settings = open_contestant("mm_mo:local_slots=true,fisher=high", 6, 30).strategy.settings
    assert (settings.local_slots, settings.fisher, settings.exact_known) == (True, "high", True)
    reference = open_contestant("mm_mo_reference", 6, 30).strategy.settings
    assert (reference.measured_noise, reference.fisher) == (False, "low")
    assert open_contestant("map", 6, 30).strategy.design == 20
    assert open_contestant("cmaes", 6, 30).batch == 9
    with pytest.raises(KeyError):
        open_contestant("best", 6, 30)
    with pytest.raises(TypeError):
        open_contestant("random:colour=red", 6, 30)


class Exact(Problem):
    """ZDT1 without noise."""

    def __init__(self) -> None:
        self._noisy = open_problem("zdt1")
        self.name, self.dimension, self.reference = "exact", 6, self._noisy.reference
        self.known, self.anchors = self._noisy.known, self._noisy.anchors

    def truth(self, X: Tensor) -> Tensor:
        return self._noisy.truth(X)

    def evaluate(
        self, X: Tensor, rng: np.random.Generator, items: int = 1
    ) -> tuple[Tensor, Tensor]:
        Y = self.truth(X)
        return Y, torch.zeros_like(Y)


def test_replayed_nsga2_is_pymoos() -> None:
    problem, run = Exact(), Run("exact", "nsga2", seed=5, budget=40)
    X = spending.search(run, problem, Contestant(NSGA2(), 10, 10)).X
    whole = minimize(
        Archive(problem),
        nsga2.NSGA2(pop_size=10, sampling=X[:10].numpy()),
        ("n_gen", 4),
        seed=5,
        save_history=True,
    )
    for i, generation in enumerate(whole.history):
        offspring = generation.off.get("X") if i else generation.pop.get("X")
        assert {*map(tuple, offspring)} == {*map(tuple, X[10 * i : 10 * i + 10].numpy())}


def test_replayed_cmaes_is_cmas() -> None:
    problem, run = Exact(), Run("exact", "cmaes", seed=5, budget=36)
    found = spending.search(run, problem, Contestant(CMAES(batch=9), 9, 9))
    X, Y = found.X, found.Y
    options = {"bounds": [0, 1], "popsize": 9, "verbose": -9, "seed": math.nan}
    whole = cma.CMAEvolutionStrategy(
        [0.5] * 6, 0.2, {**options, "randn": np.random.RandomState(5).randn}
    )
    for i in range(0, 36, 9):
        asked = whole.ask()
        assert X[i : i + 9].numpy() == pytest.approx(np.array(asked), abs=1e-12)
        whole.tell(asked, (-(Y[i : i + 9] / Y[:9].std(0)).sum(-1)).tolist())


def test_cmaes_climbs_and_leaves_the_global_generator_alone() -> None:
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    run = Run("exact", "cmaes", 0, 180)
    found = spending.search(run, Exact(), open_contestant("cmaes", 6, 180))
    X, Y = found.X, found.Y
    assert (np.random.get_state()[1] == state).all()
    total = (Y / Y[:9].std(0)).sum(-1)
    assert total[-45:].mean() > total[:45].mean() + 1.0
    assert X.shape == (180, 6)


def test_map_recovers_a_quadratic_behind_its_link() -> None:
    X = rng().random((60, 3))
    coefficients = rng(1).standard_normal(10)
    q = Quadratic.features(X) @ coefficients
    assert Quadratic.features(np.array([[2.0, 3.0]])).tolist() == [[1, 2, 3, 4, 6, 9]]
    for y, sigmoid_link in ((1 / (1 + np.exp(-q)), True), (10 * q + 50, False)):
        fit = fit_quadratic(X, y, ridge=1e-9)
        assert fit.sigmoid is sigmoid_link
        assert fit(X) == pytest.approx(y, abs=1e-3 * np.ptp(y))


def test_released_acquisition_is_flat() -> None:
    """Percentages make its reference point unreachable: no candidate depends on the scores."""
    problem = open_problem("merge6")
    X = torch.from_numpy(rng().random((10, 6)))
    Y, Yvar = problem.evaluate(X, rng())
    none = X[:0]
    seen = Observations(X, Y, Yvar, none, none, none, known=problem.known)
    gains: dict[bool, Tensor] = {}

    class Watched(Released):
        def _candidates(self, model: ModelListGP, X: Tensor, reference: Tensor) -> Tensor:
            acquisition = expected_improvement(model, X, reference)
            points = torch.from_numpy(rng(2).random((200, 1, 6)))
            with torch.no_grad():
                gains[self.percent] = acquisition(points)
            return points[:10, 0]

    for percent in (True, False):
        Watched(percent=percent).propose(seen, 5, 0)
    assert (gains[True] == 0).all()
    assert (gains[False] > 0).any()


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many points are evaluated from here on, call by call."""
    counted: list[int] = []
    evaluate = MergingLike.evaluate

    def count(
        self: MergingLike, X: Tensor, rng: np.random.Generator, items: int
    ) -> tuple[Tensor, Tensor]:
        counted.append(len(X))
        return evaluate(self, X, rng, items)

    monkeypatch.setattr(MergingLike, "evaluate", count)
    return counted


def test_a_finished_run_is_never_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = calls(monkeypatch)
    runs = [Run("merge6", label, seed, 12) for label in ("random", "sobol") for seed in (0, 1)]
    first = study.run_all(runs[:3], 1, tmp_path, lambda _: None)
    assert sum(counted) == 3 * 12
    second = study.run_all(runs, 1, tmp_path, lambda _: None)
    assert sum(counted) == 4 * 12
    assert second[:3] == first
    assert [r["run"]["seed"] for r in second] == [0, 1, 0, 1]
    study.run_all([replace(runs[0], items=100)], 1, tmp_path, lambda _: None)
    assert sum(counted) == 5 * 12


def test_an_unfinished_file_is_no_run(tmp_path: Path) -> None:
    run = Run("merge6", "random", 0, 10)
    (tmp_path / f"{run.key}.123").write_text('{"run"')
    assert list(study.finished([run], tmp_path)) == []
    assert len(study.run_all([run], 1, tmp_path, lambda _: None)) == 1


def test_every_setting_has_a_key_of_its_own() -> None:
    run = Run("merge6", "mm_mo", 0)
    others = [
        replace(run, problem="merge12"), replace(run, contestant="mm_mo:initial=5"),
        replace(run, seed=1), replace(run, budget=31), replace(run, items=260),
        replace(run, anchors=True), replace(run, reference=True),
    ]  # fmt: skip
    assert len({r.key for r in (run, *others)}) == 8


def test_processes_give_the_same_records(tmp_path: Path) -> None:
    runs = [Run("merge6", "nsga2", seed, 20) for seed in (0, 1)]
    alone = study.run_all(runs, 1, tmp_path / "one", lambda _: None)
    together = study.run_all(runs, 2, tmp_path / "two", lambda _: None)
    for a, b in zip(alone, together, strict=True):
        assert a["hypervolume"] == b["hypervolume"]


def test_traces_by_hand() -> None:
    """Two accuracies; the second point only looks better than the first."""
    problem = line()
    X = torch.tensor([[0.5], [0.75], [0.25]]).double()
    truth = problem.truth(X)
    measured = truth.clone()
    measured[1] += 1.0  # hides the first and the third
    box = truth - problem.reference
    reference = Reference(2.0, truth.numpy())
    steps = tuple(Step(n, measured[:n]) for n in (1, 2, 3))
    search = Search(X, torch.tensor([1.0, 0.5, 1.0]), steps, 0.0)
    found = study.traces(problem, reference, search)
    assert found["hypervolume"][0] == pytest.approx(box[0].prod().item() / 2, abs=1e-5)
    only = box[1].prod().item() / 2
    assert found["front_hypervolume"] == pytest.approx(
        [box[0].prod().item() / 2, only, only], abs=1e-5
    )
    assert found["hypervolume"][2] > found["hypervolume"][1] > only
    assert found["front_igd_plus"][1] > 0
    # The second did not answer all items: the others are both on the front of those that did.
    both = study.hypervolume(truth[[0, 2]].numpy(), problem.reference.numpy()) / 2
    confirmed = study.confirmed(problem, reference, search)
    assert confirmed["front_hypervolume"] == pytest.approx(both, abs=1e-5)


@pytest.mark.parametrize("problem", ["merge6", "zdt1"])
def test_hypervolume_never_falls(problem: str) -> None:
    record = study.execute(Run(problem, "random", 0, 40, items=50))
    trace = record["hypervolume"]
    assert len(trace) == 40
    assert all(a <= b for a, b in pairwise(trace))
    assert trace[-1] > trace[0] or problem == "zdt1"
    assert all(f <= h + 1e-4 for f, h in zip(record["front_hypervolume"], trace, strict=True))


def test_anchors_come_first_and_reference_is_told_only_if_asked() -> None:
    problem, asked = open_problem("merge6"), []

    class Watch:
        def propose(self, observations: Observations, q: int, seed: int) -> Proposal:
            asked.append(observations)
            return Proposal(torch.from_numpy(rng(len(asked)).random((q, 6))))

    spending.search(Run("merge6", "x", 0, 17), problem, Contestant(Watch()))
    assert [len(o.X) for o in asked] == [0, 10, 15]
    assert asked[0].reference is None
    assert len(asked[0].anchors) == 0
    spending.search(
        Run("merge6", "x", 0, 3, anchors=True, reference=True), problem, Contestant(Watch())
    )
    assert torch.equal(asked[-1].reference, problem.reference)
    assert torch.equal(asked[-1].importance, problem.importance)
    run = Run("merge6", "mm_mo", 0, 10, anchors=True)
    X = spending.search(run, problem, open_contestant("mm_mo", 6, 10)).X
    assert torch.equal(X[:7], problem.anchors)


def records() -> list[dict[str, object]]:
    return [
        {
            "run": Run("merge6", "sobol", seed, 2).__dict__,
            "proposal_cpu_s": 0.5,
            "points": 2,
            "spent": [0.5, 2.0],
            "hypervolume": [0.1, value],
            "front_hypervolume": [0.1, 0.2],
            "front_igd_plus": [0.5, 0.25],
            "confirmed": {"front_hypervolume": 0.2, "front_igd_plus": 0.25},
        }
        for seed, value in enumerate((0.4, 0.5, 0.6))
    ]


def test_costs_of_proposals() -> None:
    problem = open_problem("merge12")
    seen = cost.observe(problem, 60, seed=0)
    assert seen.X.shape == (60, 12)
    near = seen.Y[30:].mean(0) - seen.Y[:30].mean(0)
    assert (near > 0).all()  # the second half lies along the front
    rows = cost.measure("sobol", 1)
    assert [(r["objectives"], r["observations"], r["q"]) for r in rows] == [
        (3, 100, 1), (3, 100, 5), (3, 400, 1), (3, 400, 5), (5, 100, 1), (5, 100, 5),
    ]  # fmt: skip
    assert len(cost.lines(rows)) == 2 + 6


def test_interval_by_hand() -> None:
    # Student's 97.5 % point with two degrees of freedom is 4.3027; the standard error 1/√3
    assert report.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.3027 / math.sqrt(3)), rel=1e-4)
    assert math.isnan(report.interval([1.0])[1])


def test_values_are_looked_up_by_what_was_spent() -> None:
    record = {"spent": [0.2, 0.4, 1.0, 1.2], "hypervolume": [0.1, 0.2, 0.3, 0.4]}
    found = [report.value(record, "hypervolume", n) for n in (0.2, 0.5, 1.0, 9)]
    assert found == [0.1, 0.2, 0.3, 0.4]
    assert math.isnan(report.value(record, "hypervolume", 0.1))


def test_table_and_results_file(tmp_path: Path) -> None:
    ours = {**records()[1], "run": Run("merge6", "mm_mo", 1, 2).__dict__, "hypervolume": [0, 0.75]}
    table = report.lines([*records()[1:], ours], [1, 2, 30], "mm_mo")
    # one seed in common: 50 − 75; of 50 and 60 the error is 5, Student's point 12.71
    cells = "10.0 ± 0.0 | 55.0 ± 63.5 | -25.0 | 20.0 ± 0.0 | 25.0 ± 0.0 | 2 | 0.5 | 2 |"
    assert table[-1] == f"| `sobol` | {cells}"
    assert table[-2] == "| `mm_mo` | 0.0 | 75.0 | 0.0 | 20.0 | 25.0 | 2 | 0.5 | 1 |"
    assert "| – |" in report.lines(records(), [2], "mm_mo")[-1]
    path = tmp_path / "results.json"
    report.save(records(), [2, 30], "the command", path)
    content = json.loads(path.read_text())
    assert content["command"] == "the command"
    saved = content["results"]["merge6, 2 x 1300 items"]["sobol"]
    assert saved["1"] == {"2": [0.5, 0.2, 0.25], "confirmed": [0.2, 0.25]}
    report.plot(records(), tmp_path / "plot.html")
    assert "median and quartiles" in (tmp_path / "plot.html").read_text()


def test_held_out_has_columns_where_there_are_held_out_items() -> None:
    first, second = records()[:2]
    for record, unseen in ((first, 0.875), (second, 0.75)):
        record["confirmed"] = {**record["confirmed"], "held_out_hypervolume": unseen}
        record["held_out_hypervolume"] = [0.1, 0.5]
    second["run"] = {**second["run"], "contestant": "mm_mo", "seed": first["run"]["seed"]}
    table = report.lines([first, second], [1, 2], "mm_mo")
    assert "| its held-out HV % | that less `mm_mo` | held-out HV % at 1 | points" in table[3]
    (row,) = [line for line in table if line.startswith("| `sobol` |")]
    assert row.endswith("| 87.5 | 12.5 | 10.0 | 2 | 0.5 | 1 |")


def test_unconfirmed_points_have_a_column_where_there_may_be_some() -> None:
    record = records()[0]
    record["run"] = {**record["run"], "contestant": "sobol@start=0.5"}
    record["confirmed"] = {"front_hypervolume": 0.15, "front_igd_plus": 0.3}
    table = report.lines([record], [2], "sobol")
    assert "| HV % with unconfirmed points |" in table[3]
    assert table[-1] == "| `sobol@start=0.5` | 40.0 | – | 15.0 | 30.0 | 20.0 | 2 | 0.5 | 1 |"
