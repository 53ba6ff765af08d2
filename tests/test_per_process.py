import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from oneai_middleware.per_process import PerProcess


def fork(monkeypatch):
    """Let the code under test believe that it runs in a forked child."""
    child = SimpleNamespace(getpid=lambda: -1)
    monkeypatch.setattr("oneai_middleware.per_process.os", child)


def test_a_process_keeps_what_was_made_in_it():
    made = PerProcess(object)
    assert made() is made()


def test_nothing_is_made_before_its_first_use():
    calls = []
    made = PerProcess(lambda: calls.append(1))
    assert not calls
    made()
    assert calls == [1]


def test_what_was_made_can_be_looked_at_without_making_it(monkeypatch):
    made = PerProcess(object)
    assert made.made() is None
    assert made() is made.made()
    fork(monkeypatch)
    assert made.made() is None


def test_another_process_makes_its_own(monkeypatch):
    made = PerProcess(object)
    parents = made()
    fork(monkeypatch)
    assert made() is not parents
    assert made() is made()


def test_threads_that_come_first_together_share_one_value():
    barrier = threading.Barrier(16)

    def work(made):
        barrier.wait(timeout=30)
        return made()

    with ThreadPoolExecutor(16) as pool:
        for _ in range(20):
            made = PerProcess(object)
            assert len(set(pool.map(work, [made] * 16))) == 1
