from __future__ import annotations

import re
from pathlib import Path

from test_check import filled  # type: ignore[import-not-found]

from workflows.analysis import Analysis
from workflows.planning.plan import make_plan
from workflows.report import report
from workflows.report.charts import Point, Series, line_chart
from workflows.results.reader import Results


def test_page_is_self_contained_and_says_what_the_rows_say(tmp_path: Path) -> None:
    sweep, store, _ = filled(tmp_path)
    results = Results(store, sweep)
    page = report(Analysis(results), command="puregrid run it.yaml")
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "@import" not in page and "fetch(" not in page
    table = results.robustness()
    for accuracy in table["avg"]:
        assert f">{100 * accuracy:.1f}<" in page
    cell = sweep.cells[0]
    for fact in (sweep.id, cell.classifier.sha256, cell.images.dataset.digest, "puregrid run it.yaml"):
        assert fact is not None and fact in page
    figure = page.partition('<figure id="eps-1"')[2].partition("</figure>")[0]
    assert len(re.findall(r'<path class="dot c0" [^>]*><title>', figure)) == 2  # clean and one budget on one line
    assert "not complete" not in page


def test_partial_results_are_marked_as_partial(tmp_path: Path) -> None:
    sweep, store, _ = filled(tmp_path)
    stage = make_plan(sweep).stages[0]
    store.revoke(stage.spec.stage, stage.id, stage.chunks[1].name)
    page = report(Analysis(Results(store, sweep)), command="x")
    assert "1 of 2 cells are not complete" in page and "100 of 150" in page


def test_sweep_text_cannot_inject_markup(tmp_path: Path) -> None:
    _, store, path = filled(tmp_path)
    path.write_text(path.read_text() + "# <script>alert(1)</script>\n")
    from workflows.grid.load import load_sweep

    page = report(Analysis(Results(store, load_sweep(path))), command="<b>")
    assert page.count("<script>") == 1 and "<script>alert" not in page and "&lt;script&gt;" in page
    assert "<b>" not in page


def test_chart_puts_points_where_the_values_are() -> None:
    line = Series("a", [Point(0.0, 1.0, 0.9, 1.0, "one"), Point(0.2, 0.0, 0.0, 0.1, "two")])
    svg = line_chart([line], "eps", "accuracy, %", [(0.0, "0"), (0.2, "0.2")]).inline()
    dots = re.findall(r'<path class="dot c0" transform="translate\(([\d.]+) ([\d.]+)\)"', svg)
    # 640 x 360 with margins 56, 16, 16, 48: x from 56 to 624, y from 16 (100 %) to 312 (0 %).
    assert dots == [("56.0", "16.0"), ("624.0", "312.0")]
    assert "<title>one</title>" in svg
