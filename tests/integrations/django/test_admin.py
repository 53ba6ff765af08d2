"""The admin: what its pages do."""

import html
import logging
import re
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db.models import ProtectedError
from django.test import Client
from django.urls import reverse
from project.pages import ACCOUNT, KEY, LISTS, SECRET, new_key, page, refused, revoke, text

from oneai_middleware.accounts import NANO, Account, Limits
from oneai_middleware.integrations.django import models
from oneai_middleware.integrations.django.conf import gateway
from oneai_middleware.secret import digest, new_secret
from oneai_middleware.testing import draft, hold

NEW_YORK = {"TIME_ZONE": "America/New_York", "USE_TZ": False}

pytestmark = pytest.mark.usefixtures("shop")


def call(secret):
    """What the API answers to a key."""
    return Client().get("/oneai/v1/key", headers={"Authorization": f"Bearer {secret}"})


# --- keys -------------------------------------------------------------------------------


def test_a_secret_is_in_the_one_answer_and_nowhere_else(boss, caplog):
    caplog.set_level(logging.DEBUG)
    reply = boss.post(page("apikey_add"), KEY)
    [secret] = SECRET.findall(reply.content.decode())
    assert "no-store" in reply["Cache-Control"]
    assert call(secret).status_code == 200
    [row] = models.APIKey.objects.all()
    pages = [boss.get(page(f"{name}_changelist")) for name in LISTS]
    pages += [boss.get(page("apikey_add")), boss.get(reverse("admin:index"))]
    pages += [boss.get(page(f"apikey_{view}", row.id)) for view in ("change", "history")]
    assert [seen.status_code for seen in pages] == [200] * 9
    kept = [
        *(seen.content.decode() for seen in pages),
        *(seen.cookies.output() for seen in (reply, *pages)),
        *(str(session.get_decoded()) for session in Session.objects.all()),
        *(f"{entry} {entry.change_message}" for entry in LogEntry.objects.all()),
        str([*models.APIKey.objects.values()]),
        f"{row} {row!r} {reply.context}",
        caplog.text,
    ]
    assert not [place for place in kept if secret in place]
    shown = [place for place in kept if digest(secret) in place]
    assert shown == [str([*models.APIKey.objects.values()])]


def test_a_key_may_what_the_form_said(boss):
    secret = new_key(
        boss,
        models=" notes,  bot ,",
        limits_0="5",
        limits_2="1",
        budget="2.50",
        period="month",
        expires_0="2100-01-01",
        expires_1="12:00",
    )
    seen = call(secret).json()
    assert (seen["account"], seen["label"], seen["models"]) == ("alice", "laptop", ["bot", "notes"])
    assert seen["key_limits"] == {"rpm": 5, "tpm": None, "concurrent": 1}
    assert (seen["budget"], seen["budget_period"]) == ("2.50", "month")
    assert seen["expires_at"] == 4_102_488_000


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"account": "nobody"}, "valid choice"),
        ({"account": ""}, "required"),
        ({"budget": "ten"}, "not an amount"),
        ({"budget": "-1"}, "negative"),
        ({"budget": "0.0000000001"}, "finer than a nano-dollar"),
        ({"period": "day"}, "goes with a budget"),
        ({"period": "week", "budget": "1"}, "valid choice"),
        ({"models": "bot, nots"}, "did you mean 'notes'?"),
        ({"expires_0": "2020-01-01", "expires_1": "12:00"}, "has passed already"),
        ({"budget": "4611686018.5"}, "budget of a key cannot be"),
        ({"limits_0": "0"}, "greater than or equal to 1"),
        ({"limits_1": "many"}, "whole number"),
        ({"expires_0": "soon"}, "valid date"),
        ({"label": "x" * 201}, "at most 200"),
    ],
)
def test_what_a_key_cannot_be_is_said_and_none_is_made(boss, fields, words):
    assert words in refused(boss.post(page("apikey_add"), {**KEY, **fields}))
    assert not models.APIKey.objects.exists()


def test_a_revoked_key_opens_nothing_from_then_on(boss):
    """Conformance 19."""
    secret, other = new_key(boss), new_key(boss, label="other")
    assert (call(secret).status_code, call(other).status_code) == (200, 200)
    row = models.APIKey.objects.get(label="laptop")
    seen = text(revoke(boss, row.id, confirmed=False))
    assert "can be used again" in seen
    assert str(row) in seen
    assert call(secret).status_code == 200
    assert "Revoked: 1." in text(revoke(boss, row.id))
    assert (call(secret).status_code, call(other).status_code) == (401, 200)
    assert "revoked" in text(boss.get(page("apikey_changelist")))
    assert "Revoked." in text(boss.get(page("apikey_history", row.id)))


def test_the_list_says_how_each_key_stands(boss):
    gateway().key_store.create("alice", label="old", expires=1.0, budget=1_500_000_000)
    secret = new_key(boss, label="new")
    seen = text(boss.get(page("apikey_changelist")))
    for word in (f"oneai-sk-…{secret[-4:]}", "expired", "valid", "1.50", "alice", "old", "new"):
        assert word in seen


def test_a_change_is_in_force_at_once_and_changes_nothing_else(boss):
    secret = new_key(boss, budget="1", models="bot")
    assert call(secret).json()["budget"] == "1.00"
    row = models.APIKey.objects.get()
    change = page("apikey_change", row.id)
    assert boss.get(change).status_code == 200
    # Meanwhile the key was revoked elsewhere, by somebody who had no form.
    models.APIKey.objects.update(revoked=True)
    sent = {
        **KEY,
        "account": "bob",
        "budget": "1.00",
        "models": "bot",
        "label": "new",
        "digest": "x",
    }
    assert boss.post(change, sent).status_code == 302
    after = models.APIKey.objects.get()
    assert (after.label, after.revoked, after.account_id) == ("new", True, "alice")
    assert (after.digest, after.budget, after.models) == (row.digest, NANO, ["bot"])
    assert call(secret).status_code == 401


def test_no_page_of_a_key_has_its_digest(boss):
    secret = new_key(boss)
    change = boss.get(page("apikey_change", models.APIKey.objects.get().id)).content.decode()
    assert digest(secret) not in change
    assert "digest" not in change


def test_a_budget_of_nothing_is_a_budget_in_every_period(boss):
    new_key(boss, budget="0", period="day")
    [key] = gateway().key_store.keys()
    assert (key.budget, key.period) == (0, "day")
    change = page("apikey_change", key.id)
    assert "0.00" in boss.get(change).content.decode()
    assert boss.post(change, {**KEY, "budget": "0.00", "period": "month"}).status_code == 302
    [key] = gateway().key_store.keys()
    assert (key.budget, key.period) == (0, "month")


def test_the_page_of_a_key_says_what_it_has_spent(boss):
    secret = new_key(boss, budget="0.5", period="month")
    [key] = gateway().key_store.keys()
    change = page("apikey_change", key.id)
    assert "0.00 this month, 0.50 left" in text(boss.get(change))
    budget, its = {"budget": key.budget, "period": key.period}, {"key": key.id}
    hold(gateway().ledger, draft("a", **its), 1, 200_000_000, **budget)
    gateway().ledger.settle(draft("a", cost=100_000_000, **its))
    hold(gateway().ledger, draft("b", **its), 1, 50_000_000, **budget)
    assert "0.10 this month, 0.05 on hold, 0.35 left" in text(boss.get(change))
    assert secret not in text(boss.get(change))
    gateway().key_store.update(key.id, budget=None, period=None)
    assert "0.35 left" not in text(boss.get(change))


@pytest.mark.parametrize("zones", [{}, {"TIME_ZONE": "Asia/Tokyo"}, NEW_YORK])
def test_an_expiry_is_shown_and_kept_in_the_time_of_the_project(boss, staff, use, zones):
    use(KEY_STORE="django", ACCOUNTS={}, **zones)
    new_key(boss, expires_0="2100-07-01", expires_1="12:00")
    [key] = gateway().key_store.keys()
    zone = ZoneInfo(zones.get("TIME_ZONE", "UTC"))
    assert datetime.fromtimestamp(key.expires, zone) == datetime(2100, 7, 1, 12, tzinfo=zone)
    change = page("apikey_change", key.id)
    for hour in ("12:00:00", "13:00:00"):
        form = boss.get(change).context["adminform"].form
        shown = form["expires"].field.widget.decompress(form["expires"].value())
        assert [str(part) for part in shown] == ["2100-07-01", hour]
        sent = {**KEY, "label": hour, "expires_0": shown[0], "expires_1": "13:00:00"}
        assert boss.post(change, sent).status_code == 302
    assert gateway().key_store.keys()[0].expires == key.expires + 3600
    for seen in (boss.get(page("apikey_changelist")), staff("view_apikey").get(change)):
        assert "July 1, 2100, 1 p.m." in text(seen)


# --- accounts and money -----------------------------------------------------------------


def test_an_account_is_made_with_its_owner(boss):
    owner = User.objects.create_user("bob")
    fields = {**ACCOUNT, "owner": owner.pk, "models": "bot", "limits_0": "3"}
    assert boss.post(page("account_add"), fields).status_code == 302
    account = gateway().key_store.account("bob")
    assert account == Account("bob", "pro", True, frozenset({"bot"}), Limits(rpm=3))
    assert owner.oneai_accounts.get().name == "bob"
    with pytest.raises(ProtectedError):
        owner.delete()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tier": "gold"}, "valid choice"),
        ({"name": ""}, "required"),
        ({"name": "alice"}, "already exists"),
        ({"name": "x" * 191}, "at most 190"),
        ({"name": new_secret()}, "an API key's secret"),
        ({"owner": "999"}, "valid choice"),
        ({"limits_2": "-1"}, "greater than or equal to 1"),
        ({"models": "nots"}, "did you mean 'notes'?"),
    ],
)
def test_what_an_account_cannot_be_is_said_and_none_is_made(boss, fields, words):
    assert words in refused(boss.post(page("account_add"), {**ACCOUNT, **fields}))
    assert [account.name for account in gateway().key_store.accounts()] == ["alice"]


def test_a_change_of_an_account_is_in_force_at_once(boss):
    secret = new_key(boss)
    assert call(secret).json()["tier"] == "pro"
    change = page("account_change", "alice")
    assert "1.00" in text(boss.get(change))
    assert boss.post(change, {"name": "eve", "tier": "free", "prepaid": "on"}).status_code == 302
    assert call(secret).json()["tier"] == "free"
    assert [account.name for account in gateway().key_store.accounts()] == ["alice"]


def test_what_nobody_touched_stays_as_it_is(boss):
    account = Account("none", "pro", True, frozenset(), Limits())
    gateway().key_store.save_account(account)
    change = page("account_change", "none")
    assert boss.post(change, {"tier": "free", "prepaid": "on", "models": ""}).status_code == 302
    assert gateway().key_store.account("none") == account._replace(tier="free")
    assert boss.post(change, {"tier": "free", "models": "bot", "limits_0": "1"}).status_code == 302
    assert gateway().key_store.account("none") == Account(
        "none", "free", False, frozenset({"bot"}), Limits(rpm=1)
    )


def test_a_tier_that_is_gone_can_be_kept(boss):
    gateway().key_store.save_account(Account("old", "gold"))
    change = page("account_change", "old")
    assert boss.post(change, {"tier": "gold", "prepaid": "on"}).status_code == 302
    assert gateway().key_store.account("old").tier == "gold"


def test_a_model_that_is_gone_can_be_kept_but_not_be_given(boss):
    gateway().key_store.save_account(Account("old", models=frozenset({"gone"})))
    change, sent = page("account_change", "old"), {"tier": "free", "prepaid": "on"}
    assert boss.post(change, {**sent, "models": "gone, bot"}).status_code == 302
    assert gateway().key_store.account("old").models == {"gone", "bot"}
    assert boss.post(change, {**sent, "models": "bot"}).status_code == 302
    assert "gone" in refused(boss.post(change, {**sent, "models": "gone, bot"}))


def test_a_top_up_is_booked_once_however_often_it_is_sent(boss):
    assert "Top up" in text(boss.get(page("account_change", "alice")))
    form = boss.get(page("account_top_up", "alice"))
    [reference] = re.findall(r'name="reference" value="([^"]+)"', form.content.decode())
    sent = {"amount": "12.50", "reference": reference}
    assert "Topped up 12.50 dollars" in text(
        boss.post(form.request["PATH_INFO"], sent, follow=True)
    )
    assert "booked before" in text(boss.post(form.request["PATH_INFO"], sent, follow=True))
    assert gateway().ledger.balance("alice").available == 13_500_000_000
    assert "13.50" in text(boss.get(page("account_changelist")))
    assert reference in text(boss.get(page("topup_changelist")))
    assert reference in text(boss.get(page("account_history", "alice")))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"amount": "0"}, "above zero"),
        ({"amount": ""}, "required"),
        ({"amount": "-5"}, "negative"),
        ({"amount": "0.0000000001"}, "finer than a nano-dollar"),
        ({"amount": "12,50"}, "not an amount"),
        ({"amount": "9000000000"}, "four billion"),
        ({"amount": "5", "reference": ""}, "required"),
        ({"amount": "5", "reference": "x" * 191}, "at most 190"),
        ({"amount": "5", "reference": "opening"}, "another amount"),
    ],
)
def test_a_top_up_that_cannot_be_is_refused_and_nothing_is_booked(boss, fields, words):
    reply = boss.post(page("account_top_up", "alice"), {"reference": "r1", **fields})
    assert words in refused(reply)
    assert gateway().ledger.balance("alice").topped_up == NANO


def test_there_is_no_top_up_of_nobody(boss):
    assert boss.get(page("account_top_up", "nobody")).status_code == 404


def test_names_with_markup_are_shown_as_they_are(boss):
    name = "<b>eve</b>/x y"
    gateway().key_store.save_account(Account(name))
    change = boss.get(page("account_change", name))
    top_up = boss.get(page("account_top_up", name))
    made = boss.post(page("apikey_add"), {**KEY, "account": name, "label": name})
    for reply in (change, top_up, made):
        assert reply.status_code == 200
        assert name not in reply.content.decode()
        assert html.escape(name) in reply.content.decode()


# --- the books ----------------------------------------------------------------------------


@pytest.fixture
def books():
    """A call that runs and one that has ended."""
    hold(gateway().ledger, draft("running", key="key_1"), 5, 1_500_000)
    entry = draft("ended", model="bot", cost=250_000_000, input_price=1000, outcome="answered")
    gateway().ledger.settle(entry)


@pytest.mark.parametrize(
    ("name", "id", "words"),
    [
        ("entry", "ended", ["0.25", "answered", "bot", "1.00"]),
        ("hold", "running", ["0.0015", "running"]),
        ("topup", "opening", ["1.00", "opening"]),
    ],
)
def test_the_books_are_to_look_at(boss, books, name, id, words):
    listed, one = boss.get(page(f"{name}_changelist")), boss.get(page(f"{name}_change", id))
    assert words[0] in text(listed)
    assert all(word in text(one) for word in words)
    assert boss.get(page(f"{name}_changelist"), {"q": "alice"}).status_code == 200
    assert boss.get(page(f"{name}_add")).status_code == 403
    for view in ("change", "delete"):
        assert (
            boss.post(page(f"{name}_{view}", id), {"account": "eve", "post": "yes"}).status_code
            == 403
        )
    assert "delete_selected" not in listed.content.decode()
    assert gateway().ledger.audit() == []


def test_neither_an_account_nor_a_key_can_be_deleted(boss):
    new_key(boss)
    row = models.APIKey.objects.get()
    for name, id in (("account", "alice"), ("apikey", row.id)):
        assert boss.post(page(f"{name}_delete", id), {"post": "yes"}).status_code == 403
        assert "delete_selected" not in boss.get(page(f"{name}_changelist")).content.decode()
    assert call(new_key(boss)).status_code == 200
