"""A project whose routers put our tables into a database of their own."""

import re
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections
from django.db.models import ProtectedError
from django.test import Client
from django.urls import reverse
from project.databases import database as database_at
from project.pages import ACCOUNT, new_key, page, revoke, text

from oneai_middleware.accounts import NANO
from oneai_middleware.integrations.django.conf import gateway
from oneai_middleware.integrations.django.models import Account

URL = "/oneai/v1/chat/completions"
CHAT = {"model": "bot", "messages": [{"role": "user", "content": "one two three"}]}


DOCS = Path(__file__).parents[3] / "docs" / "mounting-django.md"
ROUTER = re.compile(r"<!-- file: project/routers.py -->\n```python\n(.*?)```", re.DOTALL)


def router(ours):
    """The one that the documentation shows, for these databases."""
    [code] = ROUTER.findall(DOCS.read_text(encoding="utf-8"))
    names = {}
    exec(code.replace('"ai"', repr(ours)).replace('"default"', '"people"'), names)
    return names["OneAIRouter"]()


def add(alias, place):
    """Let ``alias`` be the database at ``place``."""
    known = {"default": connections.settings["default"], alias: database_at(place)}
    connections.settings[alias] = connections.configure_settings(known)[alias]
    connections[alias] = connections.create_connection(alias)


@pytest.fixture
def split(tables, tmp_path, use):
    """People in a database without our tables, and ours in another: in SQLite one that
    has no table of theirs, elsewhere one in which theirs are empty."""
    ours = "ours" if tables.alias == "default" else tables.alias
    made = {"people", ours} - {tables.alias}
    for alias in made:
        add(alias, str(tmp_path / alias))
    use(KEY_STORE="django", ACCOUNTS={}, DATABASE_ROUTERS=[router(ours)])
    for alias in made:
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
    yield ours
    for alias in made:
        connections[alias].close()
        del connections[alias], connections.settings[alias]


def table_names(alias):
    with connections[alias].cursor() as cursor:
        return {*connections[alias].introspection.table_names(cursor)}


pytestmark = pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def boss(split):
    """A superuser's client."""
    client = Client()
    client.force_login(User.objects.create_superuser("boss"))
    return client


def test_each_database_has_its_tables(split):
    assert {"auth_user", "oneai_account"} - table_names("people") == {"oneai_account"}
    if split == "ours":
        assert {"auth_user", "oneai_account"} - table_names("ours") == {"auth_user"}


def test_from_an_account_that_somebody_owns_to_a_call_that_is_paid(split):
    user = User.objects.create_user("alice")
    account, _ = Account.objects.get_or_create(name="alice", defaults={"owner": user})
    assert (account._state.db, user.oneai_accounts.get()) == (split, account)
    _, secret = gateway().key_store.create("alice")
    gateway().ledger.top_up("alice", NANO, "r1")
    headers = {"Authorization": f"Bearer {secret}"}
    reply = Client().post(URL, CHAT, "application/json", headers=headers)
    assert reply.status_code == 200
    assert 0 < gateway().ledger.balance("alice").spent < NANO
    assert gateway().ledger.audit() == []


def test_whoever_owns_an_account_is_not_deleted(boss):
    owner, other = User.objects.create_user("alice"), User.objects.create_user("bob")
    account = Account.objects.create(name="alice", owner=owner)
    with pytest.raises(ProtectedError) as protected:
        owner.delete()
    assert [*protected.value.protected_objects] == [account]
    delete = reverse("admin:auth_user_delete", args=[owner.pk])
    assert "Cannot delete user" in text(boss.get(delete))
    boss.post(delete, {"post": "yes"})
    other.delete()
    assert [*User.objects.values_list("username", flat=True).order_by("pk")] == ["boss", "alice"]


def test_the_admin_works_there(boss, split):
    owner = User.objects.create_user("alice")
    made = {**ACCOUNT, "name": "alice", "owner": owner.pk}
    assert boss.post(page("account_add"), made).status_code == 302
    assert Account.objects.get().owner == owner
    change = page("account_change", "alice")
    assert "alice" in text(boss.get(page("account_changelist")))
    assert boss.get(change).status_code == 200
    assert boss.post(change, {"tier": "free", "owner": owner.pk}).status_code == 302
    top_up = {"amount": "5", "reference": "r1"}
    assert boss.post(page("account_top_up", "alice"), top_up).status_code == 302
    new_key(boss)
    [key] = gateway().key_store.keys()
    assert "Revoked: 1." in text(revoke(boss, key.id))
    assert "Revoked." in text(boss.get(page("apikey_history", key.id)))
    for name in ("apikey", "entry", "hold", "topup"):
        assert boss.get(page(f"{name}_changelist")).status_code == 200
    sent = {"tier": "free", "prepaid": "on", "owner": ""}
    assert boss.post(change, sent).status_code == 302
    owner.delete()
