"""A backend that needs no provider: it says what it was told, the same every time.

For demonstrations and for tests, also those of the applications that mount the
gateway: delays, failures and usage are scripted by options.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import (
    BackendError,
    BackendMisconfigured,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
)
from ..protocol.chat import ChatRequest, Chunk, Item
from ..protocol.usage import Usage
from ..tokens import estimate_prompt
from .base import Backend

FAILURES: Mapping[str, type[BackendError]] = {
    "overloaded": BackendOverloaded,
    "misconfigured": BackendMisconfigured,
    "unavailable": BackendUnavailable,
    "timeout": BackendTimeout,
}

_WORDS = re.compile(r"\S+\s*|\s+")


class EchoBackend(Backend):
    """Echoes the last user message, a word a chunk.

    A word is a token: ``max_tokens`` cuts the answer off after so many, with
    ``finish_reason`` ``length``.

    :param text: what to say instead of the last user message.
    :param first_delay: seconds before the first word.
    :param delay: seconds before each further word.
    :param fail: ``"overloaded"``, ``"misconfigured"``, ``"unavailable"`` or
        ``"timeout"``: how the call fails.
    :param fail_after: how many words are given first.
    :param usage: false to report none; a table with ``prompt_tokens`` and
        ``completion_tokens`` to report those.
    :raises ConfigurationError: an option is unknown or malformed.
    """

    def __init__(
        self,
        *,
        text: str | None = None,
        first_delay: float = 0.0,
        delay: float = 0.0,
        fail: str | None = None,
        fail_after: int = 0,
        usage: bool | Mapping[str, int] = True,
        **unknown: Any,
    ) -> None:
        super().__init__(**unknown)
        if fail is not None and fail not in FAILURES:
            raise ConfigurationError(f"fail: one of {', '.join(FAILURES)}; not {fail!r}")
        self._text = text
        self._first_delay = first_delay
        self._delay = delay
        self._fail = FAILURES[fail] if fail else None
        self._fail_after = fail_after
        self._usage = usage

    def stream(self, request: ChatRequest) -> Iterator[Item]:
        """The words, a finish reason, and the usage unless it was switched off."""
        text = request.text_of_last_user() if self._text is None else self._text
        words = _WORDS.findall(text)
        said = words[: request.max_tokens]
        for index in range(request.n):
            for count, word in enumerate(said):
                self._pause(request, count)
                yield Chunk.text(word, index=index)
            self._pause(request, len(said))
            yield Chunk.finish("stop" if len(said) == len(words) else "length", index=index)
        if self._usage is not False:
            yield self._usage_of(request, len(said) * request.n)

    def _pause(self, request: ChatRequest, count: int) -> None:
        """Wait before word ``count``, or fail instead of giving it."""
        if self._fail is not None and count >= self._fail_after:
            raise self._fail("scripted")
        seconds = self._delay if count else self._first_delay
        if seconds and request.cancellation.wait(seconds):
            raise BackendUnavailable("cancelled")

    def _usage_of(self, request: ChatRequest, words: int) -> Usage:
        told = Usage.read(self._usage)
        if told is not None:
            return told
        return Usage(estimate_prompt(request.body), words)
