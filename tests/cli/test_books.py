"""`oneai top-up`, `usage`, `audit` and `sweep`: exact money, and its record."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from oneai_middleware import Gateway
from oneai_middleware.accounts import NANO, Account
from oneai_middleware.database.engine import database_at
from oneai_middleware.ledgers.base import Balance, Entry
from oneai_middleware.ledgers.sql import SQLLedger


@pytest.fixture
def alice(stored: Gateway) -> Account:
    account = Account("alice")
    stored.key_store.save_account(account)
    return account


@pytest.fixture
def statement(tmp_path: Path) -> Any:
    """Change the file behind the gateway's back."""

    def statement(sql: str) -> None:
        with sqlite3.connect(tmp_path / "oneai.db") as connection:
            connection.execute(sql)
        connection.close()

    return statement


# --- top-up -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "nano", "shown"),
    [
        ("25", 25 * NANO, "25.00"),
        ("12.50", 12_500_000_000, "12.50"),
        ("0.000000001", 1, "0.000000001"),
        (".5", 500_000_000, "0.50"),
        ("0.10", 100_000_000, "0.10"),
        ("0.1000000000", 100_000_000, "0.10"),
        ("4000000000.123456789", 4_000_000_000_123_456_789, "4000000000.123456789"),
    ],
)
def test_dollars_go_in_and_come_out_exactly(
    oneai: Any, stored: Gateway, alice: Account, written: str, nano: int, shown: str
) -> None:
    ran = oneai("top-up", "alice", written)
    assert (ran.status, ran.err) == (0, "")
    assert ran.said("available") == shown
    assert stored.ledger.balance("alice") == Balance(available=nano, topped_up=nano)
    assert oneai("accounts", "show", "alice").said("topped_up") == shown


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("-5", "is negative"),
        ("-0.000000001", "is negative"),
        ("0", "a payment is above zero"),
        ("0.0", "a payment is above zero"),
        ("0.0000000001", "finer than a nano-dollar"),
        ("1e2", "is not an amount in dollars"),
        ("1_0", "is not an amount in dollars"),
        ("٣", "is not an amount in dollars"),
        ("9223372036.854775808", "too large"),
        ("1e999999", "is not an amount in dollars"),
        ("9" * 5000, "is not an amount in dollars"),
        ("NaN", "is not an amount in dollars"),
        ("Infinity", "is not an amount in dollars"),
        ("", "is not an amount in dollars"),
        ("$5", "is not an amount in dollars"),
        ("5,00", "is not an amount in dollars"),
        ("five", "is not an amount in dollars"),
    ],
)
def test_what_is_no_amount_is_refused_and_nothing_is_booked(
    oneai: Any, stored: Gateway, alice: Account, written: str, said: str
) -> None:
    ran = oneai("top-up", "alice", written)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
    assert "argument amount: " in ran.err
    assert stored.ledger.balance("alice") == Balance()


def test_more_than_an_account_can_own_is_refused(
    oneai: Any, stored: Gateway, alice: Account
) -> None:
    assert oneai("top-up", "alice", "4000000000").status == 0
    ran = oneai("top-up", "alice", "4000000000")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "oneai: amount: the account would own more than four billion dollars\n"
    assert stored.ledger.balance("alice").available == 4_000_000_000 * NANO
    assert oneai("audit").status == 0


def test_a_payment_is_booked_once_however_often_it_is_given(
    oneai: Any, stored: Gateway, alice: Account
) -> None:
    first = oneai("top-up", "alice", "25", "--reference", "invoice 7")
    again = oneai("top-up", "alice", "25.00", "--reference", "invoice 7")
    assert first.out == "booked     invoice 7\navailable  25.00\n"
    assert (again.status, again.out) == (0, "was booked before invoice 7\navailable  25.00\n")
    assert stored.ledger.balance("alice").topped_up == 25 * NANO


@pytest.mark.parametrize(("account", "amount"), [("alice", "26"), ("bob", "25")])
def test_a_reference_names_one_payment_only(
    oneai: Any, stored: Gateway, alice: Account, account: str, amount: str
) -> None:
    stored.key_store.save_account(Account("bob"))
    oneai("top-up", "alice", "25", "--reference", "invoice 7")
    ran = oneai("top-up", account, amount, "--reference", "invoice 7")
    assert (ran.status, ran.out) == (1, "")
    assert "'invoice 7' was booked with another amount or for another account" in ran.err
    assert stored.ledger.balance("alice").topped_up == 25 * NANO
    assert stored.ledger.balance("bob") == Balance()


def test_without_a_reference_each_payment_is_another_one(
    oneai: Any, stored: Gateway, alice: Account
) -> None:
    references = {oneai("top-up", "alice", "1").said("booked") for _ in range(3)}
    assert len(references) == 3
    assert stored.ledger.balance("alice").topped_up == 3 * NANO


@pytest.mark.parametrize("reference", ["", "x" * 191, "a\0b"])
def test_a_reference_that_cannot_be_kept_is_refused(
    oneai: Any, stored: Gateway, alice: Account, reference: str
) -> None:
    """An empty one is a variable that was not set: it would be booked again and again."""
    ran = oneai("top-up", "alice", "1", "--reference", reference)
    assert ran.status == 2
    assert "--reference: " in ran.err
    assert stored.ledger.balance("alice") == Balance()


def test_money_for_an_account_that_is_not_there_is_refused(
    oneai: Any, stored: Gateway, alice: Account
) -> None:
    ran = oneai("top-up", "alise", "5")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "oneai: no account 'alise'; see `oneai accounts list`\n"
    assert stored.ledger.balance("alise") == Balance()


def test_a_locked_database_is_one_line_and_nothing_is_half_done(
    oneai: Any, stored: Gateway, alice: Account, tmp_path: Path
) -> None:
    locked = sqlite3.connect(tmp_path / "oneai.db", isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")
    ran = oneai("top-up", "alice", "5", "--reference", "r-1")
    locked.execute("ROLLBACK")
    locked.close()
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert ran.out == "It may have been booked: repeat it with --reference r-1\n"
    assert "locked" in ran.err
    assert oneai("top-up", "alice", "5", "--reference", "r-1").said("booked") == "r-1"


# --- usage --------------------------------------------------------------------


CALLS = [  # day, model, prompt tokens, completion tokens, nano-dollars
    (1, "bot", 10, 20, 50),
    (1, "glm-4", 1, 2, NANO),
    (2, "bot", 100, 200, 1_500_000_000),
]


@pytest.fixture
def calls(stored: Gateway, alice: Account) -> None:
    """Alice's calls on the first two days of November, at noon."""
    days: dict[str, float] = {}
    ledger = SQLLedger(database_at(stored.settings.key_store), clock=lambda: days["now"])
    for number, (day, model, prompt, completion, cost) in enumerate(CALLS):
        days["now"] = datetime(2026, 11, day, 12, tzinfo=UTC).timestamp()
        entry = Entry(f"r{number}", "alice", model=model, cost=cost)
        ledger.top_up("alice", cost, f"t{number}")
        ledger.settle(entry._replace(prompt_tokens=prompt, completion_tokens=completion))


def test_usage_is_a_table_by_day(oneai: Any, calls: None) -> None:
    ran = oneai("usage", "alice")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.split("\n")[0].split() == ["DAY", "CALLS", "PROMPT", "COMPLETION", "DOLLARS"]
    assert ran.rows == [
        ["2026-11-01", "2", "11", "22", "1.00000005"],
        ["2026-11-02", "1", "100", "200", "1.50"],
    ]


def test_usage_by_model(oneai: Any, calls: None) -> None:
    assert oneai("usage", "alice", "--by", "model").rows == [
        ["bot", "2", "110", "220", "1.50000005"],
        ["glm-4", "1", "1", "2", "1.00"],
    ]


def test_usage_as_csv_is_read_back(oneai: Any, calls: None) -> None:
    rows = list(csv.DictReader(io.StringIO(oneai("usage", "alice", "--format", "csv").out)))
    assert rows == [
        {
            "day": "2026-11-01",
            "calls": "2",
            "prompt_tokens": "11",
            "completion_tokens": "22",
            "cost": "1.00000005",
        },
        {
            "day": "2026-11-02",
            "calls": "1",
            "prompt_tokens": "100",
            "completion_tokens": "200",
            "cost": "1.50",
        },
    ]


def test_usage_as_json_is_read_back(oneai: Any, calls: None) -> None:
    rows = json.loads(oneai("usage", "alice", "--by", "model", "--format", "json").out)
    assert rows == [
        {
            "model": "bot",
            "calls": 2,
            "prompt_tokens": 110,
            "completion_tokens": 220,
            "cost": "1.50000005",
        },
        {
            "model": "glm-4",
            "calls": 1,
            "prompt_tokens": 1,
            "completion_tokens": 2,
            "cost": "1.00",
        },
    ]


@pytest.mark.parametrize(
    ("span", "days"),
    [
        ("--since 2026-11-02", ["2026-11-02"]),
        ("--until 2026-11-02", ["2026-11-01"]),
        ("--since 2026-11-01 --until 2026-11-03", ["2026-11-01", "2026-11-02"]),
        ("--since 2026-11-02T12:00:00Z", ["2026-11-02"]),
        ("--until 2026-11-02T12:00:00Z", ["2026-11-01"]),
        ("--since 2026-11-02T14:00:01+02:00", []),
        ("--since 2026-11-03", []),
    ],
)
def test_usage_is_from_since_up_to_before_until(
    oneai: Any, calls: None, span: str, days: list[str]
) -> None:
    assert [row[0] for row in oneai("usage", "alice", *span.split()).rows] == days


@pytest.mark.parametrize(
    ("format", "printed"),
    [
        ("table", "DAY  CALLS  PROMPT  COMPLETION  DOLLARS\n"),
        ("csv", "day,calls,prompt_tokens,completion_tokens,cost\n"),
        ("json", "[]\n"),
    ],
)
def test_an_account_that_never_called_has_no_rows(
    oneai: Any, alice: Account, format: str, printed: str
) -> None:
    assert oneai("usage", "alice", "--format", format).out == printed


def test_the_usage_of_nobody_is_a_mistake(oneai: Any, calls: None) -> None:
    ran = oneai("usage", "alise", "--format", "json")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "oneai: no account 'alise'; see `oneai accounts list`\n"


def test_the_record_of_an_account_that_no_store_knows_is_shown(oneai: Any, stored: Gateway) -> None:
    """Hosts may vouch for accounts of their own."""
    stored.ledger.settle(Entry("r1", "guest", model="bot", prepaid=False, cost=7))
    assert oneai("usage", "guest", "--by", "model").rows == [["bot", "1", "0", "0", "0.000000007"]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--since", "yesterday"],
        ["--until", "2026-13-01"],
        ["--by", "key"],
        ["--format", "xml"],
        ["--since"],
    ],
)
def test_a_span_or_format_that_makes_no_sense_is_misuse(
    oneai: Any, calls: None, arguments: list[str]
) -> None:
    ran = oneai("usage", "alice", *arguments)
    assert (ran.status, ran.out) == (2, "")


# --- audit and sweep ----------------------------------------------------------


def test_books_that_add_up_are_said_to(oneai: Any, calls: None) -> None:
    ran = oneai("audit")
    assert (ran.status, ran.out, ran.err) == (0, "ok      the books add up\n", "")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE oneai_balances SET available = available + 1",
        "UPDATE oneai_balances SET spent = spent + 1, available = available + 1",
        "UPDATE oneai_entries SET cost = cost + 1 WHERE request_id = 'r0'",
        "DELETE FROM oneai_top_ups WHERE reference = 't1'",
    ],
)
def test_books_that_somebody_has_changed_are_found_out(
    oneai: Any, calls: None, statement: Any, change: str
) -> None:
    statement(change)
    ran = oneai("audit")
    assert ran.status == 1
    assert all(line.startswith("FAULT   ") for line in ran.out.splitlines())
    assert "alice" in ran.out
    assert "ok" not in ran.out.split()


def test_the_sweep_settles_what_killed_workers_left(
    oneai: Any, stored: Gateway, alice: Account
) -> None:
    assert oneai("sweep").out == "settled  0 lost calls\n"
    oneai("top-up", "alice", "1")
    ago = time.time() - timedelta(hours=1).total_seconds()
    past = SQLLedger(database_at(stored.settings.key_store), clock=lambda: ago)
    past.hold(Entry("r1", "alice"), least=1, most=100, lease=30.0)
    past.hold(Entry("r2", "alice"), least=1, most=100, lease=30.0)
    past.checkpoint(Entry("r2", "alice", cost=40), lease=30.0)
    stored.ledger.hold(Entry("r3", "alice"), least=1, most=100, lease=30.0)
    ran = oneai("sweep")
    assert (ran.status, ran.out) == (0, "settled  2 lost calls\n")
    assert stored.ledger.balance("alice") == Balance(NANO - 140, 100, 40, NANO)
    assert oneai("audit").status == 0


def test_one_lost_call_is_one_call(oneai: Any, stored: Gateway, alice: Account) -> None:
    oneai("top-up", "alice", "1")
    ago = time.time() - 3600
    past = SQLLedger(database_at(stored.settings.key_store), clock=lambda: ago)
    past.hold(Entry("r1", "alice"), least=1, most=100, lease=30.0)
    assert oneai("sweep").out == "settled  1 lost call\n"


@pytest.mark.parametrize("ledger", ["memory", "unlimited"])
@pytest.mark.parametrize("command", ["top-up alice 5", "usage alice", "audit", "sweep"])
def test_money_in_memory_is_reached_by_no_command_and_it_says_what_to_do(
    oneai: Any, config: Any, monkeypatch: Any, command: str, ledger: str
) -> None:
    monkeypatch.setenv("ONEAI_CONFIG", config(f'ledger = "{ledger}"'))
    ran = oneai(*command.split())
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        "oneai: ledger: lives in the memory of each process, where no command reaches it; "
        "name a database, such as ledger = 'sqlite:///oneai.db'\n"
    )
