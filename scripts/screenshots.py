"""Write ``docs/screenshots.md``: reports on three screens in light and dark, looked at by a browser and by a script.

    npm ci --prefix requirements/axe --ignore-scripts
    python -m scripts.screenshots --sources FOLDER     # keeps the stores; what is there is not computed again

Reports of the quickstart, of a paper's smoke test and of a made-up sweep of a thousand cells are opened in headless
Chromium at 1440, 768 and 390 pixels, light and dark. Of each the page has a picture, what axe-core says, and how soon
something is painted. A script then sorts the leaderboard, searches it, opens the address that this made anew, and
follows a finding's mark. It fails if a number is not where it has to be, or if anything is wider than the screen.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from PIL import Image

from scripts.accessibility import opened, violations
from scripts.chromium import Chromium, Page

__all__ = ["PAGE", "REPORTS", "SCREENS", "Look", "look", "page", "use"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "screenshots.md"
PICTURES = ROOT / "docs" / "images" / "screens"

SCREENS = ((1440, 900), (768, 1024), (390, 844))
SCHEMES = ("light", "dark")
REPORTS = {
    "quickstart": "the quickstart",
    "smoke": "a paper's smoke test",
    "thousand": "a made-up sweep of a thousand cells",
}
_SMOKE = "papers/smoke/distribution-transfer-table1-digits"
_LOADS = 3
"""Loads of a page; the time of its first paint is their median."""


@dataclass
class Look:
    """What was seen of a report on one screen.

    Arguments:
        width: Width of the screen.
        scheme: ``light`` or ``dark``.
        paints: Milliseconds until something was painted, of each load.
        broken: The rules of axe-core that it breaks.
        picture: The screen as WebP.
    """

    width: int
    scheme: str
    paints: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    picture: bytes = b""


def reports(sources: Path) -> dict[str, Path]:
    """Return the three reports, made in a folder; stores that are there are used again."""
    made = {}
    for name, sweep in (("quickstart", "quickstart"), ("smoke", _SMOKE)):
        store = ["--store", str(sources / name)]
        _puregrid("run", sweep, *store, "--mlflow", "off")
        made[name] = sources / f"{name}.html"
        _puregrid("report", sweep, *store, "--out", str(made[name]))
    command = [sys.executable, "report_scale.py", "--keep", str((sources / "thousand").resolve())]
    subprocess.run(command, cwd=ROOT / "benchmarks", check=True)  # noqa: S603 - a benchmark of this repository
    return {**made, "thousand": sources / "thousand" / "report.html"}


def _puregrid(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "workflows.cli", *words], check=True, cwd=ROOT)  # noqa: S603 - see above


def look(page: Page, path: Path, screen: tuple[int, int], scheme: str) -> Look:
    """Return what is seen of a file on a screen.

    Raises:
        AssertionError: It is wider than the screen, or the console complains.
    """
    width, height = screen
    page.screen(width, height, dark=scheme == "dark")
    seen = Look(width, scheme)
    for _ in range(_LOADS):
        page.open(path)
        seen.paints.append(page.first_paint())
    assert not page.complaints(), (path.name, screen, page.complaints())
    seen.picture = small(page.picture())
    opened(page)
    wide = page.ask("document.documentElement.scrollWidth")
    assert wide <= width, f"{path.name} is {wide} pixels wide on a screen of {width}"
    seen.broken = violations(page)
    return seen


_USE = """(() => {
  const section = document.querySelector("#leaderboard");
  const heads = [...section.querySelectorAll("th")];
  const place = heads.findIndex(head => head.textContent === "clean");
  const shown = () => [...section.querySelectorAll("tbody tr")].filter(row => !row.hidden);
  const names = () => shown().map(row => row.textContent.trim());
  const numbers = () => shown().map(row => parseFloat(row.cells[place].firstChild.textContent));
  const state = {before: numbers(), rows: names()};
  heads[place].querySelector("button").click(); state.falling = numbers();
  heads[place].querySelector("button").click(); state.rising = numbers();
  const words = [...section.querySelectorAll("tbody tr")].at(-1).cells[1].textContent;
  const search = section.querySelector("input[type=search]");
  search.value = words; search.dispatchEvent(new Event("input"));
  state.words = words; state.matches = names(); state.hash = location.hash;
  const mark = document.querySelector("a.mark");
  if (mark) { mark.click(); state.mark = mark.getAttribute("href").slice(1); }
  if (mark) { state.focus = document.activeElement.id; state.height = innerHeight; }
  if (mark) { state.top = document.activeElement.getBoundingClientRect().top; }
  return state;
})()"""

_SHOWN = """[...document.querySelectorAll("#leaderboard tbody tr")].filter(row => !row.hidden)
  .map(row => row.textContent.trim())"""


def use(page: Page, path: Path) -> str:
    """Sort, search, follow a mark and open the address elsewhere; return a sentence about it.

    Raises:
        AssertionError: Something is not where it has to be.
    """
    page.open(path)
    state = page.ask(_USE)
    assert state["falling"] == sorted(state["before"], reverse=True), state
    assert state["rising"] == sorted(state["before"]), state
    wanted = [row for row in state["rows"] if all(word in row.lower() for word in state["words"].lower().split())]
    assert sorted(state["matches"]) == sorted(wanted) != [], state
    if state.get("mark"):
        assert state["focus"] == state["mark"] and 0 <= state["top"] <= state["height"], state
    page.open(path, state["hash"])
    assert page.ask(_SHOWN) == state["matches"], state["hash"]
    lines = "line" if len(wanted) == 1 else "lines"
    return (
        f"{len(state['rows'])} lines sorted both ways, {len(wanted)} {lines} found and found again by its address"
        + (f", mark followed to `#{state['mark']}`" if state.get("mark") else "")
    )


def small(png: bytes, colours: int = 48) -> bytes:
    """Return a picture as WebP, without loss but for its colours, of which it keeps those that are far apart."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image = image.quantize(colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).convert("RGB")
    out = io.BytesIO()
    image.save(out, "webp", lossless=True, quality=100, method=6)
    return out.getvalue()


def page(seen: dict[str, list[Look]], sizes: dict[str, int], used: dict[str, str], engine: str) -> str:
    """Return the page of the documentation.

    Arguments:
        seen: What was seen of each report.
        sizes: Bytes of each report.
        used: What the script did with each.
        engine: The version of axe-core.
    """
    parts = [
        "# What reports look like\n",
        "Made by `python -m scripts.screenshots`: reports in headless Chromium on screens of "
        f"{', '.join(str(width) for width, _ in SCREENS[:-1])} and {SCREENS[-1][0]} pixels, in light and dark. "
        "Pictures show the first screen, and open in full size. [The report](report.md) says what is on it.\n",
    ]
    for name, what in REPORTS.items():
        parts.append(f"## {what[0].upper()}{what[1:]}\n")
        parts.append(f"| {' | '.join(f'{w} pixels' for w, _ in SCREENS)} |\n|{':--|' * len(SCREENS)}")
        for scheme in SCHEMES:
            cells = []
            for width, _ in SCREENS:
                file, alt = picture(name, width, scheme), f"the report of {what}, {width} pixels wide, {scheme}"
                cells.append(f"[![{alt}]({file})]({file})")
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    parts.append("## Measured\n")
    parts.append(
        f"axe-core {engine} judges each page with everything opened that is folded, of long tables and lists the "
        f"first 40 lines. First paint is the median of {_LOADS} loads, in milliseconds, on two busy cores.\n"
    )
    shown = " | ".join(f"{width} {scheme}" for width, _ in SCREENS for scheme in SCHEMES)
    parts.append(f"| report | bytes | violations | first paint: {shown} |\n|:--|--:|--:|{'--:|' * 6}")
    for name, what in REPORTS.items():
        paints = " | ".join(f"{median(view.paints):.0f}" for view in seen[name])
        broken = sum(len(view.broken) for view in seen[name])
        parts.append(f"| {what} | {sizes[name]:,} | {broken} | {paints} |")
    parts.append(
        "\nA script sorts the leaderboard, searches it and opens the address that this made in a new page:\n"
    )
    parts += [f"* {what}: {used[name]}" for name, what in REPORTS.items()]
    return "\n".join(parts) + "\n"


def picture(name: str, width: int, scheme: str) -> str:
    """Return the path of a picture below docs/."""
    return f"images/screens/{name}-{width}-{scheme}.webp"


def _version(browser_page: Page) -> str:
    return str(browser_page.ask("axe.version"))


def shoot(made: dict[str, Path]) -> tuple[str, list[str]]:
    """Take all pictures, and return the page and what axe-core complains of."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    seen: dict[str, list[Look]] = {}
    used, complaints, engine = {}, [], ""
    with Chromium() as browser:
        tab = browser.page()
        for name, path in made.items():
            seen[name] = []
            for screen in SCREENS:
                for scheme in SCHEMES:
                    view = look(tab, path, screen, scheme)
                    engine = _version(tab)
                    seen[name].append(view)
                    (ROOT / "docs" / picture(name, view.width, scheme)).write_bytes(view.picture)
                    complaints += [f"{name} {view.width} {scheme}: {rule}" for rule in view.broken]
                    print(
                        f"{name} {view.width} {scheme}: first paint {median(view.paints):.0f} ms, "
                        f"{len(view.broken)} violations, {len(view.picture):,} bytes",
                        flush=True,
                    )
            tab.screen(*SCREENS[0])
            used[name] = use(tab, path)
        _heads(tab, made)
    sizes = {name: path.stat().st_size for name, path in made.items()}
    return page(seen, sizes, used, engine), complaints


def _heads(tab: Page, made: dict[str, Path]) -> None:
    """The pictures of other pages of the documentation: the head of a report, and its figures."""
    images = ROOT / "docs" / "images"
    for name, report, height, of in (
        ("report", "quickstart", 1000, ""),
        ("report-figures", "smoke", 1100, "#figures"),
    ):
        tab.screen(1280, height)
        tab.open(made[report])
        (images / f"{name}.webp").write_bytes(small(tab.picture(of), 200))


def main(words: Sequence[str] | None = None) -> None:
    """Write the page and its pictures; status 1 where axe-core finds something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, metavar="FOLDER", help="Where the stores and reports are kept.")
    given = parser.parse_args(words).sources
    with tempfile.TemporaryDirectory() as folder:
        sources = given or Path(folder)
        sources.mkdir(parents=True, exist_ok=True)
        text, complaints = shoot(reports(sources))
    PAGE.write_text(text, encoding="utf-8")
    if complaints:
        print(json.dumps(complaints, indent=1))
        raise SystemExit(1)


if __name__ == "__main__":
    main()
