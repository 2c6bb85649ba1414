"""What authors' attacks hid, and what became of every claim, as tables."""

from collections.abc import Callable, Sequence

import pandas as pd

from tasks.attacks.budgets import format_eps
from workflows.leaderboard.claims import Claim, hides, judged_by, shape, trap
from workflows.leaderboard.entries import Line
from workflows.leaderboard.tables import identity, known, measured
from workflows.tables.common import CLASSIFIER, DATASET, DEFENCE
from workflows.tables.leaderboard import BUDGET
from workflows.tables.table import Column, Row, Table, frame_only

__all__ = ["claims_table", "traps_table"]


def traps_table(lines: Sequence[Line]) -> Table:
    """Return what the attacks of authors hid, a row for each line on which one was run, from the most on."""
    rows = []
    for line in lines:
        hidden, setting = line.hidden, line.entry.setting
        if hidden is None or setting is None:
            continue
        published = line.number("published")
        rows.append(
            {
                **identity(line),
                **measured(line, ("published", "other")),
                "cut": "" if published is None else ", ".join(published.departure.cut),
                "hidden": hidden.value,
                "hidden_low": hidden.low,
                "hidden_high": hidden.high,
                "images": hidden.images,
                "standing": hides(line),
                "trap": trap(line),
                "certainty": setting.certainty,
                "setting": setting.name,
            }
        )
    frame = pd.DataFrame(rows)
    frame = frame if frame.empty else frame.sort_values("hidden", ascending=False, kind="stable", ignore_index=True)
    columns = (
        DEFENCE,
        DATASET,
        CLASSIFIER,
        BUDGET,
        Column("published", "as published", "interval", "Avg under the authors' attack."),
        Column(
            "cut", "shortened", "text", "What their attack has less of here.", when=_any_text, show=_or_dash("cut")
        ),
        Column("other", "strongest other", "interval", "Lowest Avg under the other attacks."),
        Column("hidden", "hidden", "points", "The first minus the second, paired over images."),
        Column("images", "images", "integer", "Images that both attacks have."),
        Column("standing", "the authors' attack", "text", "hides more than 5 points, is as strong, or open."),
        Column(
            "trap", "what it leaves out", "text", "What explains a difference above 5 points.", show=_or_dash("trap")
        ),
        Column("certainty", "settings", "text", "Where the authors' settings were read."),
        Column("setting", "setting", "text", "Name of the published setting.", when=frame_only),
        *(Column(name, name, "text", f"See `{name}` of the board.", when=frame_only) for name in _HIDDEN),
    )
    note = "Avg in %, difference in points with its paired 95 % interval on the images that both attacks have."
    return Table("traps", "What the authors' attacks hid", columns, frame, note, groups=())


_HIDDEN = (*("denoiser", "norm", "key", "published_cell", "published_sweep", "other_cell", "other_sweep"),)


def _any_text(frame: pd.DataFrame, name: str) -> bool:
    return bool((frame[name] != "").any())


def _or_dash(name: str) -> Callable[[Row], str]:
    return lambda row: row[name] or "-"


def claims_table(claims: Sequence[Claim]) -> Table:
    """Return the claims, a row for each line that one is about."""
    rows = []
    for claim in claims:
        for line in claim.lines:
            strongest = line.number("strongest")
            compared = claim.compares(line) and strongest is not None
            rows.append(
                {
                    **identity(line),
                    "claim": claim.key,
                    "paper": claim.paper.paper,
                    "table": claim.value.table,
                    "certainty": claim.value.certainty,
                    "of": f"{claim.value.dataset}, {claim.value.classifier or 'classifier not stated'}, "
                    f"{claim.value.column.norm} {format_eps(claim.value.column.eps or 0.0)}",
                    "claimed": claim.share,
                    **measured(line, ("published", "strongest")),
                    "missed": strongest.value - claim.share if compared and strongest else None,
                    "missed_low": strongest.low - claim.share if compared and strongest else None,
                    "missed_high": strongest.high - claim.share if compared and strongest else None,
                    "judged_by": judged_by(claim, line),
                    "shape": shape(claim, line),
                }
            )
    frame = pd.DataFrame(rows)
    columns = (
        Column("paper", "claimed in", "text", "The published document."),
        Column("table", "table", "text", "The table of it."),
        Column("certainty", "certainty", "text", "How sure the published value is."),
        Column("of", "claimed of", "text", "Data, classifier and budget of the claim."),
        Column("claimed", "claimed", "percent", "The published accuracy."),
        Column("defence", "measured: defence", "text", "The defence of the board."),
        CLASSIFIER,
        DATASET,
        BUDGET,
        Column("published", "as published", "interval", "Avg under the authors' attack, measured here.", when=known),
        Column("strongest", "strongest", "interval", "Lowest Avg under any attack here."),
        Column("missed", "strongest - claimed", "points", "With the interval of what was measured.", when=known),
        Column("shape", "in shape", "text", "survives, falls, open or not compared; the rule is above."),
        Column("judged_by", "judged by", "text", "What stands for the claim here.", show=_or_dash("judged_by")),
        Column("claim", "claim", "text", "Id of the claim on this site.", when=frame_only),
        *(Column(name, name, "text", f"See `{name}` of the board.", when=frame_only) for name in _CLAIMS_HIDDEN),
    )
    note = (
        "Published accuracies as they stand, never used as if they were measured. The interval of a difference is "
        "that of the measured number; published values come without one."
    )
    return Table("claims", "Every claim", columns, frame, note, groups=())


_CLAIMS_HIDDEN = ("denoiser", "norm", "key", "published_cell", "published_sweep", "strongest_cell", "strongest_sweep")
