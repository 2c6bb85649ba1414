"""Image quality: what attacks and purifiers do to images, by three measures."""

from collections.abc import Sequence

import pandas as pd

from workflows.tables.common import CLASSIFIER, DATASET, DEFENCE, SEED
from workflows.tables.table import Column, Table, frame_only

__all__ = ["quality_table"]

_NOTE = (
    "input: the clean image and the input of the defence; output: the clean image and the output of the defence "
    "(under the fixed noise of its first draw); change: the input and the output. PSNR is in dB, over images that "
    "differ."
)
_COLUMNS = (
    DATASET,
    SEED,
    CLASSIFIER,
    DEFENCE,
    Column("threat", "threat", "text", "Attack or corruption."),
    Column("eps", "eps", "budget", "Budget of the attack; 0 for clean and corrupted images."),
    Column("pair", "pair", "text", "Which two images were compared: input, output or change."),
    Column("images", "images", "integer", "Pairs of images.", drop=2),
    Column("identical", "identical", "integer", "Pairs of two equal images, whose PSNR is infinite.", drop=1),
    Column("psnr", "PSNR", "number", "Peak signal-to-noise ratio, mean over pairs that differ.", unit="dB", digits=2),
    Column("ssim", "SSIM", "number", "Structural similarity, mean over pairs.", digits=4),
    Column("lpips", "LPIPS", "number", "Learned perceptual distance, mean over pairs.", digits=4),
    Column("psnr_std", "PSNR std", "number", "Standard deviation over pairs.", unit="dB", when=frame_only),
    Column("ssim_std", "SSIM std", "number", "Standard deviation over pairs.", when=frame_only),
    Column("lpips_std", "LPIPS std", "number", "Standard deviation over pairs.", when=frame_only),
)


def quality_table(frame: pd.DataFrame, not_taken: Sequence[str] = ()) -> Table | None:
    """Return the table of image quality; None where it was not measured.

    Arguments:
        frame: From :func:`workflows.results.quality.quality_frame`.
        not_taken: Why measures are missing, a sentence each.
    """
    if frame.empty:
        return None
    return Table("quality", "Image quality", _COLUMNS, frame, _NOTE, remarks=tuple(not_taken))
