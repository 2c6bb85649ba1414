"""Published beside measured in every format of the report; smoke sweeps are told apart from the paper's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from helpers_small import ASSETS, compute, small_sweep, undeclared

from workflows.analysis import Analysis
from workflows.grid.load import load_sweep
from workflows.published import papers as paper_files
from workflows.published.papers import load_paper, reference
from workflows.published.table import _letter, published_table
from workflows.report import report, report_to
from workflows.results.reader import Results
from workflows.store import Store
from workflows.tables.table import Table

PAPERS = Path(__file__).parents[2] / "workflows/sweeps/papers"

FAKE = """
paper: fake
title: Fake & Co
link: https://arxiv.org/abs/0
settings: {t_star: 470, images: 20, draws: 2}
tables:
  - table: "1"
    dataset: digits
    certainty: read
    source: Table 1
    columns:
      - {threat: clean}
      - {threat: attack, norm: linf, eps: 0.1, adaptive: false}
    rows:
      - {defence: diffpure, classifier: digits-cnn, values: [90.25, 80.0]}
      - {defence: diffpure, classifier: resnet18, values: [70.0, 60.0]}
  - table: "2"
    dataset: cifar10
    certainty: second-hand
    source: elsewhere
    columns: [{threat: clean}]
    rows:
      - {defence: diffpure, classifier: wrn28-10, values: [85.0]}
anomalies:
  - {tables: ["1"], text: Odd.}
  - {tables: ["2"], text: Strange.}
  - {tables: ["figure 4"], text: Curved.}
"""
SWEEP = f"""
sweep: NAME
datasets: [{{dataset: digits, images: {{first: 20}}}}]
classifiers: [digits-cnn]
denoisers:
  small: {{format: diffusers, path: {ASSETS / "digits-ddpm"}, schedule: linear-1000}}
defences:
  - {{purifier: diffpure, denoiser: small, schedule: linear-1000, t_star: [10, 20], steps: 2, draws: 2}}
attacks:
  - none
  - {{attack: pgd, norm: linf, eps: 0.1, steps: 2}}
chunk: 20
"""


@pytest.mark.slow
def test_the_papers_sweeps_say_by_their_names_what_they_repeat() -> None:
    found = {}
    for path in sorted(PAPERS.glob("**/*.yaml")):
        name = re.search(r"^sweep: (.*)$", path.read_text(), re.MULTILINE)
        assert name is not None
        one = reference(name[1])
        assert one is not None and one.smoke == (path.parent.name == "smoke")
        found[name[1]] = (one.paper, one.table, one.dataset)
    assert found["distribution-transfer-table2-imagenet30"] == ("distribution-transfer", "2", "imagenet30")
    assert found["distribution-transfer-table3"] == ("distribution-transfer", "3", None)
    assert found["distribution-transfer-figure4-smoke-digits"] == ("distribution-transfer", "figure 4", None)
    assert found["distribution-transfer-table2-smoke-cifar10"] == ("distribution-transfer", "2", None)
    assert found["agdm-cifar10"] == ("agdm", None, "cifar10")
    assert reference("quickstart") is None and reference("agdmlike") is None


def test_of_a_table_s_sweep_every_published_value_stands_there_measured_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = of_fake("fake-table1", tmp_path, monkeypatch)
    found = published_table(results)
    assert found is not None
    names, lines = grid(found)
    assert [line[names.index("published")] for line in lines] == ["90.25", "80", "70", "60"]
    assert {line[names.index("measured")] for line in lines} == {"not measured"}  # nothing is committed
    assert found.warning == "" and "Nothing comparable was measured" in found.note
    assert found.remarks == ("Anomaly in what is published: Odd.",)
    assert published_table(of_fake("other", tmp_path, monkeypatch)) is None


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    return [column.title for column in table.visible], table.lines()


def of_fake(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    """A sweep of a paper that printed figures of the digits; nothing of it is committed."""
    (folder / "papers").mkdir(exist_ok=True)
    (folder / "papers/fake.yaml").write_text(FAKE)
    monkeypatch.setattr(paper_files, "_FOLDER", folder / "papers")
    return Results(Store(str(folder / "store")), small_sweep(folder, SWEEP.replace("NAME", name)))


def test_letters_go_on_after_z() -> None:
    assert [_letter(i) for i in (0, 25, 26, 27, 51, 52, 701, 702)] == ["a", "z", "aa", "ab", "az", "ba", "zz", "aaa"]


@pytest.mark.slow
class TestComputed:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("beside")
        compute(small_sweep(folder, SWEEP.replace("NAME", "any")), str(folder / "store"))
        return folder

    def test_measured_values_have_interval_difference_and_what_differs(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results = of_fake("fake-table1", folder, monkeypatch)
        found = published_table(results)
        assert found is not None
        frame, robustness = found.frame, results.robustness()
        measured = frame[frame["measured"].notna()]
        assert measured["published"].tolist() == [90.25, 90.25, 80.0, 80.0]  # two depths each
        own = robustness.set_index("cell").loc[measured["cell"]]
        for name, column in (("measured", "avg"), ("low", "avg_low"), ("high", "avg_high")):
            assert measured[name].tolist() == pytest.approx((100 * own[column]).tolist())
        assert measured["difference"].tolist() == pytest.approx(
            (measured["measured"] - measured["published"]).tolist()
        )
        names, lines = grid(found)
        line = dict(zip(names, lines[0], strict=True))
        first = own.iloc[0]
        assert (
            line["measured"]
            == f"{100 * first['avg']:.1f} [{100 * first['avg_low']:.1f}, {100 * first['avg_high']:.1f}]"
        )
        assert line["difference"] == f"{100 * first['avg'] - 90.25:+.1f}" and line["certainty"] == "read"
        said = dict(remark.split(": ", 1) for remark in found.remarks[:-1])
        assert [said[letter] for letter in line["differs"].split()] == [
            "t_star: published 470, measured 10.",
            "schedule: published not stated, measured linear-1000.",
        ]

    def test_a_smoke_sweep_says_so_everywhere_and_counts_no_difference(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results = of_fake("fake-smoke-digits", folder, monkeypatch)
        found = published_table(results)
        assert (
            found is not None
            and undeclared(found) == set()
            and "smoke test" in found.title
            and "say nothing" in found.warning
        )
        names, lines = grid(found)
        assert {line[names.index("difference")] for line in lines} == {"-"}
        # Of another classifier and other data: that is said first.
        other = found.frame[found.frame["table"] == "2"]
        assert (
            len(other) == 2
            and other["differs"]
            .str.startswith(
                "data: published cifar10, measured digits; classifier: published wrn28-10, measured digits-cnn"
            )
            .all()
        )
        page = report(Analysis(results), command="x")
        assert found.warning.replace("'", "&#39;") in page
        for how, comment in (("md", ""), ("latex", "% ")):
            file = report_to(Analysis(results), folder / how, how, command="x")  # type: ignore[arg-type]
            text = file.read_text()
            assert text.count(found.warning) == 2 and f"{comment}{found.warning}" in text
            assert "a: " in text and "Curved" not in text and "Strange." in text

    def test_hollow_marks_are_the_published_values_at_the_measured_cells(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results = of_fake("fake-figure4", folder, monkeypatch)
        page = ElementTree.fromstring(report(Analysis(results), command="x"))
        for topic, places in (("Accuracy against the budget", 4), ("Accuracy against t*", 4)):
            (figure,) = (
                one
                for one in page.iter("figure")
                if (found := one.find(".//strong")) is not None and found.text == topic
            )
            # Marks of the legend say nothing on hover.
            hollow = [
                dot
                for dot in figure.iter("path")
                if "hollow" in str(dot.get("class")) and dot.find("title") is not None
            ]
            assert len(hollow) == places
            heights = {
                float(text.get("y", "nan")) - 4: float(str(text.text))
                for text in figure.iter("text")
                if text.get("text-anchor") == "end"
            }
            base, top = max(heights), min(heights)
            low, high = heights[base], heights[top]
            assert 0 <= low < high <= 100
            for dot in hollow:
                told = str(dot.findtext("title"))
                value = float(re.fullmatch(r"published: .*: ([\d.]+) %", told)[1])  # type: ignore[index]
                assert value == (90.25 if "clean" in told else 80.0)
                place = re.fullmatch(r"translate\(([\d.]+) ([\d.]+)\)", str(dot.get("transform")))
                assert place is not None
                assert float(place[2]) == pytest.approx(base - (base - top) * (value - low) / (high - low), abs=0.06)
            keys = [key for key in figure.iter() if key.get("class") == "key"]
            assert "published" in ["".join(key.itertext()).strip() for key in keys]
        # A figure has no values of its own: those of tables that have a cell here are all.
        table = published_table(results)
        assert table is not None and table.frame["measured"].notna().all()
        smoke = ElementTree.fromstring(
            report(Analysis(of_fake("fake-figure4-smoke", folder, monkeypatch)), command="x")
        )
        assert not [dot for dot in smoke.iter("path") if str(dot.findtext("title")).startswith("published")]

    @pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
    def test_latex_compiles_and_no_table_runs_off_the_page(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results = of_fake("fake-smoke-digits", folder, monkeypatch)
        file = report_to(Analysis(results), folder / "paper", "latex", command="x_y & 100 %")
        head = "\\documentclass{article}\n\\usepackage{booktabs, graphicx, threeparttable}\n"
        (folder / "paper/main.tex").write_text(head + "\\begin{document}\n\\input{report}\n\\end{document}\n")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
        done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Overfull" not in done.stdout and "too large" not in done.stdout


def test_the_papers_own_sweeps_have_a_table_before_anything_is_measured(tmp_path: Path) -> None:
    sweep = load_sweep(PAPERS / "smoke/distribution-transfer-table1-digits.yaml")
    found = published_table(Results(Store(str(tmp_path / "store")), sweep))
    assert found is not None and len(found.frame) == 39  # 13 rows of 3
    values = [value.accuracy for value in load_paper("distribution-transfer").values if value.table == "1"]
    assert found.frame["published"].tolist() == values
    assert isinstance(found.frame, pd.DataFrame) and len(found.remarks) == 4  # its four anomalies
