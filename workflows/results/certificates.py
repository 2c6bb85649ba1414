"""Certificates as frames: by sigma, by radius, and the upper envelope over sigma; from committed rows alone."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from defense.certify import ABSTAIN, certified_accuracy, dataset_bound
from defense.spec import digest
from workflows.grid.load import Cell
from workflows.results.reader import Results
from workflows.statistics.proportions import proportion

__all__ = ["RHO", "certified_curves", "certified_frame", "envelope_frame", "family", "radii_of"]

RHO = 0.001
"""Error probability of the bound of a whole data set."""

_IDENTITY = ("dataset", "classifier", "defence")
_WAY = [
    "dataset",
    "classifier",
    "family",
    "family_id",
    "base",
    "votes",
    "n",
    "alpha",
    "rule",
    "guarantee",
    "seed",
    "images",
]


def radii_of(results: Results) -> tuple[float, ...]:
    """Return the radii of the tables: even steps from 0, below the largest radius that a certificate can have."""
    top = max(cell.certificate.ceiling for cell in results.sweep.certified if cell.certificate is not None)
    step = next((step for step in (0.05, 0.1, 0.25, 0.5, 1.0) if top / step <= 10), 2.0)
    return tuple(round(step * i, 2) for i in range(math.floor(top / step) + 1))


def certified_frame(results: Results) -> pd.DataFrame:
    """Return one row per certificate cell with committed rows.

    Columns: ``cell``, ``dataset``, ``classifier``, ``defence``, ``family`` (the defence without its t*), ``base``,
    ``votes``, ``seed``; ``sigma``, ``n``, ``n0``, ``alpha``, ``rule``, ``guarantee``, ``ceiling``; ``images`` of
    ``planned``; ``natural`` (right and not abstaining) with ``natural_low``, ``natural_high`` and the data-set
    ``bound``; ``acr``; ``abstained``, a share; ``samples``, the mean of estimation samples drawn; ``t_star`` and
    ``sigma_eq`` of the purifier.
    """
    lines = []
    for identity, cell, rows in _certified(results):
        right, radius = _right(rows), rows["radius"].to_numpy()
        natural = proportion(right.astype(np.float64))
        lines.append(
            {
                **identity,
                "images": len(rows),
                "planned": cell.images.count,
                "natural": natural.value,
                "natural_low": natural.low,
                "natural_high": natural.high,
                "bound": dataset_bound(natural.value, len(rows), identity["alpha"], RHO),
                "acr": float((radius * right).mean()),
                "abstained": float((rows["prediction"] == ABSTAIN).mean()),
                "samples": float(rows["samples"].mean()),
            }
        )
    return pd.DataFrame(lines)


def certified_curves(results: Results) -> pd.DataFrame:
    """Return one row per certificate cell and radius: certified ``accuracy`` with interval and data-set ``bound``."""
    lines = []
    radii = radii_of(results) if results.sweep.certified else ()
    for identity, _, rows in _certified(results):
        right, radius = _right(rows), rows["radius"].to_numpy()
        for at, share in zip(radii, certified_accuracy(right, radius, radii), strict=True):
            interval = proportion((right & (radius >= at)).astype(np.float64))
            lines.append(
                {
                    **identity,
                    "images": len(rows),
                    "radius": at,
                    "accuracy": float(share),
                    "low": interval.low,
                    "high": interval.high,
                    "bound": dataset_bound(float(share), len(rows), identity["alpha"], RHO),
                }
            )
    return pd.DataFrame(lines)


def envelope_frame(curves: pd.DataFrame) -> pd.DataFrame:
    """The best certified accuracy at each radius over sigma, where certificates that differ in sigma alone exist.

    Arguments:
        curves: From :func:`certified_curves`.

    Returns:
        Columns of the way it was certified, ``radius``, ``accuracy``, ``sigma`` (the smallest of several best).
    """
    lines: list[dict[str, Any]] = []
    for key, group in curves.groupby(_WAY, sort=False):
        if group["sigma"].nunique() < 2:
            continue
        for radius, at_radius in group.groupby("radius"):
            best = at_radius.sort_values(["accuracy", "sigma"], ascending=[False, True]).iloc[0]
            way = dict(zip(_WAY, key, strict=True))
            lines.append({**way, "radius": radius, "accuracy": best["accuracy"], "sigma": best["sigma"]})
    return pd.DataFrame(lines)


def _certified(results: Results) -> Iterator[tuple[dict[str, Any], Cell, pd.DataFrame]]:
    """Yield certificate cells with committed rows: identity, cell, rows."""
    for cell in results.sweep.certified:
        rows = results.rows(cell)
        if not rows.empty:
            yield _identity(results, cell), cell, rows


def _right(rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    # An abstention is class -1, which is no label.
    right: npt.NDArray[np.bool_] = (rows["prediction"] == rows["label"]).to_numpy()
    return right


def _identity(results: Results, cell: Cell) -> dict[str, Any]:
    certificate, smoothed = cell.certificate, cell.certify.smoothed
    assert certificate is not None
    name, family_id = family(cell)
    labels, level = results.sweep.labels[cell.id], smoothed.purifier.noise_level
    return {
        "cell": cell.id,
        **{name: labels[name] for name in _IDENTITY},
        "family": name,
        "family_id": family_id,
        "base": smoothed.base,
        "votes": smoothed.votes,
        "seed": cell.seed,
        "sigma": certificate.sigma,
        "n": certificate.n,
        "n0": certificate.n0,
        "alpha": certificate.alpha,
        "rule": certificate.rule,
        "guarantee": certificate.guarantee,
        "ceiling": certificate.ceiling,
        "t_star": None if level is None else level.t_star,
        "sigma_eq": None if level is None else level.sigma_eq,
    }


def family(cell: Cell) -> tuple[str, str]:
    """Return name and id of a defence without its t*, which follows sigma.

    It is what certificates at several sigma have in common.
    """
    purifier = cell.certify.smoothed.purifier
    if cell.certify.smoothed.base != "denoised":
        return cell.defence.label(), purifier.id
    identity = purifier.identity()
    steps = identity.get("steps")
    free = {"t_star", "schedule"} | ({"steps"} if steps == identity["t_star"] else set())
    rest = {name: value for name, value in identity.items() if name not in free}
    several = f" in {steps} steps" if "steps" in rest else ""
    return f"{purifier.purifier}{several}", digest(json.dumps(rest, sort_keys=True))
