"""A stream of items, folded into the one completion it amounts to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .chat import Chunk, Completion, Item
from .normalise import StreamNormaliser
from .usage import Usage


def gather(items: Iterable[Item]) -> Completion:
    """The completion that ``items`` amount to, its ``usage`` only if they tell it.

    ``items`` is closed in any case, if it can be. An empty stream is an answer
    with no text.

    :raises APIError: whatever reading ``items`` raises.
    """
    fold = _Fold()
    try:
        for item in items:
            fold.add(item)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
    return fold.completion()


class _Fold:
    """What has come in. The normaliser sees to it that it is well formed."""

    def __init__(self) -> None:
        self._normaliser = StreamNormaliser(model="", id="", created=0, include_usage=False)
        self._extras: dict[str, Any] = {}
        self._answers: dict[int, _Answer] = {}
        self._usage: Usage | None = None

    def add(self, item: Item) -> None:
        if isinstance(item, Usage):
            self._usage = item
        elif isinstance(item, Chunk):
            self._usage = item.usage or self._usage
            self._extras.update((name, v) for name, v in item.items() if v is not None)
        self._fold(self._normaliser.chunk(item))

    def completion(self) -> Completion:
        self._fold(self._normaliser.finish(Usage(0, 0)))
        completion = Completion(self._extras)
        completion["object"] = "chat.completion"
        completion["choices"] = [self._answers[i].choice(i) for i in sorted(self._answers)]
        completion.pop("usage", None)
        if self._usage is not None:
            completion["usage"] = self._usage.as_dict()
        return completion

    def _fold(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            for choice in chunk.choices:
                self._answers.setdefault(choice["index"], _Answer()).add(choice)


class _Answer:
    """One answer, in pieces."""

    def __init__(self) -> None:
        self._choice: dict[str, Any] = {}
        self._message = _Pieces()
        self._logprobs = _Pieces()
        self._calls: dict[int, tuple[_Pieces, _Pieces]] = {}

    def add(self, choice: dict[str, Any]) -> None:
        rest = dict(choice)
        delta = dict(rest.pop("delta"))
        for call in delta.pop("tool_calls", ()):
            self._add_call(dict(call))
        self._message.add(delta)
        logprobs = rest.pop("logprobs", None)
        if isinstance(logprobs, dict):
            self._logprobs.add(logprobs)
        self._choice.update((name, value) for name, value in rest.items() if value is not None)

    def choice(self, index: int) -> dict[str, Any]:
        """The finished choice."""
        message = {"content": None if self._calls else "", **self._message.joined()}
        if self._calls:
            message["tool_calls"] = [
                call.joined() | ({"function": joined} if (joined := function.joined()) else {})
                for _, (call, function) in sorted(self._calls.items(), key=lambda kv: kv[0])
            ]
        logprobs = self._logprobs.joined() or None
        return {**self._choice, "index": index, "message": message, "logprobs": logprobs}

    def _add_call(self, call: dict[str, Any]) -> None:
        whole, function = self._calls.setdefault(call.pop("index"), (_Pieces(), _Pieces()))
        function.add(call.pop("function", {}))
        whole.add(call)


class _Pieces:
    """An object whose strings and lists arrive bit by bit; of anything else the
    last one counts. Joined once at the end: adding string to string would be
    quadratic."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Any]] = {}

    def add(self, delta: dict[str, Any]) -> None:
        for name, value in delta.items():
            if value is not None:
                self._pieces.setdefault(name, []).append(value)

    def joined(self) -> dict[str, Any]:
        return {name: _join(values) for name, values in self._pieces.items()}


def _join(values: list[Any]) -> Any:
    if all(isinstance(value, str) for value in values):
        return "".join(values)
    if all(isinstance(value, list) for value in values):
        return [item for value in values for item in value]
    return values[-1]
