"""What the commands share: their options, how they load a sweep, and what becomes of an error."""

from __future__ import annotations

import contextlib
import errno
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from defense.bounds import MOST_WORKERS
from defense.errors import InvalidInput, PuregridError
from defense.redaction import redacted
from workflows.cli.output import OutputLost, say, tell

if TYPE_CHECKING:
    from workflows.grid.load import Sweep
    from workflows.store import Store

__all__ = [
    "RUN_HELP",
    "Address",
    "AsJson",
    "GpusPerWorker",
    "NoPlugins",
    "Overrides",
    "StoreUri",
    "SweepFile",
    "Workers",
    "complete_sweep",
    "errors",
    "open_sweep",
    "report_command",
    "say",
    "tell",
]


def complete_sweep(incomplete: str) -> list[str]:
    """Return bundled sweeps, and sweep files and folders on disk, that begin so, for the completion of a shell."""
    from workflows.assets.bundled import bundled_sweeps

    here = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    found = [f"{path}/" if path.is_dir() else str(path) for path in sorted(here.glob("*")) if path.name[0] != "."]
    files = [name for name in found if name.endswith(("/", ".yaml", ".yml"))]
    return [name for name in (*bundled_sweeps(), *files) if name.startswith(incomplete)]


SweepFile = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP",
        help="The sweep file, or a bundled sweep's name (`puregrid list sweeps`).",
        autocompletion=complete_sweep,
    ),
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
NoPlugins = Annotated[
    bool,
    typer.Option(
        "--no-plugins",
        help="Import no module that the file names: for the files of strangers. Such a name is then refused.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RUN_HELP = (
    "SWEEP.yaml (in --store), SWEEP.yaml@STORE, a store, a file that promote wrote, mlflow:ALIAS or mlflow:RUN_ID."
)


_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM}
"""What a disk or its owner says no to; of a store, :class:`workflows.store.StoreUnavailable` says more."""


@contextlib.contextmanager
def errors(*, plugins: bool = True) -> Iterator[None]:
    """Turn our own exceptions into a message and the exit status that the contract gives them.

    Arguments:
        plugins: Whether ``module:attribute`` may be imported inside.
    """
    try:
        with contextlib.ExitStack() as stack:
            if not plugins:
                from defense.registry import no_plugins

                stack.enter_context(no_plugins())
            yield
    except OutputLost as error:
        if not error.quiet:
            say(f"error: {error}")
        raise typer.Exit(error.status) from error
    except InvalidInput as error:
        say(f"error: {error}")
        raise typer.Exit(2) from error
    except PuregridError as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        say(f"error: {error}. Make room, or see to the rights, and run the same command again.")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        say("stopped; all committed units are kept. Run the same command again to continue.")
        raise typer.Exit(130) from error


def open_sweep(path: str, overrides: list[str] | None, store: str, *, writes: bool = False) -> tuple[Sweep, Store]:
    """A sweep file or bundled sweep with its overrides, and the store, which must be there or creatable."""
    from workflows.assets.bundled import find_sweep
    from workflows.grid.load import load_sweep
    from workflows.store import Store

    loaded, opened = load_sweep(find_sweep(path), overrides or ()), Store(store)
    opened.files.check()
    if writes:
        opened.files.check_writable()
    if loaded.asks_baseline:
        from workflows.regression.baselines import referenced

        loaded = referenced(loaded)
    if loaded.converges:
        from workflows.results.convergence import extended

        loaded = extended(loaded, opened)
    return loaded, opened


def report_command(sweep: str, store: str, overrides: list[str] | None = None) -> str:
    """Return the commands that compute a sweep and write its report, without the password of a URI."""
    shared = f" {shlex.quote(sweep)} --store {shlex.quote(redacted(store))}"
    shared += "".join(f" --set {shlex.quote(setting)}" for setting in overrides or ())
    return f"puregrid run{shared} && puregrid report{shared}"
