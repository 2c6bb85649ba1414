"""Tables of common corruptions: accuracy, the gain of a defence over none, and mean corruption errors."""

from collections.abc import Mapping, Sequence

import pandas as pd

from tasks.corruptions import BENCHMARK
from workflows.tables.common import CLASSIFIER, DATASET, DEFENCE, SEED
from workflows.tables.table import Column, Table, frame_only, records

__all__ = ["corruption_gains_table", "corruptions_table", "mce_table"]

_ACCURACY = (
    "Accuracy in %, the mean over severities of each corruption; `all` is the mean over the fifteen of the "
    "benchmark, or as many of them as there are, and one minus it the mean corruption error (unnormalised). "
    "Generated images follow the constants of CIFAR-10-C and are not its arrays."
)
_MCE = "Errors summed over severities, over those of the baseline, and the mean of that over the fifteen corruptions."
_GAIN = "On the same images, corruptions and severities; 95 % interval over images."

LINE = ["dataset", "classifier", "defence", "seed", "origin"]
"""What a line of the table of corruptions is of."""

_ORIGIN = Column(
    "origin", "origin", "text", "Official arrays of the benchmark, or images made by its constants.", drop=2
)
_CORRUPTION = Column("corruption", "corruption", "text", "The corruption; all for the mean over the benchmark's.")
_SEVERITY = Column("severity", "severity", "text", "From 1 to 5; all for their mean.", when=frame_only)
_IMAGES = Column("images", "images", "integer", "Images that were judged.", drop=1)
_COUNTS = (
    Column("corruptions", "corruptions", "integer", "Over how many corruptions it is a mean.", when=frame_only),
    Column("severities", "severities", "integer", "Over how many severities it is a mean.", when=frame_only),
    Column("complete", "complete", "text", "Whether that is all that the benchmark has.", when=frame_only),
)


def corruptions_table(frame: pd.DataFrame, cells: Mapping[tuple[object, ...], Sequence[str]]) -> Table | None:
    """Return one line per defence, one column per corruption; None without complete cells.

    Arguments:
        frame: From :func:`workflows.results.corruptions.accuracy_frame`.
        cells: The cells of each line, by the values of :data:`LINE`.
    """
    if frame.empty:
        return None
    overall = frame[frame["severity"] == "all"]
    names = [name for name in overall["corruption"].unique() if name != "all"]
    if (overall["corruption"] == "all").any():
        names.append("all")
    lines = []
    for key, rows in overall.groupby(LINE, sort=False):
        values = rows.set_index("corruption")["accuracy"]
        where = dict(zip(LINE, key, strict=True))
        lines.append({**where, "images": int(rows["images"].min()), **{name: values.get(name) for name in names}})
    counts = overall[overall["corruption"] == "all"]["corruptions"].unique()
    several = f"all {counts[0]}" if len(counts) == 1 and counts[0] != len(BENCHMARK) else "all"

    def drop(name: str) -> int:
        return 0 if name == "all" else 3 + len(names) - names.index(name)  # the mean stays, the last go first

    columns = [
        Column(
            name, several if name == "all" else name, "percent", f"Accuracy, mean over {_of(name)}.", drop=drop(name)
        )
        for name in names
    ]
    accuracy = Column(
        "accuracy", "accuracy", "interval", "Share of right draws.", ends=("low", "high"), when=frame_only
    )
    in_frame = (_CORRUPTION.hidden(), _SEVERITY, accuracy, *_COUNTS)
    shown = pd.DataFrame(lines)
    return Table(
        "corruptions",
        "Accuracy under corruptions",
        (DATASET, SEED, CLASSIFIER, DEFENCE, _ORIGIN, _IMAGES, *columns, *in_frame),
        frame,
        _ACCURACY,
        shown=shown,
        cells=tuple(tuple(cells.get(tuple(row[name] for name in LINE), ())) for row in records(shown)),
    )


def corruption_gains_table(frame: pd.DataFrame) -> Table | None:
    """Return the gains of defences over none; None without anything to compare.

    Arguments:
        frame: From :func:`workflows.results.corruptions.gain_frame`.
    """
    if frame.empty:
        return None
    gain = Column("gain", "gain", "points", "Accuracy minus that without a defence, in points.", ends=("low", "high"))
    over = Column("over", "over", "text", "The defence that it is compared with.", when=frame_only)
    return Table(
        "corruption_gains",
        "Gain over no defence, points",
        (DATASET, SEED, CLASSIFIER, DEFENCE, _CORRUPTION, _IMAGES, gain, _ORIGIN.hidden(), _SEVERITY, over, *_COUNTS),
        frame,
        _GAIN,
        shown=frame[frame["severity"] == "all"],
    )


def mce_table(frame: pd.DataFrame, baseline: str) -> Table | None:
    """Return the mean corruption errors relative to a named baseline; None without any.

    Arguments:
        frame: From :func:`workflows.results.corruptions.mce_frame`.
        baseline: Whose errors they are relative to.
    """
    if frame.empty:
        return None
    error = Column("ce", "mCE", "percent", "Error relative to the baseline's; 100 is as bad.")
    named = Column("baseline", "baseline", "text", "Whose errors it is relative to.", when=frame_only)
    return Table(
        "mce",
        f"Mean corruption error relative to {baseline}, %",
        (DATASET, SEED, CLASSIFIER, DEFENCE, _ORIGIN, error, _CORRUPTION.hidden(), named),
        frame,
        _MCE,
        shown=frame[frame["corruption"] == "all"],
    )


def _of(name: str) -> str:
    return "the corruptions of the benchmark that are there" if name == "all" else f"the severities of {name}"
