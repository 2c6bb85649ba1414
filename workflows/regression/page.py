"""Two runs side by side as one page: paired differences, what changed in the specs, images that changed sides."""

from collections.abc import Sequence

from workflows.regression.compare import Comparison, Sides, changed_sides, compare_runs
from workflows.regression.snapshots import Snapshot
from workflows.regression.texts import changed_specs, comparison_table
from workflows.regression.thumbnails import Pages, thumbnails
from workflows.report.charts import Point, forest_chart
from workflows.report.parts import OPEN_LINES, drawn, environment, grid_of, look
from workflows.tables.table import Table, interval

__all__ = ["comparison_page"]

_DRAWN, _SIDES, _IDS = 60, 200, 60
"""Differences in the figure, cells of which images are listed, and images of a side at most."""


def comparison_page(first: Snapshot, second: Snapshot, names: tuple[str, str], pages: Pages | None = None) -> str:
    """Return the page.

    Arguments:
        first: The first run.
        second: The second, of which differences are the surplus.
        names: What the user calls them.
        pages: Writes the pages of an image that changed sides; None where the page stands alone.
    """
    comparisons = compare_runs(first, second)
    table = comparison_table(comparisons)
    sides = changed_sides(first, second)
    moved = [side for side in sides if side.only_first or side.only_second]
    moved.sort(key=lambda side: -len(side.only_first) - len(side.only_second))
    return (
        environment()
        .get_template("compare.html")
        .render(
            **look(),
            title="Two runs",
            names=names,
            sources=(first, second),
            sentences=_sentences(comparisons),
            figure=_figure(comparisons, table),
            table=grid_of(table),
            open_lines=OPEN_LINES,
            changes=changed_specs(comparisons),
            cells=len(comparisons),
            sides=[_listed(side) for side in moved[:_SIDES]],
            further=max(0, len(moved) - _SIDES),
            pictures=thumbnails(first, second, moved, pages),
            still=len(sides) - len(moved),
        )
    )


def _sentences(comparisons: Sequence[Comparison]) -> list[str]:
    compared = [cell for cell in comparisons if cell.difference is not None and cell.p_holm is not None]
    if not compared:
        return ["No cell of the two runs could be compared; the table says why."]
    sure = [cell for cell in compared if cell.p_holm is not None and cell.p_holm < 0.05]
    up = sum(cell.answers is not None and cell.answers.only_second > cell.answers.only_first for cell in sure)
    text = (
        f"Of {len(compared)} cells that both runs have, {up} are better in the second run and {len(sure) - up} worse "
        "(p below 0.05 over all cells, Holm); the others do not differ significantly."
    )
    least = min(compared, key=lambda cell: 0.0 if cell.difference is None else cell.difference.value)
    most = max(compared, key=lambda cell: 0.0 if cell.difference is None else cell.difference.value)
    said = []
    for word, cell in (("lowest", least), ("highest", most)):
        assert cell.difference is not None
        points = interval(cell.difference.value, cell.difference.low, cell.difference.high, sign="+")
        said.append(f"{word} {points} points ({cell.cell})")
    return [text, f"Differences of {compared[0].measure}, second minus first: {said[0]}, {said[1]}."]


def _figure(comparisons: Sequence[Comparison], table: Table) -> dict[str, object] | None:
    lines = []
    for cell in comparisons:
        if cell.difference is None:
            continue
        value = cell.difference.value, cell.difference.low, cell.difference.high
        note = f"{cell.cell}: {interval(*value, sign='+')} points of {cell.measure}, {cell.difference.images} images"
        lines.append((cell.cell, Point(0.0, *value, note)))
    if not lines:
        return None
    lines.sort(key=lambda line: -abs(line[1].y))
    left = len(lines) - _DRAWN
    caption = "Second minus first with the paired 95 % interval; filled where it leaves out 0"
    caption += f"; the largest {_DRAWN} of {len(lines)}" if left > 0 else ""
    drawing = forest_chart("paired differences", "second minus first, points", lines[:_DRAWN])
    return drawn("differences", "Paired differences", caption, drawing, table.frame)


def _listed(side: Sides) -> dict[str, object]:
    def ids(images: Sequence[int]) -> str:
        more = f" and {len(images) - _IDS} more" if len(images) > _IDS else ""
        return (", ".join(map(str, images[:_IDS])) + more) or "none"

    return {
        "cell": side.cell,
        "first": ids(side.only_first),
        "second": ids(side.only_second),
        "counts": (len(side.only_first), len(side.only_second), side.both, side.neither),
    }
