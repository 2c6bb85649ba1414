"""What every kind of threat leaves of each classifier and defence, from the frames of the analysis."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from workflows.results.reader import Results
from workflows.tables.leaderboard import KEY
from workflows.tables.table import missing, records

__all__ = ["leaderboard_frame", "nearest_radius"]

_ENDS = ("", "_low", "_high")
_Key = tuple[Any, ...]


def leaderboard_frame(
    results: Results, robustness: pd.DataFrame, curves: pd.DataFrame, corruptions: pd.DataFrame
) -> pd.DataFrame:
    r"""Return a line for each data set, seed, classifier, defence, norm and budget; empty where nothing is judged.

    With :math:`a_k` the Avg under attack k of the line's budget, ``static`` is :math:`\min_k a_k` over attacks on the
    bare classifier and ``adaptive`` over all others (Fixed-AA, mean; see :mod:`workflows.statistics.combined`), each
    with the interval and the name of that attack; ``worst`` likewise of Wor-M. On the bare classifier every attack
    knows all that there is to know, and counts as both. ``certified`` is the best over sigma at ``radius``,
    ``corruptions`` the mean over the benchmark's, ``evaluations`` those of all networks for one answer.

    Defences whose draws stop have no line: their Avg is not known. Lines are in the order of ``adaptive``, ``static``
    and ``clean``, from the best; what is missing comes last.
    """
    attacked: dict[_Key, dict[tuple[str | None, float], list[dict[str, Any]]]] = {}
    clean: dict[_Key, dict[str, Any]] = {}
    for row in records(robustness):
        if not missing(row.get("until")):  # its Avg is not known
            continue
        key = tuple(row[name] for name in KEY)
        budgets = attacked.setdefault(key, {})
        if missing(row.get("avg")):
            continue
        if row["attack"] == "clean":
            clean.setdefault(key, row)
        else:
            budgets.setdefault((row["norm"], row["eps"]), []).append(row)
    certified, corrupted = _certified(curves), _corrupted(corruptions)
    cost = _evaluations(results)
    lines = []
    for key in dict.fromkeys([*attacked, *certified, *corrupted]):
        beside = {
            **_reading("clean", clean.get(key), "avg"),
            **_cell("clean", clean.get(key)),
            **certified.get(key, dict.fromkeys(_CERTIFIED)),
            **corrupted.get(key, dict.fromkeys(_CORRUPTED)),
            "evaluations": cost.get(key),
        }
        for (norm, eps), rows in (attacked.get(key) or {(None, 0.0): []}).items():
            judged = [*rows, *filter(None, [clean.get(key)])]
            line = {**dict(zip(KEY, key, strict=True)), "norm": norm, "eps": eps, **_images(judged), **beside}
            line["bare"] = any(row["purifier"] == "none" for row in judged)
            cells = [row["cell"] for row in judged]
            lines.append({**line, **_attacks(rows), **_guarantee(_lowest(judged, "avg"), robustness), "cells": cells})
    frame = pd.DataFrame(lines)
    if frame.empty or not frame[["clean", "static", "adaptive", "certified", "corruptions"]].notna().any(axis=None):
        return pd.DataFrame()
    return _ordered(frame.astype({"images": "Int64", "planned": "Int64"}))


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    names = ["dataset", "seed", "classifier", "norm"]
    place = {name: {value: i for i, value in enumerate(dict.fromkeys(frame[name]))} for name in names}
    keys = pd.DataFrame({name: [place[name][value] for value in frame[name]] for name in names})
    keys["eps"] = frame["eps"]
    best = ["adaptive", "static", "clean"]
    keys[best] = -frame[best].astype(float)
    return frame.loc[keys.sort_values([*names, "eps", *best], kind="stable", na_position="last").index].reset_index(
        drop=True
    )


def _reading(name: str, row: dict[str, Any] | None, of: str) -> dict[str, Any]:
    """A number of a row with its ends, under another name."""
    return {f"{name}{end}": None if row is None else row.get(f"{of}{end}") for end in _ENDS}


def _cell(name: str, row: dict[str, Any] | None) -> dict[str, Any]:
    """The cell that a number is of, by which findings are marked beside it."""
    return {f"{name}_cell": None if row is None else row["cell"]}


def _lowest(rows: Iterable[dict[str, Any]], of: str) -> dict[str, Any] | None:
    return min((row for row in rows if not missing(row.get(of))), key=lambda row: row[of], default=None)


def _attacks(rows: list[dict[str, Any]]) -> dict[str, Any]:
    # A purifier that does nothing leaves no secret: the attack on the bare classifier is the adaptive one too.
    kinds = {
        "static": [row for row in rows if row["static"]],
        "adaptive": [row for row in rows if not row["static"] or row["purifier"] == "none"],
    }
    found: dict[str, Any] = {}
    for kind, members in kinds.items():
        row = _lowest(members, "avg")
        found |= {**_reading(kind, row, "avg"), f"{kind}_attack": None if row is None else row["attack"]}
        found |= _cell(kind, row)
    strongest, worst = _lowest(rows, "avg"), _lowest(rows, "worst")
    found |= {"attack": None if strongest is None else strongest["attack"], **_reading("worst", worst, "worst")}
    found |= _cell("worst", worst)
    found["resubmissions"] = None if worst is None else worst["resubmissions"]
    return found


def _guarantee(row: dict[str, Any] | None, robustness: pd.DataFrame) -> dict[str, Any]:
    """What the interval of the strongest attack promises, in a sweep in which cells may stop."""
    return {name: "" if row is None else row[name] for name in ("guarantee", "stopped") if name in robustness}


def _images(rows: list[dict[str, Any]]) -> dict[str, Any]:
    fewest = min(rows, key=lambda row: row["images"], default=None)
    return {name: None if fewest is None else fewest[name] for name in ("images", "planned")}


_CERTIFIED = ("certified", "certified_low", "certified_high", "radius", "sigma")
_CORRUPTED = ("corruptions", "corruptions_low", "corruptions_high", "origin")


def nearest_radius(curves: pd.DataFrame) -> float:
    """Return the certified radius of a board: 0.25, or that of the curves which is nearest to it."""
    return float(min(curves["radius"].unique(), key=lambda r: (r <= 0, abs(r - 0.25))))


def _certified(curves: pd.DataFrame) -> dict[_Key, dict[str, Any]]:
    """The best sigma at one radius. A defence whose t* follows sigma goes by its name without t*."""
    if curves.empty:
        return {}
    radius = nearest_radius(curves)
    best: dict[_Key, dict[str, Any]] = {}
    for row in records(curves[curves["radius"] == radius]):
        name = row["family"] if row["base"] == "denoised" else row["defence"]
        key = (row["dataset"], row["seed"], row["classifier"], name)
        if key not in best or row["accuracy"] > best[key]["certified"]:
            values = (row["accuracy"], row["low"], row["high"], radius, row["sigma"])
            best[key] = dict(zip(_CERTIFIED, values, strict=True))
    return best


def _corrupted(corruptions: pd.DataFrame) -> dict[_Key, dict[str, Any]]:
    """The mean over corruptions, on the official arrays where both are there."""
    if corruptions.empty:
        return {}
    overall = corruptions[(corruptions["corruption"] == "all") & (corruptions["severity"] == "all")]
    found: dict[_Key, dict[str, Any]] = {}
    for row in records(overall):
        key = tuple(row[name] for name in KEY)
        if key not in found or row["origin"] == "official":
            values = (row["accuracy"], row["low"], row["high"], row["origin"])
            found[key] = dict(zip(_CORRUPTED, values, strict=True))
    return found


def _evaluations(results: Results) -> dict[_Key, float]:
    """Network evaluations for one answer of each defence, from the first of its cells that has rows."""
    found: dict[_Key, float] = {}
    for cell in results.sweep.cells:
        labels = results.sweep.labels[cell.id]
        key = (labels["dataset"], cell.seed, labels["classifier"], labels["defence"])
        if cell.certificate is None and key not in found:
            evaluations = results.evaluations(cell) / results.draws(cell)
            if evaluations == evaluations:
                found[key] = evaluations
    return found
