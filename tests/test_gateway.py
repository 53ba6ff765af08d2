"""Which endpoint answers, and what every reply below the mount has in common."""

import json
import logging
import re
from wsgiref.util import is_hop_by_hop
from wsgiref.validate import validator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.catalog import Catalog
from oneai_middleware.protocol.response import Response

CHAT = {"model": "deepseek-v3", "messages": [{"role": "user", "content": "one two"}]}
CHAT_PATH = "/v1/chat/completions"

# What a caller may ask: method, target, body, and the status of the answer.
CALLS = {
    "an answer": ("POST", CHAT_PATH, CHAT, 200),
    "a stream": ("POST", CHAT_PATH, {**CHAT, "stream": True}, 200),
    "the models": ("GET", "/v1/models", b"", 200),
    "the models' headers": ("HEAD", "/v1/models", b"", 200),
    "a model": ("GET", "/v1/models/deepseek-v3", b"", 200),
    "an unknown model": ("GET", "/v1/models/nothing", b"", 404),
    "an unknown model's headers": ("HEAD", "/v1/models/nothing", b"", 404),
    "health": ("GET", "/health", b"", 200),
    "health's headers": ("HEAD", "/health", b"", 200),
    "a bad body": ("POST", CHAT_PATH, b"{", 400),
    "a bad stream": ("POST", CHAT_PATH, {**CHAT, "stream": True, "messages": 1}, 400),
    "a wrong method": ("GET", CHAT_PATH, b"", 405),
    "the headers of a wrong method": ("HEAD", CHAT_PATH, b"", 405),
    "an unknown path": ("GET", "/v1/nothing", b"", 404),
    "the root": ("GET", "/", b"", 404),
    "no path": ("GET", "", b"", 404),
}
ALL_CALLS = pytest.mark.parametrize(
    ("method", "target", "body", "status"), CALLS.values(), ids=CALLS.keys()
)


@pytest.fixture
def gateway(make_gateway):
    return make_gateway()


# --- routing ------------------------------------------------------------------


@ALL_CALLS
def test_every_call_has_its_status(gateway, send, headers, method, target, body, status):
    """Conformance 1."""
    assert send(gateway, method, target, body, headers).status == status


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v1/chat",
        "/v1/chat/completions/abc",
        "/v1/chat/completionsx",
        "/V1/models",
        "/v1/Models",
        "/v1/modelsx",
        "/v1/../v1/models",
        "/v1/%2e%2e/v1/models",
        "/v1/./models",
        "/v1//models",
        "/v1/chat//completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/moderations",
        "/health/x",
        "/v1/models%0a",
        "/v1/%ff%fe",
        "/v1/" + "x" * 5000,
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404_in_json(gateway, send, headers, method, path):
    """Conformance 3 and 107."""
    reply = send(gateway, method, path, CHAT if method == "POST" else b"", headers)
    assert (reply.status, reply.error["code"]) == (404, "unknown_url")
    assert len(reply.error["message"]) < 300


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT_PATH, "POST"),
        ("PUT", CHAT_PATH, "POST"),
        ("DELETE", CHAT_PATH + "/", "POST"),
        ("OPTIONS", CHAT_PATH, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/deepseek-v3", "GET, HEAD"),
        ("PATCH", "/health", "GET, HEAD"),
        ("BREW", "/v1/models", "GET, HEAD"),
        ("x" * 1000, "/v1/models", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405_and_says_which_is_right(gateway, send, method, path, allow):
    """Conformance 4 and 5."""
    reply = send(gateway, method, path)
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == allow
    assert len(reply.error["message"]) < 300


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", CHAT_PATH, CHAT),
        ("GET", "/v1/models", b""),
        ("GET", "/v1/models/deepseek-v3", b""),
        ("GET", "/health", b""),
    ],
)
@pytest.mark.parametrize("form", ["{}/", "/{}", "{}?beta=true", "{}/?api-version=1&x=%ff"])
def test_a_slash_more_at_the_ends_and_a_query_change_nothing(
    gateway, send, headers, method, path, body, form
):
    """Conformance 2 and 7: and nothing redirects, which would lose a POST's body."""
    plain = send(gateway, method, path, body, headers)
    other = send(gateway, method, form.format(path), body, headers)
    assert (other.status, plain.status) == (200, 200)
    assert set(other.json) == set(plain.json)


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/deepseek-v3", "/v1/models/x", "/health"]
)
@pytest.mark.parametrize("with_key", [True, False])
def test_head_is_get_without_its_body(gateway, send, headers, path, with_key):
    """Conformance 6."""
    headers = headers if with_key else {}
    get, head = (send(gateway, method, path, headers=headers) for method in ("GET", "HEAD"))
    assert head.status == get.status
    assert head.read() == b""
    assert {**head.headers, "x-request-id": ""} == {**get.headers, "x-request-id": ""}
    assert int(head.headers["content-length"]) == len(get.read())


# --- every reply --------------------------------------------------------------


@ALL_CALLS
@pytest.mark.parametrize("read", ["to its end", "one item", "nothing"])
def test_a_reply_keeps_the_rules_of_wsgi(
    gateway, send, headers, method, target, body, status, read
):
    """Conformance 11."""
    reply = send(validator(gateway), method, target, body, headers)
    if read == "to its end":
        reply.read()
    elif read == "one item":
        list(zip(range(1), reply.body))  # noqa: B905
    reply.close()
    assert gateway.ledger.balance("alice").held == 0


@ALL_CALLS
def test_a_reply_has_no_hop_by_hop_header_and_no_doubled_one(
    gateway, send, headers, method, target, body, status
):
    reply = send(gateway, method, target, body, headers)
    reply.read()
    assert not [name for name, _ in reply.header_list if is_hop_by_hop(name)]
    assert len(reply.headers) == len(reply.header_list)


@ALL_CALLS
def test_a_json_reply_says_how_long_it_is_and_is_never_stored(
    gateway, send, headers, method, target, body, status
):
    reply = send(gateway, method, target, body, headers)
    data = reply.read()
    if reply.headers["content-type"] == "application/json":
        assert reply.headers["cache-control"] == "no-store"
        assert method == "HEAD" or int(reply.headers["content-length"]) == len(data)
    else:
        assert "content-length" not in reply.headers


def test_every_reply_has_a_request_id_of_its_own(gateway, send, headers):
    """Conformance 12."""
    replies = [
        send(gateway, method, target, body, sent)
        for method, target, body, _ in CALLS.values()
        for sent in (headers, {}, {"X-Request-Id": "req_mine"})
    ]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("req_[0-9a-f]{32}", id) for id in ids)
    for reply in replies:
        reply.read()


@ALL_CALLS
def test_every_reply_but_the_good_ones_is_an_error_of_four_keys(
    gateway, send, headers, method, target, body, status
):
    """Conformance 79 and 80."""
    for sent in (headers, {}):
        reply = send(gateway, method, target, body, sent)
        if reply.status >= 400 and method != "HEAD":
            assert reply.error["message"]
        reply.read()


# --- a process that takes no new calls ------------------------------------------


def test_health_says_ok_while_calls_are_taken(gateway, send):
    reply = send(gateway, "GET", "/health")
    assert (reply.status, reply.json) == (200, {"status": "ok"})


def test_a_drained_gateway_is_unwell_counts_its_calls_down_and_lists_its_models(
    gateway, send, headers
):
    running = [send(gateway, "POST", CHAT_PATH, {**CHAT, "stream": True}, headers) for _ in "ab"]
    gateway.drain()
    for calls in (2, 1, 0):
        reply = send(gateway, "GET", "/health")
        assert (reply.status, reply.json) == (503, {"status": "draining", "calls": calls})
        assert send(gateway, "HEAD", "/health").status == 503
        if running:
            assert b"[DONE]" in running.pop().read()
    models = send(gateway, "GET", "/v1/models", headers=headers)
    assert (models.status, len(models.json["data"])) == (200, 9)
    assert send(gateway, "GET", "/v1/models/kimi", headers=headers).status == 200
    assert send(gateway, "POST", CHAT_PATH, CHAT, headers).status == 503


def test_a_file_makes_a_gateway_unwell_for_as_long_as_it_is_there(make_gateway, send, tmp_path):
    file = tmp_path / "drain"
    gateway = make_gateway(drain_file=file)
    for present, answer in [
        (False, (200, {"status": "ok"})),
        (True, (503, {"status": "draining", "calls": 0})),
        (False, (200, {"status": "ok"})),
    ]:
        file.touch() if present else file.unlink(missing_ok=True)
        reply = send(gateway, "GET", "/health")
        assert (reply.status, reply.json) == answer


# --- headers that could split a reply -----------------------------------------


def test_a_parameters_name_that_could_split_the_reply_is_not_told(make_gateway, send, headers):
    odd = "seed\r\nSet-Cookie: b"

    def bot(request):
        request.adjusted.update({odd: "dropped", "top_p": "changed"})
        return "hello"

    models = {"bot": {"routes": ["p/x"], "input": "1", "output": "2"}}
    gateway = make_gateway(providers={"p": {"backend": bot}}, models=models)
    reply = send(gateway, "POST", CHAT_PATH, {**CHAT, "model": "bot", odd: 1, "top_p": 1}, headers)
    assert reply.status == 200
    assert "Set-Cookie" not in str(reply.header_list)
    assert reply.headers["x-oneai-changed"] == "top_p"


@given(st.text(max_size=20), st.sampled_from("\r\n\0\u0100\ud800"), st.text(max_size=20))
def test_a_header_that_could_split_the_reply_is_dropped(before, bad, after):
    kept = ("X-Kept", "caf\u00e9 =;,\t")
    response = Response(200, [("X-Bad", before + bad + after), kept], ())
    assert response.safe_headers() == [kept]


def test_such_a_header_is_dropped_from_any_reply(gateway, send, headers, monkeypatch):
    monkeypatch.setattr("oneai_middleware.gateway.new_request_id", lambda: "a\r\nSet-Cookie: b")
    reply = send(gateway, "GET", "/v1/models", headers=headers)
    assert reply.status == 200
    assert "Set-Cookie" not in str(reply.header_list)
    assert "x-request-id" not in reply.headers


# --- our own mistakes ---------------------------------------------------------


def assert_internal_error(reply, caplog):
    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    assert "Traceback" not in str(reply.json)
    assert "canary" not in str(reply.json) + str(reply.header_list)
    assert "canary" in caplog.text
    assert reply.headers["x-request-id"] in caplog.text


def test_an_endpoint_that_raises_is_a_500_without_a_traceback(
    gateway, send, headers, monkeypatch, caplog
):
    """Conformance 88."""
    monkeypatch.setattr(Catalog, "listed", raising)
    assert_internal_error(send(gateway, "GET", "/v1/models", headers=headers), caplog)


def raising(*arguments, **options):
    raise LookupError("canary")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("oneai_middleware.relay.exchange.Watch", "add"),
        ("oneai_middleware.dispatch.Dispatch", "_attempts"),
        ("threading.Thread", "start"),
    ],
)
def test_a_mistake_after_the_admission_gives_everything_back(
    make_gateway, send, headers, monkeypatch, stream, owner, name
):
    """Conformance 88."""
    gateway = make_gateway(account={"limits": {"concurrent": 1}}, max_calls=1)
    with monkeypatch.context() as patched:
        patched.setattr(f"{owner}.{name}", raising)
        reply = send(gateway, "POST", CHAT_PATH, {**CHAT, "stream": stream}, headers)
        assert reply.status in (500, 502)
        assert reply.error
    balance = gateway.ledger.balance("alice")
    assert (balance.held, balance.spent, gateway.ledger.audit()) == (0, 0, [])
    again = send(gateway, "POST", CHAT_PATH, {**CHAT, "stream": stream}, headers)
    assert again.status == 200
    again.read()
    assert gateway.ledger.balance("alice").held == 0


def test_a_server_that_refuses_our_headers_leaves_nothing_open(gateway, headers, monkeypatch, send):
    def refusing(environ, start_response):
        return gateway(environ, raising)

    for stream in (False, True):
        with pytest.raises(LookupError):
            send(refusing, "POST", CHAT_PATH, {**CHAT, "stream": stream}, headers)
    assert gateway.ledger.balance("alice").held == 0
    assert gateway.ledger.audit() == []


# --- the access log -----------------------------------------------------------


def records(caplog):
    return [r.oneai for r in caplog.records if r.name == "oneai_middleware.access"]


def test_every_call_is_one_line_of_the_access_log(gateway, send, headers, caplog):
    caplog.set_level(logging.INFO, "oneai_middleware.access")
    replies = [send(gateway, m, target, body, headers) for m, target, body, _ in CALLS.values()]
    for reply in replies:
        reply.read()
    logged = {row["request_id"]: row for row in records(caplog)}
    assert len(logged) == len(records(caplog)) == len(replies)
    for reply in replies:
        assert logged[reply.headers["x-request-id"]]["status"] == reply.status


def test_a_line_of_the_log_is_json_whatever_a_caller_sends(gateway, send, caplog):
    caplog.set_level(logging.INFO, "oneai_middleware.access")
    odd = 'x"\r\n\x85\xff\x00{}'
    send(gateway, 'G"\nET', "/v1/%0a%ff\u2028", headers={"X-Client-Request-Id": odd})
    (record,) = [r for r in caplog.records if r.name == "oneai_middleware.access"]
    assert "\n" not in record.getMessage()
    assert json.loads(record.getMessage())["client_request_id"] == odd


def test_no_key_reaches_a_log(gateway, send, secret, caplog):
    caplog.set_level(logging.DEBUG)
    for sent in (secret, secret[:-1] + "!", "Bearer " + secret):
        for method, target, body, _ in CALLS.values():
            send(gateway, method, target, body, {"Authorization": f"Bearer {sent}"}).read()
    assert secret[9:-1] not in caplog.text


# --- a gateway without its middleware -----------------------------------------


def test_how_many_threads_a_server_has_is_asked_until_it_is_known(
    make_gateway, send, headers, monkeypatch
):
    known = iter([None, None, 4])
    asked = []

    def threads_of(environ):
        asked.append(environ)
        return next(known)

    monkeypatch.setattr("oneai_middleware.gateway.threads_of", threads_of)
    gateway = make_gateway()
    running = []
    for _ in range(5):
        running.append(send(gateway, "POST", CHAT_PATH, {**CHAT, "stream": True}, headers))
    assert len(asked) == 3
    assert [reply.status for reply in running] == [200] * 2 + [503] * 3
    for reply in running:
        reply.close()


def test_a_gateway_starts_no_thread_and_asks_nobody(make_gateway, monkeypatch):
    monkeypatch.setattr("threading.Thread.start", raising)
    monkeypatch.setattr("socket.socket.connect", raising)
    make_gateway(providers={"deepseek": {"api_key": "sk-up"}})
