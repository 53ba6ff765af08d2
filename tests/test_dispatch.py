import contextlib
import io
import itertools
import json
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from oneai_middleware.accounts import Account, Caller
from oneai_middleware.admission import Admission
from oneai_middleware.attempt import GRACE
from oneai_middleware.backends.base import Backend
from oneai_middleware.call import Call
from oneai_middleware.catalog import Model, Price, Route
from oneai_middleware.cooldown import FAILURES
from oneai_middleware.dispatch import Dispatch
from oneai_middleware.errors import (
    BackendDisconnected,
    BackendMisconfigured,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    ContentRefused,
    InvalidRequest,
)
from oneai_middleware.protocol.cancellation import Cancellation
from oneai_middleware.protocol.chat import BOUNDS, ChatRequest, Chunk, Completion, Timeouts
from oneai_middleware.protocol.usage import Usage
from oneai_middleware.providers import Provider

BODY = {"model": "bot", "messages": [{"role": "user", "content": "hello there"}]}

both = pytest.mark.parametrize("stream", [False, True])


class Scripted(Backend):
    """Gives items, raises what is an exception among them, and remembers its requests."""

    def __init__(self, *items):
        self.items = items
        self.requests = []
        self.closed = 0

    def stream(self, request):
        self.requests.append(request)
        try:
            for item in self.items:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.closed += 1


@pytest.fixture
def ask(make_gateway, headers, send):
    """Ask a gateway whose ``bot`` is served by these backends in order."""

    def ask(*backends, stream=False, account=None, **fields):
        names = [f"p{number}" for number in range(len(backends))]
        gateway = make_gateway(
            providers={
                name: {"backend": backend} for name, backend in zip(names, backends, strict=True)
            },
            models={"bot": {"routes": [f"{n}/up-{n}" for n in names], "input": "1", "output": "2"}},
            account=account,
        )
        body = {**BODY, **fields, "stream": stream}
        reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
        reply.read()
        assert not gateway.ledger.audit()
        assert gateway.ledger.balance("alice").held == 0
        assert not gateway.rate_limiter._state().open
        return reply, gateway.ledger.entries("alice")[-1]

    return ask


def answer():
    return Scripted("hello", Usage(7, 3))


KINDS = [
    *(BackendOverloaded, BackendMisconfigured, BackendTimeout),
    *(BackendUnavailable, BackendDisconnected),
]


@both
@pytest.mark.parametrize("failure", KINDS)
def test_a_route_that_fails_before_any_output_is_followed_by_the_next(ask, failure, stream):
    first, second, third = Scripted(failure("x")), answer(), answer()
    reply, row = ask(first, second, third, stream=stream)
    assert reply.status == 200
    assert b"hello" in reply.read()
    times = 2 if failure is BackendDisconnected else 1
    assert [len(backend.requests) for backend in (first, second, third)] == [times, 1, 0]
    assert (row.provider, row.cost, row.outcome) == ("p1", 7 * 1000 + 3 * 2000, "answered")


@both
def test_each_route_is_asked_for_its_own_model(ask, stream):
    first, second = Scripted(BackendUnavailable("x")), answer()
    ask(first, second, stream=stream, temperature=1)
    assert first.requests[0].model == "up-p0"
    assert second.requests[0].model == "up-p1"
    assert second.requests[0].body["temperature"] == 1
    assert second.requests[0].request_id == first.requests[0].request_id


@both
def test_of_several_failures_the_last_is_told(ask, stream):
    reply, row = ask(
        Scripted(BackendMisconfigured("x")), Scripted(BackendTimeout("y")), stream=stream
    )
    assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")
    assert (row.cost, row.outcome) == (0, "upstream_timeout")


@both
@pytest.mark.parametrize(
    "error", [InvalidRequest("bad top_p", param="top_p"), ContentRefused("no")]
)
def test_what_is_the_callers_fault_is_not_asked_again(ask, error, stream):
    second = answer()
    reply, row = ask(Scripted(error), second, stream=stream)
    assert (reply.status, reply.error["code"]) == (400, error.code)
    assert second.requests == []
    assert row.cost == 0


def test_once_something_was_given_no_other_route_is_tried(ask):
    second = answer()
    reply, row = ask(Scripted("some words", BackendOverloaded("x")), second, stream=True)
    assert reply.status == 200
    assert b"model_overloaded" in reply.read()
    assert second.requests == []
    assert row.provider == "p0"
    assert row.cost == row.prompt_tokens * 1000 + row.completion_tokens * 2000


def test_a_sign_of_life_is_no_output(ask):
    reply, row = ask(Scripted(None, None, BackendUnavailable("x")), answer(), stream=True)
    assert b"hello" in reply.read()
    assert row.provider == "p1"


def test_an_answer_in_one_piece_may_fail_late_and_still_come_from_the_next_route(ask):
    reply, row = ask(Scripted("some words", BackendUnavailable("x")), answer())
    assert reply.json["choices"][0]["message"]["content"] == "hello"
    assert row.provider == "p1"


class Broken(Backend):
    """Fails in its own way before it gives an iterator at all."""

    def stream(self, request):
        raise ZeroDivisionError

    def complete(self, request):
        raise ZeroDivisionError


@both
@pytest.mark.parametrize(
    "backend",
    [
        Broken(),
        Scripted(ZeroDivisionError()),
        Scripted(RuntimeError("x")),
        Scripted(OSError()),
        Scripted(MemoryError()),
        Scripted(object()),
        Scripted({"choices": []}),
    ],
)
def test_a_backend_with_a_bug_is_a_502_and_the_next_route_is_tried(ask, backend, stream):
    reply, row = ask(backend, stream=stream)
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert row.cost == 0
    reply, row = ask(backend, answer(), stream=stream)
    assert reply.status == 200
    assert row.provider == "p1"


@both
def test_a_failed_route_is_noted_for_the_operator(ask, caplog, stream):
    ask(Scripted(BackendMisconfigured("HTTP 401: bad key")), answer(), stream=stream)
    (record,) = [r for r in caplog.records if r.name == "oneai_middleware.dispatch"]
    assert record.levelname == "WARNING"
    assert "p0" in record.getMessage()
    assert "HTTP 401: bad key" in record.getMessage()


@both
def test_a_backends_own_error_is_one_line_of_the_log_and_tells_no_secret(ask, caplog, stream):
    caplog.set_level("INFO")
    ask(Scripted(ValueError("canary")), stream=stream)
    (record,) = warnings_of(caplog)
    assert "provider p0 failed: upstream_error: the backend raised ValueError" in record
    assert "canary" not in caplog.text
    assert "Traceback" not in caplog.text


@both
def test_where_it_was_raised_is_seen_when_debugging(ask, caplog, stream):
    caplog.set_level("DEBUG", "oneai_middleware")
    ask(Scripted(ValueError("canary")), stream=stream)
    assert len(warnings_of(caplog)) == 1
    assert "ValueError: canary" in caplog.text


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@both
def test_the_callers_stream_is_closed_whatever_happens(ask, stream):
    for items in ([], ["x"], [BackendUnavailable("x")], ["x", ValueError()]):
        backend = Scripted(*items)
        ask(backend, stream=stream)
        assert backend.closed == len(backend.requests)


# --- the bound on the output --------------------------------------------------


@both
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_no_longer_answer_is_asked_for_than_the_balance_pays(ask, name, stream):
    backend = answer()
    ask(backend, stream=stream, account={"balance": "0.0002"}, **{name: 1000})
    sent = backend.requests[0].body
    assert 16 <= sent[name] < 100
    assert not {"max_tokens", "max_completion_tokens"} - {name} & set(sent)


@both
def test_a_bound_is_sent_where_the_caller_gave_none_but_the_balance_is_low(ask, stream):
    backend = answer()
    ask(backend, stream=stream, account={"balance": "0.0002"})
    assert 16 <= backend.requests[0].body["max_tokens"] < 100


@both
def test_a_bound_that_can_be_paid_is_left_alone(ask, stream):
    backend, other = answer(), answer()
    ask(backend, stream=stream, max_tokens=1000)
    assert backend.requests[0].body["max_tokens"] == 1000
    ask(other, stream=stream)
    assert "max_tokens" not in other.requests[0].body


@both
@pytest.mark.parametrize("balance", ["10", "0.0002"])
@pytest.mark.parametrize(
    ("asked", "sent", "changed"),
    [
        ({}, {"max_tokens": 20}, None),
        ({"max_tokens": 30}, {"max_tokens": 20}, "max_tokens"),
        ({"max_completion_tokens": 30}, {"max_completion_tokens": 20}, "max_completion_tokens"),
        ({"max_tokens": 20}, {"max_tokens": 20}, None),
        ({"max_completion_tokens": 7}, {"max_completion_tokens": 7}, None),
        ({"max_tokens": None}, {"max_tokens": 20}, None),
    ],
)
def test_no_longer_answer_is_asked_for_than_the_model_may_give(
    house, balance, asked, sent, changed, stream
):
    bot = answer()
    at = house(bot, model={"max_output": 20}, account={"balance": balance})
    reply = at.ask(stream=stream, **asked)
    body = bot.requests[0].body
    assert {name: body[name] for name in BOUNDS if name in body} == sent
    assert reply.headers.get("x-oneai-changed") == changed


# --- cancelling ---------------------------------------------------------------


class Cancellable:
    """An iterator that waits until somebody cancels it."""

    def __init__(self, error=None):
        self.cancelled = threading.Event()
        self.closed = threading.Event()
        self.items = iter([Chunk.text("word")])
        self.error = error

    def __iter__(self):
        return self

    def __next__(self):
        for item in self.items:
            return item
        assert self.cancelled.wait(10)
        raise BackendUnavailable("cancelled")

    def cancel(self):
        self.cancelled.set()
        if self.error is not None:
            raise self.error

    def close(self):
        self.closed.set()


class Waiting(Backend):
    def __init__(self, iterator):
        self.iterator = iterator

    def stream(self, request):
        return self.iterator


def leave(make_gateway, headers, send, backend, **options):
    """A caller takes the first event of ``backend``'s stream and leaves; the gateway."""
    gateway = make_gateway(
        providers={"p": {"backend": backend}, "q": {"backend": answer()}},
        models={"bot": {"routes": ["p/x", "q/x"], "input": "1", "output": "2"}},
        **options,
    )
    body = {**BODY, "stream": True}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    assert b"word" in next(reply)
    reply.close()
    assert gateway.ledger.balance("alice").held == 0
    assert not gateway.rate_limiter._state().open
    assert not gateway.ledger.audit()
    return gateway


def test_an_iterator_that_can_be_cancelled_is(make_gateway, headers, send):
    iterator = Cancellable()
    gateway = leave(make_gateway, headers, send, Waiting(iterator))
    assert iterator.cancelled.wait(10)
    assert iterator.closed.wait(10)
    (row,) = gateway.ledger.entries("alice")
    assert (row.outcome, row.provider) == ("caller_left", "p")


def test_what_a_backend_raises_because_its_caller_left_is_nobodys_affair(
    make_gateway, headers, send, caplog, eventually, pumps
):
    def bot(request):
        yield "word"
        assert request.cancellation.wait(10)
        raise ValueError("cut off")

    caplog.set_level("INFO", "oneai_middleware.dispatch")
    caplog.set_level("INFO", "oneai_middleware.relay")
    leave(make_gateway, headers, send, bot)
    eventually(lambda: not pumps())
    assert [record for record in caplog.records if "access" not in record.name] == []


def test_a_function_that_keeps_a_thread_of_the_server_keeps_a_place(
    house, eyes, monkeypatch, eventually
):
    """What its caller had otherwise is free as soon as they leave."""
    line = SimpleNamespace(is_present=lambda: False)
    monkeypatch.setattr("oneai_middleware.endpoints.chat.connection_of", lambda environ: line)
    let_go = threading.Event()
    at = house(lambda request: "hello" if let_go.wait(10) else "too late", max_calls=1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(at.ask)
        eventually(lambda: at.gateway._control.calls)
        eventually(lambda: (eyes.look(), at.gateway.ledger.entries("alice"))[1])
        assert (at.row.outcome, at.gateway.ledger.balance("alice").held) == ("caller_left", 0)
        assert not at.gateway.rate_limiter._state().open
        second = at.ask()
        assert (second.status, second.error["code"]) == (503, "gateway_overloaded")
        let_go.set()
        assert asked.result(10).status == 499
    assert at.gateway._control.calls == 0


def test_an_iterator_whose_cancel_fails_keeps_nothing(make_gateway, headers, send):
    gateway = leave(make_gateway, headers, send, Waiting(Cancellable(RuntimeError("no"))))
    assert gateway.ledger.entries("alice")[-1].outcome == "caller_left"


def test_a_backend_that_never_comes_back_keeps_nothing(make_gateway, headers, send):
    let_go = threading.Event()

    def bot(request):
        yield "word"
        let_go.wait(30)

    gateway = leave(make_gateway, headers, send, bot)
    assert gateway.ledger.entries("alice")[-1].outcome == "caller_left"
    let_go.set()


def test_after_a_cancel_no_further_route_is_tried(make_gateway, headers, send, eventually, pumps):
    iterator = Cancellable()
    gateway = leave(make_gateway, headers, send, Waiting(iterator))
    assert iterator.closed.wait(10)
    eventually(lambda: not pumps())
    assert gateway.providers["q"].backend.requests == []


# --- the scope ----------------------------------------------------------------


@pytest.fixture
def scope():
    """A scope that knows on which thread it is entered."""
    entered = threading.local()
    everyone = []
    numbers = itertools.count()

    @contextlib.contextmanager
    def scope():
        me = (next(numbers), threading.get_ident())
        entered.depth = getattr(entered, "depth", 0) + 1
        everyone.append(me)
        try:
            yield
        finally:
            assert threading.get_ident() == me[1]
            everyone.remove(me)
            entered.depth -= 1

    scope.here = lambda: getattr(entered, "depth", 0)
    scope.everyone = everyone
    return scope


@both
def test_backends_run_inside_the_scope_on_whichever_thread(
    make_gateway, headers, send, scope, stream, eventually
):
    depths = []

    def bot(request):
        depths.append(scope.here())
        yield "one"
        depths.append(scope.here())

    gateway = make_gateway(
        providers={"p": {"backend": bot}},
        models={"bot": {"routes": ["p/x"], "input": "1", "output": "2"}},
        scope=scope,
    )
    reply = send(gateway, "POST", "/v1/chat/completions", {**BODY, "stream": stream}, headers)
    assert reply.status == 200
    assert b"one" in reply.read()
    assert depths == [1, 1]
    eventually(lambda: not scope.everyone)
    assert scope.here() == 0


@pytest.mark.parametrize("how", ["fails", "is left"])
def test_the_scope_is_left_however_the_stream_ends(
    make_gateway, headers, send, scope, eventually, how
):
    def bot(request):
        yield "word"
        if how == "fails":
            raise ValueError
        request.cancellation.wait(10)

    leave_or_fail = leave if how == "is left" else run_out
    leave_or_fail(make_gateway, headers, send, bot, scope=scope)
    eventually(lambda: not scope.everyone)


def run_out(make_gateway, headers, send, backend, **options):
    gateway = make_gateway(
        providers={"p": {"backend": backend}},
        models={"bot": {"routes": ["p/x"], "input": "1", "output": "2"}},
        **options,
    )
    body = {**BODY, "stream": True}
    *_, last, _ = send(gateway, "POST", "/v1/chat/completions", body, headers).read().split(b"\n\n")
    assert "error" in json.loads(last.removeprefix(b"data: "))


@both
def test_a_scope_that_cannot_be_entered_leaves_nothing_open(make_gateway, headers, send, stream):
    """Here it fails for the backend alone, as a database may that has just gone."""
    times = itertools.count()

    @contextlib.contextmanager
    def scope():
        if next(times) == 2:  # after authentication and admission
            raise OSError("no connection")
        yield

    gateway = make_gateway(scope=scope)
    body = {**BODY, "model": "deepseek-v3", "stream": stream}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    assert reply.status == 500
    assert reply.error["code"] == "internal_error"
    assert gateway.ledger.balance("alice").held == 0
    assert not gateway.rate_limiter._state().open
    assert gateway.ledger.entries("alice")[-1].cost == 0


def test_a_backend_may_answer_in_one_piece_by_itself(ask):
    class Whole(Backend):
        def complete(self, request):
            message = {"role": "assistant", "content": "whole"}
            return Completion(choices=[{"message": message}], usage=dict(USAGE))

    reply, row = ask(Whole())
    assert reply.json["choices"][0]["message"]["content"] == "whole"
    assert (row.prompt_tokens, row.completion_tokens) == (7, 3)


USAGE = {"prompt_tokens": 7, "completion_tokens": 3}


# --- a house on the test's clock ------------------------------------------------


class Eyes:
    """A watch that looks when the test says so."""

    def __init__(self):
        self._watched = []

    def add(self, watched):
        self._watched.append(watched)

    def remove(self, watched):
        if watched in self._watched:
            self._watched.remove(watched)

    def aside(self, job):
        job()

    def look(self):
        for watched in list(self._watched):
            watched.look()


class House:
    """A gateway, and what its last call left in the books."""

    def __init__(self, gateway, ask, rest):
        self.gateway = gateway
        self._ask = ask
        self._rest = rest

    def ask(self, environ=None, **fields):
        reply = self._ask(self.gateway, {**BODY, **fields}, environ or {})
        reply.read()
        self._rest()
        assert self.gateway.ledger.balance("alice").held == 0
        assert not self.gateway.ledger.audit()
        return reply

    def ask_meanwhile(self):
        """Another caller asks, while a call is under way."""
        return self._ask(self.gateway, BODY, {})

    def ask_often(self, times, **fields):
        return [self.ask(**fields).status for _ in range(times)]

    @property
    def row(self):
        return self.gateway.ledger.entries("alice")[-1]


@pytest.fixture
def eyes(monkeypatch):
    eyes = Eyes()
    monkeypatch.setattr("oneai_middleware.gateway.Watch", lambda: eyes)
    return eyes


@pytest.fixture
def house(make_gateway, headers, send, clock, eyes, eventually, pumps):
    """A house whose ``bot`` is served by these rows of ``providers``, or backends."""

    def house(*rows, model=None, **options):
        rows = {
            f"p{n}": row if isinstance(row, dict) else {"backend": row}
            for n, row in enumerate(rows)
        }
        bot = {"routes": [f"{name}/x" for name in rows], "input": "1", "output": "2"}
        gateway = make_gateway(
            providers=rows,
            models={"bot": {**bot, **(model or {})}},
            clock=clock,
            keep_alive=10_000,
            write_timeout=10_000,
            **options,
        )
        return House(
            gateway,
            lambda app, body, environ: send(
                app, "POST", "/v1/chat/completions", body, headers, **environ
            ),
            lambda: eventually(lambda: not pumps()),
        )

    return house


class Turns(Scripted):
    """Has items of their own for each request, the last ones for all that follow."""

    def __init__(self, *turns):
        super().__init__()
        self.turns = turns

    def stream(self, request):
        self.items = self.turns[min(len(self.requests), len(self.turns) - 1)]
        return super().stream(request)


ANSWER = ("hello", Usage(7, 3))


def asked(*backends):
    """How often each was."""
    return [len(backend.requests) for backend in backends]


# --- one more try -----------------------------------------------------------------


@both
def test_a_connection_that_broke_is_tried_once_more(house, stream):
    first, second = Turns([BackendDisconnected("reset")], ANSWER), answer()
    at = house(first, second)
    assert at.ask(stream=stream).status == 200
    assert asked(first, second) == [2, 0]
    assert (at.row.provider, at.row.cost) == ("p0", 7 * 1000 + 3 * 2000)
    before, after = first.requests
    assert before.cancellation is not after.cancellation  # one may end and the other go on


@both
def test_of_all_routes_only_the_first_is_tried_once_more(house, stream):
    broken = [Scripted(BackendDisconnected("reset")) for _ in range(3)]
    at = house(*broken)
    assert at.ask(stream=stream).status == 502
    assert asked(*broken) == [2, 1, 1]
    assert at.row.cost == 0


@both
def test_a_further_route_that_broke_is_not_tried_again(house, stream):
    busy, broken, last = (
        Scripted(BackendOverloaded("busy")),
        Turns([BackendDisconnected("reset")], ANSWER),
        answer(),
    )
    at = house(busy, broken, last)
    assert at.ask(stream=stream).status == 200
    assert asked(busy, broken, last) == [1, 1, 1]
    assert at.row.provider == "p2"


@both
@pytest.mark.parametrize(
    "failure",
    [
        *(BackendOverloaded("x"), BackendMisconfigured("x"), BackendTimeout("x")),
        *(BackendUnavailable("HTTP 500"), ZeroDivisionError(), ConnectionResetError(), object()),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_no_other_failure_is_tried_again_and_no_bug(house, failure, stream):
    first, second = Turns([failure], ANSWER), answer()
    at = house(first, second)
    assert at.ask(stream=stream).status == 200
    assert asked(first, second) == [1, 1]
    assert at.row.provider == "p1"


def test_once_something_was_given_a_connection_that_broke_stays_broken(house):
    first, second = Turns(["some words", BackendDisconnected("reset")], ANSWER), answer()
    reply = house(first, second).ask(stream=True)
    assert b"upstream_error" in reply.read()
    assert asked(first, second) == [1, 0]


@both
def test_both_tries_at_one_route_are_one_failure_of_its_provider(house, stream):
    first = Scripted(BackendDisconnected("reset"))
    at = house(first)
    assert at.ask_often(FAILURES, stream=stream) == [502] * FAILURES
    assert asked(first) == [2 * FAILURES]
    assert at.ask(stream=stream).status == 503  # it is left alone now
    assert asked(first) == [2 * FAILURES]


@both
def test_a_second_try_that_is_answered_is_no_failure_at_all(house, stream):
    turns = [[BackendDisconnected("reset")], ANSWER] * (2 * FAILURES)
    first = Turns(*turns)
    at = house(first)
    assert at.ask_often(2 * FAILURES, stream=stream) == [200] * (2 * FAILURES)
    assert asked(first) == [4 * FAILURES]


# --- time -------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("seconds", "times"), [(119, [1, 1]), (121, [1, 0])])
def test_no_further_route_is_tried_when_the_time_for_a_first_token_is_over(
    house, clock, seconds, times, stream
):
    def slow(request):
        first.requests.append(request)
        clock.advance(seconds)
        raise BackendOverloaded("busy")

    first, second = Scripted(), answer()
    first.stream = slow
    at = house(first, second)
    assert at.ask(stream=stream).status == (200 if sum(times) == 2 else 503)
    assert asked(first, second) == times


def test_nor_is_a_broken_connection_tried_once_more_then(house, clock):
    def slow(request):
        first.requests.append(request)
        clock.advance(121)
        raise BackendDisconnected("reset")

    first = Scripted()
    first.stream = slow
    at = house(first)
    assert at.ask_often(FAILURES) == [502] * FAILURES
    assert asked(first) == [FAILURES]
    assert at.ask().status == 503  # each was a failure all the same
    assert asked(first) == [FAILURES]


@both
def test_the_time_to_try_on_counts_from_the_admission_and_not_from_the_upload(house, clock, stream):
    class Slow(io.BytesIO):
        def read(self, *size):
            clock.advance(200)
            return super().read(*size)

    first, second = Scripted(BackendOverloaded("busy")), answer()
    at = house(first, second)
    body = json.dumps({**BODY, "stream": stream}).encode()
    reply = at.ask(environ={"wsgi.input": Slow(body)}, stream=stream)
    assert reply.status == 200
    assert asked(first, second) == [1, 1]


@both
@pytest.mark.parametrize(
    ("timeouts", "connect"),
    [
        ({"connect": 5, "first_token": 20, "total": 40}, 5),
        ({"connect": 30, "first_token": 20, "total": 40}, 20),
        ({"connect": 30, "first_token": 60, "total": 10}, 10),
    ],
)
def test_a_connection_may_not_take_longer_than_what_is_to_come_over_it(
    house, timeouts, connect, stream
):
    bot = answer()
    assert house({"backend": bot, "timeouts": timeouts}).ask(stream=stream).status == 200
    given = bot.requests[0].timeouts
    assert given.connect == connect
    assert (given.first_token, given.total) == (timeouts["first_token"], timeouts["total"])


@pytest.mark.parametrize(
    ("stream", "timeouts", "said"),
    [
        (True, {"first_token": 30}, "no first token in 30 s"),
        (True, {"total": 30}, "the whole answer took over 30 s"),
        (False, {"total": 30}, "the whole answer took over 30 s"),
    ],
)
def test_a_provider_that_is_late_by_its_own_deadline_is_followed_by_the_next_route(
    house, clock, eyes, caplog, stream, timeouts, said
):
    def slow(request):
        clock.advance(29)
        eyes.look()
        assert not request.cancellation.cancelled
        clock.advance(2)
        eyes.look()
        assert request.cancellation.wait(0)
        raise BackendUnavailable("cancelled")
        yield

    second = answer()
    at = house({"backend": slow, "timeouts": timeouts}, second)
    reply = at.ask(stream=stream)
    assert (reply.status, asked(second)) == (200, [1])
    assert b"hello" in reply.read()
    assert (at.row.provider, at.row.cost) == ("p1", 7 * 1000 + 3 * 2000)
    assert f"provider p0 failed: upstream_timeout: {said}; trying on" in caplog.text


@both
def test_a_backend_that_does_not_come_back_is_not_waited_for(house, clock, eyes, stream):
    def stubborn(request):
        clock.advance(31)
        eyes.look()
        clock.advance(Timeouts().connect + GRACE)
        eyes.look()
        clock.advance(0.1)
        eyes.look()
        yield "too late"

    second = answer()
    limit = {"first_token": 30} if stream else {"total": 30}
    at = house({"backend": stubborn, "timeouts": limit}, second)
    reply = at.ask(stream=stream)
    assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")
    assert asked(second) == [0]
    assert (at.row.provider, at.row.cost) == ("p0", 0)


def test_all_routes_together_have_the_calls_own_time(house, clock, eyes):
    def slow(request):
        clock.advance(70)
        eyes.look()
        if request.cancellation.cancelled:
            raise BackendUnavailable("cancelled")
        raise BackendOverloaded("busy")
        yield

    third = answer()
    reply = house(slow, slow, third).ask(stream=True)
    assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")
    assert asked(third) == [0]


# --- providers that are left alone ------------------------------------------------


@both
def test_a_provider_that_keeps_failing_is_passed_over_until_a_probe_is_answered(
    house, clock, stream
):
    first = Turns(*[[BackendOverloaded("busy")]] * (FAILURES + 1), ANSWER)
    second = answer()
    at = house({"backend": first, "cooldown": 4}, second)
    assert at.ask_often(FAILURES + 3, stream=stream) == [200] * (FAILURES + 3)
    assert asked(first, second) == [FAILURES, FAILURES + 3]
    clock.advance(4)
    assert at.ask_often(2, stream=stream) == [200] * 2
    assert asked(first, second) == [FAILURES + 1, FAILURES + 5]
    clock.advance(8)
    assert at.ask_often(3, stream=stream) == [200] * 3
    assert asked(first, second) == [FAILURES + 4, FAILURES + 5]
    assert at.row.provider == "p0"


@both
def test_the_route_that_is_asked_first_is_tried_once_more_whichever_it_is(house, stream):
    first, second = Scripted(BackendOverloaded("busy")), Scripted(BackendDisconnected("reset"))
    at = house(first, {"backend": second, "cooldown": 0})
    at.ask_often(FAILURES, stream=stream)
    assert asked(first, second) == [FAILURES, FAILURES]
    assert at.ask(stream=stream).status == 502
    assert asked(first, second) == [FAILURES, FAILURES + 2]


@both
def test_a_probe_whose_connection_broke_is_repeated_and_is_one_probe(house, clock, stream):
    """It may well be one that was idle for the length of the pause."""
    first, second = Scripted(BackendDisconnected("reset")), answer()
    at = house(first, second)
    at.ask_often(FAILURES, stream=stream)
    for pause in (2, 4, 8):
        clock.advance(pause - 0.5)
        times = len(first.requests)
        at.ask(stream=stream)
        assert len(first.requests) == times
        clock.advance(0.5)
        at.ask_often(3, stream=stream)
        assert len(first.requests) == times + 2


@both
def test_when_all_are_left_alone_the_caller_is_told_when_the_first_is_tried(house, clock, stream):
    busy = [Scripted(BackendOverloaded("busy")) for _ in range(2)]
    at = house(
        {"backend": busy[0], "cooldown": 10},
        {"backend": busy[1], "cooldown": 4},
    )
    at.ask_often(FAILURES, stream=stream)
    for waited, told in ((0, "4"), (1.5, "3")):
        clock.advance(waited)
        reply = at.ask(stream=stream)
        assert (reply.status, reply.error["code"]) == (503, "model_overloaded")
        assert reply.headers["retry-after"] == told
        assert at.row.cost == 0
    assert asked(*busy) == [FAILURES] * 2


@both
@pytest.mark.parametrize(
    "failure", [BackendMisconfigured("HTTP 401"), InvalidRequest("no such voice")]
)
def test_a_provider_that_answers_at_once_and_says_no_is_never_left_alone(house, failure, stream):
    first = Scripted(failure)
    at = house(first, answer())
    at.ask_often(2 * FAILURES, stream=stream)
    assert asked(first) == [2 * FAILURES]


@both
def test_what_is_the_callers_fault_shows_that_a_provider_answers_again(house, clock, stream):
    busy = [BackendOverloaded("busy")]
    first = Turns(*[busy] * FAILURES, [InvalidRequest("no such voice")], *[busy] * FAILURES)
    at = house(first)
    at.ask_often(FAILURES, stream=stream)
    clock.advance(2)
    assert at.ask_often(1 + FAILURES, stream=stream) == [400] + [503] * FAILURES
    assert asked(first) == [2 * FAILURES + 1]


def test_once_a_probe_gives_output_everybody_else_may_ask_too(house, clock):
    def bot(request):
        first.requests.append(request)
        if len(first.requests) <= FAILURES:
            raise BackendOverloaded("busy")
        if len(first.requests) == FAILURES + 1:  # the probe
            seen.append(at.ask_meanwhile())
            yield "word"
            seen.append(at.ask_meanwhile())
        yield "word"

    first, seen = Scripted(), []
    first.stream = bot
    at = house(first)
    at.ask_often(FAILURES)
    clock.advance(2)
    assert at.ask(stream=True).status == 200
    before, after = seen
    assert (before.status, before.headers["retry-after"]) == (503, "1")
    assert after.status == 200


@both
@pytest.mark.parametrize(("asked_for", "pause"), [(None, 0.5), (0.2, 0.5), (30, 30)])
def test_only_a_wait_that_the_provider_asked_for_makes_the_pause_longer(
    house, clock, asked_for, pause, stream
):
    first = Scripted(BackendOverloaded("busy", retry_after=asked_for))
    at = house({"backend": first, "cooldown": 0.5})
    at.ask_often(FAILURES, stream=stream)
    clock.advance(pause - 0.01)
    at.ask(stream=stream)
    assert asked(first) == [FAILURES]
    clock.advance(0.01)
    at.ask(stream=stream)
    assert asked(first) == [FAILURES + 1]


def test_a_provider_with_a_bug_is_left_alone_like_any_other(house):
    first, second = Scripted(ZeroDivisionError()), answer()
    at = house(first, second)
    at.ask_often(FAILURES + 1)
    assert asked(first, second) == [FAILURES, FAILURES + 1]


def test_answers_that_break_in_the_middle_count_as_failures(house):
    first, second = Scripted("some words", BackendUnavailable("reset")), answer()
    at = house(first, second)
    at.ask_often(FAILURES + 1, stream=True)
    assert asked(first, second) == [FAILURES, 1]


@pytest.mark.parametrize(
    ("timeouts", "seconds"), [({"first_token": 30}, 31), ({}, 121)], ids=["its own", "the call's"]
)
def test_a_provider_that_never_gives_a_first_token_is_left_alone(
    house, clock, eyes, timeouts, seconds
):
    def silent(request):
        first.requests.append(request)
        clock.advance(seconds)
        eyes.look()
        assert request.cancellation.cancelled
        raise BackendUnavailable("cancelled")

    first = Scripted()
    first.stream = silent
    at = house({"backend": first, "timeouts": timeouts}, answer())
    at.ask_often(FAILURES + 1, stream=True)
    assert asked(first) == [FAILURES]


def test_a_provider_that_falls_silent_in_the_middle_is_left_alone(house, clock, eyes):
    def falls_silent(request):
        first.requests.append(request)
        yield "some words"
        clock.advance(61)
        eyes.look()
        assert request.cancellation.cancelled
        raise BackendUnavailable("cancelled")

    first = Scripted()
    first.stream = falls_silent
    at = house(first, answer())
    at.ask_often(FAILURES + 1, stream=True)
    assert asked(first) == [FAILURES]


def test_callers_who_leave_say_nothing_about_a_provider(
    make_gateway, headers, send, clock, eventually, pumps
):
    requests = []

    def bot(request):
        requests.append(request)
        yield "word"
        assert request.cancellation.wait(10)
        raise BackendUnavailable("cancelled")

    gateway = leave(make_gateway, headers, send, bot, clock=clock)
    for _ in range(FAILURES):
        eventually(lambda: not pumps())
        body = {**BODY, "stream": True}
        reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
        assert b"word" in next(reply)
        reply.close()
    assert len(requests) == FAILURES + 1


# --- which route is the first -----------------------------------------------------


def orders(routes, calls):
    """In which order so many calls try these routes, while every one of them fails."""
    asked = []

    def failing(name):
        def bot(request):
            asked[-1].append(name)
            raise BackendOverloaded("busy")

        backend = Backend()
        backend.stream = bot
        return Provider(name, backend, Timeouts(), cooldown=0)

    dispatch = Dispatch(
        {route.provider: failing(route.provider) for route in routes},
        scope=contextlib.nullcontext,
        patience=1,
        clock=lambda: 0.0,
        choice=random.Random(7),
    )
    admission = Admission(
        Model("bot", "us", 1, None, None, Price(1, 1), tuple(routes)), None, None, 1, False
    )
    request = ChatRequest(BODY)
    for _ in range(calls):
        asked.append([])
        call = Call("req_1", "POST", "/", 0.0, caller=Caller(Account("alice")), request=request)
        with pytest.raises(BackendOverloaded):
            dispatch.complete(call, request, admission, Cancellation())
    return [tuple(order) for order in asked]


def test_routes_of_one_rank_are_first_as_often_as_their_weights_say():
    routes = [Route("a", "x", 0, 5), Route("b", "x", 0, 3), Route("c", "x", 0, 2)]
    tried = orders(routes, 2000)
    assert {tuple(sorted(order)) for order in tried} == {("a", "b", "c")}
    firsts = Counter(first for first, *_ in tried)
    for name, share in {"a": 0.5, "b": 0.3, "c": 0.2}.items():
        assert firsts[name] / 2000 == pytest.approx(share, abs=0.03)
    seconds = Counter(second for first, second, _ in tried if first == "a")
    assert seconds["b"] / firsts["a"] == pytest.approx(3 / 5, abs=0.05)


def test_every_route_of_a_rank_comes_before_the_next_rank():
    routes = [
        *(Route("a", "x", 0), Route("b", "x", 1, 1), Route("c", "x", 1, 100)),
        *(Route("d", "x", 2), Route("e", "x", 3)),
    ]
    tried = Counter(orders(routes, 500))
    assert set(tried) == {("a", "b", "c", "d", "e"), ("a", "c", "b", "d", "e")}
    assert tried["a", "c", "b", "d", "e"] > 450


def test_without_weights_the_order_is_always_that_of_the_settings():
    routes = [Route(name, "x", rank) for rank, name in enumerate("abcd")]
    assert set(orders(routes, 50)) == {tuple("abcd")}


# --- what the provider did not get as the caller gave it --------------------------


def told(reply):
    """What the reply says of it."""
    return {name: text for name, text in reply.headers.items() if name.startswith("x-oneai-")}


class Adjusting(Scripted):
    """Cannot send some parameters as they are."""

    def __init__(self, *items, **adjusted):
        super().__init__(*items)
        self.adjusted = adjusted

    def stream(self, request):
        request.adjusted.update(self.adjusted)
        return super().stream(request)


@both
def test_the_caller_is_told_which_parameters_were_changed_or_dropped(house, stream):
    bot = Adjusting(*ANSWER, temperature="changed", seed="dropped", logprobs="dropped")
    fields = {"temperature": 2, "seed": 1, "logprobs": True}
    reply = house(bot).ask(stream=stream, **fields)
    assert told(reply) == {"x-oneai-changed": "temperature", "x-oneai-dropped": "seed, logprobs"}


@both
def test_of_parameters_that_went_as_they_were_nothing_is_said(house, stream):
    assert told(house(answer()).ask(stream=stream, temperature=1, max_tokens=10)) == {}


@both
def test_only_the_provider_that_answered_is_spoken_of(house, stream):
    first = Adjusting(BackendOverloaded("busy"), temperature="changed", seed="dropped")
    second = Adjusting(*ANSWER, top_p="changed")
    fields = {"temperature": 2, "seed": 1, "top_p": 0.5}
    reply = house(first, second).ask(stream=stream, **fields)
    assert told(reply) == {"x-oneai-changed": "top_p"}


LITTLE = {"balance": "0.0002"}


@both
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_bound_that_the_balance_lowered_is_spoken_of_as_changed(house, name, stream):
    at = house(Adjusting(*ANSWER, seed="changed"), account=LITTLE)
    reply = at.ask(stream=stream, seed=1, **{name: 1000})
    assert told(reply) == {"x-oneai-changed": f"{name}, seed"}


@both
def test_a_bound_that_the_caller_did_not_give_is_not_spoken_of(house, stream):
    bot = answer()
    assert told(house(bot, account=LITTLE).ask(stream=stream)) == {}
    assert bot.requests[0].max_tokens < 100


@both
def test_a_default_of_the_model_is_no_parameter_of_the_callers(house, stream):
    bot = answer()
    model = {"defaults": {"max_tokens": 1000}}
    assert told(house(bot, account=LITTLE, model=model).ask(stream=stream)) == {}
    assert bot.requests[0].max_tokens < 100
