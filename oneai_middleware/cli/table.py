"""Rows in columns, for people."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` under ``heading``, each column as wide as its widest cell."""
    lines = [[_safe(cell) for cell in row] for row in (heading, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for row in lines:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _safe(cell: str) -> str:
    # A terminal would obey what somebody else has written into a name.
    return cell if cell.isprintable() else ascii(cell)[1:-1]
