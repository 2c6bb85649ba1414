"""What the commands share: their options, how they load a sweep, and what becomes of an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defense.bounds import MOST_WORKERS
from defense.errors import InvalidInput, PuregridError

if TYPE_CHECKING:
    from workflows.grid.load import Sweep
    from workflows.store import Store

__all__ = [
    "RUN_HELP",
    "Address",
    "AsJson",
    "GpusPerWorker",
    "Overrides",
    "StoreUri",
    "SweepFile",
    "Workers",
    "errors",
    "open_sweep",
    "say",
]

SweepFile = Annotated[
    Path, typer.Argument(metavar="SWEEP", help="The sweep file, or a bundled sweep's name (`puregrid list sweeps`).")
]
StoreUri = Annotated[str, typer.Option("--store", metavar="URI", help="Folder or bucket for rows and commits.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a value of the sweep file: datasets.0.images.first=100."
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, max=MOST_WORKERS, metavar="N", help="Workers [one per processor or GPU].")
]
GpusPerWorker = Annotated[
    float,
    typer.Option(min=0, max=MOST_WORKERS, metavar="F", help="GPUs per worker, fractions allowed; 0 runs on CPUs."),
]
Address = Annotated[str | None, typer.Option(metavar="auto|HOST", help="A running Ray cluster.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RUN_HELP = (
    "SWEEP.yaml (in --store), SWEEP.yaml@STORE, a store, a file that promote wrote, mlflow:ALIAS or mlflow:RUN_ID."
)


def say(message: str) -> None:
    """Print a note to stderr."""
    typer.echo(message, err=True)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Turn our own exceptions into a message and the exit status that the contract gives them."""
    try:
        yield
    except InvalidInput as error:
        say(f"error: {error}")
        raise typer.Exit(2) from error
    except PuregridError as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        say("stopped; all committed units are kept. Run the same command again to continue.")
        raise typer.Exit(130) from error


def open_sweep(path: Path, overrides: list[str] | None, store: str) -> tuple[Sweep, Store]:
    """A sweep file or bundled sweep with its overrides, and the store, which must be there or creatable."""
    from workflows.assets.bundled import find_sweep
    from workflows.grid.load import load_sweep
    from workflows.store import Store

    loaded, opened = load_sweep(find_sweep(path), overrides or ()), Store(store)
    opened.files.check()
    return loaded, opened
