"""Findings that a sweep silences: shown with the reason in every format, and mistakes in an entry have their line."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from audited import NOISE, PGD, Audited, by_threat
from helpers_small import ASSETS, small_sweep

import workflows
from defense.errors import InvalidInput
from workflows.analysis import Analysis
from workflows.audit import Finding, counts, findings, rules_on
from workflows.formats.findings import tally
from workflows.formats.machine import write_csv
from workflows.formats.render import render
from workflows.grid.load import Sweep
from workflows.grid.silence import RULE_NAMES
from workflows.report.page import report
from workflows.results.reader import Results

ROOT = Path(workflows.__file__ or "").parents[1]
WHY = "A smoke test, whose figures nobody quotes."


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    right = by_threat({"none clean": 0.7, "clean": 0.72}, 0.9)
    return Audited(tmp_path_factory.mktemp("s"), right, defences=f"none, {NOISE}", attacks=f"none, {PGD}", images=100)


def again(audited: Audited, folder: Path, silence: Any) -> Results:
    content = yaml.safe_load(audited.sweep.text)
    text = yaml.safe_dump({**content, "silence": silence}, sort_keys=False)
    return Results(audited.store, small_sweep(folder, text))


def test_it_is_shown_last_with_its_reason_and_counted_apart(sound: Audited, tmp_path: Path) -> None:
    results = again(sound, tmp_path, [{"rule": "few-images", "reason": WHY}])
    assert [cell.id for cell in results.sweep.cells] == [cell.id for cell in sound.sweep.cells]
    assert results.sweep.id == sound.sweep.id
    found = findings(results)
    quiet = found[-1]
    assert (quiet.rule, quiet.severity, quiet.standing, quiet.silenced) == ("few-images", "note", "silenced", WHY)
    loud = findings(sound.results)
    assert [f for f in found if f.rule != "few-images"] == [f for f in loud if f.rule != "few-images"]
    before = counts(loud)
    assert counts(found) == {**before, "note": before["note"] - 1, "silenced": 1}
    assert "silenced" not in before and tally(found).endswith("1 silenced")
    assert rules_on(found, quiet.cells).endswith("silenced: few-images")


def test_every_format_has_the_reason(sound: Audited, tmp_path: Path) -> None:
    analysis = Analysis(again(sound, tmp_path, [{"rule": "few-images", "reason": WHY}]))
    for how in ("text", "md", "latex"):
        shown = " ".join(render(analysis, how).split())
        assert WHY in shown and "(it is a note)" in shown, how
    content = json.loads(render(analysis, "json"))
    assert [f["silenced"] for f in content["findings"] if f["rule"] == "few-images"] == [WHY]
    assert {f["silenced"] for f in content["findings"] if f["rule"] != "few-images"} == {None}
    assert "silenced: few-images" in render(analysis, "csv")
    write_csv(analysis, tmp_path / "csv")
    assert f"Silenced because: {WHY}" in (tmp_path / "csv" / "README.md").read_text()
    html = report(analysis, command="puregrid report")
    assert f"Silenced because: {WHY}" in html and "1 silenced by the sweep file" in html


def test_silenced_findings_are_not_cut_off(sound: Audited, tmp_path: Path) -> None:
    analysis = Analysis(again(sound, tmp_path, [{"rule": "few-images", "reason": WHY}]))
    quiet = analysis.findings[-1]
    analysis.findings[:-1] = [Finding(f"rule-{i}", "note", (), "t", {}, "a") for i in range(20)]
    text = " ".join(render(analysis, "text").split())
    assert WHY in text and "and 8 more" in text and quiet.rule in text


def test_some_cells_only_and_entries_that_silence_nothing(sound: Audited, tmp_path: Path) -> None:
    doubted = {f.rule for f in sound.found if f.rule == "only-static-attacks"}
    assert doubted
    noise = {"rule": "only-static-attacks", "cells": {"defence": "gaussian-noise"}, "reason": WHY}
    bare = {"rule": "only-static-attacks", "cells": {"defence": "none"}, "reason": WHY}
    found = findings(again(sound, tmp_path, [noise]))
    assert [f.rule for f in found if f.silenced] == ["only-static-attacks"]
    other = findings(again(sound, tmp_path, [bare]))
    assert not [f for f in other if f.silenced]
    (unused,) = [f for f in other if f.rule == "silence-unused"]
    assert unused.severity == "note" and "only-static-attacks" in unused.text and len(unused.cells) == 2
    assert re.search(r"small\.yaml:\d+", unused.action)


def test_a_doubt_that_is_silenced_is_not_in_the_summary(sound: Audited, tmp_path: Path) -> None:
    assert any("doubts" in line for line in Analysis(sound.results).summary)
    rules = {f.rule for f in findings(sound.results) if f.severity != "note"}
    silence = [{"rule": rule, "reason": WHY} for rule in sorted(rules)]
    assert not any("doubts" in line for line in Analysis(again(sound, tmp_path, silence)).summary)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"rule": "few-image", "reason": "x"},
            "silence.0.rule: there is no audit rule 'few-image'; did you mean 'few-images'",
        ),
        ({"rule": "few-images"}, "silence.0.reason: a silenced finding is shown with its reason"),
        ({"rule": "few-images", "reason": "  "}, "silence.0.reason"),
        ({"reason": "x"}, "silence.0.rule"),
        ({"rule": "few-images", "reason": "x", "cell": {}}, "unknown field 'cell'"),
        ({"rule": "few-images", "reason": "x", "cells": {"defence": "jpeg"}}, "matches no cell of the grid"),
        ({"rule": "few-images", "reason": "x", "cells": "none"}, "a mapping was expected"),
        ("few-images", "a mapping was expected"),
    ],
)
def test_mistakes(sound: Audited, tmp_path: Path, entry: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)) as error:
        again(sound, tmp_path, [entry])
    assert re.match(r".*small\.yaml:\d+", str(error.value))


def test_a_sweep_in_python_and_its_record(tmp_path: Path) -> None:
    sweep = Sweep(
        "mine",
        datasets=[{"dataset": "digits", "images": {"first": 4}}],
        classifiers=["digits-cnn"],
        defences=["none"],
        silence=[{"rule": "few-images", "cells": {"attack": "none"}, "reason": WHY}],
    )
    (one,) = sweep.silences
    assert (one.rule, one.reason, one.cells) == ("few-images", WHY, {sweep.cells[0].id})
    read = small_sweep(tmp_path, sweep.text)
    assert [(s.rule, s.reason, s.cells) for s in read.silences] == [(one.rule, one.reason, one.cells)]
    assert (ASSETS / "digits-cnn").is_dir()


def test_all_rules_can_be_silenced_and_are_on_the_page() -> None:
    """Ids are the string constants that findings are made of."""
    ids = set()
    for file in sorted((ROOT / "workflows" / "audit" / "rules").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in RULE_NAMES:
                ids.add(node.value)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("about", "Finding") and node.args:
                first = node.args[0]
                assert not isinstance(first, ast.Constant) or first.value in RULE_NAMES, first.value
    assert ids == set(RULE_NAMES) and list(RULE_NAMES) == sorted(RULE_NAMES)
    text = (ROOT / "docs" / "auditor.md").read_text()
    assert [rule for rule in RULE_NAMES if f"`{rule}`" not in text] == []
