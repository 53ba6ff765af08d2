import pytest

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
