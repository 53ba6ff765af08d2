import json
import threading

import pytest
from flask import Flask, current_app, g, has_app_context
from flask.globals import app_ctx

from oneai_middleware import ConfigurationError
from oneai_middleware.integrations.flask import OneAI

BODY = {"model": "bot", "messages": [{"role": "user", "content": "hello"}]}
URL = "/oneai/v1/chat/completions"

both = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture
def make_flask(secret):
    """Flask applications named ``shop`` whose ``bot`` is a function."""

    def make(function, **config):
        app = Flask("shop")
        app.config.update(
            ONEAI_PROVIDERS={"shop": {"backend": function}},
            ONEAI_MODELS={"bot": {"routes": ["shop/bot"], "input": "1", "output": "2"}},
            ONEAI_ACCOUNTS={"alice": {"tier": "pro", "balance": "1", "keys": [secret]}},
            **config,
        )

        @app.route("/")
        def home():
            return "the shop"

        OneAI(app)
        return app

    return make


@both
def test_a_function_finds_its_application(make_flask, headers, stream, eventually):
    seen, torn_down = [], []

    def bot(request):
        g.name = current_app.name
        seen.append((current_app.name, threading.get_ident()))
        yield "from "
        yield g.name

    app = make_flask(bot)

    @app.teardown_appcontext
    def teardown(error):
        torn_down.append((g.get("name"), threading.get_ident()))

    reply = app.test_client().post(URL, json={**BODY, "stream": stream}, headers=headers)
    assert reply.status_code == 200
    if stream:
        *events, done, _ = reply.data.split(b"\n\n")
        assert done == b"data: [DONE]"
        chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    else:
        text = reply.json["choices"][0]["message"]["content"]
    assert text == "from shop"
    ((name, thread),) = seen
    assert (thread == threading.get_ident()) is not stream
    # Its own context was torn down, where it was made.
    eventually(lambda: ("shop", thread) in torn_down)
    assert name == "shop"
    assert not has_app_context()


@both
def test_no_context_is_left_behind_by_a_function_that_fails(
    make_flask, headers, stream, eventually
):
    open_contexts = []

    def bot(request):
        open_contexts.append(app_ctx._get_current_object())
        yield "word"
        raise ValueError

    app = make_flask(bot)
    closed = []
    app.teardown_appcontext(lambda error: closed.append(app_ctx._get_current_object()))
    app.test_client().post(URL, json={**BODY, "stream": stream}, headers=headers).close()
    eventually(lambda: open_contexts[0] in closed)
    assert not has_app_context()


def test_no_context_is_left_behind_by_a_caller_who_left(make_flask, headers, eventually):
    open_contexts, closed = [], []

    def bot(request):
        open_contexts.append(app_ctx._get_current_object())
        yield "word"
        request.cancellation.wait(10)

    app = make_flask(bot)
    app.teardown_appcontext(lambda error: closed.append(app_ctx._get_current_object()))
    reply = app.test_client().post(
        URL, json={**BODY, "stream": True}, headers=headers, buffered=False
    )
    assert b"word" in next(reply.iter_encoded())
    reply.close()
    eventually(lambda: open_contexts[0] in closed)
    ledger = app.extensions["oneai"].ledger
    assert ledger.entries("alice")[-1].outcome == "caller_left"
    assert ledger.balance("alice").held == 0


def test_the_rest_of_the_application_is_untouched(make_flask):
    client = make_flask(lambda request: "x").test_client()
    assert client.get("/").data == b"the shop"
    assert client.get("/missing").status_code == 404
    assert client.get("/oneai/v1/missing").json["error"]["code"] == "unknown_url"


def test_hooks_of_the_application_do_not_see_the_api(make_flask, headers):
    app = make_flask(lambda request: "x")
    app.before_request(lambda: "stopped by the host")
    client = app.test_client()
    assert client.get("/").data == b"stopped by the host"
    assert client.post(URL, json=BODY, headers=headers).status_code == 200


def test_the_hosts_own_identity_is_asked_in_its_context(make_flask):
    seen = []

    def who(environ):
        seen.append(current_app.name)
        return "alice"

    app = make_flask(lambda request: "x", ONEAI_AUTHENTICATE=who)
    assert app.test_client().post(URL, json=BODY).status_code == 200
    assert seen == ["shop"]


def test_the_mount_is_the_applications_choice(make_flask, headers):
    app = make_flask(lambda request: "x", ONEAI_MOUNT="/ai")
    client = app.test_client()
    assert client.post("/ai/v1/chat/completions", json=BODY, headers=headers).status_code == 200
    assert client.post(URL, json=BODY, headers=headers).status_code == 404


def test_one_extension_serves_several_applications(secret, headers):
    extension = OneAI()
    apps = []
    for name in ("one", "two"):
        app = Flask(name)
        app.config.update(
            ONEAI_PROVIDERS={"shop": {"backend": lambda request: current_app.name}},
            ONEAI_MODELS={"bot": {"routes": ["shop/bot"], "input": "1", "output": "2"}},
            ONEAI_ACCOUNTS={"alice": {"balance": "1", "keys": [secret]}},
        )
        extension.init_app(app)
        apps.append(app)
    for app in apps:
        reply = app.test_client().post(URL, json=BODY, headers=headers)
        assert reply.json["choices"][0]["message"]["content"] == app.name


def test_mounting_twice_is_refused(make_flask):
    app = make_flask(lambda request: "x")
    with pytest.raises(ConfigurationError, match="once"):
        OneAI(app)


def test_a_misspelt_setting_is_named():
    app = Flask("shop")
    app.config["ONEAI_PROVIDRES"] = {}
    with pytest.raises(ConfigurationError, match="did you mean 'providers'"):
        OneAI(app)
