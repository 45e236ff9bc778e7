"""raybm sweep show | best | compare | promote."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from raybm.cli.display import short
from raybm.cli.jobs import DEFAULT_STORAGE, STORAGE, say, show_table

if TYPE_CHECKING:
    from raybm.sweep.past import Past

app = typer.Typer(help="Sweeps that were run, or still run.", no_args_is_help=True, rich_markup_mode=None)
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, as `raybm runs` lists it.")]
Storage = Annotated[str, STORAGE]


@app.command()
def show(run: Run, storage: Storage = DEFAULT_STORAGE) -> None:
    """Its trials, the best ones first."""
    from rich.table import Table

    from raybm.sweep.trial import mean, spread

    past = _past(run, storage)
    seeds = list(past.objectives) if any(len(trials) > 1 for trials in past.points.values()) else []
    means = [f"mean of {name}" for name in seeds]
    table = Table("point", "end", *past.fields, *past.objectives, *means, "seconds", "why it failed", box=None)
    for trial in past.trials:
        trials = past.points[trial.point]
        values = [short(trial.values.get(path)) for path in past.fields]
        scores = [short(trial.metrics.get(name)) for name in past.objectives]
        over = ["" if (known := mean(trials, name)) is None else f"{short(known)} ± {short(spread(trials, name))}" for name in seeds]
        table.add_row(trial.name, trial.end or "not over", *values, *scores, *over, f"{trial.seconds:.0f}", trial.error)
    show_table(table)


@app.command()
def best(run: Run, storage: Storage = DEFAULT_STORAGE) -> None:
    """What the best trial had in its spec, as JSON: a path and a value each, as `--set` takes them."""
    past = _past(run, storage)
    say(json.dumps(past.best().changes, indent=2, ensure_ascii=False))


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Two runs or more.")], storage: Storage = DEFAULT_STORAGE
) -> None:
    """Sweeps side by side: what they tried, how long it took, and what the best of each reached."""
    from rich.table import Table

    from raybm.sweep.trial import mean

    pasts = [_past(run, storage) for run in runs]
    names = list(dict.fromkeys(name for past in pasts for name in past.objectives))
    table = Table("run", "searched by", "trials", "finished", "hours of trials", *names, "best", box=None)
    for past in pasts:
        finished = [trial for trial in past.trials if trial.end == "finished"]
        top = past.best() if past.finished else None
        scores = [short(mean(past.points[top.point], name)) if top else "" for name in names]
        hours = sum(trial.seconds for trial in past.trials) / 3600
        values = ", ".join(f"{path} {short(value)}" for path, value in top.values.items()) if top else ""
        table.add_row(past.run, past.by, str(len(past.trials)), str(len(finished)), f"{hours:.2f}", *scores, values)
    show_table(table)


@app.command()
def promote(run: Run, alias: Annotated[str, typer.Argument(help="Such as prod.")], storage: Storage = DEFAULT_STORAGE) -> None:
    """Point an alias to the version that the run published (compare-and-swap)."""
    from raybm.core.registry import Registry
    from raybm.core.storage import open_storage

    name, version = _past(run, storage).published()
    registry = Registry(open_storage(storage))
    now = registry.alias(name, alias)
    state = registry.promote(name, alias, version, now.version if now else None)
    say(f"{name}@{alias} → {state.version}" + (f" (was {now.version})" if now else ""))


def _past(run: str, storage: str) -> Past:
    from raybm.core.storage import open_storage
    from raybm.sweep.past import Past

    return Past(open_storage(storage), run)
