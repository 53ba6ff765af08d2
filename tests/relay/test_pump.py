import threading

import pytest

from oneai_middleware.relay.pump import Pump, Signal


class Counting:
    """Gives numbers and keeps count; closed by whoever closes it."""

    def __init__(self, count=None, wait=None):
        self.given = 0
        self.count = count
        self.wait = wait
        self.closed = threading.Event()
        self.closed_by = ""

    def __iter__(self):
        return self

    def __next__(self):
        if self.wait is not None:
            assert self.wait.wait(10)
        if self.given == self.count:
            raise StopIteration
        self.given += 1
        return self.given

    def close(self):
        self.closed_by = threading.current_thread().name
        self.closed.set()


def started(items, ahead=32):
    pump = Pump(items, ahead)
    pump.start()
    return pump


def drain(pump):
    taken = []
    while (item := pump.take(10)) is not Signal.END:
        taken.append(item)
    return taken


def test_items_come_in_order_and_then_the_end():
    items = Counting(100)
    assert drain(started(items)) == list(range(1, 101))
    assert items.closed.wait(10)


def test_a_plain_iterator_will_do():
    assert drain(started(iter([1, None, 2]))) == [1, None, 2]


def test_silence_is_told_from_the_end():
    go_on = threading.Event()
    pump = started(Counting(1, go_on))
    assert pump.take(0.01) is Signal.SILENCE
    assert pump.take(0) is Signal.SILENCE
    assert pump.take(-5) is Signal.SILENCE
    go_on.set()
    assert drain(pump) == [1]


def test_what_was_raised_is_raised_here_after_all_that_came_before():
    def items():
        yield 1
        raise KeyError("x")

    pump = started(items())
    assert pump.take(10) == 1
    with pytest.raises(KeyError):
        pump.take(10)


def test_an_exit_is_raised_as_an_error():
    """A SystemExit would silently end the thread, and its reader would wait for ever."""

    def items():
        yield 1
        raise SystemExit(3)

    pump = started(items())
    assert pump.take(10) == 1
    with pytest.raises(RuntimeError, match="SystemExit"):
        pump.take(10)


def test_it_reads_no_further_ahead_than_it_may(eventually):
    items = Counting()
    pump = started(items, ahead=3)
    # Three wait in the queue, the fourth in the thread's hand.
    eventually(lambda: items.given == 4)
    assert pump.take(10) == 1
    eventually(lambda: items.given == 5)
    pump.stop()
    assert items.closed.wait(10)
    assert items.given <= 6


def test_stopping_wakes_a_pump_that_waits_for_room(eventually):
    items = Counting()
    pump = started(items, ahead=1)
    eventually(lambda: items.given == 2)
    pump.stop()
    assert items.closed.wait(10)


def test_stopping_wakes_a_reader_that_waits_for_an_item():
    let_go = threading.Event()
    items = Counting(5, let_go)
    pump = started(items)
    threading.Timer(0.01, pump.stop).start()
    assert pump.take(10) is Signal.END
    let_go.set()
    assert items.closed.wait(10)
    assert items.given == 1


def test_the_iterator_is_closed_by_its_own_thread():
    items = Counting(3)
    drain(started(items))
    assert items.closed.wait(10)
    assert items.closed_by == "oneai-pump"
    stopped = Counting()
    started(stopped, ahead=1).stop()
    assert stopped.closed.wait(10)
    assert stopped.closed_by == "oneai-pump"


def test_an_iterator_that_failed_is_closed_too():
    class Failing(Counting):
        def __next__(self):
            raise KeyError

    items = Failing()
    with pytest.raises(KeyError):
        started(items).take(10)
    assert items.closed.wait(10)


def test_after_a_stop_no_error_is_raised(eventually, pumps):
    let_go = threading.Event()

    def items():
        assert let_go.wait(10)
        raise OSError("the socket was shut down")
        yield

    pump = started(items())
    pump.stop()
    let_go.set()
    assert pump.take(10) is Signal.END
    eventually(lambda: not pumps())
    assert pump.take(0) is Signal.END


def test_after_a_stop_nothing_is_handed_over():
    items = Counting(3)
    pump = started(items)
    assert items.closed.wait(10)
    assert pump.take(10) == 1
    pump.stop()
    assert pump.take(10) is Signal.END
    assert pump.take(10) is Signal.END


def test_stopping_twice_from_many_threads_is_harmless():
    items = Counting()
    pump = started(items, ahead=2)
    stoppers = [threading.Thread(target=pump.stop) for _ in range(8)]
    for stopper in stoppers:
        stopper.start()
    for stopper in stoppers:
        stopper.join(10)
    assert items.closed.wait(10)


def test_a_stop_may_come_at_any_moment(eventually, pumps):
    for count in range(60):
        items = Counting(count)
        pump = started(items, ahead=1 + count % 3)
        threading.Thread(target=pump.stop).start()
        while isinstance(pump.take(0.001), int):
            pass
        assert items.closed.wait(10)
    eventually(lambda: not pumps())


def test_a_reader_that_is_woken_up_for_an_item_it_has_already_is_woken_up_for_the_next():
    """The pump has seen that somebody waits, and says that an item is there only after
    that has been taken and the next is waited for."""
    late, waits, in_time = threading.Event(), threading.Semaphore(0), []

    class Changed(threading.Condition):
        def __enter__(self):
            if threading.current_thread().name == "oneai-pump" and not late.is_set():
                late.set()
                assert waits.acquire(timeout=10)
            return super().__enter__()

        def wait_for(self, predicate, timeout=None):
            if not late.is_set():
                assert not predicate()
                begin.set()
                assert late.wait(10)
            return super().wait_for(predicate, timeout)

        def wait(self, timeout=None):
            waits.release()
            in_time.append(super().wait(timeout))
            return in_time[-1]

    def items():
        assert begin.wait(10)
        yield 1
        assert waits.acquire(timeout=10)
        yield 2

    begin, pump = threading.Event(), Pump(items())
    pump._changed = Changed()
    pump.start()
    assert (pump.take(10), pump.take(10)) == (1, 2)
    assert in_time == [True, True]


def test_the_thread_keeps_no_process_alive(pumps):
    let_go = threading.Event()
    pump = started(Counting(1, let_go))
    (thread,) = pumps()
    assert thread.daemon
    pump.stop()
    let_go.set()
    thread.join(10)
