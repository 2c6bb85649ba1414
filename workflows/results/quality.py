"""Image quality as a frame: means over images of the measures of :mod:`tasks.quality`.

The PSNR of two equal images is infinite, and so is any mean that includes one: it is averaged over the images that
differ, and ``identical`` counts the others.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from defense.errors import InvalidInput

__all__ = ["MEASURES", "quality_frame"]

MEASURES = ("psnr", "ssim", "lpips")


def quality_frame(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return mean and standard deviation of every measure over images.

    Arguments:
        frame: Columns ``psnr``, ``ssim`` and ``lpips``, a row for each pair of images; NaN throughout a group where a
            measure could not be taken.
        by: Columns that distinguish groups: the defence, the attack or corruption, and which images were compared.

    Returns:
        A line for each group in order of appearance: the columns ``by``, ``images``, ``identical``, and of every
        measure ``mean`` and ``std`` (NaN where there is none), as ``psnr``, ``psnr_std`` and so on.

    Raises:
        InvalidInput: A column is missing, or a measure is there for some images of a group only.
    """
    missing = [column for column in (*by, *MEASURES) if column not in frame]
    if missing or not by:
        raise InvalidInput(f"a table of image quality needs groups and the columns {', '.join(MEASURES)}: {missing}")
    lines = []
    for key, rows in frame.groupby(list(by), sort=False):
        equal = np.isposinf(rows["psnr"].to_numpy(dtype=float))
        line: list[object] = [*key, len(rows), int(equal.sum())]
        for measure in MEASURES:
            values = rows[measure].to_numpy(dtype=float)
            if np.isnan(values).any() and not np.isnan(values).all():
                raise InvalidInput(
                    f"{measure} is there for some images of {key} and not for others: its mean would be of a "
                    "selection. Measure all of them, or none."
                )
            counted = values[~equal] if measure == "psnr" else values
            line += [
                float(counted.mean()) if len(counted) else float("inf"),
                float(counted.std(ddof=1)) if len(counted) > 1 else float("nan"),
            ]
        lines.append(line)
    names = [name for measure in MEASURES for name in (measure, f"{measure}_std")]
    return pd.DataFrame(lines, columns=[*by, "images", "identical", *names])
