"""Tables as names of columns and lines of text, rounded for people: robustness, several attacks, ladders, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

__all__ = ["TEXT_COLUMNS", "Grid", "combined_grid", "cost_grid", "format_eps", "ladder_grid", "robustness_grid"]


Grid = tuple[list[str], list[list[str]]]


def format_eps(eps: float) -> str:
    """``8/255`` where that is what was meant, else a short decimal; ``0`` for clean."""
    of_255 = eps * 255
    if eps == 0:
        return "0"
    if abs(of_255 - round(of_255)) < 1e-6 and round(of_255 / 255, 3) != eps:
        return f"{round(of_255)}/255"
    return f"{eps:.4g}"


def robustness_grid(frame: pd.DataFrame) -> Grid:
    """Column names and lines of the robustness table, rounded for people."""
    names = ["classifier", "defence", "attack", "eps", "images", "draws", "Avg", "worst", "vote"]
    if bool((frame["draws"] > 1).any()):
        names.append("draw 0")
    if bool((frame["resubmissions"] != frame["draws"]).any()):
        names.insert(names.index("worst"), "M")
    for extra in ("seed", "dataset"):
        if frame[extra].nunique() > 1:
            names.insert(0, extra)
    answers = bool((frame["aggregation"] != "single").any())
    lines = []
    for row in frame.to_dict("records"):
        complete = row["images"] == row["planned"]
        shown = {
            "classifier": row["classifier"],
            "defence": row["defence"],
            "attack": row["attack"],
            "eps": format_eps(row["eps"]),
            "images": f"{row['images']}" if complete else f"{row['images']} of {row['planned']}",
            "draws": str(row["draws"]),
            "Avg": _percent(row, "avg", interval=True),
            "worst": _percent(row, "worst", interval=row["draws"] > 1),
            "vote": _percent(row, "vote", interval=row["draws"] > 1),
            "draw 0": _percent(row, "fixed", interval=row["draws"] > 1),
            "M": str(row["resubmissions"]),
            "seed": str(row["seed"]),
            "dataset": row["dataset"],
            "answer": f"{_percent(row, 'accuracy', interval=True)} {row['aggregation']}",
        }
        lines.append([str(shown[name]) for name in [*names, *["answer"] * answers]])
    return [*names, *["answer"] * answers], lines


def combined_grid(frame: pd.DataFrame) -> Grid:
    """Column names and lines of the table of several attacks together, rounded for people."""
    names = ["classifier", "defence", "norm", "eps", "attacks", "images", "draws"]
    names = [name for name in ("dataset", "seed") if frame[name].nunique() > 1] + names
    shown = {
        "lowest": "lowest",
        "selected": "selected",
        "fixed-AA (mean)": "fixed_aa_mean",
        "fixed-AA (any)": "fixed_aa_any",
    }
    lines = [
        [
            *(format_eps(row["eps"]) if name == "eps" else str(row[name]) for name in names),
            *(_percent(row, column, interval=True) for column in shown.values()),
        ]
        for row in frame.to_dict("records")
    ]
    return [*names, *shown], lines


def ladder_grid(frame: pd.DataFrame) -> Grid:
    """Column names and lines of the table of ladders, rounded for people."""
    names = ["classifier", "defence", "norm", "eps", "rung", "attack", "images"]
    names = [name for name in ("dataset", "seed") if frame[name].nunique() > 1] + names
    lines = [
        [
            *(format_eps(row["eps"]) if name == "eps" else str(row[name]) for name in names),
            _percent(row, "alone", interval=True),
            _percent(row, "so_far", interval=False),
            str(row["submitted"]),
            str(row["skipped"]),
        ]
        for row in frame.to_dict("records")
    ]
    return [*names, "alone", "so far", "submitted", "skipped"], lines


def _percent(row: Mapping[Any, Any], name: str, *, interval: bool) -> str:
    value = row.get(name)
    if not isinstance(value, float) or math.isnan(value):
        return "-"
    text = f"{100 * value:.1f}"
    return (
        f"{text} [{100 * float(str(row[name + '_low'])):.1f}, {100 * float(str(row[name + '_high'])):.1f}]"
        if interval
        else text
    )


def cost_grid(frame: pd.DataFrame) -> Grid:
    """Column names and lines of the cost table."""
    names = [
        "stage",
        "classifier",
        "defence",
        "attack",
        "eps",
        "images",
        "denoiser evals",
        "classifier evals",
        "seconds",
        "images/s",
    ]
    lines = [
        [
            row["stage"],
            row["classifier"],
            row["defence"] or "(static)",
            row["attack"],
            format_eps(row["eps"]),
            str(row["images"]),
            f"{row['denoiser_evaluations']:,}",
            f"{row['classifier_evaluations']:,}",
            f"{row['seconds']:.1f}",
            f"{row['images_per_second']:.1f}"
            if row["images_per_second"] == row["images_per_second"] and row["images_per_second"]
            else "-",
        ]
        for row in frame.to_dict("records")
    ]
    return names, lines


TEXT_COLUMNS = {
    "stage",
    "dataset",
    "classifier",
    "defence",
    "attack",
    "norm",
    "answer",
    "base",
    "guarantee",
    "corruption",
    "origin",
    "threat",
    "pair",
    "table",
    "certainty",
    "measured as",
    "differs",
}
