"""Money in Django's databases, beyond what every ledger does."""

import contextlib
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import django
import pytest
from django.db import IntegrityError, OperationalError, connections, transaction
from django.test import override_settings

from oneai_middleware import ConfigurationError
from oneai_middleware.accounts import Account
from oneai_middleware.errors import InsufficientBalance, StoreUnavailable
from oneai_middleware.integrations.django import database, models
from oneai_middleware.integrations.django.books import DjangoBooks
from oneai_middleware.integrations.django.database import transaction_on
from oneai_middleware.integrations.django.key_store import DjangoKeyStore
from oneai_middleware.integrations.django.ledger import DjangoLedger
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.secret import digest
from oneai_middleware.testing import draft, hold

HERE = Path(__file__).parent
servers_only = pytest.mark.parametrize("engine", ["postgresql", "mariadb"], indirect=True)


@pytest.fixture
def ledger(tables, in_scope):
    return in_scope(DjangoLedger())


@pytest.fixture
def second(tables):
    """A second connection to the same database, as another process has one."""
    connection = connections[tables.alias].copy()
    connection.set_autocommit(False)
    yield connection
    connection.close()


def run(connection, statement):
    """The first row of what the statement gives, if it gives any."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None


def test_processes_are_granted_exactly_what_there_is(ledger, tables, warm, project_environment):
    """Conformance 105."""
    calls, cost = 96, 7
    ledger.top_up("alice", calls * cost, "r1")
    environment = project_environment() | {"PROJECT_DATABASE": tables.place}
    done = warm.run(["spend.py", "32"], cwd=HERE, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    granted = [int(line) for line in done.stdout.split()]
    assert (len(granted), sum(granted)) == (32, calls)
    assert ledger.balance("alice") == Balance(spent=calls * cost, topped_up=calls * cost)
    assert len({row.request_id for row in ledger.entries("alice")}) == calls
    assert ledger.audit() == []


def test_names_are_the_same_only_if_every_byte_is(ledger):
    names = ["alice", "Alice", "alice ", "alicé"]
    for amount, name in enumerate(names, 1):
        assert ledger.top_up(name, amount, f"r-{name}")
    assert [ledger.balance(name).available for name in names] == [1, 2, 3, 4]


def test_the_database_itself_keeps_a_balance_from_going_below_zero(ledger, tables):
    ledger.top_up("alice", 5, "r1")
    row = models.Balance.objects.using(tables.alias)
    for column in ("available", "held"):
        with pytest.raises((IntegrityError, OperationalError), match=f"oneai_balance_{column}"):
            row.update(**{column: -1})


def test_the_clock_is_the_databases_and_its_moments_are_in_utc(tables):
    with transaction_on(tables.alias) as connection:
        assert abs(DjangoBooks(connection).now() - time.time()) < 60
    with override_settings(TIME_ZONE="America/New_York", USE_TZ=False):
        ledger = DjangoLedger(clock=lambda: 1_700_000_000.123456)
        row = ledger.settle(draft("a", prepaid=False))
        assert row.settled_at.isoformat() == "2023-11-14T22:13:20.123456+00:00"
        assert list(ledger.entries("alice", since=row.settled_at)) == [row]


# --- beside transactions of the project's own -----------------------------------------


def test_what_is_booked_in_a_transaction_of_the_projects_is_a_part_of_it(ledger, tables):
    with contextlib.suppress(ZeroDivisionError), transaction.atomic(using=tables.alias):
        ledger.top_up("alice", 5, "r1")
        assert ledger.top_up("alice", 5, "r1") is False
        assert ledger.balance("alice").available == 5
        raise ZeroDivisionError
    assert ledger.balance("alice") == Balance()
    with transaction.atomic(using=tables.alias):
        ledger.top_up("alice", 5, "r1")
        assert hold(ledger, draft("a"), 5, 5) == 5
        with pytest.raises(InsufficientBalance):
            hold(ledger, draft("b"), 6, 6)
        ledger.settle(draft("a", cost=2))
    assert ledger.balance("alice") == Balance(available=3, spent=2, topped_up=5)
    assert ledger.audit() == []


@pytest.mark.parametrize("engine", ["mariadb"], indirect=True)
def test_a_transaction_that_sees_what_was_before_it_spends_nothing_twice(ledger, tables):
    ledger.top_up("alice", 10, "r1")
    connection = connections[tables.alias]
    run(connection, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    with transaction.atomic(using=tables.alias):
        assert models.Balance.objects.using(tables.alias).get().available == 10
        other = threading.Thread(target=lambda: hold(ledger, draft("a"), 8, 8))
        other.start()
        other.join()
        assert models.Balance.objects.using(tables.alias).get().available == 10
        assert hold(ledger, draft("b"), 1, 10) == 2
    assert ledger.balance("alice") == Balance(held=10, topped_up=10)


# --- when the database is in the way ----------------------------------------------------


WAITS = {
    "default": "PRAGMA busy_timeout",
    "postgresql": "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')",
    "mariadb": "SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout",
}


def test_a_lock_is_not_waited_for_long_and_others_wait_as_before(tables, second):
    ledger = DjangoLedger()
    ledger.top_up("alice", 5, "r1")
    before = run(connections[tables.alias], WAITS[tables.alias])
    run(second, "UPDATE oneai_balance SET available = available")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as refused:
        hold(ledger, draft("a"), 5, 5)
    assert time.monotonic() - began < 10
    assert any(word in refused.value.detail for word in ("locked", "Lock wait", "timeout"))
    assert run(connections[tables.alias], WAITS[tables.alias]) == before
    second.rollback()
    assert hold(ledger, draft("a"), 5, 5) == 5
    assert run(connections[tables.alias], WAITS[tables.alias]) == before


@servers_only
def test_a_connection_that_broke_is_replaced(tables):
    ledger = DjangoLedger()
    ledger.top_up("alice", 5, "r1")
    break_connection(tables.alias)
    with pytest.raises(StoreUnavailable):
        hold(ledger, draft("a"), 5, 5)
    assert hold(ledger, draft("a"), 5, 5) == 5
    break_connection(tables.alias)
    with pytest.raises(StoreUnavailable):
        ledger.settle(draft("a", cost=2))
    assert ledger.settle(draft("a", cost=2)).cost == 2


def break_connection(alias):
    """End this thread's connection from the server's side."""
    asked, kill = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend(%d)"),
        "mariadb": ("SELECT connection_id()", "KILL %d"),
    }[alias]
    killer = connections[alias].copy()
    run(killer, kill % run(connections[alias], asked))
    killer.close()


def test_a_transaction_that_is_broken_off_is_begun_again(ledger, tables, monkeypatch):
    ledger.top_up("alice", 5, "r1")
    left = break_off(monkeypatch, 3)
    assert hold(ledger, draft("a"), 5, 5) == 5
    assert left == []
    break_off(monkeypatch, 9)
    with pytest.raises(StoreUnavailable):
        ledger.top_up("alice", 5, "r2")
    assert ledger.balance("alice") == Balance(held=5, topped_up=5)


def test_one_that_is_part_of_the_projects_own_is_not(ledger, tables, monkeypatch):
    left = break_off(monkeypatch, 3)
    with pytest.raises(StoreUnavailable), transaction.atomic(using=tables.alias):
        ledger.top_up("alice", 5, "r1")
    assert len(left) == 2


def break_off(monkeypatch, times):
    """Let the next transactions end in a deadlock; those that are left to."""
    left = [None] * times

    def now(self):
        if left:
            left.pop()
            raise OperationalError from Deadlock(1213, "Deadlock found")
        return time.time()

    monkeypatch.setattr(DjangoBooks, "now", now)
    return left


MODES = {
    "deferred": {},
    "immediate": {"transaction_mode": "IMMEDIATE"},
}


@pytest.fixture(params=MODES)
def file(request, tables, monkeypatch):
    """Where the tables are, with every mode that Django begins a transaction in."""
    if MODES[request.param] and django.VERSION < (5, 1):
        pytest.skip("Django has the option since 5.1")
    monkeypatch.setitem(connections.settings[tables.alias], "OPTIONS", MODES[request.param])
    connections[tables.alias].close()
    return tables.place


in_a_file = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)


@in_a_file
def test_whoever_only_reads_waits_for_nobody_who_writes(file, writing):
    store, ledger = DjangoKeyStore(), DjangoLedger()
    store.save_account(Account("alice"))
    key, secret = store.create("alice")
    ledger.top_up("alice", 5, "r1")
    entry = ledger.settle(draft("a", cost=2))
    with writing(file):
        assert store.account("alice") == Account("alice")
        assert (store.keys(), store.find(digest(secret))) == ([key], key)
        assert store.accounts() == [Account("alice")]
        assert ledger.balance("alice").available == 3
        assert ledger.entries("alice") == [entry]
        assert [row.cost for row in ledger.usage("alice")] == [2]
        assert ledger.audit() == []
        with pytest.raises(StoreUnavailable):
            ledger.top_up("alice", 5, "r2")
    assert ledger.top_up("alice", 5, "r2")


@in_a_file
def test_whoever_waits_to_write_looks_often(file, writing, monkeypatch):
    with writing(file) as other:
        # SQLite itself would look a fifth of a second later, and others get in first.
        waits = SimpleNamespace(uniform=lambda *_: other.close() or 0)
        monkeypatch.setattr(database, "random", waits)
        assert DjangoLedger().top_up("alice", 5, "r1")


class Deadlock(Exception):
    """As a driver raises it."""


def test_tables_that_are_missing_are_named_with_the_way_to_make_them(ledger, tables):
    connection = connections[tables.alias]
    with connection.schema_editor() as editor:
        editor.delete_model(models.TopUp)
    try:
        with pytest.raises(StoreUnavailable) as refused:
            ledger.top_up("alice", 5, "r1")
        assert "manage.py migrate" in refused.value.detail
        with pytest.raises(StoreUnavailable, match="cannot check your account"):
            ledger.audit()
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(models.TopUp)


def test_a_column_that_is_missing_is_as_well(ledger, tables):
    connection, column = connections[tables.alias], models.Balance._meta.get_field("invoiced")
    with connection.schema_editor() as editor:
        editor.remove_field(models.Balance, column)
    try:
        with pytest.raises(StoreUnavailable) as refused:
            ledger.balance("alice")
        assert "manage.py migrate" in refused.value.detail
    finally:
        with connection.schema_editor() as editor:
            editor.add_field(models.Balance, column)


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_password_is_in_no_log(ledger, tables, monkeypatch):
    connection = connections[tables.alias]
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "PASSWORD", "pa55word")
    monkeypatch.setitem(connection.settings_dict, "NAME", "of pa55word")
    with pytest.raises(StoreUnavailable) as refused:
        ledger.balance("alice")
    assert "of ***" in refused.value.detail


def test_money_that_would_not_be_committed_stops_the_start(tables, monkeypatch):
    monkeypatch.setitem(connections.settings[tables.alias], "AUTOCOMMIT", False)
    with pytest.raises(ConfigurationError, match=f"DATABASES\\['{tables.alias}'\\]"):
        DjangoLedger.from_settings({})
