"""What the examples show is run as it stands there."""

from __future__ import annotations

import hmac
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from flask import Flask
from flask.testing import FlaskClient
from openai import OpenAI

from oneai_middleware import ConfigurationError, Gateway, Settings, plugins
from oneai_middleware.accounts import NANO, dollars
from oneai_middleware.secret import digest, new_secret

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
CHAT = {"messages": [{"role": "user", "content": "When are you open?"}]}


def load(path: str) -> ModuleType:
    """The example at ``path`` as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    secret = new_secret()
    monkeypatch.setenv("ALICE_KEY", secret)
    monkeypatch.setenv("SHOP_API_KEY", secret)
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-not-asked-for")
    return secret


def test_the_flask_example_answers_with_its_own_function(key: str, send: Any) -> None:
    app = load("flask_app/app.py").create_app()
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": "opening-hours", **CHAT}
    reply = send(app, "POST", "/oneai/v1/chat/completions", body, headers)
    content = reply.json["choices"][0]["message"]["content"]
    assert content == "Hello alice, we are open from nine to five."
    assert send(app, "GET", "/").read() == b"The shop's own page."
    listed = send(app, "GET", "/oneai/v1/models", b"", headers).json["data"]
    assert [model["id"] for model in listed][-1] == "opening-hours"


def test_the_wsgi_example_lists_the_models_of_its_provider(key: str, send: Any) -> None:
    app = load("wsgi_app.py").app
    listed = send(app, "GET", "/oneai/v1/models", b"", {"x-api-key": key}).json["data"]
    assert {model["owned_by"] for model in listed} == {"deepseek"}
    assert send(app, "GET", "/").read() == b"The application's own page.\n"


# --- a model that answers by who asks ---------------------------------------------


@pytest.fixture
def bot_keys(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    keys = {"alice": new_secret(), "bob": new_secret()}
    for name, secret in keys.items():
        monkeypatch.setenv(f"{name.upper()}_KEY", secret)
    return keys


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("alice", "How many holidays are there?", "Holidays: thirty days a year, to be taken"),
        ("bob", "How many holidays are there?", "Holidays: twenty-five days a year, and every"),
        ("alice", "Who books trains?", "Travel: trains are booked by the front desk."),
        ("bob", "Who books trains?", "Your handbook does not say."),
    ],
)
def test_the_rag_bot_answers_from_the_documents_of_whoever_asks(
    bot_keys: dict[str, str], send: Any, name: str, question: str, answer: str
) -> None:
    app = load("rag_bot/app.py").create_app()
    body = {"model": "handbook", "messages": [{"role": "user", "content": question}]}
    headers = {"x-api-key": bot_keys[name]}
    reply = send(app, "POST", "/oneai/v1/chat/completions", body, headers)
    content = reply.json["choices"][0]["message"]["content"]
    assert content.startswith(answer)
    usage = reply.json["usage"]
    assert usage["prompt_tokens"] == len(question.split())
    assert usage["completion_tokens"] == len(content.split())
    [row] = app.extensions["oneai"].ledger.entries(name)
    assert row.cost == usage["prompt_tokens"] * 100 + usage["completion_tokens"] * 400
    assert not row.estimated


def test_the_rag_bot_streams_word_by_word(bot_keys: dict[str, str], send: Any) -> None:
    app = load("rag_bot/app.py").create_app()
    body = {"model": "handbook", "stream": True, **CHAT}
    headers = {"x-api-key": bot_keys["bob"]}
    reply = send(app, "POST", "/oneai/v1/chat/completions", body, headers)
    assert streamed(reply.read()) == ["Your ", "handbook ", "does ", "not ", "say."]


def streamed(events: bytes) -> list[str]:
    """The pieces of text in a stream, which must be complete."""
    *chunks, done, _ = events.decode().split("\n\n")
    assert done == "data: [DONE]"
    read = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    pieces = [each["delta"].get("content") for chunk in read for each in chunk["choices"]]
    return [piece for piece in pieces if piece]


# --- a Django project ---------------------------------------------------------------


@pytest.fixture
def project(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Django example, with a database of its own. Its key is ``key``."""
    monkeypatch.setenv("SHOP_DATABASE", str(tmp_path / "shop.sqlite3"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return EXAMPLES / "django_project"


@pytest.fixture
def run(warm: Any) -> Callable[..., str]:
    """What Python prints in a folder; it must succeed."""

    def run(folder: Path, *arguments: str) -> str:
        done = warm.run(arguments, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    return run


def test_the_django_example_passes_its_own_checks_and_tests(project: Path, run: Any) -> None:
    run(project, "manage.py", "check", "--fail-level", "WARNING")
    run(project, "manage.py", "makemigrations", "--check", "--dry-run")
    run(project, "-W", "error", "manage.py", "test", "-v", "0")


def test_the_django_example_answers_from_its_database(
    project: Path, key: str, start_gunicorn: Any, run: Any
) -> None:
    run(project, "manage.py", "migrate", "-v", "0")
    source = f"""
import sys
sys.path.insert(0, {str(project)!r})
from shop.wsgi import application as app
"""
    server = start_gunicorn(source, "--threads", "4")
    question = [{"role": "user", "content": "Is there a teapot, or a cup?"}]
    body = {"model": "stock", "messages": question, "stream": True}
    request = urllib.request.Request(
        f"{server.url}/oneai/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request) as reply:
        pieces = streamed(reply.read())
    assert pieces == ["We have ", "120 of the cup and 4 of the teapot", "."]
    with urllib.request.urlopen(f"{server.url}/") as reply:
        assert reply.read() == b"The shop's own page."


def test_the_django_example_shows_a_key_that_it_made_itself(
    project: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    monkeypatch.delenv("SHOP_API_KEY")
    assert "oneai-sk-" in run(project, "-c", "import shop.wsgi")


# --- a package with a backend and a key store ---------------------------------------


@pytest.fixture
def custom_backend(monkeypatch: pytest.MonkeyPatch, look_anew: Any) -> Iterator[Path]:
    """The example's folder, as if the package were installed."""
    folder = EXAMPLES / "custom_backend"
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    genuine = plugins.entry_points

    def entry_points(group: str) -> list[EntryPoint]:
        offered = project["entry-points"].get(group, {})
        return [
            *genuine(group=group),
            *(EntryPoint(name, value, group) for name, value in offered.items()),
        ]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    look_anew()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "oneai_faq"]:
        del sys.modules[name]


def test_the_custom_backend_answers_by_the_settings_of_its_readme(
    custom_backend: Path, tmp_path: Path, send: Any
) -> None:
    readme = (custom_backend / "README.md").read_text(encoding="utf-8")
    [settings] = re.findall(r"```toml\n(.*?)```", readme, re.S)
    keys, secret = tmp_path / "keys", new_secret()
    keys.write_text(f"alice sha256:{digest(secret)}\n")
    config = tmp_path / "oneai.toml"
    config.write_text(settings.replace("/etc/oneai/keys", str(keys)), encoding="utf-8")
    gateway = Gateway(Settings.from_file(str(config)))
    headers = {"Authorization": f"Bearer {secret}"}
    body = {"model": "front-desk", "messages": [{"role": "user", "content": "Opening hours?"}]}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    assert reply.json["choices"][0]["message"]["content"] == "We are open from nine to five."
    refused = send(gateway, "POST", "/v1/chat/completions", {"model": "front-desk", **CHAT}, {})
    assert refused.status == 401


def test_the_custom_backend_passes_its_own_tests(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    folder = EXAMPLES / "custom_backend"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    said = run(folder, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert re.search(r"\d\d passed", said)


# --- a shop on Flask and SQLite -------------------------------------------------------


PAYMENT_SECRET = "the payment provider's own secret"
SHOP = "http://localhost"


@pytest.fixture
def shop_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's folder, and the environment that its README sets up."""
    monkeypatch.setenv("SHOP_SECRET_KEY", "the key of the sessions' cookies")
    monkeypatch.setenv("SHOP_PAYMENT_SECRET", PAYMENT_SECRET)
    monkeypatch.setenv("SHOP_DATABASE", str(tmp_path / "shop.db"))
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    return EXAMPLES / "flask_shop"


@pytest.fixture
def make_shop(shop_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Flask]]:
    monkeypatch.syspath_prepend(shop_folder)
    yield importlib.import_module("shop").create_app
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


@pytest.fixture
def shop(make_shop: Callable[[], Flask]) -> Flask:
    return make_shop()


def visitor(app: Flask, email: str) -> FlaskClient:
    """Somebody who has signed up, in a browser."""
    client = app.test_client()
    client.environ_base["HTTP_ORIGIN"] = SHOP
    form = {"email": email, "password": "correct horse"}
    assert client.post("/signup", data=form).status_code == 302
    return client


def new_key(client: FlaskClient, label: str = "") -> str:
    """The secret of a key that the visitor has made: the page shows it this once."""
    page = client.post("/keys", data={"label": label}).text
    [secret] = re.findall(r'<code id="secret">(.*?)</code>', page)
    return str(secret)


def signature(body: bytes, *, at: float = 0, secret: str = PAYMENT_SECRET) -> dict[str, str]:
    """The header with which a payment is announced; ``at`` is in seconds from now."""
    moment = str(int(time.time() + at))
    signed = hmac.new(secret.encode(), f"{moment}.".encode() + body, "sha256").hexdigest()
    return {"Shop-Signature": f"t={moment},v1={signed}"}


def announce(client: FlaskClient, body: bytes, **signing: Any) -> Any:
    """What the shop answers when its payment provider announces a payment."""
    return client.post("/webhooks/payment", data=body, headers=signature(body, **signing))


def payment(**fields: Any) -> bytes:
    return json.dumps({"id": "pay_1", "account": "user:1", "amount": "5.00", **fields}).encode()


def call(client: FlaskClient, secret: str) -> Any:
    body = {"model": "shop-assistant", **CHAT}
    headers = {"Authorization": f"Bearer {secret}"}
    return client.post("/oneai/v1/chat/completions", json=body, headers=headers)


def test_the_shops_users_make_keys_pay_and_call(shop: Flask) -> None:
    alice = visitor(shop, "alice@example.com")
    secret = new_key(alice, "my <script> & I")
    refused = call(alice, secret)
    assert refused.status_code == 402
    assert "http://127.0.0.1:5000/" in refused.json["error"]["message"]
    assert announce(alice, payment()).json == {"booked": True}
    answer = call(alice, secret).json["choices"][0]["message"]["content"]
    assert answer == "We are open from nine to five. You asked: When are you open?"
    page = alice.get("/").text
    spent = shop.extensions["oneai"].ledger.balance("user:1").spent
    assert f"${dollars(5 * NANO - spent)}" in page
    assert "<td>shop-assistant</td><td>1</td>" in page
    assert "my &lt;script&gt; &amp; I" in page
    assert secret[-4:] in page
    [id] = re.findall(r'action="/keys/(.*?)/revoke"', page)
    assert alice.post(f"/keys/{id}/revoke").status_code == 302
    assert call(alice, secret).status_code == 401
    assert "/revoke" not in alice.get("/").text


def test_the_shop_shows_a_secret_once_and_keeps_it_nowhere(
    shop: Flask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    alice = visitor(shop, "alice@example.com")
    made = alice.post("/keys")
    [secret] = re.findall(r'<code id="secret">(.*?)</code>', made.text)
    assert made.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in made.headers
    assert secret not in alice.get("/").text
    assert secret not in caplog.text
    cookie = alice.get_cookie("session")
    assert cookie is not None
    assert secret not in cookie.value
    assert not [file for file in tmp_path.iterdir() if secret.encode() in file.read_bytes()]


def test_the_shops_users_see_and_close_nobody_elses_keys(shop: Flask) -> None:
    alice, bob = visitor(shop, "alice@example.com"), visitor(shop, "bob@example.com")
    secret = new_key(alice)
    [id] = re.findall(r'action="/keys/(.*?)/revoke"', alice.get("/").text)
    assert id not in bob.get("/").text
    assert bob.post(f"/keys/{id}/revoke").status_code == 404
    stranger = shop.test_client()
    stranger.environ_base["HTTP_ORIGIN"] = SHOP
    assert stranger.get("/").headers["Location"] == "/login"
    assert stranger.post("/keys").status_code == 401
    assert stranger.post(f"/keys/{id}/revoke").status_code == 401
    assert call(alice, secret).status_code == 402


def test_the_shops_forms_are_its_own(shop: Flask) -> None:
    alice = visitor(shop, "alice@example.com")
    alice.environ_base.pop("HTTP_ORIGIN")
    form = {"email": "alice@example.com", "password": "correct horse"}
    for headers in ({"Origin": "https://elsewhere.example"}, {"Origin": "null"}, {}):
        for path in ("/keys", "/keys/key_0/revoke", "/logout", "/login", "/signup"):
            assert alice.post(path, data=form, headers=headers).status_code == 403
    assert alice.get("/").status_code == 200
    assert "/revoke" not in alice.get("/").text


def test_the_shop_knows_its_users_by_their_passwords(shop: Flask) -> None:
    visitor(shop, "alice@example.com")
    for path, email, password, status in [
        ("/login", "Alice@example.com ", "correct horse", 302),
        ("/login", "alice@example.com", "wrong horse", 401),
        ("/login", "nobody@example.com", "correct horse", 401),
        ("/signup", "alice@example.com", "another horse", 409),
        ("/signup", "ALICE@EXAMPLE.COM", "another horse", 409),
        ("/signup", "new@example.com", "short", 400),
        ("/signup", "x" * 201, "correct horse", 400),
    ]:
        client = shop.test_client()
        form = {"email": email, "password": password}
        assert client.post(path, data=form, headers={"Origin": SHOP}).status_code == status
        assert client.get("/").status_code == (200 if status == 302 else 302)


def test_a_payment_is_booked_once_however_often_it_is_announced(shop: Flask) -> None:
    client = visitor(shop, "alice@example.com")
    booked = [announce(client, payment()).json["booked"] for _ in range(3)]
    assert booked == [True, False, False]
    assert announce(client, payment(amount="6.00")).status_code == 409
    assert announce(client, payment(id="pay_2")).json == {"booked": True}
    ledger = shop.extensions["oneai"].ledger
    assert ledger.balance("user:1").topped_up == 10 * NANO
    assert ledger.audit() == []


def test_what_is_signed_and_is_no_payment_books_nothing(shop: Flask) -> None:
    client = visitor(shop, "alice@example.com")
    for body, status in [
        (payment(account="user:2"), 422),
        (payment(account=None), 400),
        (payment(amount="0"), 400),
        (payment(amount="-5"), 400),
        (payment(amount=5.5), 400),
        (payment(amount="5.0000000001"), 400),
        (payment(id=""), 400),
        (payment(id="x" * 101), 400),
        (payment(id=["pay_1"]), 400),
        (payment(id=None), 400),
        (payment(id=True), 400),
        (payment(id=1), 400),
        (payment(id="pay 1"), 400),
        (payment(id="pay_\u0661"), 400),
        (payment(amount="5e9"), 400),
        (payment(amount="5000000000"), 422),
        (payment(amount="1e99"), 400),
        (b'{"id": ' * 9_000, 400),
        (b"[" * 60_000, 400),
        (b"[]", 400),
        (b'{"id": "pay_1"}', 400),
        (b"not json", 400),
        (b"\xff", 400),
        (b"x" * 2**17, 413),
    ]:
        assert announce(client, body).status_code == status, body[:80]
    assert shop.extensions["oneai"].ledger.balance("user:1").topped_up == 0


def test_a_payment_that_nobody_signed_books_nothing(shop: Flask) -> None:
    client = visitor(shop, "alice@example.com")
    moment = int(time.time())
    right = hmac.new(PAYMENT_SECRET.encode(), f"{moment}.".encode() + payment(), "sha256")
    signatures = [
        "",
        f"t={moment}",
        f"v1={right.hexdigest()}",
        f"t={moment},v1=",
        f"t={moment},v1={'0' * 64}",
        f"t={moment + 1},v1={right.hexdigest()}",
        f"t={moment},v1={right.hexdigest().upper()}",
        f"t={moment},v1={right.hexdigest()},v1={right.hexdigest()}",
        f"t={'9' * 30},v1={right.hexdigest()}",
        f"t=-{moment},v1={right.hexdigest()}",
    ]
    for signature in signatures:
        headers = {"Shop-Signature": signature}
        reply = client.post("/webhooks/payment", data=payment(), headers=headers)
        assert reply.status_code == 400, signature
    changed = client.post(
        "/webhooks/payment",
        data=payment(amount="5000.00"),
        headers={"Shop-Signature": f"t={moment},v1={right.hexdigest()}"},
    )
    assert changed.status_code == 400
    assert announce(client, payment(), secret="somebody else's secret").status_code == 400
    assert announce(client, payment(), at=-400).status_code == 400
    assert announce(client, payment(), at=400).status_code == 400
    assert shop.extensions["oneai"].ledger.balance("user:1").topped_up == 0


@pytest.mark.parametrize("variable", ["SHOP_SECRET_KEY", "SHOP_PAYMENT_SECRET"])
def test_the_shop_does_not_start_without_its_secrets(
    make_shop: Any, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for value in ("", "too short"):
        monkeypatch.setenv(variable, value)
        with pytest.raises(ConfigurationError, match=f"set {variable} to a secret of 16"):
            make_shop()
    monkeypatch.delenv(variable)
    with pytest.raises(ConfigurationError, match=variable):
        make_shop()


@pytest.mark.parametrize("variable", ["SHOP_SECRET_KEY", "SHOP_PAYMENT_SECRET"])
def test_a_command_of_a_shop_without_its_secrets_says_so_in_one_line(
    shop_folder: Path, monkeypatch: pytest.MonkeyPatch, warm: Any, variable: str
) -> None:
    monkeypatch.delenv(variable)
    command = ["-m", "flask", "--app", "shop", "oneai", "accounts", "list"]
    done = warm.run(command, cwd=shop_folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"oneai: set {variable} to a secret of 16 characters .*\n", done.stderr)


def test_a_webhook_whose_secret_was_taken_away_believes_nobody(shop: Flask) -> None:
    client = visitor(shop, "alice@example.com")
    shop.config["PAYMENT_SECRET"] = ""
    assert announce(client, payment(), secret="").status_code == 503
    assert shop.extensions["oneai"].ledger.balance("user:1").topped_up == 0


def test_the_shop_sells_from_several_workers_what_its_readme_says(
    shop_folder: Path, start_gunicorn: Any, require: Any, run: Any
) -> None:
    """Sign up, make a key, pay as the README does, call two processes, see it in the books."""
    require(shutil.which("openssl"), "no openssl")
    source = f"""
import sys
sys.path.insert(0, {str(shop_folder)!r})
from shop import create_app
app = create_app()
"""
    server = start_gunicorn(source, "--workers", "2", "--threads", "2")
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    browser.addheaders = [("Origin", server.url)]

    def post(path: str, **form: str) -> str:
        data = urllib.parse.urlencode(form).encode()
        with browser.open(server.url + path, data) as reply:
            return str(reply.read().decode())

    post("/signup", email="alice@example.com", password="correct horse")
    [secret] = re.findall(r'<code id="secret">(.*?)</code>', post("/keys", label="laptop"))
    for booked in (True, False):
        with urllib.request.urlopen(paid_by_the_readme(shop_folder, server.url)) as reply:
            assert json.load(reply) == {"booked": booked}
    with OpenAI(api_key=secret, base_url=f"{server.url}/oneai/v1") as client:
        for _ in range(8):
            reply = client.chat.completions.create(model="shop-assistant", **CHAT)
            assert reply.choices[0].message.content
        assert client.get("/usage", cast_to=object)["total"]["calls"] == 8
    assert "add up" in run(shop_folder, "-m", "flask", "--app", "shop", "oneai", "audit")


def paid_by_the_readme(folder: Path, url: str) -> urllib.request.Request:
    """What the README's lines would have curl send."""
    readme = (folder / "README.md").read_text(encoding="utf-8")
    [lines] = [block for block in re.findall(r"```sh\n(.*?)```", readme, re.S) if "curl" in block]
    script = f"curl() {{ printf '%s\\n' \"$@\"; }}\n{lines}"
    said = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True)
    address, *options = said.stdout.splitlines()
    path = address.removeprefix("http://127.0.0.1:5000")
    given = list(zip(options[::2], options[1::2], strict=True))
    headers = dict(text.split(": ", 1) for option, text in given if option == "-H")
    [body] = [text for option, text in given if option == "-d"]
    return urllib.request.Request(url + path, body.encode(), headers)


# --- a shop on Django -----------------------------------------------------------------


@pytest.fixture
def django_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's folder, and the environment that its README sets up."""
    monkeypatch.setenv("SHOP_SECRET_KEY", "the key of the sessions' cookies")
    monkeypatch.setenv("SHOP_PAYMENT_SECRET", PAYMENT_SECRET)
    monkeypatch.setenv("SHOP_DATABASE", str(tmp_path / "shop.sqlite3"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    return EXAMPLES / "django_shop"


def test_the_django_shop_passes_its_own_checks_and_tests(django_shop: Path, run: Any) -> None:
    run(django_shop, "-W", "error", "manage.py", "test", "-v", "0", "--noinput")


@pytest.mark.parametrize("name", ["shop.sqlite3", "shop.db"])
def test_the_django_shops_tests_leave_its_own_database_alone(
    django_shop: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SHOP_DATABASE", str(tmp_path / name))
    run(django_shop, "manage.py", "migrate", "-v", "0")
    run(django_shop, "manage.py", "oneai", "keys", "create", "user:1")
    one = "shop.tests.ShopTest.test_visitors_are_asked_to_log_in"
    run(django_shop, "manage.py", "test", one, "-v", "0", "--noinput")
    assert "user:1" in run(django_shop, "manage.py", "oneai", "accounts", "list")
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("shop")] == [name]


def test_the_django_shop_sells_from_several_workers_what_its_commands_made(
    django_shop: Path, start_gunicorn: Any, run: Any
) -> None:
    run(django_shop, "manage.py", "migrate", "-v", "0")
    source = f"""
import sys
sys.path.insert(0, {str(django_shop)!r})
from shop.wsgi import application as app
"""
    server = start_gunicorn(source, "--workers", "2", "--threads", "2")
    made = run(django_shop, "manage.py", "oneai", "keys", "create", "user:1")
    [secret] = re.findall(r"^secret +(\S+)$", made, re.MULTILINE)
    body = payment(amount="25.00")
    for booked in (True, False):
        request = urllib.request.Request(f"{server.url}/webhooks/payment", body, signature(body))
        with urllib.request.urlopen(request) as reply:
            assert json.load(reply) == {"booked": booked}
    with OpenAI(api_key=secret, base_url=f"{server.url}/oneai/v1") as client:
        for _ in range(8):
            answer = client.chat.completions.create(model="shop-assistant", **CHAT)
            assert answer.choices[0].message.content
        assert client.get("/usage", cast_to=object)["total"]["calls"] == 8


@pytest.mark.parametrize("variable", ["SHOP_SECRET_KEY", "SHOP_PAYMENT_SECRET"])
def test_the_django_shop_does_not_start_without_its_secrets(
    django_shop: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for value in ("", "too short"):
        monkeypatch.setenv(variable, value)
        with pytest.raises(ImproperlyConfigured, match=f"set {variable} to a secret of 16"):
            load("django_shop/shop/settings.py")


def test_both_shops_show_the_same_way_to_sign(shop_folder: Path, django_shop: Path) -> None:
    signing = [
        re.findall(r"^(?:time|signature)=.*$", (folder / "README.md").read_text(), re.MULTILINE)
        for folder in (shop_folder, django_shop)
    ]
    assert signing[0] == signing[1] != []
