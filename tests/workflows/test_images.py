"""Single images: which are chosen, what is computed again against what is stored, and how they are shown."""

from __future__ import annotations

import importlib
import io
import json
import os
import pty
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from helpers_small import SMALL, compute, small_sweep  # type: ignore[import-not-found]
from loops import every  # type: ignore[import-not-found]
from typer.testing import CliRunner

from defense.errors import InvalidInput
from tasks.stages import images_from_table
from workflows.analysis import Analysis
from workflows.analysis.series import series_of
from workflows.cli import app
from workflows.images import Judged, choose, find_cell, single
from workflows.images.graphics import has_sixel, wanted_images
from workflows.images.single import Rung, Single, Stored, name_of, stored
from workflows.images.sixel import sixel, sixels_side_by_side
from workflows.images.terminal import blocks, side_by_side
from workflows.report import report_to
from workflows.report.single import single_json, single_text
from workflows.results.reader import Results
from workflows.store import Store

SWEEP = SMALL + "quality: true\n"


class Small:
    def __init__(self, folder: Path) -> None:
        self.sweep, self.store = small_sweep(folder, SWEEP), Store(str(folder / "store"))
        compute(self.sweep, self.store.uri)
        self.path = folder / "small.yaml"
        self.results = Results(self.store, self.sweep)
        self.attacked = self.sweep.cells[-1]

    def run(self, *arguments: object) -> Any:
        command, *rest = map(str, arguments)
        return CliRunner().invoke(app, [command, str(self.path), "--store", self.store.uri, *rest])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("small"))


def test_draws_that_are_computed_again_are_those_of_the_store(small: Small) -> None:
    cell = small.attacked
    assert cell.defence.purifier.purifier == "diffpure" and cell.attack is not None
    rows = small.results.rows(cell).set_index("image_id")
    for image in (0, 9, 17):  # of three chunks
        found = single(small.results, cell, image, trajectory=True)
        assert [draw.answer for draw in found.draws] == list(rows["prediction"][image])
        assert [draw.stored for draw in found.draws] == [draw.answer for draw in found.draws]
        expected = rows["label_probability"][image]
        np.testing.assert_allclose([draw.label_probability for draw in found.draws], expected, atol=1e-4)
        assert found.remarks == () and found.stored.label == rows["label"][image]
        # The purified image of the first draw is stored, for the measures of quality.
        assert cell.measure is not None
        chunk = next(chunk for chunk in cell.images.chunks if image in chunk.ids)
        table = small.store.read_images("quality", cell.measure.id, chunk.name)
        purified = images_from_table(table, chunk.ids)[chunk.ids.index(image)]
        np.testing.assert_allclose(found.draws[0].purified, purified, atol=1e-5)
        assert not np.array_equal(found.draws[0].purified, found.draws[1].purified)
        assert [name for name, _ in found.draws[0].states] == ["start", "step 1", "step 2"]
        assert found.stored.linf == pytest.approx(0.1, abs=1e-6)


def test_an_answer_that_is_not_the_stored_one_is_reported(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("workflows.images.single")  # the package has a function of that name
    cell, real = small.attacked, module.stored

    def other(*arguments: Any, **named: Any) -> Stored:
        known = real(*arguments, **named)
        from dataclasses import replace

        return replace(known, answers=((known.answers[0] + 1) % 10, *known.answers[1:]))

    monkeypatch.setattr(module, "stored", other)
    (remark,) = single(small.results, cell, 3).remarks
    assert remark.startswith("Computed now, draw 0 answer another class")


def test_cells_are_found_by_id_and_by_words(small: Small) -> None:
    for cell in small.sweep.cells:
        assert find_cell(small.sweep, cell.id[:6]) is cell
        assert find_cell(small.sweep, name_of(small.sweep, cell)) is cell
    assert find_cell(small.sweep, "none clean").attack is None
    for wanted, said in (("diffpure", "2 cells match"), ("nothing", "no cell matches"), (None, "the sweep has 4")):
        with pytest.raises(InvalidInput, match=said) as error:
            find_cell(small.sweep, wanted)
        assert small.attacked.id[:8] in str(error.value)


def judged(labels: list[int], answers: list[list[int]], probability: list[float]) -> Judged:
    predictions = np.array(answers)
    values = np.array(probability)
    return Judged(np.arange(len(labels)) + 10, np.array(labels), predictions, values, predictions[:, 0], values)


def test_images_are_chosen_by_their_answers() -> None:
    clean = judged([0, 0, 0, 0, 0], [[0, 0], [0, 0], [0, 1], [1, 1], [0, 0]], [0.9, 0.9, 0.5, 0.1, 0.9])
    own = judged([0, 0, 0, 0, 0], [[0, 0], [1, 1], [1, 1], [1, 1], [0, 1]], [0.9, 0.2, 0.3, 0.05, 0.5])
    found = {one.image_id: set(one.kinds) for one in choose(own, clean, [clean, own], 2)}
    # 13 is wrong and least probable, then 11. Flips were right on most draws and are not: 11 lost both, 14 one.
    # Over both cells 13 has no right draw and 12 a quarter.
    assert found == {
        13: {"failures", "hardest"},
        11: {"failures", "flips", "first"},
        14: {"flips"},
        12: {"hardest"},
        10: {"first"},
    }
    alone = choose(own, None, [own], 1)
    assert [(one.image_id, one.kinds) for one in alone] == [(13, ("failures",)), (10, ("first",))]


def test_a_ladder_says_which_rung_broke_an_image() -> None:
    pixels = np.zeros((1, 2, 2), dtype=np.float32)
    known = Stored("c", "t", 1, 0, ("a",), pixels, pixels, "adversarial")
    rungs = (Rung("blind", 0.5), Rung("exact", 0.0), Rung("square", None))

    def broke(rungs: tuple[Rung, ...], submitted: int) -> str:
        from dataclasses import replace

        return replace(known, rungs=rungs, submitted=submitted).broke

    assert broke(rungs, 1) == "broken by exact, the first rung that left no right draw; submitted: exact"
    assert (
        broke(rungs[:1], 0) == "no rung broke it on every draw; submitted: blind, which left 50 % of the draws right"
    )
    assert known.broke == ""


def test_two_pixels_are_a_character_in_their_colours() -> None:
    image = np.zeros((3, 2, 2), dtype=np.float32)
    image[0, 0, 0] = image[1, 1, 0] = 1.0
    (line,) = blocks(image, edge=2)
    assert line == "\x1b[38;2;255;0;0;48;2;0;255;0m▀\x1b[38;2;0;0;0;48;2;0;0;0m▀\x1b[0m"
    (line,) = blocks(image, true_colour=False, edge=2)
    assert line == "\x1b[38;5;196;48;5;46m▀\x1b[38;5;16;48;5;16m▀\x1b[0m"
    large = blocks(np.ones((1, 64, 64), dtype=np.float32))
    assert len(large) == 16 and all(line.count("▀") == 32 for line in large)
    rows = side_by_side([("one", image), ("two", image), ("three", image)], 40, edge=2)
    assert [row for row in rows if row and "▀" not in row] == [f"{'one':<16}  two", "three"]


def test_show_describes_draws_and_refuses(small: Small) -> None:
    cell = small.attacked
    plain = small.run("show", "--cell", cell.id[:8], "--image", 3)
    assert plain.exit_code == 0 and "\x1b" not in plain.stdout
    assert "purified, draw 1: 8 x 8, grey" in plain.stdout and "Image 3, class" in plain.stdout
    painted = small.run("show", "--cell", cell.id[:8], "--image", 3, "--color", "always")
    assert "▀" in painted.stdout and "draw 1: " in painted.stdout
    content = json.loads(small.run("show", "--cell", cell.id[:8], "--image", 3, "--json").stdout)
    rows = small.results.rows(cell).set_index("image_id")
    assert [draw["prediction"] for draw in content["draws"]] == list(rows["prediction"][3])
    for arguments, said in (
        (("--image", 99), "has no image 99"),
        (("--image", 3, "--color", "red"), "unknown --color"),
        (("--image", 3, "--html", "nowhere/x.html"), "which is no folder"),
    ):
        found = small.run("show", "--cell", cell.id[:8], *arguments)
        assert found.exit_code == 2 and said in found.stderr


def test_a_perturbation_is_described_by_its_sign_its_norms_and_the_pixels_that_it_changed(small: Small) -> None:
    """And not as the grey values of its picture."""
    original = np.full((3, 2, 5), 0.5, dtype=np.float32)
    given = original.copy()
    given[0, 0, 0] += np.float32(8 / 255)
    given[2, 0, 0] += np.float32(4 / 255)
    given[1, 1, 4] -= np.float32(2 / 255)
    known = replace(
        stored(small.results, small.attacked, 3),
        original=original,
        given=given,
        linf=8 / 255,
        l2=84**0.5 / 255,
    )
    assert known.changed == 2 / 10  # two pixels of ten, of one of which two channels changed
    text = single_text(Single(known, ()), 100)
    assert (
        "perturbation: 5 x 2, from -0.0078 (-2.0/255) to +0.0314 (+8.0/255), mean +0.0013, l_inf 0.0314 (8.0/255), "
        "l_2 0.03594, 20.0 % of the pixels changed\n"
    ) in text
    assert "Largest change of a pixel 0.03137 (8/255), l_2 length of the change 0.03594, 20 % of the pixels" in text
    assert "x10" not in text and single_json(Single(known, ()))["changed"] == 0.2
    same = replace(known, given=None, linf=None, l2=None)
    assert "perturbation" not in single_text(Single(same, ()), 100) and same.changed == 0.0


def _drawn(sequence: str) -> dict[tuple[int, int], tuple[int, ...]]:
    """Read a sixel sequence as a terminal does: colours in per cent by row and column."""
    found = re.fullmatch(r'\x1bP0;1;0q"1;1;(\d+);(\d+)(.*)\x1b\\', sequence)
    assert found is not None
    palette, pixels = {}, {}
    row = column = colour = 0
    for token in re.finditer(r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|([?-~])|([$-])", found[3]):
        if token[1] and token[2]:
            palette[int(token[1])] = (int(token[2]), int(token[3]), int(token[4]))
        elif token[1]:
            colour = int(token[1])
        elif token[8]:
            row, column = row + 6 * (token[8] == "-"), 0
        else:
            bits, count = ord(token[6] or token[7]) - 63, int(token[5] or 1)
            for place in [(row + bit, column + i) for i in range(count) for bit in range(6) if bits >> bit & 1]:
                assert place not in pixels
                pixels[place] = palette[colour]
            column += count
    assert all(r < int(found[2]) and c < int(found[1]) for r, c in pixels)
    return pixels


def test_sixels_are_the_pixels_of_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (13, 9, 3), dtype=np.uint8)
    image[:, :6] = image[:1, :1]  # a run, which is repeated
    found = _drawn(sixel(image))
    assert len(found) == 13 * 9 and "!6" in sixel(image)
    for (row, column), colour in found.items():
        assert np.abs(np.array(colour) * 2.55 - image[row, column]).max() <= 1.3  # per cent
    drawn = np.zeros((13, 9), dtype=bool)
    drawn[7, 2] = True
    assert set(_drawn(sixel(image, drawn))) == {(7, 2)}


def test_sixels_of_several_images_stand_below_their_titles() -> None:
    """In an 8 x 16 terminal of 40 columns two images of 2 pixels, drawn as 16, stand at 0 and at 18 columns."""
    white, black = (np.full((1, 2, 2), value, dtype=np.float32) for value in (1.0, 0.0))
    title, picture, empty, third, *_ = sixels_side_by_side(
        [("one", white), ("two", black), ("three", white)], 40, (8, 16), edge=16
    )
    assert (title, empty, third) == (f"{'one':<16}  two", "", "three")
    found = _drawn(picture)
    assert {place: colour[0] for place, colour in found.items()} == {
        **{(r, c): 100 for r in range(16) for c in range(16)},
        **{(r, 18 * 8 + c): 0 for r in range(16) for c in range(16)},
    }


@every(
    ("answer", "wanted"),
    [(b"\x1b[?62;4;22c", True), (b"\x1b[?1;2c", False), (b"\x1b[?64;14;24c", False), (b"", False)],
)
def test_a_terminal_is_asked_whether_it_has_sixels_and_has_a_moment_to_answer(answer: bytes, wanted: bool) -> None:
    """In a process with a terminal of its own, which answers, or does not."""
    child, terminal = pty.fork()
    if child == 0:
        os._exit(40 + has_sixel(0, 1, 0.4 if not answer else 20.0))  # nothing of the test runs on in the child
    asked = b""
    while b"c" not in asked:
        asked += os.read(terminal, 16)
    assert asked == b"\x1b[c"
    os.write(terminal, answer)
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 40 + wanted


def test_images_are_drawn_by_a_rule_and_never_in_a_pipe(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("show", "--cell", small.attacked.id[:8], "--image", 3)
    monkeypatch.setenv("TERM", "xterm-sixel")
    assert "\x1b" not in small.run(*options).stdout and "▀" in small.run(*options, "--images", "blocks").stdout
    refused = small.run(*options, "--images", "sixel")
    assert refused.exit_code == 2 and "stdout is no terminal" in refused.stderr
    assert "unknown --images" in small.run(*options, "--images", "png").stderr

    def wanted(images: str, color: str) -> str:
        return wanted_images(images, color, colours=True)

    assert (wanted("auto", "auto"), wanted("auto", "never"), wanted("auto", "always")) == ("sixel", "none", "blocks")
    assert (wanted("none", "always"), wanted("blocks", "never")) == ("none", "blocks")
    assert wanted_images("auto", "auto", colours=False) == "none"
    monkeypatch.setenv("TERM", "xterm")  # stdin is no terminal: nobody can be asked
    assert wanted("auto", "auto") == "blocks"


def test_show_makes_a_page_that_fetches_nothing(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "one.html"
    options = ("--cell", small.attacked.id[:8], "--image", 3, "--trajectory", "--html", out)
    assert small.run("show", *options).exit_code == 0
    page = ElementTree.parse(out).getroot()
    images = list(page.iter("img"))
    assert len(images) == 3 + 2 + 2 * 3 and all(image.get("src", "").startswith("data:") for image in images)
    assert all(image.get("alt") for image in images) and not list(page.iter("script"))


def test_rows_are_those_that_meet_the_conditions_in_every_format(small: Small, tmp_path: Path) -> None:
    every = pd.concat(
        [
            small.results.rows(cell).assign(cell=cell.id, eps=0.0 if cell.attack is None else 0.1)
            for cell in small.sweep.cells
        ]
    )
    every["right"] = [
        float((np.asarray(answers) == label).mean())
        for answers, label in zip(every["prediction"], every["label"], strict=True)
    ]
    conditions = ("--where", "right<1", "--where", "eps=0.1", "--where", "image_id>=3")
    wanted = every[(every["right"] < 1) & (every["eps"] == 0.1) & (every["image_id"] >= 3)]
    assert 0 < len(wanted) < len(every)
    keys = list(zip(wanted["cell"], wanted["image_id"], wanted["right"], strict=True))

    def same(frame: pd.DataFrame) -> bool:
        return list(zip(frame["cell"], frame["image_id"], frame["right"], strict=True)) == keys

    read = pd.read_csv(io.StringIO(small.run("rows", *conditions).stdout))
    assert same(read) and json.loads(read["prediction"][0]) == list(wanted["prediction"].iloc[0])
    content = json.loads(small.run("rows", *conditions, "--format", "json").stdout)
    assert same(pd.DataFrame(content)) and content[0]["prediction"] == list(wanted["prediction"].iloc[0])
    assert small.run("rows", *conditions, "--format", "parquet", "--out", tmp_path / "r.parquet").exit_code == 0
    assert same(pd.read_parquet(tmp_path / "r.parquet"))
    lines = small.run("rows", *conditions, "--format", "markdown").stdout.splitlines()
    assert len(lines) == 2 + len(keys) and lines[2].startswith(f"| {keys[0][0]} |")
    assert "attack_gradients" in small.run("rows", "--stage", "attack").stdout.partition("\n")[0]
    assert small.run("rows", "--where", "defence=none", "--where", "threat!=clean").stdout.count("\n") == 21


def test_rows_refuse_what_they_cannot_know(small: Small) -> None:
    for arguments, said in (
        (("--where", "right"), "is no condition"),
        (("--where", "rihgt<1"), "right"),
        (("--format", "xml"), "unknown --format"),
        (("--format", "parquet"), "give a file"),
        (("--stage", "probe"), "unknown --stage"),
    ):
        found = small.run("rows", *arguments)
        assert found.exit_code == 2 and said in found.stderr, arguments


def places(page: ElementTree.Element) -> Iterator[str]:
    for element in page.iter():
        for name in ("href", "src"):
            if (place := element.get(name)) is not None:
                yield place


def test_a_folder_has_a_page_of_images_for_every_cell_that_has_some(small: Small, tmp_path: Path) -> None:
    index = report_to(Analysis(small.results), f"{tmp_path}/out/", "html", command="c")
    assert index == tmp_path / "out/index.html"
    page = ElementTree.parse(index).getroot()
    cells = [cell for cell in small.sweep.cells if cell.attack is not None]
    led = {place for place in places(page) if place.startswith("cells/")}
    assert led == {f"cells/{cell.id[:12]}.html" for cell in cells}
    assert not list(page.iter("img")), "its images are in the pages of the cells"
    used = set()
    for place in led:
        own = ElementTree.parse(tmp_path / "out" / place).getroot()
        images = [place for place in places(own) if place.endswith(".png")]
        assert len(images) >= 4 * 3
        used |= {(tmp_path / "out/cells" / image).resolve() for image in images}
        assert all(image.get("loading") == "lazy" for image in own.iter("img"))
    assert used == {path.resolve() for path in (tmp_path / "out/images").iterdir()}


def test_the_command_makes_the_folder_and_refuses_a_file_in_its_place(small: Small, tmp_path: Path) -> None:
    assert small.run("report", "--out", f"{tmp_path}/new/").stdout.strip() == f"{tmp_path}/new/index.html"
    (tmp_path / "file").write_text("")
    found = small.run("report", "--out", f"{tmp_path}/file/")
    assert found.exit_code == 2 and "is a file" in found.stderr


def test_one_attack_has_one_name_on_the_bare_classifier_and_on_defences(tmp_path: Path) -> None:
    text = (
        SMALL.partition("attacks:")[0]
        + """
attacks:
  - none
  - {attack: pgd, norm: linf, eps: 0.1, steps: 2, gradient: [bpda, exact], eot: 2}
  - {attack: strongest, norm: linf, eps: 0.1, steps: 2, eot: 2}
"""
    )
    sweep = small_sweep(tmp_path, text)
    series, labels = series_of(sweep), {cell.id: sweep.labels[cell.id]["attack"] for cell in sweep.cells}
    bare = {labels[cell.id]: series[cell.id] for cell in sweep.cells if cell.defence.purifier.purifier == "none"}
    defended = {labels[cell.id]: series[cell.id] for cell in sweep.cells if cell.defence.purifier.purifier != "none"}
    assert bare["clean"] == defended["clean"] == ("clean",)
    assert bare["pgd-2 linf"] == ("pgd-2 linf bpda eot 2", "pgd-2 linf exact eot 2")
    assert {name: own for name, own in defended.items() if name.startswith("pgd")} == {
        name: (name,) for name in bare["pgd-2 linf"]
    }
    ladders = {own for label, own in {**bare, **defended}.items() if label.startswith("strongest")}
    numbers = [label for label in {**bare, **defended} if label.startswith("strongest")]
    assert ladders == {("strongest linf",)} and len(numbers) == 2, "they had two labels"
