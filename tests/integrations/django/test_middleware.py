import asyncio
import io
import json
import os

import pytest
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.signals import request_finished, request_started
from django.db import connections
from django.test import AsyncClient, Client, RequestFactory, override_settings
from project.routers import Chosen

from oneai_middleware import ConfigurationError
from oneai_middleware.integrations.django.bridge import respond
from oneai_middleware.integrations.django.conf import gateway
from oneai_middleware.integrations.django.middleware import OneAIMiddleware
from oneai_middleware.key_stores.base import KeyStore

OURS = "oneai_middleware.integrations.django.middleware.OneAIMiddleware"
URL = "/oneai/v1/chat/completions"
CHAT = {"model": "bot", "messages": [{"role": "user", "content": "one two three"}]}


def post(client, key, **fields):
    return client.post(
        URL, {**CHAT, **fields}, "application/json", headers={"Authorization": f"Bearer {key}"}
    )


def test_the_setting_is_read_anew_when_a_test_overrides_it(use, secret, oneai):
    client = use()
    assert post(client, secret).status_code == 200
    with override_settings(ONEAI={**oneai, "MOUNT": "/ai"}):
        assert client.get(URL).status_code == 404
        assert client.get("/ai/v1/models").json()["error"]["code"] == "invalid_api_key"
    assert post(client, secret).status_code == 200


def test_the_gateway_before_lets_go_of_its_connections(use, oneai):
    use()
    closed = []
    gateway().close = lambda: closed.append(True)
    with override_settings(ONEAI={**oneai, "MOUNT": "/ai"}):
        assert closed == [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PROVIDRES": {}}, "ONEAI: .*did you mean 'PROVIDERS'"),
        ({"providers": {}}, "write 'providers' in upper case"),
        ({"MOUNT": "/oneai/v1"}, "mount"),
        ({"PROVIDERS": {"deepseek": {}}}, "api_key"),
        ({"AUTHENTICATE": "project.nowhere:who"}, "authenticate: 'project.nowhere:who'"),
    ],
)
def test_a_mistake_in_the_setting_stops_the_start_and_is_named(use, changes, message):
    client = use(**changes)
    with pytest.raises(ConfigurationError, match=message):
        client.get("/page/")


def test_a_setting_that_is_no_dict_is_named(use):
    client = use(ONEAI=["PROVIDERS"])
    with pytest.raises(ConfigurationError, match="ONEAI: a dict of settings, not list"):
        client.get("/page/")


def test_a_project_whose_provider_cannot_be_reached_serves_its_own_pages(use, secret):
    nowhere = {"base_url": "http://127.0.0.1:9/v1", "api_key": "sk-1"}
    client = use(
        PROVIDERS={"up": nowhere}, MODELS={"bot": {"routes": ["up/b"], "input": "1", "output": "2"}}
    )
    assert client.get("/page/").status_code == 200
    reply = post(client, secret)
    assert (reply.status_code, reply.json()["error"]["type"]) == (502, "api_error")
    assert gateway().ledger.balance("alice").spent == 0


class Down(KeyStore):
    def find(self, digest):
        raise ConnectionError


def test_a_project_whose_key_store_is_down_serves_its_own_pages(use, secret):
    client = use(KEY_STORE=Down(), LEDGER="memory", ACCOUNTS={})
    assert client.get("/page/").status_code == 200
    reply = post(client, secret)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_unavailable")
    assert client.get("/page/").status_code == 200


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (None, "no such table: oneai_apikey; are its tables there"),
        ("/nowhere/at all", "unable to open database file"),
    ],
)
def test_a_database_that_cannot_be_used_gives_nothing_away(
    use, secret, monkeypatch, caplog, file, said
):
    monkeypatch.setattr(Chosen, "alias", "other")
    monkeypatch.setitem(connections.settings["other"], "ATOMIC_REQUESTS", False)
    if file:
        monkeypatch.setitem(connections["other"].settings_dict, "NAME", file)
    client = use(KEY_STORE="django", ACCOUNTS={})
    assert client.get("/page/").status_code == 200
    reply = post(client, secret)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_unavailable")
    assert "table" not in reply.json()["error"]["message"]
    assert said in caplog.text
    assert client.get("/page/").status_code == 200


def test_signals_are_sent_once_a_call(use, secret):
    seen = []

    def started(**_):
        seen.append("started")

    def finished(**_):
        seen.append("finished")

    client = use()
    request_started.connect(started)
    request_finished.connect(finished)
    try:
        reply = post(client, secret, stream=True)
        assert seen == ["started"]
        assert b"".join(reply).endswith(b"data: [DONE]\n\n")
        assert seen == ["started", "finished"]
    finally:
        request_started.disconnect(started)
        request_finished.disconnect(finished)


def test_head_has_no_body(use, headers):
    """Conformance 6."""
    reply = use().head("/oneai/v1/models", headers=headers)
    assert (reply.status_code, reply.content) == (200, b"")
    assert int(reply["Content-Length"]) > 100


def test_without_the_middleware_nothing_is_ours(use):
    client = use(MIDDLEWARE=settings.MIDDLEWARE[1:])
    assert client.get("/oneai/v1/models").status_code == 404


# --- in the wrong place -----------------------------------------------------------------


def reading(get_response):
    """A middleware that looks into every body, as loggers do."""

    def middleware(request):
        assert request.body is not None
        return get_response(request)

    return middleware


@pytest.mark.parametrize("stream", [False, True])
def test_behind_all_others_it_answers_too(use, secret, stream):
    """Conformance 10."""
    others = [name for name in settings.MIDDLEWARE if name != OURS]
    client = use(MIDDLEWARE=[f"{__name__}.reading", *others, OURS])
    reply = client.post(
        URL,
        {**CHAT, "stream": stream},
        "application/json",
        headers={"Authorization": f"Bearer {secret}", "Accept-Encoding": "gzip"},
    )
    assert reply.status_code == 200
    assert "Content-Encoding" not in reply
    assert b"one" in b"".join(reply)


def test_behind_gzip_a_stream_still_comes_event_by_event(use, secret):
    client = use(MIDDLEWARE=["django.middleware.gzip.GZipMiddleware", *settings.MIDDLEWARE])
    reply = client.post(
        URL,
        {**CHAT, "model": "pausing", "stream": True},
        "application/json",
        headers={"Authorization": f"Bearer {secret}", "Accept-Encoding": "gzip"},
    )
    assert b'"one "' in next(reply.streaming_content)
    reply.close()


# --- under ASGI ---------------------------------------------------------------------------


def test_under_asgi_one_error_names_the_fix(use, headers):
    use()

    async def ask():
        client = AsyncClient()
        refused = await client.post(URL, CHAT, "application/json", headers=headers)
        return refused, await client.get("/page")

    refused, page = asyncio.run(ask())
    assert (refused.status_code, refused["Content-Type"]) == (500, "application/json")
    assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
    assert "wsgi.py" in refused.json()["error"]["message"]
    assert page.status_code == 301  # the project's own are served


def test_an_asgi_server_gets_that_error(use):
    use()
    sent = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": URL,
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
    }

    asked = []

    async def receive():
        if asked:
            await asyncio.Event().wait()
        asked.append(True)
        return {"type": "http.request", "body": json.dumps(CHAT).encode(), "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(ASGIHandler()(scope, receive, send))
    assert sent[0]["status"] == 500
    assert b"wsgi.py" in sent[1]["body"]


# --- what the debug page prints -----------------------------------------------------------


def test_the_debug_page_prints_no_key(use, secret, headers):
    client = use(
        DEBUG=True,
        PROVIDERS={"deepseek": {"api_key": "sk-of-the-provider"}},
        MODELS={},
        AUTHENTICATE="oneai_middleware.integrations.django.session:session_account",
    )
    client.raise_request_exception = False
    page = client.get("/broken/", headers=headers)
    assert (page.status_code, b"a bug of the project" in page.content) == (500, True)
    assert b"ONEAI" in page.content
    assert secret.encode() not in page.content.replace(f"Bearer {secret}".encode(), b"")
    assert b"sk-of-the-provider" not in page.content


def test_a_client_with_no_csrf_checks_is_answered_alike(use, secret):
    use()
    assert post(Client(), secret).status_code == 200


@pytest.mark.parametrize("status", [401, 502])
def test_no_mail_about_a_callers_error_goes_to_the_admins(use, secret, caplog, status):
    nowhere = {"base_url": "http://127.0.0.1:9/v1", "api_key": "sk-1"}
    client = use(
        PROVIDERS={"up": nowhere}, MODELS={"bot": {"routes": ["up/b"], "input": "1", "output": "2"}}
    )
    assert post(client, secret if status == 502 else "oneai-sk-wrong").status_code == status
    assert [record for record in caplog.records if record.name == "django.request"] == []


def test_a_middleware_that_switches_csrf_off_does_not_hide_the_workers(use, secret):
    use()
    request = RequestFactory().post(URL, CHAT, "application/json", HTTP_X_API_KEY=secret)
    request.environ["wsgi.input"] = io.BytesIO(request.body)
    request._dont_enforce_csrf_checks = True
    reply = OneAIMiddleware(lambda request: None)(request)
    assert (reply.status_code, json.loads(reply.content)["error"]["code"]) == (
        503,
        "store_unavailable",
    )


def test_the_gateway_asked_for_while_it_is_made_is_a_mistake_and_no_standstill(use):
    client = use(AUTHENTICATE="project.eager:who")
    with pytest.raises(ConfigurationError, match="while it is being made"):
        client.get("/page/")


def test_a_header_sent_twice_arrives_twice():
    def application(environ, start_response):
        start_response("200 OK", [("Vary", "Origin"), ("Vary", "Cookie")])
        return [b"x"]

    reply = respond(application, {})
    assert reply["Vary"] == "Origin, Cookie"
    assert "Content-Type" not in reply


# --- where the app is not installed -------------------------------------------------------

WITHOUT_THE_APP = """
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=[], ONEAI={"KEY_STORE": "django"}, DATABASES={}, MIDDLEWARE=[
    "oneai_middleware.integrations.django.middleware.OneAIMiddleware"
])
from django.core.wsgi import get_wsgi_application
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            f"{WITHOUT_THE_APP}get_wsgi_application()",
            "to INSTALLED_APPS and run `manage.py migrate`",
        ),
        (
            "from oneai_middleware import Gateway\nGateway(key_store='django')",
            "settings are not configured",
        ),
        (
            f"{WITHOUT_THE_APP}settings.ONEAI = {{}}\nget_wsgi_application()\nprint('it starts')",
            "it starts",
        ),
    ],
)
def test_the_database_is_for_projects_that_have_the_app(warm, source, said):
    environment = {name: text for name, text in os.environ.items() if "DJANGO" not in name}
    done = warm.run(["-W", "error", "-c", source], env=environment)
    last = (done.stdout + done.stderr).strip().splitlines()[-1]
    assert said in last
    assert "starts" in last or "ConfigurationError: key_store: " in last
