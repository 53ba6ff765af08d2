import threading
from types import SimpleNamespace

import pytest

from oneai_middleware.accounts import Account, DeclaredAccount
from oneai_middleware.errors import ConfigurationError, StoreUnavailable
from oneai_middleware.key_stores.base import KeyStore
from oneai_middleware.key_stores.cached import CachedKeyStore
from oneai_middleware.key_stores.memory import MemoryKeyStore
from oneai_middleware.secret import digest, new_secret
from oneai_middleware.testing import FakeClock, KeyStoreContract, find


def fork(monkeypatch):
    """Let the code under test believe that it runs in a forked child."""
    child = SimpleNamespace(getpid=lambda: -1)
    monkeypatch.setattr("oneai_middleware.per_process.os", child)


ALICE = Account("alice", tier="pro")


class CountingStore(MemoryKeyStore):
    """A store that writes down what it was asked; ``meanwhile`` runs before it answers."""

    def __init__(self):
        super().__init__([DeclaredAccount(ALICE)])
        self.asked = []
        self.meanwhile = lambda: None

    def find(self, digest):
        return self._answer(digest, super().find(digest))

    def account(self, name):
        return self._answer(name, super().account(name))

    def _answer(self, name, answer):
        self.asked.append(name)
        self.meanwhile()
        return answer


class TestCachedKeyStore(KeyStoreContract):
    def make_store(self):
        self.clock = FakeClock()
        return CachedKeyStore(MemoryKeyStore([DeclaredAccount(self.alice)]), clock=self.clock)

    def advance(self, seconds):
        self.clock.advance(seconds)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store():
    return CountingStore()


@pytest.fixture
def cached(store, clock):
    return CachedKeyStore(store, ttl=5, size=1_000, clock=clock)


def test_a_warm_lookup_asks_no_store(cached, store):
    key, secret = cached.create("alice")
    for _ in range(10):
        assert find(cached, secret) == key
        assert cached.account("alice") == ALICE
    assert store.asked == [digest(secret), "alice"]


def test_a_miss_is_remembered_too(cached, store):
    for _ in range(10):
        assert cached.find("nothing") is None
        assert cached.account("nobody") is None
    assert store.asked == ["nothing", "nobody"]


def test_a_key_revoked_elsewhere_is_known_within_the_ttl(cached, store, clock):
    key, secret = store.create("alice")
    assert find(cached, secret) == key
    store.update(key.id, revoked=True)
    clock.advance(4.9)
    assert not find(cached, secret).revoked
    clock.advance(0.1)
    assert find(cached, secret).revoked


def test_a_key_created_elsewhere_is_known_within_the_ttl(cached, store, clock):
    secret = new_secret()
    assert find(cached, secret) is None
    store._keys[digest(secret)] = key = store.create("alice")[0]._replace(id="k")
    clock.advance(5)
    assert find(cached, secret) == key


def test_a_key_revoked_here_is_refused_at_once(cached):
    """Conformance 19."""
    key, secret = cached.create("alice")
    assert find(cached, secret) == key
    cached.update(key.id, revoked=True)
    assert find(cached, secret).revoked


def test_a_key_created_here_opens_at_once_though_it_was_missing(cached, monkeypatch):
    secret = new_secret()
    monkeypatch.setattr("oneai_middleware.secret.new_secret", lambda: secret)
    assert find(cached, secret) is None
    key, _ = cached.create("alice")
    assert find(cached, secret) == key


def test_an_account_saved_here_is_known_at_once_though_it_was_missing(cached):
    assert cached.account("bob") is None
    cached.save_account(Account("bob"))
    assert cached.account("bob") == Account("bob")


def test_an_answer_from_before_a_revocation_does_not_outlive_it(cached, store):
    key, secret = store.create("alice")

    def revoke():
        store.meanwhile = lambda: None
        cached.update(key.id, revoked=True)

    store.meanwhile = revoke
    assert not find(cached, secret).revoked  # it was asked before
    assert find(cached, secret).revoked


def test_the_store_is_asked_without_the_lock_held(cached, store):
    def look_from_another_thread():
        store.meanwhile = lambda: None
        other = threading.Thread(target=cached.find, args=("another",))
        other.start()
        other.join(timeout=30)
        assert not other.is_alive()

    store.meanwhile = look_from_another_thread
    cached.find("one")
    assert store.asked == ["one", "another"]


def test_a_flood_of_bad_keys_neither_grows_the_cache_nor_pushes_out_good_keys(cached, store):
    key, secret = cached.create("alice")
    assert find(cached, secret) == key
    for number in range(100_000):
        assert cached.find(f"bad{number}") is None
    assert len(cached._found()._misses) == 1_000
    store.asked.clear()
    assert find(cached, secret) == key
    assert store.asked == []


def test_good_keys_are_bounded_as_well(store, clock):
    cached = CachedKeyStore(store, size=10, clock=clock)
    for _ in range(30):
        find(cached, cached.create("alice")[1])
    assert len(cached._found()._hits) == 10


def test_a_store_that_is_down_is_asked_again(cached, store):
    def fail():
        raise StoreUnavailable("down")

    key, secret = store.create("alice")
    store.meanwhile = fail
    with pytest.raises(StoreUnavailable):
        find(cached, secret)
    store.meanwhile = lambda: None
    assert find(cached, secret) == key


def test_another_form_of_key_keeps_its_own_digest():
    class Legacy(KeyStore):
        def digest(self, secret):
            return secret.upper()

    assert CachedKeyStore(Legacy()).digest("abc") == "ABC"


def test_a_read_only_store_stays_read_only():
    cached = CachedKeyStore(KeyStore())
    for write in (
        lambda: cached.create("alice"),
        lambda: cached.update("k1", revoked=True),
        lambda: cached.save_account(ALICE),
        cached.keys,
        cached.accounts,
    ):
        with pytest.raises(ConfigurationError, match="cannot be written"):
            write()


def test_a_forked_child_shares_neither_cache_nor_lock(cached, store, monkeypatch):
    cached.find("one")
    with cached._found()._lock:
        fork(monkeypatch)
        cached.find("one")
    assert store.asked == ["one", "one"]
