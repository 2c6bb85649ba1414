"""The page on adding a table and a column, carried out."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pandas as pd
import pytest
from helpers_small import compute, small_sweep
from typer.testing import CliRunner

from defense.errors import InvalidInput
from workflows.analysis import TABLES, Analysis
from workflows.cli import app
from workflows.formats import FORMATS, render, render_tables
from workflows.formats.html import lines_of, table_html
from workflows.report import report
from workflows.results.reader import Results
from workflows.store import Store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-a-table.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[number]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep ``small.yaml``, its store, and the page's module beside them."""
    folder = tmp_path_factory.mktemp("added")
    compute(small_sweep(folder), str(folder / "results"))
    (folder / "sweep.yaml").write_text((folder / "small.yaml").read_text())
    (folder / "half_robust.py").write_text(block("python"))
    return folder


@pytest.fixture
def added(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The page's module, imported; no other test has its table."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(TABLES, "_entries", dict(TABLES._entries))
    monkeypatch.delitem(sys.modules, "half_robust", raising=False)
    yield importlib.import_module("half_robust")
    sys.modules.pop("half_robust", None)


def analysis_of(folder: Path) -> Analysis:
    sweep = small_sweep(folder)
    return Analysis(Results(Store(str(folder / "results")), sweep))


def patched(folder: Path) -> ModuleType:
    """The module of the robustness table with the page's diff."""
    source = "workflows/tables/robustness.py"
    text = (ROOT / source).read_text(encoding="utf-8")
    for hunk in re.split(r"^@@\n", block("diff"), flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        assert text.count(before) == 1, f"the page shows what is not in {source}:\n{before}"
        text = text.replace(before, "".join(line[1:] for line in lines if line[0] != "-"))
    path = folder / "patched_robustness.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("patched_robustness", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_column_that_is_added_in_one_file_is_in_every_format(folder: Path, tmp_path: Path) -> None:
    analysis = analysis_of(folder)
    table = patched(tmp_path).robustness_table(analysis.robustness)
    expected = ((analysis.robustness["avg_high"] - analysis.robustness["avg_low"]) / 2).tolist()
    shown = [f"{100 * value:.1f}" for value in expected]
    assert len(set(shown)) > 1
    texts = {how: render_tables([table], how, whole=False) for how in FORMATS}
    header = next(line for line in texts["md"].splitlines() if line.startswith("| classifier"))
    place = header.split(" | ").index("±")
    lines = [line.split(" | ") for line in texts["md"].splitlines() if line.startswith("| digits-cnn")]
    assert [line[place] for line in lines] == shown
    lines = [line.split(" & ") for line in texts["latex"].splitlines() if line.startswith("digits-cnn")]
    assert [line[place] for line in lines] == shown and "& Avg & ± &" in texts["latex"]
    lines = [line.split("│")[1:] for line in texts["text"].splitlines() if line.startswith("│")]
    assert [line[place].strip() for line in lines] == shown
    assert pd.read_csv(io.StringIO(texts["csv"]))["half_width"].tolist() == pytest.approx(expected)
    content = json.loads(texts["json"])
    assert [row["half_width"] for row in content["robustness"]] == expected
    meanings = {column["name"]: column["meaning"] for column in content["tables"]["robustness"]["columns"]}
    assert meanings["half_width"] == "Half the width of the interval of Avg."
    page = ElementTree.fromstring(table_html(table, lines_of(table, ()), []))
    assert [row.findall("td")[place].text for row in page.findall("tbody/tr")] == shown
    assert page.findall("thead/tr/th")[place].get("title") == meanings["half_width"]


def test_a_table_of_one_file_is_in_every_format_with_its_notes_and_findings(added: ModuleType, folder: Path) -> None:
    analysis = analysis_of(folder)
    table = analysis.table("half_robust")
    assert analysis.tables[-2] is table and analysis.tables[-1].name == "cost"
    own = analysis.robustness[analysis.robustness["attack"] != "clean"]
    assert table.frame["budget"].tolist() == [0.1 if avg >= 0.5 else 0.0 for avg in own["avg"]]
    marks = table.marks(analysis.findings)
    assert table.cells == tuple((cell,) for cell in own["cell"]) and any(marks)
    for how in ("text", "md", "latex"):
        text = render(analysis, how)
        for words in ("Half-robust budgets", "half-robust up to", "Budgets between those", "an upper bound."):
            assert words in text
    content = json.loads(render(analysis, "json"))
    assert content["half_robust"] == table.records() and content["tables"]["half_robust"]["note"] == table.note
    page = report(analysis, command="c")
    assert (
        '<section id="half_robust"' in page and "<h2>Half-robust budgets</h2>" in page and "half_robust.csv" in page
    )
    assert "Under static attacks alone it is an upper bound." in page


def test_the_command_line_takes_it_by_module_and_attribute(added: ModuleType, folder: Path) -> None:
    options = ["--store", str(folder / "results"), "--table", "half_robust:half_robust", "--format"]
    for how in FORMATS:
        found = CliRunner().invoke(app, ["tables", str(folder / "small.yaml"), *options, how])
        assert found.exit_code == 0, found.output
        assert (
            "budget" if how == "csv" else "half-robust up to"
        ) in found.stdout and "mean_probability" not in found.stdout
    assert (
        "note: Budgets between those of the sweep are unknown."
        in CliRunner().invoke(app, ["tables", str(folder / "small.yaml"), *options, "csv"]).stderr
    )


@pytest.mark.slow
def test_the_page_s_python_runs(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block("python", 1)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "small: Half-robust budgets" in done.stdout and "budget" in done.stdout.splitlines()[-3]
    assert "Half-robust budgets" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_builder_that_makes_no_table_or_a_second_one_of_a_name_is_refused(
    added: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES._entries, "wrong", lambda analysis: analysis.robustness)
    with pytest.raises(InvalidInput, match="a builder returns a Table"):
        _ = analysis_of(folder).tables
    monkeypatch.setitem(TABLES._entries, "wrong", lambda analysis: analysis._built_in()[0])
    with pytest.raises(InvalidInput, match="two tables are called 'leaderboard'"):
        _ = analysis_of(folder).tables
    monkeypatch.setitem(TABLES._entries, "wrong", lambda analysis: None)
    assert "wrong" not in [table.name for table in analysis_of(folder).tables]
