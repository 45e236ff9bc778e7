"""raybm deploy, render, key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raybm.cli.jobs import ADDRESS, DEFAULT_STORAGE, STORAGE, say


def deploy(
    config: Annotated[Path, typer.Argument(help="A serve_configs/ file.")],
    address: Annotated[str | None, ADDRESS] = None,
) -> None:
    """Put models behind the gateway. On an embedded Ray it stays in the foreground until Ctrl-C; on a cluster it returns."""
    from functools import partial

    from raybm.cluster import connect
    from raybm.serving.deploy import deploy as deploy_config

    deploy_config(config, connect=partial(connect, dashboard=True), address=address, say=say)


def render(
    models: Annotated[list[str], typer.Argument(metavar="NAME@ALIAS...", help="Such as sentiment@prod chat@prod.")],
    storage: Annotated[str, STORAGE] = DEFAULT_STORAGE,
) -> None:
    """Print a Serve config for models of the registry."""
    from raybm.serving.render import render as render_config

    say(render_config(models, storage))


def key(tenant: Annotated[str, typer.Argument(help="Whom the key is for.")]) -> None:
    """Make an API key: printed once; only its digest goes into a serve_configs/ file."""
    from raybm.serving.auth import new_api_key

    secret, digest = new_api_key()
    say(f"key (give it to {tenant}, it is not kept): {secret}")
    say(f"for gateway.api_keys: {{tenant: {tenant}, sha256: {digest}}}")


def register(app: typer.Typer) -> None:
    for command in (deploy, render, key):
        app.command()(command)
