"""The board of two sweeps: whose numbers stand on it, what an attack hid, and what a browser makes of it."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, browse  # type: ignore[import-not-found]
from helpers_small import ASSETS, compute
from typer.testing import CliRunner, Result

from defense.errors import PuregridError
from workflows.audit import Finding
from workflows.cli import app
from workflows.grid.load import load_sweep
from workflows.leaderboard import site
from workflows.leaderboard.board import Board, board_of
from workflows.leaderboard.claims import Claim, claimed, claims_of, hides, judged_by, shape, trap
from workflows.leaderboard.entries import Line
from workflows.leaderboard.pages.sentences import claims_in_short
from workflows.leaderboard.site import write_site
from workflows.leaderboard.sources import sources_of
from workflows.leaderboard.tables import numbers_table
from workflows.planning.plan import make_plan
from workflows.results.records import record_sweep
from workflows.store import Store

pytestmark = pytest.mark.slow  # the two sweeps of which the board is, once for all tests

HEAD = f"""
datasets: [{{dataset: digits, images: {{first: COUNT}}}}]
classifiers: [digits-cnn]
denoisers: {{digits-ddpm: {{format: diffusers, path: {ASSETS / "digits-ddpm"}, schedule: linear-1000}}}}
chunk: 16
"""
DEFENCE = "{published: score-opt-o, denoiser: digits-ddpm, iterations: 1, draws: 2}"
AUTHORS = "{as-published: score-opt-o, norm: linf, eps: 0.25, steps: 1, step_size: 0.002, eot: 1}"
FIRST = f"""
sweep: first
defences: [none, {DEFENCE}, {{purifier: jpeg, quality: 50}}]
attacks: [none, {{attack: pgd, norm: linf, eps: 0.25, steps: 3}}]
include:
  - {{defences: [{DEFENCE}], attacks: [{AUTHORS}, {{attack: pgd, norm: linf, eps: 0.25, steps: 6, gradient: bpda}}]}}
"""
SECOND = f"""
sweep: second
defences: [{DEFENCE}]
attacks: [none, {{attack: pgd, norm: linf, eps: 0.25, steps: 3}}]
"""


class Made:
    """Two sweeps in two stores, and the site of both."""

    def __init__(self, folder: Path) -> None:
        self.names, self.folder = [], folder
        for name, text, count in (("first", FIRST, 16), ("second", SECOND, 32)):
            path, uri = folder / f"{name}.yaml", str(folder / f"store-{name}")
            path.write_text(HEAD.replace("COUNT", str(count)) + text)
            sweep = load_sweep(path)
            record_sweep(sweep, make_plan(sweep), Store(uri))
            compute(sweep, uri)
            self.names.append(f"{path}@{uri}")
        self.sources = sources_of(self.names, "nowhere", print)
        self.board = board_of(self.sources)
        self.out = folder / "site"
        write_site(self.sources, self.out)

    def line(self, label: str) -> Line:
        return next(line for line in self.board.lines if line.entry.label.startswith(label))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("board"))


def puregrid(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def words(element: Element) -> str:
    return "".join(element.itertext())


def table(page: Path, name: str) -> list[dict[str, str]]:
    """The lines of a table by column, as they are without a script."""
    root = ElementTree.parse(page).getroot()
    grid = next(section for section in root.iter("section") if section.get("id") == name)
    names = [words(cell) for cell in grid.findall(".//thead/tr/th")]
    return [
        dict(zip(names, [words(cell) for cell in row.findall("td")], strict=True))
        for row in grid.findall(".//tbody/tr")
    ]


def test_a_defence_of_two_sweeps_is_one_line_with_the_number_that_the_rule_says(made: Made) -> None:
    line = made.line("score-opt")
    assert len(made.board.lines) == 3 and len(line.entry.places) == 2
    shown = {name: line.number(name) for name in ("clean", "strongest", "published")}
    assert all(shown.values())
    # The second sweep has more images, and its attack does not know the defence.
    assert [n.source.sweep.name for n in shown.values() if n] == ["second", "first", "first"]
    assert [n.images for n in shown.values() if n] == [32, 16, 16]
    rows = made.sources[0].analysis.robustness.set_index("cell")
    own = [row for _, row in rows.iterrows() if row["purifier"] == "score-opt" and row["attack"] != "clean"]
    assert len(own) == 3 and shown["strongest"] is not None
    assert shown["strongest"].value == min(row["avg"] for row in own)
    numbers = table(made.out / "defences" / f"{line.entry.key}.html", "numbers")
    assert [(n["sweep"], n["on the board"]) for n in numbers if n["number"] == "clean"] == [
        *(("first", "no"), ("second", "yes")),
    ]


def test_what_the_authors_attack_hid_is_paired_and_its_trap_is_named(made: Made) -> None:
    line = made.line("score-opt")
    published, other, hidden = line.number("published"), line.number("other"), line.hidden
    assert published is not None and other is not None and hidden is not None
    results = made.sources[0].results
    d = results.correct(published.cell).mean(1) - results.correct(other.cell).mean(1)
    assert hidden.value == pytest.approx(d.mean()) and hidden.images == 16
    assert hidden.value > 0.05 and (hides(line) == "hides") == (hidden.low > 0)
    assert line.entry.setting is not None and trap(line) == " ".join(line.entry.setting.traps)
    row = table(made.out / "claims.html", "traps")[0]
    assert row["hidden"] == f"{100 * hidden.value:+.1f}[{100 * hidden.low:+.1f}, {100 * hidden.high:+.1f}]"
    assert row["what it leaves out"] == trap(line)


def test_a_shortened_attack_of_authors_is_marked_and_what_was_cut_is_said(made: Made) -> None:
    line = made.line("score-opt")
    published = line.number("published")
    assert published is not None
    cut, otherwise = ("eot 1 of 20", "steps 1 of 20"), ("step_size 0.002 for 0.007",)
    assert (published.departure.cut, published.departure.otherwise) == (cut, otherwise)
    for name in ("strongest", "other", "clean"):
        number = line.number(name)
        assert number is not None and not number.departure.cut
    board = {row["defence"].partition(" ")[0]: row for row in table(made.out / "index.html", "board")}
    assert [board[name]["shortened"] for name in ("score-opt", "none")] == ["yes", "-"]
    assert "Shortened: the attack of its authors" in words(ElementTree.parse(made.out / "index.html").getroot())
    assert table(made.out / "claims.html", "traps")[0]["shortened"] == ", ".join(cut)
    said = "Their attack is shortened here: eot 1 of 20, steps 1 of 20. Set otherwise: step_size 0.002 for 0.007."
    claim = next(claim for claim in claims_of(made.board) if line in claim.lines)
    for page in (f"defences/{line.entry.key}.html", f"claims/{claim.key}.html"):
        assert said in words(ElementTree.parse(made.out / page).getroot()), page
    assert "On 1 of these lines their attack is shortened" in (made.out / "claims.html").read_text()
    numbers = table(made.out / "defences" / f"{line.entry.key}.html", "numbers")
    shortened = [row for row in numbers if "shortened: eot 1 of 20, steps 1 of 20" in row["under"]]
    assert {row["number"] for row in shortened} == {"as published"}
    (file,) = (made.out / "data").rglob("leaderboard.json")
    model = next(model for model in json.loads(file.read_text()) if model["puregrid"]["id"] == line.entry.key)
    own = model["puregrid"]["numbers"]
    assert (own["published"]["shortened"], own["published"]["set_otherwise"]) == (list(cut), list(otherwise))
    assert own["strongest"]["shortened"] == []


def test_claims_are_compared_on_the_same_data_at_the_same_budget_alone(made: Made) -> None:
    line = made.line("score-opt")
    claims = claims_of(made.board)
    assert {claim.value.defence for claim in claims} == {"score-opt O"} and all(claim.lines for claim in claims)
    # Of other data: the authors' attack stands for the claim, but here an error is on it.
    assert {shape(claim, line) for claim in claims} == {"not compared"} and "published" in line.errors()
    strongest = line.number("strongest")
    assert strongest is not None

    def of(accuracy: float, **column: Any) -> Claim:
        value = claims[0].value
        column = {"eps": 0.25, **column}
        value = replace(value, accuracy=accuracy, dataset="digits", column=value.column.model_copy(update=column))
        return replace(claims[0], value=value)

    low, high = 100 * strongest.low, 100 * strongest.high
    assert shape(of(low + 9.9), line) == "survives" and shape(of(high + 10.1), line) == "falls"
    assert shape(of((low + high) / 2 + 10), line) == "open"
    assert judged_by(of(low), line) == "the claim" and shape(of(low, eps=0.2), line) == "not compared"
    # One that compares stands on the line, before surer ones that do not.
    compared = replace(of(50), value=replace(of(50).value, certainty="second-hand"))
    assert claimed(line, [*claims, compared]) is compared

    # A claim that stands on two lines is one claim, compared twice.
    twice = replace(compared, lines=(line, replace(line)))
    said = [text for text in claims_in_short(made.board, [twice]) if "survive in shape" in text]
    assert len(said) == 1 and said[0].startswith("Of 2 comparisons with 1 claim, ")
    (said,) = [text for text in claims_in_short(made.board, [compared]) if "survive in shape" in text]
    assert said.startswith("Of 1 claim that can be compared here, ") and "comparisons" not in said


def test_an_error_strikes_the_line_and_one_on_the_authors_attack_its_own_number(made: Made, tmp_path: Path) -> None:
    sources = sources_of(made.names[:1], "nowhere", print)
    line = next(line for line in board_of(sources).lines if line.entry.label.startswith("score-opt"))

    def site(name: str) -> Board:
        number = line.number(name)
        assert number is not None
        finding = Finding("planted", "error", (number.cell.id,), "It cannot be.", {}, "Look.")
        sources[0].analysis.__dict__["findings"] = [finding]
        write_site(sources, tmp_path / name)
        return board_of(sources)

    claim = claims_of(board_of(sources))[0]
    board = site("strongest")
    assert shape(claim, board.lines[-1]) == "not compared"
    assert board.lines[-1].struck == "planted: It cannot be." and "score-opt" in board.lines[-1].entry.label
    page = ElementTree.parse(tmp_path / "strongest" / "index.html").getroot()
    row = [row for row in page.iter("tr") if "It cannot be." in words(row)]
    assert len(row) == 1 and len(list(row[0].iter("s"))) >= 8
    sources[0].analysis.__dict__["findings"] = []
    clear = next(line for line in board_of(sources).lines if line.entry.label.startswith("score-opt"))
    hidden = clear.hidden
    assert hidden is not None and judged_by(claim, clear) == "the authors' attack"
    assert shape(claim, clear) == ("falls" if hidden.low > 0.1 else "open" if hidden.high > 0.1 else "survives")
    board = site("published")
    assert not any(line.struck for line in board.lines)
    page = ElementTree.parse(tmp_path / "published" / "index.html").getroot()
    assert (
        next(words(s) for s in page.iter("s"))
        == table(tmp_path / "published" / "index.html", "board")[
            [line.entry.label.startswith("score-opt") for line in board.lines].index(True)
        ]["as published"].partition("[")[0]
    )


def test_the_board_is_complete_without_a_script_and_every_link_leads_somewhere(made: Made) -> None:
    lines = table(made.out / "index.html", "board")
    for shown, line in zip(lines, made.board.lines, strict=True):
        strongest = line.number("strongest")
        assert strongest is not None and shown["defence"].startswith(line.entry.label)
        value, low, high = (100 * part for part in (strongest.value, strongest.low, strongest.high))
        assert shown["strongest"] == f"{value:.1f}[{low:.1f}, {high:.1f}]"
    first = next(p for p in ElementTree.parse(made.out / "index.html").getroot().iter("main"))
    assert words(first[0]).startswith("A board of few images: 16 to 32 images of digits.")
    pages = sorted(made.out.rglob("*.html"))
    assert len(pages) == 2 + 3 + len(claims_of(made.board))
    for page in pages:
        root = ElementTree.parse(page).getroot()
        ids = {element.get("id") for element in root.iter()} - {None}
        for link in root.iter("a"):
            target, _, anchor = link.get("href", "").partition("#")
            if not target.startswith(("data:", "http")):
                there = page if not target else (page.parent / target).resolve()
                assert there.is_file(), (page, target)
                assert not anchor or there != page or anchor in ids, (page, anchor)
        assert not re.search(r'(?:src|href)="https?:[^"]*\.(?:css|js|woff2?)"', page.read_text())


def test_rows_and_json_are_those_of_the_store(made: Made) -> None:
    line = made.line("score-opt")
    names = sorted(path.name for path in (made.out / "rows").glob(f"{line.entry.key}*"))
    assert names == [f"{line.entry.key}.csv", f"{line.entry.key}.parquet"]
    rows = pd.read_parquet(made.out / "rows" / names[1])
    strongest = line.number("strongest")
    assert strongest is not None and len(rows) == 4 * 16 + 2 * 32
    own = rows[(rows["cell"] == strongest.cell.id) & (rows["sweep"] == "first")]
    assert own["right"].mean() == pytest.approx(strongest.value)
    np.testing.assert_allclose(pd.read_csv(made.out / "rows" / names[0])["right"], rows["right"])
    (file,) = (made.out / "data").rglob("leaderboard.json")
    assert file.relative_to(made.out / "data").as_posix() == "digits/Linf-0.25/leaderboard.json"
    model = next(model for model in json.loads(file.read_text()) if model["puregrid"]["id"] == line.entry.key)
    clean = line.number("clean")
    assert clean is not None
    fields = ("eps", "dataset", "clean_acc", "external", "reported", "autoattack_acc", "unreliable")
    assert [model[name] for name in fields] == [
        *("0.25", "digits", f"{100 * clean.value:.2f}", f"{100 * strongest.value:.2f}", None, None),
        hides(line) == "hides",
    ]
    assert model["authors"] and model["link"].startswith("https://")
    assert model["puregrid"]["specs"]["classifier"]["sha256"] == line.entry.cell.classifier.sha256
    assert model["puregrid"]["numbers"]["clean"]["sweep"] == "second"


def test_a_defence_under_two_norms_has_a_page(made: Made) -> None:
    line = made.line("jpeg")
    entry = replace(line.entry, lines=[], candidates=line.entry.candidates)
    entry.lines = [replace(line, entry=entry, norm=norm) for norm in ("linf", "l2")]
    entry.lines[1].candidates = {name: [replace(n) for n in own] for name, own in line.candidates.items()}
    shown = numbers_table(entry)
    place = [column.name for column in shown.visible].index("norm")
    assert [values[place] for values in shown.lines()][:2] == ["-", "linf"]
    assert {values[place] for values in shown.lines()} == {"-", "linf", "l2"}


def test_sweeps_of_one_name_are_told_apart(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.folder / "store-second", copy)
    sources = sources_of([made.names[1], f"{made.folder}/second.yaml@{copy}"], "nowhere", print)
    write_site(sources, tmp_path / "site")
    (file,) = (tmp_path / "site" / "rows").glob("*.parquet")
    assert pd.read_parquet(file)["sweep"].value_counts().to_dict() == {"second (no. 1)": 64, "second (no. 2)": 64}
    (page,) = (tmp_path / "site" / "defences").iterdir()
    assert {row["sweep"] for row in table(page, "numbers")} == {"second (no. 1)", "second (no. 2)"}


def test_what_ends_it_leaves_the_board_that_is_there(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}

    write_site(made.sources[:1], tmp_path)
    before = held()
    with monkeypatch.context() as patch:
        patch.setattr(site, "claims_page", lambda *_: (_ for _ in ()).throw(PuregridError("damaged")))
        with pytest.raises(PuregridError, match="damaged"):
            write_site(made.sources, tmp_path)
    assert held() == before and len(before) > 8
    write_site(made.sources, tmp_path)
    assert held() != before and not list(tmp_path.glob(".new-*"))


def test_what_lacks_its_specs_is_left_out_and_said(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = made.line("jpeg").entry.cell
    real = Store.spec
    cells = [cell for cell in made.sources[0].sweep.cells if cell.defence == jpeg.defence]
    gone = {cells[0].evaluate.id}  # of one of two: the defence is left out whole
    monkeypatch.setattr(Store, "spec", lambda store, spec_id: None if spec_id in gone else real(store, spec_id))
    board = board_of(made.sources)
    assert not any(line.entry.label.startswith("jpeg") for line in board.lines)
    assert (
        len(cells) == 2
        and len(board.left_out) == 1
        and all("is not on record" in reason for reason in board.left_out)
    )


def test_the_command_takes_sweeps_and_stores_and_leaves_folders_alone(made: Made, tmp_path: Path) -> None:
    store = made.names[1].partition("@")[2]
    found = puregrid("leaderboard", made.names[0], store, "--out", tmp_path / "site")
    assert found.exit_code == 0 and found.stdout.strip() == str(tmp_path / "site" / "index.html")
    for page in ("index.html", "claims.html"):
        assert table(tmp_path / "site" / page, "board" if page == "index.html" else "traps") == table(
            made.out / page, "board" if page == "index.html" else "traps"
        )
    again = puregrid("leaderboard", made.names[1], "--out", tmp_path / "site")
    assert again.exit_code == 0 and len(list((tmp_path / "site" / "defences").iterdir())) == 1
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes" / "sweeps" / "0").mkdir(parents=True)
    (tmp_path / "bytes" / "sweeps" / "0" / "sweep.yaml").write_bytes(bytes(range(256)))
    unrun = f"{made.folder / 'first.yaml'}@{tmp_path / 'empty'}"
    for arguments, said in (
        ((made.names[0], "--out", tmp_path / "mine"), "that no leaderboard has made"),
        ((tmp_path / "empty", "--out", tmp_path / "b"), "no sweep on record"),
        ((tmp_path / "bytes", "--out", tmp_path / "b"), "sweep 0 of"),
        ((unrun, "--out", tmp_path / "b"), "nothing of it is committed"),
        (("no-such-sweep", "--out", tmp_path / "b"), "no bundled sweep of this name"),
        ((made.names[0], "--out", "s3://bucket/b"), "is an address"),
        ((made.names[0], "--out", f"file://{tmp_path}/b"), "is an address"),
    ):
        refused = puregrid("leaderboard", *arguments)
        assert refused.exit_code in (1, 2) and said in refused.stderr, refused.stderr
    assert not (tmp_path / "b").exists()


_ACT = """<script>
const rows = () => [...document.querySelectorAll("#board tbody tr")].filter(row => !row.hidden);
const heads = [...document.querySelectorAll("#board th")];
const place = title => heads.findIndex(th => th.textContent === title);
const shown = title => rows().map(row => row.cells[place(title)].firstChild.textContent);
const said = {first: shown("strongest"), names: shown("defence")};
heads[place("strongest")].querySelector("button").click(); said.falling = shown("strongest");
heads[place("strongest")].querySelector("button").click(); said.rising = shown("strongest");
const threat = document.querySelector("#board .controls select[aria-label^='threat']");
said.threats = [...threat.options].map(option => option.value);
threat.value = "static only"; threat.dispatchEvent(new Event("change"));
said.static = shown("defence"); said.hash = location.hash;
const head = document.querySelectorAll("th:not([scope])").length;
said.unscoped = head; said.wide = document.documentElement.scrollWidth - window.innerWidth;
document.body.innerHTML = `<pre>${JSON.stringify(said)}</pre>`;
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")
def test_a_browser_sorts_and_filters_it_and_has_no_complaint(made: Made, tmp_path: Path) -> None:
    for page in (made.out / "index.html", made.out / "claims.html", next((made.out / "defences").iterdir())):
        _, complaints = browse(page, tmp_path)
        assert not complaints, page
    path = tmp_path / "act.html"
    path.write_text((made.out / "index.html").read_text().replace("</body>", _ACT))

    def act(hash_: str = "") -> dict[str, Any]:
        document, complaints = browse(path, tmp_path, "--window-size=500,900", hash_=hash_)
        found = re.search(r"<pre>(.*)</pre>", document, re.DOTALL)
        assert found is not None and not complaints
        content: dict[str, Any] = json.loads(html.unescape(found[1]))
        return content

    told = act()
    values = [f"{100 * n.value:.1f}" for line in made.board.lines if (n := line.number("strongest"))]
    assert told["first"] == values and told["falling"] == sorted(values, key=float, reverse=True)
    assert told["rising"] == sorted(values, key=float)
    assert told["threats"] == ["", "adaptive", "static only"]
    assert told["static"] == [line.entry.label for line in made.board.lines if not line.adaptive] == ["jpeg q=50"]
    assert told["unscoped"] == 0 and told["wide"] <= 0
    assert act(told["hash"])["first"] == [values[-1]]  # the address alone shows the same to somebody else


def test_a_board_without_a_line_is_refused_with_what_was_left_out(tmp_path: Path) -> None:
    """Units that were computed without a driver have no sweep on record, so no defence enters."""
    (tmp_path / "alone.yaml").write_text(HEAD.replace("COUNT", "2") + "sweep: alone\ndefences: [none]\n")
    compute(load_sweep(tmp_path / "alone.yaml"), str(tmp_path / "store"))
    found = puregrid("leaderboard", f"{tmp_path}/alone.yaml@{tmp_path}/store", "--out", tmp_path / "site")
    assert found.exit_code == 2 and "no defence of these sweeps enters the board: none, digits-cnn" in found.stderr
    assert not (tmp_path / "site").exists()
