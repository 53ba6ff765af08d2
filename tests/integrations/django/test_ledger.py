import time

import pytest

from oneai_middleware.integrations.django.ledger import DjangoLedger
from oneai_middleware.testing import FakeClock, LedgerContract


class TestDjangoLedger(LedgerContract):
    @pytest.fixture(autouse=True)
    def _tables(self, tables, in_scope):
        self.in_scope = in_scope

    def make_ledger(self):
        self.clock = FakeClock(time.time())
        return self.in_scope(DjangoLedger(clock=self.clock))

    def advance(self, seconds):
        self.clock.advance(seconds)
