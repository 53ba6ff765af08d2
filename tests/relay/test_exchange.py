import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.errors import (
    BackendTimeout,
    BackendUnavailable,
    CallerLeft,
    HoldLost,
    InternalError,
    InvalidRequest,
)
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.protocol.chat import Chunk, Timeouts
from oneai_middleware.protocol.usage import Usage
from oneai_middleware.testing import FakeClock

from .conftest import LEASE, OPENING, PRICE, WRITE_TIMEOUT, Bench

TIMEOUTS = Timeouts(first_token=20, idle=10, total=100)

both = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture
def make(bench):
    def make(**options):
        exchange = bench.exchange(timeouts=TIMEOUTS, **options)
        exchange.start()
        return exchange

    return make


def hear(bench, exchange):
    """A piece comes from the provider, who then is waited for."""
    assert next(bench.attempt(exchange, ["piece"])) == "piece"
    # As when the thread that reads hangs in the backend.
    exchange.call.attempt._silent_since = bench.clock()


def hand(bench, exchange, text="some words"):
    hear(bench, exchange)
    exchange.meter.hand(Chunk.text(text))
    return exchange.meter.delivered()


# --- who pays what ------------------------------------------------------------


@both
def test_an_answered_call_pays_its_usage(bench, make, stream):
    exchange = make(stream=stream)
    bench.clock.advance(2)
    assert exchange.answer(Usage(100, 10, cached_tokens=30, reasoning_tokens=5))
    row = bench.row
    assert (row.outcome, row.cost, row.duration) == ("answered", 100 * 1000 + 10 * 2000, 2.0)
    assert (row.cached_tokens, row.reasoning_tokens, row.estimated) == (30, 5, False)
    assert (row.provider, row.model) == ("p", "bot")
    assert exchange.call.cost == row.cost
    assert exchange.ending.error is None
    assert not exchange.cancellation.cancelled
    bench.assert_settled()


def test_a_usage_of_zero_costs_zero(bench, make):
    exchange = make()
    hand(bench, exchange)
    exchange.answer(Usage(0, 0))
    assert bench.row.cost == 0
    assert bench.ledger.balance("alice").available == OPENING


@both
@pytest.mark.parametrize(
    "error", [BackendUnavailable("x"), InvalidRequest("x"), InternalError(), BackendTimeout("x")]
)
def test_a_call_that_failed_before_any_output_pays_nothing(bench, make, error, stream):
    exchange = make(stream=stream)
    hear(bench, exchange)
    exchange.meter.hand(Chunk(choices=[{"index": 0, "delta": {"role": "assistant"}}]))
    assert exchange.fail(error)
    assert (bench.row.cost, bench.row.outcome) == (0, error.code)
    assert (bench.row.prompt_tokens, bench.row.completion_tokens) == (0, 0)
    assert exchange.ending.error is error
    assert exchange.cancellation.cancelled
    bench.assert_settled()


def test_a_call_that_broke_in_mid_stream_pays_what_was_handed_over(bench, make):
    exchange = make()
    usage = hand(bench, exchange)
    exchange.fail(BackendUnavailable("x"))
    assert bench.row.cost == PRICE.cost(usage) > 0
    assert bench.row.estimated
    bench.assert_settled()


def test_a_caller_who_left_pays_the_prompt_and_what_was_handed_over(bench, make):
    exchange = make()
    usage = hand(bench, exchange)
    assert exchange.leave()
    assert bench.row.cost == PRICE.cost(usage)
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 0
    assert bench.row.outcome == "caller_left"
    assert isinstance(exchange.ending.error, CallerLeft)
    assert exchange.cancellation.cancelled


def test_a_caller_who_left_pays_nothing_where_that_is_free(bench, make):
    exchange = make(bill_departed=False)
    hand(bench, exchange)
    exchange.leave()
    assert (bench.row.cost, bench.row.outcome) == (0, "caller_left")
    bench.assert_settled()


ENDS = {
    "answer": lambda exchange: exchange.answer(Usage(10, 1)),
    "fail": lambda exchange: exchange.fail(BackendUnavailable("x")),
    "leave": lambda exchange: exchange.leave(),
}


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ENDS)
def test_a_call_ends_once(bench, make, first, second):
    exchange = make()
    ending = ENDS[first](exchange)
    row = bench.row
    assert ENDS[second](exchange) is ending
    assert bench.ledger.entries("alice") == [row]
    assert exchange.ending is ending
    assert exchange.call.outcome == ending.outcome == row.outcome
    bench.assert_settled()


def test_whoever_ends_it_first_it_ends_once(bench, make):
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(25):
            exchange = make()

            def end(how, exchange=exchange):
                barrier.wait(10)
                return ENDS[how](exchange)

            endings = list(pool.map(end, ["answer", "fail", "leave", "answer"] * 2))
            assert all(ending is endings[0] for ending in endings)
            assert bench.row.outcome == endings[0].outcome
    assert len(bench.ledger.entries("alice")) == 25
    bench.assert_settled()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(ENDS)), st.integers(0, 500), st.integers(0, 500), st.booleans()
        ),
        max_size=12,
    )
)
def test_the_books_are_exact_after_any_calls(calls):
    bench = Bench(FakeClock())
    paid = 0
    for how, prompt, output, renewed in calls:
        exchange = bench.exchange(timeouts=TIMEOUTS)
        exchange.start()
        usage = hand(bench, exchange, "w" * output)
        if renewed:
            bench.clock.advance(9)
            hear(bench, exchange)
            bench.clock.advance(1)
            exchange.look()
        if how == "answer":
            usage = Usage(prompt, output)
            exchange.answer(usage)
        else:
            ENDS[how](exchange)
            if how == "fail" and not output:
                usage = Usage(0, 0)
        paid += PRICE.cost(usage)
    assert bench.ledger.balance("alice") == Balance(
        available=OPENING - paid, spent=paid, topped_up=OPENING
    )
    bench.assert_settled()


def test_a_renewal_that_fails_is_tried_again_within_a_second(bench, make, monkeypatch):
    exchange, tries = make(), []

    def fail(*_, **__):
        tries.append(bench.clock() - began)
        raise OSError("the database is gone")

    monkeypatch.setattr(bench.ledger, "checkpoint", fail)
    began = bench.clock()
    for _ in range(60):
        bench.clock.advance(0.25)
        hear(bench, exchange)
        exchange.look()
    assert tries == [10, 11, 12, 13, 14, 15]
    monkeypatch.undo()
    assert exchange.answer(Usage(10, 1))


def test_a_stream_whose_hold_was_swept_ends_and_is_paid_as_far_as_it_went(bench, make):
    exchange = make()
    usage = hand(bench, exchange)
    bench.clock.advance(LEASE + 1)
    assert bench.ledger.sweep() == 1
    hear(bench, exchange)
    exchange.look()
    assert exchange.ending
    assert isinstance(exchange.ending.error, HoldLost)
    assert exchange.cancellation.cancelled
    assert bench.row.completion_tokens == usage.completion_tokens > 0
    assert bench.row.cost > 0
    bench.assert_settled()


def test_failing_stores_spoil_no_answer_and_give_none_away(bench, make, monkeypatch, caplog):
    exchange = make()

    def fail(*arguments):
        raise OSError("the database is gone")

    monkeypatch.setattr(bench.ledger, "settle", fail)
    monkeypatch.setattr(bench.limiter, "settle", fail)
    assert exchange.answer(Usage(10, 1))
    exchange.release()
    assert bench.control.calls == 0
    assert [record.getMessage() for record in caplog.records] == [
        "calls cannot be settled and will be later: the ledger failed: OSError",
        "req_0: the rate limiter failed on a call under way: OSError",
    ]
    monkeypatch.undo()
    bench.clock.advance(LEASE + 1)
    bench.ledger.sweep()
    assert bench.row.cost == 0
    assert bench.control.retry_settlements() == 0
    assert bench.row.cost > 0
    assert not bench.ledger.audit()


# --- deadlines ----------------------------------------------------------------


def test_without_a_first_token_in_time_a_stream_ends(bench, make):
    exchange = make()
    bench.clock.advance(20)
    exchange.look()
    assert not exchange.ending
    bench.clock.advance(0.5)
    exchange.look()
    assert exchange.ending
    assert isinstance(exchange.ending.error, BackendTimeout)
    assert (bench.row.cost, bench.row.outcome) == (0, "upstream_timeout")
    assert exchange.cancellation.cancelled
    bench.assert_settled()


def test_silence_in_mid_stream_ends_it(bench, make):
    exchange = make()
    bench.clock.advance(15)
    usage = hand(bench, exchange)
    bench.clock.advance(10)
    exchange.look()
    assert not exchange.ending
    bench.clock.advance(0.5)
    exchange.look()
    assert "silent" in exchange.ending.error.detail
    assert bench.row.cost == PRICE.cost(usage)
    bench.assert_settled()


def test_signs_of_life_keep_a_stream_alive_until_its_time_is_up(bench, make):
    exchange = make()
    for _ in range(20):
        bench.clock.advance(5)
        hear(bench, exchange)
        exchange.look()
        assert not exchange.ending
    bench.clock.advance(0.5)
    exchange.look()
    assert "whole call" in exchange.ending.error.detail
    bench.assert_settled()


def test_an_answer_in_one_piece_has_the_whole_time(bench, make):
    exchange = make(stream=False)
    bench.clock.advance(100)
    exchange.look()
    assert not exchange.ending
    bench.clock.advance(0.5)
    exchange.look()
    assert bench.row.outcome == "upstream_timeout"
    bench.assert_settled()


def test_a_providers_own_deadlines_hold_once_it_is_asked(bench, make):
    exchange = make()
    bench.attempt(exchange, [], TIMEOUTS._replace(first_token=25))
    bench.clock.advance(21)
    exchange.look()
    assert not exchange.ending
    bench.clock.advance(4.5)
    exchange.look()
    assert "first token in 25 s" in exchange.ending.error.detail


def test_the_deadlines_count_from_the_admission_and_not_from_the_upload(bench, make):
    exchange = make()
    exchange.call.started -= 5 * TIMEOUTS.total
    bench.clock.advance(TIMEOUTS.first_token)
    exchange.look()
    assert not exchange.ending
    bench.clock.advance(0.5)
    exchange.look()
    assert "first token" in exchange.ending.error.detail


# --- leases -------------------------------------------------------------------


@both
def test_leases_are_renewed_every_third_of_their_time(bench, make, monkeypatch, stream):
    renewals = []
    renew = bench.control.renew

    def noted(*arguments):
        renewals.append(bench.clock())
        return renew(*arguments)

    monkeypatch.setattr(bench.control, "renew", noted)
    exchange = make(stream=stream)
    began = bench.clock()
    for _ in range(200):
        bench.clock.advance(0.25)
        hear(bench, exchange)
        exchange.look()
    assert [at - began for at in renewals] == [10, 20, 30, 40, 50]


@both
def test_a_living_call_outlives_its_first_lease(bench, make, stream):
    exchange = make(stream=stream)
    for _ in range(9):
        bench.clock.advance(10)
        hear(bench, exchange)
        exchange.look()
    assert bench.ledger.sweep() == 0
    bench.limiter.status("alice", exchange.admission.grant.claims)
    assert bench.ledger.balance("alice").held > 0
    exchange.answer(Usage(10, 1))
    assert bench.row.cost == 10 * 1000 + 2000
    bench.assert_settled()


@both
def test_what_a_dead_worker_left_is_settled_at_its_floor(bench, make, stream):
    exchange = make(stream=stream)
    bench.clock.advance(5)
    usage = hand(bench, exchange) if stream else exchange.meter.delivered()
    bench.clock.advance(5)
    exchange.look()
    if stream:
        hand(bench, exchange, "more that no checkpoint saw")
    bench.clock.advance(LEASE + 1)
    assert bench.ledger.sweep() == 1
    assert bench.row.cost == PRICE.cost(usage)
    assert bench.row.prompt_tokens == usage.prompt_tokens
    assert bench.row.completion_tokens == usage.completion_tokens


def test_the_floor_advances_with_what_was_handed_over(bench, make):
    exchange = make()
    floors = []
    for _ in range(3):
        hand(bench, exchange)
        bench.clock.advance(10)
        exchange.look()
        (hold,) = bench.ledger._state().holds.values()
        floors.append(hold.draft.cost)
    assert floors == sorted(set(floors))
    assert floors[-1] == PRICE.cost(exchange.meter.delivered())


def test_a_call_dead_before_its_first_checkpoint_costs_nothing(bench, make):
    hand(bench, make())
    bench.clock.advance(LEASE + 1)
    assert bench.ledger.sweep() == 1
    assert bench.row.cost == 0


def test_a_look_at_an_ended_call_does_nothing(bench, make):
    exchange = make()
    exchange.answer(Usage(1, 1))
    bench.clock.advance(1000)
    exchange.look()
    assert bench.row.outcome == "answered"


# --- callers who leave --------------------------------------------------------


@both
def test_a_caller_who_is_gone_frees_everything(bench, make, line, stream):
    exchange = make(stream=stream, connection=line)
    stopped = []
    exchange.cancellation.on_cancel(lambda: stopped.append(1))
    exchange.look()
    assert not exchange.ending
    hear(bench, exchange)
    line.present = False
    exchange.look()
    assert exchange.ending
    assert stopped == [1]
    assert bench.row.outcome == "caller_left"
    assert bench.row.cost == PRICE.cost(Usage(exchange.admission.prompt_tokens, 0))
    bench.assert_settled()


def test_a_caller_who_takes_nothing_has_left_and_frees_the_servers_thread(bench, make, line):
    exchange = make(connection=line)
    for _ in range(3):  # one who reads slowly does read
        hand(bench, exchange)
        exchange.sending()
        bench.clock.advance(9)
        exchange.look()
        exchange.sent()
    exchange.sending()
    for _ in range(4):
        hear(bench, exchange)
        assert not exchange.ending
        bench.clock.advance(TIMEOUTS.idle - 1)
        exchange.look()
    assert exchange.ending.outcome == "caller_left"
    assert line.cuts == 1
    assert bench.row.cost == PRICE.cost(exchange.meter.delivered())
    bench.assert_settled()


def test_a_send_that_hangs_when_the_call_ends_is_cut_too(bench, make, line):
    exchange = make(connection=line)
    hand(bench, exchange)
    exchange.sending()
    bench.clock.advance(TIMEOUTS.idle + 1)
    exchange.look()
    assert exchange.ending.outcome == "upstream_timeout"
    assert line.cuts == 0
    bench.clock.advance(WRITE_TIMEOUT)
    exchange.look()
    assert line.cuts == 1
    assert len(bench.ledger.entries("alice")) == 1
    bench.assert_settled()


def test_who_takes_some_of_a_piece_now_and_then_is_waited_for(bench, make, line):
    exchange = make(connection=line)
    exchange.answer(Usage(10, 1))
    exchange.sending()
    for taken in (1000, 1001, 5000):
        line.bytes_taken = taken
        bench.clock.advance(WRITE_TIMEOUT + 1)
        exchange.look()
        assert line.cuts == 0
    bench.clock.advance(WRITE_TIMEOUT)
    exchange.look()
    assert line.cuts == 0
    bench.clock.advance(1)
    exchange.look()
    assert line.cuts == 1


@pytest.mark.parametrize("ended", ["answer", "fail", "leave"])
def test_the_last_piece_too_is_cut_when_it_hangs_in_a_send(bench, make, line, ended):
    exchange = make(connection=line)
    ending = ENDS[ended](exchange)
    exchange.sending()
    bench.clock.advance(WRITE_TIMEOUT)
    exchange.look()
    assert line.cuts == 0
    bench.clock.advance(1)
    exchange.look()
    assert line.cuts == 1
    assert bench.watched == []  # once is enough
    assert exchange.ending is ending
    exchange.release()
    bench.assert_nothing_is_held()


def test_a_server_that_comes_back_after_the_end_is_left_in_peace(bench, make, line):
    exchange = make(connection=line)
    hand(bench, exchange)
    exchange.sending()
    line.present = False
    exchange.look()
    assert exchange.ending
    assert bench.watched == [exchange]
    exchange.sent()
    bench.clock.advance(WRITE_TIMEOUT + 1)
    exchange.look()
    assert line.cuts == 0
    bench.assert_settled()


def test_what_should_stop_the_provider_may_fail(bench, make, caplog):
    exchange = make()
    stopped = []

    def fail():
        raise RuntimeError("oops")

    exchange.cancellation.on_cancel(fail)
    exchange.cancellation.on_cancel(lambda: stopped.append(1))
    assert exchange.leave()
    exchange.cancellation.on_cancel(fail)
    assert stopped == [1]
    assert "oops" in caplog.text
    bench.assert_settled()


# --- whose silence it is ---------------------------------------------------------


def test_a_sign_of_life_is_no_first_token(bench, make):
    exchange = make()
    list(bench.attempt(exchange, [None]))
    bench.clock.advance(TIMEOUTS.first_token + 0.5)
    exchange.look()
    assert "first token" in exchange.ending.error.detail


def test_a_caller_who_reads_slowly_is_not_a_silent_provider(bench, make):
    exchange = make()
    items = bench.attempt(exchange, ["one", "two"])
    next(items)  # it waits for the caller to take it
    bench.clock.advance(TIMEOUTS.idle + 1)
    exchange.look()
    assert not exchange.ending
    next(items)
    bench.clock.advance(TIMEOUTS.idle + 1)
    exchange.look()
    assert not exchange.ending


def test_an_answer_that_is_complete_waits_for_a_caller_who_reads_slowly(bench, make):
    exchange = make()
    assert list(bench.attempt(exchange, ["all of it"]))  # the caller has not read it yet
    bench.clock.advance(TIMEOUTS.idle + 1)
    exchange.look()
    assert not exchange.ending


def test_a_call_that_outgrows_the_balance_ends_paid_to_the_last_token(bench, make):
    exchange = make()
    hand(bench, exchange, "word " * 10**6)
    bench.clock.advance(10)
    exchange.look()
    assert exchange.ending
    assert exchange.ending.error is None
    assert exchange.cancellation.cancelled
    assert (bench.row.outcome, bench.row.cost) == ("balance_exhausted", OPENING)
    bench.assert_settled()


def test_the_operator_is_told_whose_deadline_passed(bench, make, caplog):
    exchange = make()
    bench.attempt(exchange, [])
    bench.clock.advance(TIMEOUTS.first_token + 0.5)
    exchange.look()
    [line] = [record.getMessage() for record in caplog.records]
    assert exchange.call.request_id in line
    assert "provider p" in line
    assert "first token" in line


def test_a_stream_that_no_provider_took_up_costs_nothing_to_leave(bench, make):
    exchange = make()
    exchange.leave()
    assert (bench.row.outcome, bench.row.cost) == ("caller_left", 0)
    bench.assert_settled()


def test_an_answer_in_one_piece_costs_the_prompt_to_leave_once_the_request_is_out(bench, make):
    exchange = make(stream=False)
    bench.attempt(exchange, [])
    exchange.leave()
    prompt = exchange.admission.prompt_tokens
    assert (bench.row.outcome, bench.row.cost) == ("caller_left", PRICE.cost(Usage(prompt, 0)))


@pytest.mark.parametrize("why", ["none was asked", "still connecting", "it has failed"])
def test_before_that_it_costs_nothing(bench, make, why):
    exchange = make(stream=False)
    if why != "none was asked":
        bench.attempt(exchange, [])
    if why == "still connecting":
        exchange.call.attempt.request.connecting.set()
    if why == "it has failed":
        exchange.call.attempt.failure = BackendUnavailable("x")
    exchange.leave()
    assert (bench.row.outcome, bench.row.cost) == ("caller_left", 0)


def test_a_call_that_broke_through_our_own_fault_costs_nothing(bench, make):
    exchange = make()
    hand(bench, exchange)
    exchange.fail(InternalError())
    assert (bench.row.outcome, bench.row.cost) == ("internal_error", 0)
    bench.assert_settled()


# --- the server's thread -----------------------------------------------------------


@both
@pytest.mark.parametrize("ended", ENDS)
def test_a_place_is_free_when_the_thread_is_and_the_rest_at_once(bench, make, ended, stream):
    exchange, other = make(stream=stream), make()
    ENDS[ended](exchange)
    assert (bench.slots, bench.control.calls) == (1, 2)
    for _ in range(3):
        exchange.release()
        assert bench.control.calls == 1
    assert bench.watched == [other]
    ENDS[ended](other)
    other.release()
    bench.assert_nothing_is_held()


def test_released_by_many_threads_at_once_it_is_one_place(bench, make):
    barrier = threading.Barrier(8)
    exchange, _ = make(), make()

    def release(number):
        barrier.wait(10)
        exchange.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(release, range(8)))
    assert bench.control.calls == 1


def test_a_thread_that_is_released_is_not_cut_off(bench, make, line):
    exchange = make(connection=line)
    exchange.sending()
    exchange.leave()
    exchange.release()
    bench.clock.advance(WRITE_TIMEOUT + 1)
    exchange.look()
    assert line.cuts == 0


# --- stores that are slow -----------------------------------------------------------


def test_a_slow_store_keeps_the_watch_from_no_other_call(bench, make, line, monkeypatch):
    jobs = []
    line.present = False
    monkeypatch.setattr(bench, "aside", jobs.append)
    slow, other = make(), make(connection=line)
    hand(bench, slow)
    bench.clock.advance(10)
    slow.look()
    other.look()
    assert len(jobs) == 2  # a renewal and a settlement, and neither has been waited for
    assert other.cancellation.cancelled
    bench.clock.advance(10)
    hear(bench, slow)
    slow.look()
    assert len(jobs) == 2  # the first renewal is still under way
    for job in jobs:
        job()
    slow.look()
    assert len(jobs) == 3


def test_whoever_comes_second_finds_the_call_settled(bench, make, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    settle = bench.ledger.settle

    def slowly(entry):
        begun.set()
        assert go.wait(10)
        return settle(entry)

    monkeypatch.setattr(bench.ledger, "settle", slowly)
    exchange = make()
    hand(bench, exchange)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(exchange.leave)
        assert begun.wait(10)
        second = pool.submit(exchange.leave)
        assert not second.done()
        go.set()
        assert second.result(10) is first.result(10)
        assert exchange.call.cost == bench.row.cost > 0


def test_an_end_is_told_in_full_before_anybody_is_woken(bench, make):
    exchange = make()
    hand(bench, exchange, "word " * 10**6)
    seen = []
    exchange.cancellation.on_cancel(
        lambda: seen.append((exchange.call.outcome, exchange.ending.error, exchange.call.ended))
    )
    bench.clock.advance(10)
    exchange.look()
    assert seen == [("balance_exhausted", None, bench.clock())]


def test_a_checkpoint_that_fails_ends_no_call_and_tells_no_secret(bench, make, monkeypatch, caplog):
    def fail(draft, *, lease):
        raise OSError("connect: password=hunter2")

    exchange = make()
    hand(bench, exchange)
    monkeypatch.setattr(bench.ledger, "checkpoint", fail)
    bench.clock.advance(10)
    exchange.look()
    assert not exchange.ending
    assert "ledger failed" in caplog.text
    assert "hunter2" not in caplog.text
    exchange.answer(Usage(1, 1))
    bench.assert_settled()
