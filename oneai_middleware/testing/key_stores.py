"""The contract of key stores."""

from __future__ import annotations

import time

import pytest

from ..accounts import Account, ApiKey, Limits
from ..key_stores.base import KeyStore
from ..secret import digest, new_secret
from .contract import NAMES, Contract, in_threads


class KeyLookupContract(Contract):
    """What every key store does. It must hold the account :attr:`alice` and a key of hers."""

    alice = Account("alice")

    def make_store(self) -> KeyStore:
        """A fresh store with :attr:`alice` in it."""
        raise NotImplementedError

    def make_key(self, store: KeyStore) -> str:
        """The secret of a key of alice's that ``store`` holds."""
        raise NotImplementedError

    @pytest.fixture
    def store(self) -> KeyStore:
        return self.make_store()

    def test_a_key_opens_its_account(self, store: KeyStore) -> None:
        key = find(store, self.make_key(store))
        assert key is not None
        assert key.account == self.alice
        assert key.id

    def test_a_key_is_the_same_each_time_and_in_each_thread(self, store: KeyStore) -> None:
        secret = self.make_key(store)
        key = find(store, secret)
        assert in_threads(lambda: find(store, secret), 40) == [key] * 40

    def test_an_unknown_key_opens_nothing(self, store: KeyStore) -> None:
        self.make_key(store)
        assert find(store, new_secret()) is None
        assert store.find(digest(new_secret())) is None

    @pytest.mark.parametrize("text", ["", "' OR 1=1 --", "%", "\x00", "é" * 300, "a" * 10_000])
    def test_strange_text_finds_nothing(self, store: KeyStore, text: str) -> None:
        self.make_key(store)
        assert find(store, text) is None
        assert store.find(text) is None
        assert store.account(text) is None

    def test_a_key_does_not_show_its_secret(self, store: KeyStore) -> None:
        secret = self.make_key(store)
        assert secret not in repr(find(store, secret))


class KeyStoreContract(KeyLookupContract):
    """What every writable key store does besides. It must hold :attr:`alice`."""

    alice = Account("alice", tier="pro", models=frozenset({"deepseek-v3"}))

    def make_key(self, store: KeyStore) -> str:
        return store.create("alice")[1]

    def test_a_created_key_is_found_by_the_digest_of_its_secret(self, store: KeyStore) -> None:
        key, secret = store.create("alice")
        assert find(store, secret) == key
        assert key.account == self.alice

    def test_a_key_carries_the_fields_it_was_created_with(self, store: KeyStore) -> None:
        limits = Limits(rpm=5, tpm=None, concurrent=1)
        models = frozenset({"deepseek-v3", "qwen-max"})
        _, secret = store.create(
            "alice", label="ci", models=models, limits=limits, budget=10**12, expires=2e9
        )
        key = find(store, secret)
        assert key is not None
        assert (key.label, key.models, key.limits) == ("ci", models, limits)
        assert (key.budget, key.expires, key.revoked) == (10**12, 2e9, False)

    def test_a_new_key_is_unlimited_unrevoked_and_never_expires(self, store: KeyStore) -> None:
        key, _ = store.create("alice")
        assert (key.models, key.limits, key.budget, key.expires) == (None, None, None, None)
        assert key.is_valid(2e9)

    def test_a_malformed_secret_has_no_digest(self, store: KeyStore) -> None:
        assert store.digest("") is None
        assert store.digest("oneai-sk-" + "0" * 46) is None

    def test_no_key_shows_its_secret(self, store: KeyStore) -> None:
        key, secret = store.create("alice")
        assert secret not in repr(key)
        assert secret not in repr(list(store.keys()))
        assert key.hint.endswith(secret[-4:])

    def test_secrets_and_ids_are_all_different(self, store: KeyStore) -> None:
        created = [store.create("alice") for _ in range(20)]
        assert len({key.id for key, _ in created}) == 20
        assert len({secret for _, secret in created}) == 20

    def test_creating_a_key_for_an_unknown_account_is_an_error(self, store: KeyStore) -> None:
        with pytest.raises(KeyError):
            store.create("nobody")

    def test_a_revoked_key_is_found_as_revoked(self, store: KeyStore) -> None:
        key, secret = store.create("alice")
        assert find(store, secret) == key
        assert store.update(key.id, revoked=True).revoked
        found = find(store, secret)
        assert found is None or found.revoked

    def test_updating_changes_only_the_named_fields(self, store: KeyStore) -> None:
        key, secret = store.create("alice", label="old", budget=5)
        assert store.update(key.id, label="new") == key._replace(label="new")
        assert find(store, secret) == key._replace(label="new")

    @pytest.mark.parametrize("field", ["id", "account", "digest", "secret", "created_at"])
    def test_whose_key_it_is_and_what_opens_it_cannot_be_chosen(
        self, store: KeyStore, field: str
    ) -> None:
        key, secret = store.create("alice")
        with pytest.raises(TypeError, match=field):
            store.update(key.id, **{field: "bob"})
        if field != "account":
            with pytest.raises(TypeError, match=field):
                store.create("alice", **{field: "bob"})
        assert find(store, secret) == key

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(("label", bad) for bad in ("a" * 201, "a\0", "a\ud800", None)),
            *(("models", bad) for bad in ("deepseek-v3", {""}, [1])),
            *(("limits", bad) for bad in ((1, 2, 3), Limits(rpm=-1), Limits(tpm=2.5))),  # type: ignore[arg-type]
            *(("budget", bad) for bad in (-5, 2.5, 2**70, True)),
            *(("period", bad) for bad in ("week", "")),
            *(("expires", bad) for bad in (-1, float("nan"), float("inf"), "2027-01-01")),
            ("revoked", 1),
        ],
    )
    def test_a_value_that_means_nothing_is_refused(
        self, store: KeyStore, field: str, value: object
    ) -> None:
        key, secret = store.create("alice")
        for act in (store.create, lambda _, **fields: store.update(key.id, **fields)):
            with pytest.raises(ValueError, match=field):
                act("alice", **{field: value})
        assert find(store, secret) == key
        assert len(list(store.keys())) == 1

    def test_the_longest_label_is_kept(self, store: KeyStore) -> None:
        _, secret = store.create("alice", label="😀" * 200)
        found = find(store, secret)
        assert found is not None
        assert found.label == "😀" * 200

    def test_updating_nothing_changes_nothing(self, store: KeyStore) -> None:
        key, _ = store.create("alice")
        assert store.update(key.id) == key
        for id in ("key_000000000000", "a\0"):
            with pytest.raises(KeyError):
                store.update(id)

    def test_updating_one_key_leaves_the_others_alone(self, store: KeyStore) -> None:
        other, secret = store.create("alice")
        key, _ = store.create("alice")
        store.update(key.id, revoked=True)
        assert find(store, secret) == other

    def test_updating_an_unknown_key_is_an_error(self, store: KeyStore) -> None:
        with pytest.raises(KeyError):
            store.update("key_000000000000", revoked=True)

    def test_a_rotated_key_has_the_rights_of_the_old_one(self, store: KeyStore) -> None:
        limits = Limits(rpm=5, tpm=None, concurrent=1)
        old, _ = store.create(
            "alice",
            label="ci",
            models=frozenset({"deepseek-v3"}),
            limits=limits,
            budget=10**12,
            period="month",
            expires=4e9,
        )
        key, secret = store.rotate(old.id)
        assert key == old._replace(id=key.id, hint=key.hint)
        assert key.id != old.id
        assert find(store, secret) == key
        assert len(list(store.keys("alice"))) == 2

    def test_a_rotated_key_works_on_for_the_overlap_and_no_longer(self, store: KeyStore) -> None:
        now = time.time()
        key, secret = store.create("alice")
        assert find(store, secret) == key
        store.rotate(key.id, overlap=3_600.0)
        found = find(store, secret)
        assert found is not None
        assert found.expires is not None
        assert now <= found.expires - 3_600 <= time.time()
        assert found.is_valid(now + 3_599)
        assert not found.is_valid(time.time() + 3_600)

    def test_a_key_rotated_without_overlap_is_revoked(self, store: KeyStore) -> None:
        key, secret = store.create("alice")
        store.rotate(key.id)
        found = find(store, secret)
        assert found is None or found.revoked
        with pytest.raises(KeyError):
            store.rotate(key.id)

    def test_an_overlap_prolongs_no_key(self, store: KeyStore) -> None:
        soon = float(int(time.time()) + 60)  # which any database can keep
        key, secret = store.create("alice", expires=soon)
        new, _ = store.rotate(key.id, overlap=3_600)
        found = find(store, secret)
        assert found is not None
        assert found.expires == new.expires == soon

    def test_a_key_that_is_unknown_or_revoked_is_not_rotated(self, store: KeyStore) -> None:
        key, _ = store.create("alice")
        store.update(key.id, revoked=True)
        for id in (key.id, "key_000000000000"):
            with pytest.raises(KeyError):
                store.rotate(id)
        assert len(list(store.keys())) == 1

    def test_the_last_use_is_written_down_once_a_minute(self, store: KeyStore) -> None:
        key, secret = store.create("alice")
        other, _ = store.create("alice")
        assert key.last_used is None
        for second in (0, 30, 59):
            store.used(key, 2e9 + second)
            assert last_use(store, key) == 2e9
        found = find(store, secret)
        assert found is not None
        self.advance(60)
        store.used(found, 2e9 + 60)
        assert last_use(store, key) == 2e9 + 60
        assert last_use(store, other) is None

    def test_the_use_of_a_key_that_is_gone_is_nothing(self, store: KeyStore) -> None:
        key, _ = store.create("alice")
        store.used(key._replace(id="key_000000000000"), 2e9)
        assert last_use(store, key) is None

    def test_keys_are_listed_by_account(self, store: KeyStore) -> None:
        store.save_account(Account("bob"))
        hers, _ = store.create("alice")
        his, _ = store.create("bob")
        assert list(store.keys("alice")) == [hers]
        every = store.keys()
        assert {key.id for key in every} == {hers.id, his.id}
        assert list(store.keys("nobody")) == []

    def test_an_account_is_found_by_its_name(self, store: KeyStore) -> None:
        assert store.account("alice") == self.alice
        assert store.account("bob") is None

    def test_a_saved_account_is_found_and_listed(self, store: KeyStore) -> None:
        assert store.account("bob") is None
        bob = Account("bob", "enterprise", False, frozenset(), Limits(1, 2, 3))
        store.save_account(bob)
        assert store.account("bob") == bob
        assert {account.name for account in store.accounts()} == {"alice", "bob"}

    def test_names_are_told_apart_to_the_letter(self, store: KeyStore) -> None:
        names = [name for name in NAMES if name != "alice"]
        for number, name in enumerate(names):
            assert store.account(name) is None
            store.save_account(Account(name, tier=f"tier {number}"))
        secrets = [store.create(name)[1] for name in names]
        for number, (name, secret) in enumerate(zip(names, secrets, strict=True)):
            key = find(store, secret)
            assert key is not None
            assert key.account == store.account(name) == Account(name, tier=f"tier {number}")
            assert len(list(store.keys(name))) == 1
        assert store.account("alice") == self.alice

    @pytest.mark.parametrize("name", ["", "a" * 191, "a\0", "a\ud800"])
    def test_what_is_no_name_names_no_account(self, store: KeyStore, name: str) -> None:
        with pytest.raises(ValueError, match="190"):
            store.save_account(Account(name))
        assert store.account(name) is None
        assert [account.name for account in store.accounts()] == ["alice"]

    def test_an_account_saved_by_many_threads_is_there_once(self, store: KeyStore) -> None:
        in_threads(lambda: store.save_account(Account("bob")), 24)
        assert {account.name for account in store.accounts()} == {"alice", "bob"}
        assert len(list(store.accounts())) == 2

    def test_a_changed_account_shows_in_its_keys(self, store: KeyStore) -> None:
        store.save_account(Account("bob"))
        bobs, bobs_secret = store.create("bob")
        _, secret = store.create("alice")
        assert find(store, secret)
        changed = self.alice._replace(tier="free", limits=Limits(rpm=1))
        store.save_account(changed)
        found = find(store, secret)
        assert found is not None
        assert found.account == store.account("alice") == changed
        assert find(store, bobs_secret) == bobs

    def test_keys_created_by_many_threads_are_all_found(self, store: KeyStore) -> None:
        created = in_threads(lambda: store.create("alice"), 40)
        assert all(find(store, secret) == key for key, secret in created)


def last_use(store: KeyStore, key: ApiKey) -> float | None:
    """When ``key`` was last used, as the store has written it down."""
    keys = {each.id: each for each in list(store.keys())}
    return keys[key.id].last_used


def find(store: KeyStore, secret: str) -> ApiKey | None:
    """The key that ``secret`` opens, looked up as the gateway does."""
    hashed = store.digest(secret)
    return None if hashed is None else store.find(hashed)
