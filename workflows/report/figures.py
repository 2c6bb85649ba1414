"""The figures of a report, each with the rows that it shows.

The points of every figure are the rows of its frame, and nothing else is drawn.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from defense.spec import digest
from tasks.attacks.budgets import format_eps
from workflows.analysis import Analysis
from workflows.grid.cells import Defence
from workflows.report.charts import (
    Drawing,
    Mark,
    Panels,
    Point,
    Series,
    Tile,
    heat_map,
    line_chart,
    ranked_chart,
)
from workflows.report.drawings.certified import certified_curves
from workflows.report.drawings.convergence import convergence_curves
from workflows.report.drawings.corruptions import corruption_maps
from workflows.report.drawings.rows import Drawings, groups, percent
from workflows.results.reader import Results
from workflows.tables.table import missing, records

__all__ = ["VERDICT", "Figure", "figures", "t_star_families"]

VERDICT = "The verdict"
"""Topic of the picture at the head of the page."""

_SHOWN = ["cell", "dataset", "classifier", "defence", "attack", "norm", "eps", "seed", "t_star", "images"]
_AVG = ["avg", "avg_low", "avg_high"]


@dataclass(frozen=True)
class Figure:
    """A figure.

    Arguments:
        name: Name of its files.
        topic: Heading under which it stands.
        caption: What it shows.
        drawing: The figure itself.
        frame: The numbers that it shows.
    """

    name: str
    topic: str
    caption: str
    drawing: Drawing | Panels
    frame: pd.DataFrame


def figures(analysis: Analysis) -> list[Figure]:
    """Return the figures that a sweep has rows for, in reading order.

    Published figures are drawn hollow over the curves of the cells that they are of; those beside a smoke sweep are
    of no cell of it.
    """
    results, robustness = analysis.results, analysis.robustness
    pictures = _verdict(analysis.headline)
    drawn: list[tuple[str, str, str, Drawing | Panels, pd.DataFrame]] = []
    # There is no Avg without images, and none where draws stop as soon as the answer is certain.
    judged = robustness[robustness["avg"].notna()] if "avg" in robustness else robustness[:0]
    if len(judged):
        judged = judged.assign(series=judged["cell"].map(analysis.series)).explode("series", ignore_index=True)
        drawn += [("attacks", "Every defence under every attack", *figure) for figure in _by_attack(judged)]
        judged = _with_published(judged, analysis.published)
        drawn += [("eps", "Accuracy against the budget", *figure) for figure in _by_eps(judged)]
        drawn += [("depth", "Accuracy against t*", *figure) for figure in _by_t_star(results, judged)]
        drawn += [("cost", "Accuracy against cost", *figure) for figure in _by_cost(analysis, judged)]
    if len(analysis.convergence):
        drawn += [
            ("convergence", "Accuracy against the attack's budget", *figure)
            for figure in convergence_curves(analysis.convergence)
        ]
    if len(analysis.certified):
        drawn += [
            ("certified", "Certified accuracy against the radius", *figure)
            for figure in certified_curves(results, analysis.certified)
        ]
    if len(analysis.corruptions):
        drawn += [
            ("corruptions", "Accuracy under each corruption", *figure)
            for figure in corruption_maps(analysis.corruptions, analysis.corruption_gains)
        ]
    numbers: Counter[str] = Counter()
    named = []
    for kind, topic, caption, drawing, frame in drawn:
        numbers[kind] += 1
        named.append(Figure(f"{kind}-{numbers[kind]}", topic, caption, drawing, frame))
    return [*pictures, *named]


def _threat(row: dict[str, Any]) -> str:
    return "clean" if row["attack"] == "clean" else f"{row['attack']} eps {format_eps(row['eps'])}"


def _with_published(judged: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Add a column ``published`` of the accuracies in % that belong to a cell, ``78.1; 82.5``, if there are any."""
    if len(frame):
        frame = frame[frame["measured"].notna() & ~frame["smoke"]]
    if frame.empty:
        return judged
    values = frame.groupby("cell")["published"].agg(
        lambda budgets: "; ".join(f"{value:g}" for value in dict.fromkeys(budgets))
    )
    return judged.assign(published=judged["cell"].map(values).fillna(""))


def _shown(frame: pd.DataFrame) -> list[str]:
    """Return the columns of a figure of accuracies."""
    return [*_SHOWN, *_AVG, *(["published"] if "published" in frame else [])]


def _hollow(line: pd.DataFrame, x: str, colour: int, *, first: bool) -> list[Series]:
    """Return published values beside the points of a line; the first ones are in the legend."""
    points = [
        Point(
            float(row[x]), at := float(text) / 100, at, at, f"published: {row['defence']}, {_threat(row)}: {text} %"
        )
        for row in records(line)
        for text in str(row.get("published", "")).split("; ")
        if text
    ]
    if not points:
        return []
    return [Series("published" if first else "", points, kind="points", colour=colour, hollow=True)]


def _point(x: float, row: dict[str, Any]) -> Point:
    value = row["avg"], row["avg_low"], row["avg_high"]
    return Point(float(x), *value, f"{row['defence']}, {_threat(row)}: {percent(*value)}, {row['images']} images")


def _attacked(members: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield the attacks with their threat model, static ones first: ``pgd-20 linf``, ``static: pgd-20 linf``."""
    defended = bool((members["purifier"] != "none").any())
    found = []
    for (series,), rows in groups(members[members["attack"] != "clean"], ["series"]):
        # On the bare classifier every attack knows all that there is to know.
        known = rows[rows["purifier"] != "none"] if bool((rows["purifier"] != "none").any()) else rows
        static = bool(known["static"].all())
        kind = ("static: " if static else "adaptive: ") if defended else ""
        found.append((not static, str(series), f"{kind}{series}", rows))
    for _, series, title, rows in sorted(found, key=lambda entry: entry[0]):
        yield series, title, rows


def _colours(members: pd.DataFrame) -> dict[str, int]:
    """Return the number of each defence's colour: the bare classifier, then the others by what attacks leave of them.

    Those that are not among the first six are grey.
    """
    attacked = members[members["attack"] != "clean"]
    shown = attacked if len(attacked) else members
    top = shown[shown["eps"] == shown["eps"].max()]
    lowest = top.groupby("defence")["avg"].min()
    bare = set(members.loc[members["purifier"] == "none", "defence"])
    names = sorted(members["defence"].unique(), key=lambda name: (name not in bare, -float(lowest.get(name, -1.0))))
    return {str(name): number for number, name in enumerate(names)}


_PANEL = (420, 300)
_PANELS = 9
"""Panels of a figure; more make a further figure."""


def _panels(
    title: str,
    panels: Sequence[tuple[str, Sequence[Series]]],
    axis: str,
    ticks: Sequence[tuple[float, str]] = (),
    *,
    logarithmic: bool = False,
) -> Drawing | Panels:
    """Return panels with the same axes; one alone is as large as a figure."""
    if len(panels) == 1:
        return line_chart(panels[0][1], axis, "accuracy, %", ticks, logarithmic=logarithmic)
    every = [line for _, lines in panels for line in lines]
    return Panels(
        title,
        [
            (name, line_chart(lines, axis, "accuracy, %", ticks, beside=every, size=_PANEL, logarithmic=logarithmic))
            for name, lines in panels
        ],
    )


def _several(
    panels: Sequence[tuple[str, Sequence[Series], pd.DataFrame]],
) -> Iterator[tuple[list[tuple[str, Sequence[Series]]], pd.DataFrame]]:
    for begin in range(0, len(panels), _PANELS):
        part = panels[begin : begin + _PANELS]
        yield [(name, lines) for name, lines, _ in part], pd.concat([frame for *_, frame in part])


def _where(names: str, panels: Sequence[tuple[str, Any]]) -> str:
    """Return a caption; of a single panel with its title."""
    return f"{names}; {panels[0][0]}" if len(panels) == 1 else names


def _by_eps(judged: pd.DataFrame) -> Drawings:
    """Accuracy against the budget: a panel an attack, static and adaptive, a line a defence; clean is eps 0."""
    for (dataset, classifier, seed, norm), attacked in groups(
        judged[judged["attack"] != "clean"], ["dataset", "classifier", "seed", "norm"]
    ):
        own = judged[(judged["dataset"] == dataset) & (judged["classifier"] == classifier) & (judged["seed"] == seed)]
        clean = own[own["attack"] == "clean"]
        colours = _colours(own)
        panels = []
        every = pd.concat([clean[clean["defence"].isin(attacked["defence"])], attacked])
        budgets = sorted(set(every["eps"]))
        for _, title, rows in _attacked(attacked):
            shown = pd.concat([clean[clean["defence"].isin(rows["defence"])], rows])[_shown(judged)]
            if shown["eps"].nunique() < 2:
                continue
            lines: list[Series] = []
            hollow: list[Series] = []
            for (name,), line in groups(shown, ["defence"]):
                points = [_point(row["eps"], row) for row in records(line.sort_values("eps"))]
                lines.append(Series(name, points, colour=colours[name]))
                hollow += _hollow(line, "eps", colours[name], first=not hollow)
            panels.append((title, [*lines, *hollow], shown))
        ticks = [(eps, format_eps(eps)) for eps in budgets]
        for drawn, frame in _several(panels):
            where = _where(f"{classifier} on {dataset}, {norm}, seed {seed}", drawn)
            yield where, _panels("accuracy against eps", drawn, "eps", ticks), frame


def _by_attack(judged: pd.DataFrame) -> Drawings:
    """Avg of each defence, clean and under each attack at its largest budget, as a map."""
    for (dataset, classifier, seed), members in groups(judged, ["dataset", "classifier", "seed"]):
        shown = [members[members["attack"] == "clean"]]
        names = {"clean": "clean"} if len(shown[0]) else {}
        for series, title, rows in _attacked(members):
            top = rows[rows["eps"] == rows["eps"].max()]
            names[series] = f"{title} {format_eps(top['eps'].iloc[0])}"
            shown.append(top)
        frame = pd.concat(shown)
        defences = list(dict.fromkeys(members["defence"]))
        if len(names) < 2 or len(defences) < 2:
            continue
        tiles = {}
        for row in records(frame):
            column = names["clean" if row["attack"] == "clean" else row["series"]]
            value = row["avg"], row["avg_low"], row["avg_high"]
            note = f"{row['defence']}, {_threat(row)}: {percent(*value)}, {row['images']} images"
            tiles[row["defence"], column] = Tile(f"{100 * row['avg']:.1f}", row["avg"], note)
        caption = f"{classifier} on {dataset}, seed {seed}: Avg in %, each attack at its largest budget"
        yield caption, heat_map("accuracy, %", defences, list(names.values()), tiles), frame[_shown(judged)]


def t_star_families(defences: Mapping[str, Defence], t_star: Mapping[str, int]) -> dict[str, str]:
    """Group cells that differ in t* alone: they have the same value.

    A defence of as many steps as it is deep is one of those with so many steps, if there are others; if not, the
    steps follow t*.
    """
    kinds: dict[str, tuple[str, int | None]] = {}
    for cell, defence in defences.items():
        rest = {k: v for k, v in defence.purifier.identity().items() if k not in ("t_star", "sigma_eq")}
        steps = rest.pop("steps", None)
        rest |= defence.answers
        kinds[cell] = digest(json.dumps(rest, sort_keys=True, default=str)), steps
    fewer = {kind for cell, kind in kinds.items() if kind[1] != t_star[cell]}
    return {cell: f"{kind[0]} {kind[1] if kind in fewer else ''}" for cell, kind in kinds.items()}


def _by_t_star(results: Results, judged: pd.DataFrame) -> Drawings:
    """Accuracy against t*, clean and at each budget, of defences that differ in t* alone."""
    cells = {cell.id: cell for cell in results.sweep.cells}
    deep = judged[judged["t_star"].notna()]
    if deep.empty:
        return
    t_star = {str(cell): int(level) for cell, level in zip(deep["cell"], deep["t_star"], strict=True)}
    families = t_star_families({cell: cells[cell].defence for cell in t_star}, t_star)
    for (dataset, classifier, seed, _), members in groups(
        deep.assign(family=deep["cell"].map(families)), ["dataset", "classifier", "seed", "family"]
    ):
        lines: list[Series] = []
        hollow: list[Series] = []
        rows = []
        for (attack, _), line in groups(members, ["series", "eps"]):
            if line["t_star"].nunique() < max(2, len(line)):
                continue
            ordered = line.sort_values("t_star")
            points = [_point(row["t_star"], row) for row in records(ordered)]
            name = _threat(records(line)[0])
            hollow += _hollow(ordered, "t_star", len(lines), first=not hollow)
            lines.append(Series(name, points, dashed=attack == "clean"))
            rows.append(ordered)
        if lines:
            shown = pd.concat(rows)[_shown(judged)]
            ticks = sorted({int(value) for value in shown["t_star"]})
            drawing = line_chart([*lines, *hollow], "t*", "accuracy, %", [(t, str(t)) for t in ticks])
            deepest = cells[shown.sort_values("t_star")["cell"].iloc[-1]].defence.label()
            purifier = re.sub(r" t\*=\d+", "", deepest)
            yield f"{classifier} on {dataset}, {purifier}, seed {seed}; dashed: clean", drawing, shown


def _by_cost(analysis: Analysis, judged: pd.DataFrame) -> Drawings:
    """Accuracy against network evaluations of one answer, clean (hollow) and at each attack's largest budget."""
    judged = judged.assign(evaluations=judged["cell"].map(analysis.evaluations))
    for (dataset, classifier, seed), members in groups(judged, ["dataset", "classifier", "seed"]):
        clean = members[members["attack"] == "clean"]
        colours = _colours(members)
        panels = []
        for _, title, rows in _attacked(members):
            top = rows[rows["eps"] == rows["eps"].max()]
            shown = pd.concat([clean[clean["defence"].isin(top["defence"])], top])
            if top["defence"].nunique() < 2 or shown["evaluations"].nunique() < 2:
                continue
            shown = shown[[*_SHOWN, "draws", "evaluations", *_AVG]]
            lines = []
            for (name,), line in groups(shown, ["defence"]):
                for hollow, part in (
                    (True, line[line["attack"] == "clean"]),
                    (False, line[line["attack"] != "clean"]),
                ):
                    points = [_point(row["evaluations"], row) for row in records(part)]
                    if points:
                        legend = "" if hollow else name
                        lines.append(Series(legend, points, kind="points", colour=colours[name], hollow=hollow))
            panels.append((f"{title} {format_eps(top['eps'].iloc[0])}", lines, shown))
        for drawn, frame in _several(panels):
            where = _where(f"{classifier} on {dataset}, seed {seed}; hollow: clean", drawn)
            title = "accuracy against network evaluations"
            yield where, _panels(title, drawn, "network evaluations per answer", logarithmic=True), frame


_LINES = 13
"""Lines of the picture of the verdict: the bare classifier, and the best twelve."""


def _verdict(headline: pd.DataFrame) -> list[Figure]:
    """Return the picture of the verdict for each classifier: clean, static, strongest, certified, a line a defence.

    The strongest attack is shown where somebody attacked who knew the defence: elsewhere static is all there is.
    Lines that met no attack stand with those of every norm.
    """
    found: list[Figure] = []
    if headline.empty:
        return found
    several = headline["seed"].nunique() > 1
    for (dataset, classifier, seed), members in groups(headline, ["dataset", "classifier", "seed"]):
        for norm in members["norm"].dropna().unique() if members["norm"].notna().any() else [None]:
            rows = members[members["norm"].isna() | (members["norm"] == norm)]
            ordered = rows.sort_values(["bare", "strongest"], ascending=[False, False], kind="stable")
            shown = ordered.head(_LINES)
            lines = [(str(row["defence"]), marks) for row in records(shown) if (marks := _marks(row))]
            budget = "" if norm is None else f", {norm} eps {format_eps(rows['eps'].max())}"
            left = len(ordered) - len(shown)
            caption = f"{classifier} on {dataset}{budget}" + (f", seed {seed}" if several else "")
            caption += f"; {left} further defences are in the leaderboard" if left > 0 else ""
            drawing = ranked_chart(f"accuracy of each defence: {caption}", _SHOWN_KINDS, lines)
            if drawing.notes:
                found.append(Figure(f"verdict-{len(found) + 1}", VERDICT, caption, drawing, shown))
    return found


def _marks(row: dict[str, Any]) -> list[Mark]:
    marks = []
    for number, kind in enumerate(_SHOWN_KINDS):
        if missing(row[kind]) or (kind == "strongest" and missing(row["adaptive"])):
            continue
        value = row[kind], row[f"{kind}_low"], row[f"{kind}_high"]
        of = "" if kind == "clean" or missing(row.get(f"{kind}_attack")) else f" ({row[f'{kind}_attack']})"
        of = f" at l_2 radius {row['radius']:g}" if kind == "certified" else of
        marks.append(Mark(number, *value, f"{row['defence']}, {kind}{of}: {percent(*value)}"))
    return marks


_SHOWN_KINDS = ("clean", "static", "strongest", "certified")
