"""What a call has taken so far: text as it is handed over, usage as it is told."""

from __future__ import annotations

from typing import Any

from ..protocol.chat import Chunk, Completion, text_of
from ..protocol.usage import Usage
from ..tokens import TextCounter


class Meter:
    """Counts one call. ``prompt_tokens`` is the estimate it was admitted with.

    The provider's own figures win when the call is complete. Of a call that ends
    early only what was handed to the server counts.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._handed = TextCounter()
        self._told: Usage | None = None

    @property
    def handed_any(self) -> bool:
        """Whether any output went out."""
        return self._handed.tokens > 0

    def told(self, usage: Usage | None) -> None:
        """The provider reports ``usage``; cumulative reports replace each other."""
        if usage is not None:
            self._told = usage

    def hand(self, chunk: Chunk) -> None:
        """``chunk`` has been handed to the server."""
        for choice in chunk.choices:
            _count(self._handed, choice.get("delta"))

    def total(self) -> Usage:
        """Usage of the complete call: as told, or estimated. A told 0 is a 0."""
        return self._told or self._estimate()

    def of(self, completion: Completion) -> Usage:
        """Usage of an answer in one piece: as it tells, or estimated."""
        told = completion.usage
        if told is not None:
            return told
        counter = TextCounter()
        for choice in completion.choices:
            _count(counter, choice.get("message"))
        return Usage(self._prompt_tokens, counter.tokens, estimated=True)

    def delivered(self) -> Usage:
        """Usage of a call that ended early: the prompt and what was handed over."""
        estimate = self._estimate()
        if self._told is None:
            return estimate
        # Figures that come before the end may be placeholders.
        told = self._told.completion_tokens or estimate.completion_tokens
        return Usage(
            self._told.prompt_tokens or estimate.prompt_tokens,
            min(estimate.completion_tokens, told),
            cached_tokens=self._told.cached_tokens,
            estimated=True,
        )

    def _estimate(self) -> Usage:
        return Usage(self._prompt_tokens, self._handed.tokens, estimated=True)


_TEXTS = frozenset({"content", "reasoning_content", "reasoning", "refusal"})

NOTHING = Usage(0, 0)
"""What a call costs that failed before any output, or through our own fault."""


def _count(counter: TextCounter, message: Any) -> None:
    """Add the text of a message or a delta, whatever kind of text it is."""
    if not isinstance(message, dict):
        return
    for name, value in message.items():
        if name in _TEXTS:
            counter.add(value if isinstance(value, str) else text_of(value))
        elif name == "tool_calls":
            _count_calls(counter, value)


def _count_calls(counter: TextCounter, calls: Any) -> None:
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            for part in (function.get("name"), function.get("arguments")):
                counter.add(text_of(part))
