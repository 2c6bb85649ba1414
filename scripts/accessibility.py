"""What axe-core says of a page: the accessibility engine, from npm at the version and hash of ``requirements/axe``.

    npm ci --prefix requirements/axe --ignore-scripts

It is not a part of the repository, since it is large and has a licence of its own.
"""

from __future__ import annotations

from pathlib import Path

from scripts.chromium import Page

__all__ = ["AXE", "opened", "violations"]

AXE = Path(__file__).parents[1] / "requirements" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
"""The engine, where it is installed."""

_OPEN = """
document.querySelectorAll("details").forEach(details => { details.open = true; });
document.head.append(Object.assign(document.createElement("style"), {
  textContent: "section.late { content-visibility: visible !important; }",
}));
0"""

_SHORTENED = """
for (const list of document.querySelectorAll("tbody, ul"))
  [...list.children].slice(LINES).forEach(line => line.remove());
0"""

_RUN = """axe.run(document, {resultTypes: ["violations"], selectors: false}).then(found =>
  found.violations.map(rule => `${rule.id} (${rule.impact}), ${rule.nodes.length} times: ${rule.help}; ` +
    `first ${rule.nodes[0].html.slice(0, 200)}`))"""


def opened(page: Page) -> None:
    """Open everything that is folded, and have what is below the screen laid out: what is hidden is not judged."""
    page.ask(_OPEN)


def violations(page: Page, lines: int = 40) -> list[str]:
    """Return the rules that a page breaks, with what it breaks them with first.

    Arguments:
        page: The page. Everything in it is opened.
        lines: How many lines of each table and list are judged, the first: a thousand that are made alike would take
            minutes.

    Raises:
        FileNotFoundError: The engine is not installed.
    """
    opened(page)
    page.ask(_SHORTENED.replace("LINES", str(lines)))
    page.ask(AXE.read_text(encoding="utf-8") + ";0")
    found: list[str] = page.ask(_RUN)
    return found
