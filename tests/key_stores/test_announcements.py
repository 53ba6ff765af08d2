"""What one process changes of keys and accounts, the others know at once: through Redis."""

import gc
import json
import logging
import subprocess
import sys
import threading

import pytest

from oneai_middleware import Gateway
from oneai_middleware.accounts import Account, DeclaredAccount
from oneai_middleware.key_stores.cached import CachedKeyStore
from oneai_middleware.key_stores.memory import MemoryKeyStore
from oneai_middleware.key_stores.sql import SQLKeyStore
from oneai_middleware.rate_limiters.redis import RedisRateLimiter
from oneai_middleware.secret import digest, new_secret
from oneai_middleware.testing import find, in_threads

AT_ONCE = 3.0
"""Seconds; less than the five after which it would be found out anyway."""


def listeners():
    return [thread for thread in threading.enumerate() if thread.name == "oneai-announcements"]


def hears(worker):
    """Whether it knows that something has been made which was unknown."""
    worker._announcements.say("made unknown")
    return not worker._found()._misses


def subscribers(own_redis):
    """How many connections listen there."""
    return own_redis.client.pubsub_numsub("oneai:0:announcements")[0][1]


@pytest.fixture
def genuine():
    """The store that all share."""
    return MemoryKeyStore([DeclaredAccount(Account("alice", "pro"))])


@pytest.fixture
def make_worker(genuine, clock, redis_prefix, eventually, monkeypatch, request):
    """Make a worker's own view of the store, in which nothing is ever too old."""
    workers = []
    # Whose lines are read must not be taken for lost on a machine at work.
    if "log" not in request.fixturenames:
        monkeypatch.setattr("oneai_middleware.redis_announcements.ROUND", 0.2)

    def make(url, *, limiter=None):
        limiter = limiter or RedisRateLimiter(url, prefix=redis_prefix)
        announcements = limiter.announcements()
        workers.append(CachedKeyStore(genuine, clock=clock, announcements=announcements))
        return workers[-1]

    yield make
    workers.clear()
    gc.collect()
    eventually(lambda: not listeners())


@pytest.fixture
def make_listening(make_worker, eventually):
    """The same, once it hears what is said."""

    def make(url, **options):
        worker = make_worker(url, **options)
        worker.find("unknown")
        eventually(lambda: hears(worker))
        return worker

    return make


@pytest.fixture
def workers(make_listening, redis_url):
    both = [make_listening(redis_url) for _ in range(2)]
    yield both
    both.clear()


# --- what is known at once ----------------------------------------------------------------


def test_a_key_revoked_in_one_worker_is_refused_in_another_at_once(workers, eventually):
    """Conformance 19."""
    here, elsewhere = workers
    key, secret = here.create("alice")
    assert not find(elsewhere, secret).revoked
    here.update(key.id, revoked=True)
    assert find(here, secret).revoked
    eventually(lambda: find(elsewhere, secret).revoked, AT_ONCE)


def test_a_new_key_opens_in_another_worker_that_had_looked_it_up_in_vain(
    workers, eventually, monkeypatch
):
    here, elsewhere = workers
    secret = new_secret()
    monkeypatch.setattr("oneai_middleware.secret.new_secret", lambda: secret)
    assert elsewhere.find(digest(secret)) is None
    here.create("alice")
    eventually(lambda: elsewhere.find(digest(secret)), AT_ONCE)


def test_a_rotated_key_is_known_by_its_new_secret_alone(workers, eventually):
    here, elsewhere = workers
    key, old = here.create("alice")
    assert find(elsewhere, old)
    _, new = here.rotate(key.id)
    eventually(lambda: not find(elsewhere, old).is_valid(10**10), AT_ONCE)
    assert find(elsewhere, new).is_valid(0)


def test_an_account_that_was_changed_or_made_is_known_with_its_keys(workers, eventually):
    here, elsewhere = workers
    _, secret = here.create("alice")
    assert find(elsewhere, secret).account.tier == "pro"
    assert elsewhere.account("bob with a name\n") is None
    here.save_account(Account("alice", "free"))
    here.save_account(Account("bob with a name\n"))
    eventually(lambda: find(elsewhere, secret).account.tier == "free", AT_ONCE)
    eventually(lambda: elsewhere.account("bob with a name\n"), AT_ONCE)


PROCESS = """
import sys, time
from oneai_middleware.database.engine import Database
from oneai_middleware.key_stores.cached import CachedKeyStore
from oneai_middleware.key_stores.sql import SQLKeyStore
from oneai_middleware.rate_limiters.redis import RedisRateLimiter

def wait_for(check):
    end = time.monotonic() + 30
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)

database, redis, prefix, first, second = sys.argv[1:]
announcements = RedisRateLimiter(redis, prefix=prefix).announcements()
keys = CachedKeyStore(
    SQLKeyStore(Database(database)), clock=lambda: 0.0, announcements=announcements
)
assert keys.find(second) is None
assert not keys.find(first).revoked
def hears():
    announcements.say("made " + second)
    return not keys._found()._misses

wait_for(hears)
assert keys.find(second) is None
assert not keys.find(first).revoked
print("listening", flush=True)
wait_for(lambda: keys.find(first).revoked and keys.find(second))
print("known", flush=True)
"""


def test_another_process_knows_at_once(make_database, redis_url, redis_prefix, monkeypatch):
    """Conformance 19."""
    database = make_database("sqlite")
    database.upgrade()
    announcements = RedisRateLimiter(redis_url, prefix=redis_prefix).announcements()
    keys = CachedKeyStore(SQLKeyStore(database), announcements=announcements)
    keys.save_account(Account("alice"))
    first, secret = keys.create("alice")
    later = new_secret()
    monkeypatch.setattr("oneai_middleware.secret.new_secret", lambda: later)
    places = [database.url.render_as_string(False), redis_url, redis_prefix]
    command = [sys.executable, "-c", PROCESS, *places]
    with subprocess.Popen(
        [*command, digest(secret), digest(later)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "listening\n"
            keys.update(first.id, revoked=True)
            keys.create("alice")
            assert process.stdout.readline() == "known\n"  # on a clock that stands still
        finally:
            process.kill()


def test_gateways_that_share_a_redis_tell_each_other(
    make_database, own_redis, make_gateway, send, eventually
):
    database = make_database("sqlite")
    database.upgrade()
    url = database.url.set(drivername="sqlite").render_as_string(False)

    def tell():
        here, elsewhere = (
            make_gateway(key_store=url, rate_limiter=own_redis.patient_url, accounts={})
            for _ in range(2)
        )
        here.key_store.save_account(Account("alice", "pro"))
        key, secret = here.key_store.create("alice")
        headers = {"Authorization": f"Bearer {secret}"}
        status = lambda: send(elsewhere, "GET", "/v1/models", headers=headers).status  # noqa: E731
        assert status() == 200
        eventually(lambda: subscribers(own_redis) == 1)
        assert status() == 200
        here.key_store.update(key.id, revoked=True)
        eventually(lambda: status() == 401, AT_ONCE)

    tell()
    gc.collect()
    eventually(lambda: not listeners())


def test_without_redis_nobody_listens(make_database):
    database = make_database("sqlite")
    gateway = Gateway(key_store=database.url.set(drivername="sqlite").render_as_string(False))
    assert gateway.rate_limiter.announcements() is None
    database.upgrade()
    gateway.key_store.find("unknown")
    assert listeners() == []


# --- who listens ------------------------------------------------------------------------


def test_of_many_threads_that_come_first_one_listens(make_worker, redis_url):
    worker = make_worker(redis_url)
    in_threads(lambda: worker.find("unknown"), 80)
    assert len(listeners()) == 1


def test_two_stores_over_one_limiter_both_hear(
    make_listening, make_worker, redis_url, redis_prefix, eventually
):
    limiter = RedisRateLimiter(redis_url, prefix=redis_prefix)
    both = [make_listening(redis_url, limiter=limiter) for _ in range(2)]
    writer = make_worker(redis_url)
    key, secret = writer.create("alice")
    for each in both:
        assert not find(each, secret).revoked
    writer.update(key.id, revoked=True)
    for each in both:
        eventually(lambda each=each: find(each, secret).revoked, AT_ONCE)


def test_when_a_store_is_gone_nobody_listens_for_it(
    genuine, redis_url, redis_prefix, eventually, own_redis
):
    limiter = RedisRateLimiter(own_redis.patient_url)
    store = CachedKeyStore(genuine, announcements=limiter.announcements())
    store.find("unknown")
    eventually(lambda: subscribers(own_redis))
    assert len(listeners()) == 1
    del store
    gc.collect()
    eventually(lambda: not listeners())
    eventually(lambda: not subscribers(own_redis))


def test_where_no_thread_is_to_be_had_keys_are_found_and_the_next_call_tries_again(
    make_worker, redis_url, monkeypatch, eventually
):
    worker = make_worker(redis_url)

    def fail(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert worker.find("unknown") is None
    assert listeners() == []
    worker.find("unknown")
    assert len(listeners()) == 1


FORKING = """
import json, os, sys, time
from oneai_middleware.accounts import Account, DeclaredAccount
from oneai_middleware.key_stores.cached import CachedKeyStore
from oneai_middleware.key_stores.memory import MemoryKeyStore
from oneai_middleware.rate_limiters.redis import RedisRateLimiter

announcements = RedisRateLimiter(sys.argv[1], prefix=sys.argv[2]).announcements()
keys = CachedKeyStore(
    MemoryKeyStore([DeclaredAccount(Account("alice"))]),
    clock=lambda: 0.0, announcements=announcements,
)

def wait_to_hear(say=lambda: None):
    end = time.monotonic() + 30
    while keys._found()._misses:
        assert time.monotonic() < end
        say()
        time.sleep(0.01)

def listen():
    keys.find("unknown")
    wait_to_hear(lambda: announcements.say("made unknown"))
    keys.find("last")

listen()
to_parent = os.pipe()
child = os.fork()
if child == 0:
    listen()
    os.write(to_parent[1], b".")
    wait_to_hear()
    os._exit(0)
os.read(to_parent[0], 1)
announcements.say("made last")
wait_to_hear()
print(os.waitpid(child, 0)[1])
"""


def test_parent_and_child_of_a_fork_both_hear(redis_url, redis_prefix):
    done = subprocess.run(
        [sys.executable, "-c", FORKING, redis_url, redis_prefix],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_who_looks_up_accounts_alone_hears_as_well(make_worker, redis_url):
    make_worker(redis_url).account("alice")  # who comes by the host's own login
    assert len(listeners()) == 1


def test_databases_and_prefixes_of_one_redis_hear_nothing_of_each_other(
    make_listening, own_redis, eventually
):
    places = ["/0?", "/1?", "/0?prefix=shop&"]
    urls = [own_redis.patient_url.replace("?", place) for place in places]
    limiters = [RedisRateLimiter.from_settings({"lease": 30}, url) for url in urls]
    workers = [make_listening("", limiter=limiter) for limiter in limiters]
    for worker in workers:
        worker.account("alice")
    first, *others = workers
    first._announcements.say("changed ")
    eventually(lambda: not first._accounts()._hits)
    for other in others:
        other.find("unknown")
        other._announcements.say("made unknown")
        eventually(lambda other=other: not other._found()._misses)  # what came before has come
        assert other._accounts()._hits


# --- Redis comes and goes -----------------------------------------------------------------


@pytest.fixture
def log(caplog):
    """What was written down about announcements."""
    caplog.set_level(logging.INFO)
    name = "oneai_middleware.announcements"
    return lambda: [record.message for record in caplog.records if record.name == name]


LOST = "changes of keys take effect after seconds here: Redis: "
REGAINED = "changes of keys take effect at once again"
UNSAID = "a change of keys takes effect elsewhere after seconds: Redis: "


def test_what_was_changed_while_redis_was_gone_is_known_once_it_is_back(
    make_listening, own_redis, eventually, log
):
    here, elsewhere = (make_listening(own_redis.patient_url) for _ in range(2))
    key, secret = here.create("alice")
    assert not find(elsewhere, secret).revoked
    own_redis.stop()
    eventually(lambda: len(log()) == 2)
    here.update(key.id, revoked=True)
    assert find(here, secret).revoked
    assert not find(elsewhere, secret).revoked  # for seconds, on a clock that moves
    own_redis.start()
    eventually(lambda: find(elsewhere, secret).revoked)
    eventually(lambda: log().count(REGAINED) == 2)
    lost = [line for line in log() if line.startswith(LOST)]
    unsaid = [line for line in log() if line.startswith(UNSAID)]
    assert (len(lost), len(unsaid), len(log())) == (2, 1, 5)


def test_a_redis_that_has_gone_silent_is_noticed(make_listening, own_redis, eventually, log):
    worker = make_listening(own_redis.patient_url.replace("timeout=10", "timeout=0.5"))
    own_redis.pause()
    eventually(lambda: log() == [f"{LOST}TimeoutError"])
    worker.find("unknown")
    own_redis.resume()
    eventually(lambda: log() == [f"{LOST}TimeoutError", REGAINED])
    eventually(lambda: not worker._found()._misses)


def test_to_say_something_raises_nothing_and_takes_no_longer_than_redis_is_given(
    own_redis, make_worker, log
):
    worker = make_worker(own_redis.url)
    own_redis.stop()
    for _ in range(3):
        worker.save_account(Account("alice", "free"))
    assert worker.account("alice").tier == "free"
    assert [line.startswith(UNSAID) for line in log()] == [True] * 6  # two for an account


def test_a_listener_survives_whatever_goes_wrong(make_worker, redis_url, monkeypatch, eventually):
    worker = make_worker(redis_url)
    server = worker._announcements._server
    listening = server.listening
    troubles = [RuntimeError("no more threads"), ValueError("timeout"), LookupError("encoding")]

    def listen(channel):
        if troubles:
            raise troubles.pop()
        return listening(channel)

    monkeypatch.setattr(server, "listening", listen)
    worker.find("unknown")
    eventually(lambda: hears(worker))
    assert not troubles


def test_to_say_something_raises_nothing_whatever_goes_wrong(make_worker, redis_url, log):
    worker = make_worker(redis_url)
    worker._announcements._channel = object()  # nothing that can be sent
    worker.save_account(Account("alice", "free"))
    assert log() == [f"{UNSAID}DataError"] * 2
    worker._announcements._server.client = lambda: 1 / 0
    worker._announcements._server.client.made = lambda: None
    worker.save_account(Account("alice", "pro"))
    assert log()[2:] == [f"{UNSAID}ZeroDivisionError"] * 2


def test_nonsense_on_the_channel_does_no_harm(
    workers, own_redis, redis_url, redis_prefix, eventually
):
    here, elsewhere = workers
    key, secret = here.create("alice")
    assert find(elsewhere, secret)
    server = RedisRateLimiter(redis_url)._server
    for nonsense in (b"", b" ", b"\xff\xfe", b"made", b"made  ", b"x" * 10**6, json.dumps({})):
        server.client().publish(f"{redis_prefix}:0:announcements", nonsense)
    here.update(key.id, revoked=True)
    eventually(lambda: find(elsewhere, secret).revoked, AT_ONCE)
    assert len(listeners()) == 2
