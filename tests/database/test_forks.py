"""A process that forks after it has used the database, as servers do that load us first."""

from __future__ import annotations

import json
from typing import Any

from oneai_middleware.database.engine import Database
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.ledgers.sql import SQLLedger

# Parent and child take turns; the child ends as a program does, with all its finalisers.
FORKING = """
import gc, json, os, sys
import sqlalchemy as sa
from oneai_middleware.database.engine import Database
from oneai_middleware.ledgers.sql import SQLLedger

ASK = {"sqlite": "0", "postgresql": "pg_backend_pid()", "mariadb": "connection_id()"}
database = Database(sys.argv[1])
ledger = SQLLedger(database)

def connection_id():
    with database.reading() as connection:
        return connection.exec_driver_sql("SELECT " + ASK[database.kind]).scalar()

to_child, to_parent = os.pipe(), os.pipe()
ledger.top_up("alice", 1, "before the fork")
before = connection_id()
with database._making():  # as if another thread were at it
    child = os.fork()
if child == 0:
    ledger.top_up("alice", 10, "in the child")
    gc.collect()
    os.write(to_parent[1], json.dumps(connection_id()).encode())
    os.read(to_child[0], 1)
    ledger.top_up("alice", 100, "in the child, after the parent has closed all")
    sys.exit()
in_child = json.loads(os.read(to_parent[0], 100))
ledger.top_up("alice", 1_000, "in the parent, after the fork")
after = connection_id()
database.engine.dispose()
ledger.top_up("alice", 10_000, "in the parent, after it has closed all")
os.write(to_child[1], b".")
status = os.waitpid(child, 0)[1]
print(json.dumps([before, in_child, after, status, ledger.balance("alice").available]))
"""


def test_parent_and_child_write_over_connections_of_their_own(
    empty_database: Database, connect: Any, warm: Any
) -> None:
    # SQLite tidies a file up when the last one to use it closes it.
    empty_database.engine.dispose()
    done = warm.run(["-c", FORKING, empty_database.url.render_as_string(False)])
    assert done.stderr == ""
    before, in_child, after, status, available = json.loads(done.stdout)
    assert (status, available) == (0, 11_111)
    assert before == after
    assert empty_database.kind == "sqlite" or in_child != before
    ledger = SQLLedger(connect(empty_database.url))
    assert ledger.balance("alice") == Balance(available=11_111, topped_up=11_111)
    assert ledger.audit() == []
