import threading

import pytest
from django.db import connections, transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import path

from oneai_middleware.accounts import Account
from oneai_middleware.integrations.django.conf import gateway
from oneai_middleware.integrations.django.key_store import DjangoKeyStore
from oneai_middleware.testing import KeyStoreContract


class TestDjangoKeyStore(KeyStoreContract):
    @pytest.fixture(autouse=True)
    def _tables(self, tables, in_scope):
        self.in_scope = in_scope

    def make_store(self):
        store = self.in_scope(DjangoKeyStore())
        store.save_account(self.alice)
        return store


def test_what_expires_after_the_calendars_end_expires_at_its_end(tables):
    store = DjangoKeyStore()
    store.save_account(Account("alice"))
    key, _ = store.create("alice", expires=1e12)
    store.rotate(key.id, overlap=1e15)
    key, new = store.keys()
    assert key.expires == new.expires == 253402128000  # the 30th of December 9999
    assert new.is_valid(253402127999)


# --- beside transactions of the project's own -----------------------------------------


def call(secret):
    """What the API answers to the key."""
    return Client().get("/oneai/v1/key", headers={"Authorization": f"Bearer {secret}"})


def call_elsewhere(secret):
    """The same in a thread of its own, as a server answers it."""
    answers = []

    def ask():
        answers.append(call(secret))
        connections.close_all()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return answers[0]


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_what_a_view_writes_is_in_force_with_its_commit_whoever_called_before(
    use, tables, monkeypatch
):
    monkeypatch.setitem(connections.settings[tables.alias], "ATOMIC_REQUESTS", True)
    seen = []

    def work(request):
        assert connections[tables.alias].in_atomic_block
        store = gateway().key_store
        store.save_account(Account("alice", "pro"))
        store.update(request.GET["id"], label="new")
        other, secret = store.rotate(request.GET["id"])
        store.update(other.id, revoked=True)
        seen.extend(call_elsewhere(each) for each in (request.GET["secret"], secret))
        return HttpResponse(secret)

    use(KEY_STORE="django", ACCOUNTS={}, ROOT_URLCONF=(path("work", work),))
    gateway().key_store.save_account(Account("alice"))
    key, secret = gateway().key_store.create("alice")
    assert call(secret).json()["tier"] == "free"
    new = Client().get("/work", {"id": key.id, "secret": secret}).content.decode()
    assert [reply.status_code for reply in seen] == [200, 401]
    assert [call(each).status_code for each in (secret, new)] == [401, 401]


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_an_account_that_a_view_makes_is_there_with_its_commit(use, tables):
    use(KEY_STORE="django", ACCOUNTS={}, AUTHENTICATE=lambda environ: "bob")
    with transaction.atomic(using=tables.alias):
        gateway().key_store.save_account(Account("bob", "pro"))
        assert call_elsewhere("").status_code == 401
    assert Client().get("/oneai/v1/key").json()["tier"] == "pro"
