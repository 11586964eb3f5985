"""The campaign file: what is read, what is refused and how, and what a configuration writes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigns import campaign
from hypothesis import given
from hypothesis import strategies as st

from mmmo.complaints import complaint, nearest
from mmmo.config import BudgetConfig, CampaignConfig, PoolConfig, load, parse
from mmmo.errors import Problems, UserError
from mmmo.example import EXAMPLE
from mmmo.settings import Choice, Range
from mmmo.yamlfile import read_yaml

FOLDER = Path("/campaigns")
MERGE = {"method": "ties", "weight": {"range": [0.0, 1.5]}}


def config(**changes: Any) -> CampaignConfig:
    return parse(campaign(**changes), FOLDER)


def problems(**changes: Any) -> list[str]:
    with pytest.raises(Problems) as caught:
        parse(campaign(**changes), FOLDER)
    return caught.value.lines()


def merge(**parameters: Any) -> Mapping[str, Any]:
    return config(merge=MERGE | parameters).merge.parameters


def test_settings_are_numbers_ranges_choices_or_one_per_expert() -> None:
    assert merge(density=1)["density"] == 1.0
    assert merge(density={"range": [0, 1]})["density"] == Range(low=0.0, high=1.0)
    assert merge(density={"choice": [0.5, 1]})["density"] == Choice(options=(0.5, 1))
    assert merge(normalize=True)["normalize"] is True
    each = {"maths": 1, "code": {"range": [0, 1]}, "spanish": {"choice": [0.1, 0.2]}}
    assert merge(weight=each)["weight"] == {
        "maths": 1.0,
        "code": Range(low=0.0, high=1.0),
        "spanish": Choice(options=(0.1, 0.2)),
    }


def test_a_choice_of_methods() -> None:
    found = config(merge={"method": {"choice": ["ties", "linear"]}}).merge
    assert list(found.methods) == ["ties", "linear"]


def test_a_parameter_that_one_of_the_chosen_methods_has() -> None:
    method = {"choice": ["linear", "ties"]}
    assert merge(method=method, density=0.5)["density"] == 0.5
    lines = problems(merge={"method": method, "gamma": 0.01})
    assert lines == [
        "merge.gamma: no parameter of linear or ties; allowed: density, lambda, normalize, "
        "on_tie, rescale, weight"
    ]


def test_constraints_are_read() -> None:
    (found,) = config(constraints=["maths>=1e-1"]).constraints
    assert (found.objective, found.sign, found.bound) == ("maths", ">=", 0.1)
    assert str(found) == "maths >= 0.1"


def test_all_mistakes_are_reported_each_with_its_place() -> None:
    lines = problems(
        seed=-1,
        budget={"trails": 3},
        merge=MERGE | {"dtype": "float8", "layer_groups": 0},
        objectives={"maths": {}},
    )
    assert sorted(line.split(":")[0] for line in lines) == [
        "budget.trails",
        "merge.dtype",
        "merge.layer_groups",
        "objectives.maths",
        "seed",
    ]


def test_mistakes_that_only_show_together_are_reported_together() -> None:
    assert problems(
        merge={"method": "slerp", "density": 0.5},
        objectives={"maths": {"benchmark": "sumz"}},
        constraints=["math >= 1"],
    ) == [
        "merge.density: no parameter of slerp; allowed: t",
        "merge.method: found 3 experts, allowed: 1 or 2 with slerp",
        "objectives.maths.benchmark: found 'sumz'; did you mean \"sums\"?; allowed: sums, python",
        "constraints.0: found 'math'; did you mean \"maths\"?; allowed: maths",
    ]


def test_options_are_checked_by_the_benchmarks_kind() -> None:
    changed = copy.deepcopy(campaign()["benchmarks"])
    changed["sums"]["options"] = {"promt": "q", "limit": 3}
    changed["python"] |= {"kind": "multiple_choice", "options": {"normalize": "yes"}}
    assert problems(benchmarks=changed) == [
        "benchmarks.sums.options.limit: allowed: only as benchmarks.sums.limit",
        "benchmarks.python.options.normalize: found 'yes', allowed: 'none' or 'length'",
    ]
    del changed["sums"]["options"]["limit"]
    assert problems(benchmarks=changed)[0].startswith(
        'benchmarks.sums.options.promt: unknown key; did you mean "prompt"?; allowed: data, '
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "section",
    [
        lambda x: {"merge": MERGE | {"weight": x}},
        lambda x: {"merge": MERGE | {"weight": {"range": [0.0, x]}}},
        lambda x: {"merge": MERGE | {"weight": {"choice": [0.0, x]}}},
        lambda x: {"merge": MERGE | {"density": x}},
        lambda x: {"objectives": {"maths": {"benchmark": "sums", "reference": x}}},
        lambda x: {"constraints": [f"maths >= {x}"]},
        lambda x: {"budget": {"hours": x}},
        lambda x: {"pool": {"trial_timeout_s": x}},
    ],
)
def test_numbers_that_are_not_finite_are_refused(section: Any, number: float) -> None:
    (line,) = problems(**section(number))
    assert ": found " in line
    assert ", allowed: " in line


@pytest.mark.parametrize("wrong", [True, "3", 1.5, None, [3]])
@pytest.mark.parametrize(("section", "key"), [("budget", "trials"), ("pool", "threads")])
def test_only_integers_are_integers(section: str, key: str, wrong: object) -> None:
    assert problems(**{section: {key: wrong}}) == [
        f"{section}.{key}: found {wrong!r}, allowed: an integer"
    ]


def test_a_budget_without_a_limit_is_30_trials() -> None:
    assert BudgetConfig() == BudgetConfig(trials=30)
    assert config(budget={"stop_when_gain_below": 0.01}).budget.trials == 30
    assert config(budget={"hours": None}).budget.trials == 30
    assert config(budget={"items": 5000}).budget.trials is None
    assert config(budget={"hours": 2.0}).budget.trials is None
    assert config(budget={"hours": 2.0, "trials": 4}).budget.trials == 4
    for budget in ({"items": 5000}, {"hours": 2.0}, {"trials": 4}, {"stop_when_gain_below": 0.1}):
        written = config(budget=budget)
        assert parse(yaml.safe_load(written.text()), FOLDER) == written


def test_items_are_a_strict_block() -> None:
    found = config(search={"items": {"start": 0.2, "promote": "gain", "order": "own"}}).search.items
    assert (found.start, found.promote, found.order, found.confirm) == (0.2, "gain", "own", 30)
    assert problems(search={"items": {"start": 0, "confirm": -1, "promot": "gain"}}) == [
        "search.items.start: found 0, allowed: greater than or equal to 0.001",
        "search.items.confirm: found -1, allowed: greater than or equal to 0",
        'search.items.promot: unknown key; did you mean "promote"?; '
        "allowed: start, promote, order, confirm",
    ]
    assert problems(budget={"stop_when_gain_below": 1}) == [
        "budget.stop_when_gain_below: found 1, allowed: less than 1"
    ]


def test_a_gain_that_nobody_expects_ends_nothing() -> None:
    stop = {"stop_when_gain_below": 0.01}
    assert problems(budget=stop, search={"strategy": "sobol"}) == [
        "budget.stop_when_gain_below: found 0.01, allowed: with a model, which sobol has not"
    ]
    five = {f"o{i}": {"benchmark": "sums"} for i in range(5)}
    assert problems(budget=stop, objectives=five) == [
        "budget.stop_when_gain_below: found 0.01 with 5 objectives, allowed: with at most 4"
    ]


def test_keys_about_items_that_would_do_nothing() -> None:
    assert problems(search={"items": {"promote": "halving", "order": "own"}}) == [
        "search.items.promote: found 'halving', allowed with start 1: never",
        "search.items.order: found 'own', allowed with start 1: shared",
    ]
    sparse = {"benchmarks": {}, "objectives": {"sparsity": {"measure": "delta_l1"}}}
    assert problems(budget={"items": 100}, **sparse) == [
        "budget.items: found no benchmark, allowed: only with items to score"
    ]
    assert problems(search={"items": {"start": 0.5}}, **sparse) == [
        "search.items.start: found no benchmark, allowed: only with items to score"
    ]


def test_items_belong_to_a_campaigns_identity_and_their_default_does_not_change_it() -> None:
    plain, same = config(), config(search={"items": {"start": 1.0, "confirm": 30}})
    assert plain.identity() == same.identity()
    assert "items" not in plain.text()
    assert config(search={"items": {"start": 0.5}}).identity() != plain.identity()
    assert config(budget={"items": 5000}).identity() == plain.identity()


def test_nearest() -> None:
    assert nearest("wieght", ["weight", "density"]) == '; did you mean "weight"?'
    assert nearest("zzz", ["weight", "density"]) == ""
    assert complaint("a.b", "x", []) == "a.b: found 'x'; allowed: none"
    assert len(complaint("a.b", "x" * 1000, [])) < 100


CONFIGURATIONS = [
    {},
    {"merge": {"method": {"choice": ["ties", "dare_ties"]}, "rescale": {"choice": ["l1", "none"]}}},
    {"merge": MERGE | {"filters": ["self_attn", "mlp"], "layer_groups": 4, "dtype": "bfloat16"}},
    {"merge": MERGE | {"density": {"maths": 1, "code": {"range": [1e-5, 1]}, "spanish": 0.25}}},
    {"constraints": ["maths >= 1e-7", "code <= 3"], "budget": {"hours": 0.5}},
    {"search": {"strategy": "mm_mo", "synchronous": True, "options": {"preset": "reference"}}},
    {"objectives": {"maths": {"benchmark": "sums", "reference": 0.1}}},
]


@pytest.mark.parametrize("changes", CONFIGURATIONS)
def test_text_is_read_back_as_the_same_configuration(
    changes: Mapping[str, Any], tmp_path: Path
) -> None:
    written = config(**changes)
    (tmp_path / "again.yaml").write_text(written.text())
    again = load(tmp_path / "again.yaml")
    assert again == written
    assert again.identity() == written.identity()
    assert CampaignConfig.model_validate(yaml.safe_load(written.text())) == written


@given(
    st.tuples(
        st.floats(-1e9, 1e9, allow_subnormal=False), st.floats(-1e9, 1e9, allow_subnormal=False)
    ).filter(lambda pair: pair[0] < pair[1])
)
def test_every_range_survives_its_text(bounds: tuple[float, float]) -> None:
    written = config(merge=MERGE | {"weight": {"range": list(bounds)}})
    again = CampaignConfig.model_validate(yaml.safe_load(written.text()))
    assert again.merge.parameters["weight"] == Range(low=bounds[0], high=bounds[1])


def test_text_is_what_a_user_could_write() -> None:
    content = yaml.safe_load(config().text())
    assert content["merge"]["weight"] == {"range": [0.0, 1.5]}
    assert "parameters" not in content["merge"]


def test_identity_is_all_that_decides_results() -> None:
    identity = config().identity()
    assert config(budget={"trials": 99}).identity() == identity
    assert config(pool={"executor": "inline"}).identity() == identity
    assert config(store="sqlite:///elsewhere.db").identity() == identity
    others = [
        config(seed=4),
        config(name="other"),
        config(merge=MERGE),
        config(search={"batch": 2}),
        config(objectives={"maths": {"benchmark": "sums"}}),
        config(constraints=["maths >= 0.5"]),
        config(sources=campaign()["sources"] | {"base": "./other"}),
    ]
    assert len({identity, *(c.identity() for c in others)}) == len(others) + 1


def test_budget_and_pool_have_defaults() -> None:
    raw = campaign()
    del raw["budget"]
    assert parse(raw, FOLDER).budget == BudgetConfig(trials=30)
    assert parse(raw, FOLDER).pool == PoolConfig()


def test_paths_are_relative_to_the_file_and_hub_names_stay(tmp_path: Path) -> None:
    (tmp_path / "local" / "model").mkdir(parents=True)
    experts = {"maths": "../zoo", "code": "org/model@main", "spanish": "/models/es"}
    sources = {"base": "local/model", "experts": experts}
    benchmarks = {
        "sums": {"kind": "exact_match", "data": "sums.jsonl", "held_out": "x/held.csv"},
        "python": {"kind": "nll", "data": "org/snippets", "held_out": "validation"},
        "topics": {"kind": "classification", "data": "a.jsonl", "options": {"head": "h/b.st"}},
        "moods": {"kind": "classification", "data": "b.jsonl", "options": {"head": None}},
    }
    found = parse(campaign(sources=sources, benchmarks=benchmarks), tmp_path)
    assert found.sources.base == str(tmp_path / "local" / "model")
    assert found.sources.experts == {
        "maths": str(tmp_path.parent / "zoo"),
        "code": "org/model@main",
        "spanish": "/models/es",
    }
    assert found.benchmarks["sums"].data == str(tmp_path / "sums.jsonl")
    assert found.benchmarks["sums"].held_out == str(tmp_path / "x" / "held.csv")
    assert found.benchmarks["python"].data == "org/snippets"
    assert found.benchmarks["python"].held_out == "validation"
    assert found.benchmarks["topics"].options == {"head": str(tmp_path / "h" / "b.st")}
    assert found.benchmarks["moods"].options == {"head": None}


def test_a_file_is_relative_to_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "campaigns").mkdir()
    (tmp_path / "campaigns" / "a.yaml").write_text(yaml.safe_dump(campaign()))
    monkeypatch.chdir(tmp_path)
    found = load(Path("campaigns/a.yaml"))
    assert found.sources.base == str(tmp_path / "campaigns" / "base")


def test_the_example_is_a_right_campaign(tmp_path: Path) -> None:
    (tmp_path / "campaign.yaml").write_text(EXAMPLE)
    assert list(load(tmp_path / "campaign.yaml").objectives) == ["maths", "code"]


def yaml_of(folder: Path, text: str) -> Any:
    (folder / "a.yaml").write_text(text)
    return read_yaml(folder / "a.yaml")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("1e-3", 0.001),
        ("-2.5E+3", -2500.0),
        ("1.5", 1.5),
        ("on", "on"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("2026-01-31", "2026-01-31"),
        ("'1'", "1"),
        ("null", None),
    ],
)
def test_yaml_scalars(text: str, content: object, tmp_path: Path) -> None:
    found = yaml_of(tmp_path, f"key: {text}\n")["key"]
    assert found == content
    assert type(found) is type(content)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("a: 1\nb: [1\nc: 2\n", 3, 2),
        ("a:\n\tb: 1\n", 2, 1),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", 4, 3),
        ("a: .nan\n", 1, 4),
        ("a: [1, -.INF]\n", 1, 8),
        ("a: *nowhere\n", 1, 4),
        ("a: 'open\n", 2, 1),
    ],
)
def test_yaml_mistakes_have_line_and_column(
    text: str, line: int, column: int, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        yaml_of(tmp_path, text)
    (said,) = caught.value.lines()
    assert said.startswith(f"{tmp_path / 'a.yaml'}: line {line}, column {column}: ")


@pytest.mark.parametrize("hub_id", ["Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.1-8B@main"])
def test_a_dot_makes_no_file_of_a_hub_id(hub_id: str, tmp_path: Path) -> None:
    sources = {"base": hub_id, "experts": {"maths": "./maths"}}
    config = parse(campaign(sources=sources), tmp_path)
    assert config.sources.base == hub_id


@pytest.mark.parametrize("number", [0, 1])
def test_a_number_is_no_truth_value(number: int) -> None:
    merge = {"method": "ties", "normalize": number}
    with pytest.raises(Problems, match=r"merge.normalize: found .*, allowed: true, false"):
        parse(campaign(merge=merge), Path("/nowhere"))


@pytest.mark.parametrize("name", ["load", "merge"])
def test_a_benchmark_is_not_named_as_another_part_of_a_trial(name: str) -> None:
    raw = campaign(objectives={"code": {"benchmark": name}})
    raw["benchmarks"] = {name: raw["benchmarks"]["python"]}
    with pytest.raises(Problems, match=f"benchmarks.{name}: found a name that timings use"):
        parse(raw, Path("/nowhere"))
