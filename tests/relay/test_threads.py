"""Threads that are kept for the next job."""

import contextvars
import gc
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from oneai_middleware.relay.threads import Threads


def done(threads):
    """The thread that ran a job, once it has."""
    ran, who = threading.Event(), []
    threads.run(lambda: (who.append(threading.current_thread()), ran.set()))
    assert ran.wait(10)
    return who[0]


def is_idle(thread):
    return thread.name == "work-idle"


def test_a_thread_that_is_done_does_the_next_job(eventually):
    threads = Threads("work", idle=30)
    first = done(threads)
    eventually(lambda: is_idle(first))
    assert done(threads) is first


def test_one_that_is_at_work_is_left_alone():
    threads, go_on = Threads("work", idle=0), threading.Event()
    seen = []
    threads.run(lambda: (seen.append(threading.current_thread()), go_on.wait(10)))
    assert done(threads) not in seen
    assert [thread.name for thread in seen] == ["work"]
    go_on.set()


def test_one_that_nobody_needs_ends(eventually):
    thread = done(Threads("work", idle=0.01))
    eventually(lambda: not thread.is_alive())


def test_what_a_job_held_is_free_while_its_thread_waits(eventually):
    class Held:
        def __call__(self):
            pass

    held = Held()
    watched, threads = weakref.ref(held), Threads("work", idle=30)
    threads.run(held)
    del held
    eventually(lambda: gc.collect() is not None and watched() is None)


def test_a_job_finds_no_context_variable_of_the_one_before(eventually):
    """It may say whose request that was."""
    caller, seen, ran = contextvars.ContextVar("caller", default="nobody"), [], []
    threads = Threads("work", idle=30)

    def work(name):
        seen.append(caller.get())
        caller.set(name)
        ran.append(threading.current_thread())

    threads.run(lambda: work("alice"))
    eventually(lambda: ran and is_idle(ran[0]))
    threads.run(lambda: work("bob"))
    eventually(lambda: len(ran) == 2)
    assert ran[0] is ran[1]
    assert seen == ["nobody", "nobody"]


def test_of_many_jobs_none_is_lost_though_threads_end_all_the_time():
    threads, count = Threads("work", idle=0.000_1), 1_000
    ran = threading.Semaphore(0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: threads.run(ran.release), range(count)))
    assert all(ran.acquire(timeout=10) for _ in range(count))


def test_a_child_uses_none_of_its_parents_threads(eventually, monkeypatch):
    threads = Threads("work", idle=30)
    parents = done(threads)
    eventually(lambda: is_idle(parents))
    child = SimpleNamespace(getpid=lambda: -os.getpid())
    monkeypatch.setattr("oneai_middleware.per_process.os", child)
    assert done(threads) is not parents


def test_without_a_thread_to_be_had_it_says_so(monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="new thread"):
        Threads("work").run(print)
