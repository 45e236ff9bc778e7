"""raybm models list | show | promote | rollback | verify."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from raybm.cli.jobs import DEFAULT_STORAGE, STORAGE, say, show_table

if TYPE_CHECKING:
    from raybm.core.registry import Registry

app = typer.Typer(help="The registry: immutable versions, and aliases that point to them.", no_args_is_help=True, rich_markup_mode=None)
Model = Annotated[str, typer.Argument(metavar="NAME@VERSION", help="Such as sentiment@3 or sentiment@prod.")]
Storage = Annotated[str, STORAGE]


@app.command("list")
def list_models(storage: Storage = DEFAULT_STORAGE) -> None:
    """Models, their versions and aliases."""
    from rich.table import Table

    table = Table("model", "versions", "aliases", box=None)
    for model in _registry(storage).models():
        table.add_row(model.name, ", ".join(map(str, model.versions)), ", ".join(f"{alias} → {v}" for alias, v in model.aliases.items()))
    show_table(table)


@app.command()
def show(model: Model, storage: Storage = DEFAULT_STORAGE) -> None:
    """One version as JSON: files with digests, evaluation, lineage."""
    name, version = _split(model)
    say(json.dumps(_registry(storage).get(name, version).canonical(), indent=2, ensure_ascii=False))


@app.command()
def promote(
    model: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="Such as sentiment@3.")],
    alias: Annotated[str, typer.Argument(help="Such as prod.")],
    expect: Annotated[
        int | None, typer.Option("--expect", help="Only if the alias points to this version. Default: to what it points now.")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Point an alias to a version (compare-and-swap)."""
    name, version = _split(model)
    registry = _registry(storage)
    number = registry.get(name, version).number
    now = registry.alias(name, alias)
    state = registry.promote(name, alias, number, expect if expect is not None else (now.version if now else None))
    say(f"{name}@{alias} → {state.version}" + (f" (was {now.version})" if now else ""))


@app.command()
def rollback(model: Annotated[str, typer.Argument(metavar="NAME@ALIAS")], storage: Storage = DEFAULT_STORAGE) -> None:
    """Point an alias back to the version before."""
    name, alias = _split(model)
    say(f"{name}@{alias} → {_registry(storage).rollback(name, alias).version}")


@app.command()
def verify(model: Model, storage: Storage = DEFAULT_STORAGE) -> None:
    """Compare every file with the digest that was published. Exit code 1 if one differs."""
    name, version = _split(model)
    problems = _registry(storage).verify(name, version)
    for problem in problems:
        say(f"{model}: {problem}")
    if not problems:
        say(f"{model}: every file is as published")
    raise typer.Exit(1 if problems else 0)


def _registry(storage: str) -> Registry:
    from raybm.core.registry import Registry
    from raybm.core.storage import open_storage

    return Registry(open_storage(storage))


def _split(model: str) -> tuple[str, str]:
    from raybm.core.errors import UserError

    name, at, version = model.removeprefix("registry:").partition("@")
    if not at or not name or not version:
        raise UserError(f"{model!r} names no version.", where="model", remedy="Give NAME@VERSION or NAME@ALIAS, such as sentiment@prod.")
    return name, version
