"""Two runs as a page: numbers are those of ``compare --json``, images that changed sides those of the rows."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from test_check import filled, puregrid, snapshot  # type: ignore[import-not-found]

from workflows.regression.compare import changed_sides, compare_runs
from workflows.regression.page import comparison_page
from workflows.results.reader import Results


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, object]:
    folder = tmp_path_factory.mktemp("runs")
    return filled(folder), filled(folder, mean=1.1)


def test_images_that_changed_sides_are_those_of_mcnemar_and_of_the_rows(runs: tuple) -> None:  # type: ignore[type-arg]
    first, second = map(snapshot, runs)
    sides = changed_sides(first, second)
    comparisons = [cell for cell in compare_runs(first, second) if cell.answers is not None]
    assert len(sides) == len(comparisons) == 2
    moved = 0
    for place, (side, compared) in enumerate(zip(sides, comparisons, strict=True)):
        assert compared.answers is not None and side.cell == compared.cell
        assert (len(side.only_first), len(side.only_second)) == (
            compared.answers.only_first,
            compared.answers.only_second,
        )
        right = []
        for sweep, store, _ in runs:
            rows = Results(store, sweep).rows(sweep.cells[place])
            answers = np.stack(list(rows["prediction"]))[:, 0] == rows["label"].to_numpy()
            right.append({int(i) for i, is_right in zip(rows["image_id"], answers, strict=True) if is_right})
        assert set(side.only_first) == right[0] - right[1] and set(side.only_second) == right[1] - right[0]
        assert side.both == len(right[0] & right[1]) and side.neither == 150 - len(right[0] | right[1])
        moved += len(side.only_first) + len(side.only_second)
    assert moved > 5


def test_the_page_has_the_numbers_of_json_and_fetches_nothing(runs: tuple, tmp_path: Path) -> None:  # type: ignore[type-arg]
    names = [f"{path}@{store.uri}" for _, store, path in runs]
    out = tmp_path / "page.html"
    found = puregrid("compare", *names, "--out", out)
    assert found.exit_code == 0 and found.stdout.strip() == str(out)
    page = ElementTree.parse(out).getroot()
    text = "".join(page.itertext())
    content = json.loads(puregrid("compare", *names, "--json").stdout)
    table = next(section for section in page.iter("section") if section.get("id") == "comparison")
    lines = ["".join(row.itertext()) for row in table.findall(".//tbody/tr")]
    assert len(lines) == len(content)
    for line, cell in zip(lines, content, strict=True):
        assert cell["cell"] in line and f"{100 * cell['difference']:+.1f}" in line
        assert f"[{100 * cell['low']:+.1f}, {100 * cell['high']:+.1f}]" in line
        assert f"{100 * cell['first']:.1f}" in line and f"{100 * cell['second']:.1f}" in line
        for change in cell["changes"]:
            assert change["field"] in text
    marks = [path.findtext("title") for path in page.iter("path") if path.find("title") is not None]
    assert len(marks) == len(content)
    for element in page.iter():
        for name in ("href", "src"):
            assert element.get(name, "#").startswith(("#", "data:"))


def test_two_equal_runs_say_that_nothing_moved(runs: tuple) -> None:  # type: ignore[type-arg]
    same = snapshot(runs[0])
    text = comparison_page(same, same, ("a <b>", "c"))
    assert "a &lt;b&gt;" in text and "Nothing: both runs have the same specs." in text
    assert "0 are better in the second run and 0 worse" in text and "In 2 cells no image changed sides" in text
    assert puregrid("compare", "x", "y", "--out", "/nowhere/at/all.html").exit_code == 2
