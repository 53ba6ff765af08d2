"""One chat request and what answers it: records shared by the whole house.

A :class:`Completion` and a :class:`Chunk` are dicts, exactly as they travel, with
accessors for the few places everybody needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..accounts import Caller
from .cancellation import Cancellation, Flag
from .usage import Usage


class Timeouts(NamedTuple):
    """Seconds a provider may take: to connect, to the first token, between two
    signs of life, and in all."""

    connect: float = 5.0
    first_token: float = 120.0
    idle: float = 60.0
    total: float = 590.0


Adjustment = Literal["changed", "dropped"]
"""What became of a parameter that a provider does not take as the caller gave it."""

OUTPUT = ("content", "reasoning_content", "reasoning", "reasoning_details", "refusal",
          "tool_calls", "function_call", "audio")  # fmt: skip
"""The fields of a message or a delta in which a model says something."""

BOUNDS = ("max_completion_tokens", "max_tokens")
"""The fields that bound the output of one answer; the first is the newer name."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a caller asks, checked; what a backend is given.

    ``body`` is the JSON object to send on: the fields we know are checked, nulls
    and routing fields are gone, unknown fields are as the caller wrote them. A
    backend finds the *upstream* model id in it. ``caller`` says on whose behalf,
    for a host's own functions; it is never sent upstream. A backend notes in
    ``adjusted`` which of the caller's parameters it could not send as they are:
    the caller is told in a response header. It sets ``connecting`` while the provider
    does not have the request yet: who leaves meanwhile has cost nothing.
    """

    body: Mapping[str, Any] = field(repr=False)  # nobody's prompt goes into a log
    caller: Caller | None = None
    request_id: str = ""
    timeouts: Timeouts = Timeouts()
    cancellation: Cancellation = field(default_factory=Cancellation)
    adjusted: dict[str, Adjustment] = field(default_factory=dict)
    connecting: Flag = field(default_factory=Flag, repr=False)

    @property
    def model(self) -> str:
        """The model id: public before routing, the provider's own after."""
        return str(self.body["model"])

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation, as the caller sent it."""
        return list(self.body["messages"])

    @property
    def stream(self) -> bool:
        """Whether the caller wants server-sent events."""
        return bool(self.body.get("stream", False))

    @property
    def include_usage(self) -> bool:
        """Whether the caller wants a closing chunk with the usage."""
        options = self.body.get("stream_options")
        return bool(options and options.get("include_usage"))

    @property
    def n(self) -> int:
        """How many answers are asked for."""
        return int(self.body.get("n", 1))

    @property
    def max_tokens(self) -> int | None:
        """The caller's bound on the output of one answer, in tokens."""
        value = self.body.get("max_completion_tokens", self.body.get("max_tokens"))
        return None if value is None else int(value)

    def text_of_last_user(self) -> str:
        """The text of the last user message: what a simple bot answers to."""
        for message in reversed(self.messages):
            if message.get("role") == "user":
                return text_of(message.get("content"))
        return ""

    def with_defaults(self, defaults: Mapping[str, Any]) -> ChatRequest:
        """The same request with ``defaults`` for fields that the caller did not give.

        The two names of the bound on the output are one field.
        """
        if not defaults:
            return self
        bounded = self.max_tokens is not None
        given = {n: v for n, v in defaults.items() if not (bounded and n in BOUNDS)}
        return dataclasses.replace(self, body={**given, **self.body})


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(
        part["text"]
        for part in content
        if isinstance(part, Mapping) and isinstance(part.get("text"), str)
    )


class Completion(dict[str, Any]):
    """A ``chat.completion`` object."""

    @property
    def usage(self) -> Usage | None:
        """The tokens it says it took."""
        return Usage.read(self.get("usage"))

    @property
    def choices(self) -> list[dict[str, Any]]:
        """Its answers; empty when the field is missing or no list of objects."""
        return _objects(self.get("choices"))


class Chunk(dict[str, Any]):
    """A ``chat.completion.chunk`` object."""

    @property
    def choices(self) -> list[dict[str, Any]]:
        """Its parts, one an answer; empty when there are none."""
        return _objects(self.get("choices"))

    @property
    def usage(self) -> Usage | None:
        """The tokens it reports, in any of the places providers use."""
        usage = Usage.read(self.get("usage"))
        for choice in self.choices:
            usage = usage or Usage.read(choice.get("usage"))
        groq = self.get("x_groq")
        return usage or (Usage.read(groq.get("usage")) if isinstance(groq, dict) else None)

    @property
    def has_output(self) -> bool:
        """Whether the model says anything in it; a mere role is nothing."""
        for choice in self.choices:
            said = choice.get("delta") or choice.get("message")
            if isinstance(said, Mapping) and any(said.get(name) for name in OUTPUT):
                return True
        return False

    @classmethod
    def text(cls, text: str, *, index: int = 0) -> Chunk:
        """A chunk that adds ``text`` to answer ``index``."""
        return cls(choices=[{"index": index, "delta": {"content": text}, "finish_reason": None}])

    @classmethod
    def finish(cls, reason: str = "stop", *, index: int = 0) -> Chunk:
        """A chunk that ends answer ``index``."""
        return cls(choices=[{"index": index, "delta": {}, "finish_reason": reason}])


Item = Chunk | str | Usage | None
"""What a backend's stream is made of: a chunk as it travels, a piece of text, the
usage, or ``None``: alive, but nothing to say."""


def _objects(value: Any) -> list[dict[str, Any]]:
    if type(value) is list and len(value) == 1 and type(value[0]) is dict:
        return value  # as it is in almost every chunk
    if not isinstance(value, list):
        return []
    return [item for item in value if isinstance(item, dict)]
