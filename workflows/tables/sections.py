"""The tables beside those of robustness and cost: certificates, corruptions, image quality.

Each is a :class:`Section`: a frame with everything, unrounded, and a grid of its main columns for people. Tables of
text, Markdown, LaTeX, JSON, the report and MLflow are all made of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from defense.errors import InvalidInput
from tasks.corruptions import BENCHMARK
from workflows.results.reader import Results
from workflows.tables.certified import certified_curves, certified_table, envelope_table
from workflows.tables.corruptions import accuracy_table, gain_table, mce_table
from workflows.tables.quality import MEASURES, quality_table

__all__ = ["Section", "sections"]

Grid = tuple[list[str], list[list[str]]]

_CERTIFIED = (
    "Share of images whose certified class is right with at least that l_2 radius, in %: wrong for an image with "
    "probability at most alpha. ACR is the average certified radius, 0 where the class is wrong. bound: below the "
    "share at r = 0 by what errors of the certificates can amount to, with confidence 99.9 %."
)
_ENVELOPE = "The best sigma at each radius, chosen for each radius and never for each image."
_CORRUPTED = (
    "Mean over severities of each corruption; `all` is the mean over the fifteen of the benchmark, or as many of "
    "them as there are, and one minus it the mean corruption error (unnormalised). Generated images follow the "
    "constants of CIFAR-10-C and are not its arrays."
)
_MCE = "Errors summed over severities, over those of the baseline, and the mean of that over the fifteen corruptions."
_GAIN = "On the same images, corruptions and severities; 95 % interval over images."
_QUALITY = (
    "input: the clean image with what the defence was given; output: the clean image with what it made of that (its "
    "draw 0); change: the two others. PSNR in dB, over images that differ."
)


@dataclass(frozen=True)
class Section:
    """A table.

    Arguments:
        name: Key in JSON and MLflow.
        title: Heading; "" for a table that is for machines alone.
        note: How to read it.
        frame: Everything, unrounded.
        grid: Column names and lines for people.
    """

    name: str
    title: str
    note: str
    frame: pd.DataFrame
    grid: Grid


def sections(results: Results, mce: str | None = None) -> list[Section]:
    """The tables of a sweep that have rows, in the order in which they are read.

    Arguments:
        results: The results.
        mce: A classifier of the sweep, as tables call it, whose errors without a defence are the baseline of mean
            corruption errors; without it there is no such table.

    Raises:
        InvalidInput: ``mce`` names no such classifier, or the benchmark is not complete.
    """
    relative = [] if mce is None else _mce(results, mce)
    return [*_certified(results), *_corrupted(results), *relative, *_quality(results)]


def _certified(results: Results) -> list[Section]:
    table = certified_table(results)
    if table.empty:
        return []
    curves = certified_curves(results)
    best = envelope_table(curves)
    radii = sorted(curves["radius"].unique())
    lines = []
    for row in table.to_dict("records"):
        own = curves[curves["cell"] == row["cell"]].set_index("radius")["accuracy"]
        lines.append(
            [
                *(_text(row[name]) for name in ("classifier", "defence", "base", "sigma", "n")),
                _count(row),
                *(_percent(own.get(radius)) for radius in radii),
                _percent(row["bound"]),
                f"{row['acr']:.3f}",
                _percent(row["abstained"]),
                f"{row['samples']:,.0f}",
                row["guarantee"],
            ]
        )
    names = ["classifier", "defence", "base", "sigma", "n", "images"]
    columns = [*names, *(f"r={radius:g}" for radius in radii), "bound", "ACR", "abstained", "samples", "guarantee"]
    found = [
        Section("certified", "Certified accuracy", _CERTIFIED, table, _with_places(table, columns, lines)),
        Section("certified_curves", "", "", curves, ([], [])),  # for machines
    ]
    if len(best):
        grid = [
            [
                *(_text(row[name]) for name in ("classifier", "family", "n")),
                f"{row['radius']:g}",
                _percent(row["accuracy"]),
                f"{row['sigma']:g}",
            ]
            for row in best.to_dict("records")
        ]
        head = ["classifier", "defence", "n", "radius", "certified", "sigma"]
        found.append(
            Section("envelope", "Upper envelope over sigma", _ENVELOPE, best, _with_places(best, head, grid))
        )
    return found


def _corrupted(results: Results) -> list[Section]:
    groups = results.corrupted()
    if not groups:
        return []
    accuracies, gains = [], []
    for identity, frame in groups:
        accuracies.append(accuracy_table(frame).assign(**identity))
        if (frame["defence"] == "none").any() and frame["defence"].nunique() > 1:
            gains.append(gain_table(_paired(frame)).assign(**identity))
    table = pd.concat(accuracies, ignore_index=True)
    overall = table[table["severity"] == "all"]
    names = list(overall["corruption"].unique())
    if "all" in names:
        names = [*(name for name in names if name != "all"), "all"]
    lines, places = [], []
    for (classifier, defence, origin, dataset, seed), own in overall.groupby(
        ["classifier", "defence", "origin", "dataset", "seed"], sort=False
    ):
        values = own.set_index("corruption")
        places.append({"dataset": dataset, "seed": seed})
        lines.append([str(classifier), str(defence), str(origin), str(int(own["images"].min()))])
        lines[-1] += [_percent(values["accuracy"].get(name)) for name in names]
    counts = overall[overall["corruption"] == "all"]["corruptions"].unique()
    several = f"all {counts[0]}" if len(counts) == 1 and counts[0] != len(BENCHMARK) else "all"
    head = ["classifier", "defence", "origin", "images", *(several if name == "all" else name for name in names)]
    found = [
        Section(
            "corruptions",
            "Accuracy under corruptions",
            _CORRUPTED,
            table,
            _with_places(pd.DataFrame(places), head, lines),
        )
    ]
    if gains:
        table = pd.concat(gains, ignore_index=True)
        shown = table[table["severity"] == "all"]
        lines = [
            [
                *(str(row[name]) for name in ("classifier", "defence", "corruption", "images")),
                f"{100 * row['gain']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]",
            ]
            for row in shown.to_dict("records")
        ]
        head = ["classifier", "defence", "corruption", "images", "gain"]
        grid = _with_places(shown, head, lines)
        found.append(Section("corruption_gains", "Gain over no defence, points", _GAIN, table, grid))
    return found


def _mce(results: Results, baseline: str) -> list[Section]:
    groups = results.corrupted()
    bare = {
        (identity["dataset"], identity["seed"], identity["origin"]): frame[frame["defence"] == "none"]
        for identity, frame in groups
        if identity["classifier"] == baseline and (frame["defence"] == "none").any()
    }
    if not bare:
        known = dict.fromkeys(str(identity["classifier"]) for identity, _ in groups)
        raise InvalidInput(
            f"no classifier {baseline!r} was judged under corruptions without a defence, so it is no baseline of an "
            f"mCE; there are {', '.join(known) or 'none'}."
        )
    tables = []
    for identity, frame in groups:
        own = bare.get((identity["dataset"], identity["seed"], identity["origin"]))
        if own is not None:
            error = 1 - own.groupby(["corruption", "severity"])["correct"].mean()
            tables.append(mce_table(frame, error.rename("error").reset_index(), baseline).assign(**identity))
    table = pd.concat(tables, ignore_index=True)
    overall = table[table["corruption"] == "all"]
    lines = [
        [str(row["classifier"]), str(row["defence"]), str(row["origin"]), f"{100 * row['ce']:.1f}"]
        for row in overall.to_dict("records")
    ]
    head = ["classifier", "defence", "origin", "mCE"]
    return [
        Section(
            "mce", f"Mean corruption error relative to {baseline}, %", _MCE, table, _with_places(overall, head, lines)
        )
    ]


def _paired(frame: pd.DataFrame) -> pd.DataFrame:
    """What all defences were judged on: the cells and images that every one of them has."""
    keys = ["corruption", "severity", "image_id"]
    shared = frame.groupby(keys)["defence"].transform("nunique") == frame["defence"].nunique()
    return frame[shared]


def _quality(results: Results) -> list[Section]:
    frame = results.quality()
    if frame.empty:
        return []
    by = ["dataset", "classifier", "defence", "threat", "eps", "seed", "pair"]
    table = quality_table(frame, by)
    lines = []
    for row in table.to_dict("records"):
        lines.append([_text(row[name]) for name in ("classifier", "defence", "threat", "eps", "pair")])
        lines[-1] += [str(row["images"]), str(row["identical"])]
        lines[-1] += [_number(row[measure], 2 if measure == "psnr" else 4) for measure in MEASURES]
    head = ["classifier", "defence", "threat", "eps", "pair", "images", "identical", "PSNR", "SSIM", "LPIPS"]
    missing = sorted(set(frame["missing"]) - {""})
    note = " ".join([_QUALITY, *missing])
    return [Section("quality", "Image quality", note, table, _with_places(table, head, lines))]


def _with_places(frame: pd.DataFrame, names: Sequence[str], lines: list[list[str]]) -> Grid:
    """The grid with data set and seed in front where there are several."""
    head = list(names)
    for extra in ("seed", "dataset"):
        if frame[extra].nunique() > 1:
            head.insert(0, extra)
            lines = [[str(value), *line] for value, line in zip(frame[extra], lines, strict=True)]
    return head, lines


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(row: dict[object, object] | dict[str, object]) -> str:
    return f"{row['images']}" if row["images"] == row["planned"] else f"{row['images']} of {row['planned']}"


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def _number(value: float, digits: int) -> str:
    return "-" if value != value else f"{value:.{digits}f}"
