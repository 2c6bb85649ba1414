"""The command line. Results go to stdout, progress and notes to stderr.

Exit status: 0 when every cell is complete, 1 when units failed, 2 for wrong input (before any compute), 130 after
Ctrl-C. Modules of the commands are imported inside them: ``--help`` must not wait for torch, nor ``list`` for Ray.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from workflows.cli.assets import data, list_, train
from workflows.cli.comparing import check, compare, promote
from workflows.cli.probing import probe
from workflows.cli.results import compact, report, tables
from workflows.cli.running import plan, run, status
from workflows.cli.tracking import track

__all__ = ["app", "main"]

app = typer.Typer(
    name="puregrid",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"puregrid {version('puregrid')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Evaluate diffusion-based adversarial purification on a grid, on one machine or a Ray cluster."""


for command in (plan, run, status, tables, compare, check, promote, compact, report, probe, track, train):
    app.command()(command)
app.command("list")(list_)
app.add_typer(data, name="data")


def main() -> None:
    """Entry point of ``puregrid``."""
    # Ray would otherwise ask about usage statistics, and warn of an accelerator variable that we do not use.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    app()
