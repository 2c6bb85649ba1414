"""``puregrid schema`` and ``init``: what helps to write a first sweep file."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from defense.errors import InvalidInput
from defense.files import path_of, writable
from workflows.cli.base import errors, say, tell
from workflows.cli.output import is_terminal

__all__ = ["init", "schema"]


def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The sweep file to write; none is overwritten.")] = (
        "sweep.yaml"
    ),
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="digits or cifar10.")] = None,
    classifier: Annotated[str | None, typer.Option(metavar="NAME", help="An architecture.")] = None,
    defence: Annotated[str | None, typer.Option(metavar="NAME", help="A purifier.")] = None,
    attack: Annotated[str | None, typer.Option(metavar="NAME", help="An attack.")] = None,
) -> None:
    """Write a first sweep file that runs; on a terminal, ask for what is not given."""
    with errors():
        from workflows.writing.first_sweep import ATTACKS, DATASETS, DEFENCES, first_sweep

        path = Path(path_of(file, "the sweep file", where=file))
        if os.path.lexists(path):
            raise InvalidInput("it is there already, and no file is overwritten: name another.", where=file)
        writable(file, "the sweep file", where=file)
        asks = is_terminal(sys.stdin) and is_terminal(sys.stderr)
        dataset = dataset or _asked(asks, "data set", list(DATASETS))
        classifier = classifier or (
            _asked(asks, "classifier", [DATASETS[dataset][0]]) if dataset in DATASETS else None
        )
        defence = defence or _asked(asks, "defence", ["diffpure", *(name for name in DEFENCES if name != "diffpure")])
        attack = attack or _asked(asks, "attack", list(ATTACKS))
        text = first_sweep(path.stem, dataset=dataset, classifier=classifier, defence=defence, attack=attack)
        path.write_text(text, encoding="utf-8")
        say(f"written to {file}. See what it would compute: puregrid plan {file}")


def _asked(asks: bool, what: str, choices: list[str]) -> str:
    """One of some choices, the first by default; any other name is taken too, and judged where it is used."""
    if not asks:
        return choices[0]
    shown = f" ({', '.join(choices)})" if len(choices) > 1 else ""
    answer: str = typer.prompt(f"{what}{shown}", default=choices[0], err=True)
    return answer.strip()


def schema(
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write it to this file instead of to stdout.")
    ] = None,
) -> None:
    """Print the JSON Schema of sweep files, with which editors complete and check them."""
    with errors():
        from workflows.writing.schema import COMMENT, sweep_schema

        text = json.dumps(sweep_schema(), indent=1)
        if out is None:
            tell(text)
            return
        writable(out, "the schema", where="--out")
        Path(out).write_text(text + "\n", encoding="utf-8")
        say(f"written to {out}. First line of a sweep file beside it: {COMMENT.format(Path(out).name)}")
