"""The command line. Results go to stdout, progress and notes to stderr.

Exit status: 0 when every cell is complete, 1 when units failed, 2 for wrong input (before any compute), 130 after
Ctrl-C. Modules of the commands are imported inside them: ``--help`` must not wait for torch, nor ``list`` for Ray.
"""

import os
import sys
from typing import Annotated

import typer

from defense.redaction import RedactingStream, has_credentials, remember, remember_environment
from workflows.cli.assets import data, list_, train
from workflows.cli.comparing import check, compare, judge, leaderboard, promote
from workflows.cli.output import OutputLost, say, steady_streams, tell
from workflows.cli.probing import probe
from workflows.cli.results import compact, report, rows, show, tables
from workflows.cli.running import plan, run, status
from workflows.cli.starting import init, schema
from workflows.cli.tracking import track

__all__ = ["app", "main"]

app = typer.Typer(
    name="puregrid",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        tell(f"puregrid {version('puregrid')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Evaluate diffusion-based adversarial purification on a grid, on one machine or a Ray cluster."""


for command in (
    plan,
    run,
    status,
    tables,
    compare,
    check,
    promote,
    judge,
    leaderboard,
    compact,
    report,
    show,
    rows,
    probe,
    track,
    train,
    init,
    schema,
):
    app.command()(command)
app.command("list")(list_)
app.add_typer(data, name="data")


def _without_password(arguments: list[str]) -> tuple[list[str], str] | None:
    """The arguments without the URI of ``--mlflow``, and the URI, if it holds a password; None if not."""
    for place, argument in enumerate(arguments):
        name, equals, uri = argument.partition("=")
        if name != "--mlflow":
            continue
        end = place + 1 if equals else place + 2
        uri = uri if equals else "".join(arguments[place + 1 : end])
        if has_credentials(uri):
            return [*arguments[:place], *arguments[end:]], uri
    return None


def main() -> None:
    """Entry point of ``puregrid``."""
    # Everybody on the machine can read a command line, and Ray keeps the driver's: this process begins again without.
    if (found := _without_password(sys.argv[1:])) is not None:
        arguments, os.environ["MLFLOW_TRACKING_URI"] = found
        program = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
        os.execv(sys.executable, [sys.executable, *program, *arguments])  # noqa: S606 - the same program
    # Ray would otherwise ask about usage statistics, and warn of an accelerator variable that we do not use.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    steady_streams()
    # The last of several: usage errors, tracebacks and libraries write here too.
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None:
            setattr(sys, name, RedactingStream(stream))
    for given in sys.argv[1:]:
        remember(given)
    remember_environment(os.environ)
    try:
        app()
    except OutputLost as error:  # of what Typer prints by itself, such as help
        if not error.quiet:
            say(f"error: {error}")
        raise SystemExit(error.status) from error
