import json

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client, RequestFactory, override_settings

from oneai_middleware.errors import CrossSiteRequest
from oneai_middleware.integrations.django.conf import gateway
from oneai_middleware.integrations.django.session import session_account

pytestmark = pytest.mark.usefixtures("empty")

URL = "/oneai/v1/chat/completions"
CHAT = {"model": "bot", "messages": [{"role": "user", "content": "one two three"}]}
OWN = {"Origin": "http://testserver"}


@pytest.fixture
def login(use):
    """A client whose user ``alice`` is logged in; the options are settings."""

    def login(**changes):
        client = use(
            AUTHENTICATE="oneai_middleware.integrations.django.session:session_account", **changes
        )
        client.force_login(User.objects.create_user("alice", password="first"))
        return client

    return login


def post(client, headers, **fields):
    reply = client.post(URL, {**CHAT, **fields}, "application/json", headers=headers)
    code = None if reply.status_code == 200 else json.loads(reply.content)["error"]["code"]
    return reply.status_code, code


REFUSED = (403, "cross_site_request")
NOBODY = (401, "invalid_api_key")
SERVED = (200, None)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (OWN, SERVED),
        ({"Sec-Fetch-Site": "same-origin"}, SERVED),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, REFUSED),
        ({"Origin": "http://testserver.evil.example"}, REFUSED),
        ({"Origin": "https://testserver"}, REFUSED),
        ({"Origin": "null"}, REFUSED),
        ({"Origin": "http://["}, REFUSED),
        ({"Sec-Fetch-Site": "same-site"}, REFUSED),
        ({}, REFUSED),
    ],
)
def test_a_login_is_a_caller_on_the_projects_own_pages_alone(login, headers, expected):
    client = login()
    assert post(client, headers) == expected
    rows = gateway().ledger.entries("alice")
    assert len(rows) == (1 if expected == SERVED else 0)


def test_a_stream_works_as_well(login):
    client = login()
    reply = client.post(URL, {**CHAT, "stream": True}, "application/json", headers=OWN)
    assert b"".join(reply).endswith(b"data: [DONE]\n\n")


def test_a_page_may_list_the_models_without_saying_where_it_is(login):
    assert login().get("/oneai/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://app.example", SERVED),
        ("http://app.example", REFUSED),
        ("https://a.shop.example", SERVED),
        ("https://shop.example.evil", REFUSED),
        ("https://evilshop.example", REFUSED),
    ],
)
def test_origins_that_the_project_trusts_are_trusted(login, origin, expected):
    client = login(CSRF_TRUSTED_ORIGINS=["https://app.example", "https://*.shop.example"])
    assert post(client, {"Origin": origin}) == expected


def test_behind_a_proxy_that_ends_tls_the_origin_is_the_outer_one(login):
    client = login(SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"))
    headers = {
        "Host": "testserver",
        "Origin": "https://testserver",
        "X-Forwarded-Proto": "https",
    }
    assert post(client, headers) == SERVED


def test_a_host_name_that_is_not_served_is_refused(login):
    client = login()
    assert post(client, {"Host": "evil.example", "Origin": "http://evil.example"}) == REFUSED


def test_a_visitor_is_nobody(login):
    login()
    assert post(Client(), OWN) == NOBODY


@pytest.mark.parametrize("cookie", ["", "x", "0" * 32, "../../etc/passwd", "é"])
def test_a_forged_session_is_nobody(login, cookie):
    client = login()
    client.cookies["sessionid"] = cookie
    assert post(client, OWN) == NOBODY


def test_a_session_that_has_ended_is_nobody(login):
    client = login()
    Session.objects.update(expire_date="2000-01-01T00:00:00Z")
    assert post(client, OWN) == NOBODY


def test_a_session_from_before_the_password_was_changed_is_nobody(login):
    client = login()
    user = User.objects.get()
    user.set_password("second")
    user.save()
    assert post(client, OWN) == NOBODY
    assert Session.objects.count() == 1  # to end it is the project's business


def test_a_user_who_is_not_active_is_nobody(login):
    client = login()
    User.objects.update(is_active=False)
    assert post(client, OWN) == NOBODY


def test_a_user_without_an_account_is_nobody(login):
    client = login()
    User.objects.update(username="carol")
    assert post(client, OWN) == NOBODY


def test_a_key_is_a_key_whoever_is_logged_in(login):
    client = login()
    wrong = {**OWN, "Authorization": "Bearer oneai-sk-" + "0" * 46}
    assert post(client, wrong) == NOBODY


def test_a_login_outlives_a_change_of_the_secret_key(login):
    client = login()
    (before,) = Session.objects.values_list("session_key", "session_data")
    old = "django-insecure-of-the-tests"
    with override_settings(SECRET_KEY="another", SECRET_KEY_FALLBACKS=[old]):
        assert post(client, OWN) == SERVED
    # Django would give it a new key here, and the browser would not hear of it.
    assert list(Session.objects.values_list("session_key", "session_data")) == [before]


@pytest.mark.parametrize("engine", ["cache", "cached_db", "file", "signed_cookies"])
def test_sessions_may_be_kept_anywhere(login, engine, tmp_path):
    client = login(
        SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}", SESSION_FILE_PATH=str(tmp_path)
    )
    assert post(client, OWN) == SERVED
    assert post(Client(), OWN) == NOBODY


def test_the_hook_says_what_it_finds(login):
    client = login()
    factory = RequestFactory()
    factory.cookies = client.cookies
    assert session_account(factory.post(URL, headers=OWN).environ) == "alice"
    assert session_account(RequestFactory().post(URL, headers=OWN).environ) is None
    with pytest.raises(CrossSiteRequest, match="its own pages only"):
        session_account(factory.post(URL).environ)
