import contextlib
import itertools
import json
import threading

import pytest

from oneai_middleware.backends.base import Backend
from oneai_middleware.errors import (
    BackendMisconfigured,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    ContentRefused,
    InvalidRequest,
)
from oneai_middleware.protocol.chat import Chunk, Completion
from oneai_middleware.protocol.usage import Usage

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


FAILURES = [BackendOverloaded, BackendMisconfigured, BackendUnavailable, BackendTimeout]


@both
@pytest.mark.parametrize("failure", FAILURES)
def test_a_route_that_fails_before_any_output_is_followed_by_the_next(ask, failure, stream):
    first, second, third = Scripted(failure("x")), answer(), answer()
    reply, row = ask(first, second, third, stream=stream)
    assert reply.status == 200
    assert b"hello" in reply.read()
    assert [len(backend.requests) for backend in (first, second, third)] == [1, 1, 0]
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
def test_the_callers_stream_is_closed_whatever_happens(ask, stream):
    for items in ([], ["x"], [BackendUnavailable("x")], ["x", ValueError()]):
        backend = Scripted(*items)
        ask(backend, stream=stream)
        assert backend.closed == 1


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
