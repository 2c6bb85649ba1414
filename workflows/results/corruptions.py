r"""Tables of accuracy under common corruptions, from one frame of per-image answers.

With :math:`a_{i,c,s}` the share of right draws on image i under corruption c at severity s:

* accuracy per severity: the mean over images; per corruption: over images and severities; overall: over the fifteen
  corruptions of the benchmark too. One minus the latter is the *mean corruption error (unnormalised)* of
  CIFAR-10-C papers.
* gain of a defence: the difference from another defence, by default none, on the same image, corruption and severity,
  averaged over images.
* mCE (Hendrycks and Dietterich, arXiv 1903.12261) is another measure, and means nothing without its baseline:

  .. math:: \frac{1}{15}\sum_c \frac{\sum_s E_{s,c}}{\sum_s E^\text{baseline}_{s,c}}

Images are the sample: each has one value, its mean over the severities and corruptions of the line; an image that is
corrupted 75 times is still one image. Accuracies have Wilson's interval, which is conservative for such means; gains
have that of :mod:`workflows.statistics.paired`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from defense.errors import InvalidInput, nearest
from tasks.corruptions import BENCHMARK, CORRUPTIONS, SEVERITIES
from workflows.statistics.paired import PairedDifference, paired_difference
from workflows.statistics.proportions import proportion

__all__ = ["COLUMNS", "accuracy_frame", "accuracy_table", "gain_frame", "gain_table", "mce_frame", "mce_table"]

Shares = dict[str, pd.DataFrame]
"""Shares of right draws of each defence: rows are corruptions and severities, columns images."""

Groups = Sequence[tuple[dict[str, Any], Shares]]
"""From ``Results.corrupted``: what each group is, and its answers."""

COLUMNS = ("defence", "corruption", "severity", "image_id", "correct")
_CELL = ["defence", "corruption", "severity"]
_LINE = [*_CELL, "accuracy", "low", "high", "images", "corruptions", "severities", "complete"]
_GAIN = [*_CELL, "over", "gain", "low", "high", "images", "corruptions", "severities", "complete"]
_ALL = "all"


def accuracy_frame(groups: Groups) -> pd.DataFrame:
    """Return :func:`accuracy_table` of every group with its identity; empty without groups."""
    return _stacked([accuracy_table(shares).assign(**identity) for identity, shares in groups])


def gain_frame(groups: Groups) -> pd.DataFrame:
    """:func:`gain_table` of every group with and without a defence, on what all of its defences were judged on."""
    return _stacked(
        [
            gain_table(_common(shares)).assign(**identity)
            for identity, shares in groups
            if "none" in shares and len(shares) > 1
        ]
    )


def mce_frame(groups: Groups, baseline: str) -> pd.DataFrame:
    """:func:`mce_table` of every group that has a baseline of its data set, seed and origin.

    Raises:
        InvalidInput: As :func:`mce_table`; or there is no such classifier among them.
    """
    bare = {
        (identity["dataset"], identity["seed"], identity["origin"]): shares["none"]
        for identity, shares in groups
        if identity["classifier"] == baseline and "none" in shares
    }
    if not bare:
        known = dict.fromkeys(str(identity["classifier"]) for identity, _ in groups)
        raise InvalidInput(
            f"no classifier {baseline!r} was judged under corruptions without a defence, so it is no baseline of an "
            f"mCE; there are {', '.join(known) or 'none'}."
        )
    frames = []
    for identity, shares in groups:
        undefended = bare.get((identity["dataset"], identity["seed"], identity["origin"]))
        if undefended is not None:
            error = 1 - undefended.mean(axis=1)
            frames.append(mce_table(shares, error.rename("error").reset_index(), baseline).assign(**identity))
    return _stacked(frames)


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _common(shares: Shares) -> Shares:
    """Return the corruptions, severities and images that all defences have."""
    first, *others = shares.values()
    index, columns = first.index, first.columns
    for other in others:
        index, columns = index.intersection(other.index), columns.intersection(other.columns)
    return {defence: values.loc[index.sort_values(), columns.sort_values()] for defence, values in shares.items()}


def accuracy_table(frame: pd.DataFrame | Shares) -> pd.DataFrame:
    """Return accuracy of every defence per severity, per corruption and overall.

    Arguments:
        frame: :data:`Shares`, or columns ``defence``, ``corruption``, ``severity`` (1 to 5), ``image_id`` and
            ``correct`` (share of right draws, in [0, 1]). Every defence has the same images in every cell of its own.

    Returns:
        A line each, in the benchmark's order: ``corruption`` and ``severity`` are ``all`` where the line averages
        over them, ``corruptions`` and ``severities`` say over how many, and ``complete`` whether it is all that the
        benchmark has. The overall line leaves out the four extra corruptions.

    Raises:
        InvalidInput: A column is missing, values are out of range, an image twice in a cell or not in all of them.
    """
    cells = _cells(frame)
    lines = [
        [defence, *line, accuracy.value, accuracy.low, accuracy.high, accuracy.n, *counts]
        for defence, cell in cells.items()
        for line, values, counts in _lines(cell)
        for accuracy in [proportion(values)]
    ]
    return pd.DataFrame(lines, columns=_LINE)


def gain_table(frame: pd.DataFrame | Shares, over: str = "none") -> pd.DataFrame:
    """Return the gain of every defence over one of them, on the same images.

    Arguments:
        frame: See :func:`accuracy_table`.
        over: The defence that the others are compared with, by default ``none``: no defence.

    Returns:
        A line each as in :func:`accuracy_table`, with ``gain`` in [-1, 1] and its paired 95 % interval.

    Raises:
        InvalidInput: As :func:`accuracy_table`; or ``over`` is not there, or was judged on other cells or images.
    """
    cells = _cells(frame)
    if over not in cells:
        raise InvalidInput(f"no defence {over!r} to compare with; there are {', '.join(cells)}.")
    reference = cells.pop(over)
    lines: list[list[Any]] = []
    for defence, cell in cells.items():
        if not cell.index.equals(reference.index) or not cell.columns.equals(reference.columns):
            raise InvalidInput(
                f"defences {defence!r} and {over!r} were not judged on the same corruptions, severities and images: "
                "their difference is not paired. Compare them on what they share."
            )
        for (line, values, counts), (_, bare, _) in zip(_lines(cell), _lines(reference), strict=True):
            gain = _gain(bare, values, answers=counts[0] * counts[1])
            lines.append([defence, *line, over, gain.value, gain.low, gain.high, gain.images, *counts])
    return pd.DataFrame(lines, columns=_GAIN)


def mce_table(frame: pd.DataFrame | Shares, baseline: pd.DataFrame, name: str) -> pd.DataFrame:
    """Corruption errors relative to a named baseline, per corruption and their mean, the mCE.

    Arguments:
        frame: See :func:`accuracy_table`.
        baseline: Columns ``corruption``, ``severity`` and ``error``, the baseline's error rate in [0, 1].
        name: What the baseline is, for the table: an mCE does not compare with one of another baseline.

    Returns:
        Columns ``defence``, ``corruption`` (``all`` for the mCE), ``ce`` (1 is as bad as the baseline), ``baseline``.

    Raises:
        InvalidInput: As :func:`accuracy_table`; or a cell of the fifteen corruptions and five severities is missing
            in either frame, or the baseline has no error to divide by.
    """
    if not name.strip():
        raise InvalidInput("an mCE needs a named baseline: name whose errors it is relative to.")
    needed = pd.MultiIndex.from_product([BENCHMARK, SEVERITIES], names=["corruption", "severity"])
    for column in ("corruption", "severity", "error"):
        if column not in baseline:
            raise InvalidInput(f"baseline {name!r} has no column {column!r}.")
    errors = baseline.set_index(["corruption", "severity"])["error"].astype(float)
    _demand(errors.index, needed, f"baseline {name!r}")
    if errors.index.has_duplicates or not errors.between(0, 1).all():
        raise InvalidInput(f"baseline {name!r} has a cell twice, or an error that is not in [0, 1].")
    total = errors.reindex(needed).groupby("corruption").sum().reindex(BENCHMARK)
    if not (total > 0).all():
        raise InvalidInput(f"baseline {name!r} never errs under {total.idxmin()!r}: nothing is relative to that.")
    lines: list[list[object]] = []
    for defence, cells in _cells(frame).items():
        cell_errors = 1 - cells.mean(axis=1)
        _demand(cell_errors.index, needed, f"defence {defence!r}")
        ce = cell_errors.reindex(needed).groupby("corruption").sum().reindex(BENCHMARK) / total
        lines += [[defence, corruption, float(value), name] for corruption, value in ce.items()]
        lines.append([defence, _ALL, float(ce.mean()), name])
    return pd.DataFrame(lines, columns=["defence", "corruption", "ce", "baseline"])


def _demand(present: pd.Index, needed: pd.MultiIndex, whose: str) -> None:
    missing = [cell for cell in needed if cell not in present]
    if missing:
        corruption, severity = missing[0]
        raise InvalidInput(
            f"{whose} lacks {len(missing)} of the {len(needed)} cells of an mCE, {corruption} at severity {severity} "
            "among them. A mean over fewer is no mCE: see the accuracies instead."
        )


def _cells(frame: pd.DataFrame | Shares) -> Shares:
    if isinstance(frame, dict):
        return dict(frame)
    missing = [column for column in COLUMNS if column not in frame]
    if missing or len(frame) == 0:
        raise InvalidInput(f"a table of corruptions needs rows with the columns {', '.join(COLUMNS)}.")
    unknown = sorted(set(frame["corruption"]) - set(CORRUPTIONS))
    if unknown:
        raise InvalidInput(f"unknown corruption {unknown[0]!r}; {nearest(str(unknown[0]), CORRUPTIONS)}")
    if not frame["severity"].isin(SEVERITIES).all():
        raise InvalidInput("severities are whole numbers from 1 to 5; clean images are no line of this table.")
    if not frame["correct"].between(0, 1).all():
        raise InvalidInput("`correct` is a share of right draws in [0, 1]; some values are outside or missing.")
    if frame.duplicated([*_CELL, "image_id"]).any():
        raise InvalidInput("an image is in one cell twice: tables are of one classifier and data set at a time.")
    if "origin" in frame and frame.groupby("corruption")["origin"].nunique().gt(1).any():
        raise InvalidInput("official and generated images of one corruption do not belong in one table.")
    cells = {}
    for defence, rows in frame.groupby("defence", sort=False):
        wide = rows.pivot(index=["corruption", "severity"], columns="image_id", values="correct").astype(float)
        if wide.isna().to_numpy().any():
            raise InvalidInput(
                f"defence {defence!r} was not judged on the same images in every cell: a mean over corruptions would "
                "mix them. Finish the sweep, or leave out what is not finished."
            )
        cells[str(defence)] = wide
    return cells


Line = tuple[tuple[str, int | str], npt.NDArray[np.float64], tuple[int, int, bool]]


def _lines(cells: pd.DataFrame) -> list[Line]:
    """Return the lines of a table: corruption and severity, values per image, and over how much they are means."""
    present = [name for name in CORRUPTIONS if name in cells.index.get_level_values("corruption")]
    lines: list[Line] = []
    means: dict[str, npt.NDArray[np.float64]] = {}
    severities: dict[str, int] = {}
    for corruption in present:
        by_severity = cells.xs(corruption, level="corruption").sort_index()
        for severity, values in zip(by_severity.index, by_severity.to_numpy(), strict=True):
            lines.append(((corruption, int(severity)), values, (1, 1, True)))
        severities[corruption] = len(by_severity)
        means[corruption] = by_severity.to_numpy().mean(0)
        lines.append(
            ((corruption, _ALL), means[corruption], (1, len(by_severity), len(by_severity) == len(SEVERITIES)))
        )
    benchmark = [name for name in BENCHMARK if name in means]
    if benchmark:
        least = min(severities[name] for name in benchmark)
        complete = len(benchmark) == len(BENCHMARK) and least == len(SEVERITIES)
        overall = np.mean([means[name] for name in benchmark], axis=0)
        lines.append(((_ALL, _ALL), overall, (len(benchmark), least, complete)))
    return lines


def _gain(over: npt.NDArray[np.float64], accuracy: npt.NDArray[np.float64], answers: int) -> PairedDifference:
    """The gain of one defence over another, from one value per image of either, each a mean over so many answers.

    A mean over many answers never differs by as much as one answer can, and pseudo-images that do would make its
    interval several times too long. The largest difference that an image can have is taken to be the largest that
    there is, and at least that of one answer.
    """
    return paired_difference(over, accuracy, largest=max(float(np.abs(accuracy - over).max()), 1 / answers))
