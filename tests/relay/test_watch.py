import os
import threading
import warnings

import pytest

from oneai_middleware.relay import watch as module
from oneai_middleware.relay.watch import Watch


class Watched:
    def __init__(self, error=None):
        self.looks = 0
        self.looked = threading.Event()
        self.error = error

    def look(self):
        self.looks += 1
        self.looked.set()
        if self.error is not None:
            raise self.error


@pytest.fixture
def watch(monkeypatch):
    """A watch in a hurry, whose thread ends soon after the last call."""
    monkeypatch.setattr(module._Rounds, "IDLE", 0.01)
    return Watch(interval=0.001)


def thread_of(watch):
    return watch._rounds()._thread


def test_there_is_no_thread_until_the_first_call(watch):
    before = threading.enumerate()
    assert thread_of(watch) is None
    call = Watched()
    watch.add(call)
    assert call.looked.wait(10)
    assert thread_of(watch) not in before
    assert thread_of(watch).daemon
    watch.remove(call)


def test_every_call_is_looked_at_again_and_again(watch, eventually):
    calls = [Watched() for _ in range(3)]
    threads = set()
    for call in calls:
        watch.add(call)
        threads.add(thread_of(watch))
    eventually(lambda: all(call.looks >= 3 for call in calls))
    assert len(threads) == 1
    for call in calls:
        watch.remove(call)


@pytest.mark.parametrize("error", [ValueError("oops"), SystemExit(1)])
def test_a_look_that_fails_stops_no_other(watch, eventually, caplog, error):
    bad, good = Watched(error), Watched()
    watch.add(bad)
    watch.add(good)
    eventually(lambda: bad.looks >= 3 and good.looks >= 3)
    watch.remove(bad)
    watch.remove(good)
    assert "looking after a call failed" in caplog.text


def test_a_call_that_was_removed_is_left_alone(watch, eventually):
    gone, other = Watched(), Watched()
    watch.add(gone)
    watch.add(other)
    assert gone.looked.wait(10)
    watch.remove(gone)
    watch.remove(gone)
    eventually(lambda: other.looks >= 2)
    before, seen = gone.looks, other.looks
    eventually(lambda: other.looks >= seen + 3)
    assert gone.looks <= before + 1
    watch.remove(other)


def test_the_thread_ends_when_there_is_nothing_to_do_and_a_new_one_starts(watch, eventually):
    for _ in range(2):
        call = Watched()
        watch.add(call)
        assert call.looked.wait(10)
        watch.remove(call)
        eventually(lambda: thread_of(watch) is None)


def test_calls_that_are_gone_at_once_need_no_thread_each(watch, monkeypatch):
    """In most cases they are gone before the watch has seen them."""

    class Arrival(threading.Condition):
        def wait(self, timeout=None):
            waits.release()
            return super().wait(timeout)

    monkeypatch.setattr(module._Rounds, "IDLE", 30)
    waits, threads, rounds = threading.Semaphore(0), set(), watch._rounds()
    rounds._arrival = Arrival(rounds._lock)
    for _ in range(9):
        call = Watched()
        watch.add(call)
        watch.remove(call)
        assert waits.acquire(timeout=10)
        threads.add(thread_of(watch))
    assert len(threads) == 1


def test_a_call_may_remove_itself_while_it_is_looked_at(watch, eventually):
    class Leaving(Watched):
        def look(self):
            super().look()
            watch.remove(self)

    call = Leaving()
    watch.add(call)
    eventually(lambda: thread_of(watch) is None)
    assert call.looks == 1


def test_a_look_by_hand_needs_no_thread():
    watch = Watch(interval=3600)
    call = Watched()
    watch.add(call)
    assert call.looked.wait(10)
    watch.look()
    assert call.looks == 2
    watch.remove(call)


def test_where_no_thread_can_be_started_the_next_call_tries_again(watch, monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            watch.add(Watched())
    call = Watched()
    watch.add(call)
    assert call.looked.wait(10)
    watch._rounds()._watched.clear()


def test_a_forked_child_has_a_thread_of_its_own(watch):
    parents = Watched()
    watch.add(parents)
    assert parents.looked.wait(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if not child:
        status = 2
        try:
            looks = parents.looks
            childs = Watched()
            watch.add(childs)
            status = 0 if childs.looked.wait(10) and parents.looks == looks else 1
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    watch.remove(parents)


def test_a_fork_while_the_parents_lock_is_held_stops_no_child(watch):
    rounds = watch._rounds()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with rounds._lock:
            child = os.fork()
            if not child:
                status = 2
                try:
                    call = Watched()
                    watch.add(call)
                    status = 0 if call.looked.wait(10) else 1
                finally:
                    os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
