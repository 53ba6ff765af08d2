"""The contract of backends."""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from ..accounts import Account, Caller
from ..backends.base import Backend, running
from ..errors import BackendError, ConfigurationError, InvalidRequest
from ..protocol import json
from ..protocol.chat import ChatRequest, Completion, Item
from ..protocol.gather import gather
from .contract import Contract, in_threads

PATIENCE = 10.0
"""Seconds a test waits for what must happen; a backend at rest takes milliseconds."""


class BackendContract(Contract):
    """What every backend does. Asked the same thing twice, it must answer the same.

    Set :attr:`backend_class` and :attr:`options`, or override :meth:`make_backend`.
    Tests whose hook is left alone are skipped.
    """

    backend_class: Callable[..., Backend] | None = None
    """The class under test, or what else makes a backend of options."""

    options: Mapping[str, Any] = {}
    """The options to make it with, as they would stand in a provider's settings."""

    def make_backend(self) -> Backend:
        """A backend that answers :meth:`request`."""
        return self._make(**self.options)

    def make_slow_backend(self) -> Any:
        """A backend that gives one item and then waits for what never comes."""
        return NotImplemented

    def make_refusing_backend(self) -> Any:
        """A backend that refuses :meth:`request`."""
        return NotImplemented

    def held(self) -> int:
        """How many connections, or what else calls hold, are held now, if it can be told."""
        return 0

    def request(self, text: str = "What is new?", **body: Any) -> ChatRequest:
        """A request that the backend can answer, with fields of ``body`` laid over it."""
        messages = [{"role": "user", "content": text}]
        return ChatRequest(
            {"model": "model", "messages": messages, **body}, caller=Caller(Account("alice"))
        )

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        with contextlib.closing(self.make_backend()) as backend:
            yield backend

    @pytest.fixture
    def slow(self) -> Iterator[Backend]:
        with contextlib.closing(_made(self.make_slow_backend())) as backend:
            yield backend

    @pytest.fixture
    def refusing(self) -> Iterator[Backend]:
        with contextlib.closing(_made(self.make_refusing_backend())) as backend:
            yield backend

    # --- answers

    def test_a_stream_is_made_of_chunks_texts_usage_and_signs_of_life(
        self, backend: Backend
    ) -> None:
        assert list(running(backend, self.request()))  # it raises for anything else

    def test_a_whole_answer_is_a_completion(self, backend: Backend) -> None:
        completion = backend.complete(self.request())
        assert isinstance(completion, Completion)
        assert json.decode(json.encode(completion)) == completion
        assert completion.choices
        for choice in completion.choices:
            assert isinstance(choice["index"], int)
            assert isinstance(choice["message"]["content"], str | None)
            assert isinstance(choice["finish_reason"], str)
        if completion.get("usage") is not None:
            assert completion.usage is not None, "a usage that cannot be read"

    def test_a_stream_and_a_whole_answer_say_the_same(self, backend: Backend) -> None:
        assert said(gather(running(backend, self.request()))) == said(
            backend.complete(self.request())
        )

    def test_the_request_is_left_as_it_was(self, backend: Backend) -> None:
        request = self.request()
        before = copy.deepcopy(request.body)
        backend.complete(request)
        list(backend.stream(request))
        assert request.body == before

    def test_one_backend_serves_many_threads(self, backend: Backend) -> None:
        alone = said(backend.complete(self.request()))
        answers = in_threads(lambda: said(gather(running(backend, self.request()))), 16)
        assert answers == [alone] * 16

    def test_streams_side_by_side_do_not_mix(self, backend: Backend) -> None:
        asked = [self.request(), self.request("And what is old?")]
        alone = [said(gather(running(backend, request))) for request in asked]
        # What is filled in behind the shorter one is a sign of life.
        rows = itertools.zip_longest(*(running(backend, request) for request in asked))
        assert [said(gather(items)) for items in zip(*rows, strict=True)] == alone

    def test_a_backend_that_answers_passes_its_own_check(self, backend: Backend) -> None:
        backend.check()

    # --- the end

    def test_a_stream_closed_before_its_end_lets_go(self, backend: Backend) -> None:
        stream = running(backend, self.request())
        next(stream)
        _close(stream)
        self.assert_nothing_is_held()
        assert backend.complete(self.request()).choices

    def test_a_stream_closed_while_more_is_to_come_lets_go(self, slow: Backend) -> None:
        stream = running(slow, self.request())
        next(stream)
        _close(stream)
        self.assert_nothing_is_held()

    def test_a_stream_that_nobody_reads_lets_go(self, backend: Backend) -> None:
        _close(backend.stream(self.request()))
        self.assert_nothing_is_held()

    def test_closing_and_cancelling_again_does_nothing(self, backend: Backend) -> None:
        request = self.request()
        stream = backend.stream(request)
        next(stream)
        for _ in range(2):
            request.cancellation.cancel()
            getattr(stream, "cancel", request.cancellation.cancel)()
        for _ in range(2):
            _close(stream)
        self.assert_nothing_is_held()

    def test_a_closed_backend_can_be_closed_again_and_still_answers(self, backend: Backend) -> None:
        alone = said(backend.complete(self.request()))
        backend.close()
        backend.close()
        assert said(backend.complete(self.request())) == alone

    def test_a_cancelled_call_ends_its_stream(self, slow: Backend) -> None:
        request, begun = self.request(), threading.Event()

        def read() -> None:
            for _ in running(slow, request):
                begun.set()

        with _in_background(read) as reading:
            assert begun.wait(PATIENCE), "the slow backend gave no item"
            assert reading.is_alive(), "the slow backend did not wait"
            request.cancellation.cancel()
        self.assert_nothing_is_held()

    def test_a_cancelled_call_ends_a_whole_answer(self, slow: Backend) -> None:
        request = self.request()
        with _in_background(lambda: slow.complete(request)):
            request.cancellation.cancel()
        self.assert_nothing_is_held()

    def test_a_call_cancelled_before_it_began_ends_at_once(self, slow: Backend) -> None:
        request = self.request()
        request.cancellation.cancel()
        with _in_background(lambda: list(running(slow, request))):
            pass
        self.assert_nothing_is_held()

    # --- refusals

    def test_an_unknown_option_is_refused_by_name(self) -> None:
        with pytest.raises(ConfigurationError, match="no_such_option"):
            self._make(**self.options, no_such_option=1)

    def test_a_refusal_comes_before_the_first_item(self, refusing: Backend) -> None:
        with pytest.raises((BackendError, InvalidRequest)):
            next(item for item in running(refusing, self.request()) if item is not None)
        self.assert_nothing_is_held()

    def test_a_whole_answer_is_refused_as_a_stream_is(self, refusing: Backend) -> None:
        with pytest.raises((BackendError, InvalidRequest)) as streamed:
            list(running(refusing, self.request()))
        with pytest.raises(streamed.type) as whole:
            refusing.complete(self.request())
        assert whole.value.envelope() == streamed.value.envelope()

    def assert_nothing_is_held(self) -> None:
        """Wait until no call holds anything."""
        end = time.monotonic() + PATIENCE
        while self.held():
            assert time.monotonic() < end, "a call that has ended still holds something"
            time.sleep(0.005)

    def _make(self, **options: Any) -> Backend:
        if self.backend_class is None:
            pytest.skip("backend_class is not set")
        return self.backend_class(**options)


def said(completion: Completion) -> list[tuple[Any, Any]]:
    """What each answer of ``completion`` says, and why it ended."""
    return [(each["message"]["content"], each["finish_reason"]) for each in completion.choices]


def _made(backend: Any) -> Backend:
    if backend is NotImplemented:
        pytest.skip("this backend has no such form")
    made: Backend = backend
    return made


def _close(stream: Iterator[Item]) -> None:
    if hasattr(stream, "close"):
        stream.close()


@contextlib.contextmanager
def _in_background(action: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run ``action`` meanwhile; it must end by itself, or with a :class:`BackendError`."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            action()
        except BackendError:
            pass
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the call goes on although it was cancelled"
    assert raised == []
