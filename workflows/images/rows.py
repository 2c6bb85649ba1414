"""Rows of images across the cells of a sweep, with what each cell is: for everything that no page shows.

A condition is ``NAME=VALUE``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``. Conditions on what a cell is (``defence``,
``attack``, ``eps``, ...) are looked at before any row is read.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from defense.errors import InvalidInput, nearest
from tasks.attacks.budgets import format_eps
from workflows.grid.load import Cell
from workflows.results.reader import Results

__all__ = ["Condition", "flat_rows", "image_rows", "markdown_rows"]

_CELL = ("cell", "dataset", "classifier", "defence", "threat", "norm", "eps", "seed")

_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Condition:
    """A condition on a column; a value that is no number is compared as text."""

    name: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read ``right<0.5``.

        Raises:
            InvalidInput: It is no condition.
        """
        found = re.fullmatch(r"\s*(\w+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", text)
        if found is None:
            raise InvalidInput(
                f"{text!r} is no condition: write NAME=VALUE, or with one of != < <= > >=, such as 'right<0.5'.",
                where="--where",
            )
        return cls(*found.groups())

    def holds(self, values: pd.Series) -> pd.Series:
        """Return for each value whether the condition holds; a missing value meets none but ``!=``."""
        compare, wanted = _SIGNS[self.sign], _number(self.value)
        if pd.api.types.is_bool_dtype(values):
            return pd.Series(compare(values.map({True: "true", False: "false"}), self.value.lower()))
        if wanted is not None and pd.api.types.is_numeric_dtype(values):
            # Budgets that a user writes as 8/255 are equal to those of a spec up to rounding.
            near = np.isclose(values.astype(float), wanted, rtol=0, atol=1e-9)
            exact = {"=": near, "!=": ~near, "<=": near | (values < wanted), ">=": near | (values > wanted)}
            return pd.Series(exact.get(self.sign, compare(values, wanted)), index=values.index)
        return pd.Series(compare(values.astype(str), self.value), index=values.index)


def _number(text: str) -> float | None:
    over = text.split("/")
    try:
        return float(over[0]) / float(over[1]) if len(over) == 2 else float(text)
    except (ValueError, ZeroDivisionError):
        return None


def image_rows(
    results: Results, conditions: Sequence[Condition], stage: str = "judged", cells: Sequence[Cell] | None = None
) -> pd.DataFrame:
    """Return one row per image and cell; empty if none is committed or meets the conditions.

    Columns: ``cell`` and what the cell is, then those of the stage's rows (:data:`tasks.stages.ROW_SCHEMAS`), and
    behind ``label`` the share ``right`` of right draws, or of a certificate whether it is right.

    Arguments:
        results: The results.
        conditions: All of them must hold.
        stage: One of :data:`STAGES`.
        cells: Cells of the sweep; by default all.

    Raises:
        InvalidInput: A condition is on a column that no row has.
    """
    parts, known = [], set(_CELL)
    of_cell = [condition for condition in conditions if condition.name in _CELL]
    of_rows = [condition for condition in conditions if condition.name not in _CELL]
    for cell in results.sweep.cells if cells is None else cells:
        identity = _identity(results, cell)
        head = pd.DataFrame([identity])
        if not all(bool(condition.holds(head[condition.name]).all()) for condition in of_cell):
            continue
        rows = _rows(results, cell, stage)
        if rows.empty:
            continue
        frame = pd.concat([pd.DataFrame([identity] * len(rows)), rows.reset_index(drop=True)], axis=1)
        known |= set(map(str, frame.columns))
        kept = pd.Series(True, index=frame.index)
        for condition in of_rows:
            kept &= condition.holds(frame[condition.name]) if condition.name in frame else False
        parts.append(frame[kept])
    for condition in of_rows:
        if parts and condition.name not in known:
            raise InvalidInput(
                f"no row has a column {condition.name!r}; {nearest(condition.name, sorted(known))}", where="--where"
            )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(_CELL))


def _identity(results: Results, cell: Cell) -> dict[str, Any]:
    labels = results.sweep.labels[cell.id]
    return {
        "cell": cell.id,
        **{name: labels[name] for name in ("dataset", "classifier", "defence")},
        "threat": labels.get("corruption") or labels.get("certificate") or labels.get("attack") or "clean",
        "norm": "" if cell.attack is None else cell.attack.norm,
        "eps": 0.0 if cell.attack is None else cell.attack.eps,
        "seed": cell.seed,
    }


def _rows(results: Results, cell: Cell, stage: str) -> pd.DataFrame:
    if stage == "attack":
        return results.attack_rows(cell)
    if stage == "quality":
        return results.quality_rows(cell)
    rows = results.rows(cell)
    if rows.empty:
        return rows
    certified = cell.certificate is not None
    right = (rows["prediction"] == rows["label"]).astype(float) if certified else results.correct(cell).mean(1)
    rows = rows.copy()
    rows.insert(list(rows).index("label") + 1, "right", right)
    return rows


def flat_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows whose lists are texts, ``[1, 2]``, for formats that know no lists."""
    flat = frame.copy()
    for name in frame:
        if frame[name].map(lambda value: isinstance(value, np.ndarray)).any():
            flat[name] = frame[name].map(lambda value: json.dumps(np.asarray(value).tolist(), default=str))
    return flat


def markdown_rows(frame: pd.DataFrame) -> str:
    """Return rows as a Markdown table; lists as they are in JSON."""

    def said(name: str, value: Any) -> str:
        if isinstance(value, np.ndarray):
            return "[" + ", ".join(f"{part:.4g}" for part in value.tolist()) + "]"
        if name == "eps":
            return format_eps(value)
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    lines = [f"| {' | '.join(frame.columns)} |", f"|{' :-- |' * len(frame.columns)}"]
    for values in frame.itertuples(index=False):
        lines.append(f"| {' | '.join(said(str(name), value) for name, value in zip(frame, values, strict=True))} |")
    return "\n".join(lines) + "\n"
