"""What a call may cost, in calls of functions: the same on every machine, however busy.

How long they take is measured in benchmarks/. Whoever raises a budget here has measured
there that it is worth it.
"""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from oneai_middleware import Gateway
from oneai_middleware.backends.base import Backend
from oneai_middleware.backends.openai import OpenAIBackend
from oneai_middleware.protocol.chat import ChatRequest, Chunk, Completion, Item
from oneai_middleware.secret import new_secret

REQUEST = 570
"""Calls of a request and its answer in one piece, from the environ to the last byte."""
CHUNK = 57
"""Calls of a further chunk of a stream, from the backend's hands to the server's."""
EVENT = 40
"""Calls of a further event from a provider, from its bytes to the backend's hands."""

USAGE = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
WORD = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
END = {"index": 0, "delta": {}, "finish_reason": "stop"}
MESSAGE = {"role": "assistant", "content": "word " * 200}
ANSWER = {"id": "x", "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]}


class NullBackend(Backend):
    """Has all its answers ready; one of as many words as the last message says."""

    def stream(self, request: ChatRequest) -> Iterator[Item]:
        yield from [Chunk(id="x", choices=[WORD]) for _ in range(int(request.text_of_last_user()))]
        yield Chunk(id="x", choices=[END], usage=USAGE)

    def complete(self, request: ChatRequest) -> Completion:
        return Completion(ANSWER, usage=USAGE)


@pytest.fixture
def ask() -> Callable[..., int]:
    """Ask the gateway on memory, under limits of all kinds; how many events come."""
    key = new_secret()
    gateway = Gateway(
        providers={"null": {"backend": NullBackend}},
        models={"bot": {"routes": ["null/bot"], "input": "1", "output": "2"}},
        tiers={"free": {"rpm": 10**6, "tpm": 10**9, "concurrent": 100}},
        accounts={"alice": {"balance": "1000", "keys": [key]}},
    )

    def ask(words: int = 0, *, stream: bool = False) -> int:
        said = [{"role": "user", "content": str(words)}]
        body = json.dumps({"model": "bot", "messages": said, "stream": stream}).encode()
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/v1/chat/completions",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_AUTHORIZATION": f"Bearer {key}",
            "wsgi.input": io.BytesIO(body),
        }
        answer: Any = gateway(environ, lambda status, headers: None)
        events = b"".join(answer).count(b"data: ")
        if stream:
            answer.close()
        return events

    for _ in range(20):  # whatever is found out once has been
        ask()
        ask(3, stream=True)
    return ask


def calls(act: Callable[[], object]) -> int:
    """How many functions are called, in all threads that begin meanwhile."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return count


def test_a_request_is_answered_within_its_budget_of_calls(ask: Callable[..., int]) -> None:
    assert min(calls(ask) for _ in range(3)) <= REQUEST


def test_a_chunk_is_relayed_within_its_budget_of_calls(ask: Callable[..., int]) -> None:
    assert ask(1_000, stream=True) > 1_000
    few, many = (
        min(calls(lambda words=words: ask(words, stream=True)) for _ in range(3))  # type: ignore[misc]
        for words in (200, 1_200)
    )
    assert (many - few) / 1_000 <= CHUNK


def test_an_event_is_read_within_its_budget_of_calls() -> None:
    def read(events: int) -> int:
        backend = OpenAIBackend(base_url="http://x.example/v1", transport=Scripted(events))
        body = {"model": "m", "stream": True, "messages": []}
        return sum(1 for _ in backend.stream(ChatRequest(body)))

    assert read(1_200) > 1_200
    few, many = (calls(lambda events=events: read(events)) for events in (200, 1_200))  # type: ignore[misc]
    assert (many - few) / 1_000 <= EVENT


class Scripted:
    """A transport whose only reply holds so many events, sixteen kilobytes at a time."""

    status = 200
    headers = {"content-type": "text/event-stream"}

    def __init__(self, events: int) -> None:
        chunks = [{"choices": [WORD], "usage": None}] * events + [{"choices": [END]}]
        whole = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)
        self._rest = io.BytesIO(whole + b"data: [DONE]\n\n")

    def open(self, *args: Any) -> Scripted:
        return self

    def begin(self, sent: Callable[[], object] = bool) -> None:
        sent()

    def read1(self) -> bytes:
        return self._rest.read(16 * 1024)

    def hurry(self) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...

    def cancel(self) -> None: ...
