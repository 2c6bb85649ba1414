"""Two runs as a page: numbers are those of ``compare --json``, images that changed sides those of the rows."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from test_check import filled, puregrid, snapshot  # type: ignore[import-not-found]

from workflows.images.single import Reader
from workflows.regression.compare import changed_sides, compare_runs
from workflows.regression.folder import comparison_folder
from workflows.regression.page import comparison_page
from workflows.regression.thumbnails import thumbnails
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


def test_images_that_changed_sides_are_shown_with_their_classes_and_answers(runs: tuple) -> None:  # type: ignore[type-arg]
    """Those that each run gave its defence, by the images and rows of its store; the names say class and answers."""
    first, second = map(snapshot, runs)
    moved = [side for side in changed_sides(first, second) if side.only_first or side.only_second]
    groups = thumbnails(first, second, moved)
    assert [group.cell for group in groups] == [side.cell for side in moved] and groups
    for group, side in zip(groups, moved, strict=True):
        ids = [*side.only_first[:6], *side.only_second[:6]]
        assert [int(image.anchor.rpartition("-")[2]) for image in group.images] == ids and group.why_not == ""
        place = [cell.name for cell in first.cells].index(side.cell)
        cells = [sweep.cells[place] for sweep, *_ in runs]
        rows = [
            Results(store, sweep).rows(cell).set_index("image_id")
            for (sweep, store, _), cell in zip(runs, cells, strict=True)
        ]
        for image, number in zip(group.images, ids, strict=True):
            answers = [", ".join(map(str, frame["prediction"][number])) for frame in rows]
            label = rows[0]["label"][number]
            alts = [alt for alt, _ in image.pictures]
            assert image.caption[0] == f"image {number}, class {label}"
            assert image.caption[2:] == (f"first run: {answers[0]}", f"second run: {answers[1]}")
            joined = "; ".join(alts)
            assert f"first run: {answers[0]}" in joined and f"second run: {answers[1]}" in joined
            kinds = {"original" if cell.source is None else "adversarial" for cell in cells}
            assert all(alt.startswith(f"{next(iter(kinds))} image {number} of class {label}; ") for alt in alts)
            assert image.commands[1] == f"puregrid show SWEEP --cell {cells[1].id[:8]} --image {number}"
            given = [
                Reader(Results(store, sweep)).given(cell, number)
                for (sweep, store, _), cell in zip(runs, cells, strict=True)
            ]
            if given[1] is not None:
                data = base64.b64decode(image.pictures[-1][1].partition(",")[2])
                levels = np.asarray(Image.open(io.BytesIO(data)))
                assert np.array_equal(levels, np.round(255 * given[1][0]).astype(np.uint8))
    text = comparison_page(first, second, ("a", "b"))
    shown = [image for group in groups for image in group.images]
    assert all(f'id="{image.anchor}"' in text and f'href="#{image.anchor}"' in text for image in shown)
    without = replace(first, results=None)  # a baseline file has no images
    assert thumbnails(without, second, moved) == [] and "data:image/png" not in comparison_page(
        without, second, ("a", "b")
    )


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


@pytest.mark.slow
def test_a_folder_has_a_page_of_every_draw_for_each_image_that_it_shows(runs: tuple, tmp_path: Path) -> None:  # type: ignore[type-arg]
    """Those are what ``show`` says of the image in either run, lead back to where they came from, and are bounded."""
    names = [f"{path}@{store.uri}" for _, store, path in runs]
    (tmp_path / "both/images").mkdir(parents=True)
    (tmp_path / "both/images/0123abcd-7-first.html").touch()  # of an earlier comparison
    found = puregrid("compare", *names, "--out", f"{tmp_path}/both/")
    assert found.exit_code == 0 and found.stdout.strip() == f"{tmp_path}/both/index.html", found.output
    index = ElementTree.parse(tmp_path / "both/index.html").getroot()
    links = [a for a in index.iter("a") if a.get("href", "").startswith("images/")]
    files = [a.get("href", "") for a in links]
    assert {str(path.relative_to(tmp_path / "both")) for path in (tmp_path / "both/images").iterdir()} == set(files)
    assert 4 <= len(files) == len(set(files)) <= 48
    anchors = {element.get("id") for element in index.iter() if element.get("id")}
    for place, file in enumerate(files[:4]):
        page = ElementTree.parse(tmp_path / "both" / file).getroot()
        cell, image, run = Path(file).stem.split("-")
        back, other = (a.get("href", "") for a in page.findall(".//p[@class='crumbs']/a"))
        assert back.partition("#")[0] == "../index.html" and back.partition("#")[2] in anchors
        assert (tmp_path / "both/images" / other).exists() and links[place].text == f"all draws, {run} run"
        _, store, path = runs[("first", "second").index(run)]
        said = json.loads(
            puregrid("show", path, "--store", store.uri, "--cell", cell, "--image", image, "--json").stdout
        )
        text = "".join(page.itertext())
        assert f"{run} run" in text and said["title"] in text
        for draw in said["draws"]:
            wrong = "right" if draw["prediction"] == said["label"] else "wrong"
            assert f"draw {draw['draw']}: {draw['class']}{wrong}, {100 * draw['confidence']:.1f} %" in text


def test_pages_of_an_earlier_comparison_go_and_other_files_stay(runs: tuple, tmp_path: Path) -> None:  # type: ignore[type-arg]
    images, same = tmp_path / "images", snapshot(runs[0])
    images.mkdir()
    others = ("notes.html", "0123abcd-7-third.html", "0123abcd-7-first.html.txt")
    for name in ("0123abcd-7-first.html", "0123abcd-7-second.html", *others):
        (images / name).write_text("old")
    assert comparison_folder(same, same, ("a", "b"), tmp_path).read_text() == comparison_page(same, same, ("a", "b"))
    assert {path.name for path in images.iterdir()} == set(others)


def test_two_equal_runs_say_that_nothing_moved(runs: tuple) -> None:  # type: ignore[type-arg]
    same = snapshot(runs[0])
    text = comparison_page(same, same, ("a <b>", "c"))
    assert "a &lt;b&gt;" in text and "Nothing: both runs have the same specs." in text
    assert "0 are better in the second run and 0 worse" in text and "In 2 cells no image changed sides" in text
    assert puregrid("compare", "x", "y", "--out", "/nowhere/at/all.html").exit_code == 2


def test_a_page_does_not_take_the_place_of_what_it_compares(tmp_path: Path) -> None:
    baseline = tmp_path / "night.json"
    baseline.write_text("precious")
    for command in (
        ("compare", baseline, "results", "--out", f"{tmp_path}/./night.json"),
        ("compare", f"{baseline}@results", baseline, "--out", baseline),
        ("check", "s.yaml", "--baseline", baseline, "--junit", baseline),
        ("promote", baseline, "--to", baseline),
    ):
        refused = puregrid(*command)
        assert refused.exit_code == 2 and "is a file that this command reads" in refused.stderr, command
    assert baseline.read_text() == "precious"
