"""Draw ``docs/figures/evaluation.svg``, the picture at the top of the README: from an image to a verdict.

python -m scripts.diagram
"""

from __future__ import annotations

from html import escape
from itertools import pairwise
from pathlib import Path

__all__ = ["FIGURE", "diagram"]

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "evaluation.svg"

_WIDTH, _HEIGHT, _TOP, _BOX = 960, 250, 78, 78
_STEPS = (
    ("image", ("clean, or", "corrupted"), 100),
    ("attack", ("static, adaptive,", "black box, ladder"), 150),
    ("purifier", ("noise to t*, reverse:", "M fresh draws"), 160),
    ("classifier", ("one answer", "a draw"), 110),
    ("interval", ("Avg, Wor-M, vote;", "Wilson, 95 %"), 145),
    ("verdict", ("auditor's findings,", "certificate, baseline"), 165),
)
_GAP = 22


def diagram() -> str:
    """Return the picture as SVG, on a card of its own, so that it is readable on dark pages too."""
    total = sum(width for *_, width in _STEPS) + _GAP * (len(_STEPS) - 1)
    x = (_WIDTH - total) / 2
    parts, centres, edges = [], {}, {}
    for name, lines, width in _STEPS:
        parts.append(f'<rect x="{x:.0f}" y="{_TOP}" width="{width}" height="{_BOX}" rx="8" class="box {name}"/>')
        parts.append(f'<text x="{x + width / 2:.0f}" y="{_TOP + 25}" class="name">{name}</text>')
        for place, line in enumerate(lines):
            y = _TOP + 46 + 17 * place
            parts.append(f'<text x="{x + width / 2:.0f}" y="{y}">{escape(line)}</text>')
        centres[name], edges[name] = x + width / 2, (x, x + width)
        x += width + _GAP
    names = [name for name, *_ in _STEPS]
    for left, right in pairwise(names):
        begin, end = edges[left][1] + 3, edges[right][0] - 4
        y = _TOP + _BOX / 2
        parts.append(f'<path d="M{begin:.0f} {y:.0f} H{end:.0f}" class="arrow"/>')
    # What an adaptive attacker has: gradients back through the purifier, on draws of his own.
    back, below = centres["attack"], _TOP + _BOX
    path = f"M{centres['classifier']:.0f} {below + 3} V{below + 40} H{back:.0f} V{below + 6}"
    parts.append(f'<path d="{path}" class="arrow back"/>')
    middle = (centres["classifier"] + back) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{below + 60}" class="back">an adaptive attacker follows the gradient through the '
        "purifier, on draws of its own</text>"
    )
    parts.append(
        f'<text x="{_WIDTH / 2}" y="40" class="title">Every row: image, draws, answers, sha256 of the weights, '
        "and what the attack did not know</text>"
    )
    style = (
        "text { font: 13px Helvetica, Arial, sans-serif; fill: #45505f; text-anchor: middle; } "
        ".name { font-size: 16px; font-weight: 700; fill: #1c2430; } .title { font-size: 15px; fill: #1c2430; } "
        ".box { fill: #f3f6fa; stroke: #9fb0c3; } .attack { fill: #fbeee6; stroke: #c2571a; } "
        ".purifier { fill: #e8f1fa; stroke: #2f6fb0; } .verdict { fill: #e9f5ee; stroke: #2e8b57; } "
        ".arrow { fill: none; stroke: #566070; stroke-width: 1.6; marker-end: url(#head); } "
        ".back { stroke: #c2571a; stroke-dasharray: 5 4; } text.back { stroke: none; fill: #a3470f; }"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'aria-label="An image is attacked, purified in several draws and classified; the answers become an interval '
        'and a verdict.">\n'
        f"<style>{style}</style>\n"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 Z" fill="#566070"/></marker></defs>\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="12" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    FIGURE.write_text(diagram(), encoding="utf-8")
