"""The record of what one kind of provider does otherwise. It is data; what reads it is
in the modules beside this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Cause = Literal[
    "invalid", "context", "content", "misconfigured", "overloaded", "timeout", "unavailable"
]
"""Why a provider refused: the caller's request, its length or its content is at fault; our
account there is; the provider is busy, slow or broken."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of provider differs. Without a field it does as OpenAI's protocol says.

    A path leads to a field: ``"seed"``, ``"messages[].name"``.
    """

    name: str = "generic"

    # --- the request

    drop: tuple[str, ...] = ()
    """Paths of what is never sent."""

    drop_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The same for some models: patterns of their ids, as in a shell, to paths. The
    first pattern that fits counts."""

    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields of which only some values are sent."""

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """The lowest and the highest number a field may have; others become the nearest."""

    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """The least and the most characters of a text; others are not sent."""

    stops: int = 0
    """How many stop strings are sent, in a list; 0: as the caller gives them."""

    greedy: Mapping[str, Any] = field(default_factory=dict)
    """The fields that say what a temperature of 0 says, sent in its place."""

    rename: Mapping[str, str] = field(default_factory=dict)
    """Paths, and the name that what they lead to has there."""

    length: str = ""
    """The one name of the bound on the output; empty: as the caller names it."""

    roles: Mapping[str, str] = field(default_factory=dict)
    """Roles of messages, and what they are called there."""

    thinking: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The fields that switch thinking ``on`` and ``off``; empty: as the caller says it."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are sent unless the caller gives them."""

    stream_usage: bool = True
    """Whether a stream may be asked for its usage."""

    obfuscation: bool = False
    """Whether a stream may be asked for padding against eavesdroppers, or for none."""

    # --- the answer

    folds: bool = False
    """Whether an answer in one piece is asked for as a stream and gathered."""

    reasoning: str = ""
    """The field of a message that holds what callers know as ``reasoning_content``."""

    causes: Mapping[str, Cause] = field(default_factory=dict)
    """What is meant by the codes, types, numbers and statuses of its errors."""
