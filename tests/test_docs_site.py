"""The site of the documentation: its menu has every page, and its hook knows which links leave docs/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import puregrid
from scripts.docs_site import REFERENCE, exported, outside

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages(entries: list[Any]) -> Iterator[str]:
    """The pages of a menu."""
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from pages(value) if isinstance(value, list) else [value]


def test_the_menu_has_every_page_once_and_none_that_is_not_there() -> None:
    named = list(pages(SETTINGS["nav"]))
    there = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted([*there, REFERENCE])
    assert named[0] == "README.md" and SETTINGS["strict"] is True
    # With --quiet MkDocs counts no warnings, so that nothing would fail.
    assert "mkdocs build --strict\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_nothing_is_fetched_by_who_reads_it() -> None:
    assert SETTINGS["theme"]["font"] is False and "repo_url" not in SETTINGS
    # `offline` takes a script from a CDN; others are not in the lock.
    assert {next(iter(p)) if isinstance(p, dict) else p for p in SETTINGS["plugins"]} == {"search", "mkdocstrings"}


def test_links_that_leave_docs_lead_to_the_repository_and_are_there() -> None:
    said = outside("[a](../README.md#x) [b](store.md#y) [c](https://x.org/d) [d](#e)", "report.md")
    repository = "https://github.com/puregrid/puregrid/blob/main"
    assert said == f"[a]({repository}/README.md#x) [b](store.md#y) [c](https://x.org/d) [d](#e)"
    assert outside("[a](../gradients.md)", "how-to/purifier.md") == "[a](../gradients.md)"
    for link in ("../nothing.md", "../../elsewhere"):
        with pytest.raises(ValueError, match=r"docs/report\.md links to"):
            outside(f"[a]({link})", "report.md")


def test_the_page_of_docstrings_has_every_name_of_the_front_door() -> None:
    names = [name for _, own in exported() for name in own]
    assert sorted(names) == sorted(set(puregrid.__all__) - {"__version__"})
