"""The backend that asks another server in OpenAI's own protocol."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ...errors import APIError, BackendTimeout, BackendUnavailable, ConfigurationError, InvalidJSON
from ...protocol import json
from ...protocol.chat import ChatRequest, Chunk, Completion, Item, Timeouts
from ...protocol.sse import Event, EventSplitter, EventTooLong
from ..base import Backend
from .dialects.answers import Reasoning
from .dialects.requests import adapt
from .dialects.settings import read_dialect
from .errors import Refusals
from .transport import Reply, Transport
from .transports import read_transport

MAX_ANSWER = 64 * 2**20
"""Bytes of an answer in one piece, or of a refusal's body."""

MAX_STREAM = 256 * 2**20
"""Bytes of all the events of an answer."""
MAX_STRUCTURE = 2_000_000
"""Brackets and commas of an answer in one piece: decoded, each takes some 100 bytes."""

_DONE = b"[DONE]"
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)


class OpenAIBackend(Backend):
    """A provider with an OpenAI-compatible ``/chat/completions``.

    :param base_url: what stands before ``/chat/completions``, used as it is.
    :param api_key: our key there; leave it out for servers that want none.
    :param dialect: what it does otherwise than OpenAI's protocol says: the name of a
        shipped dialect, or a table of fields to change over one.
    :param headers: further headers to send.
    :param proxy: the address of an HTTP proxy; the environment's are not used.
    :param verify: whether to check TLS certificates, or the path of a CA bundle.
    :param transport: what carries the bytes: ``"requests"``, ``"http.client"``,
        ``"module:attribute"`` of a class or function that is called with ``proxy`` and
        ``verify``, or an object.
    :raises ConfigurationError: an option is missing or malformed.
    """

    def __init__(
        self,
        *,
        base_url: str = "",
        api_key: str = "",
        dialect: str | Mapping[str, Any] = "generic",
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        verify: bool | str = True,
        transport: str | Transport = "requests",
        **unknown: Any,
    ) -> None:
        super().__init__(**unknown)
        address = _address(base_url)
        if not _is_plain(api_key):
            raise ConfigurationError("api_key: a string of plain characters on one line")
        _check_proxy(proxy)
        _check_verify(verify)
        headers = _headers({} if headers is None else headers)
        self._base_url = base_url.rstrip("/")
        self._dialect = read_dialect(dialect)
        # A provider may echo what it was sent, and where.
        secrets = [api_key, address.netloc, address.hostname or "", *headers.values()]
        self._refusals = Refusals(secrets, self._dialect.causes)
        self._headers = {**_fixed_headers(api_key), **headers}
        self._transport = read_transport(transport, proxy=proxy, verify=verify)

    def stream(self, request: ChatRequest) -> Iterator[Item]:
        """The provider's events, as they come; ``None`` for its comments."""
        with self._reply(request, stream=True) as reply:
            yield None  # it has taken the call up
            if "text/event-stream" in reply.headers.get("content-type", "").lower():
                yield from self._chunks(reply)
            else:
                yield _as_chunk(self._completion(_read_all(reply)))

    def complete(self, request: ChatRequest) -> Completion:
        """The provider's answer in one piece."""
        if self._dialect.folds:
            return super().complete(request)
        with self._reply(request, stream=False) as reply:
            return self._completion(_read_all(reply))

    def check(self) -> None:
        """Ask the provider for its models."""
        reply = self._transport.open(f"{self._base_url}/models", self._headers, None, Timeouts())
        with contextlib.closing(reply):
            reply.begin()
            if reply.status != 200:
                raise self._refusals.in_reply(reply.status, reply.headers, _read_all(reply))

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    @contextlib.contextmanager
    def _reply(self, request: ChatRequest, *, stream: bool) -> Iterator[Reply]:
        """The provider's reply to ``request``, past its status."""
        body, adjusted = adapt(self._dialect, request.body, stream=stream)
        request.adjusted.update(adjusted)
        reply = self._transport.open(
            f"{self._base_url}/chat/completions",
            self._headers,
            _encoded(body),
            request.timeouts,
        )
        request.cancellation.on_cancel(reply.cancel)
        request.connecting.set()
        with contextlib.closing(reply):
            reply.begin(request.connecting.clear)
            request.connecting.clear()
            if reply.status != 200:
                raise self._refusals.in_reply(reply.status, reply.headers, _read_all(reply))
            yield reply

    def _chunks(self, reply: Reply) -> Iterator[Chunk | None]:
        progress, splitter = _Progress(), EventSplitter()
        reasoning = Reasoning(self._dialect.reasoning)
        try:
            for event in _events(reply, splitter):
                if event.data is None:
                    yield None
                elif event.data.startswith(_DONE):
                    reply.finish()
                    progress.done = True
                    break
                else:
                    chunk = reasoning.moved(self._chunk(event, progress.said))
                    progress.note(chunk)
                    yield chunk
                    if progress.is_complete:
                        reply.hurry()
        except (BackendUnavailable, BackendTimeout):
            if not progress.is_complete:
                raise
        if not progress.is_complete:
            where = "within an event" if splitter.pending else "before its answer was complete"
            raise BackendUnavailable(f"the stream ended {where}")

    def _chunk(self, event: Event, said: bool) -> Chunk:
        value = _decoded(event.data or b"")
        error = self._refusals.in_answer(value)
        if error is not None:
            raise _as_provider_error(error) if said else error
        if event.name == "error":
            raise BackendUnavailable("an error event without an error")
        return Chunk(value)

    def _completion(self, data: bytes) -> Completion:
        if json.is_too_complex(data, MAX_STRUCTURE):
            raise BackendUnavailable("an answer of too many elements")
        value = _decoded(data)
        error = self._refusals.in_answer(value)
        if error is not None:
            raise error
        completion = Completion(value)
        if not any(isinstance(choice.get("message"), dict) for choice in completion.choices):
            raise BackendUnavailable("an answer without choices")
        return Reasoning(self._dialect.reasoning).moved(completion)


class _Progress:
    """How far a stream has come. It is complete once every answer in it has its reason
    to end, or when the provider says that it is and there has been output."""

    def __init__(self) -> None:
        self.said = False
        self.done = False
        self._open: set[Any] = set()
        self._finished: set[Any] = set()

    def note(self, chunk: Chunk) -> None:
        """``chunk`` has come."""
        self.said = self.said or chunk.has_output
        for place, choice in enumerate(chunk.choices):
            index = choice.get("index", place)
            ends = bool(choice.get("finish_reason"))
            (self._finished if ends else self._open).add(
                index if type(index) is int else str(index)
            )

    @property
    def is_complete(self) -> bool:
        """Whether nothing of any answer is missing."""
        ended = bool(self._finished) and self._open <= self._finished
        return ended or (self.done and (self.said or bool(self._finished)))


def _address(base_url: Any) -> SplitResult:
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        address: SplitResult = urlsplit(base_url)
        plain = not (address.query or address.fragment or address.username)
        if _is_http(address) and plain:
            return address
    raise ConfigurationError(
        "base_url: an address such as 'https://api.example.com/v1', "
        "which '/chat/completions' is added to"
    )


def _is_http(address: SplitResult) -> bool:
    return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0


def _check_proxy(proxy: Any) -> None:
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        if proxy is None or _is_http(urlsplit(proxy)):
            return
    raise ConfigurationError("proxy: an address such as 'http://proxy.example:3128'")


def _check_verify(verify: Any) -> None:
    if not isinstance(verify, bool) and not (isinstance(verify, str) and Path(verify).exists()):
        raise ConfigurationError("verify: True, False, or the path of a CA bundle that is there")


def _headers(value: Any) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not all(
        _is_plain(part) for item in value.items() for part in item
    ):
        raise ConfigurationError("headers: a table of strings of plain characters")
    for name in value:
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError(f"headers: {name!r} is no name of a header")
    return value


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


def _fixed_headers(api_key: str) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        # Compressed events would come in bursts.
        "Accept-Encoding": "identity",
        "User-Agent": "oneai_middleware",
    }
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return headers


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return json.encode(body)
    except json.MalformedJSON:
        # It has been decoded, but from less deep a stack than this one.
        raise InvalidJSON("The body is nested too deep.") from None


def _events(reply: Reply, splitter: EventSplitter) -> Iterator[Event]:
    try:
        size = 0
        while data := reply.read1():
            size += len(data)
            if size > MAX_STREAM:
                raise BackendUnavailable(f"a stream of over {MAX_STREAM} bytes")
            yield from splitter.feed(data)
        yield from splitter.close()
    except EventTooLong:
        raise BackendUnavailable("an event of over a megabyte") from None


def _read_all(reply: Reply) -> bytes:
    data = bytearray()
    while piece := reply.read1():
        data += piece
        if len(data) > MAX_ANSWER:
            raise BackendUnavailable(f"an answer of over {MAX_ANSWER} bytes")
    return bytes(data)


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        value = json.decode(data)
    except json.MalformedJSON:
        raise BackendUnavailable("an answer that is not JSON") from None
    if not isinstance(value, dict):
        raise BackendUnavailable("an answer that is not a JSON object")
    return value


def _as_chunk(completion: Completion) -> Chunk:
    """A whole answer, from a provider that was asked for a stream, as one chunk."""
    return Chunk(completion)


def _as_provider_error(error: APIError) -> APIError:
    """After output nothing is the caller's fault any more: they were accepted."""
    return error if error.fault == "provider" else BackendUnavailable(error.detail)
