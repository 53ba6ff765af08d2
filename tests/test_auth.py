"""Who is calling: every form of a credential, good, doubled and hostile."""

import contextlib
import json
import threading
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.accounts import Account
from oneai_middleware.auth import Authentication, credential
from oneai_middleware.errors import AuthenticationFailed, StoreUnavailable
from oneai_middleware.key_stores.cached import CachedKeyStore
from oneai_middleware.key_stores.memory import MemoryKeyStore
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.secret import PREFIX, new_secret
from oneai_middleware.testing import FakeClock

CHAT = {"model": "deepseek-v3", "messages": [{"role": "user", "content": "one two"}]}
SECRET = "oneai-sk-a-secret"


# --- the credential in the environ --------------------------------------------


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTP_AUTHORIZATION": f"Bearer {SECRET}"},
        {"HTTP_AUTHORIZATION": f"bearer {SECRET}"},
        {"HTTP_AUTHORIZATION": f"BEARER {SECRET}"},
        {"HTTP_AUTHORIZATION": f"  bEaReR    {SECRET}  "},
        {"HTTP_X_API_KEY": SECRET},
        {"HTTP_X_API_KEY": f" {SECRET} "},
        {"HTTP_API_KEY": SECRET},
        {"HTTP_AUTHORIZATION": f"Bearer {SECRET}", "HTTP_X_API_KEY": SECRET},
        {"HTTP_AUTHORIZATION": f"Bearer {SECRET}", "HTTP_API_KEY": SECRET, "HTTP_X_API_KEY": ""},
        {"HTTP_AUTHORIZATION": "Basic YTpi", "HTTP_X_API_KEY": SECRET},
        {"HTTP_AUTHORIZATION": "Bearer", "HTTP_X_API_KEY": SECRET},
    ],
)
def test_the_secret_is_found_in_every_form(environ):
    """Conformance 17."""
    assert credential(environ) == SECRET


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HTTP_AUTHORIZATION": ""},
        {"HTTP_AUTHORIZATION": "Bearer"},
        {"HTTP_AUTHORIZATION": "Bearer   "},
        {"HTTP_AUTHORIZATION": "Basic YTpi"},
        {"HTTP_AUTHORIZATION": SECRET},
        {"HTTP_AUTHORIZATION": f"Token {SECRET}"},
        {"HTTP_AUTHORIZATION": f"Bearer\t{SECRET}"},
        {"HTTP_AUTHORIZATION": f"Bearer:{SECRET}"},
        {"HTTP_X_API_KEY": "  "},
        {"QUERY_STRING": f"api_key={SECRET}", "HTTP_COOKIE": f"api_key={SECRET}"},
    ],
)
def test_without_a_secret_there_is_none(environ):
    assert credential(environ) is None


HOSTILE = [
    f"Bearer {SECRET},Bearer {SECRET}",
    f"Bearer {SECRET}, Bearer {SECRET}",
    f"Bearer {SECRET} {SECRET}",
    f"Bearer {SECRET}\tx",
    f"Bearer {SECRET}\0",
    f"Bearer {SECRET}\r\nX: y",
    f"Bearer {SECRET}\x7f",
    "Bearer oneai-sk-\xe9\xff",
    "Bearer ' OR 1=1; DROP TABLE keys --",
    "Bearer " + "x" * 257,
    "Bearer " + "x" * 100_000,
    "Bearer oneai-sk-\x85" + "0" * 46,
]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", ["HTTP_AUTHORIZATION", "HTTP_X_API_KEY", "HTTP_API_KEY"])
def test_what_cannot_be_a_secret_is_refused(name, value):
    if name != "HTTP_AUTHORIZATION":
        value = value.removeprefix("Bearer ")
    with pytest.raises(AuthenticationFailed):
        credential({name: value})


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTP_AUTHORIZATION": f"Bearer {SECRET}", "HTTP_X_API_KEY": "another"},
        {"HTTP_API_KEY": SECRET, "HTTP_X_API_KEY": "another"},
        {"HTTP_AUTHORIZATION": f"Bearer {SECRET}", "HTTP_API_KEY": SECRET.upper()},
    ],
)
def test_two_secrets_that_differ_are_refused(environ):
    with pytest.raises(AuthenticationFailed):
        credential(environ)


# --- through the gateway ------------------------------------------------------


@pytest.fixture
def gateway(make_gateway):
    return make_gateway()


def ask(send, gateway, **environ):
    return send(gateway, "GET", "/v1/models", **environ)


def assert_refused(reply, secret=None):
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert reply.error["type"] == "invalid_request_error"
    assert reply.headers["www-authenticate"] == "Bearer"
    assert secret is None or secret not in str(reply.json)


@pytest.mark.parametrize(
    "form",
    [
        {"HTTP_AUTHORIZATION": "Bearer {}"},
        {"HTTP_AUTHORIZATION": "bearer  {} "},
        {"HTTP_X_API_KEY": "{}"},
        {"HTTP_API_KEY": "{}"},
        {"HTTP_AUTHORIZATION": "Bearer {0}", "HTTP_X_API_KEY": "{0}", "HTTP_API_KEY": "{0}"},
    ],
)
def test_a_key_opens_in_every_form(gateway, send, secret, form):
    """Conformance 17."""
    environ = {name: value.format(secret) for name, value in form.items()}
    assert ask(send, gateway, **environ).status == 200


def test_no_key_is_401_and_says_how_to_send_one(gateway, send):
    """Conformance 15 and 20."""
    reply = ask(send, gateway)
    assert_refused(reply)
    assert "Authorization: Bearer" in reply.error["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/deepseek-v3", "/v1/models/nothing"])
def test_models_are_shown_to_nobody_without_a_key(gateway, send, path):
    """Conformance 20."""
    assert_refused(send(gateway, "GET", path))


def test_a_wrong_key_is_401_and_is_not_repeated(gateway, send):
    """Conformance 16."""
    for wrong in (new_secret(), new_secret()[:-1] + "!", "sk-proj-1234567890", PREFIX):
        assert_refused(ask(send, gateway, HTTP_AUTHORIZATION=f"Bearer {wrong}"), wrong)


@pytest.mark.parametrize("value", ["Basic YTpi", "Bearer", "Bearer \xff\xfe", *HOSTILE])
def test_a_hostile_credential_is_401(gateway, send, value):
    """Conformance 18."""
    assert_refused(ask(send, gateway, HTTP_AUTHORIZATION=value))


@given(st.text(st.characters(max_codepoint=255)))
def test_any_bytes_as_a_credential_are_401(gateway, send, value):
    """Conformance 18."""
    for name in ("HTTP_AUTHORIZATION", "HTTP_X_API_KEY", "HTTP_API_KEY"):
        for prefix in ("", "Bearer ", PREFIX):
            assert_refused(ask(send, gateway, **{name: prefix + value}))


def test_a_bad_key_learns_nothing_of_models_or_bodies(gateway, send):
    """Conformance 21."""
    replies = [
        send(gateway, "POST", "/v1/chat/completions", body, {"Authorization": "Bearer nope"})
        for body in (CHAT, {**CHAT, "model": "nothing"}, b"{", b"", b"x" * 30_000_000)
    ]
    assert {json.dumps(reply.json) for reply in replies} == {json.dumps(replies[0].json)}
    for reply in replies:
        assert_refused(reply)


def test_a_bad_key_costs_nobody_anything(gateway, send, headers):
    """Conformance 22."""
    for _ in range(300):
        reply = send(
            gateway, "POST", "/v1/chat/completions", CHAT, {"Authorization": "Bearer nope"}
        )
        assert_refused(reply)
        assert not [name for name in reply.headers if name.startswith("x-ratelimit")]
    assert gateway.ledger.balance("alice") == Balance(10**10, 0, 0, 10**10)
    good = send(gateway, "POST", "/v1/chat/completions", CHAT, headers)
    assert good.headers["x-ratelimit-remaining-requests"] == "199"


def test_a_malformed_key_is_refused_before_any_lookup():
    store = CountingStore()
    authentication = Authentication(store)
    for secret in (PREFIX, PREFIX + "0" * 46, new_secret().lower(), "sk-1", new_secret() + "0"):
        with pytest.raises(AuthenticationFailed):
            authentication.caller({"HTTP_X_API_KEY": secret})
    assert store.calls == {}


class CountingStore(MemoryKeyStore):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def find(self, digest):
        self.calls["find"] += 1
        return super().find(digest)

    def account(self, name):
        self.calls["account"] += 1
        return super().account(name)


# --- keys that are written while the gateway runs -----------------------------


@pytest.fixture
def store():
    store = MemoryKeyStore()
    store.save_account(Account("alice", tier="pro", prepaid=False))
    return store


@pytest.fixture
def written(make_gateway, store):
    """A gateway on ``store``, whose keys can be written to."""
    return make_gateway(key_store=store, ledger="memory", accounts={})


def status_of(send, gateway, secret):
    return ask(send, gateway, HTTP_AUTHORIZATION=f"Bearer {secret}").status


def test_a_new_key_opens_at_once(written, send):
    key, secret = written.key_store.create("alice")
    assert status_of(send, written, secret) == 200


def test_a_revoked_key_is_refused_at_once(written, send):
    """Conformance 19."""
    key, secret = written.key_store.create("alice")
    assert status_of(send, written, secret) == 200
    written.key_store.update(key.id, revoked=True)
    assert status_of(send, written, secret) == 401
    written.key_store.update(key.id, revoked=False)
    assert status_of(send, written, secret) == 200


def test_a_key_revoked_in_the_store_itself_is_refused_at_once(written, store, send):
    key, secret = store.create("alice")
    assert status_of(send, written, secret) == 200
    store.update(key.id, revoked=True)
    assert status_of(send, written, secret) == 401


def test_a_key_expires_to_the_second(store):
    now = [1_000.0]
    authentication = Authentication(store, wall_clock=lambda: now[0])
    key, secret = store.create("alice", expires=1_010.0)
    assert authentication.caller({"HTTP_X_API_KEY": secret}).key == key
    now[0] = 1_009.9
    assert authentication.caller({"HTTP_X_API_KEY": secret}).account.name == "alice"
    now[0] = 1_010.0
    with pytest.raises(AuthenticationFailed):
        authentication.caller({"HTTP_X_API_KEY": secret})


def test_all_wrong_keys_look_the_same(written, send):
    revoked, revoked_secret = written.key_store.create("alice", revoked=True)
    expired, expired_secret = written.key_store.create("alice", expires=1.0)
    bodies = {
        ask(send, written, HTTP_X_API_KEY=secret).read()
        for secret in (revoked_secret, expired_secret, new_secret(), PREFIX + "x", "sk-1")
    }
    assert len(bodies) == 1


def test_a_change_of_the_account_holds_from_the_next_call(written, send):
    _, secret = written.key_store.create("alice")
    account = Account("alice", prepaid=False, models=frozenset({"kimi"}))
    assert status_of(send, written, secret) == 200
    written.key_store.save_account(account)
    models = ask(send, written, HTTP_X_API_KEY=secret).json["data"]
    assert [model["id"] for model in models] == ["kimi"]


# --- when a key was used last -------------------------------------------------


class UsedStore(MemoryKeyStore):
    """A store that costs something to ask, and notes what it is told."""

    cacheable = True
    error = None

    def __init__(self):
        super().__init__()
        self.noted = []
        self.save_account(Account("alice", prepaid=False))

    def used(self, key, at):
        self.noted.append((key.id, at, threading.current_thread()))
        if self.error is not None:
            raise self.error


@pytest.fixture
def used():
    return UsedStore()


def test_a_call_notes_that_its_key_was_used_and_does_not_wait_for_it(
    make_gateway, send, used, eventually
):
    gateway = make_gateway(key_store=used, ledger="memory", accounts={})
    key, secret = gateway.key_store.create("alice")
    before = time.time()
    assert status_of(send, gateway, secret) == 200
    [(id, at, thread)] = eventually(lambda: used.noted)
    assert id == key.id
    assert before <= at <= time.time()
    assert thread is not threading.current_thread()


def test_the_last_use_is_on_the_record(written, send):
    before = time.time()
    key, secret = written.key_store.create("alice")
    assert key.last_used is None
    status_of(send, written, secret)
    [key] = list(written.key_store.keys())
    assert before <= key.last_used <= time.time()


def test_a_use_is_noted_once_a_minute_and_key(used):
    clock = FakeClock()
    store = CachedKeyStore(used, clock=clock)
    authentication = Authentication(store, wall_clock=clock)
    keys = [store.create("alice") for _ in range(2)]
    for _ in range(3):
        for _, secret in keys:
            authentication.caller({"HTTP_X_API_KEY": secret})
        clock.advance(19)
    assert [id for id, _, _ in used.noted] == [key.id for key, _ in keys]
    clock.advance(4)
    authentication.caller({"HTTP_X_API_KEY": keys[0][1]})
    assert [(id, at) for id, at, _ in used.noted[2:]] == [(keys[0][0].id, 1_061.0)]


@pytest.mark.parametrize("fields", [{"revoked": True}, {"expires": 1.0}])
def test_a_key_that_opens_nothing_was_not_used(used, fields):
    authentication = Authentication(used)
    _, secret = used.create("alice", **fields)
    for wrong in (secret, new_secret(), "sk-1"):
        with pytest.raises(AuthenticationFailed):
            authentication.caller({"HTTP_X_API_KEY": wrong})
    assert used.noted == []


def test_a_note_that_fails_is_the_operators_affair_alone(
    make_gateway, send, used, eventually, caplog
):
    used.error = ConnectionError("db://alice:hunter2@host")
    gateway = make_gateway(key_store=used, ledger="memory", accounts={})
    _, secret = gateway.key_store.create("alice")
    assert status_of(send, gateway, secret) == 200
    [warning] = eventually(lambda: [r for r in caplog.records if "was used" in r.message])
    assert warning.levelname == "WARNING"
    assert "ConnectionError" in warning.message
    assert "hunter2" not in caplog.text


def test_the_note_is_written_inside_the_hosts_scope(make_gateway, send, used, eventually):
    inside = threading.local()
    seen = []

    @contextlib.contextmanager
    def scope():
        inside.it = True
        yield
        inside.it = False

    used.used = lambda key, at: seen.append(inside.it)
    gateway = make_gateway(key_store=used, ledger="memory", accounts={}, scope=scope)
    _, secret = gateway.key_store.create("alice")
    status_of(send, gateway, secret)
    assert eventually(lambda: seen) == [True]


# --- the host's own identity --------------------------------------------------


def by_header(environ):
    """A hook that believes what a header says, as no host should."""
    return environ.get("HTTP_X_USER")


def test_the_host_may_vouch_for_an_account(make_gateway, send):
    gateway = make_gateway(authenticate=by_header)
    reply = send(gateway, "POST", "/v1/chat/completions", CHAT, {"X-User": "alice"})
    assert reply.status == 200
    (row,) = gateway.ledger.entries("alice")
    assert row.key is None


def test_the_host_may_answer_an_account_the_store_does_not_know(make_gateway, send):
    account = Account("guest", tier="free", prepaid=False)
    gateway = make_gateway(authenticate=lambda environ: account)
    assert send(gateway, "POST", "/v1/chat/completions", CHAT).status == 200
    assert len(list(gateway.ledger.entries("guest"))) == 1


@pytest.mark.parametrize("answer", [None, "nobody", ""])
def test_a_host_that_knows_nobody_is_401(make_gateway, send, answer):
    assert_refused(ask(send, make_gateway(authenticate=lambda environ: answer)))


def test_the_host_is_asked_where_no_key_of_ours_is_given(make_gateway, send):
    gateway = make_gateway(authenticate=by_header)
    for value in ("Basic YTpi", "Bearer their-own-token"):
        reply = ask(send, gateway, HTTP_X_USER="alice", HTTP_AUTHORIZATION=value)
        assert reply.status == 200


def test_what_looks_like_our_key_is_a_key_and_only_a_key(make_gateway, send):
    asked = []
    gateway = make_gateway(authenticate=lambda environ: asked.append(1) or "alice")
    for wrong in (new_secret(), PREFIX, PREFIX + "anything"):
        assert_refused(ask(send, gateway, HTTP_AUTHORIZATION=f"Bearer {wrong}"))
    assert asked == []


def test_the_host_is_not_asked_for_a_valid_key(make_gateway, send, secret):
    gateway = make_gateway(authenticate=lambda environ: pytest.fail("asked"))
    assert status_of(send, gateway, secret) == 200


def test_a_hook_that_raises_is_503_and_lets_nobody_in(make_gateway, send, caplog):
    def hook(environ):
        raise ConnectionError("postgresql://admin:hunter2@db")

    reply = ask(send, make_gateway(authenticate=hook))
    assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
    assert reply.headers["retry-after"] == "1"
    assert "hunter2" not in str(reply.json) + caplog.text
    assert "ConnectionError" in caplog.text


def test_a_hook_may_refuse_in_our_own_words(make_gateway, send):
    def hook(environ):
        raise AuthenticationFailed("Log in first.")

    reply = ask(send, make_gateway(authenticate=hook))
    assert_refused(reply)
    assert reply.error["message"] == "Log in first."


@pytest.mark.parametrize("answer", [True, 7, object(), b"alice", ["alice"]])
def test_a_hook_that_answers_nonsense_lets_nobody_in(make_gateway, send, answer):
    reply = ask(send, make_gateway(authenticate=lambda environ: answer))
    assert reply.status >= 500
    assert reply.error


# --- a store that fails -------------------------------------------------------


class FailingStore(MemoryKeyStore):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def find(self, digest):
        raise self.error

    account = find


@pytest.mark.parametrize(
    "error", [RuntimeError("hunter2"), StoreUnavailable("The keys are away.", retry_after=1)]
)
@pytest.mark.parametrize("with_key", [True, False])
def test_a_key_store_that_fails_is_503(make_gateway, send, secret, caplog, error, with_key):
    gateway = make_gateway(
        key_store=FailingStore(error), ledger="memory", accounts={}, authenticate=lambda _: "alice"
    )
    environ = {"HTTP_X_API_KEY": secret} if with_key else {}
    reply = ask(send, gateway, **environ)
    assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
    assert "hunter2" not in str(reply.json) + caplog.text
