"""Ladders rung by rung: what each attack leaves alone, what they leave together, and whose image was submitted."""

import numpy as np
import pandas as pd

from tasks.attacks import LadderConfig
from workflows.results.reader import Results

__all__ = ["ladder_cells", "ladder_frame"]


def ladder_frame(results: Results) -> pd.DataFrame:
    """Return one row per rung of each ladder of a sweep; empty if it has none with committed rows.

    Columns: ``dataset``, ``classifier``, ``defence``, ``norm``, ``eps``, ``seed``; ``rung`` from 1, and its
    ``attack``; ``images``; ``alone``, the mean share of right draws that this attack leaves, with ``alone_low`` and
    ``alone_high`` (NaN where it skipped images); ``so_far``, the mean of the per-image minimum up to this rung;
    ``submitted``, the number of images whose submitted image is this rung's; ``skipped``, how many it did not attack.

    All are measured on the draws by which the ladder chose. A minimum over rungs is too low on these; the figure of
    the ladder is that of the robustness table, judged on draws that nobody chose by.
    """
    lines = []
    for cell in results.sweep.cells:
        source = cell.attack_stage
        if source is None or not isinstance(source.attack, LadderConfig):
            continue
        rows = results.attack_rows(cell)
        if rows.empty:
            continue
        rights = np.stack(list(rows["attack_rights"]))
        lowest = np.fmin.accumulate(rights, axis=1)
        labels = results.sweep.labels[cell.id]
        for number, rung in enumerate(source.attack.rungs):
            alone = rights[:, number]
            skipped = int(np.isnan(alone).sum())
            share = None if skipped else results.estimate(cell, alone)
            lines.append(
                {
                    **{part: labels[part] for part in ("dataset", "classifier", "defence")},
                    "norm": source.attack.norm,
                    "eps": source.attack.eps,
                    "seed": cell.seed,
                    "rung": number + 1,
                    "attack": rung.label(),
                    "images": len(rows),
                    "alone": np.nan if share is None else share.value,
                    "alone_low": np.nan if share is None else share.low,
                    "alone_high": np.nan if share is None else share.high,
                    "so_far": float(lowest[:, number].mean()),
                    "submitted": int((rows["attack_rung"] == number).sum()),
                    "skipped": skipped,
                    **results.guarantee(cell),
                }
            )
    return pd.DataFrame(lines)


def ladder_cells(results: Results) -> list[str]:
    """Return the cell of each row of :func:`ladder_frame`."""
    return [
        cell.id
        for cell in results.sweep.cells
        if cell.attack_stage is not None
        and isinstance(cell.attack_stage.attack, LadderConfig)
        and len(results.attack_rows(cell))
        for _ in cell.attack_stage.attack.rungs
    ]
