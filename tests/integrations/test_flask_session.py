"""A login of the Flask app as a caller, and pages of other sites kept out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, session
from flask.testing import FlaskClient

from oneai_middleware.integrations.flask import OneAI, session_account

CHAT = "/oneai/v1/chat/completions"
MODELS = "/oneai/v1/models"
BODY = {"model": "bot", "messages": [{"role": "user", "content": "hello"}]}
OWN = {"Origin": "http://localhost"}


@pytest.fixture
def shop(secret: str) -> Flask:
    """An app with a login, whose ``bot`` greets the account that asks."""
    app = Flask("shop")
    app.config.update(
        SECRET_KEY="of the tests",
        ONEAI_PROVIDERS={"shop": {"backend": lambda request: request.caller.account.name}},
        ONEAI_MODELS={"bot": {"routes": ["shop/bot"], "input": "1", "output": "2"}},
        ONEAI_ACCOUNTS={
            "alice": {"tier": "pro", "balance": "1", "keys": [secret]},
            "7": {"balance": "1"},
        },
        ONEAI_AUTHENTICATE=session_account,
    )

    @app.post("/login/<place>/<name>")
    def login(place: str, name: str) -> str:
        session[place] = int(name) if name.isdigit() else name
        return "welcome"

    OneAI(app)
    return app


@pytest.fixture
def login(shop: Flask) -> Callable[..., FlaskClient]:
    """A browser that is logged in."""

    def login(name: str = "alice", place: str = "user_id") -> FlaskClient:
        client = shop.test_client()
        assert client.post(f"/login/{place}/{name}").status_code == 200
        return client

    return login


def entries(app: Flask, account: str = "alice") -> Any:
    return app.extensions["oneai"].ledger.entries(account)


def refused(reply: Any) -> bool:
    """Whether this is the 403; everything else must be a success."""
    if reply.status_code == 200:
        return False
    assert reply.status_code == 403
    assert reply.json["error"]["code"] == "cross_site_request"
    assert reply.json["error"]["type"] == "invalid_request_error"
    return True


@pytest.mark.parametrize("place", ["user_id", "_user_id"])
@pytest.mark.parametrize("name", ["alice", "7"])
def test_the_user_who_is_logged_in_is_the_caller(
    shop: Flask, login: Any, place: str, name: str
) -> None:
    reply = login(name, place).post(CHAT, json=BODY, headers=OWN)
    assert reply.json["choices"][0]["message"]["content"] == name
    (entry,) = entries(shop, name)
    assert entry.account == name
    assert entry.key is None
    assert "Set-Cookie" not in reply.headers


def test_a_visitor_is_asked_for_a_key(shop: Flask) -> None:
    reply = shop.test_client().post(CHAT, json=BODY, headers=OWN)
    assert reply.status_code == 401
    assert reply.json["error"]["code"] == "invalid_api_key"


def test_a_user_without_an_account_is_refused(login: Any) -> None:
    assert login("bob").post(CHAT, json=BODY, headers=OWN).status_code == 401


def test_a_cookie_that_was_tampered_with_is_no_login(shop: Flask) -> None:
    client = shop.test_client()
    client.set_cookie("session", "eyJ1c2VyX2lkIjoiYWxpY2UifQ.aaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbb")
    assert client.post(CHAT, json=BODY, headers=OWN).status_code == 401


def test_an_app_without_sessions_has_visitors_only(shop: Flask) -> None:
    shop.config["SECRET_KEY"] = None
    assert shop.test_client().post(CHAT, json=BODY, headers=OWN).status_code == 401


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://pages.localhost", "Sec-Fetch-Site": "same-site"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {},
    ],
)
def test_another_sites_page_spends_nothing(
    shop: Flask, login: Any, headers: dict[str, str], stream: bool
) -> None:
    reply = login().post(CHAT, json={**BODY, "stream": stream}, headers=headers)
    assert refused(reply)
    assert list(entries(shop)) == []
    assert shop.extensions["oneai"].ledger.balance("alice").available == 10**9


@pytest.mark.parametrize(
    "headers", [OWN, {**OWN, "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "same-origin"}]
)
def test_a_page_of_the_app_passes(login: Any, headers: dict[str, str]) -> None:
    assert not refused(login().post(CHAT, json=BODY, headers=headers))


def test_the_list_of_models_may_be_opened_in_the_browser(login: Any) -> None:
    client = login()
    assert not refused(client.get(MODELS))
    assert not refused(client.get(MODELS, headers={"Sec-Fetch-Site": "none"}))
    assert refused(client.get(MODELS, headers={"Origin": "https://evil.example"}))
    assert refused(client.get(MODELS, headers={"Sec-Fetch-Site": "cross-site"}))


@pytest.mark.parametrize("site", ["cross-site", "same-site", None])
def test_who_shows_a_key_is_never_asked_where_from(
    shop: Flask, login: Any, headers: dict[str, str], site: str | None
) -> None:
    sent = {**headers, "Origin": "https://elsewhere.example"}
    if site is not None:
        sent["Sec-Fetch-Site"] = site
    for client in (shop.test_client(), login("7")):
        reply = client.post(CHAT, json=BODY, headers=sent)
        assert reply.json["choices"][0]["message"]["content"] == "alice"


def test_a_wrong_key_is_not_mended_by_a_login(login: Any, headers: dict[str, str]) -> None:
    wrong = headers["Authorization"][:-1] + "!"
    assert login().post(CHAT, json=BODY, headers={"Authorization": wrong}).status_code == 401


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("shop.example", "http://shop.example"),
        ("shop.example:80", "http://shop.example"),
        ("shop.example:5000", "http://shop.example:5000"),
        ("xn--bcher-kva.example", "http://xn--bcher-kva.example"),
        ("[::1]:5000", "http://[::1]:5000"),
    ],
)
def test_the_apps_own_origin_is_the_host_that_was_asked(
    shop: Flask, login: Any, host: str, origin: str
) -> None:
    sent = {"Cookie": f"session={login().get_cookie('session').value}", "Host": host}
    client = shop.test_client(use_cookies=False)
    assert not refused(client.post(CHAT, json=BODY, headers={**sent, "Origin": origin}))
    assert refused(client.post(CHAT, json=BODY, headers={**sent, "Origin": f"{origin}1"}))


@pytest.mark.parametrize("host", ["", "evil example", "[", "a/b"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", ""])
def test_a_host_that_is_none_has_no_pages(shop: Flask, login: Any, host: str, origin: str) -> None:
    sent = {"Cookie": f"session={login().get_cookie('session').value}", "Host": host}
    client = shop.test_client(use_cookies=False)
    assert refused(client.post(CHAT, json=BODY, headers={**sent, "Origin": origin}))


def test_a_session_may_keep_its_user_elsewhere(shop: Flask, secret: str) -> None:
    app = Flask("other")
    app.config.update(
        SECRET_KEY="of the tests",
        ONEAI_PROVIDERS=shop.config["ONEAI_PROVIDERS"],
        ONEAI_MODELS=shop.config["ONEAI_MODELS"],
        ONEAI_ACCOUNTS={"alice": {"balance": "1"}},
        ONEAI_AUTHENTICATE=lambda environ: session_account(environ, keys=("member",)),
    )
    OneAI(app)
    client = app.test_client()
    with client.session_transaction() as stored:
        stored.update(user_id="bob", member="alice")
    reply = client.post(CHAT, json=BODY, headers=OWN)
    assert reply.json["choices"][0]["message"]["content"] == "alice"


def test_a_hook_of_the_hosts_own_decides_for_itself(shop: Flask) -> None:
    app = Flask("signed")
    app.config.update(
        {name: value for name, value in shop.config.items() if name.startswith("ONEAI_")},
        ONEAI_AUTHENTICATE=lambda environ: environ.get("HTTP_X_SIGNED_BY_OUR_PROXY"),
    )
    OneAI(app)
    client = app.test_client()
    sent = {"X-Signed-By-Our-Proxy": "alice", "Origin": "https://elsewhere.example"}
    assert client.post(CHAT, json=BODY, headers=sent).status_code == 200
    assert client.post(CHAT, json=BODY).status_code == 401
