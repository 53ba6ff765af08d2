"""A failing provider: after how much it is left alone, and who finds it well again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from oneai_middleware.cooldown import FAILURES, LONGEST, PROBE, Cooldown, Visit
from oneai_middleware.testing import FakeClock

PAUSE = 2.0


@pytest.fixture
def cooldown(clock: FakeClock) -> Cooldown:
    return Cooldown("shop", PAUSE, clock)


def visit(cooldown: Cooldown) -> Visit:
    """One call that is let through."""
    admitted = cooldown.admit()
    assert admitted is not None
    return admitted


def admits(cooldown: Cooldown) -> bool:
    return cooldown.admit() is not None


def fail(cooldown: Cooldown, times: int = FAILURES, asked: float | None = None) -> None:
    """So many calls that were let through together, and fail one after the other."""
    for each in [visit(cooldown) for _ in range(times)]:
        each.failed(asked)


def probe(cooldown: Cooldown, clock: FakeClock) -> Visit:
    """Wait for the pause to be over, and be the call that finds out."""
    clock.advance(cooldown.remaining)
    return visit(cooldown)


# --- the pause ------------------------------------------------------------------


def test_a_provider_is_left_alone_only_after_so_many_failures(cooldown: Cooldown) -> None:
    fail(cooldown, FAILURES - 1)
    assert cooldown.remaining == 0
    visit(cooldown).failed()
    assert not admits(cooldown)
    assert cooldown.remaining == PAUSE


def test_a_success_in_between_starts_the_count_anew(cooldown: Cooldown) -> None:
    for _ in range(3):
        fail(cooldown, FAILURES - 1)
        visit(cooldown).succeeded()
    fail(cooldown, FAILURES - 1)
    visit(cooldown).failed()
    assert not admits(cooldown)


def test_what_nobody_could_tell_neither_counts_nor_starts_anew(cooldown: Cooldown) -> None:
    given_up = visit(cooldown)
    fail(cooldown, FAILURES - 1)
    for _ in range(FAILURES):
        visit(cooldown).undecided()
    visit(cooldown).failed()
    assert not admits(cooldown)
    given_up.undecided()
    assert not admits(cooldown)


@pytest.mark.parametrize("first", ["succeeded", "failed", "undecided"])
def test_of_what_is_said_of_one_call_the_first_word_counts(cooldown: Cooldown, first: str) -> None:
    told = [visit(cooldown) for _ in range(FAILURES)]
    for each in told:
        getattr(each, first)()
    closed = first == "failed"
    assert admits(cooldown) is not closed
    for each in told:
        each.failed()
        if closed:
            each.succeeded()
            each.undecided()
    assert admits(cooldown) is not closed


def test_the_pause_doubles_with_every_probe_that_fails(
    cooldown: Cooldown, clock: FakeClock
) -> None:
    fail(cooldown)
    pauses = [cooldown.remaining]
    for _ in range(7):
        probe(cooldown, clock).failed()
        pauses.append(cooldown.remaining)
    assert pauses == [2, 4, 8, 16, 32, LONGEST, LONGEST, LONGEST]


@pytest.mark.parametrize(("asked", "given"), [(None, PAUSE), (1, PAUSE), (30, 30), (3600, LONGEST)])
def test_a_provider_may_ask_for_a_longer_pause_but_not_for_ever(
    cooldown: Cooldown, clock: FakeClock, asked: float | None, given: float
) -> None:
    fail(cooldown, asked=asked)
    assert cooldown.remaining == given
    clock.advance(given - 0.01)
    assert not admits(cooldown)
    probe(cooldown, clock).failed()
    assert cooldown.remaining == 2 * PAUSE  # of our own making


def test_calls_from_before_the_pause_do_not_lengthen_it(
    cooldown: Cooldown, clock: FakeClock
) -> None:
    before = [visit(cooldown) for _ in range(10)]
    fail(cooldown)
    clock.advance(PAUSE - 0.5)
    for each in before:
        each.failed(30)
    assert cooldown.remaining == 0.5
    probe(cooldown, clock).failed()
    assert cooldown.remaining == 2 * PAUSE


def test_a_call_from_before_the_pause_that_is_answered_ends_it(cooldown: Cooldown) -> None:
    before = visit(cooldown)
    fail(cooldown)
    before.succeeded()
    assert admits(cooldown)
    assert cooldown.remaining == 0


def test_without_a_pause_a_provider_is_never_left_alone(clock: FakeClock) -> None:
    cooldown = Cooldown("shop", 0.0, clock)
    fail(cooldown, 10 * FAILURES, asked=30)
    assert [admits(cooldown) for _ in range(3)] == [True] * 3
    assert cooldown.remaining == 0


# --- the probe ------------------------------------------------------------------


def test_after_the_pause_a_single_call_finds_out(cooldown: Cooldown, clock: FakeClock) -> None:
    fail(cooldown)
    clock.advance(PAUSE - 0.01)
    assert not admits(cooldown)
    clock.advance(0.01)
    assert [admits(cooldown) for _ in range(3)] == [True, False, False]


def test_of_many_calls_at_once_a_single_one_finds_out(cooldown: Cooldown, clock: FakeClock) -> None:
    barrier = threading.Barrier(32)

    def ask() -> Visit | None:
        barrier.wait(10)
        return cooldown.admit()

    fail(cooldown)
    with ThreadPoolExecutor(32) as pool:
        for _ in range(10):
            clock.advance(cooldown.remaining)
            asked = [pool.submit(ask) for _ in range(32)]
            (found_out,) = [visit for each in asked if (visit := each.result(10))]
            found_out.failed()


def test_whoever_is_sent_away_by_a_probe_is_asked_to_come_back_soon(
    cooldown: Cooldown, clock: FakeClock
) -> None:
    fail(cooldown)
    finding_out = probe(cooldown, clock)
    assert not admits(cooldown)
    assert cooldown.remaining == PROBE
    finding_out.failed()
    assert cooldown.remaining == 2 * PAUSE


def test_a_probe_that_is_answered_ends_the_pause_for_everybody(
    cooldown: Cooldown, clock: FakeClock
) -> None:
    fail(cooldown)
    probe(cooldown, clock).failed()
    probe(cooldown, clock).succeeded()
    fail(cooldown, FAILURES - 1)
    visit(cooldown).failed()
    assert cooldown.remaining == PAUSE  # the doubling starts anew, too


@pytest.mark.parametrize("word", ["failed", "undecided"])
def test_only_the_probe_itself_says_how_the_probe_went(
    cooldown: Cooldown, clock: FakeClock, word: str
) -> None:
    before = [visit(cooldown) for _ in range(2 * FAILURES)]
    fail(cooldown)
    finding_out = probe(cooldown, clock)
    for each in before:
        getattr(each, word)()
        assert not admits(cooldown)
        assert cooldown.remaining == PROBE
    finding_out.succeeded()
    assert [admits(cooldown) for _ in range(3)] == [True] * 3


def test_a_probe_that_was_given_up_makes_room_for_the_next(
    cooldown: Cooldown, clock: FakeClock
) -> None:
    fail(cooldown)
    clock.advance(PAUSE)
    for _ in range(3):
        visit(cooldown).undecided()
    assert [admits(cooldown) for _ in range(2)] == [True, False]


def test_a_probe_that_never_reports_is_followed_by_another(
    cooldown: Cooldown, clock: FakeClock
) -> None:
    fail(cooldown)
    forgotten = probe(cooldown, clock)
    clock.advance(LONGEST - 0.01)
    assert not admits(cooldown)
    clock.advance(0.01)
    second = visit(cooldown)
    assert not admits(cooldown)
    forgotten.failed()
    forgotten.undecided()
    assert cooldown.remaining == PROBE  # it is the second one's word that counts
    second.succeeded()
    assert admits(cooldown)


# --- what the operator hears ----------------------------------------------------


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    caplog.set_level(logging.INFO, "oneai_middleware.dispatch")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_the_operator_is_told_of_each_pause_and_of_its_end(
    cooldown: Cooldown, clock: FakeClock, said: Callable[[], list[tuple[str, str]]]
) -> None:
    late = visit(cooldown)
    visit(cooldown).succeeded()
    fail(cooldown, 2 * FAILURES)
    probe(cooldown, clock).failed()
    probe(cooldown, clock).succeeded()
    late.succeeded()
    assert said() == [
        ("WARNING", "provider shop failed 5 times in a row: left alone for 2 s"),
        ("WARNING", "provider shop failed 6 times in a row: left alone for 4 s"),
        ("INFO", "provider shop answers again"),
    ]
