"""The admin, for a superuser, for staff who may something, and for staff who may nothing."""

import html
import logging
import re

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.db.models import ProtectedError
from django.test import Client
from django.urls import reverse

from oneai_middleware.accounts import NANO, Account, Limits
from oneai_middleware.integrations.django import models
from oneai_middleware.integrations.django.conf import gateway
from oneai_middleware.secret import digest
from oneai_middleware.testing import draft, hold

LISTS = ("account", "apikey", "entry", "hold", "topup")
SECRET = re.compile(r"oneai-sk-[0-9A-Za-z]{46}")
KEY = {"account": "alice", "label": "laptop", "expires_0": "", "expires_1": ""}


@pytest.fixture(autouse=True)
def shop(use, clean):
    """The project with keys and money in its database, and alice, who has a dollar."""
    use(KEY_STORE="django", ACCOUNTS={})
    gateway().key_store.save_account(Account("alice", "pro"))
    gateway().ledger.top_up("alice", NANO, "opening")


@pytest.fixture
def boss():
    """A client in which a superuser is logged in."""
    client = Client()
    client.force_login(User.objects.create_superuser("boss"))
    return client


@pytest.fixture
def staff():
    """Makes clients in which somebody is logged in who has just these permissions."""

    def staff(*permissions):
        user = User.objects.create_user("staff", is_staff=True)
        for name in permissions:
            user.user_permissions.add(
                Permission.objects.get(codename=name, content_type__app_label="oneai")
            )
        client = Client()
        client.force_login(user)
        return client

    return staff


def page(name, *ids):
    return reverse(f"admin:oneai_{name}", args=[*map(quote, ids)])


def text(reply):
    """What a reader sees of a page."""
    assert reply.status_code == 200
    return html.unescape(re.sub(r"<[^>]*>", " ", reply.content.decode()))


def new_key(client, **fields):
    """The secret of a key that is made in the form."""
    [secret] = SECRET.findall(text(client.post(page("apikey_add"), {**KEY, **fields})))
    return secret


@pytest.fixture
def call(eventually):
    """Asks what the API answers to a key, and waits until its use is noted: in SQLite
    the admin's transaction, which has read before it writes, could not go on then."""

    def call(secret):
        reply = Client().get("/oneai/v1/key", headers={"Authorization": f"Bearer {secret}"})
        its = models.APIKey.objects.filter(digest=digest(secret))
        if reply.status_code == 200:
            eventually(lambda: its.get().last_used)
        return reply

    return call


def refused(reply):
    """What a form has to say against what was sent."""
    return " ".join(re.findall(r'<ul class="errorlist"[^>]*>(.*?)</ul>', text_of(reply), re.S))


def text_of(reply):
    assert reply.status_code == 200
    return html.unescape(reply.content.decode())


# --- keys -------------------------------------------------------------------------------


def test_a_secret_is_in_the_one_answer_and_nowhere_else(boss, caplog, call):
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


def test_a_key_may_what_the_form_said(boss, call):
    secret = new_key(
        boss,
        models=" bot,  echo ,",
        limits_0="5",
        limits_2="1",
        budget="2.50",
        period="month",
        expires_0="2100-01-01",
        expires_1="12:00",
    )
    seen = call(secret).json()
    assert (seen["account"], seen["label"], seen["models"]) == ("alice", "laptop", ["bot", "echo"])
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
        ({"limits_0": "0"}, "greater than or equal to 1"),
        ({"limits_1": "many"}, "whole number"),
        ({"expires_0": "soon"}, "valid date"),
        ({"label": "x" * 201}, "at most 200"),
    ],
)
def test_what_a_key_cannot_be_is_said_and_none_is_made(boss, fields, words):
    assert words in refused(boss.post(page("apikey_add"), {**KEY, **fields}))
    assert not models.APIKey.objects.exists()


def test_a_revoked_key_opens_nothing_from_then_on(boss, call):
    """Conformance 19."""
    secret, other = new_key(boss), new_key(boss, label="other")
    assert (call(secret).status_code, call(other).status_code) == (200, 200)
    row = models.APIKey.objects.get(label="laptop")
    revoke = {"action": "revoke", "_selected_action": [row.id]}
    seen = text(boss.post(page("apikey_changelist"), revoke, follow=True))
    assert "Revoked: 1." in seen
    assert (call(secret).status_code, call(other).status_code) == (401, 200)
    assert "revoked" in text(boss.get(page("apikey_changelist")))
    assert "Revoked." in text(boss.get(page("apikey_history", row.id)))


def test_the_list_says_how_each_key_stands(boss):
    new_key(boss, label="old", expires_0="2020-01-01", expires_1="12:00", budget="1.5")
    secret = new_key(boss, label="new")
    seen = text(boss.get(page("apikey_changelist")))
    for word in (f"oneai-sk-…{secret[-4:]}", "expired", "valid", "1.50", "alice", "old", "new"):
        assert word in seen


def test_a_change_is_in_force_at_once_and_changes_nothing_else(boss, call):
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


# --- accounts and money -----------------------------------------------------------------


ACCOUNT = {"name": "bob", "tier": "pro", "prepaid": "on"}


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
        ({"owner": "999"}, "valid choice"),
        ({"limits_2": "-1"}, "greater than or equal to 1"),
    ],
)
def test_what_an_account_cannot_be_is_said_and_none_is_made(boss, fields, words):
    assert words in refused(boss.post(page("account_add"), {**ACCOUNT, **fields}))
    assert [account.name for account in gateway().key_store.accounts()] == ["alice"]


def test_a_change_of_an_account_is_in_force_at_once(boss, call):
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
        ({"amount": "1e-10"}, "finer than a nano-dollar"),
        ({"amount": "12,50"}, "not an amount"),
        ({"amount": "9e9"}, "four billion"),
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


def test_neither_an_account_nor_a_key_can_be_deleted(boss, call):
    new_key(boss)
    row = models.APIKey.objects.get()
    for name, id in (("account", "alice"), ("apikey", row.id)):
        assert boss.post(page(f"{name}_delete", id), {"post": "yes"}).status_code == 403
        assert "delete_selected" not in boss.get(page(f"{name}_changelist")).content.decode()
    assert call(new_key(boss)).status_code == 200


# --- who may what --------------------------------------------------------------------------


def test_visitors_are_asked_to_log_in():
    for name in (*(f"{name}_changelist" for name in LISTS), "apikey_add"):
        assert Client().get(page(name)).status_code == 302
    assert Client().get(page("account_top_up", "alice")).status_code == 302


def test_staff_without_permissions_see_nothing(staff, boss):
    new_key(boss)
    row, client = models.APIKey.objects.get(), staff()
    for name in LISTS:
        assert client.get(page(f"{name}_changelist")).status_code == 403
    assert client.post(page("apikey_add"), KEY).status_code == 403
    assert client.post(page("account_add"), ACCOUNT).status_code == 403
    assert client.get(page("apikey_change", row.id)).status_code == 403
    top_up = {"amount": "5", "reference": "r1"}
    assert client.post(page("account_top_up", "alice"), top_up).status_code == 403
    assert "OneAI" not in text(client.get(reverse("admin:index")))
    assert models.APIKey.objects.count() == 1
    assert gateway().ledger.balance("alice").topped_up == NANO


def test_staff_who_may_look_cannot_touch(staff, boss):
    new_key(boss, budget="2.5")
    row = models.APIKey.objects.get()
    client = staff("view_account", "view_apikey", "view_entry", "view_hold", "view_topup")
    for name in LISTS:
        assert client.get(page(f"{name}_changelist")).status_code == 200
    assert "2.50" in text(client.get(page("apikey_change", row.id)))
    assert "Top up" not in text(client.get(page("account_change", "alice")))
    assert client.post(page("apikey_change", row.id), {"label": "x"}).status_code == 403
    assert client.post(page("apikey_add"), KEY).status_code == 403
    revoke = {"action": "revoke", "_selected_action": [row.id]}
    client.post(page("apikey_changelist"), revoke)
    assert not models.APIKey.objects.get().revoked
    top_up = {"amount": "5", "reference": "r1"}
    assert client.post(page("account_top_up", "alice"), top_up).status_code == 403


def test_whoever_may_top_up_may_do_just_that(staff):
    client = staff("view_account", "top_up_account")
    top_up = {"amount": "5", "reference": "r1"}
    assert client.post(page("account_top_up", "alice"), top_up).status_code == 302
    assert gateway().ledger.balance("alice").topped_up == 6 * NANO
    assert client.post(page("account_change", "alice"), ACCOUNT).status_code == 403


def test_what_the_project_does_not_use_is_not_there(use, boss):
    use(KEY_STORE="django", LEDGER="unlimited", ACCOUNTS={})
    seen = text(boss.get(page("account_change", "alice")))
    assert "Top up" not in seen
    assert "available" not in seen.lower()
    assert boss.get(page("account_changelist")).status_code == 200
    assert boss.get(page("account_top_up", "alice")).status_code == 403
    assert boss.get(page("entry_changelist")).status_code == 403
    use()
    for name in LISTS:
        assert boss.get(page(f"{name}_changelist")).status_code == 403
    assert "OneAI" not in text(boss.get(reverse("admin:index")))
