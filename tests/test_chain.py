"""A gateway whose provider is another gateway: what goes in on one side comes out on the other."""

import json
import threading

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from oneai_middleware.secret import new_secret


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *arguments):
        pass


@pytest.fixture
def serve():
    """Serve an application on a port of its own; its address."""
    servers = []

    def serve(app):
        server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def chain(make_gateway, serve, send, headers):
    """Two gateways, the outer one asking the inner; ``ask`` either of them."""

    class Chain:
        def __init__(self, *, account=None, **echo):
            self.secret = new_secret()
            self.inner = make_gateway(
                echo=echo,
                accounts={
                    "outer": {
                        "tier": "pro",
                        "balance": "10",
                        "keys": [self.secret],
                        **(account or {}),
                    }
                },
            )
            url = serve(self.inner)
            self.outer = make_gateway(
                providers={"inner": {"base_url": url + "/v1", "api_key": self.secret}},
                models={"bot": {"routes": ["inner/deepseek-v3"], "input": "5", "output": "7"}},
            )

        def ask(self, which="outer", **fields):
            body = {
                "model": "bot" if which == "outer" else "deepseek-v3",
                "messages": [{"role": "user", "content": "one two\u2028three 你好"}],
                **fields,
            }
            if which == "outer":
                return send(self.outer, "POST", "/v1/chat/completions", body, headers)
            mine = {"Authorization": f"Bearer {self.secret}"}
            return send(self.inner, "POST", "/v1/chat/completions", body, mine)

        def rows(self):
            """The last row on both sides, whose books must add up."""
            assert not self.inner.ledger.audit()
            assert not self.outer.ledger.audit()
            (outer,) = self.outer.ledger.entries("alice")[-1:]
            (inner,) = self.inner.ledger.entries("outer")[-1:]
            return outer, inner

    return Chain


def without_names(value):
    """An answer or chunk less what each gateway writes itself."""
    return {name: v for name, v in value.items() if name not in ("id", "created", "model")}


def parsed(body):
    *events, rest = body.split(b"\n\n")
    assert rest == b""
    events = [event.removeprefix(b"data: ") for event in events if event != b": keep-alive"]
    assert events.pop() == b"[DONE]"
    return [without_names(json.loads(event)) for event in events]


FIELDS = [
    {},
    {"max_tokens": 2},
    {"n": 2},
    {"temperature": 0, "stop": ["x"], "vendor": {"a": None}, "user": "u"},
]


@pytest.mark.parametrize("fields", FIELDS)
def test_an_answer_is_the_same_through_two_gateways(chain, fields):
    chain = chain()
    through, direct = chain.ask(**fields), chain.ask("inner", **fields)
    assert (through.status, direct.status) == (200, 200)
    assert without_names(through.json) == without_names(direct.json)
    assert through.json["model"] == "bot"


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("fields", FIELDS)
def test_a_stream_is_the_same_through_two_gateways(chain, fields, include_usage):
    chain = chain()
    fields = {**fields, "stream": True, "stream_options": {"include_usage": include_usage}}
    through, direct = chain.ask(**fields), chain.ask("inner", **fields)
    assert parsed(through.read()) == parsed(direct.read())
    assert through.headers["content-type"] == direct.headers["content-type"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "usage", [True, {"prompt_tokens": 123, "completion_tokens": 45}, {"prompt_tokens": 0,
    "completion_tokens": 0}]
)  # fmt: skip
def test_both_books_say_the_same_usage_at_their_own_prices(chain, stream, usage):
    chain = chain(usage=usage)
    chain.ask(stream=stream).read()
    outer, inner = chain.rows()
    assert (outer.prompt_tokens, outer.completion_tokens) == (
        inner.prompt_tokens,
        inner.completion_tokens,
    )
    assert not outer.estimated
    assert not inner.estimated
    assert outer.cost == outer.prompt_tokens * 5000 + outer.completion_tokens * 7000
    assert inner.cost == (
        inner.prompt_tokens * inner.input_price + inner.completion_tokens * inner.output_price
    )


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_inner_had_to_estimate_the_outer_bills_as_told(chain, stream):
    chain = chain(usage=False)
    chain.ask(stream=stream).read()
    outer, inner = chain.rows()
    assert inner.estimated
    assert inner.completion_tokens > 0
    assert (outer.prompt_tokens, outer.completion_tokens) == (
        inner.prompt_tokens,
        inner.completion_tokens,
    )


@pytest.mark.parametrize("stream", [False, True])
def test_the_outers_empty_purse_is_the_outers_operators_affair(chain, stream):
    """Conformance 82."""
    chain = chain(account={"balance": "0"})
    assert chain.ask("inner", stream=stream).status == 402
    reply = chain.ask(stream=stream)
    assert (reply.status, reply.error["code"]) == (503, "provider_unavailable")
    assert reply.headers["x-should-retry"] == "false"
    assert "balance" not in reply.error["message"]
    assert chain.outer.ledger.entries("alice")[-1].cost == 0
    assert chain.outer.ledger.balance("alice").held == 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_outers_wrong_key_is_the_outers_operators_affair(chain, stream):
    """Conformance 82."""
    chain = chain(account={"keys": [new_secret()]})
    reply = chain.ask(stream=stream)
    assert (reply.status, reply.error["code"]) == (503, "provider_unavailable")


@pytest.mark.parametrize("stream", [False, True])
def test_the_outers_limit_is_a_busy_model(chain, stream):
    chain = chain(account={"limits": {"rpm": 1}})
    assert chain.ask(stream=stream).status == 200
    reply = chain.ask(stream=stream)
    assert (reply.status, reply.error["code"]) == (503, "model_overloaded")
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert chain.outer.ledger.entries("alice")[-1].cost == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fail", "status", "code"),
    [
        ("overloaded", 503, "model_overloaded"),
        ("unavailable", 502, "upstream_error"),
        ("timeout", 504, "upstream_timeout"),
    ],
)
def test_a_failure_keeps_its_meaning_through_two_gateways(chain, fail, status, code, stream):
    chain = chain(fail=fail, cooldown=0)
    for which in ("inner", "outer"):
        reply = chain.ask(which, stream=stream)
        assert (reply.status, reply.error["code"]) == (status, code)
    outer, inner = chain.rows()
    assert (outer.cost, inner.cost) == (0, 0)


def test_a_failure_in_mid_stream_reaches_the_far_end_as_one(chain):
    chain = chain(fail="unavailable", fail_after=2)
    reply = chain.ask(stream=True)
    assert reply.status == 200
    *_, last, rest = reply.read().split(b"\n\n")
    assert rest == b""
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
    outer, inner = chain.rows()
    assert outer.outcome == inner.outcome == "upstream_error"
    assert outer.completion_tokens == inner.completion_tokens > 0


def test_a_caller_who_leaves_ends_the_call_at_both(chain, eventually):
    chain = chain(delay=0.01, text="word " * 1000)
    reply = chain.ask(stream=True)
    next(reply)
    reply.close()
    eventually(lambda: chain.inner.ledger.entries("outer"))
    outer, inner = chain.rows()
    assert outer.outcome == inner.outcome == "caller_left"
    assert inner.completion_tokens < 500
    assert chain.inner.ledger.balance("outer").held == 0
    assert not chain.inner.rate_limiter._state().open
