"""The page on providers says of each what the shipped data say."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oneai_middleware.backends.openai.dialects.base import Cause, Dialect
from oneai_middleware.backends.openai.dialects.shipped import SHIPPED
from oneai_middleware.catalog import ProviderPreset, presets
from oneai_middleware.protocol.chat import BOUNDS

PAGE = (Path(__file__).parents[2] / "docs" / "providers.md").read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    """What stands below each heading of the second rank."""
    parts = re.split(r"^## (.*)\n", PAGE, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def code(*values: Any) -> str:
    return ", ".join(f"`{value}`" for value in values)


def fields(table: Any) -> str:
    """Fields of a body, as they stand in one."""
    return code(*(f"{name}: {json.dumps(value)}" for name, value in table.items())) or "nothing"


def rows(preset: ProviderPreset, dialect: Dialect) -> Iterator[tuple[str, str]]:
    yield "base URL", code(preset.base_url)
    yield "key", code(preset.key_variable) if preset.key_variable else "none"
    yield "called otherwise", "; ".join(renamed(dialect))
    yield "changed", "; ".join(changed(dialect))
    yield "dropped", "; ".join(dropped(dialect))
    yield "`temperature` 0", fields(dialect.greedy) if dialect.greedy else ""
    yield "added", fields(dialect.defaults) if dialect.defaults else ""
    if dialect.thinking:
        yield (
            "thinking",
            f"on: {fields(dialect.thinking['on'])}; off: " + fields(dialect.thinking["off"]),
        )
    yield "answers in one piece", "gathered from a stream" if dialect.folds else ""
    yield "reasoning text", f"moved from {code(dialect.reasoning)}" if dialect.reasoning else ""
    for cause in Cause.__args__:
        signs = [sign for sign, meant in dialect.causes.items() if meant == cause]
        yield f"means *{cause}*", code(*signs)


def renamed(dialect: Dialect) -> Iterator[str]:
    if dialect.length:
        (other,) = set(BOUNDS) - {dialect.length}
        yield f"{code(other)} → {code(dialect.length)}"
    for path, other in dialect.rename.items():
        yield f"{code(path)} → {code(other)}"
    for role, other in dialect.roles.items():
        yield f"role {code(role)} → {code(other)}"


def changed(dialect: Dialect) -> Iterator[str]:
    for name, (low, high) in dialect.ranges.items():
        yield f"{code(name)} to {low:g}–{high:g}"
    if dialect.stops:
        yield f"`stop` to a list of {dialect.stops}"


def dropped(dialect: Dialect) -> Iterator[str]:
    yield from map(code, dialect.drop)
    for name, known in dialect.values.items():
        yield f"{code(name)} but for {code(*known)}"
    for name, (least, most) in dialect.sizes.items():
        yield f"{code(name)} but for {least}–{most} characters"
    for pattern, paths in dialect.drop_for.items():
        yield f"of models {code(pattern)}: {code(*paths) or 'nothing'}"


def table(name: str) -> str:
    preset = presets()[name]
    told = [f"| {what} | {how} |" for what, how in rows(preset, SHIPPED[preset.dialect]) if how]
    return "\n".join(["| | |", "|---|---|", *told])


@pytest.mark.parametrize("name", presets())
def test_a_providers_table_is_what_is_shipped(name: str) -> None:
    assert table(name) in sections()[f"`{name}`"]


def test_no_other_provider_is_told_of() -> None:
    assert [title for title in sections() if title.startswith("`")] == [
        f"`{name}`" for name in presets()
    ]


def test_the_table_of_a_dialects_fields_names_them_all() -> None:
    cells = re.findall(r"^\| `(\w+)` \|", sections()["Your own dialect"], re.M)
    assert cells == [field.name for field in dataclasses.fields(Dialect)]


def test_the_causes_are_all_explained() -> None:
    assert re.findall(r"^\| \*(\w+)\* \|", PAGE, re.M) == list(Cause.__args__)
