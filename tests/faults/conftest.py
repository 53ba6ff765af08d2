"""A stage: a gateway between a caller and providers that play, down to the byte, whatever
a test says; and what must hold of every call, however it ends."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from oneai_middleware.tokens import TextCounter, estimate_prompt

KEY = "sk-upstream-secret"
INPUT, OUTPUT = 1_000, 2_000
"""Prices in nano-dollars per token."""
ANSWER, HALF = "hello there, all is well", "half an "
TOLD = (7, 3)
"""The tokens that a provider tells of an answer."""
PATIENCE = 10.0
"""Seconds that a provider waits for what must happen."""
ROUND = 100.0
"""Seconds that the clock jumps at a time while a provider stalls."""

ERRORS = {
    "context_length_exceeded": (400, "invalid_request_error"),
    "content_filter": (400, "invalid_request_error"),
    "invalid_value": (400, "invalid_request_error"),
    "model_overloaded": (503, "service_unavailable_error"),
    "provider_unavailable": (503, "service_unavailable_error"),
    "upstream_error": (502, "api_error"),
    "upstream_timeout": (504, "timeout_error"),
}
"""Status and type of every code by which a call may fail here."""

OURS = re.compile(
    r"content-type|content-length|cache-control|x-accel-buffering|retry-after|x-should-retry"
    r"|x-request-id|x-ratelimit-(limit|remaining|reset)-(requests|tokens)"
)
"""The headers that a caller may see."""

THEIRS = (
    "Server: inside/1.0",
    "Set-Cookie: who=alice; Path=/",
    f"x-request-id: {KEY}",
    "x-ratelimit-limit-requests: -7",
    "x-ratelimit-remaining-tokens: -7",
    "openai-organization: our-account",
    "Keep-Alive: timeout=5",
    "Via: 1.1 inside",
    "X-Accel-Buffering: yes",
)
"""Headers that every provider sends and no caller may see."""


def tokens_of(*texts: str) -> int:
    counter = TextCounter()
    for text in texts:
        counter.add(text)
    return counter.tokens


# --- what a provider does -----------------------------------------------------------


class Line:
    """One request that reached a provider, and its ways to answer, down to the byte.

    Unless it sends a whole reply, it closes the connection after all it has sent.
    """

    def __init__(self, turn: Any, clock: Any, heard: threading.Event) -> None:
        self.turn = turn
        self.raw: Callable[[bytes], None] = turn.raw
        self.streams: bool = turn.json["stream"]
        headers = dict(turn.headers)
        self.private = f"{headers['Authorization']} of http://{headers['Host']}/v1"
        """What nobody may see: our key there, and its address."""
        self._clock = clock
        self._heard = heard
        self._handler = turn._handler
        self._handler.close_connection = True
        self._framing = "close"

    # Whole replies.

    def whole(self, value: Any, *headers: str, status: str = "200 OK") -> None:
        """A reply of known length; ``value`` is sent as JSON unless it is bytes."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.head(f"Content-Length: {len(data)}", *headers, status=status)
        self.raw(data)
        self._handler.close_connection = False

    def well(self, text: str = ANSWER) -> None:
        """A good answer, in the form it was asked in."""
        if self.streams:
            self.stream()
            self.send(self.events(text))
        else:
            self.whole(self.completion(text))

    def events(self, text: str = ANSWER) -> bytes:
        """The events of a good answer."""
        middle = len(text) // 2
        values = [
            {"choices": [{"index": 0, "delta": {"content": text[:middle]}}]},
            {"choices": [{"index": 0, "delta": {"content": text[middle:]}}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": self.usage()},
        ]
        said = [json.dumps(value).encode() for value in values]
        return b"".join(b"data: %b\n\n" % each for each in [*said, b"[DONE]"])

    def completion(self, text: str = ANSWER, **fields: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "up", "choices": [choice], "usage": self.usage(), **fields}

    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": TOLD[0], "completion_tokens": TOLD[1], "total_tokens": sum(TOLD)}

    # Replies bit by bit.

    def head(self, *headers: str, status: str = "200 OK") -> None:
        """Status and headers."""
        kinds = [each for each in headers if each.lower().startswith("content-type")]
        kind = kinds or ["Content-Type: application/json"]
        rest = [each for each in headers if each not in kinds]
        lines = [f"HTTP/1.1 {status}", *THEIRS, *kind, *rest, "", ""]
        self.raw("\r\n".join(lines).encode("latin-1"))

    def stream(self, *headers: str, framing: str = "close") -> None:
        """The head of a body that ends with the connection, has a length announced that
        it never reaches, or comes in pieces."""
        frame = {"close": "", "length": "Content-Length: 99999", "chunked": _CHUNKED}[framing]
        kind = "text/event-stream" if self.streams else "application/json"
        self.head(f"Content-Type: {kind}", *filter(None, [frame]), *headers)
        self._framing = framing

    def send(self, data: bytes) -> None:
        """A part of the body."""
        self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self._framing == "chunked" else data)

    def event(self, value: Any) -> None:
        """One event; ``value`` is sent as JSON unless it is a string."""
        text = value if isinstance(value, str) else json.dumps(value)
        self.send(f"data: {text}\n\n".encode("utf-8", "surrogatepass"))

    def say(self, text: str | None = None, finish: str | None = None, **fields: Any) -> None:
        """A chunk with a piece of text, or without."""
        delta = {} if text is None else {"content": text}
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self.event({"id": "up", "choices": [choice], **fields})

    def begin(self, framing: str = "close") -> None:
        """The first half of an answer, in the form it was asked in; if the caller is to
        hear of it at once, they have."""
        self.stream(framing=framing)
        if self.streams:
            self.say(HALF)
            self._heard.wait(PATIENCE)
        else:
            self.send(json.dumps(self.completion(HALF)).encode()[:-20])

    # Ends.

    def reset(self) -> None:
        """Break the connection off, so that the other side gets an error."""
        linger = struct.pack("ii", 1, 0)
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._handler.connection.close()

    def stall(self, seconds: float = ROUND) -> None:
        """Say nothing, while the time flies, until the gateway has lost its patience."""
        self.repeat(b"", seconds)

    def repeat(self, data: bytes, seconds: float = ROUND) -> None:
        """Send ``data`` every so many seconds until the gateway has lost its patience."""
        for _ in range(1000):
            self.raw(data)
            self._clock.advance(seconds)
            if self.turn.hold(patience=0.01):
                return


_CHUNKED = "Transfer-Encoding: chunked"
Play = Callable[[Line], None]


# --- what a caller gets ---------------------------------------------------------------


class Seen:
    """What a caller got of one answer: as much of it as was read, and well formed."""

    def __init__(self, body: dict[str, Any], reply: Any, data: bytes) -> None:
        self.asked = body
        self.status: int = reply.status
        self.headers: dict[str, str] = reply.headers
        self.data = data
        self.id = self.headers["x-request-id"]
        self.chunks: list[dict[str, Any]] = []
        self.error: dict[str, Any] | None = None
        self.is_done = False
        self._assert_headers_are_ours(reply.header_list)
        if self.headers["content-type"] == "application/json":
            self._read_object()
        else:
            self._read_events()
        self.assert_tells_nothing(KEY)

    @property
    def texts(self) -> list[str]:
        """Every piece of text, of whatever kind."""
        return [
            text
            for chunk in self.chunks
            for choice in chunk["choices"]
            for text in _texts(choice.get("delta") or choice.get("message") or {})
        ]

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def code(self) -> str | None:
        return self.error["code"] if self.error else None

    @property
    def is_over(self) -> bool:
        """Whether the answer came to an end, good or bad."""
        return self.is_done or self.error is not None

    def assert_tells_nothing(self, secret: str) -> None:
        assert secret.encode() not in self.data
        assert not [value for value in self.headers.values() if secret in value]

    def _assert_headers_are_ours(self, headers: list[tuple[str, str]]) -> None:
        names = [name.lower() for name, _ in headers]
        assert [name for name in names if not OURS.fullmatch(name)] == []
        assert len(names) == len(set(names))
        assert re.fullmatch("req_[0-9a-f]{32}", self.id)

    def _read_object(self) -> None:
        assert int(self.headers["content-length"]) == len(self.data)
        value = json.loads(self.data)
        if self.status != 200:
            assert set(value) == {"error"}
            self._read_error(value["error"], self.status)
            return
        assert (value["object"], value["model"]) == ("chat.completion", self.asked["model"])
        assert isinstance(value["created"], int)
        for choice in value["choices"]:
            assert choice["message"]["role"] == "assistant"
            assert isinstance(choice["finish_reason"], str)
        self.chunks, self.is_done = [value], True

    def _read_events(self) -> None:
        assert self.status == 200
        assert self.headers["content-type"].startswith("text/event-stream")
        *events, rest = self.data.split(b"\n\n")
        assert rest == b""
        events = [event for event in events if event != b": keep-alive"]
        assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
        said = [event.removeprefix(b"data: ") for event in events]
        if said and said[-1] == b"[DONE]":
            said.pop()
            self.is_done = True
        values = [json.loads(each) for each in said]
        if values and "error" in values[-1]:
            assert not self.is_done
            self._read_error(values.pop()["error"], None)
        self.chunks = values
        self._assert_chunks_are_one_answer()

    def _read_error(self, error: dict[str, Any], status: int | None) -> None:
        """An error in our own words, of a status or of an event."""
        self.error = error
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert isinstance(error["param"], str | None)
        known = ERRORS[error["code"]]
        assert (status or known[0], error["type"]) == known
        retry_after = self.headers.get("retry-after")
        assert (retry_after is not None) == (status is not None and self.code == "model_overloaded")
        assert retry_after is None or 1 <= int(retry_after) <= 60
        is_hopeless = status is not None and self.code == "provider_unavailable"
        assert self.headers.get("x-should-retry") == ("false" if is_hopeless else None)

    def _assert_chunks_are_one_answer(self) -> None:
        shared = {
            tuple(chunk[n] for n in ("id", "object", "created", "model")) for chunk in self.chunks
        }
        assert len(shared) <= 1
        assert {each[1] for each in shared} <= {"chat.completion.chunk"}
        wants_usage = bool((self.asked.get("stream_options") or {}).get("include_usage"))
        assert all(("usage" in chunk) == wants_usage for chunk in self.chunks)
        assert wants_usage or all(chunk["choices"] for chunk in self.chunks)
        told = [chunk for chunk in self.chunks if chunk.get("usage")]
        assert told in ([], self.chunks[-1:])  # one who leaves may have had it just before
        assert told or not (wants_usage and self.is_done)
        assert not (told and self.error)
        assert all(chunk["choices"] == [] for chunk in told)
        choices = [choice for chunk in self.chunks for choice in chunk["choices"]]
        for index in {choice["index"] for choice in choices}:
            mine = [choice for choice in choices if choice["index"] == index]
            assert ["role" in choice["delta"] for choice in mine] == [True] + [False] * (
                len(mine) - 1
            )
            reasons = [choice["finish_reason"] for choice in mine if choice["finish_reason"]]
            assert len(reasons) == 1 if self.is_done else len(reasons) <= 1


def _texts(said: dict[str, Any]) -> Iterator[str]:
    calls = [call.get("function") or {} for call in said.get("tool_calls") or ()]
    for holder in (said, *calls):
        for name in ("content", "reasoning_content", "refusal", "name", "arguments"):
            if isinstance(holder.get(name), str) and holder[name]:
                yield holder[name]


# --- the stage ------------------------------------------------------------------------


class Stage:
    """A gateway whose model ``bot`` has one route for every play, in their order.

    The providers are called ``p0``, ``p1``, …; ``lines`` are the requests that reached
    them, by name. ``plays`` may be changed between calls.
    """

    def __init__(self, gateway: Any, url: str, plays: Any, ask: Any, log: Any) -> None:
        self.gateway = gateway
        self.plays = {f"p{number}": play for number, play in enumerate(plays)}
        self.lines: dict[str, list[Line]] = {name: [] for name in self.plays}
        self.mishaps: list[BaseException] = []
        self.heard = threading.Event()
        """Set when the caller has got something."""
        self._address = url.removeprefix("http://").removesuffix("/v1")
        self._ask = ask
        self._log = log

    def respond(self, line: Line) -> None:
        """Play the part of the provider that is asked."""
        name = line.turn.path.split("/")[2]
        self.lines[name].append(line)
        try:
            self.plays[name](line)
        except OSError:
            raise  # the gateway has left
        except BaseException as mishap:
            self.mishaps.append(mishap)
            raise

    @property
    def asked(self) -> list[int]:
        """How often each provider was asked."""
        return [len(lines) for lines in self.lines.values()]

    def send(self, stream: bool, **fields: Any) -> tuple[dict[str, Any], Any]:
        """Ask the model: what was asked, and the reply, whose body is not read yet."""
        body = {
            "model": "bot",
            "messages": [{"role": "user", "content": "Say something."}],
            "stream": stream,
            **fields,
        }
        self.heard.clear()
        return body, self._ask(self.gateway, body)

    def see(self, stream: bool, take: int | None = None, **fields: Any) -> Seen:
        """Ask the model and read its answer, or leave after ``take`` items of it."""
        body, reply = self.send(stream, **fields)
        if take is None or reply.status != 200:
            first = next(reply)
            self.heard.set()
            return Seen(body, reply, first + reply.read())
        items = list(itertools.islice(reply.body, take))
        self.heard.set()
        reply.close()
        return Seen(body, reply, b"".join(items))

    def ask(self, stream: bool, told: tuple[int, int] | None = TOLD, **fields: Any) -> Seen:
        """Ask the model and check what no call may lack; ``told`` is the usage that the
        provider tells of a good answer, ``None`` if it is to be estimated."""
        seen = self.see(stream, **fields)
        assert seen.is_over
        self.assert_is_booked(seen, told)
        self.assert_is_noted(seen)
        return seen

    def assert_answered(
        self, stream: bool, text: str = ANSWER, told: tuple[int, int] | None = TOLD, **fields: Any
    ) -> Seen:
        """Ask the model, which must answer ``text``."""
        seen = self.ask(stream, told, **fields)
        assert (seen.status, seen.error, seen.text) == (200, None, text)
        return seen

    def assert_failed(self, stream: bool, code: str, handed: str = "", **fields: Any) -> Seen:
        """Ask the model, which must fail, after the text ``handed`` if there is any."""
        seen = self.ask(stream, **fields)
        assert (seen.code, seen.text) == (code, handed)
        assert seen.status == (200 if handed else ERRORS[code][0])
        return seen

    # What must hold.

    def row_of(self, seen: Seen) -> Any:
        """The one row of the call in the books."""
        rows = [row for row in self.gateway.ledger.entries("alice") if row.request_id == seen.id]
        assert len(rows) == 1
        return rows[0]

    def assert_is_booked(self, seen: Seen, told: tuple[int, int] | None, row: Any = None) -> None:
        """A complete answer costs what its provider told, one that broke or was left what
        was handed over, and one that never began nothing."""
        row = row or self.row_of(seen)
        handed = estimate_prompt(seen.asked), tokens_of(*seen.texts)
        if seen.is_done:
            assert row.outcome == "answered"
            prompt, completion = told or handed
        else:
            assert row.outcome == (seen.code or "caller_left")
            prompt, completion = handed if seen.texts or not seen.is_over else (0, 0)
        assert (row.prompt_tokens, row.completion_tokens) == (prompt, completion)
        assert row.cost == prompt * INPUT + completion * OUTPUT
        assert row.estimated == (row.cost > 0 and not (seen.is_done and told))

    def assert_is_noted(self, seen: Seen) -> None:
        """One line for the operator about a failure, and none about anything else."""
        lines = [line for line in self.notes() if seen.id in line]
        assert len(lines) == (seen.error is not None)
        for line in lines:
            is_asked = "left alone" not in line
            who = f"provider {self.row_of(seen).provider} failed" if is_asked else "model bot"
            assert f"{who}: {seen.code}: " in line
        seen.assert_tells_nothing(self._address)

    def notes(self, part: str = "relay") -> list[str]:
        """The lines about calls that failed in the end, or those that ``part`` wrote."""
        return [
            record.getMessage()
            for record in self._log.get_records("call")
            if record.name == f"oneai_middleware.{part}" and record.levelno >= logging.INFO
        ]

    def assert_the_log_is_clean(self) -> None:
        """No line tells the key, and none is about an error of our own."""
        for record in self._log.get_records("call"):
            assert KEY not in logging.Formatter().format(record)
            assert record.levelno < logging.ERROR, record.getMessage()

    def assert_is_well(self) -> None:
        """Nothing that happened here before spoils the next calls."""
        own = f"an answer of its own {next(_numbers)}"
        for name in self.plays:
            self.plays[name] = lambda line: line.well(own)
        for stream in (False, True):
            self.assert_answered(stream, own)

    def assert_nothing_is_held(self) -> None:
        """No call has money, a slot or a place any more."""
        assert self.gateway.ledger.balance("alice").held == 0
        assert self.gateway.ledger.audit() == []
        assert not self.gateway.rate_limiter._state().open
        assert self.gateway._control.calls == 0


_numbers = itertools.count()


@pytest.fixture(scope="session")
def playhouse(start_provider: Callable[[], Any]) -> Any:
    """The server that all providers of all stages are on."""
    return start_provider()


@pytest.fixture
def ask_gateway(send: Any, headers: dict[str, str]) -> Callable[..., Any]:
    """Post a chat request to a gateway as alice."""
    return lambda gateway, body: send(gateway, "POST", "/v1/chat/completions", body, headers)


@pytest.fixture
def transport() -> str:
    """What carries the bytes: the one by default, unless a test is held over each."""
    return "requests"


@pytest.fixture
def make_stage(
    transport: str,
    playhouse: Any,
    make_gateway: Any,
    ask_gateway: Any,
    clock: Any,
    caplog: pytest.LogCaptureFixture,
    eventually: Any,
    pumps: Any,
) -> Iterator[Callable[..., Stage]]:
    """Set up the one stage of a test: a play for each provider, fields of all their rows
    and of the first one's, and settings.

    Its time stands still, but for providers that stall. At the end it must be well,
    and nothing may be left: no money held, no slot, no thread, no connection in use.
    """
    stages: list[Stage] = []
    before = set(playhouse.connections)
    caplog.set_level(logging.DEBUG)

    def make(
        *plays: Play,
        row: dict[str, Any] | None = None,
        first_row: dict[str, Any] | None = None,
        **options: Any,
    ) -> Stage:
        names = [f"p{number}" for number in range(len(plays))]
        fields = {"api_key": KEY, "cooldown": 0, "transport": transport, **(row or {})}
        rows = [{**fields, **(first_row or {})}, *itertools.repeat(fields, len(plays) - 1)]
        options.setdefault("clock", clock)
        options.setdefault("keep_alive", 1e6)
        gateway = make_gateway(
            providers={
                name: {"base_url": f"{playhouse.url}/{name}", **row}
                for name, row in zip(names, rows, strict=True)
            },
            models={
                "bot": {"routes": [f"{name}/up" for name in names], "input": "1", "output": "2"}
            },
            **options,
        )
        stage = Stage(gateway, playhouse.url, plays, ask_gateway, caplog)
        playhouse.respond = lambda turn: stage.respond(Line(turn, clock, stage.heard))
        stages.append(stage)
        return stage

    def is_disconnected() -> bool:
        # What nobody knows any more is closed when it is collected.
        return playhouse.connections <= before or (gc.collect() and False)

    yield make
    (stage,) = stages
    if any(stage.asked):
        stage.assert_is_well()
    stage.gateway.close()
    eventually(is_disconnected)
    eventually(lambda: not pumps())
    stage.assert_nothing_is_held()
    stage.assert_the_log_is_clean()
    assert stage.mishaps == []
