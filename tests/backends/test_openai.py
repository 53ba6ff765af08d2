"""The openai backend between a caller and a provider on a real port."""

import gzip
import io
import json
import threading
from types import SimpleNamespace

import pytest
import requests
import urllib3

from oneai_middleware.backends.openai import OpenAIBackend
from oneai_middleware.backends.openai.transports import TRANSPORTS
from oneai_middleware.errors import (
    BackendMisconfigured,
    BackendUnavailable,
    ConfigurationError,
)
from oneai_middleware.protocol.chat import ChatRequest

HELLO = [{"role": "user", "content": "hello there"}]
BAD_ANSWERS = {
    "html": (b"<html>busy</html>", "text/html"),
    "nothing": (b"", "application/json"),
    "half": (b'{"choices": [', "application/json"),
    "a list": (b"[]", "application/json"),
    "no choices": (b'{"id": "1", "object": "chat.completion"}', "application/json"),
    "empty choices": (b'{"choices": []}', "application/json"),
    "null choices": (b'{"choices": null}', "application/json"),
    "choices without a message": (b'{"choices": [{"index": 0}]}', "application/json"),
    "not UTF-8": (b'{"choices": [{"message": {"content": "\xff"}}]}', "application/json"),
    "base_resp": (
        b'{"base_resp": {"status_code": 1002, "status_msg": "rate limit"}, "choices": null}',
        "application/json",
    ),
}


@pytest.fixture
def transport():
    """The one by default, unless a test is held over each."""
    return "requests"


over_each = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture
def gateway(make_gateway, asking_provider, transport):
    asking_provider["providers"]["scripted"]["transport"] = transport
    return make_gateway(**asking_provider)


@pytest.fixture
def ask(gateway, headers, send):
    """Ask the gateway's ``bot``."""

    def ask(*, stream=False, messages=HELLO, more_headers=None, **fields):
        body = {"model": "bot", "messages": messages, **fields}
        if stream:
            body["stream"] = True
        return send(gateway, "POST", "/v1/chat/completions", body, headers | (more_headers or {}))

    return ask


@pytest.fixture
def books(gateway):
    """The last row of alice's books, which must add up."""

    def books():
        assert not gateway.ledger.audit()
        return gateway.ledger.entries("alice")[-1]

    return books


@pytest.fixture
def nothing_is_left_open(gateway):
    """At the end no call holds money, a slot or a place."""
    yield
    assert gateway.ledger.balance("alice").held == 0
    assert not gateway.rate_limiter._state().open
    assert not gateway.ledger.audit()


pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


def data_of(body):
    """What the events of a stream say; anything but ``data:`` events is an error."""
    *events, rest = body.split(b"\n\n")
    assert rest == b""
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [event.removeprefix(b"data: ") for event in events]


def chunks_of(body):
    """The chunks of a stream that must be complete."""
    *chunks, last = data_of(body)
    assert last == b"[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def text_of(chunks):
    return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])


def saying(*lines, end=""):
    """A provider that sends these events, each as it stands, and closes."""

    def respond(turn):
        turn.start_stream()
        for line in lines:
            turn.raw(line if isinstance(line, bytes) else f"data: {json.dumps(line)}\n\n".encode())
        turn.raw(end.encode())

    return respond


def piece(text=None, finish=None, **fields):
    delta = {} if text is None else {"content": text}
    return {
        "id": "up",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **fields,
    }


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
DONE = b"data: [DONE]\n\n"


# --- what goes upstream -------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_fields_reach_the_provider_as_they_are(ask, provider, stream):
    """Conformance 43, 44."""
    extras = {
        "thinking": {"type": "enabled", "budget": None},
        "enable_thinking": False,
        "top_k": 4,
        "chat_template_kwargs": {"a": [1, {"b": None}]},
        "Ünknown field": "ß\u2028",
    }
    ask(stream=stream, temperature=0, **extras).read()
    sent = provider.turns[0].json
    assert {name: sent[name] for name in extras} == extras
    assert sent["temperature"] == 0
    assert sent["model"] == "up/bot"
    assert sent["messages"] == HELLO


def test_only_what_was_asked_is_sent(ask, provider):
    ask(max_tokens=5)
    assert provider.turns[0].json == {
        "model": "up/bot",
        "messages": HELLO,
        "max_tokens": 5,
        "stream": False,
    }


def test_null_fields_are_not_forwarded(ask, provider):
    """Conformance 45."""
    ask(max_tokens=None, tools=None, stop=None, stream_options=None, vendor=None)
    assert set(provider.turns[0].json) == {"model", "messages", "stream"}


def test_fields_that_steer_other_gateways_stop_here(ask, provider):
    ask(
        api_key="sk-mine",
        api_base="http://evil.example",
        base_url="http://evil.example",
        extra_headers={"Authorization": "x"},
        extra_body={"api_key": "x"},
        fallbacks=["other"],
        mock_response="free!",
    )
    assert set(provider.turns[0].json) == {"model", "messages", "stream"}


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (None, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_usage": True, "vendor": 1}, {"include_usage": True, "vendor": 1}),
        ({"include_obfuscation": True}, {"include_usage": True}),
    ],
)
def test_a_stream_always_asks_for_its_usage(ask, provider, options, sent):
    """Conformance 67."""
    ask(stream=True, stream_options=options).read()
    assert provider.turns[0].json["stream"] is True
    assert provider.turns[0].json["stream_options"] == sent


def test_messages_of_every_kind_pass_untouched(ask, provider):
    """Conformance 47, 48."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "vendor", "x": 1}]},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    assert ask(messages=messages).status == 200
    assert provider.turns[0].json["messages"] == messages


@over_each
@pytest.mark.parametrize("stream", [False, True])
def test_only_our_own_headers_go_upstream(ask, provider, secret, stream):
    """Conformance 14."""
    of_the_caller = {
        "Cookie": "session=1",
        "OpenAI-Organization": "org-1",
        "OpenAI-Project": "p",
        "x-stainless-lang": "python",
        "x-stainless-retry-count": "1",
        "X-Forwarded-For": "10.0.0.1",
        "X-Client-Request-Id": "mine",
        "traceparent": "00-1-1-00",
        "Accept-Encoding": "gzip",
        "User-Agent": "OpenAI/Python",
        "x-api-key": secret,
    }
    ask(stream=stream, more_headers=of_the_caller).read()
    turn = provider.turns[0]
    assert {name.lower(): value for name, value in turn.headers} == {
        "host": provider.url.removeprefix("http://").removesuffix("/v1"),
        "authorization": "Bearer sk-upstream-secret",
        "content-type": "application/json",
        "content-length": str(len(turn.body)),
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "user-agent": "oneai_middleware",
    }
    assert len(turn.headers) == 7
    assert turn.path == "/v1/chat/completions"
    assert secret.encode() not in turn.body


def test_the_operators_headers_go_along_and_without_a_key_there_is_none(
    make_gateway, provider, headers, send
):
    gateway = make_gateway(
        providers={"own": {"base_url": provider.url + "/", "headers": {"api-key": "azure"}}},
        models={"bot": {"routes": ["own/x"], "input": "1", "output": "1"}},
    )
    body = {"model": "bot", "messages": HELLO}
    assert send(gateway, "POST", "/v1/chat/completions", body, headers).status == 200
    turn = provider.turns[0]
    sent = {name.lower(): value for name, value in turn.headers}
    assert sent["api-key"] == "azure"
    assert "authorization" not in sent
    assert turn.path == "/v1/chat/completions"


@over_each
def test_the_environment_has_no_say(ask, provider, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login eve password wrong\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    netrc.rename(tmp_path / ".netrc")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert ask().status == 200
    assert ("Authorization", "Bearer sk-upstream-secret") in provider.turns[0].headers


@over_each
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(ask, provider, status, books):
    elsewhere = {"Location": provider.url + "/elsewhere"}
    provider.respond = lambda turn: turn.answer({}, status, elsewhere)
    assert ask().error["code"] == "upstream_error"
    assert ask(stream=True).error["code"] == "upstream_error"
    assert {turn.path for turn in provider.turns} == {"/v1/chat/completions"}
    assert books().cost == 0


@over_each
def test_a_cookie_is_not_carried_to_the_next_call(ask, provider, completion):
    """Conformance 13."""
    cookie = {"Set-Cookie": "who=alice; Path=/"}
    provider.respond = lambda turn: turn.answer(completion("x"), headers=cookie)
    first, second = ask(), ask()
    assert (first.status, second.status) == (200, 200)
    assert "set-cookie" not in first.headers
    assert "cookie" not in {name.lower() for name, _ in provider.turns[1].headers}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [200, 400, 429])
def test_the_providers_headers_stay_with_us(ask, provider, completion, stream, status):
    """Conformance 13."""
    theirs = {
        "Set-Cookie": "a=b",
        "x-ratelimit-remaining-requests": "-7",
        "x-ratelimit-limit-tokens": "-7",
        "x-request-id": "theirs",
        "openai-organization": "our-account",
        "Keep-Alive": "timeout=5",
        "Via": "1.1 inside",
    }

    def respond(turn):
        if stream and status == 200:
            turn.start_stream(theirs)
            turn.text("hi", "stop")
            turn.event("[DONE]")
        else:
            turn.answer(completion("hi"), status, theirs)

    provider.respond = respond
    reply = ask(stream=stream)
    reply.read()
    assert {"set-cookie", "server", "date", "keep-alive", "via", "openai-organization"}.isdisjoint(
        reply.headers
    )
    assert reply.headers["x-ratelimit-remaining-requests"] == "199"
    assert reply.headers["x-ratelimit-limit-tokens"] == "2000000"
    assert reply.headers["x-request-id"].startswith("req_")
    names = [name.lower() for name, _ in reply.header_list]
    assert len(names) == len(set(names))


# --- an answer in one piece ---------------------------------------------------


def test_an_answer_is_ours_in_id_and_model_and_theirs_in_all_else(ask, provider, completion, books):
    """Conformance 29, 50, 51, 52."""
    answer = completion("hi", system_fingerprint="fp", citations=["a"])
    answer["choices"][0]["message"]["reasoning_content"] = "thought"
    answer["choices"][0]["vendor"] = {"x": None}
    provider.respond = lambda turn: turn.answer(answer)
    reply = ask()
    said = reply.json
    assert reply.status == 200
    assert said["model"] == "bot"
    assert said["object"] == "chat.completion"
    assert isinstance(said["created"], int)
    assert said["id"].startswith("chatcmpl-")
    assert said["choices"][0]["message"] == {
        "role": "assistant",
        "content": "hi",
        "reasoning_content": "thought",
    }
    assert (said["system_fingerprint"], said["citations"]) == ("fp", ["a"])
    assert said["choices"][0]["vendor"] == {"x": None}
    usage = said["usage"]
    assert [usage[f"{n}_tokens"] for n in ("prompt", "completion", "total")] == [7, 3, 10]
    row = books()
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (7, 3, False)
    assert (row.cost, row.outcome, row.provider) == (7 * 1000 + 3 * 2000, "answered", "scripted")


def test_tool_calls_carry_their_arguments_as_text(ask, provider, completion):
    """Conformance 53."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    answer = completion("")
    answer["choices"][0] |= {
        "message": {"role": "assistant", "content": None, "tool_calls": [call]},
        "finish_reason": "stop",
    }
    provider.respond = lambda turn: turn.answer(answer)
    choice = ask().json["choices"][0]
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert choice["finish_reason"] == "tool_calls"


def test_blank_lines_before_the_json_are_skipped(ask, provider, completion):
    """Conformance 54."""

    def respond(turn):
        body = json.dumps(completion("late")).encode()
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
        turn.raw(head.format(len(body) + 6).encode())
        for _ in range(3):
            turn.raw(b"\r\n")
        turn.raw(body)

    provider.respond = respond
    assert ask().json["choices"][0]["message"]["content"] == "late"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_that_is_none_is_a_502_and_costs_nothing(ask, provider, books, name, stream):
    """Conformance 55, 56."""
    body, kind = BAD_ANSWERS[name]
    provider.respond = lambda turn: turn.answer(body, headers={"Content-Type": kind})
    reply = ask(stream=stream)
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert b"rate limit" not in reply.read()
    assert (books().cost, books().outcome) == (0, "upstream_error")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ({"message": "no", "code": 429}, 503, "model_overloaded"),
        ({"message": "no", "code": 401}, 503, "provider_unavailable"),
        ({"message": "no", "code": "whatever"}, 502, "upstream_error"),
        ("plain text", 502, "upstream_error"),
    ],
)
def test_an_error_inside_a_200_is_the_error_it_is(
    ask, provider, books, stream, error, status, code
):
    """Conformance 55."""
    provider.respond = lambda turn: turn.answer({"error": error})
    reply = ask(stream=stream)
    assert (reply.status, reply.error["code"]) == (status, code)
    assert books().cost == 0


def test_an_answer_without_usage_is_estimated_and_flagged(ask, provider, completion, books):
    """Conformance 103."""
    answer = completion("three words here")
    del answer["usage"]
    provider.respond = lambda turn: turn.answer(answer)
    usage = ask().json["usage"]
    row = books()
    assert row.estimated
    assert row.completion_tokens > 0
    assert row.prompt_tokens > 0
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (
        row.prompt_tokens,
        row.completion_tokens,
    )
    assert row.cost == row.prompt_tokens * 1000 + row.completion_tokens * 2000


def test_a_usage_of_zero_is_a_zero(ask, provider, completion, books):
    zero = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    provider.respond = lambda turn: turn.answer(completion("a gift", usage=zero))
    assert ask().status == 200
    assert (books().cost, books().estimated) == (0, False)


@over_each
def test_a_compressed_answer_is_read_all_the_same(ask, provider, completion):
    text = "word " * 50_000
    packed = gzip.compress(json.dumps(completion(text)).encode())
    provider.respond = lambda turn: turn.answer(packed, headers={"Content-Encoding": "gzip"})
    assert ask().json["choices"][0]["message"]["content"] == text


# --- a stream -----------------------------------------------------------------


def test_a_stream_is_a_stream_of_clean_events(ask, provider):
    """Conformance 57, 58, 60, 61, 62, 64."""
    roles = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    provider.respond = saying(
        roles,
        piece("hel", model="theirs", id="a", created=5),
        {**piece("lo"), "choices": [{"index": 0, "delta": {"role": "assistant", "content": "lo"}}]},
        piece(finish="stop", usage=USAGE, id="b"),
        {"choices": [], "usage": USAGE},
        DONE,
    )
    reply = ask(stream=True)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert "no-transform" in reply.headers["cache-control"]
    assert reply.headers["x-accel-buffering"] == "no"
    assert "content-length" not in reply.headers
    chunks = chunks_of(reply.read())
    for name in ("id", "created", "model", "object"):
        assert len({chunk[name] for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["model"] == "bot"
    assert b"usage" not in reply.read()
    assert all(chunk["choices"] for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert sum("role" in choice["delta"] for choice in choices) == 1
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert reasons == ["stop"]
    assert text_of(chunks) == "hello"


@over_each
def test_the_first_event_goes_out_before_the_second_has_come(ask, provider):
    """Conformance 59."""
    seen = threading.Event()

    def respond(turn):
        turn.start_stream()
        turn.text("one")
        assert seen.wait(10)
        turn.text("two", "stop")
        turn.event("[DONE]")

    provider.respond = respond
    reply = ask(stream=True)
    first = next(reply)
    seen.set()
    assert b'"one"' in first
    assert b'"two"' in reply.read()


PLACES_OF_USAGE = {
    "an extra chunk": [piece("hi", "stop"), {"choices": [], "usage": USAGE}],
    "the finish chunk": [piece("hi"), piece(finish="stop", usage=USAGE)],
    "the choice": [
        piece("hi"),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]},
    ],
    "every chunk, growing": [
        piece("h", usage={"prompt_tokens": 7, "completion_tokens": 1}),
        piece("i", usage={"prompt_tokens": 7, "completion_tokens": 2}),
        piece(finish="stop", usage=USAGE),
    ],
    "beside nulls": [piece("hi", usage=None), piece(finish="stop", usage=USAGE)],
}


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("place", PLACES_OF_USAGE)
def test_usage_is_found_wherever_the_provider_puts_it(ask, provider, books, place, asked):
    """Conformance 64, 65, 66."""
    provider.respond = saying(*PLACES_OF_USAGE[place], DONE)
    reply = ask(stream=True, stream_options={"include_usage": asked})
    chunks = chunks_of(reply.read())
    if asked:
        *before, last = chunks
        assert all(chunk["usage"] is None and chunk["choices"] for chunk in before)
        assert last["choices"] == []
        assert {name: last["usage"][name] for name in USAGE} == USAGE
    else:
        assert b"usage" not in reply.read()
        assert all(chunk["choices"] for chunk in chunks)
    assert text_of(chunks) == "hi"
    row = books()
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (7, 3, False)


def test_a_stream_without_usage_is_estimated_and_flagged(ask, provider, books):
    """Conformance 66, 103."""
    provider.respond = saying(piece("some text"), piece(finish="stop"), DONE)
    reply = ask(stream=True, stream_options={"include_usage": True})
    usage = chunks_of(reply.read())[-1]["usage"]
    row = books()
    assert row.estimated
    assert row.completion_tokens > 0
    assert row.completion_tokens == usage["completion_tokens"]
    assert row.prompt_tokens == usage["prompt_tokens"]


@over_each
def test_silence_after_the_finish_reason_is_the_end(ask, provider, books, monkeypatch):
    """The caller has every word of it; only the usage is estimated."""
    monkeypatch.setattr("oneai_middleware.backends.openai.exchange.HURRY", 0.05)

    def respond(turn):
        turn.start_stream()
        turn.text("all of ")
        turn.text("it", "stop")
        turn.hold()

    provider.respond = respond
    reply = ask(stream=True)
    assert text_of(chunks_of(reply.read())) == "all of it"
    row = books()
    assert (row.outcome, row.estimated) == ("answered", True)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_too_many_elements_is_a_502(ask, provider, completion, monkeypatch, stream):
    monkeypatch.setattr("oneai_middleware.backends.openai.backend.MAX_STRUCTURE", 1_000)
    provider.respond = lambda turn: turn.answer(completion("hello", extra=[{}] * 1_000))
    assert ask(stream=stream).status == 502
    provider.respond = lambda turn: turn.answer(completion("hello " + "[{,}]" * 1_000))
    reply = ask(stream=stream)
    assert reply.status == 200
    reply.read()


def test_a_stream_has_no_more_bytes_than_any_answer(ask, provider, monkeypatch):
    monkeypatch.setattr("oneai_middleware.backends.openai.backend.MAX_STREAM", 100_000)
    provider.respond = saying(*([piece("x" * 1_000)] * 200), end="[DONE]")
    *_, last, rest = ask(stream=True).read().split(b"\n\n")
    assert rest == b""
    assert b"upstream_error" in last


@pytest.mark.parametrize(
    "events",
    [
        [piece("hello"), piece(finish="stop")],
        [piece("hello"), DONE],
        [piece("hello"), piece(finish="stop"), b"data: [DONE] \n\n"],
        [piece("hello"), piece(finish="stop"), b'data: {"choi'],
        [piece("hello", "stop"), DONE, piece(" and more")],
    ],
    ids=["no DONE", "no finish", "DONE with a space", "cut after the finish", "after DONE"],
)
def test_an_answer_that_is_complete_ends_completely(ask, provider, events, books):
    provider.respond = saying(*events)
    chunks = chunks_of(ask(stream=True).read())
    assert text_of(chunks) == "hello"
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert [reason for reason in reasons if reason] == ["stop"]
    assert books().outcome == "answered"


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([], "upstream_error"),
        ([b": waiting\n\n"], "upstream_error"),
        ([b"data: not json\n\n"], "upstream_error"),
        ([b"data: []\n\n"], "upstream_error"),
        ([{"error": {"message": "x", "code": 503}}], "model_overloaded"),
        ([b"event: error\n", {"error": {"message": "x", "code": 401}}], "provider_unavailable"),
        ([b"event: error\n", {"message": "no error key"}], "upstream_error"),
        ([DONE], "upstream_error"),
    ],
)
def test_a_stream_that_fails_before_any_output_is_an_http_error(ask, provider, books, events, code):
    """Conformance 68, 71."""
    provider.respond = saying(*events)
    reply = ask(stream=True)
    assert reply.error["code"] == code
    assert reply.headers["content-type"] == "application/json"
    assert books().cost == 0


FAILURES_IN_MID_STREAM = {
    "it just stops": [],
    "within an event": [b'data: {"choices"'],
    "not JSON": [b"data: oops\n\n"],
    "an error object": [{"error": {"message": "secret upstream words"}}],
    "an error text": [{"error": "secret upstream words"}],
    "an error of the caller": [{"error": {"message": "bad temperature", "code": 400}}],
    "an error event": [b"event: error\n", {"error": {"message": "secret upstream words"}}],
    "a named event without error": [b"event: error\n", {"message": "x"}],
    "a failure as a reason": [piece(finish="insufficient_system_resource")],
    "an event too long": [b"data: " + b"x" * (2 << 20) + b"\n\n"],
}


@pytest.mark.parametrize("name", FAILURES_IN_MID_STREAM)
def test_a_stream_that_breaks_ends_with_one_error_event(ask, provider, books, name):
    """Conformance 69, 70, 71."""
    provider.respond = saying(piece("some words"), *FAILURES_IN_MID_STREAM[name])
    reply = ask(stream=True)
    assert reply.status == 200
    *before, last = data_of(reply.read())
    assert text_of([json.loads(data) for data in before]) == "some words"
    error = json.loads(last)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] in ("upstream_error", "model_overloaded")
    assert b"secret upstream words" not in reply.read()
    assert b"temperature" not in reply.read()
    row = books()
    assert row.outcome == error["code"]
    assert row.estimated
    assert row.cost == row.prompt_tokens * 1000 + row.completion_tokens * 2000 > 0


@pytest.mark.parametrize("framing", ["chunked", "length", "chunk cut"])
def test_a_connection_cut_within_its_framing_is_an_error(ask, provider, books, framing):
    """Conformance 70."""
    event = b"data: " + json.dumps(piece("word")).encode() + b"\n\n"

    def respond(turn):
        turn._handler.close_connection = True
        turn.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        if framing == "length":
            turn.raw(b"Content-Length: 100000\r\n\r\n" + event)
        elif framing == "chunked":
            turn.raw(b"Transfer-Encoding: chunked\r\n\r\n" + chunk(event))
        else:
            turn.raw(b"Transfer-Encoding: chunked\r\n\r\n" + chunk(event) + b"fff\r\ndata")

    provider.respond = respond
    *before, last = data_of(ask(stream=True).read())
    assert text_of([json.loads(data) for data in before]) == "word"
    assert json.loads(last)["error"]["code"] == "upstream_error"
    assert books().outcome == "upstream_error"


def test_a_whole_answer_cut_short_is_an_error(ask, provider, books, completion):
    def respond(turn):
        turn._handler.close_connection = True
        turn.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n")
        turn.raw(b"\r\n" + json.dumps(completion("x")).encode())

    provider.respond = respond
    assert ask().error["code"] == "upstream_error"
    assert books().cost == 0


def test_nothing_of_the_providers_framing_is_relayed(ask, provider):
    """Conformance 74."""
    provider.respond = saying(
        b"\xef\xbb\xbf: hello\n\n",
        b"id: 7\nretry: 3000\nevent: message\n",
        piece("hi"),
        b"event: ping\n\n",
        b": keep\n\n",
        piece(finish="stop"),
        DONE,
    )
    body = ask(stream=True).read()
    assert text_of(chunks_of(body)) == "hi"


def test_events_and_characters_cut_at_every_byte_come_together(ask, provider):
    """Conformance 75, 76."""
    text = "né 你好 🙂 \u2028\u2029\u0085 end"
    raw = "".join(
        f"data: {json.dumps(value, ensure_ascii=False)}\r\n\r\n"
        for value in (piece(text), piece(finish="stop"))
    )

    def respond(turn):
        turn.start_stream()
        for byte in raw.encode() + b"data: [DONE]\r\n\r\n":
            turn.raw(bytes([byte]))

    provider.respond = respond
    body = ask(stream=True).read()
    assert text_of(chunks_of(body)) == text
    assert not set("\u2028\u2029\u0085") & set(body.decode())


def test_a_whole_answer_to_a_stream_is_streamed(ask, provider, completion, books):
    provider.respond = lambda turn: turn.answer(completion("all at once"))
    reply = ask(stream=True)
    chunks = chunks_of(reply.read())
    assert text_of(chunks) == "all at once"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert b'"message"' not in reply.read()
    assert (books().prompt_tokens, books().completion_tokens) == (7, 3)


def test_silence_is_filled_with_comments(make_gateway, asking_provider, provider, headers, send):
    """Conformance 72."""
    gateway = make_gateway(**asking_provider, keep_alive=0.02)
    more = threading.Event()

    def respond(turn):
        turn.start_stream()
        turn.text("one")
        turn.hold(more)
        turn.text("two", "stop")
        turn.event("[DONE]")

    provider.respond = respond
    body = {"model": "bot", "messages": HELLO, "stream": True}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    while b'"one"' not in (event := next(reply)):
        assert event == b": keep-alive\n\n"
    assert next(reply) == next(reply) == b": keep-alive\n\n"
    more.set()
    rest = reply.read().replace(b": keep-alive\n\n", b"")
    assert text_of(chunks_of(rest)) == "two"


def test_a_caller_who_leaves_ends_the_call_at_the_provider(ask, provider, books, eventually):
    """Conformance 78."""

    def respond(turn):
        turn.start_stream()
        turn.text("some words")
        turn.hold()

    provider.respond = respond
    reply = ask(stream=True)
    next(reply)
    reply.close()
    row = books()
    assert row.outcome == "caller_left"
    assert row.cost == row.prompt_tokens * 1000 + row.completion_tokens * 2000
    assert row.completion_tokens > 0
    assert provider.turns[0].left.wait(10)
    reply.close()
    assert books() == row


# --- refusals -----------------------------------------------------------------

REFUSALS = [
    (400, 400, "invalid_value", None),
    (422, 400, "invalid_value", None),
    (401, 503, "provider_unavailable", "false"),
    (402, 503, "provider_unavailable", "false"),
    (403, 503, "provider_unavailable", "false"),
    (404, 503, "provider_unavailable", "false"),
    (405, 503, "provider_unavailable", "false"),
    (429, 503, "model_overloaded", None),
    (503, 503, "model_overloaded", None),
    (529, 503, "model_overloaded", None),
    (408, 504, "upstream_timeout", None),
    (504, 504, "upstream_timeout", None),
    (500, 502, "upstream_error", None),
    (502, 502, "upstream_error", None),
    *((status, 400, "invalid_value", None) for status in (409, 414, 415, 418, 451)),
    (204, 502, "upstream_error", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("theirs", "ours", "code", "should_retry"), REFUSALS)
def test_a_refusal_is_told_in_our_own_words(
    ask, provider, books, stream, theirs, ours, code, should_retry
):
    """Conformance 68, 82, 87, 90."""
    provider.respond = lambda turn: turn.answer(
        {"error": {"message": "their own words", "type": "t", "param": "top_p", "code": "c"}},
        theirs,
    )
    reply = ask(stream=stream)
    assert (reply.status, reply.error["code"]) == (ours, code)
    assert reply.headers.get("x-should-retry") == should_retry
    if ours == 400:
        assert reply.error["param"] == "top_p"
        assert reply.error["message"] == "their own words"
    else:
        assert reply.error["param"] is None
        assert b"their own words" not in reply.read()
    assert ("retry-after" in reply.headers) == (code == "model_overloaded")
    assert (books().cost, books().outcome) == (0, code)
    assert len(provider.turns) == 1


@pytest.mark.parametrize(
    ("wait", "told"),
    [
        ("7", "7"),
        ("0.2", "1"),
        ("0", "1"),
        ("3600", "60"),
        ("soon", "1"),
        ("-4", "1"),
        ("nan", "1"),
    ],
)
def test_the_providers_wait_is_passed_on_within_reason(ask, provider, wait, told):
    provider.respond = lambda turn: turn.answer({}, 429, {"Retry-After": wait})
    assert ask().headers["retry-after"] == told


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("This model's maximum context length is 9 tokens", "context_length_exceeded", "messages"),
        ("Range of input length should be [1, 9]", "context_length_exceeded", "messages"),
        ("data_inspection_failed", "content_filter", None),
        ("Model Not Exist", "provider_unavailable", None),
    ],
)
def test_well_known_refusals_have_codes_of_their_own(ask, provider, message, code, param):
    """Conformance 85, 86."""
    provider.respond = lambda turn: turn.answer({"error": {"message": message}}, 400)
    error = ask().error
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize(
    "message",
    [
        "The tool `get_model` was not found in tools",
        "model gpt-x answered, but file 'a' was not found",
        "The image at url 1 does not exist for this model",
        "This model does not support tools; function f does not exist",
        "remodel not found",
        "role 'model' of message 3: tool_call_id c1 not found",
    ],
)
def test_only_of_the_model_itself_it_is_our_mistake_that_it_is_not_there(ask, provider, message):
    """Conformance 85."""
    provider.respond = lambda turn: turn.answer({"error": {"message": message}}, 400)
    reply = ask()
    assert (reply.status, reply.error["code"]) == (400, "invalid_value")
    assert reply.error["message"] == message


@pytest.mark.parametrize(
    "message",
    [
        "The model `gpt-x` does not exist or you do not have access to it.",
        "model 'llama3.3:70b' not found, try pulling it first",
        "The model: org/name@v1.2 was not found",
        "Model not found",
        "invalid model, model is not found",
    ],
)
def test_a_model_that_is_not_there_is_our_mistake_in_whatever_words(ask, provider, message):
    """Conformance 85."""
    provider.respond = lambda turn: turn.answer({"error": {"message": message}}, 400)
    assert ask().error["code"] == "provider_unavailable"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 422, 429, 500])
def test_a_provider_that_echoes_our_account_gives_nothing_away(
    make_gateway, provider, headers, send, caplog, stream, status
):
    """Conformance 89."""
    key, other = "0123-not-like-a-key-4567", "second-secret-of-ours"
    port = provider.url.split(":")[2].split("/")[0]
    gateway = make_gateway(
        providers={
            "own": {
                "base_url": f"http://localhost:{port}/v1",
                "api_key": key,
                "headers": {"X-Account": other},
            }
        },
        models={"bot": {"routes": ["own/x"], "input": "1", "output": "1"}},
    )

    def respond(turn):
        echo = f"{dict(turn.headers)} http://localhost:{port}/v1 LOCALHOST:{port} sk-abcdefghij"
        error = {"message": echo, "param": key, "code": other, "type": echo}
        turn.answer({"error": error, "echo": echo}, status, {"X-Echo": key, "Location": key})

    provider.respond = respond
    caplog.set_level("DEBUG", "oneai_middleware")
    body = {"model": "bot", "messages": HELLO, "stream": stream}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    shown = reply.read().decode() + str(reply.header_list)
    told = caplog.text
    for private in (key, other, port, "localhost", "sk-abcdefghij"):
        assert private not in shown.lower()
        assert private not in told.lower()


@pytest.mark.parametrize(
    "message",
    [
        "temperature must be at most 2.5, not 3.14159",
        "max_tokens 1.0e3 is no integer",
        "input.json has no field 'messages.0.role'",
        "response_format.json_schema of version 1.2.3 is unknown",
        "qwen2.5-7b-instruct does not take tools.function.strict",
        "the user-provided file organization_chart.pdf is too large",
        "org-wide and proj_settings are no fields; nor is user_identifier",
        "e.g. see the docs, i.e. section 3.1.4",
    ],
)
def test_of_what_a_provider_says_numbers_and_names_stay(ask, provider, message):
    provider.respond = lambda turn: turn.answer({"error": {"message": message}}, 400)
    assert ask().error["message"] == message


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("ask http://inside.example/v1?key=1 again", "ask … again"),
        ("ask api.example.com:8443/v1/chat again", "ask … again"),
        ("ask gpu-7.eu.cluster.local again", "ask … again"),
        ("ask proxy.internal, or llm.example.ai", "ask …, or …"),
        ("ask 10.1.2.3:8000/v1 again", "ask … again"),
        ("ask 10.1.2.3 again", "ask … again"),
        ("the key sk-proj-abc_DEF-123456 is wrong", "the key … is wrong"),
        ("org-a1B2c3D4e5 has no access", "… has no access"),
        ("proj_a1b2c3d4 of account-12345678 and user_id0000001", "… of … and …"),
    ],
)
def test_of_what_a_provider_says_addresses_keys_and_accounts_go(ask, provider, told, shown):
    """Conformance 89."""
    provider.respond = lambda turn: turn.answer({"error": {"message": told}}, 400)
    assert ask().error["message"] == shown


@pytest.mark.parametrize(
    ("param", "told"),
    [
        ("messages[0].content", "messages[0].content"),
        ("response_format.type", "response_format.type"),
        ("http://inside/v1", None),
        ("a b", None),
        ("x" * 101, None),
        (None, None),
        (["temperature"], None),
    ],
)
def test_only_the_path_of_a_field_is_a_param(ask, provider, param, told):
    provider.respond = lambda turn: turn.answer({"error": {"message": "no", "param": param}}, 400)
    assert ask().error["param"] == told


@pytest.mark.parametrize(
    "body",
    [
        {"error": "in one line"},
        {"detail": "in one line"},
        {"message": "in one line", "object": "error"},
        {"error": {"message": "in\n one\tline"}},
        {"detail": {"message": "in one line\u0007"}},
    ],
)
def test_the_message_is_found_wherever_the_provider_puts_it(ask, provider, body):
    provider.respond = lambda turn: turn.answer(body, 400)
    assert ask().error["message"] == "in one line"


@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_that_is_not_there_is_a_502(make_gateway, headers, send, stream):
    """Conformance 87."""
    gateway = make_gateway(
        providers={"gone": {"base_url": "http://127.0.0.1:9/v1"}},
        models={"bot": {"routes": ["gone/x"], "input": "1", "output": "1"}},
    )
    body = {"model": "bot", "messages": HELLO, "stream": stream}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert gateway.ledger.entries("alice")[-1].cost == 0


@over_each
@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_that_hangs_up_without_a_word_is_a_502(ask, provider, stream):
    """Conformance 87."""

    def respond(turn):
        turn._handler.close_connection = True

    provider.respond = respond
    assert ask(stream=stream).error["code"] == "upstream_error"


@pytest.mark.parametrize(
    ("stream", "timeouts"),
    [(False, {"total": 0.05}), (True, {"total": 0.05}), (True, {"first_token": 0.05})],
)
def test_a_provider_that_says_nothing_in_time_is_a_504(
    make_gateway, asking_provider, provider, headers, send, eventually, stream, timeouts
):
    """Conformance 87."""
    asking_provider["providers"]["scripted"]["timeouts"] = timeouts
    gateway = make_gateway(**asking_provider)
    provider.respond = lambda turn: turn.hold()
    body = {"model": "bot", "messages": HELLO, "stream": stream}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")
    assert provider.turns[0].left.wait(10)
    # The watch settles while the caller is already told.
    (row,) = eventually(lambda: gateway.ledger.entries("alice"))
    assert (row.cost, row.outcome) == (0, "upstream_timeout")


def test_silence_in_mid_stream_ends_with_an_error_event(
    make_gateway, asking_provider, provider, headers, send, eventually
):
    """Conformance 73."""
    asking_provider["providers"]["scripted"]["timeouts"] = {"idle": 0.05}
    gateway = make_gateway(**asking_provider)

    def respond(turn):
        turn.start_stream()
        turn.text("word")
        turn.hold()

    provider.respond = respond
    body = {"model": "bot", "messages": HELLO, "stream": True}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    *_, last = data_of(reply.read())
    assert json.loads(last)["error"]["code"] == "upstream_timeout"
    assert provider.turns[0].left.wait(10)
    eventually(lambda: not gateway.rate_limiter._state().open)


# --- connections --------------------------------------------------------------


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream_in_chunks(turn, end=b"0\r\n\r\n"):
    """A complete stream over a connection that stays open."""
    turn.raw(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for value in (piece("hello"), piece(finish="stop", usage=USAGE)):
        turn.raw(chunk(b"data: " + json.dumps(value).encode() + b"\n\n"))
    turn.raw(chunk(DONE) + end)


@over_each
def test_connections_are_used_again_after_whole_answers(ask, provider):
    for _ in range(3):
        assert ask().status == 200
    assert len({turn.peer for turn in provider.turns}) == 1


@over_each
def test_connections_are_used_again_after_complete_streams(ask, provider, eventually, pumps):
    provider.respond = stream_in_chunks
    for _ in range(3):
        assert chunks_of(ask(stream=True).read())
        # The caller has all of it before the backend has let go of the connection.
        eventually(lambda: not pumps())
    assert len({turn.peer for turn in provider.turns}) == 1


@over_each
def test_connections_are_used_again_after_refusals(ask, provider):
    provider.respond = lambda turn: turn.answer({"error": {"message": "x"}}, 429)
    for _ in range(3):
        assert ask().status == 503
    assert len({turn.peer for turn in provider.turns}) == 1


@over_each
def test_a_provider_that_never_ends_its_body_delays_no_answer(ask, provider):
    def respond(turn):
        stream_in_chunks(turn, end=b"")
        turn.hold()

    provider.respond = respond
    assert text_of(chunks_of(ask(stream=True).read())) == "hello"
    assert provider.turns[0].left.wait(10)


@over_each
def test_a_connection_cut_in_mid_stream_is_never_used_again(ask, provider):
    def respond(turn):
        turn.start_stream() if len(provider.turns) == 1 else turn.answer({"choices": []})
        if len(provider.turns) == 1:
            turn.text("word")
            turn.hold()

    provider.respond = respond
    reply = ask(stream=True)
    next(reply)
    reply.close()
    assert provider.turns[0].left.wait(10)
    ask()
    assert len({turn.peer for turn in provider.turns}) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_mocking_library_catches_the_call(ask, provider, monkeypatch, completion, stream):
    sent = []

    def send(adapter, request, **options):
        sent.append((request, options))
        if stream:
            data = b"".join(
                b"data: " + json.dumps(value).encode() + b"\n\n"
                for value in (piece("mocked"), piece(finish="stop"))
            )
            kind = "text/event-stream"
        else:
            data, kind = json.dumps(completion("mocked")).encode(), "application/json"
        raw = urllib3.HTTPResponse(
            io.BytesIO(data), {"Content-Type": kind}, status=200, preload_content=False
        )
        return adapter.build_response(request, raw)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    reply = ask(stream=stream)
    if stream:
        assert text_of(chunks_of(reply.read())) == "mocked"
    else:
        assert reply.json["choices"][0]["message"]["content"] == "mocked"
    assert provider.turns == []
    request, _ = sent[0]
    assert (request.method, request.url) == ("POST", provider.url + "/chat/completions")


# --- the backend by itself ----------------------------------------------------


def test_the_check_asks_for_the_models(provider):
    provider.respond = lambda turn: turn.answer({"data": []})
    OpenAIBackend(base_url=provider.url, api_key="k").check()
    turn = provider.turns[0]
    assert (turn.method, turn.path) == ("GET", "/v1/models")
    assert ("Authorization", "Bearer k") in turn.headers


def test_the_check_says_what_is_wrong(provider):
    provider.respond = lambda turn: turn.answer({"error": {"message": "bad key"}}, 401)
    with pytest.raises(BackendMisconfigured) as caught:
        OpenAIBackend(base_url=provider.url, api_key="k").check()
    assert caught.value.detail == "HTTP 401: bad key"
    with pytest.raises(BackendUnavailable):
        OpenAIBackend(base_url="http://127.0.0.1:9").check()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"base_url": "api.example.com/v1"},
        {"base_url": "https://api.example.com/v1", "api_key": "two\nlines"},
        {"base_url": "https://api.example.com/v1", "api_key": "schlüssel"},
        {"base_url": "https://api.example.com/v1", "base_urk": "x"},
    ],
)
def test_a_wrong_option_is_named(options):
    with pytest.raises(ConfigurationError) as caught:
        OpenAIBackend(**options)
    assert any(name in str(caught.value) for name in ("base_url", "api_key", "base_urk"))
    assert "schlüssel" not in str(caught.value)


class Carrier:
    """A transport, and each of its replies, of the test's own."""

    status = 200
    headers: dict = {}

    def __init__(self, data, waits=(None, None)):
        self._data = data
        self._waits = waits
        self.cancelled = threading.Event()

    def open(self, url, headers, body, timeouts):
        self._pieces = [self._data, b""]
        return self

    def begin(self, sent=bool):
        connected, answered = self._waits
        self._wait(connected)
        sent()
        self._wait(answered)

    def _wait(self, what):
        if what is not None:
            what()
        if self.cancelled.is_set():
            raise BackendUnavailable("cancelled")

    def read1(self):
        return self._pieces.pop(0)

    def cancel(self):
        self.cancelled.set()

    def finish(self):
        pass

    close = finish


def test_another_transport_may_carry_the_bytes(make_gateway, headers, send, completion):
    """The seam other HTTP clients fit into."""
    reply = ask_over(Carrier(encoded(completion("carried"))), make_gateway, headers, send)[0]
    assert reply.json["choices"][0]["message"]["content"] == "carried"


def encoded(value):
    return json.dumps(value).encode()


def ask_over(transport, make_gateway, headers, send, stream=False):
    """The reply that this transport carries, and what the books say of it."""
    backend = OpenAIBackend(base_url="http://x.example", transport=transport)
    gateway = make_gateway(
        providers={"own": {"backend": backend}},
        models={"bot": {"routes": ["own/x"], "input": "1", "output": "1"}},
    )
    body = {"model": "bot", "messages": HELLO, "stream": stream}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    return reply, gateway.ledger.entries("alice")[-1]


@pytest.mark.parametrize("stream", [False, True])
def test_the_provider_does_not_have_the_request_until_it_is_sent(completion, stream):
    seen = []
    request = ChatRequest({"model": "x", "messages": HELLO, "stream": stream})

    def look():
        seen.append(request.connecting.is_set())

    transport = Carrier(encoded(completion("hi")), (look, look))
    backend = OpenAIBackend(base_url="http://x.example", transport=transport)
    look()
    _ = list(backend.stream(request)) if stream else backend.complete(request)
    look()
    assert seen == [False, True, False, False]


@pytest.mark.parametrize("sent", [False, True])
def test_who_leaves_before_the_request_is_sent_owes_nothing(
    make_gateway, headers, send, completion, monkeypatch, sent
):
    line = SimpleNamespace(present=True)
    line.is_present = lambda: line.present
    monkeypatch.setattr("oneai_middleware.endpoints.chat.connection_of", lambda environ: line)

    def leave():
        line.present = False
        assert transport.cancelled.wait(10)

    waits = (None, leave) if sent else (leave, None)
    transport = Carrier(encoded(completion("hi")), waits)
    reply, row = ask_over(transport, make_gateway, headers, send)
    assert (reply.status, row.outcome) == (499, "caller_left")
    assert row.cost == (row.prompt_tokens * 1000 if sent else 0)
    assert (row.cost > 0) is sent


@pytest.mark.parametrize("word", ["a-", "a.", "a:", "a/", "sk-", "x", "é"])
def test_a_long_message_of_a_provider_costs_no_time(
    word, make_app, asking_provider, provider, send, headers
):
    """A pattern that backtracks would hold the interpreter for minutes here."""
    provider.respond = lambda turn: turn.answer({"error": {"message": word * 10**6}}, 400)
    app = make_app(**asking_provider)
    body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}]}
    reply = send(app, "POST", "/oneai/v1/chat/completions", body, headers)
    assert reply.status == 400
    assert len(reply.error["message"]) <= 300


def test_a_key_at_the_place_where_a_message_is_cut_does_not_survive_in_part(
    make_app, asking_provider, provider, send, headers
):
    key = asking_provider["providers"]["scripted"]["api_key"]
    message = ("w " * 1000)[: 2000 - 8] + key
    provider.respond = lambda turn: turn.answer({"error": {"message": message}}, 400)
    body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}]}
    reply = send(make_app(**asking_provider), "POST", "/oneai/v1/chat/completions", body, headers)
    assert key[:8] not in reply.error["message"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("proxy", 123),
        ("proxy", "socks5://127.0.0.1:1"),
        ("verify", 1),
        ("verify", "/no/such.pem"),
        ("headers", {"Bad Name:": "x"}),
        ("base_url", "http://127.0.0.1/v1?x=1"),
        ("base_url", "http://user:pass@127.0.0.1/v1"),
    ],
)
def test_an_option_that_could_never_work_stops_the_start(option, value):
    options = {"base_url": "http://127.0.0.1/v1", option: value}
    with pytest.raises(ConfigurationError, match=option):
        OpenAIBackend(**options)
