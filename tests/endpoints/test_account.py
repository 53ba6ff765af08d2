"""What a caller sees of itself, with its own key and nobody else's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

from oneai_middleware import Gateway
from oneai_middleware.accounts import NANO, Account, Limits, read_dollars
from oneai_middleware.database.engine import Database
from oneai_middleware.endpoints import account
from oneai_middleware.errors import AuthenticationFailed
from oneai_middleware.key_stores.base import KeyStore
from oneai_middleware.key_stores.memory import MemoryKeyStore
from oneai_middleware.key_stores.sql import SQLKeyStore
from oneai_middleware.ledgers.base import Ledger
from oneai_middleware.ledgers.memory import MemoryLedger
from oneai_middleware.ledgers.sql import SQLLedger
from oneai_middleware.secret import new_secret

try:  # what the SDK travels on
    import httpx2 as httpx
except ImportError:  # older versions of it
    import httpx

PATHS = ("/v1/key", "/v1/balance", "/v1/usage")
CHAT = {"model": "bot", "messages": [{"role": "user", "content": "one two"}]}
BOT = {"bot": {"routes": ["zhipu/bot"], "input": "1", "output": "2"}}
MONTHS_END = datetime(2026, 11, 30, 23, 0, tzinfo=UTC)


class Day:
    """The time of day, which the tests move; ``seconds`` since 1970 for databases."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def seconds(self) -> float:
        return self.now.timestamp()


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Day:
    day = Day(MONTHS_END)
    monkeypatch.setattr(account, "now", lambda: day.now)
    return day


on_both = pytest.mark.parametrize("stores", ["memory", "sql"], indirect=True)


@pytest.fixture
def stores(
    request: pytest.FixtureRequest, day: Day, tmp_path: Path
) -> Iterator[tuple[KeyStore, Ledger]]:
    """Keys and money whose clock is ``day``, in memory or in a database."""
    if getattr(request, "param", "memory") == "memory":
        yield MemoryKeyStore(), MemoryLedger(clock=day.seconds, now=day)
    else:
        database = Database(f"sqlite:///{tmp_path / 'oneai.db'}")
        yield SQLKeyStore(database), SQLLedger(database, clock=day.seconds)
        database.engine.dispose()


@pytest.fixture
def gateway(stores: tuple[KeyStore, Ledger], make_gateway: Callable[..., Gateway]) -> Gateway:
    """A gateway in which alice owns ten dollars, bob five, and carol is invoiced."""
    keys, ledger = stores
    keys.save_account(Account("alice", tier="pro"))
    keys.save_account(Account("bob"))
    keys.save_account(Account("carol", tier="pro", prepaid=False))
    ledger.top_up("alice", 10 * NANO, "a-1")
    ledger.top_up("bob", 5 * NANO, "b-1")
    return make_gateway(key_store=keys, ledger=ledger, accounts={}, models=BOT)


@pytest.fixture
def get(gateway: Gateway, send: Any) -> Callable[..., Any]:
    """Ask for a path with a key."""

    def get(path: str, secret: str, method: str = "GET") -> Any:
        return send(gateway, method, path, b"", {"Authorization": f"Bearer {secret}"})

    return get


@pytest.fixture
def chat(gateway: Gateway, send: Any) -> Callable[..., Any]:
    """Make a call with a key."""

    def chat(secret: str, **fields: Any) -> Any:
        headers = {"Authorization": f"Bearer {secret}"}
        return send(gateway, "POST", "/v1/chat/completions", {**CHAT, **fields}, headers)

    return chat


# --- the key ------------------------------------------------------------------


@on_both
def test_a_key_is_shown_with_its_rights_and_its_accounts_limits(gateway: Gateway, get: Any) -> None:
    key, secret = gateway.key_store.create(
        "alice",
        label="laptop",
        limits=Limits(rpm=5),
        budget=read_dollars("2.5", "x"),
        period="month",
        expires=2_000_000_000.0,
    )
    assert get("/v1/key", secret).json == {
        "object": "key",
        "account": "alice",
        "tier": "pro",
        "limits": {"rpm": 200, "tpm": 2_000_000, "concurrent": 10},
        "id": key.id,
        "label": "laptop",
        "hint": f"oneai-sk-…{secret[-4:]}",
        "key_limits": {"rpm": 5, "tpm": None, "concurrent": None},
        "budget": "2.50",
        "budget_period": "month",
        "expires_at": 2_000_000_000,
        "models": None,
    }


def test_a_key_without_rights_of_its_own_says_so(gateway: Gateway, get: Any) -> None:
    _, secret = gateway.key_store.create("bob")
    shown = get("/v1/key", secret).json
    assert shown["limits"] == {"rpm": 20, "tpm": 200_000, "concurrent": 2}
    absent = ("key_limits", "budget", "budget_period", "expires_at", "models")
    assert [shown[name] for name in absent] == [None] * 5


def test_an_accounts_own_limits_stand_in_place_of_its_tiers(gateway: Gateway, get: Any) -> None:
    gateway.key_store.save_account(Account("bob", limits=Limits(rpm=1)))
    _, secret = gateway.key_store.create("bob")
    limits = {"rpm": 1, "tpm": None, "concurrent": None}
    assert get("/v1/key", secret).json["limits"] == limits


@pytest.mark.parametrize(
    ("of_account", "of_key", "shown"),
    [
        (None, None, None),
        ({"kimi", "bot"}, None, ["bot", "kimi"]),
        (None, {"bot"}, ["bot"]),
        ({"kimi", "bot"}, {"bot", "glm-4"}, ["bot"]),
        ({"kimi"}, {"bot"}, []),
    ],
)
def test_the_models_are_those_that_both_account_and_key_allow(
    gateway: Gateway, get: Any, of_account: Any, of_key: Any, shown: Any
) -> None:
    allowed = None if of_account is None else frozenset(of_account)
    gateway.key_store.save_account(Account("bob", models=allowed))
    _, secret = gateway.key_store.create("bob", models=of_key and frozenset(of_key))
    assert get("/v1/key", secret).json["models"] == shown
    listed = [model["id"] for model in get("/v1/models", secret).json["data"]]
    assert shown is None or sorted(listed) == shown


def test_no_secret_and_no_digest_is_shown(gateway: Gateway, get: Any) -> None:
    _, secret = gateway.key_store.create("alice")
    digest = gateway.key_store.digest(secret)
    assert digest
    for path in PATHS:
        body = get(path, secret).read().decode()
        assert secret not in body
        assert digest not in body


# --- the balance --------------------------------------------------------------


@on_both
def test_a_balance_is_exact_dollars_in_strings(gateway: Gateway, get: Any, chat: Any) -> None:
    _, secret = gateway.key_store.create("alice")
    assert chat(secret).status == 200
    spent = gateway.ledger.balance("alice").spent
    assert 0 < spent < NANO
    assert get("/v1/balance", secret).json == {
        "object": "balance",
        "account": "alice",
        "prepaid": True,
        "currency": "usd",
        "available": f"9.{NANO - spent:09}".rstrip("0"),
        "held": "0.00",
        "spent": f"0.{spent:09}".rstrip("0"),
        "topped_up": "10.00",
        "invoiced": "0.00",
    }


@on_both
@pytest.mark.parametrize("amount", ["0.000000001", "0.10", "12.345678901", "4000000000.00"])
def test_the_smallest_and_the_largest_amounts_are_shown_to_the_last_digit(
    gateway: Gateway, get: Any, amount: str
) -> None:
    gateway.key_store.save_account(Account("dora"))
    _, secret = gateway.key_store.create("dora")
    gateway.ledger.top_up("dora", read_dollars(amount, "x"), "d-1")
    assert get("/v1/balance", secret).json["available"] == amount


@on_both
def test_what_a_running_call_holds_is_shown_as_held(gateway: Gateway, get: Any, chat: Any) -> None:
    _, secret = gateway.key_store.create("alice")
    reply = chat(secret, stream=True, max_tokens=1000)
    shown = get("/v1/balance", secret).json
    reply.close()
    held = read_dollars(shown["held"], "x")
    assert held > 1000 * 2000
    assert read_dollars(shown["available"], "x") + held == 10 * NANO
    assert get("/v1/balance", secret).json["held"] == "0.00"


@on_both
def test_an_invoiced_account_sees_what_will_be_on_its_bill(
    gateway: Gateway, get: Any, chat: Any
) -> None:
    _, secret = gateway.key_store.create("carol")
    assert chat(secret).status == 200
    shown = get("/v1/balance", secret).json
    assert (shown["prepaid"], shown["available"], shown["spent"]) == (False, "0.00", "0.00")
    assert read_dollars(shown["invoiced"], "x") == gateway.ledger.balance("carol").invoiced > 0


def test_an_account_that_never_paid_sees_zeros(gateway: Gateway, get: Any) -> None:
    gateway.key_store.save_account(Account("dora"))
    _, secret = gateway.key_store.create("dora")
    shown = get("/v1/balance", secret).json
    assert {shown[name] for name in ("available", "held", "spent", "topped_up")} == {"0.00"}


# --- the usage ----------------------------------------------------------------


@on_both
def test_usage_is_summed_up_by_day(gateway: Gateway, get: Any, chat: Any, day: Day) -> None:
    _, secret = gateway.key_store.create("alice")
    chat(secret)
    chat(secret)
    day.now += timedelta(hours=2)
    chat(secret)
    usage = get("/v1/usage", secret).json
    rows = list(gateway.ledger.entries("alice"))
    assert usage["object"] == "list"
    assert [(row["day"], row["calls"]) for row in usage["data"]] == [
        ("2026-11-30", 2),
        ("2026-12-01", 1),
    ]
    assert set(usage["total"]) == set(usage["data"][0]) - {"day"}
    assert usage["total"]["calls"] == 3
    assert read_dollars(usage["total"]["cost"], "x") == sum(row.cost for row in rows)
    assert usage["total"]["prompt_tokens"] == sum(row.prompt_tokens for row in rows)
    assert usage["total"]["completion_tokens"] == sum(row.completion_tokens for row in rows)


@on_both
def test_usage_is_summed_up_by_model(gateway: Gateway, get: Any, chat: Any) -> None:
    _, secret = gateway.key_store.create("alice")
    for model in ("kimi", "bot", "kimi"):
        assert chat(secret, model=model).status == 200
    rows = get("/v1/usage?by=model", secret).json["data"]
    assert [(row["model"], row["calls"]) for row in rows] == [("bot", 1), ("kimi", 2)]


@on_both
def test_usage_without_calls_is_an_empty_list_and_zeros(gateway: Gateway, get: Any) -> None:
    _, secret = gateway.key_store.create("alice")
    zeros = {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": "0.00"}
    assert get("/v1/usage", secret).json == {"object": "list", "data": [], "total": zeros}


@pytest.mark.parametrize(
    ("query", "calls"),
    [
        ("since=2026-11-30", 2),
        ("since=2026-12-01", 1),
        ("since=2026-12-02", 0),
        ("until=2026-12-01", 1),
        ("since=2026-11-30&until=2026-12-01", 1),
        ("since=2026-11-30T23:00:00Z", 2),
        ("since=2026-11-30T23:00:01Z", 1),
        ("until=2026-11-30T23:00:00Z", 0),
        ("since=2026-12-01T02:00:00%2B02:00", 1),
        ("since=2026-12-01T00:00:00-05:00", 0),
        ("since=2027-01-01&until=2026-01-01", 0),
        ("since=2020-01-01&since=2027-01-01", 0),
        ("since=0001-01-01T00:00:00%2B14:00&until=9999-12-31T23:59:59-14:00", 2),
    ],
)
def test_usage_is_from_since_up_to_before_until(
    gateway: Gateway, get: Any, chat: Any, day: Day, query: str, calls: int
) -> None:
    _, secret = gateway.key_store.create("alice")
    chat(secret)
    day.now += timedelta(hours=1)
    chat(secret)
    assert get(f"/v1/usage?{query}", secret).json["total"]["calls"] == calls


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("since=yesterday", "since"),
        ("since=", "since"),
        ("until=2026-13-01", "until"),
        ("since=2026-11-01&until=1793491200", "until"),
        ("since=2026-11-01T12:00:00+02:00", "since"),
        ("since=%00", "since"),
        ("since=%FF%FE", "since"),
        ("by=key", "by"),
        ("by=", "by"),
        ("by=day&by=week", "by"),
    ],
)
def test_a_parameter_that_cannot_be_understood_is_named(
    gateway: Gateway, get: Any, query: str, param: str
) -> None:
    _, secret = gateway.key_store.create("alice")
    reply = get(f"/v1/usage?{query}", secret)
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == (param, "invalid_value")
    assert reply.error["type"] == "invalid_request_error"


def test_calls_of_all_keys_of_an_account_are_in_its_usage(
    gateway: Gateway, get: Any, chat: Any
) -> None:
    secrets = [gateway.key_store.create("alice")[1] for _ in range(2)]
    for secret in secrets:
        chat(secret)
    assert [get("/v1/usage", secret).json["total"]["calls"] for secret in secrets] == [2, 2]


# --- nobody else's ------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_without_a_valid_key_nothing_is_shown(gateway: Gateway, send: Any, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer sk-1"}, {"x-api-key": new_secret()}):
        reply = send(gateway, "GET", path, b"", headers)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", PATHS)
def test_a_revoked_key_sees_nothing_any_more(gateway: Gateway, get: Any, path: str) -> None:
    """Conformance 19."""
    key, secret = gateway.key_store.create("alice")
    assert get(path, secret).status == 200
    gateway.key_store.update(key.id, revoked=True)
    assert get(path, secret).status == 401


def test_a_malformed_parameter_tells_nobody_without_a_key_anything(
    gateway: Gateway, send: Any
) -> None:
    assert send(gateway, "GET", "/v1/usage?since=yesterday").status == 401


@on_both
def test_usage_without_a_beginning_is_of_31_days(
    gateway: Gateway, get: Any, chat: Any, day: Day
) -> None:
    _, secret = gateway.key_store.create("alice")
    chat(secret)
    began = day.now
    for days, calls in ((30, 1), (32, 0)):
        day.now = began + timedelta(days=days)
        assert get("/v1/usage", secret).json["total"]["calls"] == calls
        until = f"{day.now:%Y-%m-%dT%H:%M:%SZ}"
        assert get(f"/v1/usage?until={until}", secret).json["total"]["calls"] == calls
    since = f"{began:%Y-%m-%d}"
    assert get(f"/v1/usage?since={since}", secret).json["total"]["calls"] == 1


def test_a_parameter_that_is_none_is_named(gateway: Gateway, get: Any) -> None:
    _, secret = gateway.key_store.create("alice")
    answer = get("/v1/usage?sicne=2026-11-01", secret)
    assert answer.status == 400
    assert answer.json["error"]["param"] == "sicne"
    assert "by, since and until" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "query", ["", "account=bob", "account=bob&user=bob", "key=x&account%5B%5D=bob"]
)
def test_another_accounts_figures_are_never_shown(
    gateway: Gateway, get: Any, chat: Any, query: str
) -> None:
    _, alices = gateway.key_store.create("alice")
    bobs_key, bobs = gateway.key_store.create("bob", label="bobs own")
    assert chat(bobs).status == 200
    for path in PATHS:
        body = get(f"{path}?{query}", alices).read().decode()
        assert "bob" not in body
        assert bobs_key.id not in body
    assert get("/v1/usage", alices).json["total"]["calls"] == 0
    assert get(f"/v1/balance?{query}", alices).json["topped_up"] == "10.00"


def test_a_login_sees_its_account_without_a_key(make_gateway: Any, send: Any) -> None:
    gateway = make_gateway(authenticate=lambda environ: environ.get("HTTP_X_USER"))
    as_alice = {"X-User": "alice"}
    shown = send(gateway, "GET", "/v1/key", b"", as_alice).json
    assert (shown["account"], shown["tier"], shown["models"]) == ("alice", "pro", None)
    assert not {"id", "label", "hint", "budget", "expires_at"} & set(shown)
    balance = send(gateway, "GET", "/v1/balance", b"", as_alice).json
    assert (balance["account"], balance["available"]) == ("alice", "10.00")
    assert send(gateway, "GET", "/v1/usage", b"", as_alice).json["data"] == []
    assert send(gateway, "GET", "/v1/balance", b"", {"X-User": "mallory"}).status == 401


def test_a_login_may_be_refused_in_the_hosts_own_words(make_gateway: Any, send: Any) -> None:
    def nobody(environ: dict[str, Any]) -> None:
        raise AuthenticationFailed("Log in first.")

    reply = send(make_gateway(authenticate=nobody), "GET", "/v1/balance")
    assert (reply.status, reply.error["message"]) == (401, "Log in first.")


# --- manners ------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_head_gives_the_head_alone(gateway: Gateway, get: Any, path: str) -> None:
    _, secret = gateway.key_store.create("alice")
    head, whole = get(path, secret, "HEAD"), get(path, secret)
    assert (head.status, head.read()) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize("path", PATHS)
def test_nothing_can_be_changed_here(gateway: Gateway, get: Any, path: str) -> None:
    _, secret = gateway.key_store.create("alice")
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        reply = get(path, secret, method)
        assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
        assert reply.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", PATHS)
def test_a_slash_at_the_end_changes_nothing(gateway: Gateway, get: Any, path: str) -> None:
    _, secret = gateway.key_store.create("alice")
    assert get(f"{path}/", secret).json == get(path, secret).json


def test_looking_at_oneself_costs_neither_money_nor_limits(
    gateway: Gateway, get: Any, chat: Any
) -> None:
    _, secret = gateway.key_store.create("bob")
    for _ in range(25):  # more than bob's twenty requests a minute
        for path in PATHS:
            reply = get(path, secret)
            assert reply.status == 200
            assert not [name for name in reply.headers if name.startswith("x-ratelimit")]
    assert gateway.ledger.balance("bob").available == 5 * NANO
    assert chat(secret).headers["x-ratelimit-remaining-requests"] == "19"


def test_an_account_without_money_or_room_may_still_look(
    gateway: Gateway, get: Any, chat: Any
) -> None:
    gateway.key_store.save_account(Account("dora", limits=Limits(rpm=1)))
    _, secret = gateway.key_store.create("dora")
    assert chat(secret).status == 402
    assert {get(path, secret).status for path in PATHS} == {200}


class Down(MemoryLedger):
    """A ledger that cannot be reached."""

    def balance(self, account: str) -> Any:
        raise ConnectionError("db://alice:hunter2@host")

    usage = balance


@pytest.mark.parametrize("path", ["/v1/balance", "/v1/usage"])
def test_a_ledger_that_is_down_is_503_and_says_nothing_of_itself(
    make_gateway: Any, send: Any, headers: dict[str, str], path: str, caplog: Any
) -> None:
    reply = send(make_gateway(ledger=Down()), "GET", path, b"", headers)
    assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
    assert reply.headers["retry-after"] == "1"
    assert "hunter2" not in str(reply.json) + caplog.text


@on_both
def test_a_key_of_an_account_of_an_unknown_tier_gets_503_as_its_calls_do(
    gateway: Gateway, get: Any, chat: Any, caplog: Any
) -> None:
    gateway.key_store.save_account(Account("alice", tier="gone"))
    _, secret = gateway.key_store.create("alice")
    for reply in (get("/v1/key", secret), chat(secret)):
        assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
        assert "gone" not in reply.error["message"]
    assert caplog.text.count("is of tier 'gone', which the setting 'tiers' does not have") == 2
    assert get("/v1/balance", secret).json["available"] == "10.00"
    gateway.key_store.save_account(Account("alice", tier="gone", limits=Limits(rpm=1)))
    assert get("/v1/key", secret).json["limits"]["rpm"] == 1


def test_host_stores_are_asked_inside_its_scope_and_once(make_gateway: Any, send: Any) -> None:
    depth = []
    account = Account("alice")

    @contextlib.contextmanager
    def scope() -> Iterator[None]:
        depth.append(1)
        yield
        depth.pop()

    class Rows(MemoryLedger):
        def balance(self, name: str) -> Any:
            assert depth == [1]
            return super().balance(name)

        def usage(self, name: str, **span: Any) -> Any:
            assert depth == [1]
            return super().usage(name, **span)

    gateway = make_gateway(ledger=Rows(), scope=scope, authenticate=lambda environ: account)
    for path in PATHS:
        assert send(gateway, "GET", path).status == 200
    assert depth == []


def test_the_sdk_asks_for_its_balance_key_and_usage(gateway: Gateway) -> None:
    _, secret = gateway.key_store.create("alice", label="sdk")
    transport = httpx.WSGITransport(app=gateway)
    with (
        httpx.Client(transport=transport) as http_client,
        openai.OpenAI(api_key=secret, base_url="http://test/v1", http_client=http_client) as client,
    ):
        client.chat.completions.create(**CHAT)
        balance: Any = client.get("/balance", cast_to=object)
        key: Any = client.get("/key", cast_to=object)
        usage: Any = client.get("/usage", cast_to=object, options={"params": {"by": "model"}})
    spent = gateway.ledger.balance("alice").spent
    assert read_dollars(balance["spent"], "x") == spent
    assert key["label"] == "sdk"
    assert [row["model"] for row in usage["data"]] == ["bot"]


# --- budgets that start anew --------------------------------------------------


def spend(chat: Any, secret: str) -> int:
    """Call until the budget is gone; how many calls were answered."""
    for answered in range(1000):
        reply = chat(secret, max_tokens=20)
        if reply.status != 200:
            assert (reply.status, reply.error["code"]) == (402, "key_budget_exhausted")
            assert reply.error["type"] == "insufficient_quota"
            return answered
    raise AssertionError("the budget never ended")


@on_both
@pytest.mark.parametrize(
    ("period", "not_yet", "then"),
    [
        ("day", timedelta(minutes=59), timedelta(minutes=1)),
        ("month", timedelta(minutes=59), timedelta(minutes=1)),
        ("month", timedelta(minutes=61), None),
        (None, timedelta(days=4000), None),
    ],
)
def test_a_budget_is_whole_again_when_its_day_or_month_is_over(
    gateway: Gateway,
    chat: Any,
    day: Day,
    period: Any,
    not_yet: timedelta,
    then: timedelta | None,
) -> None:
    budget = read_dollars("0.0005", "x")
    _, secret = gateway.key_store.create("alice", budget=budget, period=period)
    if then is None and period == "month":
        day.now += not_yet  # a month that has just begun
        not_yet = timedelta(days=30)
    first = spend(chat, secret)
    assert first > 0
    day.now += not_yet
    assert spend(chat, secret) == 0
    if then is not None:
        day.now += then
        assert spend(chat, secret) == first
    spent = gateway.ledger.balance("alice").spent
    assert spent <= budget * (1 if then is None else 2)


def test_a_budget_binds_its_own_key_and_no_other(gateway: Gateway, chat: Any) -> None:
    _, poor = gateway.key_store.create("alice", budget=1000, period="day")
    _, rich = gateway.key_store.create("alice")
    assert spend(chat, poor) == 0
    assert chat(rich).status == 200


@on_both
def test_a_budget_binds_an_invoiced_account_too(gateway: Gateway, chat: Any, day: Day) -> None:
    budget = read_dollars("0.0005", "x")
    _, secret = gateway.key_store.create("carol", budget=budget, period="day")
    first = spend(chat, secret)
    assert first > 0
    day.now += timedelta(hours=1)
    assert spend(chat, secret) == first


def test_the_message_of_a_spent_budget_names_where_to_pay(
    stores: tuple[KeyStore, Ledger], gateway: Gateway, make_gateway: Any, send: Any
) -> None:
    keys, ledger = stores
    url = "https://shop.example/billing"
    ours = make_gateway(key_store=keys, ledger=ledger, accounts={}, models=BOT, top_up_url=url)
    _, secret = ours.key_store.create("alice", budget=0)
    reply = send(ours, "POST", "/v1/chat/completions", CHAT, {"x-api-key": secret})
    assert (reply.status, reply.error["code"]) == (402, "key_budget_exhausted")
    assert url in reply.error["message"]
