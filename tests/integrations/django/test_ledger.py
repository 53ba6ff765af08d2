import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections

from oneai_middleware.errors import StoreUnavailable
from oneai_middleware.integrations.django.ledger import DjangoLedger
from oneai_middleware.testing import FakeClock, LedgerContract, draft


class TestDjangoLedger(LedgerContract):
    @pytest.fixture(autouse=True)
    def _tables(self, tables, in_scope):
        self.in_scope = in_scope

    def make_ledger(self):
        self.clock = FakeClock(time.time())
        return self.in_scope(DjangoLedger(clock=self.clock))

    def advance(self, seconds):
        self.clock.advance(seconds)


LOOKS = ("usage", "entries")
LOCKS = {
    "postgresql": ("BEGIN; LOCK TABLE oneai_entry IN ACCESS EXCLUSIVE MODE", "ROLLBACK"),
    "mariadb": ("LOCK TABLES oneai_entry WRITE", "UNLOCK TABLES"),
}


@pytest.mark.parametrize("engine", LOCKS, indirect=True)
def test_who_has_time_may_look_for_longer_than_a_caller_waits(tables, in_scope):
    ledger = in_scope(DjangoLedger())
    patient = in_scope(DjangoLedger().patient())
    ledger.settle(draft("a", prepaid=False, cost=5))
    lock, unlock = LOCKS[tables.alias]
    other = connections[tables.alias].copy()
    with ThreadPoolExecutor() as pool, other.cursor() as cursor:
        cursor.execute(lock)
        waiting = [pool.submit(getattr(patient, look), "alice") for look in LOOKS]
        for look in LOOKS:  # together these wait for longer than any of theirs may
            with pytest.raises(StoreUnavailable):
                getattr(ledger, look)("alice")
        assert not any(future.done() for future in waiting)
        cursor.execute(unlock)
        assert [len(future.result()) for future in waiting] == [1, 1]
    other.close()
