"""A plain Python function of the host as a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..protocol.chat import ChatRequest, Item
from ..protocol.usage import Usage
from .base import Backend

Answer = str | Usage | Iterable[Item]


class FunctionBackend(Backend):
    """Answers with ``function(request)``.

    The function returns the whole text, or an iterable of pieces of text, chunks
    and a :class:`Usage`. Without a usage the tokens are estimated. It runs in the
    host's own context, and ``request.caller`` says who asks.
    """

    def __init__(self, function: Callable[[ChatRequest], Answer], **options: Any) -> None:
        super().__init__(**options)
        self._function = function

    def stream(self, request: ChatRequest) -> Iterator[Item]:
        """What the function gives, piece by piece."""
        answer = self._function(request)
        return iter((answer,)) if isinstance(answer, str | Usage) else iter(answer)
