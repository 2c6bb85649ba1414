"""``puregrid probe``: is a defence what it seems?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defense.errors import InvalidInput
from workflows.cli.base import AsJson, NoPlugins, Overrides, StoreUri, errors, open_sweep, say, tell

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["probe"]


def probe(
    defence: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP|module:Attribute|{ENTRY}",
            help="A sweep file or bundled sweep; a purifier, classifier or config of yours; or an entry of a sweep "
            "file, like '{purifier: jpeg, quality: 60}'.",
        ),
    ],
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME|{ENTRY}", help="Data set of the images [digits].")
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(metavar="NAME|module:Attribute|{ENTRY}", help="The classifier behind a purifier, probed too."),
    ] = None,
    store: StoreUri = "results",
    set_: Overrides = None,
    no_plugins: NoPlugins = False,
    json_: AsJson = False,
) -> None:
    """Compare a defence's gradient with its function, its answers with themselves, its claims with what it does.

    Ends with status 1 if a check fails. Probes of a sweep are committed to the store and not made again.
    """
    with errors(plugins=not no_plugins):
        import sys
        from pathlib import Path

        if "" not in sys.path:
            sys.path.insert(0, "")  # modules of the working directory, as for `python -m`
        named = defence.lstrip().startswith("{") or (":" in defence and not Path(defence).exists())
        if not named:
            if dataset is not None or classifier is not None:
                where = "--dataset" if dataset is not None else "--classifier"
                raise InvalidInput("a sweep has data sets and classifiers of its own: leave it out.", where=where)
            failed = _of_sweep(defence, set_, store, json_)
        else:
            failed = _of_one(defence, dataset, classifier, json_)
        if failed:
            raise typer.Exit(1)


def _of_one(text: str, dataset: str | None, classifier: str | None, as_json: bool) -> bool:
    from tasks.probing import probe

    behind = None if classifier is None else _named(classifier, "--classifier")
    images = None if dataset is None else _named(dataset, "--dataset")
    found = probe(_named(text, "DEFENCE"), behind, dataset=images)
    tell(json.dumps(found.to_json(), indent=1) if as_json else str(found))
    return not found.passed


def _named(text: str, where: str) -> Any:
    """Return the mapping of an entry, what ``module:attribute`` names, or a name as it is."""
    from tasks.probing import imported
    from workflows.documents.parse import NotReadable, parse

    if not text.lstrip().startswith("{"):
        return imported(text) if ":" in text else text
    try:
        return parse(text).data
    except NotReadable as error:
        raise InvalidInput(f"{text!r} is no YAML mapping: {error.problem}.", where=where) from error


def _of_sweep(path: str, overrides: list[str] | None, store: str, as_json: bool) -> bool:
    loaded, opened = open_sweep(path, [*(overrides or ()), "probe=true"], store, writes=True)
    from workflows.analysis import Analysis
    from workflows.engine.worker import UnitWorker
    from workflows.formats import render
    from workflows.planning.plan import make_plan
    from workflows.results.reader import Results

    worker = UnitWorker(opened.uri, "cpu")
    for stage in make_plan(loaded).stages:
        for chunk in stage.chunks if stage.spec.stage == "probe" else ():
            receipt = worker.run(stage.spec, stage.id, chunk, {})
            opened.put_spec(stage.spec)
            say(f"{stage.spec.label()}: " + (f"{receipt.seconds:.1f} s" if receipt.computed else "in the store"))
    analysis = Analysis(Results(opened, loaded), audit=False)
    if as_json:
        tell(json.dumps(_plain(analysis.probes), indent=1))
    else:
        for name in ("probe", "probe_gradients", "mechanism"):
            if any(table.name == name for table in analysis.tables):
                tell(render(analysis, "text", only=name), end="")
    return bool((analysis.probes["verdict"] == "fail").any())


def _plain(frame: pd.DataFrame) -> list[dict[str, object]]:
    """Return rows as plain JSON values, null for none."""
    rows: list[dict[str, object]] = json.loads(frame.to_json(orient="records"))
    return rows
