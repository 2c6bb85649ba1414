"""The robustness table: clean images and attacks, a line each, by four readings of the same draws."""

import pandas as pd

from workflows.tables.common import (
    ATTACK,
    CELL,
    CLASSIFIER,
    DATASET,
    DEFENCE,
    EPS,
    IMAGES,
    NORM,
    PLANNED,
    SEED,
    intervals_note,
    with_guarantee,
)
from workflows.tables.table import Column, Row, Table, always, cells_of, frame_only, interval, missing, percent

__all__ = ["robustness_table"]

_NOTE = (
    "Avg: mean over draws; Wor-M: right however often the attacker submits, M times or as often as "
    "there are draws; MV-K: majority vote of the K draws; fixed noise: one fixed draw alone."
)


def robustness_table(frame: pd.DataFrame) -> Table | None:
    """Return the table of ``Results.robustness``; None without clean or attacked cells."""
    if frame.empty:
        return None
    note, columns = f"{intervals_note(frame)} {_NOTE}", with_guarantee(_columns(frame), frame)
    return Table("robustness", "Robustness", columns, frame, note, remarks=_remarks(frame), cells=cells_of(frame))


def _columns(frame: pd.DataFrame) -> tuple[Column, ...]:
    if "until" not in frame:
        return _COLUMNS
    place = next(place for place, column in enumerate(_COLUMNS) if column.name == "avg")
    return (*_COLUMNS[:place], *_UNTIL, *_COLUMNS[place:])


def _of_draws(name: str) -> Column:
    """Return a reading of several draws; with one draw it equals Avg, whose interval it then has."""
    title, meaning = {
        "worst": ("Wor-M", "Share of images right however often the attacker submits, M times: worst of M draws."),
        "vote": ("MV-K", "Share of images that the majority vote of the K draws gets right."),
        "fixed": ("fixed noise", "Share of images right under one fixed draw, the first."),
    }[name]

    def show(row: Row) -> str:
        value = row.get(name)
        if missing(value):
            return "-"
        return _interval(row, name) if row["draws"] > 1 else percent(row[name])

    when, drop = _several_draws if name == "fixed" else always, {"worst": 6, "vote": 3, "fixed": 1}[name]
    return Column(name, title, "interval", meaning, show=show, when=when, drop=drop)


def _interval(row: Row, name: str) -> str:
    return interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _several_draws(frame: pd.DataFrame, name: str) -> bool:
    return bool((frame["draws"] > 1).any())


def _other_than_draws(frame: pd.DataFrame, name: str) -> bool:
    return bool((frame[name] != frame["draws"]).any())


def _aggregated(frame: pd.DataFrame, name: str) -> bool:
    return bool((frame["aggregation"] != "single").any())


def _answer(row: Row) -> str:
    return "-" if missing(row.get("accuracy")) else f"{_interval(row, 'accuracy')} {row['aggregation']}"


_UNTIL = (
    Column(
        "until",
        "until",
        "text",
        "What stops the draws of an image: that its vote, or its worst draw, is certain.",
        drop=2,
    ),
    Column("asked", "asked", "number", "Draws that were asked of an image, the mean.", digits=1, drop=2),
)
"""Of a sweep with defences whose draws stop."""

_COLUMNS = (
    DATASET,
    SEED,
    CLASSIFIER,
    DEFENCE,
    ATTACK,
    EPS,
    IMAGES,
    Column("draws", "draws", "integer", "Fresh draws of the defence by which each image was judged.", drop=2),
    Column("avg", "Avg", "interval", "Share of right draws, averaged over images."),
    Column(
        "resubmissions", "M", "integer", "How often the attacker may submit an image.", when=_other_than_draws, drop=2
    ),
    _of_draws("worst"),
    _of_draws("vote"),
    _of_draws("fixed"),
    Column(
        "accuracy",
        "answer",
        "interval",
        "Share of images that the defence gets right, by its own aggregation of draws.",
        show=_answer,
        when=_aggregated,
    ),
    CELL,
    NORM.hidden(),
    Column("static", "static", "text", "Whether the attack was made on the bare classifier.", when=frame_only),
    Column("purifier", "purifier", "text", "Kind of the purifier.", when=frame_only),
    Column("t_star", "t*", "integer", "Diffusion time of the purifier.", when=frame_only),
    Column("abar", "abar", "number", "Share of the signal's variance that is left at t*.", when=frame_only),
    Column("sigma_eq", "sigma_eq", "number", "Noise level of the purifier in pixels.", when=frame_only),
    Column("aggregation", "aggregation", "text", "How draws become one answer.", when=frame_only),
    PLANNED,
    Column(
        "mean_probability",
        "mean probability",
        "interval",
        "Share of images that the mean of the draws' probabilities gets right.",
        when=frame_only,
    ),
)


def _remarks(frame: pd.DataFrame) -> tuple[str, ...]:
    """Return the caveats of the table."""
    remarks: list[str] = []
    defended = frame["purifier"] != "none"
    if bool((frame["static"] & defended).any()):
        adaptive = bool(((frame["attack"] != "clean") & ~frame["static"] & defended).any())
        which = "Attacks without a gradient mode in their name" if adaptive else "The attacks"
        remarks.append(
            f"{which} are static, made on the bare classifier without the purifier. Accuracy under them is an upper "
            "bound: it says nothing about an attacker who knows the defence."
        )
    knowing = frame[(frame["attack"] != "clean") & ~frame["static"] & defended]["attack"]
    fixed = knowing.str.contains("fixed draws")
    if bool((~fixed).any()):
        remarks.append(
            "Adaptive attacks know classifier and purifier, and not the draws by which their images are judged"
            + ("; those on fixed draws know these too." if bool(fixed.any()) else ".")
        )
    elif len(knowing):
        remarks.append("Adaptive attacks know classifier, purifier and the draws by which their images are judged.")
    if "until" in frame:
        remarks.append(
            "Draws of an image stop where its vote, or its worst draw, is certain (`until`): what needs all of them "
            "is not known."
        )
    if bool((frame["resubmissions"] < frame["draws"]).any()):
        bootstrap = (
            "" if "guarantee" in frame else "; where M is below the number of draws its interval is a bootstrap"
        )
        remarks.append(
            "Wor-M is the accuracy that is left when the attacker may submit M times, estimated without bias from "
            f"all draws{bootstrap + ' over images' * bool(bootstrap)}."
        )
    return tuple(remarks)
