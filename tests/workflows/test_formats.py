"""One declaration of a table, and what the six formats make of it, to the letter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from loops import every

from tasks.attacks.budgets import format_eps, read_eps
from workflows.audit import Finding
from workflows.formats import Format, render_tables
from workflows.formats.html import lines_of, table_html
from workflows.regression.baselines import from_text
from workflows.results.records import CellRecord, current_name
from workflows.tables.common import EPS, SEED
from workflows.tables.table import Column, Table, frame_only

FRAME = pd.DataFrame(
    {
        "cell": ["c1", "c2", "c3"],
        "net": ["a|b", "a|b", "x_y"],
        "seed": [0, 0, 0],
        "eps": [0.0, 8 / 255, 0.031],
        "images": [599, 599, 16],
        "planned": [599, 599, 20],
        "calls": [1234567, 2, None],
        "right": [0.9932, 0.4371, float("nan")],
        "right_low": [0.983, 0.3978, float("nan")],
        "right_high": [0.9973, 0.4772, float("nan")],
        "change": [0.02, -0.3, None],
        "low": [-0.01, -0.35, None],
        "high": [0.05, -0.25, None],
        "radius": [0.12345, 1.0, None],
        "took": [12.34, 0.05, None],
    }
)
COLUMNS = (
    Column("net", "net", "text", "The network."),
    SEED,
    EPS,
    Column("images", "images", "images", "Images."),
    Column("calls", "calls", "count", "Calls."),
    Column("right", "right", "interval", "Share of right answers."),
    Column("change", "change", "points", "Difference.", ends=("low", "high")),
    Column("radius", "R", "number", "Radius.", unit="pixels", digits=3),
    Column("took", "s", "seconds", "Time."),
    Column("cell", "cell", "text", "Id.", when=frame_only),
)
TABLE = Table(
    "nets",
    "Nets",
    COLUMNS,
    FRAME,
    "How 95 % are meant.",
    remarks=("A caveat of `these`.",),
    warning="Read this first.",
    cells=(("c1",), ("c2",), ("c3",)),
    groups=("net",),
)
FOUND = [
    Finding("few-images", "note", ("c1", "c3"), "Few.", {"images": 20}, "Take more."),
    Finding("too-good", "error", ("c3",), "Too good.", {"p": 0.0021}, "Look again."),
]

MARKDOWN = r"""**of it: Nets**

**Read this first.**

| net | eps | images | calls | right | change | R | s | findings |
| :-- | --: | --: | --: | --: | --: | --: | --: | :-- |
| a\|b | 0 | 599 | 1,234,567 | 99.3 [98.3, 99.7] | +2.0 [-1.0, +5.0] | 0.123 | 12.3 | 1 |
| a\|b | 8/255 | 599 | 2 | 43.7 [39.8, 47.7] | -30.0 [-35.0, -25.0] | 1.000 | 0.1 |  |
| x_y | 0.031 | 16 of 20 | - | - | - | - | - | 1, 2 |

Note: How 95 % are meant.

Note: A caveat of `these`.

**Findings: 1 error, 1 note**

1. **note** `few-images`: Few. (evidence: images 20; to do: Take more.)
2. **error** `too-good`: Too good. (evidence: p 0.0021; to do: Look again.)
"""
TEXT = """\
of it: Nets
┏━━━━━┳━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━┳━━━━━━━━━━┓
┃ net ┃   eps ┃   images ┃     calls ┃             right ┃               change ┃     R ┃    s ┃ findings ┃
┡━━━━━╇━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━╇━━━━━━━━━━┩
│ a|b │     0 │      599 │ 1,234,567 │ 99.3 [98.3, 99.7] │    +2.0 [-1.0, +5.0] │ 0.123 │ 12.3 │ 1        │
│ a|b │ 8/255 │      599 │         2 │ 43.7 [39.8, 47.7] │ -30.0 [-35.0, -25.0] │ 1.000 │  0.1 │          │
├─────┼───────┼──────────┼───────────┼───────────────────┼──────────────────────┼───────┼──────┼──────────┤
│ x_y │ 0.031 │ 16 of 20 │         - │                 - │                    - │     - │    - │ 1, 2     │
└─────┴───────┴──────────┴───────────┴───────────────────┴──────────────────────┴───────┴──────┴──────────┘
Warning: Read this first.
Note: How 95 % are meant.
Note: A caveat of `these`.

Findings: 1 error, 1 note
 1 note     few-images: Few.
            evidence: images 20
            to do: Take more.
 2 error    too-good: Too good.
            evidence: p 0.0021
            to do: Look again.
"""
LATEX = r"""\begin{table}[htbp]
\caption{of it: Nets}
\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
\begin{tabular}{lrrrrrrr}
\toprule
net & eps & images & calls & right & change & R & s \\
\midrule
a|b\tnote{1} & 0 & 599 & 1,234,567 & 99.3 {\footnotesize [98.3, 99.7]} & +2.0 {\footnotesize [-1.0, +5.0]} & 0.123 & 12.3 \\
a|b & 8/255 & 599 & 2 & 43.7 {\footnotesize [39.8, 47.7]} & -30.0 {\footnotesize [-35.0, -25.0]} & 1.000 & 0.1 \\
x\_y\tnote{1,2} & 0.031 & 16 of 20 & - & - & - & - & - \\
\bottomrule
\end{tabular}}
\begin{tablenotes}\footnotesize
\item Read this first.
\item How 95 \% are meant.
\item A caveat of \texttt{these}.
\item[1] note: few-images: Few. (evidence: images 20; to do: Take more.)
\item[2] error: too-good: Too good. (evidence: p 0.0021; to do: Look again.)
\end{tablenotes}
\end{table}
"""  # noqa: E501
CSV = """\
cell,net,seed,eps,images,planned,calls,right,right_low,right_high,change,low,high,radius,took,findings
c1,a|b,0,0.0,599,599,1234567.0,0.9932,0.983,0.9973,0.02,-0.01,0.05,0.12345,12.34,note: few-images
c2,a|b,0,0.03137254901960784,599,599,2.0,0.4371,0.3978,0.4772,-0.3,-0.35,-0.25,1.0,0.05,
c3,x_y,0,0.031,16,20,,,,,,,,,,error: too-good; note: few-images
"""
HTML = """\
<table>
<thead><tr><th scope="col" class="t" title="The network.">net</th>\
<th scope="col" title="Budget of the attack; 0 for clean images.">eps</th>\
<th scope="col" title="Images.">images</th><th scope="col" title="Calls.">calls</th>\
<th scope="col" title="Share of right answers.">right</th><th scope="col" title="Difference.">change</th>\
<th scope="col" title="Radius.">R</th><th scope="col" title="Time.">s</th></tr></thead>
<tbody>
<tr id="nets-c1"><td class="t">a|b</td><td>0</td><td>599</td><td>1,234,567</td>\
<td>99.3<a class="mark note" href="#finding-1" title="note: few-images">1</a>\
<span class="interval">[98.3, 99.7]</span></td>\
<td>+2.0<span class="interval">[-1.0, +5.0]</span></td><td>0.123</td><td>12.3</td></tr>
</tbody></table>"""


def rendered(how: Format, tables: Sequence[Table] = (TABLE,), findings: Sequence[Finding] | None = FOUND) -> str:
    return render_tables(tables, how, title="of it", findings=findings)


@pytest.mark.parametrize(("how", "expected"), [("md", MARKDOWN), ("text", TEXT), ("latex", LATEX)])
def test_people_read_the_declared_columns_with_notes_and_findings(how: Format, expected: str) -> None:
    assert rendered(how) == expected


def test_csv_is_the_frame_with_the_rules_that_fired() -> None:
    assert render_tables([TABLE], "csv", findings=FOUND, whole=False) == CSV
    assert "findings" not in render_tables([TABLE], "csv", whole=False)


def test_html_is_the_same_table_with_meanings_and_marks() -> None:
    numbered = [{"severity": finding.severity, "rule": finding.rule} for finding in FOUND]
    lines = lines_of(TABLE, FOUND)
    assert table_html(TABLE, lines[:1], numbered) == HTML
    assert [line.marks for line in lines] == [{4: (1,)}, {}, {4: (1, 2)}]  # beside the first share
    whole = ElementTree.fromstring(table_html(TABLE, lines, numbered))
    assert len(whole.findall("tbody/tr")) == 3


def test_html_escapes_names() -> None:
    wild = replace(TABLE, frame=FRAME.assign(net='<b>&"'))
    cell = ElementTree.fromstring(table_html(wild, lines_of(wild, ()), [])).find("tbody/tr/td")
    assert cell is not None and cell.text == '<b>&"'


def test_json_has_the_frame_the_findings_and_the_declarations() -> None:
    content = json.loads(render_tables([TABLE], "json", findings=FOUND, whole=False))
    assert list(content) == ["nets", "findings", "tables"]
    assert content["nets"][2] == {
        **dict.fromkeys(FRAME.columns),
        **{"cell": "c3", "net": "x_y", "seed": 0, "eps": 0.031, "images": 16, "planned": 20},
    }
    assert content["nets"][1]["eps"] == 8 / 255 and content["findings"][1] == FOUND[1].as_dict()
    declared = content["tables"]["nets"]
    assert declared["remarks"] == ["A caveat of `these`."] and declared["warning"] == "Read this first."
    assert declared["columns"][5] == {
        "name": "right",
        "title": "right",
        "kind": "interval",
        "unit": "share",
        "meaning": "Share of right answers.",
        "interval": ["right_low", "right_high"],
    }
    assert [column["name"] for column in declared["columns"]] == [column.name for column in COLUMNS]


def test_a_column_that_only_distinguishes_lines_is_shown_where_it_does() -> None:
    two = replace(TABLE, frame=FRAME.assign(seed=[0, 1, 1]))
    assert [column.name for column in two.visible][:2] == ["net", "seed"]
    assert "| a\\|b | 1 | 8/255 |" in rendered("md", [two])
    assert "seed" not in rendered("md")


def test_an_audit_that_found_nothing_is_not_the_same_as_none() -> None:
    assert json.loads(rendered("json", findings=[]))["findings"] == []
    assert "findings" not in json.loads(rendered("json", findings=None))
    for how in ("text", "md", "latex"):
        assert rendered(how, findings=[]) == rendered(how, findings=None)
        assert "indings" not in rendered(how, findings=[]) and "A caveat of" in rendered(how, findings=[])


def test_what_is_for_machines_alone_is_no_table_for_people() -> None:
    points = replace(TABLE, name="points", title="Points", for_people=False)
    for how in ("text", "md", "latex"):
        assert "Points" not in rendered(how, [TABLE, points])
        assert "Points" in render_tables([points], how, whole=False), "unless it is asked for"
    assert len(json.loads(rendered("json", [TABLE, points]))["points"]) == 3


def test_long_latex_tables_are_parts_and_each_has_the_findings_of_its_lines() -> None:
    frame = pd.concat([FRAME.assign(cell=f"d{i}") for i in range(30)], ignore_index=True)
    cells = tuple((cell,) for cell in frame["cell"])
    long = replace(TABLE, frame=frame, cells=cells)
    late = [Finding("late", "note", ("d29",), "Late.", {}, "Wait."), Finding("none", "note", ("z",), "Else.", {}, "")]
    parts = rendered("latex", [long], late).split(r"\end{table}")[:-1]
    count = len(parts)
    assert count == 3 and sum(part.count("8/255") for part in parts) == 30
    for number, part in enumerate(parts, 1):
        assert rf"\caption{{of it: Nets ({number} of {count})}}" in part and part.count(r"\bottomrule") == 1
        assert len([line for line in part.splitlines() if line.endswith(r" \\")]) <= 46
        # Notes and findings that no line carries stand below the last part.
        assert (
            ("How 95" in part)
            == (r"\item[2] note: none" in part)
            == (r"\item[1] note: late" in part)
            == (number == 3)
        )


def test_many_findings_on_one_table_are_counted_in_latex() -> None:
    many = [Finding(f"rule-{i}", "note", ("c1",), "Text.", {}, "Do.") for i in range(15)]
    text = rendered("latex", findings=many)
    assert r"\item[12] note: rule-11:" in text and r"\item[13]" not in text
    assert r"\item and 3 more findings; \texttt{--format json} has them all." in text


# Budgets


@every("eps", [0.0, 0.1, 0.15, 0.5, 1.0, 0.031, 0.00345, *(k / 255 for k in range(1, 300))])
def test_a_budget_reads_back_as_it_was_written_today_and_before(eps: float) -> None:
    assert read_eps(format_eps(eps)) == pytest.approx(eps, abs=1e-15)
    assert format_eps(read_eps(f"{eps:.6g}")) == format_eps(eps), "earlier versions wrote six digits"


def test_names_of_cells_have_the_budget_of_tables_and_old_ones_are_read_as_such() -> None:
    row = {"dataset": "cifar10", "classifier": "net", "defence": "eps 0.5", "attack": "pgd-20 linf", "seed": 0}
    name = CellRecord.name_of({**row, "eps": 8 / 255})
    assert name == "cifar10 · net · eps 0.5 · pgd-20 linf · eps 8/255 · seed 0"
    assert current_name(name.replace("8/255", "0.0313725")) == name == current_name(name)
    for text in ("0", "0.1", "0.031", "1", "0.031373"):
        assert current_name(f"a · eps {text} · seed 3") == f"a · eps {text} · seed 3"


def test_a_baseline_of_an_earlier_version_has_names_of_today() -> None:
    path = Path(__file__).parents[2] / "workflows/sweeps/baselines/quickstart.json"
    text = path.read_text(encoding="utf-8")
    assert "eps 0.15 " in text
    found = from_text(text.replace("eps 0.15 ", "eps 0.0313725 "), "old")
    assert sum("eps 8/255 " in cell.name for cell in found.cells) == 3
