"""What `make docs` adds to MkDocs: links to files outside of docs/, a page of the docstrings, the leaderboard.

* A link that leaves ``docs/`` leads to the file in the repository; it is an error if there is none, as of one inside.
* ``reference.md`` is made of the names of the package ``puregrid``, whose docstrings are read without importing it.
* ``site/leaderboard``, where ``make leaderboard`` has written it, becomes a part of the site, to which the first page
  leads.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/puregrid/puregrid/blob/main"
LEADERBOARD = ROOT / "site" / "leaderboard"
REFERENCE = "reference.md"


def on_files(files: Any, config: Any) -> Any:
    """Add the page of the docstrings, and the leaderboard where there is one."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, REFERENCE, content=reference()))
    for path in sorted(LEADERBOARD.rglob("*")) if (LEADERBOARD / "index.html").is_file() else ():
        if path.is_file() and not path.name.startswith("."):
            name = f"board/{path.relative_to(LEADERBOARD).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links that leave docs/ at the repository; the first page also to the leaderboard."""
    markdown = outside(markdown, page.file.src_uri)
    if page.file.src_uri == "README.md":
        page.meta["hide"] = ["navigation", "toc"]
    if page.file.src_uri == "README.md" and files.get_file_from_path("board/index.html"):
        first, rest = markdown.split("\n", 1)
        markdown = (
            f"{first}\n\n[**The leaderboard**](board/index.html): every defence that was measured here.\n{rest}"
        )
    return markdown


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Let the keyboard scroll blocks of code, and write the roles of docstrings as code."""
    html = re.sub(r"(<pre[^>]*>(?:<span></span>)?<code)>", r'\1 tabindex="0">', html)
    if page.file.src_uri != REFERENCE:
        return html
    html = re.sub(r":(?:class|func|meth|mod|data|attr|exc):<code>~?([^<]+)</code>", r"<code>\1</code>", html)
    return html.replace("::</p>", ":</p>")


def outside(markdown: str, page: str) -> str:
    """Return a page whose links to files of the repository outside of docs/ lead there.

    Arguments:
        markdown: The page.
        page: Its path below docs/.

    Raises:
        ValueError: There is no such file.
    """

    def link(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        path = Path(os.path.normpath((DOCS / page).parent / target))
        if path.is_relative_to(DOCS):
            return found[0]
        if not path.exists() or not path.is_relative_to(ROOT):
            raise ValueError(f"docs/{page} links to {target}, which is not there")
        return f"]({REPOSITORY}/{path.relative_to(ROOT).as_posix()}{anchor})"

    return re.sub(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)", link, markdown)


def reference() -> str:
    """Return the page of the docstrings: a section a module of the front door, a heading a name."""
    parts = [
        "# Every name\n",
        "The docstrings of the names that `import puregrid` has; [Python](api.md) says how they go together.\n",
    ]
    for package, names in exported():
        parts.append(f"## From {package}\n")
        parts += [f"::: {package}.{name}\n" for name in names]
    return "\n".join(parts)


def exported() -> Iterator[tuple[str, list[str]]]:
    """Yield the packages from which ``puregrid`` exports, with the names from each; nothing is imported."""
    tree = ast.parse((ROOT / "puregrid" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.If):
            for imported in node.body:
                if isinstance(imported, ast.ImportFrom) and imported.module:
                    yield imported.module, sorted(alias.name for alias in imported.names)
