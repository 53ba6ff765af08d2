import contextlib

import pytest
import sqlalchemy as sa

from oneai_middleware.accounts import Account
from oneai_middleware.database.tables import METADATA
from oneai_middleware.errors import ConfigurationError
from oneai_middleware.key_stores.cached import CachedKeyStore
from oneai_middleware.key_stores.sql import SQLKeyStore
from oneai_middleware.secret import digest, new_secret
from oneai_middleware.testing import FakeClock, KeyStoreContract, find


class TestSQLKeyStore(KeyStoreContract):
    @pytest.fixture(autouse=True)
    def _database(self, empty_database):
        self.database = empty_database

    def make_store(self):
        store = SQLKeyStore(self.database)
        store.save_account(self.alice)
        return store


on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@on_sqlite
class TestCachedSQLKeyStore(TestSQLKeyStore):
    def make_store(self):
        self.clock = FakeClock()
        return CachedKeyStore(super().make_store(), clock=self.clock)

    def advance(self, seconds):
        self.clock.advance(seconds)


@pytest.fixture
def store(empty_database):
    store = SQLKeyStore(empty_database)
    store.save_account(Account("alice"))
    return store


@pytest.fixture
def statements(empty_database):
    """All that is said to the database, with its values."""
    said = []

    def note(connection, cursor, statement, parameters, *_):
        said.append(f"{statement} {parameters}")

    sa.event.listen(empty_database.engine, "before_cursor_execute", note)
    yield said
    sa.event.remove(empty_database.engine, "before_cursor_execute", note)


def dump(database):
    """All that is in our tables."""
    with database.reading() as connection:
        tables = METADATA.sorted_tables
        return "\n".join(str(row) for each in tables for row in connection.execute(each.select()))


def test_no_secret_reaches_the_database(store, statements, empty_database):
    key, secret = store.create("alice", label="ci")
    assert find(store, secret) == key
    _, rotated = store.rotate(key.id)
    wrong = new_secret()
    assert find(store, wrong) is None
    said = "\n".join(statements)
    assert digest(secret) in said
    assert digest(wrong) in said
    assert digest(rotated) in dump(empty_database)
    for text in (said, dump(empty_database)):
        for each in (secret, rotated, wrong):
            assert each not in text


@on_sqlite
@pytest.mark.parametrize(
    "text", ["", "' OR '1'='1", "%", "x' UNION SELECT digest", "\0", "\ud800", "é" * 64, "F" * 64]
)
def test_what_is_no_digest_asks_nothing_of_the_database(store, statements, text):
    assert store.find(text) is None
    assert find(store, text) is None
    assert find(store, f"oneai-sk-{text}") is None
    assert statements == []


def test_what_is_written_down_of_a_key_may_be_long_and_odd(store):
    label = "'; DROP TABLE oneai_keys; -- \N{PILE OF POO} " * 6
    models = frozenset({"a'b", 'c"d', "e" * 190})
    key, secret = store.create("alice", label=label, models=models, budget=2**62, expires=2e9)
    assert find(store, secret) == key
    assert (key.label, key.models, key.budget) == (label, models, 2**62)
    assert store.update(key.id, label="").label == ""


@on_sqlite
def test_a_field_that_does_not_exist_is_an_error_and_writes_nothing(store):
    key, _ = store.create("alice")
    for write in (
        lambda: store.create("alice", colour="red"),
        lambda: store.update(key.id, colour="red"),
        lambda: store.update(key.id, account=Account("bob", tier="colour")),
    ):
        with pytest.raises(TypeError, match="colour|account"):
            write()
    assert store.keys() == [key]


def test_a_url_names_the_database(tmp_path):
    with pytest.raises(ConfigurationError, match="sqlite:///oneai.db"):
        SQLKeyStore.from_settings({})
    store = SQLKeyStore.from_settings({}, f"sqlite:///{tmp_path}/oneai.db")
    assert store.upgrade() == "sqlite: upgraded from nothing to version 0001"
    with contextlib.closing(store._database.engine.raw_connection()):
        assert store.accounts() == []
