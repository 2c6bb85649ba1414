"""``puregrid train``, ``list`` and ``data``: what sweeps are made of."""

import json
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from defense.errors import InvalidInput
from defense.files import path_of
from workflows.cli.base import AsJson, NoPlugins, errors, say, tell
from workflows.cli.output import width

__all__ = ["data", "list_", "train"]


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="The training config.")],
    force: Annotated[
        bool, typer.Option("--force", help="Start again, even if the out folder holds this or another training.")
    ] = False,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="URI|on|off",
            help="MLflow tracking URI; on: SQLite in the out folder [$MLFLOW_TRACKING_URI, else off].",
        ),
    ] = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Train a network and write its weights with a card; run again to continue an interrupted training."""
    with errors(plugins=not no_plugins):
        import yaml

        from workflows.training import load_config
        from workflows.training import train as run_training
        from workflows.training.tracking import tracking_uri

        try:
            path_of(config, "the training config", where=config)
            loaded = load_config(Path(config))
            card = run_training(
                loaded,
                command=f"puregrid train {config}",
                force=force,
                mlflow=tracking_uri(mlflow, loaded.out),
                notify=say,
            )
        except InvalidInput as error:
            raise InvalidInput(error.message, where=error.where or config, keys=error.keys) from error
        tell(yaml.safe_dump(card, sort_keys=False, width=110), end="")


def _kinds(incomplete: str) -> list[str]:
    from workflows.assets.catalogue import kinds

    return [entry["name"] for entry in kinds() if entry["name"].startswith(incomplete)]


def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help="purifiers, attacks, datasets, ...; without it, list the kinds.",
            autocompletion=_kinds,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of them: what each of its fields is.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """List the names that a sweep file can use, the fields of one, and the bundled sweeps."""
    with errors():
        from workflows.assets.catalogue import catalogue, details, kinds

        if name is not None:
            entry = details(str(what), name)
            tell(json.dumps(entry, indent=1) if json_ else "\n".join(_detailed(entry)))
            return
        entries = kinds() if what is None else catalogue(what)
        if json_:
            tell(json.dumps(entries, indent=1))
        else:
            indent = max(len(entry["name"]) for entry in entries) + 2
            for entry in entries:
                tell(f"{entry['name']:<{indent}}{entry['summary']}")
                if entry["fields"]:
                    tell(f"{'':<{indent}}fields: {', '.join(entry['fields'])}")


def _detailed(entry: dict[str, Any]) -> list[str]:
    """The fields of an entry, each with its type, its default and what it means."""
    room = min(width() or 120, 120)
    lines = [f"{entry['name']}: {entry['summary']}"]
    for field in entry["fields"]:
        if isinstance(field, str):
            lines.append(f"  {field}")
            continue
        default = "must be given" if field["required"] else f"default {field['default']}" if field["default"] else ""
        lines += ["", f"  {field['name']}: {', '.join(filter(None, [field['type'], default]))}"]
        lines += textwrap.wrap(field["text"], room - 6, initial_indent="      ", subsequent_indent="      ")
    return lines


data = typer.Typer(help="Fetch or verify data sets.", no_args_is_help=True, rich_markup_mode=None)
Root = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Folder of the files [$PUREGRID_DATA; for lpips $PUREGRID_WEIGHTS]."),
]


def _given(root: str | None) -> Path | None:
    if root is None:
        return None
    path_of(root, "folder", where="--root")
    return Path(root)


@data.command()
def fetch(name: Annotated[str, typer.Argument(metavar="NAME")], root: Root = None) -> None:
    """Download cifar10, cifar100, cifar10-c, cifar100-c or the weights of lpips; nothing else downloads them."""
    with errors():
        from workflows.assets.datasets import fetch_dataset

        tell(fetch_dataset(name, _given(root)))


@data.command()
def verify(name: Annotated[str, typer.Argument(metavar="NAME")], root: Root = None) -> None:
    """Check that a data set is complete and undamaged; prints its digest."""
    with errors():
        from workflows.assets.datasets import verify_dataset

        tell(verify_dataset(name, _given(root)))
