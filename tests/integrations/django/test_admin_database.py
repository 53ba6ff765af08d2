"""The admin while calls write to the same database, and while nobody can."""

import re
import sqlite3

import pytest
from django.contrib.admin.models import LogEntry
from django.db import OperationalError, connections
from project.pages import ACCOUNT, KEY, SECRET, new_key, page, refused, revoke, text

from oneai_middleware.accounts import NANO
from oneai_middleware.errors import StoreUnavailable
from oneai_middleware.integrations.django import database as transactions
from oneai_middleware.integrations.django import forms, models
from oneai_middleware.integrations.django.conf import gateway
from oneai_middleware.ledgers.base import Balance

pytestmark = pytest.mark.usefixtures("shop")

TOP_UP = {"amount": "5", "reference": "r1"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Nobody waits long for a lock that is held until the test's end."""
    monkeypatch.setattr(transactions, "PATIENCE", 0.01)


@pytest.fixture
def calls(database, monkeypatch):
    """A call that writes whenever a form has been read, and what came of it: in the
    journal mode in which nobody who reads holds it up."""
    journal(database, "WAL")
    came = []
    genuine = forms.forms.BaseForm.is_valid

    def is_valid(form):
        try:
            with sqlite3.connect(database, timeout=0) as other:
                other.execute("UPDATE oneai_balance SET invoiced = invoiced + 1")
            came.append("written")
        except sqlite3.OperationalError:
            came.append("waits")
        other.close()
        return genuine(form)

    monkeypatch.setattr(forms.forms.BaseForm, "is_valid", is_valid)
    yield came
    connections.close_all()
    journal(database, "DELETE")


def journal(file, mode):
    """Let SQLite keep its journal so."""
    connection = sqlite3.connect(file)
    assert connection.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode.lower(),)
    connection.close()


def test_calls_that_write_meanwhile_are_in_nobodys_way(boss, calls):
    new_key(boss)
    assert boss.post(page("account_add"), ACCOUNT).status_code == 302
    assert boss.post(page("account_change", "alice"), {"tier": "free"}).status_code == 302
    [key] = gateway().key_store.keys()
    assert boss.post(page("apikey_change", key.id), {**KEY, "label": "new"}).status_code == 302
    assert boss.post(page("account_top_up", "alice"), TOP_UP).status_code == 302
    assert len(calls) >= 5


SENT = {
    "account_add": ACCOUNT,
    "account_change": {"tier": "free", "models": "bot"},
    "apikey_add": {**KEY, "label": "of the form"},
    "apikey_change": {**KEY, "label": "of the form"},
    "account_top_up": TOP_UP,
}


def rows():
    """All that the admin writes."""
    tables = (models.Account, models.APIKey, models.Balance, models.TopUp, LogEntry)
    return [[*table.objects.order_by("pk").values()] for table in tables]


@pytest.fixture
def key(boss):
    """A key of alice's."""
    key, _ = gateway().key_store.create("alice", label="laptop")
    return key


@pytest.mark.parametrize("name", SENT)
def test_a_form_that_cannot_be_written_is_there_again(boss, key, database, writing, name, caplog):
    ids = {"account": ["alice"], "apikey": [key.id]}[name.partition("_")[0]]
    form, sent = page(name, *([] if name.endswith("add") else ids)), SENT[name]
    before = rows()
    with writing(database):
        reply = boss.post(form, sent)
    assert reply.status_code == 503
    assert "cannot be written to at the moment" in refused(reply)
    typed = re.findall(
        r'name="(?:name|models|label|reference)" value="([^"]*)"', reply.content.decode()
    )
    assert set(typed) & {"bob", "bot", "of the form", "r1"}
    assert not SECRET.search(reply.content.decode())
    assert rows() == before
    assert "locked" in caplog.text
    assert boss.post(form, sent).status_code in (200, 302)
    assert rows() != before


def test_nothing_is_half_revoked(boss, key, database, writing, monkeypatch):
    other, _ = gateway().key_store.create("alice")
    before = rows()
    with writing(database):
        assert "cannot be written to" in text(revoke(boss, key.id, other.id))
    assert rows() == before
    genuine, left = gateway().key_store.update, [StoreUnavailable("no", detail="no")]

    def update(id, **fields):
        if id == other.id and left:
            raise left.pop()
        return genuine(id, **fields)

    monkeypatch.setattr(gateway().key_store, "update", update)
    assert "cannot be written to" in text(revoke(boss, key.id, other.id))
    assert rows() == before
    assert "Revoked: 2." in text(revoke(boss, key.id, other.id))


def test_no_money_is_booked_without_a_word_of_whoever_booked_it(boss, monkeypatch):
    def fail(*_, **__):
        raise OperationalError("no")

    monkeypatch.setattr(LogEntry.objects, "log_actions", fail, raising=False)
    monkeypatch.setattr(LogEntry.objects, "log_action", fail, raising=False)
    reply = boss.post(page("account_top_up", "alice"), TOP_UP)
    assert "cannot be written to" in refused(reply)
    assert gateway().ledger.balance("alice") == Balance(available=NANO, topped_up=NANO)
    assert "Top up" in text(boss.get(page("account_change", "alice")))
