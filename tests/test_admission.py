"""The right to make one call: taken whole or not at all, and given back whole."""

import contextlib
import json
import logging
from types import SimpleNamespace

import pytest

from oneai_middleware.accounts import NANO, Account, ApiKey, Caller, Limits
from oneai_middleware.admission import LEAST_OUTPUT, AdmissionControl
from oneai_middleware.call import Call
from oneai_middleware.catalog import Model, Price, Route
from oneai_middleware.errors import (
    GatewayOverloaded,
    InsufficientBalance,
    RateLimitExceeded,
    StoreUnavailable,
)
from oneai_middleware.key_stores.memory import MemoryKeyStore
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.ledgers.memory import MemoryLedger
from oneai_middleware.protocol.chat import ChatRequest
from oneai_middleware.protocol.usage import Usage
from oneai_middleware.rate_limiters.base import Claim
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.tokens import estimate_prompt

CHAT = {"model": "deepseek-v3", "messages": [{"role": "user", "content": "one two three"}]}
PROMPT = estimate_prompt(CHAT)
INPUT, OUTPUT = 500, 2190  # nano-dollars per token of deepseek-v3
BOUND = 4096  # tokens of output set aside for a call that does not say


def dollars(nano):
    return f"{nano // NANO}.{nano % NANO:09}"


@pytest.fixture
def chat(send, headers):
    def chat(gateway, secret=None, *, environ=None, **fields):
        sent = {"Authorization": f"Bearer {secret}"} if secret else headers
        body = {**CHAT, **fields}
        return send(gateway, "POST", "/v1/chat/completions", body, sent, **(environ or {}))

    return chat


@pytest.fixture
def limiter(clock):
    return MemoryRateLimiter(clock=clock.ns)


def assert_nothing_held(gateway, name="alice"):
    assert gateway.ledger.balance(name).held == 0
    assert gateway.ledger.audit() == []


# --- requests a minute --------------------------------------------------------


def test_the_request_over_the_limit_is_429_until_its_wait_is_over(
    make_gateway, chat, limiter, clock
):
    """Conformance 91, 92 and 97."""
    gateway = make_gateway(account={"tier": "free"}, rate_limiter=limiter)
    assert [chat(gateway).status for _ in range(20)] == [200] * 20
    refused = chat(gateway)
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert refused.error["type"] == "rate_limit_error"
    assert refused.headers["retry-after"] == "3"
    assert "x-should-retry" not in refused.headers
    clock.advance(2.99)
    assert chat(gateway).status == 429
    clock.advance(0.01)
    assert chat(gateway).status == 200
    assert chat(gateway).status == 429


def test_a_refusal_consumes_nothing(make_gateway, chat, limiter, clock):
    gateway = make_gateway(account={"tier": "free"}, rate_limiter=limiter)
    for _ in range(20):
        chat(gateway)
    before = gateway.ledger.balance("alice")
    for _ in range(50):
        assert chat(gateway).status == 429
    assert gateway.ledger.balance("alice") == before
    clock.advance(3)
    assert chat(gateway).status == 200


def test_what_remains_is_told_on_every_reply(make_gateway, chat, limiter):
    """Conformance 95."""
    gateway = make_gateway(account={"tier": "free"}, rate_limiter=limiter)
    replies = []
    for index in range(22):
        replies.append(reply := chat(gateway, stream=bool(index % 2)))
        reply.read()
        figures = {name for name in reply.headers if name.startswith("x-ratelimit-")}
        assert len(figures) == 6
        assert reply.headers["x-ratelimit-limit-requests"] == "20"
        assert reply.headers["x-ratelimit-limit-tokens"] == "200000"
        assert 0 <= int(reply.headers["x-ratelimit-remaining-tokens"]) <= 200_000
    remaining = [int(reply.headers["x-ratelimit-remaining-requests"]) for reply in replies]
    assert remaining == [*range(19, -1, -1), 0, 0]
    assert replies[0].headers["x-ratelimit-reset-requests"] == "3s"
    assert replies[-1].headers["x-ratelimit-reset-requests"] == "1m0s"


def test_an_account_without_limits_is_told_of_none(make_gateway, chat):
    """Conformance 95."""
    reply = chat(make_gateway(account={"tier": "enterprise"}))
    assert reply.status == 200
    assert not [name for name in reply.headers if name.startswith("x-ratelimit")]


def test_what_the_limiter_never_saw_consumes_nothing(make_gateway, chat, send, headers):
    """Conformance 99."""
    gateway = make_gateway()
    chat(gateway, "oneai-sk-nope")
    chat(gateway, model="nothing")
    chat(gateway, messages=[])
    send(gateway, "GET", "/v1/chat/completions", headers=headers)
    send(gateway, "GET", "/v1/models", headers=headers)
    send(gateway, "GET", "/v1/nothing", headers=headers)
    chat(gateway, environ={"CONTENT_LENGTH": "99999999"})
    assert chat(gateway).headers["x-ratelimit-remaining-requests"] == "199"


# --- calls at once ------------------------------------------------------------


def test_a_call_over_the_concurrency_is_429_until_a_slot_is_free(make_gateway, chat):
    """Conformance 93."""
    gateway = make_gateway(account={"tier": "free"})
    running = [chat(gateway, stream=True) for _ in range(2)]
    for stream in (False, True):
        refused = chat(gateway, stream=stream)
        assert (refused.status, refused.error["code"]) == (429, "concurrency_limit_exceeded")
        assert refused.headers["retry-after"] == "1"
    running[0].close()
    assert chat(gateway).status == 200
    running[1].read()
    assert_nothing_held(gateway)


# --- tokens a minute ----------------------------------------------------------


def test_a_call_over_the_tokens_of_a_minute_is_429(make_gateway, chat, limiter, clock):
    """Conformance 94 and 97."""
    gateway = make_gateway(account={"limits": {"tpm": 1000}}, rate_limiter=limiter)
    running = chat(gateway, stream=True, max_tokens=900)
    refused = chat(gateway, max_tokens=900)
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert "tokens" in refused.error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-tokens"] == str(1000 - 900 - PROMPT)
    running.close()
    clock.advance(int(refused.headers["retry-after"]))
    assert chat(gateway, max_tokens=900).status == 200


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 10**6}, {"n": 100, "max_tokens": 100}])
def test_a_call_above_all_tokens_of_a_minute_is_refused_for_good(make_gateway, chat, fields):
    """Conformance 94."""
    gateway = make_gateway(account={"limits": {"tpm": 4000}})
    refused = chat(gateway, **fields)
    assert (refused.status, refused.error["code"]) == (429, "request_exceeds_limit")
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert_nothing_held(gateway)


@pytest.mark.parametrize("stream", [False, True])
def test_reserved_tokens_are_settled_to_what_was_used(make_gateway, chat, limiter, stream):
    """Conformance 100."""
    gateway = make_gateway(account={"limits": {"tpm": 10_000}}, rate_limiter=limiter)
    first = chat(gateway, stream=stream)
    assert first.headers["x-ratelimit-remaining-tokens"] == str(10_000 - PROMPT - BOUND)
    first.read()
    claims = [Claim("account:alice", Limits(200, 10_000, 10))]
    assert limiter.status("alice", claims).remaining_tokens == 10_000 - PROMPT - 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", ["overloaded", "misconfigured", "unavailable", "timeout"])
def test_a_failed_call_gives_its_tokens_back_and_costs_nothing(
    make_gateway, chat, limiter, stream, failure
):
    """Conformance 90 and 100."""
    gateway = make_gateway(
        echo={"fail": failure}, account={"limits": {"tpm": 10_000}}, rate_limiter=limiter
    )
    assert chat(gateway, stream=stream).status in (502, 503, 504)
    claims = [Claim("account:alice", Limits(200, 10_000, 10))]
    assert limiter.status("alice", claims).remaining_tokens == 10_000
    assert gateway.ledger.balance("alice") == Balance(10 * NANO, 0, 0, 10 * NANO)
    (row,) = gateway.ledger.entries("alice")
    assert (row.cost, row.completion_tokens) == (0, 0)


# --- whose limits -------------------------------------------------------------


def test_a_keys_own_limits_hold_beside_its_accounts(make_gateway, chat, secret):
    gateway = make_gateway(account={"limits": {"rpm": 100}})
    _, narrow = gateway.key_store.create("alice", limits=Limits(rpm=2))
    assert [chat(gateway, narrow).status for _ in range(3)] == [200, 200, 429]
    reply = chat(gateway, secret)
    assert (reply.status, reply.headers["x-ratelimit-remaining-requests"]) == (200, "97")


def test_the_keys_of_an_account_share_its_limits(make_gateway, chat, secret):
    gateway = make_gateway(account={"limits": {"rpm": 3}})
    _, other = gateway.key_store.create("alice")
    assert [chat(gateway, key).status for key in (secret, other, secret, other)] == [
        *(200, 200, 200, 429)
    ]


def test_a_refusal_names_where_to_upgrade(make_gateway, chat):
    gateway = make_gateway(account={"limits": {"rpm": 1}}, upgrade_url="https://shop.example/plans")
    chat(gateway)
    assert "https://shop.example/plans" in chat(gateway).error["message"]


def test_a_tier_that_is_not_declared_lets_nobody_in(make_gateway, chat, caplog):
    store = MemoryKeyStore()
    store.save_account(Account("alice", tier="gold"))
    _, secret = store.create("alice")
    gateway = make_gateway(key_store=store, ledger="memory", accounts={})
    reply = chat(gateway, secret)
    assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
    assert reply.headers["x-should-retry"] == "false"
    assert "'gold'" in caplog.text
    assert "gold" not in reply.error["message"]
    store.save_account(Account("alice", tier="free", prepaid=False))
    assert chat(gateway, secret).status == 200


# --- money --------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_balance_below_the_least_answer_is_402_and_nothing_is_taken(
    make_gateway, chat, limiter, stream
):
    """Conformance 81."""
    least = PROMPT * INPUT + LEAST_OUTPUT * OUTPUT
    gateway = make_gateway(account={"balance": dollars(least - 1)}, rate_limiter=limiter)
    reply = chat(gateway, stream=stream)
    assert (reply.status, reply.error["code"]) == (402, "insufficient_balance")
    assert (reply.error["type"], reply.error["param"]) == ("insufficient_quota", None)
    assert "retry-after" not in reply.headers
    assert reply.headers["x-ratelimit-limit-requests"] == "200"
    claims = [Claim("account:alice", Limits(200, 2_000_000, 10))]
    status = limiter.status("alice", claims)
    assert (status.remaining_requests, status.remaining_tokens) == (200, 2_000_000)
    assert_nothing_held(gateway)
    assert list(gateway.ledger.entries("alice")) == []


def test_calls_refused_for_their_balance_never_reach_a_limit(make_gateway, chat):
    gateway = make_gateway(
        account={"balance": "0", "limits": {"rpm": 1, "concurrent": 1, "tpm": 5000}}, max_calls=1
    )
    assert [chat(gateway).status for _ in range(10)] == [402] * 10
    gateway.ledger.top_up("alice", NANO, "r1")
    assert chat(gateway).status == 200


def test_the_least_balance_is_enough(make_gateway, chat):
    least = PROMPT * INPUT + LEAST_OUTPUT * OUTPUT
    gateway = make_gateway(account={"balance": dollars(least)})
    assert chat(gateway).status == 200
    assert gateway.ledger.balance("alice").spent == PROMPT * INPUT + 3 * OUTPUT


def test_who_asks_for_less_needs_less(make_gateway, chat):
    gateway = make_gateway(account={"balance": dollars(PROMPT * INPUT + OUTPUT)})
    assert chat(gateway, max_tokens=1).status == 200
    assert gateway.ledger.balance("alice").available == 0
    assert chat(gateway, max_tokens=1).status == 402


def test_a_refusal_names_where_to_top_up(make_gateway, chat):
    gateway = make_gateway(account={"balance": "0"}, top_up_url="https://shop.example/credit")
    assert "https://shop.example/credit" in chat(gateway).error["message"]


def test_a_key_whose_budget_is_spent_is_402(make_gateway, chat, secret):
    cost = PROMPT * INPUT + 3 * OUTPUT
    gateway = make_gateway()
    _, narrow = gateway.key_store.create("alice", budget=cost + PROMPT * INPUT + OUTPUT)
    assert chat(gateway, narrow, max_tokens=3).status == 200
    reply = chat(gateway, narrow, max_tokens=3)
    assert (reply.status, reply.error["code"]) == (402, "key_budget_exhausted")
    assert chat(gateway, secret, max_tokens=3).status == 200
    assert_nothing_held(gateway)


def test_money_that_other_calls_hold_is_429_and_comes_back(make_gateway, chat):
    """Conformance 105."""
    gateway = make_gateway(account={"balance": dollars(PROMPT * INPUT + 50 * OUTPUT)})
    running = chat(gateway, stream=True, max_tokens=50)
    refused = chat(gateway, max_tokens=50)
    assert (refused.status, refused.error["code"]) == (429, "balance_on_hold")
    assert refused.headers["retry-after"] == "1"
    running.read()
    assert chat(gateway, max_tokens=10).status == 200
    assert_nothing_held(gateway)


def test_an_invoiced_account_needs_no_money(make_gateway, chat):
    gateway = make_gateway(account={"balance": "0", "prepaid": False})
    assert chat(gateway).status == 200
    balance = gateway.ledger.balance("alice")
    assert (balance.available, balance.invoiced) == (0, PROMPT * INPUT + 3 * OUTPUT)


def test_a_free_model_needs_no_money(make_gateway, chat):
    free = {"input": "0", "output": "0"}
    gateway = make_gateway(account={"balance": "0"}, models={"deepseek-v3": free})
    assert chat(gateway).status == 200


# --- no longer an answer than the balance pays for ----------------------------

BOT = estimate_prompt({**CHAT, "model": "bot"})
BOT_INPUT, BOT_OUTPUT = 1000, 2000


@pytest.fixture
def asked(make_gateway, asking_provider, provider, chat):
    """What reaches the provider when the balance pays for ``tokens`` of output."""

    def asked(tokens, **fields):
        balance = dollars(BOT * BOT_INPUT + tokens * BOT_OUTPUT)
        gateway = make_gateway(account={"balance": balance}, **asking_provider)
        assert chat(gateway, model="bot", **fields).status == 200
        return provider.turns[-1].json

    return asked


def test_a_lowered_bound_goes_upstream(asked):
    assert asked(100)["max_tokens"] == 100
    assert asked(100, max_tokens=101)["max_tokens"] == 100
    assert asked(100, max_completion_tokens=5000)["max_completion_tokens"] == 100
    assert asked(100, n=3)["max_tokens"] == 33


def test_of_two_bounds_neither_is_higher_than_what_is_paid(asked):
    """Conformance 49."""
    sent = asked(100, max_tokens=5000, max_completion_tokens=4000)
    assert [sent[name] for name in sent if name.startswith("max_")] == [100]
    sent = asked(100, max_tokens=5000, max_completion_tokens=50)
    assert [sent[name] for name in sent if name.startswith("max_")] == [50]


def test_a_bound_that_is_paid_for_goes_as_the_caller_gave_it_or_not_at_all(asked):
    assert asked(100, max_tokens=100)["max_tokens"] == 100
    assert asked(100, max_completion_tokens=50)["max_completion_tokens"] == 50
    assert not [name for name in asked(BOUND) if name.startswith("max_")]


def test_the_models_own_bound_is_all_that_is_held(make_gateway, chat):
    gateway = make_gateway(models={"deepseek-v3": {"max_output": 200}})
    running = chat(gateway, stream=True, max_tokens=10_000)
    assert gateway.ledger.balance("alice").held == PROMPT * INPUT + 200 * OUTPUT
    running.close()


# --- room in this process -----------------------------------------------------


def test_a_full_process_is_503_and_its_other_pages_are_served(
    make_gateway, chat, send, headers, limiter
):
    gateway = make_gateway(max_calls=2, rate_limiter=limiter)
    running = [chat(gateway, stream=True) for _ in range(2)]
    for stream in (False, True):
        refused = chat(gateway, stream=stream)
        assert (refused.status, refused.error["code"]) == (503, "gateway_overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 5
        assert not [name for name in refused.headers if name.startswith("x-ratelimit")]
    assert send(gateway, "GET", "/v1/models", headers=headers).status == 200
    assert chat(gateway, messages=[]).status == 400
    running[0].close()
    reply = chat(gateway)
    assert (reply.status, reply.headers["x-ratelimit-remaining-requests"]) == (200, "197")
    running[1].close()


def test_no_end_of_a_call_keeps_its_place(make_gateway, chat):
    gateway = make_gateway(max_calls=1, account={"limits": {"rpm": 6}})
    for stream in (False, True):
        chat(gateway, stream=stream).read()
        chat(gateway, stream=stream).close()
        chat(gateway, stream=stream, model="nothing")
        chat(gateway, stream=stream, max_tokens=2**31 - 1)
    assert [chat(gateway).status for _ in range(4)] == [200, 200, 429, 429]


@pytest.mark.parametrize(
    ("max_calls", "threads", "places"),
    [(None, 2, 1), (None, 3, 1), (None, 6, 4), (None, 1, 20), (None, None, 20), (7, 2, 7)],
)
def test_two_of_the_servers_threads_are_kept_for_the_host_unless_a_number_is_set(
    stores, max_calls, threads, places
):
    hand = Hand(stores, tiers={"free": Limits()}, max_calls=max_calls)
    admitted = 0
    for number in range(20):
        hand.call = Call(f"req_{number}", "POST", "/", 0.0, threads=threads)
        with contextlib.suppress(GatewayOverloaded):
            hand.admit(max_tokens=1)
            admitted += 1
    assert (admitted, hand.control.calls) == (places, places)


def test_the_server_is_asked_once_how_many_threads_it_has(make_gateway, chat):
    """Here as waitress tells it, which hands its channel to every request."""

    class Channel:
        asked = 0

        @property
        def adj(self):
            Channel.asked += 1
            return SimpleNamespace(threads=4)

        def client_disconnected(self):
            return False

    environ = {"waitress.client_disconnected": Channel().client_disconnected}
    gateway = make_gateway()
    running = [chat(gateway, stream=True, environ=environ) for _ in range(3)]
    assert [reply.status for reply in running] == [200, 200, 503]
    assert running[2].error["code"] == "gateway_overloaded"
    assert Channel.asked == 1
    for reply in running:
        reply.close()
    assert chat(gateway, environ=environ).status == 200


# --- a process that takes no new calls ------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_drained_process_refuses_new_calls_and_runs_out_the_others(make_gateway, chat, stream):
    gateway = make_gateway()
    running = chat(gateway, stream=True)
    gateway.drain()
    refused = chat(gateway, stream=stream)
    assert (refused.status, refused.error["code"]) == (503, "gateway_overloaded")
    assert 1 <= int(refused.headers["retry-after"]) <= 5
    assert "x-should-retry" not in refused.headers
    assert not [name for name in refused.headers if name.startswith("x-ratelimit")]
    assert b"[DONE]" in running.read()
    (row,) = gateway.ledger.entries("alice")
    assert row.outcome == "answered"
    assert_nothing_held(gateway)


def test_a_file_drains_a_process_for_as_long_as_it_is_there(make_gateway, chat, tmp_path):
    file = tmp_path / "drain"
    gateway = make_gateway(drain_file=str(file))
    assert chat(gateway).status == 200
    file.touch()
    refused = chat(gateway)
    assert (refused.status, refused.error["code"]) == (503, "gateway_overloaded")
    assert 1 <= int(refused.headers["retry-after"]) <= 5
    file.unlink()
    assert chat(gateway).status == 200
    assert_nothing_held(gateway)


# --- memory money and several workers -----------------------------------------

SEVERAL = {"wsgi.multiprocess": True}


@pytest.mark.parametrize("stream", [False, True])
def test_memory_money_is_refused_where_several_workers_run(
    make_gateway, chat, caplog, limiter, stream
):
    gateway = make_gateway(rate_limiter=limiter)
    reply = chat(gateway, environ=SEVERAL, stream=stream)
    assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
    assert reply.headers["x-should-retry"] == "false"
    assert "allow_memory_ledger" in caplog.text
    assert "memory" not in reply.error["message"]
    assert_nothing_held(gateway)
    reply = chat(gateway)
    assert (reply.status, reply.headers["x-ratelimit-remaining-requests"]) == (200, "199")


@pytest.mark.parametrize(
    "options",
    [
        {"allow_memory_ledger": True},
        {"account": {"prepaid": False, "balance": "0"}},
    ],
)
def test_without_prepaid_money_in_memory_several_workers_may_run(make_gateway, chat, options):
    assert chat(make_gateway(**options), environ=SEVERAL).status == 200


def test_without_any_money_several_workers_may_run(make_gateway, chat, secret):
    gateway = make_gateway(ledger="unlimited", accounts={"alice": {"keys": [secret]}})
    assert chat(gateway, environ=SEVERAL).status == 200


# --- stores that fail ---------------------------------------------------------


OWNED = NANO // 20


class Failing:
    """Raises at the methods of ``at``, as a store does whose server is gone."""

    at = frozenset()

    def _fail(self, name):
        if name in self.at:
            raise ConnectionError("redis://:hunter2@host")


def failing(family):
    """``family`` with every method of a call able to fail."""

    def method(name):
        def call(self, *arguments, **options):
            self._fail(name)
            return getattr(super(made, self), name)(*arguments, **options)

        return call

    names = ("acquire", "renew", "settle", "cancel", "hold", "checkpoint")
    methods = {name: method(name) for name in names if hasattr(family, name)}
    made = type("Failing" + family.__name__, (Failing, family), methods)
    return made


FailingLimiter, FailingLedger = failing(MemoryRateLimiter), failing(MemoryLedger)


@pytest.fixture
def stores(clock):
    limiter = FailingLimiter(clock=clock.ns)
    ledger = FailingLedger({"alice": OWNED}, clock=clock)
    return limiter, ledger


@pytest.fixture
def failing_gateway(make_gateway, stores):
    limiter, ledger = stores
    return make_gateway(
        rate_limiter=limiter,
        ledger=ledger,
        account={"limits": {"concurrent": 1, "rpm": 100}},
        max_calls=1,
    )


def repair(stores):
    for store in stores:
        store.at = frozenset()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("part", "name"), [(0, "acquire"), (1, "hold")])
def test_a_store_that_fails_at_admission_is_503_and_keeps_nothing(
    failing_gateway, stores, chat, caplog, stream, part, name
):
    stores[part].at = {name}
    reply = chat(failing_gateway, stream=stream)
    assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
    assert reply.headers["retry-after"] == "1"
    assert "hunter2" not in str(reply.json) + str(reply.header_list) + caplog.text
    assert "ConnectionError" in caplog.text
    assert_nothing_held(failing_gateway)
    repair(stores)
    reply = chat(failing_gateway)
    assert (reply.status, reply.headers["x-ratelimit-remaining-requests"]) == (200, "99")


@pytest.mark.parametrize(("at", "status"), [({"cancel"}, 402), ({"cancel", "hold"}, 503)])
def test_a_limiter_that_cannot_take_back_hides_no_refusal(
    failing_gateway, stores, chat, clock, at, status
):
    limiter, ledger = stores
    limiter.at = ledger.at = at
    reply = chat(failing_gateway, messages=[{"role": "user", "content": "x" * 500_000}])
    assert reply.status == status
    repair(stores)
    assert chat(failing_gateway).status == 429  # the slot is lost until its lease is over
    clock.advance(31)
    assert chat(failing_gateway).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_ledger_that_cannot_settle_frees_the_rest_and_is_swept(
    failing_gateway, stores, chat, clock, caplog, stream
):
    limiter, ledger = stores
    ledger.at = {"settle"}
    assert chat(failing_gateway, stream=stream).read()
    assert "the ledger failed" in caplog.text
    assert ledger.balance("alice").held > 0
    repair(stores)
    assert chat(failing_gateway).status == 200
    clock.advance(31)
    assert ledger.sweep() == 1
    assert_nothing_held(failing_gateway)


@pytest.mark.parametrize("stream", [False, True])
def test_a_limiter_that_cannot_settle_costs_no_money_and_comes_back(
    failing_gateway, stores, chat, clock, stream
):
    limiter, ledger = stores
    limiter.at = {"settle"}
    assert chat(failing_gateway, stream=stream).read()
    assert ledger.balance("alice").spent == PROMPT * INPUT + 3 * OUTPUT
    assert_nothing_held(failing_gateway)
    repair(stores)
    assert chat(failing_gateway).status == 429
    clock.advance(31)
    assert chat(failing_gateway).status == 200


# --- one admission, by hand ---------------------------------------------------


class Hand:
    """An admission control on the stores, and a call to admit."""

    def __init__(self, stores, **options):
        self.limiter, self.ledger = stores
        self.entered = 0
        self.control = AdmissionControl(
            self.limiter,
            self.ledger,
            **{
                "tiers": {"free": Limits(20, 200_000, 2)},
                "scope": self._scope,
                "lease": 30.0,
                "default_output": BOUND,
                **options,
            },
        )
        self.call = Call("req_1", "POST", "/v1/chat/completions", 0.0)
        account = Account("alice")
        self.caller = Caller(account, ApiKey("k1", account))
        self.model = Model("m", "us", 1, None, None, Price(INPUT, OUTPUT), (Route("p", "m"),))

    def _scope(self):
        hand = self

        class Scope:
            def __enter__(self):
                hand.entered += 1

            def __exit__(self, *error):
                hand.entered -= 1

        return Scope()

    def admit(self, **fields):
        request = ChatRequest({**CHAT, **fields})
        return self.control.admit(self.call, self.caller, request, self.model)


@pytest.fixture
def hand(stores):
    return Hand(stores)


def test_an_admission_knows_what_it_holds(hand):
    admission = hand.admit(max_tokens=10)
    assert (admission.prompt_tokens, admission.output_bound) == (PROMPT, 10)
    assert not admission.lowered
    assert admission.grant.tokens == PROMPT + 10
    assert hand.ledger.balance("alice").held == PROMPT * INPUT + 10 * OUTPUT
    assert hand.call.limits.remaining_requests == 19


def test_a_call_is_renewed_for_as_long_as_it_lives(hand, clock):
    admission = hand.admit(max_tokens=10)
    for _ in range(10):
        clock.advance(20)
        hand.control.renew(hand.call, admission, Usage(PROMPT, 1))
        assert hand.ledger.sweep() == 0
    clock.advance(31)
    assert hand.ledger.sweep() == 1
    assert hand.ledger.balance("alice").spent == PROMPT * INPUT + OUTPUT


def test_a_limiter_that_cannot_renew_lets_no_hold_lapse(hand, clock, caplog):
    admission = hand.admit(max_tokens=10)
    hand.limiter.at = {"renew"}
    clock.advance(20)
    hand.control.renew(hand.call, admission, Usage(PROMPT, 1))
    clock.advance(20)
    assert hand.ledger.sweep() == 0
    assert "rate limiter" in caplog.text


def test_a_call_that_outgrows_the_money_is_told_at_its_renewal(hand):
    admission = hand.admit(max_tokens=10)
    with pytest.raises(InsufficientBalance):
        hand.control.renew(hand.call, admission, Usage(PROMPT, OWNED))
    hand.control.close(hand.call, admission, Usage(PROMPT, OWNED))
    assert hand.ledger.balance("alice") == Balance(0, 0, OWNED, OWNED)
    assert hand.call.cost == OWNED


def test_a_settled_call_keeps_its_place_until_it_leaves(hand):
    admission = hand.admit(max_tokens=10)
    hand.control.close(hand.call, admission, Usage(PROMPT, 1))
    assert hand.ledger.balance("alice").held == 0
    assert hand.control.calls == 1
    hand.control.leave()
    assert hand.control.calls == 0


def test_stores_are_entered_inside_the_hosts_scope(hand):
    seen = []

    def watch(store, name):
        original = getattr(store, name)
        setattr(
            store, name, lambda *a, **k: (seen.append((name, hand.entered)), original(*a, **k))[1]
        )

    for name in ("acquire", "renew", "settle"):
        watch(hand.limiter, name)
    for name in ("hold", "checkpoint"):
        watch(hand.ledger, name)
    admission = hand.admit(max_tokens=10)
    hand.control.renew(hand.call, admission, Usage(PROMPT, 1))
    hand.control.close(hand.call, admission, Usage(PROMPT, 1))
    assert [name for name, _ in seen] == ["acquire", "hold", "renew", "checkpoint", "settle"]
    assert {entered for _, entered in seen} == {1}
    assert hand.entered == 0


def test_limits_come_before_the_balance(stores):
    hand = Hand(stores, tiers={"free": Limits(rpm=1)})
    hand.admit(max_tokens=10)
    hand.call = Call("req_2", "POST", "/", 0.0)
    hand.ledger.at = {"hold"}
    with pytest.raises(RateLimitExceeded):
        hand.admit()


def test_the_key_pays_within_its_budget(hand):
    key = hand.caller.key._replace(budget=PROMPT * INPUT + 20 * OUTPUT)
    hand.caller = Caller(hand.caller.account, key)
    admission = hand.admit()
    assert (admission.output_bound, admission.lowered) == (20, True)


def test_a_store_that_says_it_is_away_is_believed(stores, hand):
    def away(*arguments, **options):
        raise StoreUnavailable("The books are closed.", retry_after=7)

    hand.ledger.hold = away
    with pytest.raises(StoreUnavailable) as caught:
        hand.admit()
    assert caught.value.message == "The books are closed."
    claims = [Claim("account:alice", Limits(20, 200_000, 2))]
    assert hand.limiter.status("alice", claims).remaining_requests == 20


def test_the_access_log_tells_account_model_and_cost(make_gateway, chat, caplog):
    caplog.set_level(logging.INFO, "oneai_middleware.access")
    reply = chat(make_gateway())
    (record,) = [r for r in caplog.records if r.name == "oneai_middleware.access"]
    row = json.loads(record.getMessage())
    assert row["request_id"] == reply.headers["x-request-id"]
    assert (row["account"], row["model"], row["provider"]) == ("alice", "deepseek-v3", "deepseek")
    assert (row["status"], row["outcome"]) == (200, "answered")
    assert row["cost"] == PROMPT * INPUT + 3 * OUTPUT
