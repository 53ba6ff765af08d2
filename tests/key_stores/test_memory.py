from types import SimpleNamespace

import pytest

from oneai_middleware.accounts import Account, DeclaredAccount, Limits
from oneai_middleware.errors import ConfigurationError
from oneai_middleware.key_stores.memory import MemoryKeyStore
from oneai_middleware.secret import digest, hint, new_secret
from oneai_middleware.testing import KeyStoreContract, find


def fork(monkeypatch):
    """Let the code under test believe that it runs in a forked child."""
    child = SimpleNamespace(getpid=lambda: -1)
    monkeypatch.setattr("oneai_middleware.per_process.os", child)


class TestMemoryKeyStore(KeyStoreContract):
    def make_store(self):
        return MemoryKeyStore([DeclaredAccount(self.alice)])


@pytest.fixture
def secret():
    return new_secret()


@pytest.fixture
def store(secret):
    accounts = {
        "alice": {"tier": "pro", "keys": [secret], "limits": {"rpm": 3}},
        "bob": {"prepaid": False, "keys": [f"sha256:{digest(secret[::-1])}"]},
    }
    return MemoryKeyStore.from_settings({"accounts": accounts, "tiers": {}})


def test_declared_keys_open_their_accounts(store, secret):
    key = find(store, secret)
    assert key.account == Account("alice", "pro", limits=Limits(3, 2_000_000, 10))
    assert key.id == f"key_{digest(secret)[:12]}"
    assert key.hint == hint(secret)
    assert store.find(digest(secret[::-1])).account == Account("bob", prepaid=False)


def test_a_declared_key_can_be_revoked(store, secret):
    store.update(find(store, secret).id, revoked=True)
    assert find(store, secret).revoked


def test_an_unknown_field_is_an_error(store, secret):
    with pytest.raises(TypeError):
        store.create("alice", colour="red")
    with pytest.raises(TypeError, match="colour"):
        store.update(find(store, secret).id, colour="red")


def test_the_store_shows_no_secret(store, secret):
    assert secret not in repr(vars(store))


def test_a_forked_child_does_not_wait_for_the_parents_lock(store, monkeypatch):
    with store._writing():
        fork(monkeypatch)
        _, secret = store.create("alice")
    assert find(store, secret)


def test_a_url_is_refused():
    with pytest.raises(ConfigurationError, match="key_store"):
        MemoryKeyStore.from_settings({"accounts": {}, "tiers": {}}, "memory://")
