"""Horizontal bars as SVG, for light pages and dark ones."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import NamedTuple

WIDTH, LABELS, NUMBERS = 760, 250, 80
BAR, STEP, TITLE, GAP = 18, 26, 30, 18

STYLE = """\
text { font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 13px; }
text { fill: #1f2328; }
.title { font-weight: 600; }
.bar { fill: #8c959f; }
.ours { fill: #0969da; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .bar { fill: #6e7681; }
  .ours { fill: #4493f8; }
}"""


class Bar(NamedTuple):
    """What it stands for, how long it is, and whether it is the one to look at."""

    label: str
    value: float
    is_ours: bool = False


class Panel(NamedTuple):
    """Bars that can be compared."""

    title: str
    bars: Sequence[Bar]


def chart(panels: Sequence[Panel]) -> str:
    """One under the other."""
    lines: list[str] = []
    top = 0
    for panel in panels:
        lines += _panel(panel, top)
        top += TITLE + STEP * len(panel.bars) + GAP
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([head, f"<style>\n{STYLE}\n</style>", *lines, "</svg>", ""])


def _panel(panel: Panel, top: int) -> Iterator[str]:
    yield _text(0, top + 20, panel.title, 'class="title"')
    most = max((bar.value for bar in panel.bars), default=1.0) or 1.0
    for number, bar in enumerate(panel.bars):
        at = top + TITLE + number * STEP
        width = max(1.0, bar.value / most * (WIDTH - LABELS - NUMBERS))
        kind = "bar ours" if bar.is_ours else "bar"
        yield _text(LABELS - 10, at + 14, bar.label, 'text-anchor="end"')
        place = f'x="{LABELS}" y="{at}" width="{width:.1f}" height="{BAR}" rx="2"'
        yield f'<rect class="{kind}" {place}/>'
        yield _text(LABELS + width + 8, at + 14, f"{bar.value:,.0f}")


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y}" {more}>{html.escape(text)}</text>'
