"""The page against the store that it is from: numbers, figures, images, and what a browser makes of it."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from browser import CHROMIUM, browse  # type: ignore[import-not-found]
from helpers_small import ASSETS, compute, small_sweep  # type: ignore[import-not-found]
from PIL import Image
from typer.testing import CliRunner

from defense import DiffusersConfig
from defense.purifiers.diffpure import DiffPureConfig
from tasks.attacks.budgets import format_eps
from tasks.datasets import ImageSet
from tasks.stages import images_from_table
from workflows.analysis import Analysis
from workflows.audit import findings
from workflows.cli import app
from workflows.grid.cells import Defence
from workflows.images import amplified, png
from workflows.report import report
from workflows.report.figures import t_star_families
from workflows.report.gallery import Group
from workflows.report.page import _Content
from workflows.report.size import Piece, data_uri, fitted
from workflows.results.reader import Results
from workflows.store import Store

pytestmark = pytest.mark.slow  # the sweep of which the page is, once for all tests

HEAD = f"""
sweep: '<full> & "more"'
datasets:
  - dataset: digits
    images: {{first: 12}}
classifiers: [digits-cnn]
denoisers:
  digits-ddpm: {{format: diffusers, path: {ASSETS / "digits-ddpm"}, schedule: linear-1000}}
chunk: 12
"""
DEFENCES = """
defences:
  - none
  - {purifier: diffpure, denoiser: digits-ddpm, schedule: linear-1000, t_star: [10, 60], steps: 2, draws: 2}
"""
ATTACKS = """
attacks:
  - none
  - {attack: pgd, norm: linf, eps: [0.05, 0.2], steps: 2, step_size: 0.06}
  - {attack: fgsm, norm: linf, eps: 0.2}
"""
CORRUPTIONS = """
corruptions:
  - {corruption: [gaussian_noise, contrast], severity: [1, 5]}
"""
CERTIFIED = """
include:
  - defences: [none, {purifier: one-shot, denoiser: digits-ddpm, sigma_eq: 0.25}]
    attacks: null
    corruptions: null
    certificates: [{sigma: [0.25, 0.5], n: 40, n0: 10, shard: 40}]
"""
FULL = HEAD + DEFENCES + ATTACKS + CORRUPTIONS + CERTIFIED + "quality: true\n"
COMMAND = "puregrid run 'a b.yaml' && puregrid report <it>"


class Full:
    """A computed sweep with everything, its page, and what the command line says in JSON."""

    def __init__(self, folder: Path) -> None:
        self.sweep, self.store = small_sweep(folder, FULL), Store(str(folder / "store"))
        self.path = folder / "small.yaml"
        compute(self.sweep, self.store.uri)
        self.results = Results(self.store, self.sweep)
        self.text = report(Analysis(self.results), command=COMMAND)
        self.page = ElementTree.fromstring(self.text)
        found = CliRunner().invoke(
            app, ["tables", str(self.path), "--store", self.store.uri, "--format", "json"], catch_exceptions=False
        )
        self.json: dict[str, list[dict[str, Any]]] = json.loads(found.stdout)

    def part(self, text: str, folder: Path) -> Results:
        """Another sweep of the same stages, of which the rows are all there."""
        return Results(self.store, small_sweep(folder, text))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Full:
    return Full(tmp_path_factory.mktemp("full"))


def by_id(page: Element, name: str) -> Element:
    found = [element for element in page.iter() if element.get("id") == name]
    assert len(found) == 1, name
    return found[0]


def words(element: Element) -> str:
    """Text of an element without marks of findings."""
    inner = "".join(words(child) + (child.tail or "") for child in element if "mark" not in child.get("class", ""))
    return (element.text or "") + inner


def table(page: Element, name: str) -> list[dict[str, str]]:
    """The lines of a table by column, whitespace as one blank before an interval."""
    grid = by_id(page, name).find(".//table")
    assert grid is not None
    names = [words(cell) for cell in grid.findall("thead/tr/th")]
    lines = [[words(cell).replace("[", " [") for cell in line.findall("td")] for line in grid.findall("tbody/tr")]
    return [{n: v for n, v in zip(names, line, strict=True) if n != "look"} for line in lines]


def download(page: Element, file: str) -> str:
    found = [link for link in page.iter("a") if link.get("download") == file]
    assert len(found) == 1, file
    return base64.b64decode(found[0].get("href", "").partition("base64,")[2]).decode()


def percent(value: float | None, low: float | None = None, high: float | None = None, sign: str = "") -> str:
    if value is None:
        return "-"
    text = f"{100 * value:{sign}.1f}"
    return text if low is None or high is None else f"{text} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def interval(row: dict[str, Any], name: str) -> str:
    return percent(row[name], row[f"{name}_low"], row[f"{name}_high"])


# Numbers


def test_the_robustness_table_is_that_of_json(full: Full) -> None:
    lines, rows = table(full.page, "robustness"), full.json["robustness"]
    assert len(lines) == len(rows) == 12
    for line, row in zip(lines, rows, strict=True):
        several = row["draws"] > 1
        assert line == {
            **{name: row[name] for name in ("classifier", "defence", "attack")},
            **{name: str(row[name]) for name in ("images", "draws")},
            "eps": format_eps(row["eps"]),
            "Avg": interval(row, "avg"),
            "Wor-M": interval(row, "worst") if several else percent(row["worst"]),
            "MV-K": interval(row, "vote") if several else percent(row["vote"]),
            "fixed noise": interval(row, "fixed") if several else percent(row["fixed"]),
        }


def test_certificates_envelope_corruptions_gains_quality_and_cost_are_those_of_json(full: Full) -> None:
    certified = table(full.page, "certified")
    assert len(certified) == len(full.json["certified"]) == 4
    for line, row in zip(certified, full.json["certified"], strict=True):
        assert (line["ACR"], line["sigma"]) == (f"{row['acr']:.3f}", f"{row['sigma']:g}")
        assert (line["bound"], line["abstained"]) == (percent(row["bound"]), percent(row["abstained"]))
        curve = [c for c in full.json["certified_curves"] if c["cell"] == row["cell"]]
        assert {f"r={c['radius']:g}": percent(c["accuracy"]) for c in curve}.items() <= line.items()
    envelope = [(line["radius"], line["certified"], line["sigma"]) for line in table(full.page, "envelope")]
    assert envelope == [
        (f"{r['radius']:g}", percent(r["accuracy"]), f"{r['sigma']:g}") for r in full.json["envelope"]
    ]
    for line, defence in zip(table(full.page, "corruptions"), ("none", "t*=10", "t*=60"), strict=True):
        assert defence in line["defence"]
        own = [r for r in full.json["corruptions"] if r["defence"] == line["defence"] and r["severity"] == "all"]
        shown = {r["corruption"] if r["corruption"] != "all" else "all 2": percent(r["accuracy"]) for r in own}
        assert len(own) == 3 and shown.items() <= line.items()
    gains = [r for r in full.json["corruption_gains"] if r["severity"] == "all"]
    assert [line["gain"] for line in table(full.page, "corruption_gains")] == [
        percent(r["gain"], r["low"], r["high"], sign="+") for r in gains
    ]
    quality = table(full.page, "quality")
    assert [(line["pair"], line["PSNR"], line["SSIM"]) for line in quality] == [
        (r["pair"], f"{r['psnr']:.2f}" if math.isfinite(r["psnr"]) else "inf", f"{r['ssim']:.4f}")
        for r in full.json["quality"]
    ]
    cost = [(line["stage"], line["denoiser evals"], line["classifier evals"]) for line in table(full.page, "cost")]
    assert cost == [
        (r["stage"], f"{r['denoiser_evaluations']:,}", f"{r['classifier_evaluations']:,}") for r in full.json["cost"]
    ]
    combined = [line["lowest"] for line in table(full.page, "combined")]
    assert combined == [interval(row, "lowest") for row in full.json["combined"]] and len(combined) == 3


def test_a_curve_over_t_star_joins_what_differs_in_t_star_alone() -> None:
    denoiser = DiffusersConfig(schedule="linear-1000", path=str(ASSETS / "digits-ddpm")).resolved(Path())

    def family(*settings: tuple[int, int | None, int]) -> list[int]:
        """Numbers of the families of DiffPure with so large a t*, so many steps and draws."""
        found = []
        for t, steps, draws in settings:
            purifier = DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=t, steps=steps)
            found.append(Defence(purifier.resolved(Path()), draws, "single"))
        cells = {str(i): defence for i, defence in enumerate(found)}
        families = t_star_families(cells, {str(i): t for i, (t, *_) in enumerate(settings)})
        return [list(dict.fromkeys(families.values())).index(families[cell]) for cell in cells]

    assert family((5, 5, 2), (10, 5, 2), (100, 5, 2)) == [0, 0, 0], "five steps each, though one is no deeper"
    assert family((5, 5, 2), (10, 10, 2), (100, 100, 2)) == [0, 0, 0], "the steps follow the depth"
    assert family((5, None, 2), (10, None, 2)) == [0, 0]
    assert family((10, 5, 2), (100, 20, 2), (100, 5, 3)) == [0, 1, 2]


def test_every_table_can_be_had_unrounded(full: Full) -> None:
    for name, rows in full.json.items():
        if name in ("findings", "certified_curves", "ladders", "tables"):
            continue
        frame = pd.read_csv(io.StringIO(download(full.page, f"{name}.csv")))
        assert len(frame) == len(rows) > 0
        for column in frame.select_dtypes("number"):
            there = [row[column] for row in rows]
            expected = np.array([np.nan if value is None else value for value in there], dtype=float)
            np.testing.assert_array_equal(frame[column].to_numpy(float), expected, err_msg=f"{name} {column}")


def test_the_words_name_the_best_defence_by_what_its_strongest_attack_leaves(full: Full) -> None:
    top = pd.DataFrame(full.json["robustness"])
    top = top[top["eps"] == 0.2]
    worst = top.groupby("defence", sort=False)["avg"].min()
    assert worst.nunique() > 1
    lead = [words(p) for p in full.page.iter("p") if p.get("class") == "said"]
    line = next(text for text in lead if "linf attacks at eps 0.2" in text)
    assert f"{percent(worst['none'])} % [" in line and f"{percent(worst.max())} % [" in line
    assert f"with {worst.idxmax()} under" in line and "The auditor doubts this figure." in line
    best = max(full.json["certified"], key=lambda row: row["acr"])
    assert any(f"largest average radius is {best['acr']:.3f}, with {best['defence']}" in text for text in lead)


def test_rows_carry_the_findings_on_their_cells_and_lead_to_them(full: Full) -> None:
    found = findings(full.results)
    grid = by_id(full.page, "robustness")
    labels = full.sweep.labels
    corrupted = [
        [cell.id for cell in full.sweep.corrupted if labels[cell.id]["defence"] == line["defence"]]
        for line in table(full.page, "corruptions")
    ]
    lines = [*grid.findall(".//tbody/tr"), *by_id(full.page, "corruptions").findall(".//tbody/tr")]
    cells = [*([row["cell"]] for row in full.json["robustness"]), *corrupted]
    assert [len(own) for own in corrupted] == [4, 4, 4]
    seen = 0
    for line, own in zip(lines, cells, strict=True):
        marks = [mark for mark in line.iter("a") if "mark" in mark.get("class", "").split()]
        expected = [number for number, finding in enumerate(found, 1) if set(own) & set(finding.cells)]
        assert [mark.text for mark in marks] == [str(number) for number in expected]
        for mark, number in zip(marks, expected, strict=True):
            target = by_id(full.page, mark.get("href", "").removeprefix("#"))
            assert found[number - 1].rule in words(target) and f"{found[number - 1].severity} {number}" in words(
                target
            )
            assert found[number - 1].severity in mark.get("class", "")
        seen += len(marks)
    assert seen > 0


# Figures


def dots(figure: Element) -> list[tuple[str, float, str]]:
    """Class, value on the y axis and words of each mark, by the labels of the axis."""
    found = []
    for chart in charts(figure):
        share = shares(chart)
        for mark in chart.iter("path"):
            if mark.find("title") is not None:
                _, y = map(float, mark.get("transform", "")[len("translate(") : -1].split())
                found.append((mark.get("class", ""), share(y), mark.findtext("title") or ""))
    return found


def charts(figure: Element) -> list[Element]:
    return [svg for svg in figure.iter("svg") if svg.get("class") == "chart"]


def shares(chart: Element) -> Callable[[float], float]:
    """The share that is at a place of the y axis, by two of its labels."""
    labels = [
        (float(t.get("y", "")) - 4, int(t.text or "") / 100)
        for t in chart.iter("text")
        if t.get("text-anchor") == "end"
    ]
    (bottom, low), (top, high) = labels[0], labels[-1]
    return lambda y: low + (bottom - y) / (bottom - top) * (high - low)


def figure_of(full: Full, caption: str) -> tuple[Element, pd.DataFrame]:
    found = [figure for figure in full.page.iter("figure") if caption in words(figure)]
    assert len(found) == 1, caption
    return found[0], pd.read_csv(io.StringIO(download(full.page, f"{found[0].get('id')}.csv")))


def test_figures_of_accuracy_show_their_rows_and_these_are_those_of_json(full: Full) -> None:
    rows = {row["cell"]: row for row in full.json["robustness"]}
    for caption, count in (
        ("digits-cnn on digits, linf, seed 0", 15),  # three defences clean, under pgd at two budgets and fgsm at one
        ("diffpure in 2 steps, seed 0; dashed: clean", 8),  # two depths; clean, pgd at two budgets, fgsm
        ("seed 0; hollow: clean", 12),
    ):
        figure, frame = figure_of(full, caption)
        assert len(frame) == count
        for row in frame.to_dict("records"):
            for name in ("avg", "avg_low", "avg_high", "eps", "defence", "attack", "images"):
                assert row[name] == rows[row["cell"]][name]
        shown = dots(figure)
        assert sorted(y for _, y, _ in shown) == pytest.approx(sorted(frame["avg"]), abs=3e-4)
        assert sorted(f"{percent(row['avg'])} %" for _, row in frame.iterrows()) == sorted(
            re.findall(r"[\d.]+ %", " ".join(text for _, _, text in shown))
        )


def test_cost_is_network_evaluations_of_one_answer(full: Full) -> None:
    figure, frame = figure_of(full, "seed 0; hollow: clean")
    assert [len(list(chart.iter("path"))) for chart in charts(figure)] == [6, 6]
    # The classifier alone, and the denoiser's two steps before it, whatever the number of draws.
    assert set(zip(frame["defence"] == "none", frame["evaluations"], strict=True)) == {(True, 1.0), (False, 3.0)}


def step(points: list[tuple[float, float]], at: float) -> float:
    """Value of a drawn step at a place between its corners."""
    return next(b for (x, _), (y, b) in pairwise(points) if x < at < y)


def test_certified_curves_fall_where_the_rows_say(full: Full) -> None:
    shown = 0
    for figure in full.page.iter("figure"):
        if not figure.get("id", "").startswith("certified-"):
            continue
        frame = pd.read_csv(io.StringIO(download(full.page, f"{figure.get('id')}.csv")))
        lines = [line for line in figure.iter("polyline") if "stroke-dasharray" not in line.attrib]
        dashed = [line for line in figure.iter("polyline") if "stroke-dasharray" in line.attrib]
        truths: list[tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]] = []
        for _, (cell, own) in zip(lines, frame.groupby("cell", sort=False), strict=True):
            rows = full.results.rows(next(c for c in full.sweep.cells if c.id == cell))
            right, radius = (rows["prediction"] == rows["label"]).to_numpy(), rows["radius"].to_numpy()
            truths.append((right, radius))
            expected = [(right & (radius >= r)).mean() for r in own["radius"]]
            np.testing.assert_allclose(own["accuracy"], expected, atol=1e-15)
            assert set(radius[right]) <= set(own["radius"])
            table = {c["radius"]: c for c in full.json["certified_curves"] if c["cell"] == cell}
            at = own.set_index("radius")
            for r, row in table.items():
                assert (at["accuracy"][r], at["low"][r], at["high"][r]) == (row["accuracy"], row["low"], row["high"])
            shown += 1
        span = frame["radius"].max()
        for line, several in (
            *((line, [truth]) for line, truth in zip(lines, truths, strict=True)),
            *((line, truths) for line in dashed),
        ):
            corners = [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]
            share = shares(charts(figure)[0])
            drawn = [((x - 56) / 568 * span, share(y)) for x, y in corners]
            for r in np.linspace(0.003, span - 0.003, 41):
                near = min(abs(r - x) for x, _ in drawn)
                if near > 2e-3:  # between corners, which are drawn to a tenth of a pixel
                    best = max((right & (radius >= r)).mean() for right, radius in several)
                    assert step(drawn, r) == pytest.approx(best, abs=1e-3)
        assert len(dashed) == 1
    assert shown == 4


def test_maps_of_corruptions_show_accuracies_and_gains(full: Full) -> None:
    seen = 0
    for kind, name, sign in (("accuracy", "corruptions", ""), ("gain", "corruption_gains", "+")):
        for defence in dict.fromkeys(row["defence"] for row in full.json[name]):
            figure, frame = figure_of(full, f"{defence}, generated, seed 0: {kind}")
            rows = [row for row in full.json[name] if row["defence"] == defence]
            assert frame[kind].tolist() == [row[kind] for row in rows]
            tiles = {group.findtext("title"): group.findtext("text") for group in figure.iter("g")}
            assert len(tiles) == len(rows) == 7
            for row in rows:
                said = [v for t, v in tiles.items() if t and t.startswith(f"{row['corruption']} {row['severity']}:")]
                assert said == [percent(row[kind], sign=sign)]
            seen += 1
    assert seen == 5


def test_every_figure_can_be_had_as_a_file_of_its_own(full: Full) -> None:
    figures = list(full.page.iter("figure"))
    assert len(figures) > 8
    for figure in figures:
        file = download(full.page, f"{figure.get('id')}.svg")
        root = ElementTree.fromstring(file)
        inline = charts(figure)
        assert inline and "var(" not in file
        tags = [element.tag.rpartition("}")[2] for element in root.iter()]
        for tag, more in (("polyline", 0), ("polygon", 0), ("title", 1), ("rect", 1)):  # its title and its ground
            assert tags.count(tag) == sum(len(list(svg.iter(tag))) for svg in inline) + more, tag


# Images


def pixels(uri: str) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))))


def test_the_gallery_shows_the_stored_images(full: Full) -> None:
    section = by_id(full.page, "images")
    titles = [words(title) for title in section.iter("h3")]
    tables = list(section.iter("table"))
    assert len(titles) == len(tables) == 8
    # The strongest attack on each defence first, the bare classifier last.
    assert all("eps 0.2" in title for title in titles[:3]) and "none" in titles[2] and "none" not in titles[0]
    kinds: set[str] = set()
    for title, grid in zip(titles, tables, strict=True):
        cell = next(
            cell
            for cell in full.sweep.cells
            if cell.source is not None
            and (labels := full.sweep.labels[cell.id])["defence"] in title
            and (labels.get("corruption") or f"{labels['attack']} eps {format_eps(cell.attack.eps)}") in title  # type: ignore[union-attr]
        )
        chunk = cell.images.chunks[0]
        data: ImageSet = cell.images.dataset.load()
        assert cell.measure is not None and cell.source is not None
        bare = cell.defence.purifier.purifier == "none"
        given, made = (
            images_from_table(full.store.read_images(stage.stage, stage.id, chunk.name), chunk.ids)
            for stage in (cell.source, cell.measure)
        )
        factors = [np.float32(number) for number in re.findall(r"×([\d.]+)", words(next(grid.iter("thead"))))]
        assert len(factors) == 1 + (not bare)
        rows = full.results.rows(cell).set_index("image_id")
        for line in grid.findall("tbody/tr"):
            image_id = int(line.get("id", "").rpartition("-")[2])
            i, clean = chunk.ids.index(image_id), data.images[image_id]
            shown = [pixels(image.get("src", "")) for image in line.iter("img")]
            expected = [clean, given[i], np.clip(0.5 + factors[0] * (given[i] - clean), 0, 1)]
            if not bare:
                expected += [made[i], np.clip(0.5 + factors[1] * (made[i] - clean), 0, 1)]
            for image, wanted in zip(shown, expected, strict=True):
                np.testing.assert_array_equal(image, np.round(np.clip(wanted[0], 0, 1) * 255))
            label, answers = data.labels[image_id], np.asarray(rows["prediction"][image_id])
            said = words(line)
            right = int((answers == label).sum())
            assert f"class {label}" in said and f"{right} of {len(answers)} right" in said
            assert all(str(answer) in said.partition("answered")[2] for answer in answers)
            texts = [image.get("alt", "") for image in line.iter("img")]
            assert all(f"image {image_id}" in text for text in texts) and f"class {label}" in texts[0]
            kinds |= {kind.text or "" for kind in line.iter("span")}
            if "failures" in said:
                assert right < len(answers) / 2
        firsts = [line.get("id", "") for line in grid.findall("tbody/tr") if "first" in words(line)]
        assert [int(name.rpartition("-")[2]) for name in firsts if name] == sorted(chunk.ids[:3]) or len(firsts) == 3
    assert {"failures", "hardest", "first"} <= kinds


def test_lines_of_tables_lead_to_their_images(full: Full) -> None:
    ids = {element.get("id") for element in full.page.iter()}
    led = 0
    for line in by_id(full.page, "robustness").findall(".//tbody/tr"):
        links = [a.get("href", "") for a in line.iter("a") if a.get("href", "").startswith("#images-")]
        name = line.get("id", "").removeprefix("robustness-")
        assert links in ([], [f"#images-{name}"]) and all(link[1:] in ids for link in links)
        led += len(links)
    assert led > 3


def numbers_of(value: object) -> Iterator[str]:
    """Every way in which the page may write a number of the JSON: as a share in %, and as it is."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_of(inner)
    elif isinstance(value, str):
        yield from re.findall(NUMBER, value)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield from (f"{value:g}", f"{value:.0f}", f"{value:,.0f}", f"{value:.1f}", f"{value:.2f}", f"{value:.3f}")
        yield from (f"{value:.4f}", f"{value:.4g}", f"{100 * value:.1f}", f"{100 * value:+.1f}", format_eps(value))


NUMBER = r"[+-]?\d[\d,]*\.?\d*"


def test_every_number_of_verdict_tables_and_figures_is_one_of_json(full: Full) -> None:
    known = {text.lstrip("+-").rstrip(".,") for text in numbers_of(full.json)}
    known |= {str(n) for n in range(101)}  # counts of lines, findings and values, and the labels of axes
    sections = ["verdict", *(name for name in full.json if name not in ("findings", "tables", "certified_curves"))]
    looked = 0
    for name in sections:
        found = [element for element in full.page.iter() if element.get("id") == name]
        for section in found:
            for cell in [*section.iter("td"), *(p for p in section.iter("p") if p.get("class") in ("lead", "said"))]:
                for number in re.findall(NUMBER, words(cell).replace("[", " [")):
                    looked += 1
                    assert number.lstrip("+-").rstrip(".,") in known, (name, words(cell))
    for figure in full.page.iter("figure"):
        if figure.get("id", "").startswith("certified"):
            continue  # its radii are those of the rows; the test of certified curves holds them against these
        for text in [*(t.text or "" for t in figure.iter("title")), *(words(item) for item in figure.iter("li"))]:
            for number in re.findall(NUMBER, text):
                looked += 1
                assert number.lstrip("+-").rstrip(".,") in known, text
    assert looked > 800


def test_a_difference_is_amplified_as_far_as_nothing_is_cut() -> None:
    for largest, factor in ((0.5, 1), (0.26, 1), (0.25, 2), (8 / 255, 10), (0.01, 50), (0.0, 50), (0.9, 0.5)):
        difference = np.array([[[largest, -largest / 2]]], dtype=np.float32)
        shown, k = amplified(difference)
        assert k == factor
        np.testing.assert_allclose((shown - 0.5) / k, difference, atol=1e-6)


def test_colour_images_keep_their_channels() -> None:
    image = np.zeros((3, 2, 2), dtype=np.float32)
    image[0, 0, 0], image[1, 0, 1], image[2, 1, 0] = 1, 0.5, 2
    shown = np.asarray(Image.open(io.BytesIO(png(image))))
    assert shown[0, 0].tolist() == [255, 0, 0] and shown[0, 1].tolist() == [0, 128, 0]
    assert shown[1, 0].tolist() == [0, 0, 255] and shown[1, 1].tolist() == [0, 0, 0]


# The file


def test_the_page_is_one_well_formed_file_that_fetches_nothing(full: Full) -> None:
    assert len(full.text) < 1_000_000
    ids = {element.get("id") for element in full.page.iter() if element.get("id")}
    for element in full.page.iter():
        assert element.tag not in ("link", "iframe", "object")
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            if name in ("href", "src"):
                assert value.startswith("data:") or value.removeprefix("#") in ids
            else:
                assert "http" not in value
    (script,) = full.page.iter("script")
    assert not script.attrib and not re.search(r"fetch|XMLHttp|import|eval|http", script.text or "")
    style = next(full.page.iter("style")).text or ""
    assert "@import" not in style and "url(" not in style
    assert "color-scheme: light dark" in style and "prefers-color-scheme: dark" in style and "@media print" in style


def test_names_are_text_and_facts_are_there(full: Full) -> None:
    assert words(next(full.page.iter("h1"))) == '<full> & "more"'
    assert "<full>" not in full.text and "<it>" not in full.text
    provenance = words(by_id(full.page, "provenance"))
    for cell in full.sweep.cells:
        for stage in cell.stages:
            assert stage.id in provenance
    cell = full.sweep.cells[0]
    for fact in (COMMAND, cell.classifier.sha256, cell.images.dataset.digest, full.sweep.text, '"eps": 0.05'):
        assert fact is not None and fact in provenance


@pytest.mark.parametrize(
    ("parts", "there", "absent"),
    [
        (
            (CERTIFIED.replace("include:\n  - defences", "defences").replace("\n    ", "\n"),),
            "certified",
            "robustness",
        ),
        ((DEFENCES, CORRUPTIONS), "corruptions", "robustness"),
        (("defences: [none]\n",), "robustness", "corruptions"),
    ],
)
def test_a_sweep_may_have_one_kind_of_cell(
    full: Full, tmp_path: Path, parts: tuple[str, ...], there: str, absent: str
) -> None:
    results = full.part(HEAD + "".join(parts), tmp_path)
    page = ElementTree.fromstring(report(Analysis(results), command="c"))
    assert table(page, there) and absent not in {element.get("id") for element in page.iter()}
    assert "not complete" not in words(page) and len(words(by_id(page, "images"))) > 40


def test_nothing_committed_makes_a_page_that_says_so(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, FULL)
    page = ElementTree.fromstring(report(Analysis(Results(Store(str(tmp_path / "empty")), sweep)), command="c"))
    count = len(sweep.cells)
    assert f"{count} of {count} cells are not complete" in words(page) and not list(page.iter("figure"))
    assert "No adversarial or corrupted images are committed yet" in words(page)
    assert "Nothing is committed yet." in words(by_id(page, "verdict"))


def test_many_lines_are_in_a_window_and_none_is_folded(full: Full, tmp_path: Path) -> None:
    many = ATTACKS.replace("[0.05, 0.2]", str([round(0.005 * i, 3) for i in range(1, 41)]))
    attacks = many + "".join(f"  - {{attack: pgd, norm: linf, eps: 0.2, steps: {n}}}\n" for n in range(3, 9))
    results = full.part(HEAD + DEFENCES + attacks, tmp_path)
    page = ElementTree.fromstring(report(Analysis(results), command="c"))
    assert len(table(page, "robustness")) == len(results.sweep.cells) > 120
    for of, long in ((page, True), (full.page, False)):
        section = by_id(of, "robustness")
        (window,) = [div for div in section.iter("div") if "scroll" in div.get("class", "").split()]
        assert section.find(".//details") is None and ("long" in window.get("class", "").split()) == long


# Files for papers


def run(full: Full, *arguments: object) -> Any:
    command = ["report", str(full.path), "--store", full.store.uri, *map(str, arguments)]
    return CliRunner().invoke(app, command)


@pytest.mark.parametrize(("how", "name"), [("md", "report.md"), ("latex", "report.tex")])
def test_a_folder_has_the_tables_of_the_command_line_and_the_figures(
    full: Full, tmp_path: Path, how: str, name: str
) -> None:
    found = run(full, "--format", how, "--out", tmp_path / "paper")
    assert found.exit_code == 0 and found.stdout.strip() == str(tmp_path / "paper" / name)
    text = (tmp_path / "paper" / name).read_text()
    tables = CliRunner().invoke(app, ["tables", str(full.path), "--store", full.store.uri, "--format", how]).stdout
    body = [line for line in tables.splitlines() if line.startswith("| ") or line.endswith(r" \\")]
    assert len(body) > 40 and set(body) <= set(text.splitlines())
    figures = {figure.get("id") for figure in full.page.iter("figure")}
    assert {path.stem for path in (tmp_path / "paper" / "figures").glob("*.svg")} == figures
    for figure in figures:
        assert (tmp_path / "paper" / "figures" / f"{figure}.csv").read_text() == download(full.page, f"{figure}.csv")
        assert (tmp_path / "paper" / "figures" / f"{figure}.svg").read_text() == download(full.page, f"{figure}.svg")
        assert f"figures/{figure}.svg" in text
    if how == "latex":
        outside = re.sub(r"\\begin\{table\}.*?\\end\{table\}", "", text, flags=re.DOTALL)
        assert all(line.startswith("%") or not line.strip() for line in outside.splitlines())


def test_the_command_writes_the_page_and_refuses_before_it_computes(full: Full, tmp_path: Path) -> None:
    assert run(full, "--out", tmp_path / "r.html").exit_code == 0
    assert ElementTree.parse(tmp_path / "r.html").findtext(".//h1") == '<full> & "more"'
    for arguments, said in (
        (("--format", "pdf"), "unknown format 'pdf'"),
        (("--out", tmp_path), "is a folder"),
        (("--out", tmp_path / "nowhere" / "r.html"), "which is no folder"),
        (("--format", "md", "--out", tmp_path / "r.html"), "is a file"),
    ):
        found = run(full, *arguments)
        assert found.exit_code == 2 and said in found.stderr


# A browser

_MEASURE = """<script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const images = [...page.images].filter(image => image.complete && image.naturalWidth > 0).length;
  const colour = getComputedStyle(page.body).color;
  document.body.innerHTML = `<p>${root.scrollWidth} ${frame.clientWidth} ${images} ${colour}</p>`;
};
frame.srcdoc = SOURCE;
</script>"""


@pytest.fixture
def phone(full: Full, tmp_path: Path) -> Iterator[Path]:
    """A page that shows the report on a screen 390 px wide, and says what became of it."""
    path = tmp_path / "phone.html"
    source = json.dumps(full.text).replace("</", "<\\/")
    path.write_text(
        f'<!doctype html><body><iframe width="390" height="800"></iframe>{_MEASURE.replace("SOURCE", source)}'
    )
    yield path


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")
def test_a_browser_shows_it_in_both_schemes_and_on_a_phone_without_complaint(
    full: Full, tmp_path: Path, phone: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(full.text, encoding="utf-8")
    document, said = browse(path, tmp_path)
    assert not said and html.escape("<full>") in document
    colours = set()
    for scheme in (0, 1):
        document, said = browse(phone, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
        found = re.search(r"<p>(\d+) (\d+) (\d+) (.*?)</p>", document)
        assert found is not None and not said
        assert int(found[1]) <= int(found[2])  # nothing but tables is wider than the screen
        assert int(found[3]) == len(list(full.page.iter("img"))) > 0
        colours.add(found[4])
    assert len(colours) == 2


_ACT = """<script>
const cells = name => [...document.querySelectorAll(`#${name} tbody tr`)].filter(row => !row.hidden);
const heads = name => [...document.querySelectorAll(`#${name} th`)];
const column = (name, title) => heads(name).findIndex(th => th.textContent === title);
const shown = (name, title) => cells(name).map(row => row.cells[column(name, title)].firstChild.textContent);
const press = (name, title) => heads(name)[column(name, title)].querySelector("button").click();
const search = document.querySelector("#robustness .controls input");
const said = {state: [shown("robustness", "Avg"), search.value]};
press("robustness", "Avg"); said.falling = shown("robustness", "Avg");
press("robustness", "Avg"); said.rising = shown("robustness", "Avg");
said.sort = heads("robustness")[column("robustness", "Avg")].getAttribute("aria-sort");
search.value = "fgsm t*=60"; search.dispatchEvent(new Event("input"));
said.found = cells("robustness").length; said.hash = location.hash;
const link = document.querySelector("a[href^='#finding-']"); link.click();
said.target = document.querySelector(".target").id; said.wanted = link.getAttribute("href").slice(1);
said.linked = location.hash;
const keys = [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex]")];
said.focusable = keys.every(element => element.tabIndex >= -1);
document.body.innerHTML = `<pre>${JSON.stringify(said)}</pre>`;
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")
def test_the_script_sorts_searches_and_puts_it_into_the_address(full: Full, tmp_path: Path) -> None:
    path = tmp_path / "act.html"
    path.write_text(full.text.replace("</body>", _ACT), encoding="utf-8")

    def act(hash_: str) -> dict[str, Any]:
        document, _ = browse(path, tmp_path, hash_=hash_)
        found = re.search(r"<pre>(.*)</pre>", document, re.DOTALL)
        assert found is not None
        content: dict[str, Any] = json.loads(html.unescape(found[1]))
        return content

    told = act("")
    shares = [f"{100 * row['avg']:.1f}" for row in full.json["robustness"]]
    assert told["state"] == [shares, ""]
    assert told["falling"] == sorted(shares, key=float, reverse=True) and told["rising"] == sorted(shares, key=float)
    assert told["sort"] == "ascending" and told["found"] == 1
    assert "robustness.q=fgsm" in told["hash"] and "robustness.sort=" in told["hash"]
    assert told["target"] == told["wanted"] and f"at={told['wanted']}" in told["linked"]
    # The address alone shows the same to somebody else.
    again = act(told["hash"])
    assert len(again["state"][0]) == 1 and again["state"][1] == "fgsm t*=60"


# Size


class Many(Results):
    """The results of the sweep as if each attack on the bare classifier had been run at a thousand budgets."""

    def robustness(self) -> pd.DataFrame:
        once = super().robustness()
        bare = once[(once["defence"] == "none") & (once["attack"] != "clean")]
        bare = bare.assign(classifier="net " + 1500 * "x")  # a short name would make a page that fits
        copies = [bare.assign(eps=bare["eps"] * (1 + i / 10_000)) for i in range(1100)]
        return pd.concat([once, *copies], ignore_index=True)


def test_a_page_of_thousands_of_rows_stays_below_5_mb_and_says_what_it_leaves_out(full: Full) -> None:
    results = Many(full.store, full.sweep)
    lines = len(results.robustness())
    assert lines > 3000
    text = report(Analysis(results), command=COMMAND, images=2)
    # As much as fits, and not much less: what is left out would not have gone in.
    assert 4_300_000 < len(text.encode()) <= 5_000_000
    page = ElementTree.fromstring(text)
    (left,) = (words(p) for p in page.iter("p") if p.get("class") == "warn" and "this page leaves out" in words(p))
    assert "puregrid tables SWEEP.yaml --format json" in left and "--gallery 8" in left
    (gone,) = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) table lines", left))
    assert gone > 100 and len(table(page, "robustness")) == lines - gone > 500
    # Images that were asked for are there, though those that are not go first.
    assert len(page.findall(".//table[@class='gallery']")) == 2


def test_images_go_first_unless_they_were_asked_for() -> None:
    content = _Content(
        [{"name": "a", "topic": "t", "file": "svg", "csv": "csv", "svg": "drawing", "notes": ["n"], "said": 1}],
        [],
        [(Group("c" * 16, "t", (), 1, ()), [(None, [("text", "uri")])])],  # type: ignore[list-item]
        [],
    )
    assert [piece.kind for piece in content.pieces(None)] == [
        *("image group", "SVG file", "figure CSV file", "value list", "figure")
    ]
    assert [piece.kind for piece in content.pieces(1)] == [
        *("SVG file", "figure CSV file", "value list", "figure", "image group")
    ]
    left = content.without(frozenset(content.pieces(None)))
    assert not left["figures"] and not left["groups"]


def test_a_page_that_fits_leaves_nothing_out(full: Full) -> None:
    assert len(full.text.encode()) < 2_000_000 and "this page leaves out" not in full.text
    assert not ElementTree.fromstring(report(Analysis(full.results), command=COMMAND, images=0)).findall(".//img")


def test_pieces_go_in_their_order_until_the_page_fits() -> None:
    pieces = [Piece("image", (i,), 100) for i in range(5)] + [Piece("line", (i,), 10) for i in range(5)]

    def render(out: frozenset[Piece]) -> str:
        return "x" * (50 + sum(piece.size for piece in pieces if piece not in out))

    for most, left in ((600, 0), (599, 1), (500, 1), (499, 2), (100, 5), (99, 6), (50, 10), (49, 10)):
        page = fitted(render, pieces, most)
        assert len(page) == 50 + sum(piece.size for piece in pieces[left:])
    # Estimates that are too large or too small change nothing of that it fits.
    wrong = [Piece(piece.kind, piece.place, piece.size // 3) for piece in pieces]
    by_place = {(piece.kind, piece.place): piece.size for piece in pieces}

    def truly(out: frozenset[Piece]) -> str:
        gone = sum(by_place[piece.kind, piece.place] for piece in out)
        return "x" * (600 - gone)

    assert len(fitted(truly, wrong, 300)) == 300 and len(fitted(truly, wrong, 299)) == 200


def test_long_tables_are_gzipped_and_read_back_the_same() -> None:
    frame = pd.DataFrame({"a": np.arange(20_000) / 7, "b": "name"})
    uri, suffix = data_uri(frame.to_csv(index=False), "text/csv")
    assert suffix == ".gz" and uri == data_uri(frame.to_csv(index=False), "text/csv")[0]
    raw = base64.b64decode(uri.partition("base64,")[2])
    assert len(raw) < 250_000 < len(frame.to_csv(index=False))
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(raw), compression="gzip"), frame)
