"""The verbs and their exit codes, nothing else. What a verb needs is imported inside it."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mmmo.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    Fault,
    Interrupted,
    MmmoError,
    UserError,
    unwritable,
)
from mmmo.terminal import OutputLost, secure_streams, tell

if TYPE_CHECKING:
    from mmmo.config import CampaignConfig
    from mmmo.history import History
    from mmmo.preflight import Facts
    from mmmo.store import Store

RUNS = Path("runs")

app = typer.Typer(
    help="One YAML file → a campaign → the Pareto set of merged models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="The campaign's name.", metavar="NAME")]
File = Annotated[Path, typer.Argument(help="The campaign file (YAML).", metavar="FILE")]
StoreUrl = Annotated[
    str | None,
    typer.Option("--store", envvar="MMMO_STORE", help="Database URL.", show_envvar=True),
]
ShardSize = Annotated[str, typer.Option(help="Largest file of weights: 500MB, 5GB.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE")] = Path("campaign.yaml"),
) -> None:
    """Write a commented example to start from."""
    from mmmo.example import EXAMPLE

    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(EXAMPLE)
    except FileExistsError:
        raise UserError(f"{file}: exists already; name another file") from None
    except OSError as error:
        raise unwritable(file, error) from None
    print(f"wrote {file}; edit it, then: mmmo check {file}")


@app.command()
def check(file: File) -> None:
    """Validate a campaign file and look at all it names, without running anything."""
    from mmmo.config import load
    from mmmo.creation import refuse_taken_folder
    from mmmo.preflight import Preflight

    config = load(file)
    preflight = Preflight(config)
    facts = preflight.facts
    refuse_taken_folder(_store(None, config), RUNS / config.name)
    for note in preflight.notes:
        print(note)
    _warn(preflight.warnings)
    print(f"{file}: {len(facts.objectives)} objectives, ready to launch")


@app.command()
def launch(file: File, store: StoreUrl = None) -> None:
    """Run a campaign; an unfinished one of the same file is resumed."""
    from mmmo.config import load
    from mmmo.creation import create, refuse_taken_folder

    config = load(file)
    opened = _store(store, config)
    refuse_taken_folder(opened, RUNS / config.name)
    preflight = create(opened, config)
    if preflight is not None:
        _warn(preflight.warnings)
    _run(opened, config, preflight.facts if preflight else None)


@app.command()
def resume(
    name: Name,
    trials: Annotated[int | None, typer.Option(min=1, help="A new budget of trials.")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="A new budget of items.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Another number of workers.")] = None,
    store: StoreUrl = None,
) -> None:
    """Carry on with a campaign that was stopped, interrupted or killed."""
    from mmmo.history import History

    opened = _store(store)
    config = History(opened, name).config
    _run(opened, _changed(config, trials, items, workers))


@app.command()
def stop(name: Name, store: StoreUrl = None) -> None:
    """Ask a running campaign to finish what is running and stop."""
    opened = _store(store)
    if opened.writer(name) is None:
        raise UserError(f"campaign {name!r} is not running")
    opened.request(name, "stop_requested")
    print(f"{name} will stop when its running trials are done")


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None,
    as_json: AsJson = False,
    store: StoreUrl = None,
) -> None:
    """Show one campaign, or list all."""
    from mmmo.history import History
    from mmmo.views import status_document, status_lines

    opened = _store(store)
    names = [name] if name else [row.name for row in opened.campaigns()]
    documents = [status_document(History(opened, n)) for n in names]
    if as_json:
        _print_json(documents[0] if name else documents)
        return
    for document in documents:
        print("\n".join(status_lines(document)))
    if not documents:
        print("no campaigns yet; mmmo init writes an example")


@app.command()
def trials(name: Name, as_json: AsJson = False, store: StoreUrl = None) -> None:
    """List the trials of a campaign."""
    from mmmo.views import trial_table

    history = _history(name, store)
    chosen = sorted(history.trials.values(), key=lambda t: t.number)
    if as_json:
        _print_json([t.document(history.objectives) for t in chosen])
    else:
        print(trial_table(chosen, history))


@app.command()
def show(
    name: Name,
    number: Annotated[int, typer.Argument(metavar="TRIAL")],
    as_json: AsJson = False,
    store: StoreUrl = None,
) -> None:
    """Show one trial: recipe, scores, timings, failure."""
    from mmmo.views import trial_lines

    history = _history(name, store)
    trial = history.trial(number)
    if as_json:
        _print_json(trial.document(history.objectives))
    else:
        print("\n".join(trial_lines(trial, history)))


@app.command()
def pareto(name: Name, as_json: AsJson = False, store: StoreUrl = None) -> None:
    """Show the front: the trials that no other trial beats in every objective."""
    from mmmo.views import pareto_document, trial_table

    history = _history(name, store)
    if as_json:
        _print_json(pareto_document(history))
        return
    front = history.pareto.front
    print(trial_table(front, history))
    print(f"{len(front)} non-dominated; hypervolume {history.pareto.hypervolume():.6g}")


@app.command()
def export(  # noqa: PLR0913
    name: Name,
    trial: Annotated[list[int] | None, typer.Option(help="This trial; may be repeated.")] = None,
    knee: Annotated[bool, typer.Option("--knee", help="Only the front's knee.")] = False,
    prefer: Annotated[
        str | None, typer.Option(help="Only the best for weights: maths=0.7,code=0.3")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder [runs/NAME/exports].")] = None,
    shard_size: ShardSize = "5GB",
    store: StoreUrl = None,
) -> None:
    """Write chosen models (default: the whole front), with held-out scores, ready to publish."""
    from mmmo.export import choose, export_trials
    from mmmo.model_folder import shard_size_bytes

    size = shard_size_bytes(shard_size)
    history = _history(name, store)
    chosen = choose(history.pareto, history, trial or [], knee, prefer)
    folder = out or RUNS / name / "exports"
    for exported in export_trials(history, chosen, folder, size):
        print(exported)


@app.command()
def merge(
    config: Annotated[Path, typer.Argument(help="A mergekit configuration.", metavar="CONFIG")],
    out: Annotated[Path, typer.Argument(help="The folder to write.", metavar="OUT")],
    dtype: Annotated[str | None, typer.Option(help="Of the weights [the file's].")] = None,
    shard_size: ShardSize = "5GB",
    seed: Annotated[int, typer.Option(min=0, help="Of random masks.")] = 0,
) -> None:
    """Merge once, without a campaign, as a mergekit configuration says."""
    from mmmo.merge import merge
    from mmmo.model_folder import shard_size_bytes

    for line in merge(config, out, dtype, shard_size_bytes(shard_size), seed):
        print(line)


@app.command()
def report(
    name: Name,
    out: Annotated[Path | None, typer.Option(help="File [runs/NAME/report/index.html].")] = None,
    store: StoreUrl = None,
) -> None:
    """Write one self-contained HTML file about a campaign."""
    from mmmo.report import write_report

    history = _history(name, store)
    print(write_report(history, out or RUNS / name / "report" / "index.html"))


def _store(url: str | None, config: CampaignConfig | None = None) -> Store:
    """The store: of `--store` or `MMMO_STORE`, else of the file, else the default."""
    from mmmo.config import DEFAULT_STORE
    from mmmo.store import Store

    return Store(url or (config.store if config else DEFAULT_STORE))


def _history(name: str, url: str | None) -> History:
    from mmmo.history import History

    return History(_store(url), name)


def _changed(
    config: CampaignConfig, trials: int | None, items: int | None, workers: int | None
) -> CampaignConfig:
    budget, pool = config.budget, config.pool
    limits = {"trials": trials, "items": items}
    budget = budget.model_copy(update={k: n for k, n in limits.items() if n is not None})
    if workers is not None:
        if pool.executor == "inline" and workers != 1:
            raise UserError(f"--workers {workers}: the inline executor has one worker")
        pool = pool.model_copy(update={"workers": workers})
    return config.model_copy(update={"budget": budget, "pool": pool})


def _run(store: Store, config: CampaignConfig, facts: Facts | None = None) -> None:
    from mmmo.campaign import Campaign
    from mmmo.progress import ProgressDisplay
    from mmmo.views import ending_lines

    with ProgressDisplay() as display:
        campaign = Campaign(store, config, RUNS, display, facts)
        try:
            history = campaign.run()
        except KeyboardInterrupt:
            _interrupted(config.name, "what was running is abandoned")
    print("\n".join(ending_lines(history)))
    if campaign.interrupted:
        _interrupted(config.name, "running trials were finished")
    if history.finished is not None and not history.completed:
        raise Fault(f"no trial of {config.name!r} completed", f"see mmmo trials {config.name}")


def _interrupted(name: str, what: str) -> NoReturn:
    raise Interrupted(f"interrupted; {what}, the state is safe: mmmo resume {name}")


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


def _warn(lines: list[str]) -> None:
    for warning in lines:
        tell(f"warning: {warning}")


def main() -> None:
    """Run a verb; turn every error that a user can cause into one line and an exit code."""
    sys.path.append(os.getcwd())  # where a user's own `module:Class` may lie
    # One line for what is not as it should be, without the line of code that noticed.
    warnings.formatwarning = lambda message, category, filename, lineno, line=None: (
        f"warning: {message}\n"
    )
    secure_streams()
    code = _run_verb()
    try:
        sys.stdout.flush()
    except OutputLost as error:
        code = _cut_off(error) or code
    sys.exit(code)


def _run_verb() -> int:
    """Run what the arguments ask for; the answer is the exit code."""
    try:
        code = app(prog_name="mmmo", standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # typer makes a code of it, and says nothing
            raise KeyboardInterrupt
    except MmmoError as error:
        return _complain(error)
    except typer.TyperException as error:  # an argument that no verb takes
        return _complain(UserError(error.format_message().rstrip("."), "see mmmo --help"))
    except (KeyboardInterrupt, typer.Abort):
        tell("mmmo: interrupted")
        return EXIT_INTERRUPTED
    except OutputLost as error:
        return _cut_off(error)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # of a worker, say: no reason to exit
            raise error.__context__ from None
        raise
    return code if isinstance(code, int) else EXIT_DONE


def _cut_off(lost: OutputLost) -> int:
    """Say that results cannot be printed, unless it is the reader who went away."""
    # The rest, at the end of the process, would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(lost.error, BrokenPipeError):  # `mmmo trials NAME | head`
        return EXIT_DONE
    return _complain(unwritable("standard output", lost.error))


def _complain(error: MmmoError) -> int:
    *first, last = error.lines()
    for line in [*first, f"{last}; {error.hint}" if error.hint else last]:
        tell(f"mmmo: {line}")
    return error.exit_code
