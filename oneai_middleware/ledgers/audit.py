"""Whether the books add up: what accounts and keys say, and what their rows come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .base import Balance
from .books import Books, Spending, Sum


def faults(books: Books) -> Iterator[str]:
    """Sentences about sums that differ from what the rows of accounts and keys say."""
    said, added = _tables(books.account_sums())
    for account in sorted({account for account, _ in (*said, *added)}):
        row = {name: said.get((account, name), 0) for name in Balance._fields}
        if row["available"] + row["held"] + row["spent"] != row["topped_up"]:
            yield f"{account}: available, held and spent are not what was topped up: {row}"
        yield from _differences(account, set(Balance._fields) - {"available"}, said, added)
    said, added = _tables(books.key_sums())
    for key in sorted({key for key, _ in (*said, *added)}):
        yield from _differences(key, set(Spending._fields), said, added)


_Figures = dict[tuple[str, str], int]


def _tables(sums: Iterable[Sum]) -> tuple[_Figures, _Figures]:
    said: _Figures = {}
    added: _Figures = {}
    for whose, name, is_said, total in sums:
        (said if is_said else added)[whose, name] = total
    return said, added


def _differences(whose: str, names: set[str], said: _Figures, added: _Figures) -> Iterator[str]:
    for name in sorted(names):
        figure, total = said.get((whose, name), 0), added.get((whose, name), 0)
        if figure != total:
            yield f"{whose}: {name} is {figure}, its rows add up to {total}"
