"""Tables in a terminal: they fit its columns, in the order that they declare, and say what they left out."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from workflows.formats.text import table_text
from workflows.tables.robustness import robustness_table
from workflows.tables.table import Column, Table

COLUMNS = (
    Column("name", "defence", "text", "Its name."),
    Column("right", "right", "interval", "Share.", ends=("low", "high")),
    Column("images", "images", "integer", "Images.", drop=2),
    Column("left", "left alone", "percent", "Share.", drop=1),
)
FRAME = pd.DataFrame(
    [("diffpure t*=150 in 20 steps", 0.815, 0.782, 0.844, 599, 0.5), ("none", 0.0, 0.0, 0.006, 599, 0.25)],
    columns=["name", "right", "low", "high", "images", "left"],
)
TABLE = Table("t", "Title", COLUMNS, FRAME, note="How to read it.")


def lines(width: int | None, table: Table = TABLE) -> list[str]:
    return table_text(table, width=width).splitlines()


def test_a_pipe_has_everything_on_one_line() -> None:
    (line,) = [line for line in lines(None) if "diffpure" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        *("diffpure t*=150 in 20 steps", "81.5 [78.2, 84.4]", "599", "50.0"),
    ]


@pytest.mark.parametrize(
    ("width", "titles", "left_out"),
    [
        (80, {"defence", "right", "images", "left alone"}, ""),
        (66, {"defence", "right", "images", "left alone"}, ""),  # text and intervals are wrapped
        (54, {"defence", "right", "images", "left"}, ""),
        (45, {"defence", "right", "images"}, "left alone"),
        (34, {"defence", "right"}, "images, left alone"),
    ],
)
def test_columns_go_in_the_declared_order_and_are_named(width: int, titles: set[str], left_out: str) -> None:
    shown = lines(width)
    assert max(map(len, shown)) <= width
    head = " ".join(line for line in shown if line.startswith("┃"))
    assert titles <= {word.strip() for word in re.split(r"[┃│]", head)} | {"left alone"}
    said = " ".join(" ".join(shown).split())
    assert (f"Left out at {width} columns: {left_out}. " in said) == bool(left_out)
    whole = " ".join(
        " ".join(line.strip("│").split("│")[1].strip() for line in shown if line.startswith("│")).split()
    )
    assert whole == "81.5 [78.2, 84.4] 0.0 [0.0, 0.6]"  # no number is cut


def test_where_not_even_those_fit_that_stay_each_line_is_a_block_with_all_of_it() -> None:
    shown = lines(24)
    assert max(map(len, shown)) <= 24 and not any("│" in line for line in shown)
    assert "599" in " ".join(shown) and "81.5 [78.2, 84.4]" in " ".join(" ".join(shown).split())
    assert "Left out" not in " ".join(shown)


def test_colour_is_there_for_a_person_alone_and_changes_no_text() -> None:
    plain, coloured = table_text(TABLE), table_text(TABLE, colour=True)
    assert "\x1b" not in plain and "\x1b[1m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_a_name_cannot_colour_the_terminal() -> None:
    frame = FRAME.assign(name=["\x1b[31mred", "none"])
    coloured = table_text(Table("t", "Title", COLUMNS, frame), colour=True)
    assert "\x1b[31m" not in coloured and r"\x1b[31mred" in coloured


@pytest.mark.parametrize("width", range(80, 201, 15))
def test_the_robustness_table_fits_from_80_to_200_columns(width: int) -> None:
    row = {
        "cell": "c",
        "dataset": "digits",
        "classifier": "digits-cnn",
        "attack": "pgd-20 linf exact eot 5",
        "norm": "linf",
    }
    row |= {"eps": 8 / 255, "static": False, "seed": 0, "t_star": 150, "abar": 0.7, "sigma_eq": 0.2, "draws": 20}
    row |= {"purifier": "diffpure", "aggregation": "single", "resubmissions": 5, "images": 599, "planned": 599}
    for name in ("accuracy", "avg", "worst", "vote", "mean_probability", "fixed"):
        row |= {name: 0.5, f"{name}_low": 0.4, f"{name}_high": 0.6}
    names = ["none", "diffpure t*=150 in 20 steps"]
    table = robustness_table(pd.DataFrame([{**row, "defence": name} for name in names]))
    assert table is not None
    shown = lines(width, table)
    assert max(map(len, shown)) <= width
    head = " ".join(line for line in shown if line.startswith("┃"))
    assert "Avg" in head and "attack" in head and "eps" in head
