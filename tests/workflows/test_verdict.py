"""The two sentences at the head of a report, from lines of a leaderboard."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workflows.analysis.verdict import best_of, headline, verdict
from workflows.audit import Finding


def line(
    defence: str, clean: float | None, static: float | None, adaptive: float | None, **other: Any
) -> dict[str, Any]:
    values: dict[str, Any] = {"dataset": "digits", "seed": 0, "classifier": "net", "defence": defence}
    values |= {"norm": "linf", "eps": 0.1, "bare": defence == "none", "cells": [f"{defence}-cell"], "radius": None}
    shares = {"clean": clean, "static": static, "adaptive": adaptive, "certified": None, "corruptions": None}
    for name, share in {**shares, **other}.items():
        values |= {name: share, f"{name}_low": None, f"{name}_high": None}
        if share is not None:
            values |= {f"{name}_low": share - 0.05, f"{name}_high": share + 0.05}
        values |= {f"{name}_attack": f"{name} attack", f"{name}_cell": f"{defence}-cell"}
    return values


def said(
    *lines: dict[str, Any], findings: list[Finding] | None = None, incomplete: tuple[str, ...] = ()
) -> list[str]:
    return verdict(headline(pd.DataFrame(list(lines))), [] if findings is None else findings, incomplete)


BARE = line("none", 0.95, 0.05, 0.05)


def test_the_best_is_best_under_its_strongest_attack_not_under_static_ones() -> None:
    first, second = said(BARE, line("a", 0.9, 0.8, 0.2), line("b", 0.85, 0.6, 0.4))
    assert first == (
        "Behind the best of 2 defences, b, net on digits keeps 40.0 % [35.0, 45.0] under an attacker who knows it "
        "(adaptive attack, eps 0.1) of 85.0 % [80.0, 90.0] on clean images; the bare classifier keeps "
        "5.0 % [0.0, 10.0] of 95.0 % [90.0, 100.0], and static attacks would have shown 60.0 % [55.0, 65.0]."
    )
    assert second == "The auditor has neither errors nor warnings on it."


def test_a_bare_classifier_without_clean_images_is_said_by_its_attacked_ones_alone() -> None:
    """A sweep without clean cells has a verdict all the same."""
    first, _ = said(line("none", None, 0.05, 0.05), line("a", None, 0.6, 0.4))
    assert first == (
        "Behind a, net on digits keeps 40.0 % [35.0, 45.0] under an attacker who knows it (adaptive attack, eps 0.1)"
        "; the bare classifier keeps 5.0 % [0.0, 10.0], and static attacks would have shown 60.0 % [55.0, 65.0]."
    )


def test_a_static_number_is_best_only_among_such_and_said_to_be_a_bound() -> None:
    rows = headline(pd.DataFrame([BARE, line("static", 0.9, 0.8, None), line("known", 0.9, 0.7, 0.3)]))
    assert best_of(rows)["defence"] == "known"
    first, second = said(BARE, line("static", 0.9, 0.8, None))
    assert "under attacks that do not know the defence (static attack" in first
    assert second.startswith("Nobody attacked it who knew it, so this is an upper bound")


def test_a_static_attack_that_is_stronger_than_the_adaptive_ones_is_the_strongest() -> None:
    rows = headline(pd.DataFrame([line("a", 0.9, 0.2, 0.5)]))
    assert rows[["strongest", "strongest_attack"]].iloc[0].tolist() == [0.2, "static attack"]
    first, _ = said(line("a", 0.9, 0.2, 0.5))
    assert "under its strongest attack, a static one (static attack, eps 0.1)" in first and "would have" not in first


def test_errors_and_warnings_on_the_defence_are_said_and_others_are_not() -> None:
    found = [
        Finding("r1", "warning", text="It is too good.", cells=("a-cell",), evidence={}, action=""),
        Finding("r2", "error", text="It is another.", cells=("none-cell",), evidence={}, action=""),
    ]
    _, second = said(BARE, line("a", 0.9, 0.8, 0.2), findings=found)
    assert second == "The auditor has 1 warning on this defence, first: It is too good."
    _, second = said(BARE, line("a", 0.9, 0.8, 0.2), incomplete=("1 of 2 cells are not complete.",))
    assert second.endswith("Cells are not complete: these are not its final numbers.")


def test_certificates_corruptions_and_clean_images_alone_have_a_verdict() -> None:
    certified = line("s", 0.9, None, None, certified=0.5) | {"radius": 0.25}
    assert (
        said(certified)[0]
        == "Behind s, net on digits is certified at l_2 radius 0.25 on 50.0 % [45.0, 55.0] of the images."
    )
    assert "of the corrupted images" in said(line("s", 0.9, None, None, corruptions=0.5))[0]
    assert said(line("none", 0.9, None, None))[0].endswith("of the clean images; it was not attacked.")
    assert verdict(pd.DataFrame(), None, ["x"]) == ["Nothing is committed yet.", "x"]
