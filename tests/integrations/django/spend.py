"""Many processes that spend one balance: prints how many calls each was granted."""

import os
import sys

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
django.setup()

from oneai_middleware.errors import BalanceOnHold, InsufficientBalance, StoreUnavailable  # noqa: E402
from oneai_middleware.integrations.django.conf import database_scope  # noqa: E402
from oneai_middleware.integrations.django.ledger import DjangoLedger  # noqa: E402
from oneai_middleware.ledgers.base import Entry  # noqa: E402

COST = 7


def patiently(act):
    """What ``act`` gives in the end, asked again as the SDKs do."""
    while True:
        try:
            with database_scope():
                return act()
        except (BalanceOnHold, StoreUnavailable):
            pass


def call(ledger, entry):
    patiently(lambda: ledger.hold(entry, least=COST, most=COST, lease=60))
    patiently(lambda: ledger.settle(entry._replace(cost=COST)))


def spend(name):
    """Call until there is no money left; how many calls there were."""
    ledger, calls = DjangoLedger(), 0
    while True:
        try:
            call(ledger, Entry(f"{name}-{calls}", "alice"))
        except InsufficientBalance:
            return calls
        calls += 1


def main(processes):
    """Print a line from each of ``processes`` that start together."""
    children = []
    gate, opener = os.pipe()
    for number in range(processes):
        child = os.fork()
        if not child:
            os.close(opener)
            os.read(gate, 1)
            os.write(1, f"{spend(number)}\n".encode())
            os._exit(0)
        children.append(child)
    os.close(opener)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0


main(int(sys.argv[1]))
