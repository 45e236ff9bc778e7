"""The `raybm` command. Each sub-command is a few lines that call a room; what is heavy loads inside the command that needs it."""

from __future__ import annotations

import sys
import tempfile
import traceback

import typer
from typer.exceptions import TyperException

from raybm.cli import jobs, models, plan, serve, sweeps
from raybm.core.errors import RaybmError

app = typer.Typer(
    name="raybm",
    help="Train, evaluate, keep and serve large models on a Ray cluster from one YAML job spec.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
jobs.register(app)
plan.register(app)
serve.register(app)
app.add_typer(models.app, name="models")
app.add_typer(sweeps.app, name="sweep")


def main() -> None:
    """The process's edge: a mistake of the user's is one clear message and an exit code, never a traceback."""
    try:
        sys.exit(app(standalone_mode=False))  # the code of typer.Exit; 130 after Ctrl-C
    except RaybmError as error:
        print(f"raybm: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except TyperException as error:  # a mistyped option
        print(f"raybm: {error.format_message()}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except Exception as error:  # noqa: BLE001  (a mistake of ours)
        _report_bug(error)
        sys.exit(1)


def _report_bug(error: Exception) -> None:
    """One line for the terminal, the traceback in a file: it may hold what a user would not post unread."""
    with tempfile.NamedTemporaryFile("w", prefix="raybm-error-", suffix=".txt", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    last = (str(error).strip().splitlines() or [""])[0]
    print(f"raybm: unexpected {type(error).__name__}: {last[:300]}\nThe traceback is in {file.name}.", file=sys.stderr)  # noqa: T201
