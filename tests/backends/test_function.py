import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from oneai_middleware.backends.function import FunctionBackend
from oneai_middleware.errors import BackendOverloaded, ConfigurationError, InvalidRequest
from oneai_middleware.protocol.chat import ChatRequest, Chunk
from oneai_middleware.protocol.usage import Usage

BODY = {"model": "bot", "messages": [{"role": "user", "content": "what is new?"}]}


@pytest.fixture
def ask(make_gateway, headers, send):
    """Ask a gateway whose ``bot`` is this function; reply and last row of the books."""

    def ask(function, *, stream=False, **fields):
        gateway = make_gateway(
            providers={"shop": {"backend": function}},
            models={"bot": {"routes": ["shop/up"], "input": "1", "output": "2"}},
        )
        body = {**BODY, **fields, "stream": stream}
        reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
        reply.read()
        assert not gateway.ledger.audit()
        assert gateway.ledger.balance("alice").held == 0
        assert not gateway.rate_limiter._state().open
        return reply, gateway.ledger.entries("alice")[-1]

    return ask


def content(reply):
    """The text of an answer, streamed or not."""
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return reply.json["choices"][0]["message"]["content"]
    *events, done, rest = reply.read().split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])


both = pytest.mark.parametrize("stream", [False, True])

ANSWERS = {
    "a text": lambda request: "Sales are up.",
    "pieces": lambda request: iter(["Sales ", "are up."]),
    "a list": lambda request: ["Sales ", "are up."],
    "chunks": lambda request: [Chunk.text("Sales are up."), Chunk.finish()],
    "signs of life": lambda request: [None, "Sales ", None, "are up."],
}


@both
@pytest.mark.parametrize("name", ANSWERS)
def test_a_function_answers_in_whatever_form_it_likes(ask, name, stream):
    reply, row = ask(ANSWERS[name], stream=stream)
    assert content(reply) == "Sales are up."
    assert row.estimated
    assert row.completion_tokens > 0
    assert (row.outcome, row.provider) == ("answered", "shop")


@both
def test_a_function_may_say_what_it_took(ask, stream):
    def bot(request):
        yield "Hello"
        yield Usage(100, 10, cached_tokens=40)

    reply, row = ask(bot, stream=stream)
    assert content(reply) == "Hello"
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (100, 10, 40)
    assert row.cost == 100 * 1000 + 10 * 2000
    assert not row.estimated


@both
def test_a_function_that_says_nothing_gives_an_empty_answer(ask, stream):
    reply, row = ask(lambda request: [], stream=stream)
    assert content(reply) == ""
    assert row.completion_tokens == 0


@both
def test_a_function_sees_who_asks_what(ask, stream):
    seen = []

    def bot(request):
        seen.append(request)
        return "ok"

    _, row = ask(bot, stream=stream, temperature=1, vendor="x")
    (request,) = seen
    assert request.caller.account.name == "alice"
    assert request.caller.key.id == row.key
    assert request.request_id == row.request_id
    assert request.model == "up"
    assert request.text_of_last_user() == "what is new?"
    assert request.body["vendor"] == "x"


@both
@pytest.mark.parametrize("raised", [ValueError("their secret"), KeyError("x"), StopIteration()])
def test_a_function_that_raises_is_a_502_and_costs_nothing(ask, raised, stream):
    def bot(request):
        raise raised

    reply, row = ask(bot, stream=stream)
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert b"secret" not in reply.read()
    assert (row.cost, row.outcome) == (0, "upstream_error")


@both
@pytest.mark.parametrize("answer", [None, 42, object()])
def test_a_function_that_returns_no_answer_is_a_502(ask, answer, stream):
    reply, row = ask(lambda request: answer, stream=stream)
    assert reply.error["code"] == "upstream_error"
    assert row.cost == 0


@both
@pytest.mark.parametrize("item", [b"bytes", 42, {"choices": []}, ["nested"]])
def test_a_function_that_gives_what_is_no_item_fails_and_costs_nothing(ask, item, stream):
    reply, row = ask(lambda request: [item], stream=stream)
    assert reply.error["code"] == "upstream_error"
    assert row.cost == 0


@both
def test_text_that_cannot_be_written_fails_and_costs_nothing(ask, stream):
    reply, row = ask(lambda request: "\ud800", stream=stream)
    assert reply.error["code"] == "upstream_error"
    assert row.cost == 0


@both
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BackendOverloaded("the index is down"), 503, "model_overloaded"),
        (InvalidRequest("Ask about sales.", param="messages"), 400, "invalid_value"),
    ],
)
def test_a_function_may_refuse_with_an_error_of_ours(ask, error, status, code, stream):
    def bot(request):
        raise error

    reply, row = ask(bot, stream=stream)
    assert (reply.status, reply.error["code"]) == (status, code)
    assert (row.cost, row.outcome) == (0, code)


def test_a_function_that_fails_in_mid_stream_is_paid_for_what_it_said(ask):
    def bot(request):
        yield "some words"
        raise ValueError

    reply, row = ask(bot, stream=True)
    *_, last, rest = reply.read().split(b"\n\n")
    assert rest == b""
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
    assert row.cost == row.prompt_tokens * 1000 + row.completion_tokens * 2000
    assert row.completion_tokens > 0


def test_a_function_that_exits_ends_its_own_call_only(ask):
    def bot(request):
        yield "some words"
        raise SystemExit(1)

    reply, row = ask(bot, stream=True)
    *_, last, _ = reply.read().split(b"\n\n")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "internal_error"
    assert row.outcome == "internal_error"


def test_a_function_has_no_options():
    with pytest.raises(ConfigurationError, match="speed"):
        FunctionBackend(lambda request: "x", speed=1)


def test_a_cancel_reaches_the_iterator_of_an_answer_in_one_piece():
    class Waiting:
        def __init__(self):
            self.cancelled = threading.Event()

        def __iter__(self):
            return self

        def __next__(self):
            assert self.cancelled.wait(10)
            raise StopIteration

        def cancel(self):
            self.cancelled.set()

    waiting = Waiting()
    request = ChatRequest({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(FunctionBackend(lambda request: waiting).complete, request)
        request.cancellation.cancel()
        assert answer.result(10).choices[0]["message"]["content"] == ""
