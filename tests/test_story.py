"""One chat request on every host, at the root and under a mount, and how it may end.

After each end the books are exact, the limits are charged with what was really
taken, and no slot is kept.
"""

from itertools import product
from wsgiref.validate import validator

import pytest
from flask import Flask

from oneai_middleware import OneAIMiddleware
from oneai_middleware.accounts import NANO, Limits
from oneai_middleware.errors import RateLimitExceeded
from oneai_middleware.integrations.flask import OneAI
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.rate_limiters.base import Claim
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.secret import new_secret
from oneai_middleware.tokens import estimate_prompt

RPM, TPM = 100, 1_000_000
CHAT = {
    "model": "deepseek-v3",
    "messages": [{"role": "user", "content": "one two three"}],
    "max_tokens": 50,
}
PROMPT = estimate_prompt(CHAT)
INPUT, OUTPUT = 500, 2190  # nano-dollars per token of deepseek-v3


def wsgi_host(options):
    def host(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"the host's own page"]

    app = OneAIMiddleware(host, **options)
    return app, app.gateway


def flask_host(options):
    app = Flask("shop")
    app.config.update({f"ONEAI_{name.upper()}": value for name, value in options.items()})
    app.add_url_rule("/page", view_func=lambda: "the host's own page")
    OneAI(app)
    return app, app.extensions["oneai"]


class Place:
    """A gateway in a host; what its accounts own and may do."""

    def __init__(self, make_host, mount, script_name, send, clock):
        self.keys = {"alice": new_secret(), "poor": new_secret()}
        self.limits = Limits(RPM, TPM, concurrent=1)
        limits = {"rpm": RPM, "tpm": TPM, "concurrent": 1}
        self.app, self.gateway = make_host(
            {
                "mount": mount,
                "providers": {"deepseek": {"backend": "echo"}},
                "accounts": {
                    name: {"balance": balance, "keys": [self.keys[name]], "limits": limits}
                    for name, balance in (("alice", "1"), ("poor", "0.000001"))
                },
                "rate_limiter": MemoryRateLimiter(clock=clock.ns),
            }
        )
        self.app = validator(self.app)  # conformance 11, on every host
        self._mount = mount
        self._script_name = script_name
        self._send = send

    def page(self, path):
        return self._send(self.app, "GET", path, SCRIPT_NAME=self._script_name)

    def ask(self, method, path, body=b""):
        headers = {"Authorization": f"Bearer {self.keys['alice']}"}
        target = self._mount + path
        return self._send(self.app, method, target, body, headers, SCRIPT_NAME=self._script_name)

    def chat(self, name="alice", **fields):
        headers = {"Authorization": f"Bearer {self.keys.get(name, new_secret())}"}
        target = f"{self._mount}/v1/chat/completions"
        return self._send(
            self.app, "POST", target, {**CHAT, **fields}, headers, SCRIPT_NAME=self._script_name
        )

    def rows(self, name="alice"):
        return list(self.gateway.ledger.entries(name))

    def assert_at_rest(self, name="alice", calls=0, tokens=0, spent=0):
        """Nothing is held, and exactly this has been taken."""
        ledger, limiter = self.gateway.ledger, self.gateway.rate_limiter
        owned = {"alice": NANO, "poor": 1000}[name]
        assert ledger.balance(name) == Balance(owned - spent, 0, spent, owned)
        assert ledger.audit() == []
        claims = [Claim(f"account:{name}", self.limits)]
        status = limiter.status(name, claims)
        assert (status.remaining_requests, status.remaining_tokens) == (RPM - calls, TPM - tokens)
        limiter.cancel(limiter.acquire(name, claims, 0))  # the one slot is free

    def assert_busy(self):
        with pytest.raises(RateLimitExceeded):
            self.gateway.rate_limiter.acquire("alice", [Claim("account:alice", self.limits)], 0)


PLACES = list(product([wsgi_host, flask_host], ["", "/oneai"], ["", "/app"]))


@pytest.fixture(params=PLACES, ids=lambda p: f"{p[0].__name__}{p[1]}{p[2] and ' below '}{p[2]}")
def place(request, send, clock):
    """Conformance 9: a host, a mount, and a SCRIPT_NAME."""
    return Place(*request.param, send, clock)


def test_the_hosts_own_pages_are_served_beside(place):
    """Conformance 8."""
    assert place.page("/page").read() == b"the host's own page"
    place.assert_at_rest()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/chat/completions", 200, None),
        ("POST", "/v1/chat/completions/", 200, None),
        ("POST", "/v1/chat/completions?beta=true&api-version=1", 200, None),
        ("GET", "/v1/models", 200, None),
        ("GET", "/v1/models/", 200, None),
        ("GET", "/v1/models/deepseek-r1", 200, None),
        ("GET", "/v1/models/nothing", 404, "model_not_found"),
        ("GET", "/v1", 404, "unknown_url"),
        ("GET", "/v1/page", 404, "unknown_url"),
        ("POST", "/v1/../page", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/deepseek-r1", 405, "method_not_allowed"),
    ],
)
def test_every_path_of_the_api_is_answered_alike_everywhere(place, method, path, status, code):
    """Conformance 2, 3, 4, 5 and 7."""
    reply = place.ask(method, path, CHAT if method == "POST" else b"")
    assert reply.status == status
    assert ("allow" in reply.headers) is (status == 405)
    assert (None if status == 200 else reply.error["code"]) == code
    assert reply.json


def test_head_is_get_without_a_body_everywhere(place):
    """Conformance 6."""
    get, head = place.ask("GET", "/v1/models"), place.ask("HEAD", "/v1/models")
    assert head.read() == b""
    assert {**head.headers, "x-request-id": ""} == {**get.headers, "x-request-id": ""}
    get.close()


def test_a_call_without_a_valid_key_is_401(place):
    reply = place.chat("nobody")
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    place.assert_at_rest()


def test_a_call_of_an_unknown_model_is_404(place):
    reply = place.chat(model="gpt-9")
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    place.assert_at_rest()


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_cannot_be_paid_for_is_402(place, stream):
    """Conformance 81."""
    reply = place.chat("poor", stream=stream)
    assert (reply.status, reply.error["code"]) == (402, "insufficient_balance")
    place.assert_at_rest("poor")
    assert place.rows("poor") == []


def test_a_call_beside_one_that_runs_is_429_where_one_is_allowed(place):
    """Conformance 93."""
    running = place.chat(stream=True)
    place.assert_busy()
    reply = place.chat()
    assert (reply.status, reply.error["code"]) == (429, "concurrency_limit_exceeded")
    assert reply.headers["retry-after"] == "1"
    running.read()
    assert place.chat().read()
    place.assert_at_rest(calls=2, tokens=2 * (PROMPT + 3), spent=2 * (PROMPT * INPUT + 3 * OUTPUT))


def test_a_full_answer_is_paid_as_its_usage_says(place):
    """Conformance 1."""
    reply = place.chat()
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json["choices"][0]["message"]["content"] == "one two three"
    assert reply.json["usage"]["total_tokens"] == PROMPT + 3
    place.assert_at_rest(calls=1, tokens=PROMPT + 3, spent=PROMPT * INPUT + 3 * OUTPUT)
    (row,) = place.rows()
    assert (row.request_id, row.outcome) == (reply.headers["x-request-id"], "answered")


def test_a_stream_read_to_its_end_costs_the_same(place):
    reply = place.chat(stream=True)
    assert (reply.status, reply.headers["content-type"]) == (
        200,
        "text/event-stream; charset=utf-8",
    )
    place.assert_busy()
    assert reply.read().endswith(b"data: [DONE]\n\n")
    place.assert_at_rest(calls=1, tokens=PROMPT + 3, spent=PROMPT * INPUT + 3 * OUTPUT)
    (row,) = place.rows()
    assert (row.outcome, row.estimated) == ("answered", False)


def test_a_stream_left_after_one_event_costs_the_prompt_and_that_event(place):
    reply = place.chat(stream=True)
    assert b'"one "' in next(reply)
    reply.close()
    place.assert_at_rest(calls=1, tokens=PROMPT + 2, spent=PROMPT * INPUT + 2 * OUTPUT)
    (row,) = place.rows()
    assert (row.outcome, row.estimated) == ("caller_left", True)


def test_a_stream_left_before_its_first_event_costs_the_prompt(place):
    reply = place.chat(stream=True)
    place.assert_busy()
    reply.close()
    place.assert_at_rest(calls=1, tokens=PROMPT, spent=PROMPT * INPUT)
    (row,) = place.rows()
    assert (row.outcome, row.completion_tokens) == ("caller_left", 0)


def test_closing_a_stream_again_changes_nothing(place):
    reply = place.chat(stream=True)
    reply.read()
    rows, balance = place.rows(), place.gateway.ledger.balance("alice")
    reply.close()
    reply.close()
    assert (place.rows(), place.gateway.ledger.balance("alice")) == (rows, balance)


def test_a_whole_day_of_all_of_them_adds_up(place):
    for _ in range(3):
        place.chat("nobody").read()
        place.chat(model="gpt-9").read()
        place.chat(stream=True).close()
        place.chat(stream=True).read()
        left = place.chat(stream=True)
        next(left)
        left.close()
        place.chat().read()
    rows = place.rows()
    assert len(rows) == 12
    spent = sum(row.cost for row in rows)
    tokens = sum(row.prompt_tokens + row.completion_tokens for row in rows)
    place.assert_at_rest(calls=12, tokens=tokens, spent=spent)
