"""The API as a part of the project's own URLs."""

import asyncio
import json

import pytest
from django.db import connection, connections
from django.http import HttpResponse
from django.test import AsyncClient, override_settings
from django.urls import include, path

from oneai_middleware import ConfigurationError
from oneai_middleware.integrations.django.conf import gateway

API = "oneai_middleware.integrations.django.urls"
CHAT = {"model": "bot", "messages": [{"role": "user", "content": "one two three"}]}


def post(client, secret, where="/oneai", **fields):
    return client.post(
        f"{where}/v1/chat/completions",
        {**CHAT, **fields},
        "application/json",
        headers={"Authorization": f"Bearer {secret}", "Accept-Encoding": "gzip"},
    )


@pytest.fixture
def included(use_included):
    """A test client of the project, whose accounts are as at its start."""

    def included(**changes):
        client = use_included(**changes)
        with override_settings(ROOT_URLCONF="project.included"):
            assert client.get("/fresh/").content == b"fresh"
        return client

    return included


def host(request):
    return HttpResponse("the project's own")


def urls(prefix):
    return (path("own/", host), path(prefix, include(API)))


@pytest.mark.parametrize(
    ("prefix", "where"),
    [
        ("ai/", "/ai"),
        ("shop/ai/", "/shop/ai"),
        ("ai", "/ai"),
        ("käse/", "/k%C3%A4se"),
        ("<slug:shop>/ai/", "/cheese/ai"),
        ("", ""),
    ],
)
def test_it_is_where_it_is_included(included, secret, prefix, where):
    client = included(ROOT_URLCONF=urls(prefix), MOUNT="/elsewhere")
    assert client.get("/own/").content == b"the project's own"
    assert post(client, secret, where).json()["choices"][0]["message"]["content"]
    answer = post(client, secret, where, stream=True)
    assert b"".join(answer).endswith(b"data: [DONE]\n\n")
    assert client.get(f"{where}/v1/models").json()["error"]["code"] == "invalid_api_key"
    assert post(client, secret, "/elsewhere").status_code == 404


@pytest.mark.parametrize("path", ["", "/", "/x", "/v1//models", "/v1/models%0A", "/own/", "/%FF"])
def test_everything_below_it_is_its_own(included, path):
    """Conformance 3."""
    reply = included(ROOT_URLCONF=urls("ai/")).get(f"/ai{path}", follow=True)
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "unknown_url"


@pytest.mark.parametrize("path", ["/", "/x", "/v2/models", "/v11"])
def test_included_at_the_root_it_has_v1_alone(included, path):
    reply = included(ROOT_URLCONF=urls("")).get(path)
    assert (reply.status_code, reply["Content-Type"]) == (404, "text/html; charset=utf-8")


def test_a_place_whose_name_only_begins_like_its_own_is_the_projects(included):
    reply = included(ROOT_URLCONF=urls("ai")).get("/aix/v1/models")
    assert (reply.status_code, reply["Content-Type"]) == (404, "text/html; charset=utf-8")


def who(environ):
    """The project's own identity, and whether it is asked inside a transaction."""
    asked.append([connections[alias].in_atomic_block for alias in connections])
    return "alice"


asked = []


def test_it_runs_in_no_transaction_of_any_database(included):
    client = included(AUTHENTICATE=who)
    asked.clear()
    assert client.post("/oneai/v1/chat/completions", CHAT, "application/json").status_code == 200
    assert len(asked) == 1
    assert not any(asked[0])
    assert len(asked[0]) >= 2


def test_a_stream_has_its_first_event_before_its_second_and_no_connection(included, secret):
    reply = post(included(), secret, model="pausing", stream=True)
    assert b'"one "' in next(reply.streaming_content)
    assert connection.connection is None
    reply.close()
    assert gateway().ledger.balance("alice").held == 0


def test_nothing_is_connected_while_a_provider_is_waited_for(included, secret, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", None)
    open_connections = []

    def bot(request):
        open_connections.append(connection.connection)
        return "yes"

    shop = {"PROVIDERS": {"shop": {"backend": bot}}}
    routes = {"bot": {"routes": ["shop/bot"], "input": "1", "output": "2"}}
    assert post(included(**shop, MODELS=routes), secret).status_code == 200
    assert open_connections == [None]


def test_a_body_that_a_middleware_has_read_is_there(included, secret, settings_middleware):
    client = included(MIDDLEWARE=[f"{__name__}.reading", *settings_middleware])
    assert post(client, secret).status_code == 200


@pytest.fixture
def settings_middleware():
    from project import settings

    return settings.MIDDLEWARE[1:]


def reading(get_response):
    """A middleware that looks into every body, as loggers do."""

    def middleware(request):
        assert request.body is not None
        return get_response(request)

    return middleware


def test_a_model_whose_name_is_not_in_ascii_is_found(included, secret):
    model = {"routes": ["echo/bot"], "input": "1", "output": "2"}
    client = included(MODELS={"modèle/é 1": model})
    key = {"Authorization": f"Bearer {secret}"}
    reply = client.get("/oneai/v1/models/mod%C3%A8le/%C3%A9%201", headers=key)
    assert reply.json()["id"] == "modèle/é 1"


def test_a_mistake_in_the_setting_is_named(included, secret):
    client = included(MUONT="/ai", ROOT_URLCONF=urls("ai/"))
    with pytest.raises(ConfigurationError, match="did you mean 'MOUNT'"):
        post(client, secret, "/ai")


def test_under_asgi_one_error_names_the_fix(included, headers):
    included()
    ask = AsyncClient().post("/oneai/v1/chat/completions", CHAT, "application/json")
    refused = asyncio.run(ask)
    assert (refused.status_code, refused["Content-Type"]) == (500, "application/json")
    assert "wsgi.py" in json.loads(refused.content)["error"]["message"]
