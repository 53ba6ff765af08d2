"""A key in place of another, in a database: one act by its id, or none."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from oneai_middleware.accounts import Account
from oneai_middleware.database.tables import KEYS
from oneai_middleware.errors import StoreUnavailable
from oneai_middleware.key_stores.sql import SQLKeyStore
from oneai_middleware.testing import find

MANY = 5_000
HANDFUL = 6
KEYS_ROW = {"account": "alice", "label": "", "hint": "", "revoked": False, "created_at": 1}


@pytest.fixture
def store(empty_database):
    store = SQLKeyStore(empty_database)
    store.save_account(Account("alice"))
    return store


@pytest.fixture
def listen(empty_database):
    """Have a function hear every statement."""
    heard = []

    def listen(hear):
        def told(connection, cursor, statement, *_):
            hear(statement)

        heard.append(told)
        sa.event.listen(empty_database.engine, "before_cursor_execute", told)

    yield listen
    for told in heard:
        sa.event.remove(empty_database.engine, "before_cursor_execute", told)


def test_one_of_very_many_keys_is_rotated_in_a_handful_of_statements(
    store, empty_database, listen, monkeypatch
):
    rows = [{**KEYS_ROW, "id": f"key_{n}", "digest": f"{n:064}"} for n in range(MANY)]
    with empty_database.transaction() as connection:
        connection.execute(sa.insert(KEYS), rows)
    key, secret = store.create("alice")
    said = []
    listen(said.append)
    read = []
    monkeypatch.setattr("oneai_middleware.key_stores.sql._key", counted(read))
    _, new = store.rotate(key.id)
    assert len(said) <= HANDFUL
    assert len(read) == 1
    assert find(store, secret).revoked
    assert find(store, new).is_valid(time.time())


def counted(read):
    from oneai_middleware.key_stores import sql

    make = sql._key

    def key(row):
        read.append(row)
        return make(row)

    return key


class Failed(Exception):
    """The process cannot go on."""


@pytest.mark.parametrize("overlap", [0, 3_600])
@pytest.mark.parametrize("step", ["INSERT", "UPDATE"])
def test_a_rotation_that_fails_leaves_the_old_key_and_no_new_one(store, listen, step, overlap):
    key, secret = store.create("alice", label="ci", budget=5)

    def fail(statement):
        if statement.startswith(step):
            raise Failed

    listen(fail)
    with pytest.raises((Failed, StoreUnavailable)):
        store.rotate(key.id, overlap=overlap)
    assert store.keys() == [key]
    assert find(store, secret) == key


def test_of_two_who_rotate_a_key_at_once_one_gets_a_new_one(store, empty_database, connect):
    others = [SQLKeyStore(connect(empty_database.url)) for _ in range(2)]
    for _ in range(5):
        key, _ = store.create("alice")

        def rotate(other, id=key.id):
            try:
                return other.rotate(id)[0].id
            except KeyError:
                return None

        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(rotate, others * 2))
        (new,) = [id for id in made if id is not None]
        keys = list(store.keys())
        valid = [each.id for each in keys if each.is_valid(time.time())]
        assert valid == [new]
        store.update(new, revoked=True)
