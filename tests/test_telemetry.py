import io
import json
import logging
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware import Settings
from oneai_middleware.backends.openai.transports import TRANSPORTS
from oneai_middleware.call import Call
from oneai_middleware.errors import InsufficientBalance
from oneai_middleware.secret import new_secret
from oneai_middleware.telemetry import log_call, new_request_id

ACCESS = "oneai_middleware.access"
BODY = {"model": "deepseek-v3", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture
def lines(caplog):
    """The access lines so far, parsed."""
    caplog.set_level("INFO", ACCESS)

    def lines():
        records = [record for record in caplog.records if record.name == ACCESS]
        for record in records:
            assert json.loads(record.getMessage()) == record.oneai
            assert record.levelname == "INFO"
        return [record.oneai for record in records]

    return lines


@pytest.fixture
def ask(make_gateway, headers, send):
    def ask(*, echo=None, more_headers=None, path="/v1/chat/completions", method="POST", **fields):
        gateway = make_gateway(echo=echo)
        reply = send(gateway, method, path, {**BODY, **fields}, {**headers, **(more_headers or {})})
        reply.gateway = gateway
        return reply

    return ask


# --- one line a call ----------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_an_answered_call_is_one_line_with_everything_about_it(ask, lines, stream):
    reply = ask(stream=stream)
    reply.read()
    reply.close()
    (line,) = lines()
    row = reply.gateway.ledger.entries("alice")[-1]
    assert line == {
        "request_id": reply.headers["x-request-id"],
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "outcome": "answered",
        "duration_ms": line["duration_ms"],
        "account": "alice",
        "key": row.key,
        "model": "deepseek-v3",
        "provider": "deepseek",
        "stream": stream,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": 3,
        "estimated": False,
        "cost": row.cost,
    }
    assert line["request_id"] == row.request_id
    assert line["duration_ms"] >= 0
    assert line["cost"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_the_provider_refused_is_one_line(ask, lines, stream):
    ask(echo={"fail": "overloaded"}, stream=stream).read()
    (line,) = lines()
    assert (line["status"], line["outcome"], line["cost"]) == (503, "model_overloaded", 0)
    assert (line["model"], line["provider"]) == ("deepseek-v3", "deepseek")


def test_a_stream_that_broke_is_one_line(ask, lines):
    reply = ask(echo={"fail": "unavailable", "fail_after": 2}, stream=True)
    reply.read()
    (line,) = lines()
    assert (line["status"], line["outcome"]) == (200, "upstream_error")
    assert line["cost"] > 0
    assert line["estimated"]


def test_a_stream_that_was_left_is_one_line_written_when_it_is_closed(ask, lines):
    reply = ask(echo={"delay": 3600}, stream=True)
    next(reply)
    assert lines() == []
    for _ in range(2):
        reply.close()
    (line,) = lines()
    assert (line["status"], line["outcome"]) == (200, "caller_left")
    assert line["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("request_", "status", "outcome"),
    [
        ({"more_headers": {"Authorization": "Bearer no"}}, 401, "invalid_api_key"),
        ({"model": "unheard-of"}, 404, "model_not_found"),
        ({"temperature": 3}, 400, "invalid_value"),
        ({"path": "/v1/nothing"}, 404, "unknown_url"),
        ({"method": "GET"}, 405, "method_not_allowed"),
    ],
)
def test_a_refused_request_is_one_line(ask, lines, request_, status, outcome):
    ask(**request_).read()
    (line,) = lines()
    assert (line["status"], line["outcome"]) == (status, outcome)
    assert "cost" not in line


def test_a_request_that_is_no_call_is_one_line_too(ask, lines):
    ask(path="/v1/models", method="GET").read()
    (line,) = lines()
    assert (line["status"], line["path"], line["account"]) == (200, "/v1/models", "alice")
    assert {"model", "stream", "cost"}.isdisjoint(line)


def test_the_callers_own_id_and_retries_are_noted(ask, lines):
    ask(more_headers={"X-Client-Request-Id": "mine", "x-stainless-retry-count": "2"})
    (line,) = lines()
    assert (line["client_request_id"], line["retry"]) == ("mine", "2")


def test_nothing_is_written_where_nobody_listens(caplog, ask):
    caplog.set_level("WARNING", ACCESS)
    ask()
    assert [record for record in caplog.records if record.name == ACCESS] == []


def test_request_ids_are_all_different():
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(id.startswith("req_") for id in ids)


# --- what a caller could put into a line --------------------------------------


@given(st.text(), st.text(), st.text(max_size=8))
def test_no_control_character_reaches_the_log(path, client_request_id, retry):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger(ACCESS)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    call = Call("req_1", "POST", path, 0.0, client_request_id=client_request_id, retry=retry)
    try:
        log_call(call)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    line, end = stream.getvalue()[:-1], stream.getvalue()[-1]
    assert end == "\n"
    assert all(32 <= ord(character) != 127 for character in line)
    assert not set(line) & {*map(chr, range(0x80, 0xA0)), "\u2028", "\u2029"}
    fields = json.loads(line)
    assert fields["path"] == path[:200]
    assert fields.get("retry", "") == retry


def test_hostile_headers_and_paths_stay_on_their_line(ask, lines, caplog):
    hostile = "x\r\nFAKE\x1b[31m\x00\x7f\x9b\x85"
    more = {"X-Client-Request-Id": hostile, "x-stainless-retry-count": hostile}
    ask(more_headers=more, path="/v1/%0d%0aFAKE%1b%c2%9b31m")
    (line,) = lines()
    assert line["client_request_id"] == hostile
    assert line["path"] == "/v1/\r\nFAKE\x1b\x9b31m"
    printed = "".join(r.getMessage() for r in caplog.records if r.name == ACCESS)
    assert printed.isprintable()


def test_what_a_caller_sends_is_cut_to_size(ask, lines):
    ask(more_headers={"X-Client-Request-Id": "x" * 5000}, path="/v1/" + "y" * 5000)
    (line,) = lines()
    assert len(json.dumps(line)) < 1000


# --- secrets ------------------------------------------------------------------


UPSTREAM_KEY = "sk-upstream-canary-0123456789"
CASES = ["answer", "stream", "refused", "bad request", "broken", "unreachable", "error in 200"]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("case", CASES)
def test_no_key_shows_anywhere(
    make_gateway, provider, headers, secret, send, case, transport, caplog, capfd
):
    """Not in any log at DEBUG, of ours, urllib3's or the standard library's, and
    not in anything a caller is sent."""
    for name in (None, "oneai_middleware", "urllib3", "requests"):
        caplog.set_level("DEBUG", name)

    def respond(turn):
        echo = {
            "error": {"message": str(turn.headers), "param": UPSTREAM_KEY, "code": UPSTREAM_KEY}
        }
        shown = {"X-Key": UPSTREAM_KEY, "x-request-id": UPSTREAM_KEY}
        if case == "refused":
            turn.answer(echo, 401, shown)
        elif case == "bad request":
            turn.answer(echo, 400, shown)
        elif case == "error in 200":
            turn.answer(echo, 200, shown)
        elif case == "answer":
            turn.answer({"choices": [{"message": {"content": "hi"}}]}, 200, shown)
        else:
            turn.start_stream(shown)
            turn.text("hi", "stop" if case == "stream" else None)
            if case == "broken":
                turn.event(echo)

    provider.respond = respond
    url = "http://127.0.0.1:9/v1" if case == "unreachable" else provider.url
    gateway = make_gateway(
        providers={"own": {"base_url": url, "api_key": UPSTREAM_KEY, "transport": transport}},
        models={"bot": {"routes": ["own/x"], "input": "1", "output": "1"}},
    )
    streamed = case in ("stream", "broken")
    body = {**BODY, "model": "bot", "stream": streamed}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    shown = [reply.read().decode(), str(reply.header_list)]
    backend = gateway.providers["own"].backend
    settings = gateway.settings
    for value in (gateway, gateway.settings, backend, gateway.providers, gateway.key_store,
                  gateway.ledger, gateway.rate_limiter, backend._transport):  # fmt: skip
        shown += [repr(value), str(value), f"{value}"]
    wrong = send(
        gateway, "POST", "/v1/chat/completions", body, {"x-api-key": secret[:-1] + "!", **headers}
    )
    shown += [wrong.read().decode(), str(wrong.header_list)]
    log = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert ACCESS in log
    if case != "unreachable" and transport == "requests":
        assert "urllib3" in log
    out, err = capfd.readouterr()
    shown += [log, out, err, repr(settings), *map(repr, gateway.ledger.entries("alice"))]
    for text in shown:
        assert UPSTREAM_KEY not in text
        assert secret not in text
        assert secret[len("oneai-sk-") : -6] not in text


def test_no_error_of_a_wrong_setting_shows_its_secret(secret):
    from oneai_middleware import ConfigurationError, Gateway

    for options in (
        {"providers": {"deepseek": {"api_key": UPSTREAM_KEY, "speed": 1}}},
        {"providers": {"own": {"api_key": UPSTREAM_KEY + "\n", "base_url": "http://x/v1"}}},
        {"providers": {"own": {"api_key": UPSTREAM_KEY, "base_url": "x"}}},
        {"accounts": {"alice": {"keys": [secret + "x"]}}},
        {"accounts": {"alice": {"keys": [secret]}, "bob": {"keys": [secret]}}},
        {"accounts": {"alice": {"keys": secret}}},
    ):
        with pytest.raises(ConfigurationError) as caught:
            Gateway(**options)
        shown = repr(caught.value) + str(caught.value)
        assert UPSTREAM_KEY not in shown
        assert secret not in shown


def test_settings_show_names_alone(secret):
    settings = Settings.load(
        {
            "providers": {"deepseek": {"api_key": UPSTREAM_KEY}},
            "accounts": {"alice": {"keys": [secret]}},
        }
    )
    assert UPSTREAM_KEY not in repr(settings) + str(settings)
    assert secret not in repr(settings) + str(settings)


def test_an_error_shows_its_message_alone():
    error = InsufficientBalance("No money.", detail="account 7 of bank 9")
    assert "bank 9" not in str(error) + str(error.envelope()) + str(error.headers())


def test_a_new_secret_is_nothing_a_log_would_hide():
    """The canaries above are found by plain search, so they must be plain text."""
    assert set(new_secret() + UPSTREAM_KEY) <= set(string.ascii_letters + string.digits + "-")
