"""The appendix for a paper: what was the attack, what it cites, figures as PDF, an archive that is judged again."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_small import SMALL, compute, small_sweep
from safetensors.numpy import load, save
from typer.testing import CliRunner

from defense.classifiers.base import ENTRIES
from defense.errors import InvalidInput
from defense.purifiers import PURIFIERS
from tasks.attacks import ATTACKS
from tasks.datasets import DATASETS
from workflows.analysis import Analysis
from workflows.cli import app
from workflows.grid.sweep import Sweep
from workflows.paper.archive import judge, open_archive, write_archive
from workflows.paper.bibliography import ALWAYS, SOURCES, WITHOUT, bibtex, cited, entries
from workflows.paper.checklist import hours
from workflows.paper.methods import knowledge, methods, methods_used
from workflows.paper.pdf import svg_to_pdf
from workflows.results.reader import Results
from workflows.store import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small sweep with its store in ``results``, and the archive of it."""
    folder = tmp_path_factory.mktemp("paper")
    sweep = small_sweep(folder)
    compute(sweep, str(folder / "results"))
    write_archive(analysis_of(folder), folder / "archive")
    return folder


def sweep_of(folder: Path) -> Sweep:
    return small_sweep(folder)


def analysis_of(folder: Path) -> Analysis:
    return Analysis(Results(Store(str(folder / "results")), sweep_of(folder)))


# ------------------------------------------------------------------------------------------------------- sources


def test_every_part_that_comes_with_puregrid_cites_its_source() -> None:
    names = {*PURIFIERS.names(), *ATTACKS.names(), *DATASETS.names(), *ENTRIES}
    assert "diffusion-classifier" in names
    assert names - set(SOURCES) - WITHOUT == set()
    assert WITHOUT.isdisjoint(SOURCES)


def test_every_citation_has_an_entry_and_every_entry_is_cited() -> None:
    known = entries()
    used = {*ALWAYS, *(key for keys in SOURCES.values() for key in keys)}
    assert used == set(known) and len(known) > 30
    for key, text in known.items():
        assert text.startswith("@") and f"{{{key}," in text
        assert re.search(r"^  title = \{.+\},$", text, re.MULTILINE), key
        assert text.count("{") == text.count("}"), key
    assert bibtex(["wilson1927", "wilson1927"], "9.9").count("@") == 1
    assert "version = {9.9}" in bibtex(["puregrid"], "9.9")


def test_a_sweep_cites_what_it_uses(folder: Path) -> None:
    assert cited(methods_used(sweep_of(folder))) == ["pedregosa2011", "madry2018", "nie2022"]


# ------------------------------------------------------------------------------------------------------- methods

PGD = {"attack": "pgd", "norm": "linf", "eps": 0.1, "steps": 3}


@pytest.mark.parametrize(
    ("entry", "said", "unsaid"),
    [
        (PGD, "does not know that there is a purifier", "EOT"),
        ({**PGD, "gradient": "exact", "eot": 7}, "averaged over 7 draws", "static"),
        ({**PGD, "gradient": "bpda"}, "as through the identity (BPDA)", "static"),
        ({**PGD, "gradient": "surrogate(4)"}, "a shorter chain of 4 steps", "static"),
        ({**PGD, "knows": "randomness"}, "those draws too by which the image is judged", "does not know the draws"),
        ({"attack": "square", "norm": "linf", "eps": 0.1, "knows": "purifier"}, "sees no gradient", "differentiates"),
    ],
)
def test_what_the_attacker_knew_and_what_not(entry: dict[str, Any], said: str, unsaid: str) -> None:
    attack = ATTACKS.get(entry["attack"]).model_validate(entry)
    text = knowledge(attack)
    assert said in text and unsaid not in text
    if not attack.static and attack.knows == "purifier":
        assert "does not know the draws by which the image is judged" in text
    assert "no purifier" in knowledge(attack, bare=True)


def test_methods_have_every_field_that_decides_a_row(folder: Path) -> None:
    text = methods(sweep_of(folder)).replace(r"\allowbreak{}", "").replace(r"\_", "_")
    cell = sweep_of(folder).cells[-1]
    assert cell.attack is not None
    for spec in (cell.images.dataset, cell.classifier, cell.defence.purifier, cell.attack):
        for name, value in spec.identity().items():
            if name in ("attack", "norm", "eps", "knows", "gradient", "eot", "denoiser"):
                continue
            assert f"{name} = {value}" in text, name
    assert r"\ell_\infty$ of radius 0.1" in text and r"\cite{madry2018}" in text
    assert "upper bound" in text and "2 fresh draws" in text and "20 images 0 to 19" in text


def test_hours_are_those_of_the_stages_behind_a_table() -> None:
    rows = [("attack", "pgd", 3600), ("evaluate", "clean", 1800), ("evaluate", "corruptions", 7200)]
    rows += [("corrupt", "corruptions", 720), ("certify", "", 360)]
    cost = pd.DataFrame(rows, columns=["stage", "attack", "seconds"])
    assert hours(cost) == pytest.approx({"robustness": 1.5, "corruptions": 2.2, "certified": 0.1})
    assert hours(pd.DataFrame()) == {}


# ------------------------------------------------------------------------------------------------------- figures

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="100" height="50" font-size="10">'
    "<style>.chart .a { fill: #00ff00; } .a { fill: #ff0000; } .b.a { stroke: #0000ff; }</style>{}</svg>"
)


@pytest.mark.slow
def test_a_figure_is_a_page_with_embedded_fonts_and_the_same_bytes_each_time() -> None:
    svg = SVG.rsplit("{}", 1)[0] + '<text x="5" y="20" class="a">clean 99.3</text></svg>'
    pdf = svg_to_pdf(svg)
    assert pdf.startswith(b"%PDF-") and b"/MediaBox [ 0 0 100 50 ]" in pdf
    assert b"/CIDFontType2" in pdf and b"/FontFile2" in pdf  # TrueType, embedded
    assert pdf == svg_to_pdf(svg)


@pytest.mark.parametrize(
    ("body", "unknown"),
    [
        ('<ellipse cx="1" cy="1" rx="2" ry="1"/>', "ellipse"),
        ('<path d="M 0 0 C 1 1 2 2 3 3"/>', "'C'"),
        ('<g transform="skewX(3)"/>', "skewX"),
    ],
)
def test_what_would_be_lost_from_a_figure_is_refused(body: str, unknown: str) -> None:
    with pytest.raises(ValueError, match=re.escape(unknown)):
        svg_to_pdf(SVG.rsplit("{}", 1)[0] + body + "</svg>")


def test_shapes_are_where_and_as_the_style_sheet_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[Any] = []
    add = Axes.add_patch
    monkeypatch.setattr(Axes, "add_patch", lambda self, patch: (drawn.append(patch), add(self, patch))[1])
    body = (
        '<g transform="translate(10 20)"><rect class="b a" width="4" height="2"/>'
        '<path class="a" transform="translate(5 5) rotate(90)" d="M1 0 h2 v1 l-2 0 Z"/></g>'
        '<line class="a" x1="1" y1="2" x2="3" y2="4" stroke="#123456" stroke-dasharray="4 2"/>'
    )
    svg_to_pdf(SVG.rsplit("{}", 1)[0] + body + "</svg>")
    corners = [patch.get_path().transformed(patch.get_transform() - patch.axes.transData).vertices for patch in drawn]
    assert corners[0][:3].tolist() == [[10, 20], [14, 20], [14, 22]]
    assert np.allclose(corners[1][:4], [[15, 26], [15, 28], [14, 28], [14, 26]])
    assert corners[2].tolist() == [[1, 2], [3, 4]]
    from matplotlib.colors import to_hex

    # Two classes of an ancestor and itself outweigh one; the later of equals counts.
    assert [to_hex(patch.get_facecolor()) for patch in drawn[:2]] == ["#00ff00", "#00ff00"]
    assert [to_hex(patch.get_edgecolor()) for patch in drawn] == ["#0000ff", "#000000", "#123456"]


@pytest.mark.parametrize(
    ("path", "highest", "rightmost"),
    [
        # From (0, 0) to (2, 0): the half circle above (y runs down) and below; three quarters of one of radius 1.
        ("M0 0 A1 1 0 0 1 2 0", -1.0, 2.0),
        ("M0 0 a1 1 0 0 0 2 0", 0.0, 2.0),
        ("M0 0 A1 1 0 1 1 1 1", -1.0, 2.0),
        ("M0 0 A1 1 0 0 1 1 1", 0.0, 1.0),
    ],
)
def test_arcs_are_on_the_right_side_of_their_ends(path: str, highest: float, rightmost: float) -> None:
    from workflows.paper.pdf import _steps

    corners = np.array([corner for corner, _ in _steps(path)])
    assert corners[:, 1].min() == pytest.approx(highest, abs=0.01)
    assert corners[:, 0].max() == pytest.approx(rightmost, abs=0.01)


# ------------------------------------------------------------------------------------------------------- archive


@pytest.mark.slow
def test_the_archive_is_judged_as_it_was_reported(folder: Path) -> None:
    found = judge(open_archive(folder / "archive"), sweep_of(folder)).frame.set_index("defence")
    rows = analysis_of(folder).robustness
    attacked = rows[rows["attack"] != "clean"].set_index("defence")
    assert list(found["reported"]) == list(attacked.loc[found.index, "avg"]) == list(found["judged"])
    assert list(found["differ"]) == [0, 0] and set(found["verdict"]) == {"agrees"}
    assert list(found["reported_low"]) == list(attacked.loc[found.index, "avg_low"])
    assert (found["images"] == 20).all() and 0 < found["largest"].max() <= 0.1 + 1e-6


@pytest.mark.slow
def test_other_draws_are_other_answers_of_the_random_defence_alone(folder: Path) -> None:
    found = judge(open_archive(folder / "archive"), sweep_of(folder), seed=7).frame.set_index("defence")
    assert found.loc["none", "differ"] == 0
    labels = [name for name in found.index if name != "none"]
    assert (found.loc[labels, "images"] == 20).all()


def changed(folder: Path, target: Path, change: Any, *, told: bool) -> Path:
    """A copy of the archive with other tensors, and a manifest that knows of it or does not."""
    shutil.copytree(folder / "archive", target)
    (file,) = target.glob("*.safetensors")
    tensors = load(file.read_bytes())
    change(tensors)
    file.write_bytes(save(tensors))
    if told:
        manifest = json.loads((target / "manifest.json").read_text())
        manifest["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def brighter(tensors: dict[str, Any]) -> None:
    tensors["images"] = np.clip(tensors["images"] + np.float32(0.3), 0, 1)


def test_a_file_that_was_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    archive = open_archive(changed(folder, tmp_path / "a", brighter, told=False))
    with pytest.raises(InvalidInput, match="sha256 is not the one in the manifest"):
        judge(archive, sweep_of(folder))


@pytest.mark.slow
def test_a_manifest_that_was_changed_too_is_not_the_one_of_the_paper(folder: Path, tmp_path: Path) -> None:
    sha256 = open_archive(folder / "archive").sha256
    assert open_archive(folder / "archive", sha256).sha256 == sha256
    target = changed(folder, tmp_path / "a", brighter, told=True)
    with pytest.raises(InvalidInput, match="not the one that you gave"):
        open_archive(target, sha256)
    found = judge(open_archive(target), sweep_of(folder)).frame  # images outside their budget are seen all the same
    assert set(found["verdict"]) == {"outside the budget 0.1"} and (found["largest"] > 0.1).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("image_id"), "it has no 'image_id'"),
        (lambda t: t.update(images=t["images"] * np.float32(np.nan)), r"values outside of \[0, 1\]"),
        (lambda t: t.update(images=t["images"].astype(np.float64)), "not float32"),
        (lambda t: t.update(image_id=t["image_id"] * 0), "an id for each"),
        (lambda t: t.update(image_id=t["image_id"] + 100_000), "not in it, or not in the data set"),
        (lambda t: [t.pop(k) for k in list(t) if k.startswith("prediction")], "lacks the answers"),
    ],
)
def test_an_archive_that_is_none_is_refused(folder: Path, tmp_path: Path, change: Any, said: str) -> None:
    archive = open_archive(changed(folder, tmp_path / "a", change, told=True))
    with pytest.raises(InvalidInput, match=said):
        judge(archive, sweep_of(folder))


def test_a_folder_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no archive"):
        open_archive(tmp_path)
    for text, said in (
        ("[", "not readable"),
        ("{}", "lacks"),
        ('{"format": "x", "text": "", "files": {}, "cells": []}', "'x'"),
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(InvalidInput, match=said):
            open_archive(tmp_path)


def test_a_strangers_archive_imports_nothing(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "archive", tmp_path / "a")
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    manifest["text"] = SMALL.replace("[digits-cnn]", '["antigravity:fly"]')
    (tmp_path / "a/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match="antigravity"):
        open_archive(tmp_path / "a").sweep(None)
    import sys

    assert "antigravity" not in sys.modules


# ------------------------------------------------------------------------------------------------- the whole folder


@pytest.fixture(scope="module")
def appendix(folder: Path) -> Path:
    """``puregrid report --format paper``."""
    out = folder / "appendix"
    options = ["--store", str(folder / "results"), "--format", "paper", "--out", str(out), "--set", "seeds=[0]"]
    done = CliRunner().invoke(app, ["report", str(folder / "small.yaml"), *options])
    assert (done.exit_code, done.stdout) == (0, f"{out / 'appendix.tex'}\n"), done.output
    return out


def test_the_appendix_has_its_parts_and_the_exact_command(appendix: Path, folder: Path) -> None:
    content = (appendix / "content.tex").read_text()
    plain = content.replace(r"\allowbreak{}", "").replace("-{}-", "--").replace(r"\_", "_")
    shared = f"{folder / 'small.yaml'} --store {folder / 'results'} --set 'seeds=[0]'"
    command = f"puregrid run {shared} && puregrid report {shared} --format paper --out {appendix}"
    assert command.replace("&&", r"\&\&") in plain
    for title in ("Methods", "Results", "Figures", "Checklist", "Reproduction"):
        assert f"\\section{{{title}}}" in content
    sha256 = hashlib.sha256((appendix / "adversarial/manifest.json").read_bytes()).hexdigest()
    assert f"puregrid judge adversarial --sha256 {sha256}" in plain
    keys = set(re.findall(r"@\w+\{(\w+),", (appendix / "references.bib").read_text()))
    assert {key for found in re.findall(r"\\cite\{([^}]*)\}", content) for key in found.split(",")} <= keys
    for name in re.findall(r"figures/([\w-]+)\.pdf", content):
        assert (appendix / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "Wilson" in content and "cpu" in content and "tablenotes" in content


@pytest.mark.slow
def test_the_command_judges_the_archive_of_the_appendix(appendix: Path, folder: Path) -> None:
    archive = str(appendix / "adversarial")
    done = CliRunner().invoke(app, ["judge", archive, "--json"])
    assert done.exit_code == 0, done.output
    assert {row["verdict"] for row in json.loads(done.stdout)["judged"]} == {"agrees"}
    refused = CliRunner().invoke(app, ["judge", archive, "--sha256", "0" * 64])
    assert refused.exit_code == 2 and "not the one that you gave" in refused.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_the_appendix_compiles(appendix: Path) -> None:
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "appendix.tex"]
    for program in (command, ["bibtex", "appendix"], command, command):
        done = subprocess.run(program, cwd=appendix, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    assert not re.search(r"(Citation|Reference) .* undefined", done.stdout)
    # A path of a temporary folder has few places to break at.
    assert all(float(points) < 20 for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", done.stdout))
    assert (appendix / "appendix.pdf").exists()
