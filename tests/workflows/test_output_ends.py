"""Where output ends: full disks, pipes that nobody reads, closed streams, narrow terminals, encodings without frames.

One process imports everything and forks for each case, so that a matrix of real descriptors takes seconds.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator

import pandas as pd
import pytest
from forks import Forks, forks
from helpers_small import compute

from workflows.formats import render_tables
from workflows.formats.html import lines_of, table_html
from workflows.formats.machine import frame_csv
from workflows.grid.load import load_sweep
from workflows.tables.table import Column, Table

SWEEP = """\
sweep: ends
datasets: [{dataset: digits, images: {first: 4}}]
classifiers: [digits-cnn]
defences: [none]
attacks: [none, {attack: pgd, norm: linf, eps: 0.1, steps: 1}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    folder = tmp_path_factory.mktemp("ends")
    (folder / "s.yaml").write_text(SWEEP)
    compute(load_sweep(folder / "s.yaml"), str(folder / "store"))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    with forks(folder, environment) as place:
        yield place


S = ["s.yaml", "--store", "store"]
COMMANDS = [
    ["tables", *S],
    ["tables", *S, "--format", "json"],
    ["tables", *S, "--format", "csv"],
    ["tables", *S, "--format", "md"],
    ["tables", *S, "--format", "latex"],
    ["run", *S, "--mlflow", "off"],
    ["plan", *S, "--no-preflight"],
    ["status", *S],
    ["report", *S],
    ["compact", *S],
    ["compare", "s.yaml@store", "s.yaml@store"],
    ["check", *S, "--baseline", "store", "--mlflow", "off"],
    ["promote", *S, "--to", "baseline.json"],
    ["list", "sweeps"],
    ["data", "verify", "digits"],
    ["--help"],
    ["tables", "--help"],
    ["--version"],
]


@pytest.mark.slow
def test_every_command_on_a_full_disk_and_into_a_pipe_that_nobody_reads(place: Forks) -> None:
    ends: list[dict[str, str]] = [{"1": "/dev/full"}, {"1": "pipe"}]
    found = iter(place.run([{"command": command, "ends": end} for command in COMMANDS for end in ends]))
    for command, full, pipe in zip(COMMANDS, found, found, strict=True):
        assert full[0] == 1 and "not be written (No space left on device)" in full[2], (command, full)
        assert pipe[0] == 141 and "could not be written" not in pipe[2], (command, pipe)
        assert not any(word in full[2] + pipe[2] for word in ("Traceback", "Exception ignored")), (
            command,
            full,
            pipe,
        )


@pytest.mark.slow
@pytest.mark.parametrize("command", [["tables", *S], ["run", *S, "--mlflow", "off"], ["status", *S]])
def test_streams_that_are_closed(command: list[str], place: Forks) -> None:
    ends: list[dict[str, str]] = [
        {},
        {"1": "closed"},
        {"2": "closed"},
        {"2": "/dev/full"},
        {"2": "pipe"},
        {"0": "closed"},
    ]
    plain, closed, *others = place.run([{"command": command, "ends": end} for end in ends])
    assert plain[0] == 0 and plain[1], plain
    assert closed[0] == 1 and "could not be written" in closed[2] and "Traceback" not in closed[2], closed
    for other in others:  # who reads no notes gets the same results
        assert other[:2] == plain[:2]


@pytest.mark.slow
def test_terminals_that_are_narrow_or_know_less(place: Forks) -> None:
    tables = ["tables", *S]
    narrow, wide, dumb, ascii_, latin, forced = place.run(
        [
            {"command": tables, "env": {"COLUMNS": "40"}},
            {"command": tables, "env": {"COLUMNS": "400"}},
            {"command": tables, "env": {"TERM": "dumb", "NO_COLOR": "1"}},
            {"command": tables, "encoding": "ascii"},
            {"command": tables, "encoding": "latin-1"},
            {"command": tables, "env": {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}},
        ],
    )
    for status, out, err in (narrow, wide, dumb, ascii_, latin, forced):
        assert status == 0 and "\x1b" not in out and "Traceback" not in err
    assert max(map(len, narrow[1].splitlines())) <= 40
    assert wide[1] == dumb[1] == forced[1]
    frame, *_ = (line for line in wide[1].splitlines() if "pgd-1 linf" in line)
    block = narrow[1][narrow[1].index("pgd-1 linf") :].split("\n\n")[0]
    for cell in [cell.strip() for cell in frame.strip("│").split("│")][3:]:
        assert cell in " ".join(block.split()), (cell, block)  # nothing is dropped
    assert ascii_[1].isascii() and "\\u2" not in ascii_[1] and "+---" in ascii_[1]
    assert latin[1].count("\n") == wide[1].count("\n")


EVIL = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "a|b",
    "a\\|b",
    "<script>alert(1)</script>",
    "![x](http://tracker)",
    "two\nlines",
    "\x1b[31mred\x1b[0m",
    "50% & $5_a #1 {x} ~ ^",
    "\u202egnp",
    "-5",
]


def test_names_that_mean_something_to_a_reader() -> None:
    frame = pd.DataFrame({"name": EVIL, "value": [-1.5] * len(EVIL)})
    columns = (Column("name", "Name", "text", "Its name."), Column("value", "Value", "number", "A number."))
    table = Table("evil", "Evil", columns, frame)
    written = list(csv.DictReader(io.StringIO(frame_csv(frame))))
    assert [row["value"] for row in written] == ["-1.5"] * len(EVIL)  # numbers stay numbers
    for row, name in zip(written, EVIL, strict=True):
        if name != "-5":  # a number as well
            assert row["name"][:1] not in tuple("=+-@\t\r"), row
        assert "\x1b" not in row["name"]
    assert [row["name"] for row in written[:4]] == ["'" + name for name in EVIL[:4]]

    markdown = render_tables([table], "md", whole=False)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(EVIL) and "<script" not in markdown and "](http" not in markdown
    assert r"| a\|b |" in markdown and r"| a\\\|b |" in markdown and r"two\\nlines" in markdown

    latex = render_tables([table], "latex", whole=False)
    assert r"50\% \& \$5\_a \#1 \{x\} \textasciitilde{} \textasciicircum{}" in latex
    assert sum(line.endswith(r"\\") for line in latex.splitlines()) == 1 + len(EVIL)

    html = str(table_html(table, lines_of(table, []), []))
    assert "<script" not in html and "&lt;script&gt;" in html
    text = render_tables([table], "text", whole=False)
    assert sum("-1.5" in line for line in text.splitlines()) == len(EVIL)
    for output in (markdown, latex, html, text):
        assert not any(character in output for character in "\x1b\r\u202e")
    assert json.loads(render_tables([table], "json", whole=False))["evil"][11]["name"] == EVIL[11]
