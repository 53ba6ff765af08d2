"""One try at one provider: what it may still take back, and how long it may be silent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from oneai_middleware.attempt import GRACE, HELD, Attempt
from oneai_middleware.backends.base import Backend
from oneai_middleware.cooldown import Visit
from oneai_middleware.errors import (
    BackendDisconnected,
    BackendError,
    BackendMisconfigured,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    InvalidRequest,
    OneAIError,
)
from oneai_middleware.protocol.chat import ChatRequest, Chunk, Completion, Item, Timeouts
from oneai_middleware.protocol.usage import Usage
from oneai_middleware.providers import Provider
from oneai_middleware.testing import FakeClock

TIMEOUTS = Timeouts(connect=5, first_token=20, idle=10, total=100)

ROLE = Chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
USAGE = Usage(7, 3)

BUG = "the backend raised {}; log at DEBUG to see where"

both = pytest.mark.parametrize("stream", [True, False])


class Scripted(Backend):
    """Gives items; raises what is an exception among them, and calls what is callable."""

    def __init__(self, *items: Any) -> None:
        self.items = items
        self.closed = 0

    def stream(self, request: ChatRequest) -> Iterator[Item]:
        try:
            for item in self.items:
                if isinstance(item, BaseException):
                    raise item
                if callable(item):
                    item()
                else:
                    yield item
        finally:
            self.closed += 1


class Whole(Backend):
    """Answers in one piece, after it has called something."""

    def __init__(
        self, completion: Any, before: Callable[[ChatRequest], object] = lambda request: None
    ) -> None:
        self._completion = completion
        self._before = before

    def complete(self, request: ChatRequest) -> Completion:
        self._before(request)
        return self._completion


class Noted(Visit):
    """A visit that remembers what is said of it."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def answers(self) -> None:
        self.words.append("answers")

    def succeeded(self) -> None:
        self.words.append("succeeded")

    def failed(self, asked: float | None = None) -> None:
        self.words.append("failed")

    def undecided(self) -> None:
        self.words.append("undecided")


@pytest.fixture
def attempt_at(clock: FakeClock) -> Callable[..., Attempt]:
    """An attempt at a backend, or at one that gives these items."""

    def attempt_at(*items: Any, stream: bool = True, **options: Any) -> Attempt:
        backend = items[0] if isinstance(items[0], Backend) else Scripted(*items)
        request = ChatRequest({"model": "up", "messages": [], "stream": stream}, request_id="req_1")
        return Attempt(Provider("shop", backend, TIMEOUTS), request, Noted(), clock, **options)

    return attempt_at


def given(attempt: Attempt) -> list[Item]:
    """What it gives, until it ends or fails."""
    items: list[Item] = []
    try:
        items.extend(attempt.stream())
    except BackendError as error:
        attempt.failure = error
    return items


def failure(attempt: Attempt) -> OneAIError:
    """What it fails with, one way or the other."""
    with pytest.raises(OneAIError) as caught:
        _ = list(attempt.stream()) if attempt.request.stream else attempt.complete()
    return caught.value


# --- what can still be taken back -----------------------------------------------


def test_what_came_before_any_output_is_forgotten_when_the_provider_fails(
    attempt_at: Any,
) -> None:
    attempt = attempt_at(None, ROLE, USAGE, BackendOverloaded("busy"))
    assert given(attempt) == [None, None, None]
    assert attempt.failure.code == "model_overloaded"
    assert (attempt.is_taken_up, attempt.begun) == (True, False)


def test_with_the_first_output_comes_what_was_held_back_in_its_order(attempt_at: Any) -> None:
    finish = Chunk.finish()
    attempt = attempt_at(ROLE, None, USAGE, "hello", None, finish)
    assert given(attempt) == [None, None, None, ROLE, USAGE, "hello", None, finish]
    assert attempt.begun
    assert attempt.failure is None


def test_an_answer_without_any_output_comes_at_its_end(attempt_at: Any) -> None:
    attempt = attempt_at(ROLE, USAGE)
    assert given(attempt) == [None, None, ROLE, USAGE]
    assert attempt.failure is None


def test_of_what_is_held_back_the_oldest_goes_first(attempt_at: Any) -> None:
    chunks = [Chunk(ROLE, id=str(number)) for number in range(HELD + 2)]
    attempt = attempt_at(*chunks, "hello")
    assert given(attempt) == [None] * (HELD + 2) + chunks[2:] + ["hello"]


def test_however_long_a_provider_says_nothing_it_can_be_taken_back(attempt_at: Any) -> None:
    chunks = [ROLE] * (3 * HELD)
    attempt = attempt_at(*chunks, BackendOverloaded("busy"))
    assert given(attempt) == [None] * len(chunks)
    assert not attempt.begun


def said(**delta: Any) -> Chunk:
    return Chunk(choices=[{"index": 0, "delta": delta}])


@pytest.mark.parametrize(
    "item",
    [
        *("text", Chunk.text("text"), Chunk.finish("stop"), Chunk.finish("length")),
        *(said(reasoning_content="hm"), said(refusal="no"), said(tool_calls=[{"index": 0}])),
        Chunk(choices=[{"message": {"content": "all of it"}}]),
    ],
)
def test_output_is_whatever_the_model_says_and_how_it_ends(attempt_at: Any, item: Item) -> None:
    attempt = attempt_at(item)
    assert given(attempt) == [item]
    assert attempt.begun


@pytest.mark.parametrize(
    "item",
    [
        *(None, "", USAGE, ROLE, Chunk(), Chunk(choices=[]), Chunk(choices=None)),
        *(said(content=""), said(content=None), said(tool_calls=[]), said(unknown="x")),
        Chunk(choices=[{"delta": None, "finish_reason": None}], usage={"prompt_tokens": 1}),
    ],
)
def test_a_sign_of_life_is_no_output(attempt_at: Any, item: Item) -> None:
    attempt = attempt_at(item, BackendOverloaded("busy"))
    assert given(attempt) == [None]
    assert (attempt.is_taken_up, attempt.begun) == (True, False)


def test_a_provider_that_only_fails_has_not_taken_the_call_up(attempt_at: Any) -> None:
    attempt = attempt_at(BackendOverloaded("busy"))
    assert given(attempt) == []
    assert (attempt.is_taken_up, attempt.begun) == (False, False)


def test_an_answer_in_one_piece_is_taken_up_once_the_provider_has_the_request(
    attempt_at: Any,
) -> None:
    seen = []

    def connect(request: ChatRequest) -> None:
        seen.append(attempt.is_taken_up)  # by a backend that does not say more
        request.connecting.set()
        seen.append(attempt.is_taken_up)
        request.connecting.clear()
        seen.append(attempt.is_taken_up)

    attempt = attempt_at(Whole(Completion(choices=[]), connect), stream=False)
    attempt.complete()
    assert seen == [True, False, True]


def test_nor_is_one_taken_up_that_has_failed(attempt_at: Any) -> None:
    attempt = attempt_at("hello", stream=False)
    attempt.failure = BackendOverloaded("busy")
    assert not attempt.is_taken_up


def test_an_answer_in_one_piece_has_begun_once_it_is_there(attempt_at: Any) -> None:
    attempt = attempt_at("hello", USAGE, stream=False)
    assert not attempt.begun
    assert attempt.complete().choices[0]["message"]["content"] == "hello"
    assert attempt.begun


def test_a_provider_is_well_from_its_first_output_on(attempt_at: Any) -> None:
    attempt = attempt_at(None, ROLE, "one", "two")
    told = [(item, list(attempt.visit.words)) for item in attempt.stream()]
    assert told == [
        *((None, []), (None, [])),
        *((item, ["answers"]) for item in (ROLE, "one", "two")),
    ]


def test_an_answer_in_one_piece_says_so_too(attempt_at: Any) -> None:
    attempt = attempt_at("hello", stream=False)
    attempt.complete()
    assert attempt.visit.words == ["answers"]


def test_a_stream_that_nobody_reads_to_its_end_is_closed(attempt_at: Any) -> None:
    backend = Scripted("one", "two")
    stream = attempt_at(backend).stream()
    assert next(stream) == "one"
    stream.close()
    assert backend.closed == 1


# --- providers that give up in words of their own ---------------------------------

GAVE_UP = pytest.mark.parametrize("reason", ["insufficient_system_resource", "network_error"])


@GAVE_UP
@both
def test_a_provider_that_gives_up_by_its_finish_reason_is_overloaded(
    attempt_at: Any, reason: str, stream: bool
) -> None:
    attempt = attempt_at(ROLE, Chunk.finish(reason), USAGE, stream=stream)
    error = failure(attempt)
    assert isinstance(error, BackendOverloaded)
    assert error.detail == f"finish_reason {reason}"
    assert not attempt.begun


@GAVE_UP
def test_an_answer_in_one_piece_may_say_so_too(attempt_at: Any, reason: str) -> None:
    choice = {"message": {"content": ""}, "finish_reason": reason}
    attempt = attempt_at(Whole(Completion(choices=[choice])), stream=False)
    assert isinstance(failure(attempt), BackendOverloaded)
    assert not attempt.begun


@GAVE_UP
def test_after_output_it_is_a_failure_all_the_same(attempt_at: Any, reason: str) -> None:
    attempt = attempt_at("hello", Chunk.finish(reason))
    assert given(attempt) == ["hello"]
    assert isinstance(attempt.failure, BackendOverloaded)


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "new_one", ["network_error"], 7, None])
def test_any_other_finish_reason_is_let_through(attempt_at: Any, reason: Any) -> None:
    items = ["hello", Chunk(choices=[{"delta": {}, "finish_reason": reason}])]
    assert given(attempt_at(*items)) == items


# --- deadlines --------------------------------------------------------------------


def test_a_first_token_has_its_time_and_no_sign_of_life_prolongs_it(
    attempt_at: Any, clock: FakeClock
) -> None:
    attempt = attempt_at(None, ROLE, lambda: clock.advance(20), None, "hello")
    stream = attempt.stream()
    assert attempt.overdue() is None
    assert [next(stream) for _ in range(3)] == [None] * 3
    assert attempt.overdue() is None
    clock.advance(0.5)
    assert attempt.overdue() == "no first token in 20 s"
    assert list(stream) == [ROLE, "hello"]


def test_a_provider_that_says_nothing_at_all_is_late_too(attempt_at: Any, clock: FakeClock) -> None:
    attempt = attempt_at("hello")
    clock.advance(20.5)
    assert attempt.overdue() == "no first token in 20 s"


def test_silence_between_two_pieces_has_its_time(attempt_at: Any, clock: FakeClock) -> None:
    seen = []

    def be_silent() -> None:
        clock.advance(10)
        seen.append(attempt.overdue())
        clock.advance(0.5)
        seen.append(attempt.overdue())

    attempt = attempt_at("one", be_silent, "two", be_silent, None, be_silent)
    assert given(attempt) == ["one", "two", None]
    assert seen == [None, "silent for 10 s"] * 3


def test_whoever_reads_slowly_makes_no_provider_late(attempt_at: Any, clock: FakeClock) -> None:
    attempt = attempt_at("one", "two")
    for _ in attempt.stream():
        clock.advance(45)
        assert attempt.overdue() is None


def test_the_whole_answer_has_its_time_however_lively_it_is(
    attempt_at: Any, clock: FakeClock
) -> None:
    seen = []

    def live() -> None:
        clock.advance(5)
        seen.append(attempt.overdue())

    attempt = attempt_at(*(piece for _ in range(21) for piece in (live, "word ")))
    assert len(given(attempt)) == 21
    assert seen == [None] * 20 + ["the whole answer took over 100 s"]


def test_an_answer_in_one_piece_has_the_whole_time_and_no_other_limit(
    attempt_at: Any, clock: FakeClock
) -> None:
    seen = []

    def work(request: ChatRequest) -> None:
        for seconds in (21, 79, 0.5):
            clock.advance(seconds)
            seen.append(attempt.overdue())

    attempt = attempt_at(Whole(Completion(choices=[]), work), stream=False)
    attempt.complete()
    assert seen == [None, None, "the whole answer took over 100 s"]


@both
@pytest.mark.parametrize("last", ["!", BackendOverloaded("busy")])
def test_what_is_over_is_never_late(
    attempt_at: Any, clock: FakeClock, last: Any, stream: bool
) -> None:
    attempt = attempt_at("hello", last, stream=stream)
    if stream:
        given(attempt)
    elif last == "!":
        attempt.complete()
    else:
        failure(attempt)
    clock.advance(1000)
    assert attempt.overdue() is None


# --- what comes of a deadline -------------------------------------------------------


def test_a_late_attempt_is_cancelled_and_has_a_moment_to_come_back(
    attempt_at: Any, clock: FakeClock
) -> None:
    attempt = attempt_at("hello")
    assert not attempt.request.cancellation.cancelled
    assert not attempt.expire("too slow")
    assert attempt.request.cancellation.cancelled
    clock.advance(TIMEOUTS.connect + GRACE)  # no cancel reaches a connect
    assert not attempt.expire("too slow")
    clock.advance(0.1)
    assert attempt.expire("too slow")


def test_a_late_attempt_counts_against_its_provider_at_once(attempt_at: Any) -> None:
    attempt = attempt_at("hello")
    attempt.expire("too slow")
    attempt.expire("too slow")
    assert attempt.visit.words == ["failed"]


@both
@pytest.mark.parametrize(
    "error",
    [
        BackendUnavailable("cut off"),
        BackendDisconnected("cut off"),
        OSError("cut off"),
        AttributeError("no socket"),
    ],
)
def test_what_a_backend_raises_because_it_was_cancelled_is_a_timeout(
    attempt_at: Any, error: Exception, stream: bool
) -> None:
    def be_late() -> None:
        attempt.expire("no first token in 20 s")
        attempt.expire("the whole answer took over 100 s")

    attempt = attempt_at(be_late, error, stream=stream)
    raised = failure(attempt)
    assert isinstance(raised, BackendTimeout)
    assert raised.detail == "no first token in 20 s"
    assert raised.__cause__ is error


@both
@pytest.mark.parametrize("error", [BackendOverloaded("busy"), InvalidRequest("top_p is wrong")])
def test_a_refusal_that_comes_late_is_still_that_refusal(
    attempt_at: Any, error: OneAIError, stream: bool
) -> None:
    attempt = attempt_at(lambda: attempt.expire("too slow"), error, stream=stream)
    assert failure(attempt) is error


def test_an_attempt_is_given_up_when_it_is_cancelled_for_no_deadline(attempt_at: Any) -> None:
    late, given_up = attempt_at("hello"), attempt_at("hello")
    assert not given_up.is_given_up
    given_up.request.cancellation.cancel()
    assert given_up.is_given_up
    late.expire("too slow")
    assert not late.is_given_up


# --- failures -----------------------------------------------------------------------


@both
@pytest.mark.parametrize("error", [ValueError("canary"), OSError("canary"), MemoryError("canary")])
def test_a_backends_own_error_is_told_by_its_name_alone(
    attempt_at: Any, caplog: pytest.LogCaptureFixture, error: Exception, stream: bool
) -> None:
    caplog.set_level(logging.INFO)
    attempt = attempt_at(error, stream=stream)
    raised = failure(attempt)
    assert type(raised) is BackendUnavailable
    assert raised.detail == BUG.format(type(error).__name__)
    assert caplog.records == []  # whoever gives the call up, or tries on, tells the operator


def test_where_a_backends_own_error_was_raised_is_seen_when_debugging(
    attempt_at: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    failure(attempt_at(ValueError("canary")))
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.DEBUG,
        "req_1: provider shop: its backend raised",
    )
    assert "canary" in caplog.text


def test_a_piece_that_is_no_piece_of_an_answer_is_a_backends_own_error(attempt_at: Any) -> None:
    attempt = attempt_at({"choices": []})
    assert given(attempt) == []
    assert attempt.failure.detail == BUG.format("TypeError")


@pytest.mark.parametrize("answer", [None, "hello", {"choices": []}, Chunk(choices=[])])
def test_an_answer_in_one_piece_that_is_none_is_a_backends_own_error(
    attempt_at: Any, answer: Any
) -> None:
    raised = failure(attempt_at(Whole(answer), stream=False))
    assert type(raised) is BackendUnavailable
    assert raised.detail == BUG.format("TypeError")


@pytest.mark.parametrize(
    ("error", "is_worth_repeating"),
    [
        (BackendDisconnected("connection reset"), True),
        (BackendUnavailable("HTTP 500"), False),
        (BackendOverloaded("busy"), False),
        (BackendTimeout("too slow"), False),
        (BackendMisconfigured("wrong key"), False),
        (ConnectionResetError(), False),
    ],
)
def test_only_a_broken_connection_is_worth_another_try(
    attempt_at: Any, error: Exception, is_worth_repeating: bool
) -> None:
    attempt, last = (attempt_at(error, repeatable=repeatable) for repeatable in (True, False))
    assert not attempt.is_worth_repeating
    given(attempt)
    given(last)
    assert attempt.is_worth_repeating is is_worth_repeating
    assert not last.is_worth_repeating
