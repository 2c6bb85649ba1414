"""Findings in general, and where they are shown: tables, JSON, the line of a run, the report."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import pandas as pd
import pytest
from audited import EXACT, NOISE, PGD, Audited, by_threat
from seconds import slowness

from workflows.analysis import Analysis
from workflows.audit import SEVERITIES, Finding, counts, findings, rules_on
from workflows.formats import Format, render_tables
from workflows.formats.findings import auditor_line
from workflows.report import report
from workflows.results.reader import Results
from workflows.store import Store


def test_findings_are_sorted_by_severity_and_are_plain_data(tmp_path: Path) -> None:
    right = by_threat({"none clean": 0.7, "clean": 0.8}, 0.9)
    audited = Audited(
        tmp_path, right, defences=f"none, {NOISE.replace('4', '1')}", attacks=f"none, {PGD}", images=100
    )
    order = [SEVERITIES.index(finding.severity) for finding in audited.found]
    assert order == sorted(order) and set(order) == {0, 1, 2}
    assert sum(counts(audited.found).values()) == len(audited.found)
    known = {cell.id for cell in audited.sweep.cells}
    for finding in audited.found:
        assert finding.cells and known.issuperset(finding.cells)
        assert json.loads(json.dumps(finding.as_dict(), allow_nan=False)) == finding.as_dict()
        assert finding.text.endswith(".") and finding.action.endswith(".")
        assert all(isinstance(value, int | float) for value in finding.evidence.values())


def test_partial_and_empty_results_have_findings_of_what_there_is(tmp_path: Path) -> None:
    audited = Audited(tmp_path, by_threat({"clean": 0.8, "pgd": 0.85}), attacks=f"none, {PGD}")
    clean = audited.sweep.cells[0]
    audited.store.revoke("evaluate", clean.evaluate.id, clean.images.chunks[1].name)
    found = {f.rule: f for f in findings(Results(audited.store, audited.sweep))}
    # On the 300 images of both, all are right in both.
    assert set(found) == {"few-images"} and found["few-images"].evidence["images"] == 300
    assert found["few-images"].cells == (clean.id,)
    assert findings(Results(Store(str(tmp_path / "empty")), audited.sweep)) == []


def test_cells_that_share_their_rows_are_one_judgement(tmp_path: Path) -> None:
    voting = NOISE.replace("draws: 4", "draws: 4, aggregation: majority-vote")
    audited = Audited(
        tmp_path, by_threat({"clean": 0.8}, 0.9), defences=f"{NOISE}, {voting}", attacks=f"none, {EXACT}"
    )
    assert len(audited.one("attacked-above-clean").cells) == 4


@pytest.mark.slow
def test_a_hundred_cells_of_a_thousand_images_take_less_than_a_second(tmp_path: Path) -> None:
    eps = ", ".join(f"0.{k:02d}" for k in range(2, 35))
    attacks = f"none, {{attack: pgd, norm: linf, eps: [{eps}], steps: 20, gradient: exact, eot: 10}}"
    defences = ", ".join(NOISE.replace("0.1", f"0.{k}").replace("draws: 4", "draws: 10") for k in (1, 2, 3))
    audited = Audited(tmp_path, by_threat({"clean": 0.9}, 0.5), defences=defences, attacks=attacks, images=599)
    assert len(audited.sweep.cells) == 102
    seconds = []
    for _ in range(2):
        results = Results(audited.store, audited.sweep)
        results.robustness()  # as every command does before
        started = time.process_time()  # not the clock on the wall: other tests may run beside this one
        findings(results, images=False)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 1.5 * slowness()


def shown(folder: Path) -> Audited:
    right = by_threat({"none clean": 0.7, "clean": 0.72}, 0.9)
    return Audited(folder, right, defences=f"none, {NOISE}", attacks=f"none, {PGD}", images=100)


def rendered(audited: Audited, how: Format, found: list[Finding] | None = None, title: str = "") -> str:
    return render_tables(Analysis(audited.results).tables, how, title=title, findings=found)


@pytest.mark.slow
def test_tables_show_each_finding_with_its_cells_numbers_and_remedy(tmp_path: Path) -> None:
    audited = shown(tmp_path)
    text = rendered(audited, "text", audited.found, "t")
    plain = " ".join(text.split())
    finding = audited.of("attacked-above-clean")[0]
    assert f"Findings: {counts(audited.found)['error']} errors" in text
    assert finding.text in plain and f"to do: {finding.action}" in plain
    assert "cells: digits-cnn, none, all 2 cells" in plain
    assert "cells: digits-cnn, none, clean; digits-cnn, gaussian-noise s=0.1, pgd-20 linf eps 0.1" in plain
    assert "cells: all cells" in plain
    assert "attacked 0.9, clean 0.7, difference 0.2, p 9.537e-07, images 100, images changed 20" in plain
    assert text.index("classifier") < text.index("Findings") < text.index("seconds")
    markdown = rendered(audited, "md", audited.found)
    assert "1. **error** `attacked-above-clean`" in markdown
    # Without findings nothing is different but for csv, whose column is there as soon as there was an audit.
    for how in ("text", "md", "latex"):
        assert rendered(audited, how) == rendered(audited, how, [])
    table = pd.read_csv(io.StringIO(rendered(audited, "csv", audited.found)))
    assert table["findings"].tolist() == [rules_on(audited.found, {cell.id}) for cell in audited.sweep.cells]
    assert table["findings"][0] == (
        "error: attacked-above-clean, beats-bare-classifier; warning: surer-than-clean; note: few-images"
    )
    without = pd.read_csv(io.StringIO(rendered(audited, "csv", [])))
    assert without["findings"].isna().all() and "findings" not in rendered(audited, "csv")


def test_lines_carry_the_numbers_of_their_findings_and_in_latex_these_are_notes_of_the_table(tmp_path: Path) -> None:
    audited = shown(tmp_path)
    expected = [
        [number for number, finding in enumerate(audited.found, 1) if cell.id in finding.cells]
        for cell in audited.sweep.cells
    ]
    assert len({tuple(numbers) for numbers in expected}) > 2
    markdown = [
        line.split(" | ")[-1]
        for line in rendered(audited, "md", audited.found).partition("**Robustness**")[2].splitlines()
        if "cnn |" in line
    ]
    assert markdown[: len(expected)] == [f"{', '.join(map(str, numbers))} |" for numbers in expected]
    latex = rendered(audited, "latex", audited.found)
    assert "%" not in re.sub(r"\\%|{!}{%", "", latex), "nothing is said in a comment"
    (table,) = (part for part in latex.split(r"\end{table}") if r"\caption{Robustness}" in part)
    marks = re.findall(r"^digits-cnn(?:\\tnote{([\d,]+)})? &", table, re.MULTILINE)
    assert marks == [",".join(map(str, numbers)) for numbers in expected]
    notes = table.partition(r"\begin{tablenotes}")[2]
    assert re.findall(r"\\item\[(\d+)\] (\w+): ([\w-]+)", notes) == [
        (str(number), finding.severity, finding.rule) for number, finding in enumerate(audited.found, 1)
    ]


def test_json_has_all_findings_and_an_empty_list_for_none(tmp_path: Path) -> None:
    audited = shown(tmp_path)
    content = json.loads(rendered(audited, "json", audited.found))
    assert list(content) == ["robustness", "cost", "combined", "ladders", "leaderboard", "findings", "tables"]
    assert content["findings"] == [finding.as_dict() for finding in audited.found]
    assert json.loads(rendered(audited, "json", []))["findings"] == []
    assert "findings" not in json.loads(rendered(audited, "json"))


def test_the_line_of_a_run_counts_them() -> None:
    def some(**number: int) -> list[Finding]:
        return [Finding("r", s, (), "T.", {}, "D.") for s in SEVERITIES for _ in range(number.get(s, 0))]

    assert auditor_line(some(error=2, warning=1)) == "auditor: 2 errors, 1 warning; puregrid tables shows them"
    assert auditor_line(some(note=3)) == "auditor: 3 notes; puregrid tables shows them"
    assert auditor_line([]) == "auditor: no findings"


@pytest.mark.slow
def test_many_findings_and_cells_are_cut_with_a_count(tmp_path: Path) -> None:
    attacks = "none, {attack: pgd, norm: linf, eps: [0.1, 0.2, 0.3, 0.4, 0.5], steps: 20}"
    audited = Audited(tmp_path / "many", by_threat({"clean": 0.9}, 0.5), attacks=attacks)
    every = tuple(cell.id for cell in audited.sweep.cells[1:])
    many = [Finding(f"rule-{k}", "note", every, "Text.", {"n": k}, "Do.") for k in range(20)]
    text = rendered(audited, "text", many)
    assert "; and 2 more" in text and "rule-11:" in text and "rule-12:" not in text
    assert "... and 8 more: `--format json` has them all" in text


@pytest.mark.slow
def test_the_report_counts_findings_at_its_top_and_shows_them_after_the_tables(tmp_path: Path) -> None:
    audited = shown(tmp_path)
    page = report(Analysis(audited.results), command="c")
    assert page.index(">Findings: ") < page.index("<h2>Leaderboard</h2>") < page.index("<h2>Findings</h2>")
    for finding in audited.found:
        assert f'<li class="finding {finding.severity}">' in page and f"<code>{finding.rule}</code>" in page
    assert page.count('<li class="finding ') == len(findings(audited.results))
    clean = Audited(tmp_path / "clean", by_threat({"clean": 0.99}))
    page = report(Analysis(clean.results), command="c")
    assert ">Findings: " not in page and '<li class="finding ' not in page and "rules found nothing" in page
