"""The key store keeps the contract of its family, and does its own work."""

import pytest
from oneai_faq.key_store import FileKeyStore

from oneai_middleware.errors import ConfigurationError, StoreUnavailable
from oneai_middleware.secret import digest, new_secret
from oneai_middleware.testing import KeyLookupContract, find


class TestFileKeyStore(KeyLookupContract):
    @pytest.fixture(autouse=True)
    def keys(self, tmp_path):
        self.path = tmp_path / "the keys"
        self.path.write_text(f"bob sha256:{digest(new_secret())}\n\n")

    def make_store(self):
        return FileKeyStore.from_settings({}, f"keyfile://{self.path}".replace(" ", "%20"))

    def make_key(self, store):
        secret = new_secret()
        with self.path.open("a") as file:
            file.write(f"alice sha256:{digest(secret)}\n")
        return secret

    def test_a_file_that_cannot_be_read_is_the_stores_fault(self, store):
        self.path.unlink()
        with pytest.raises(StoreUnavailable):
            find(store, new_secret())

    def test_the_file_must_be_named(self):
        with pytest.raises(ConfigurationError, match="keyfile:///"):
            FileKeyStore.from_settings({})
