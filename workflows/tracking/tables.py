"""Tables of a run, in the form of ``mlflow.log_table``: MLflow shows them, those of several runs side by side.

``tables/accuracy.json`` has every accuracy with its interval, ``tables/images.json`` every image under every attack:
its class, the answer of each draw, which rung of a ladder broke it. They are plain artifacts, written whole, where
``log_table`` itself would read the old one and append to it; ``mlflow.load_table`` finds them by :data:`LISTED`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tasks.attacks import LadderConfig
from tasks.attacks.budgets import format_eps
from workflows.grid.load import Cell
from workflows.results.reader import Results

__all__ = ["ACCURACY", "IMAGES", "LISTED", "MOST_LINES", "accuracy_table", "images_table", "listed", "outcome_lines"]

ACCURACY = "tables/accuracy.json"
IMAGES = "tables/images.json"

LISTED = "mlflow.loggedArtifacts"
"""The tag by which MLflow knows which artifacts are tables."""

MOST_LINES = 200_000
"""Images x cells of a sweep whose images are logged, some 20 MB; those of others ``puregrid rows`` prints."""

READINGS = ("avg", "worst", "vote", "fixed", "accuracy")
_TOGETHER = ("lowest", "selected", "fixed_aa_mean", "fixed_aa_any")


def accuracy_table(rows: Iterable[Mapping[str, Any]], combined: Iterable[Mapping[str, Any]]) -> str:
    """Return a line for each attack, budget and reading of the draws: accuracy, interval, images, draws."""
    lines = []
    for row in rows:
        where = {"attack": row["attack"], "eps": format_eps(row["eps"])}
        lines += [_line(where, row, name) for name in READINGS if _known(row.get(name))]
    for row in combined:
        where = {"attack": f"{row['attacks']} attacks {row['norm']}", "eps": format_eps(row["eps"])}
        lines += [_line(where, row, name) for name in _TOGETHER if _known(row.get(name))]
    return _split(lines, ("attack", "eps", "reading", "accuracy", "low", "high", "images", "draws"))


def _line(where: Mapping[str, str], row: Mapping[str, Any], name: str) -> dict[str, Any]:
    values = {"accuracy": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
    return {**where, "reading": name, **values, "images": row["images"], "draws": row.get("draws")}


def _known(value: Any) -> bool:
    return isinstance(value, float) and value == value


def outcome_lines(results: Results, cells: Iterable[Cell]) -> int:
    """Return how many lines :func:`images_table` has of these cells."""
    return sum(results.images(cell) for cell in cells if cell.adversarial)


def images_table(results: Results, cells: Sequence[Cell]) -> str:
    """Return a line for each judged image of clean and attacked cells, in the order of the cells.

    ``answers`` are the classes that its draws answered, ``right`` the share of right ones, ``broken_by`` the first
    rung of a ladder that left no right draw, on those by which the ladder chose.
    """
    parts = []
    for cell in cells:
        if not cell.adversarial or (answers := results.answers(cell)) is None:
            continue
        attack = results.sweep.labels[cell.id].get("attack") or "clean"
        parts.append(
            pd.DataFrame(
                {
                    "image": answers.image_id,
                    "label": answers.label,
                    "attack": attack,
                    "eps": "0" if cell.attack is None else format_eps(cell.attack.eps),
                    "answers": [" ".join(map(str, draws)) for draws in answers.prediction.tolist()],
                    "right": answers.correct.mean(1).round(6),
                    "broken_by": _broken_by(results, cell, answers.image_id.tolist()),
                }
            )
        )
    columns = ("image", "label", "attack", "eps", "answers", "right", "broken_by")
    lines: list[Any] = pd.concat(parts).to_dict("records") if parts else []
    return _split(lines, columns)


def _broken_by(results: Results, cell: Cell, images: Sequence[int]) -> list[str]:
    source = cell.attack_stage
    if source is None or not isinstance(source.attack, LadderConfig):
        return [""] * len(images)
    names = [rung.label() for rung in source.attack.rungs]
    rows = results.attack_rows(cell)
    first: dict[int, str] = {}
    for image, rights in zip(rows["image_id"], rows["attack_rights"], strict=True):
        broken = np.flatnonzero(np.asarray(rights, dtype=np.float64) == 0)
        first[int(image)] = names[broken[0]] if len(broken) else ""
    return [first.get(image, "") for image in images]


def _split(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A table as ``pandas.read_json(orient="split")`` reads it."""
    data = [[_plain(line[name]) for name in columns] for line in lines]
    return json.dumps({"columns": list(columns), "data": data}, separators=(",", ":"))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def listed(paths: Iterable[str]) -> str:
    """Return the value of :data:`LISTED` for tables at these paths."""
    return json.dumps([{"path": path, "type": "table"} for path in paths])
