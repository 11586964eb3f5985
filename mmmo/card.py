"""The model card of an exported trial: README.md with the front matter that model hubs read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from evaluators.merging.mergekit import differences, is_known
from evaluators.recipe import WHOLE, MergeRecipe, ModelRef
from mmmo.held_out import HeldOut, interval
from mmmo.history import History
from mmmo.records import Measurement, Trial

Scalar = float | bool | str
Row = Sequence[str]


def flat_parameters(recipe: MergeRecipe) -> dict[str, Scalar]:
    """Every number and choice of a recipe, named as the columns of the search space are."""
    found: dict[str, Scalar] = {"method": recipe.method}
    for owner, values in recipe.parameters.items():
        for name, value in values.items():
            label = name if owner == WHOLE else f"{owner}.{name}"
            if not isinstance(value, tuple):
                found[label] = value
                continue
            for part, row in zip((*recipe.filters, "rest"), value, strict=True):
                found |= {f"{label}[{part},{group}]": cell for group, cell in enumerate(row)}
    return found


def model_card(
    history: History,
    trial: Trial,
    folders: Mapping[str, Path],
    architecture: str,
    held_out: Mapping[str, HeldOut],
) -> str:
    """Write the card.

    Args:
        history: the campaign.
        trial: what is exported.
        folders: source ("base" or an expert's name) → its folder, for its stated licence.
        architecture: class of `transformers` that loads the model.
        held_out: model ("this model", then the references) → what the held-out items say.
    """
    licences = {name: stated_licence(folder) for name, folder in folders.items()}
    sections = [
        _front_matter(trial.recipe, licences),
        f"# {history.name}, trial {trial.number}",
        *_introduction(history, trial, architecture),
        "## Scores",
        *_scores(history, trial, held_out),
        "## Sources and recipe",
        *_recipe(history, trial.recipe),
        "## Lineage",
        *_lineage(history, trial),
        "## Before you rely on it",
        _bullets(_warnings(history, trial, licences)),
    ]
    return "\n\n".join(sections) + "\n"


def stated_licence(folder: Path) -> str | None:
    """Find the `license` of a model folder's README, if it states one."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        _, front_matter, _ = text.split("---\n", 2) if text.startswith("---\n") else ("", "", "")
        content = yaml.safe_load(front_matter)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    licence = content.get("license") if isinstance(content, dict) else None
    return licence if isinstance(licence, str) else None


def _front_matter(recipe: MergeRecipe, licences: Mapping[str, str | None]) -> str:
    sources = [recipe.base, *recipe.experts.values()]
    parts = [part for ref in sources for part in ref.parts]
    content: dict[str, object] = {
        "base_model": list(dict.fromkeys(map(_public_name, parts))),
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["mergekit", "merge"] if is_known(recipe.method) else ["merge"],
    }
    common = set(licences.values())
    if len(common) == 1 and None not in common:
        content["license"] = common.pop()
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _public_name(ref: ModelRef) -> str:
    """Give a hub id, or the name of a local folder."""
    return Path(ref.path).expanduser().resolve().name if _is_local(ref) else ref.path


def _whole_name(ref: ModelRef) -> str:
    return " with ".join(f"`{_public_name(part)}`" for part in ref.parts)


def _revised_name(ref: ModelRef) -> str:
    return f"`{_public_name(ref)}`" + (f" at `{ref.revision}`" if ref.revision else "")


def _is_local(ref: ModelRef) -> bool:
    return ref.path.startswith((".", "/", "~")) or Path(ref.path).exists()


def _introduction(history: History, trial: Trial, architecture: str) -> Iterator[str]:
    recipe = trial.recipe
    experts = ", ".join(map(_whole_name, recipe.experts.values()))
    front = [t.number for t in history.pareto.front]
    place = (
        f"one of {len(front)} models that no other trial of the campaign beats in every objective"
        if trial.number in front
        else "chosen by hand: it is not on the campaign's Pareto front"
    )
    yield (
        f"A merge of {experts} onto {_whole_name(recipe.base)} by `{recipe.method}`, found by "
        f"`mmmo`; {place}. The objectives: "
        + ", ".join(f"{o.name} ({o.metric}, {o.goal}d)" for o in history.objectives)
        + "."
    )
    yield (
        "```python\n"
        f"from transformers import {architecture}\n\n"
        f'model = {architecture}.from_pretrained("path/to/this/folder")\n'
        "```"
    )


def _scores(history: History, trial: Trial, held_out: Mapping[str, HeldOut]) -> Iterator[str]:
    metrics = {o.benchmark: o for o in history.objectives if o.benchmark}
    rows = []
    for name, found in trial.scores.items():
        objective = metrics.get(name)
        metric = f"{objective.metric} ({objective.goal}d)" if objective else ""
        rows.append([name, metric, "search", *_cells(found)])
        now = held_out["this model"]
        kept = now.scores.get(name)
        cells = _cells(kept) if kept else [f"failed: {_reason(now)}", "", ""]
        rows.append([name, metric, "held-out", *cells])
    yield _table(["benchmark", "metric", "items", "value ± s.e.", "95 % interval", "n"], rows)
    if trial.measures:
        measures = ", ".join(f"{name} {value:.4g}" for name, value in trial.measures.items())
        yield f"Known from the weights alone: {measures}."
    yield "On the held-out items, beside the models that it was made from:"
    yield _comparison(trial, held_out)
    yield (
        "Search items chose this model, so their scores are optimistic; held-out items had no part "
        "in the search. Intervals are Wilson's for proportions, else ± 1.96 standard errors; they "
        "speak of the items, not of other data. The sources were scored as merges of one weight, "
        f"in {trial.recipe.dtype}, by the same code."
    )


def _comparison(trial: Trial, held_out: Mapping[str, HeldOut]) -> str:
    rows = []
    for model, found in held_out.items():
        cells = [
            _with_interval(found.scores[b]) if b in found.scores else f"failed: {_reason(found)}"
            for b in trial.scores
        ]
        rows.append([model, *cells])
    return _table(["model", *trial.scores], rows)


def _recipe(history: History, recipe: MergeRecipe) -> Iterator[str]:
    sources = {"base": recipe.base} | dict(recipe.experts)
    yield _table(
        ["source", "model", "digest"],
        [
            [
                name,
                " with ".join(map(_revised_name, ref.parts)),
                f"`{history.facts.sources[name][:16]}…`",
            ]
            for name, ref in sources.items()
        ],
    )
    values = flat_parameters(recipe) | {"dtype": recipe.dtype, "mask seed": float(recipe.seed)}
    yield "The recipe, rounded; `recipe.yaml` has the exact numbers."
    yield _table(["parameter", "value"], [[f"`{k}`", _plain(v)] for k, v in values.items()])


def _lineage(history: History, trial: Trial) -> Iterator[str]:
    versions = ", ".join(f"{k} {v}" for k, v in history.store.get(history.name).versions.items())
    yield _bullets(
        [
            f"campaign `{history.name}`, seed {history.config.seed}, strategy "
            f"`{history.config.search.strategy}`; trial {trial.number} (counted from 0, of "
            f"{len(history.trials)}), proposed by `{trial.origin or 'the strategy'}`",
            f"recipe key `{trial.key}`",
            f"digest of the weights, the same when scored and when exported: `{trial.digest}`",
            f"searched with {versions}",
        ]
    )
    again = f"To make the same weights again: `mmmo export {history.name} --trial {trial.number}"
    again += " --out elsewhere` (the digest is checked)"
    if not is_known(trial.recipe.method):
        yield f"{again}. mergekit has no operator `{trial.recipe.method}`."
        return
    notes = differences(trial.recipe)
    again += ", or, without mmmo, `mergekit-yaml mergekit_config.yml elsewhere`"
    yield again + (", with these differences:" if notes else ".")
    if notes:
        yield _bullets(notes)


def _warnings(history: History, trial: Trial, licences: Mapping[str, str | None]) -> Iterator[str]:
    if len(set(licences.values())) > 1 or None in licences.values():
        stated = ", ".join(f"{k}: {v or 'none stated'}" for k, v in licences.items())
        yield f"The licence is left open, for the sources do not state the same one ({stated})."
    yield (
        "It was measured on the benchmarks above and on nothing else; merging can undo what its "
        "sources were trained to refuse or to say."
    )
    local = [ref for ref in (trial.recipe.base, *trial.recipe.experts.values()) if _is_local(ref)]
    if local:
        yield (
            "Sources were folders of one machine: `recipe.yaml`, `mergekit_config.yml` and "
            "`manifest.json` name their paths, and `base_model` above only their names."
        )
    few = [name for name, m in trial.scores.items() if m.n < 100]
    if few:
        yield f"Fewer than 100 search items: {', '.join(few)}. Mind the intervals."


def _cells(found: Measurement) -> list[str]:
    low, high = interval(found)
    return [f"{found.value:.4g} ± {found.se:.2g}", f"{low:.4g} to {high:.4g}", str(found.n)]


def _with_interval(found: Measurement) -> str:
    low, high = interval(found)
    return f"{found.value:.4g} ({low:.4g} to {high:.4g})"


def _reason(found: HeldOut) -> str:
    return f"{found.failure['kind']}" if found.failure else "not scored"


def _plain(value: Scalar) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower()


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _bullets(lines: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
