"""A provider's reasoning text, in the one field where callers look for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from ....protocol.chat import Chunk, Completion

Answer = TypeVar("Answer", Chunk, Completion)

_OURS = "reasoning_content"


class Reasoning:
    """Moves what one answer says under ``field`` to ``reasoning_content``.

    ``field`` holds a text, or a list of objects with a ``text``. The texts of a list
    may come in pieces or from their beginnings every time: only what is new is moved.
    """

    def __init__(self, field: str) -> None:
        self._field = field
        self._texts: dict[tuple[int, int], _Text] = {}

    def moved(self, answer: Answer) -> Answer:
        """The next piece of the answer, or all of it. ``answer`` is left as it is."""
        if not self._field or not answer.choices:
            return answer
        choices = [self._choice(choice, place) for place, choice in enumerate(answer.choices)]
        return type(answer)(answer, choices=choices)

    def _choice(self, choice: dict[str, Any], place: int) -> dict[str, Any]:
        index = choice.get("index")
        moved = dict(choice)
        for name in ("delta", "message"):
            said = choice.get(name)
            if isinstance(said, dict) and self._field in said:
                moved[name] = self._moved_in(said, index if isinstance(index, int) else place)
        return moved

    def _moved_in(self, said: dict[str, Any], place: int) -> dict[str, Any]:
        told = said[self._field]
        rest = {name: value for name, value in said.items() if name != self._field}
        if isinstance(told, list):
            text = "".join(self._new_texts(told, place))
            silent = [entry for entry in told if not _text(entry)]
            if silent:
                rest[self._field] = silent
        else:
            text = told if isinstance(told, str) else ""
        return {**rest, _OURS: text} if text else rest

    def _new_texts(self, entries: list[Any], place: int) -> Iterator[str]:
        for number, entry in enumerate(entries):
            if text := _text(entry):
                yield self._texts.setdefault((place, number), _Text()).new(text)


class _Text:
    """One text that comes from its beginning every time, or else in pieces.

    The first that does not begin with all there was is a piece, and so are those
    after it.
    """

    def __init__(self) -> None:
        self._told: str | None = ""

    def new(self, text: str) -> str:
        """What of ``text`` has not been told."""
        if self._told is None or not text.startswith(self._told):
            self._told = None
            return text
        known, self._told = len(self._told), text
        return text[known:]


def _text(entry: Any) -> str:
    text = entry.get("text") if isinstance(entry, dict) else None
    return text if isinstance(text, str) else ""
