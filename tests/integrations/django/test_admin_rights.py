"""The admin: who may what, for a superuser, for staff who may something, or nothing."""

import pytest
from django.test import Client
from django.urls import reverse
from project.pages import ACCOUNT, KEY, LISTS, new_key, page, revoke, text

from oneai_middleware.accounts import NANO, Account, Limits
from oneai_middleware.integrations.django import models
from oneai_middleware.integrations.django.conf import gateway

pytestmark = pytest.mark.usefixtures("shop")


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
    revoke(client, row.id)
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


# --- what is worth money ------------------------------------------------------------------


def test_whoever_may_not_top_up_cannot_let_an_account_spend_more(staff):
    account = Account("alice", "free", limits=Limits(rpm=3))
    gateway().key_store.save_account(account)
    client = staff("view_account", "change_account")
    change = page("account_change", "alice")
    assert "free" in text(client.get(change))
    sent = {"tier": "enterprise", "limits_0": "900", "models": "bot"}  # prepaid is not ticked
    assert client.post(change, sent).status_code == 302
    assert gateway().key_store.account("alice") == account._replace(models=frozenset({"bot"}))


def test_nor_make_one_that_may(staff):
    client = staff("view_account", "add_account")
    assert client.get(page("account_add")).status_code == 200
    sent = {"name": "bob", "tier": "enterprise", "limits_0": "900"}
    assert client.post(page("account_add"), sent).status_code == 302
    assert gateway().key_store.account("bob") == Account("bob", "free", True)


def test_whoever_may_top_up_too_can(staff):
    client = staff("view_account", "change_account", "top_up_account")
    sent = {"tier": "enterprise", "limits_0": "900"}
    assert client.post(page("account_change", "alice"), sent).status_code == 302
    changed = Account("alice", "enterprise", False, limits=Limits(rpm=900))
    assert gateway().key_store.account("alice") == changed


# --- digests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lookup"),
    [
        ("apikey", "digest"),
        ("apikey", "digest__startswith"),
        ("apikey", "account__keys__digest__startswith"),
        ("account", "keys__digest__startswith"),
    ],
)
def test_no_list_tells_a_digest(staff, boss, name, lookup):
    new_key(boss)
    digest = models.APIKey.objects.get().digest
    client = staff("view_account", "view_apikey")
    refused = client.get(page(f"{name}_changelist"), {lookup: digest})
    guessed = client.get(page(f"{name}_changelist"), {lookup: "0"})
    assert (refused.status_code, guessed.status_code) == (400, 400)


def test_nor_does_a_users_list_or_a_search(boss):
    new_key(boss)
    digest = models.APIKey.objects.get().digest
    its = {"oneai_accounts__keys__digest__startswith": digest[:4]}
    assert boss.get(reverse("admin:auth_user_changelist"), its).status_code == 400
    searched = boss.get(page("apikey_changelist"), {"q": digest})
    assert searched.context["cl"].result_count == 0
    offered = {"app_label": "oneai", "model_name": "apikey", "field_name": "account"}
    for term, names in ((digest, []), ("alice", ["alice"])):
        found = boss.get(reverse("admin:autocomplete"), {**offered, "term": term}).json()
        assert [each["text"] for each in found["results"]] == names
    of_field = {"_to_field": "digest"}
    assert boss.get(page("apikey_changelist"), of_field).status_code == 400


def test_a_list_is_filtered_by_what_is_no_secret(boss):
    new_key(boss)
    for name in ("revoked__exact", "account__name", "label__startswith"):
        assert boss.get(page("apikey_changelist"), {name: "1"}).status_code == 200
