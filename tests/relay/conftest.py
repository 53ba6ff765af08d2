"""A bench for one call: real admission on memory stores, a clock that the test moves."""

import contextlib
import itertools
import queue
import threading
from types import SimpleNamespace

import pytest

from oneai_middleware.accounts import Account, Caller, Limits
from oneai_middleware.admission import AdmissionControl
from oneai_middleware.attempt import Attempt
from oneai_middleware.backends.base import Backend
from oneai_middleware.call import Call
from oneai_middleware.catalog import Model, Price, Route
from oneai_middleware.cooldown import Cooldown
from oneai_middleware.ledgers.memory import MemoryLedger
from oneai_middleware.protocol.chat import ChatRequest, Timeouts
from oneai_middleware.protocol.normalise import StreamNormaliser
from oneai_middleware.providers import Provider
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter
from oneai_middleware.relay.body import EventStream
from oneai_middleware.relay.exchange import Exchange

LEASE = 30.0
WRITE_TIMEOUT = 30.0
OPENING = 10**9
PRICE = Price(1000, 2000)
MODEL = Model("bot", "us", 1, None, None, PRICE, (Route("p", "up"),))
END = object()


class Script:
    """A provider's items, as the test says them."""

    def __init__(self, *items):
        self._items = queue.SimpleQueue()
        self.closed = threading.Event()
        self.closed_by = ""
        self.say(*items)

    def say(self, *items):
        for item in items:
            self._items.put(item)

    def end(self):
        self._items.put(END)

    def __iter__(self):
        return self

    def __next__(self):
        item = self._items.get(timeout=30)
        if item is END:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self):
        self.closed_by = threading.current_thread().name
        self.closed.set()


class Given(Backend):
    """Gives the items it was made with."""

    def __init__(self, items):
        self._items = items

    def stream(self, request):
        return self._items


class Line:
    """A caller's connection that the test can see end."""

    def __init__(self):
        self.present = True
        self.bytes_taken = None
        self.limits = []
        self.cuts = 0

    def is_present(self):
        return self.present

    def limit_writes(self, seconds):
        self.limits.append(seconds)

    def restore_writes(self):
        self.limits.append("as found")

    def taken(self):
        return self.bytes_taken

    def cut(self):
        self.cuts += 1


class Bench:
    """Makes calls of one account and knows what they left behind."""

    def __init__(self, clock):
        self.clock = clock
        self.ledger = MemoryLedger({"alice": OPENING}, clock=clock)
        self.limiter = MemoryRateLimiter(lease=LEASE, clock=clock.ns)
        self.control = AdmissionControl(
            self.limiter,
            self.ledger,
            tiers={"pro": Limits(concurrent=5)},
            scope=contextlib.nullcontext,
            lease=LEASE,
            default_output=1000,
        )
        self.watched = []
        self._numbers = itertools.count()
        self._scripts = []
        self._open = []

    # The watch, as far as an exchange needs one.

    def add(self, watched):
        self.watched.append(watched)

    def remove(self, watched):
        with contextlib.suppress(ValueError):
            self.watched.remove(watched)

    def aside(self, job):
        job()

    def exchange(self, *, stream=True, timeouts=None, **options):
        """An admitted call."""
        body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
        caller = Caller(Account("alice", tier="pro"))
        request = ChatRequest(body, caller)
        now = self.clock()
        call = Call(f"req_{next(self._numbers)}", "POST", "/v1/chat/completions", now)
        call.caller, call.request, call.model, call.provider = caller, request, MODEL, "p"
        admission = self.control.admit(call, caller, request, MODEL)
        call.admitted = self.clock()
        return Exchange(
            call,
            admission,
            self.control,
            self,
            timeouts=timeouts or Timeouts(),
            lease=LEASE,
            clock=self.clock,
            **{"write_timeout": WRITE_TIMEOUT, **options},
        )

    def attempt(self, exchange, items, timeouts=None):
        """The items of a provider that is asked for this call's answer."""
        call = exchange.call
        provider = Provider("p", Given(iter(items)), timeouts or exchange._timeouts)
        visit = Cooldown("p", 2.0, self.clock).admit()
        call.attempt = Attempt(provider, ChatRequest(call.request.body), visit, self.clock)
        exchange.cancellation.on_cancel(call.attempt.request.cancellation.cancel)
        items = call.attempt.stream()
        self._open.append(items)
        return items

    def stream(self, exchange, *items, keep_alive=30.0, include_usage=False):
        """The body of a streamed call, and the script it is read from."""
        script = Script(*items)
        self._scripts.append(script)
        normaliser = StreamNormaliser("bot", "chatcmpl-1", 1, include_usage)
        items = self.attempt(exchange, script)
        body = EventStream(exchange, items, normaliser, keep_alive=keep_alive, clock=self.clock)
        return SimpleNamespace(body=body, script=script, exchange=exchange)

    @property
    def row(self):
        """The row of the last call."""
        return self.ledger.entries("alice")[-1]

    def assert_settled(self):
        """No call holds money or a slot any more; threads may still be at work."""
        assert self.ledger.balance("alice").held == 0
        assert self.slots == 0
        assert not self.ledger.audit()
        assert all(exchange.ending for exchange in self.watched)

    def assert_nothing_is_held(self):
        """Nor is any thread."""
        self.assert_settled()
        assert self.control.calls == 0
        assert self.watched == []

    @property
    def slots(self):
        """How many calls have a slot of the limiter."""
        return len(self.limiter._state().open)

    def let_go(self):
        for script in self._scripts:
            script.end()


@pytest.fixture
def line():
    return Line()


@pytest.fixture
def bench(clock):
    bench = Bench(clock)
    yield bench
    bench.let_go()
