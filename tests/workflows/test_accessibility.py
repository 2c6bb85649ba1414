"""What axe-core says of every kind of page, on a wide and a narrow screen, in light and dark.

The engine is installed by ``npm ci --prefix requirements/axe --ignore-scripts``, at one version with its hash.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import CHROMIUM  # type: ignore[import-not-found]
from helpers_small import SMALL, compute  # type: ignore[import-not-found]
from typer.testing import CliRunner

from scripts.accessibility import AXE, violations
from scripts.chromium import Chromium
from workflows.cli import app
from workflows.grid.load import load_sweep
from workflows.planning.plan import make_plan
from workflows.results.records import record_sweep
from workflows.store import Store

ROOT = Path(__file__).parents[2]

needs_both = pytest.mark.skipif(
    CHROMIUM is None or not AXE.exists(),
    reason="needs chromium on PATH, and `npm ci --prefix requirements/axe --ignore-scripts`",
)


def test_the_engine_is_of_one_version_and_hash_and_no_registry_is_named() -> None:
    folder = ROOT / "requirements" / "axe"
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    text = (folder / "package-lock.json").read_text()
    locked = json.loads(text)["packages"]["node_modules/axe-core"]
    assert wanted == {"axe-core": locked["version"]}
    assert locked["integrity"].startswith("sha512-") and "resolved" not in locked and "://" not in text
    nightly = (ROOT / ".github/workflows/nightly.yml").read_text()
    assert "npm ci --prefix requirements/axe --ignore-scripts" in nightly


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A page of every kind: of two stores whose purifiers differ, so that images changed sides."""
    folder = tmp_path_factory.mktemp("pages")
    for name, text in (("a", SMALL), ("b", SMALL.replace("t_star: 10", "t_star: 300"))):
        (folder / f"{name}.yaml").write_text(text)
        sweep = load_sweep(folder / f"{name}.yaml")
        record_sweep(sweep, make_plan(sweep), Store(str(folder / name)))
        compute(sweep, str(folder / name))
    path, store = str(folder / "a.yaml"), str(folder / "a")
    runs = [f"{folder / name}.yaml@{folder / name}" for name in "ab"]
    for words in (
        ["report", path, "--store", store, "--out", f"{folder}/report/"],
        ["compare", *runs, "--out", f"{folder}/both/"],
        ["leaderboard", *runs, "--out", f"{folder}/board"],
        ["show", path, "--store", store, "--cell", "diffpure pgd-2", "--image", "3", "--html", f"{folder}/show.html"],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    kinds = ("report/index.html", "report/cells", "both/index.html", "both/images", "board/index.html")
    kinds += ("board/claims.html", "board/defences", "show.html")
    found = []
    for kind in kinds:
        place = folder / kind
        found.append(min(place.glob("*.html")) if place.is_dir() else place)
    return found


@pytest.mark.nightly
@needs_both
def test_axe_finds_nothing_on_any_page(pages: list[Path]) -> None:
    found = []
    with Chromium() as browser:
        page = browser.page()
        for path in pages:
            for width, height in ((1440, 900), (390, 844)):
                for dark in (False, True):
                    page.screen(width, height, dark=dark)
                    page.open(path)
                    wide = page.ask("document.documentElement.scrollWidth")
                    if wide > width:
                        found.append(f"{path.parent.name}/{path.name} is {wide} wide on {width}")
                    found += [f"{path.parent.name}/{path.name} {width} {dark}: {rule}" for rule in violations(page)]
    assert not found, "\n".join(found)


@pytest.mark.nightly
@needs_both
def test_it_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text('<p style="color: #bbb; background: #fff">pale</p><img src="data:,">')
    with Chromium() as browser:
        page = browser.page()
        page.screen(390, 844)
        page.open(tmp_path / "bad.html")
        rules = {rule.partition(" ")[0] for rule in violations(page)}
    assert {"color-contrast", "image-alt", "html-has-lang", "document-title"} <= rules
