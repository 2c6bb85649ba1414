"""Write the tables of docs/probe.md again: the checks from the code, what was measured from a store.

``puregrid probe digits-probe --store STORE`` first, then ``python -m scripts.probe_page STORE``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from defense.probe import DEMANDS
from workflows.assets.bundled import find_sweep
from workflows.grid.load import load_sweep
from workflows.results.reader import Results
from workflows.store import Store

__all__ = ["checks", "gradients", "main", "mechanism", "replaced"]

PAGE = Path(__file__).parents[1] / "docs" / "probe.md"
_NUMBERS = {
    "gradient-cosine": "cosine of two draws",
    "eot-draws": "draws for 0.9",
    "contraction": "contraction",
    "noise-to-signal": "fresh noise / perturbation",
    "survival-low": "low",
    "survival-middle": "middle",
    "survival-high": "high",
}


def checks() -> str:
    """Return the table of checks."""
    lines = ["| check | asks | measured | holds | since |", "|:--|:--|:--|:--|:--|"]
    for demand in DEMANDS.values():
        holds = f"{'>=' if demand.at_least else '<='} {demand.threshold:g}"
        lines.append(f"| `{demand.name}` | {demand.asks} | {demand.quantity} | {holds} | {demand.reason} |")
    return "\n".join(lines)


def gradients(rows: pd.DataFrame) -> str:
    """Return the table of gradients beside central differences: error, share that is wrong, cosine."""
    lines = ["| part | gradient mode | meant as | error | wrong | cosine |", "|:--|:--|:--|--:|--:|--:|"]
    for row in rows[rows["kind"] == "gradient"].itertuples():
        meant = "the gradient" if row.verdict == "meant" else "an approximation"
        cosine = "-" if pd.isna(row.cosine) else f"{row.cosine:.2f}"
        lines.append(
            f"| {row.probed} | {row.name} | {meant} | {row.value:.1e} | {100 * row.share:.0f} % | {cosine} |"
        )
    return "\n".join(lines)


def mechanism(rows: pd.DataFrame) -> str:
    """Return the table of the mechanism."""
    lines = [f"| purifier | {' | '.join(_NUMBERS.values())} |", "|:--|" + "--:|" * len(_NUMBERS)]
    for probed, group in rows[rows["kind"] == "mechanism"].groupby("probed", sort=False):
        values = dict(zip(group["name"], group["value"], strict=True))
        cells = (values.get(name) for name in _NUMBERS)
        lines.append(f"| {probed} | {' | '.join('-' if v is None or pd.isna(v) else f'{v:.3g}' for v in cells)} |")
    return "\n".join(lines)


def replaced(page: str, tables: dict[str, str]) -> str:
    """Return a page whose marked tables are these."""
    for name, table in tables.items():
        mark = re.compile(rf"<!-- {name} -->\n.*?<!-- end -->", re.DOTALL)
        page = mark.sub(lambda _, name=name, table=table: f"<!-- {name} -->\n{table}\n<!-- end -->", page)  # type: ignore[misc]
    return page


def _tables(store: str | None) -> Iterator[tuple[str, str]]:
    yield "checks", checks()
    if store is not None:
        sweep = load_sweep(find_sweep("digits-probe"))
        rows = Results(Store(store), sweep).probes()
        yield "gradients", gradients(rows)
        yield "mechanism", mechanism(rows)
        for row in rows[rows["verdict"] == "fail"].itertuples():
            print(f"failed: {row.probed} {row.name}: {row.text}", file=sys.stderr)


def main() -> None:
    """Write the tables; those that were measured where a store is given."""
    PAGE.write_text(replaced(PAGE.read_text(), dict(_tables(sys.argv[1] if len(sys.argv) > 1 else None))))


if __name__ == "__main__":
    main()
