"""A provider that keeps failing is left alone for a while, and found well again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

BUSY, SHUT = "model_overloaded", "provider_unavailable"
CALLERS = 8

both = pytest.mark.parametrize("stream", [False, True], ids=["JSON", "stream"])


def refuse(line: Any) -> None:
    line.whole({}, status="503 Busy")


@pytest.fixture
def stage(make_stage: Any, clock: Any) -> Any:
    """A stage whose provider is left alone for two seconds, after five failures."""
    stage = make_stage(refuse, row={"cooldown": 2})
    yield stage
    stage.plays["p0"] = lambda line: line.well()
    clock.advance(60)  # well again, to whatever follows


def fail(stage: Any, times: int, code: str = BUSY) -> None:
    for number in range(times):
        stage.assert_failed(number % 2 == 0, code)


@both
def test_after_five_failures_in_a_row_no_call_goes_there(stage: Any, stream: bool) -> None:
    fail(stage, 5)
    assert stage.asked == [5]
    seen = stage.assert_failed(stream, BUSY)
    assert stage.asked == [5]
    assert seen.headers["retry-after"] == "2"


def test_four_failures_and_an_answer_are_no_five_in_a_row(stage: Any) -> None:
    fail(stage, 4)
    stage.plays["p0"] = lambda line: line.well()
    stage.assert_answered(False)
    stage.plays["p0"] = refuse
    fail(stage, 4)
    assert stage.asked == [9]


@pytest.mark.parametrize(("status", "code"), [(401, SHUT), (404, SHUT), (400, "invalid_value")])
def test_what_is_told_at_once_or_is_the_callers_fault_leaves_nobody_alone(
    stage: Any, status: int, code: str
) -> None:
    stage.plays["p0"] = lambda line: line.whole({}, status=f"{status} No")
    fail(stage, 7, code)
    assert stage.asked == [7]


@both
def test_after_the_pause_one_of_many_callers_finds_out_for_all(
    stage: Any, clock: Any, eventually: Any, stream: bool
) -> None:
    fail(stage, 5)
    clock.advance(2)
    are_refused = threading.Event()

    def answer_the_probe(line: Any) -> None:
        line.turn.hold(until=are_refused)
        line.well()

    stage.plays["p0"] = answer_the_probe
    with ThreadPoolExecutor(CALLERS) as callers:
        calls = [callers.submit(stage.see, stream) for _ in range(CALLERS)]
        eventually(lambda: sum(call.done() for call in calls) == CALLERS - 1)
        assert stage.asked == [6]
        are_refused.set()
        results = sorted(call.result(timeout=10).status for call in calls)
    assert results == [200, *[503] * (CALLERS - 1)]
    with ThreadPoolExecutor(CALLERS) as callers:
        again = list(callers.map(stage.see, [stream] * CALLERS))
    assert [seen.status for seen in again] == [200] * CALLERS
    assert stage.asked == [6 + CALLERS]


def test_a_probe_that_fails_doubles_the_pause_up_to_a_minute(stage: Any, clock: Any) -> None:
    fail(stage, 5)
    for probe, pause in enumerate([2, 4, 8, 16, 32, 60, 60]):
        clock.advance(pause - 0.1)
        fail(stage, 1)
        assert stage.asked == [5 + probe]
        clock.advance(0.1)
        fail(stage, 1)
        assert stage.asked == [6 + probe]


def test_a_provider_is_left_alone_as_long_as_it_asks(stage: Any, clock: Any) -> None:
    stage.plays["p0"] = lambda line: line.whole({}, "Retry-After: 30", status="429 Busy")
    fail(stage, 5)
    stage.plays["p0"] = lambda line: line.well()
    clock.advance(29)
    assert stage.assert_failed(False, BUSY).headers["retry-after"] == "1"
    clock.advance(1)
    stage.assert_answered(False)


def test_a_caller_who_leaves_a_probe_has_found_out_nothing(
    make_stage: Any, clock: Any, eventually: Any, pumps: Any
) -> None:
    stage = make_stage(refuse, row={"cooldown": 2}, keep_alive=0.02)
    fail(stage, 5)
    clock.advance(2)
    stage.plays["p0"] = lambda line: (line.stream(), line.turn.hold())
    assert stage.see(True, take=1).data == b": keep-alive\n\n"
    eventually(lambda: not pumps())
    stage.plays["p0"] = lambda line: line.well()
    stage.assert_answered(True)
    assert stage.asked == [7]


@both
def test_while_one_provider_is_left_alone_the_next_route_answers_at_once(
    make_stage: Any, clock: Any, stream: bool
) -> None:
    stage = make_stage(refuse, lambda line: line.well(), first_row={"cooldown": 2})
    for _ in range(8):
        stage.assert_answered(stream)
    assert stage.asked == [5, 8]
    tried = stage.notes("dispatch")
    assert len([line for line in tried if "; trying on" in line]) == 5
    clock.advance(2)


def test_a_provider_without_a_cooldown_is_never_left_alone(make_stage: Any) -> None:
    stage = make_stage(refuse, row={"cooldown": 0})
    fail(stage, 8)
    assert stage.asked == [8]
