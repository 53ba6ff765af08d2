"""Which of the app's tables the project's gateway uses."""

from __future__ import annotations

from ...key_stores.cached import CachedKeyStore
from .conf import gateway
from .key_store import DjangoKeyStore
from .ledger import DjangoLedger


def keys_are_ours() -> bool:
    """Whether it looks keys up in them."""
    store = gateway().key_store
    return isinstance(store.store if isinstance(store, CachedKeyStore) else store, DjangoKeyStore)


def money_is_ours() -> bool:
    """Whether it keeps its books in them."""
    return isinstance(gateway().ledger, DjangoLedger)
