import contextlib
import itertools
import json
import threading

import pytest

from oneai_middleware.errors import (
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    CallerLeft,
    InvalidRequest,
)
from oneai_middleware.protocol.chat import Chunk, Completion, Timeouts
from oneai_middleware.protocol.normalise import StreamNormaliser
from oneai_middleware.protocol.usage import Usage
from oneai_middleware.relay.body import completion_of

from .conftest import PRICE, WRITE_TIMEOUT

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def value(event):
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    return json.loads(event.removeprefix(b"data: "))


def text(events):
    return "".join(
        choice["delta"].get("content") or ""
        for event in events
        if event.startswith(b"data: {")
        for choice in value(event).get("choices", ())
    )


def past_comments(body):
    """The next event that is no comment."""
    while (event := next(body)) == KEEP_ALIVE:
        pass
    return event


def run_out(body):
    events = list(body)
    body.close()
    return events


@pytest.fixture
def start(bench):
    """An open stream of these items."""

    def start(*items, end=True, keep_alive=30.0, include_usage=False, **options):
        exchange = bench.exchange(**options)
        stream = bench.stream(exchange, *items, keep_alive=keep_alive, include_usage=include_usage)
        if end:
            stream.script.end()
        stream.body.open()
        return stream

    return start


# --- a stream that goes well --------------------------------------------------


def test_each_item_is_one_whole_event_and_done_is_the_last(bench, start):
    stream = start("hello ", Chunk.text("there"), None, Usage(7, 3))
    events = run_out(stream.body)
    assert events[-1] == DONE
    assert text(events) == "hello there"
    assert all(event.count(b"\n\n") == 1 and event.endswith(b"\n\n") for event in events)
    assert (bench.row.cost, bench.row.outcome) == (PRICE.cost(Usage(7, 3)), "answered")
    bench.assert_nothing_is_held()


def test_a_call_is_settled_when_its_answer_is_complete_not_when_it_is_closed(bench, start):
    stream = start("hello")
    while b"[DONE]" not in next(stream.body):
        pass
    assert bench.row.outcome == "answered"
    bench.assert_settled()
    assert bench.control.calls == 1  # the server's thread is still at work
    stream.body.close()
    assert bench.row.outcome == "answered"
    bench.assert_nothing_is_held()


def test_a_stream_that_was_read_to_its_end_keeps_no_place_though_nobody_closes_it(bench, start):
    stream = start("hello")
    assert list(stream.body)
    bench.assert_nothing_is_held()


def test_the_first_event_is_awaited_before_the_head_is_sent(bench):
    exchange = bench.exchange()
    stream = bench.stream(exchange)
    threading.Timer(0.01, stream.script.say, ["late"]).start()
    stream.body.open()
    assert text([next(stream.body)]) == "late"
    stream.body.close()


def test_an_answer_without_text_is_an_answer(bench, start):
    events = run_out(start().body)
    assert events[-1] == DONE
    assert value(events[-2])["choices"][0]["finish_reason"] == "stop"
    assert bench.row.cost == PRICE.cost(bench_usage(bench))


def bench_usage(bench):
    return Usage(bench.row.prompt_tokens, bench.row.completion_tokens)


def test_the_usage_shown_is_the_usage_billed(bench, start):
    events = run_out(start("some words", include_usage=True).body)
    shown = value(events[-2])["usage"]
    assert shown["prompt_tokens"] == bench.row.prompt_tokens
    assert shown["completion_tokens"] == bench.row.completion_tokens > 0
    assert bench.row.estimated


# --- silence ------------------------------------------------------------------


def test_silence_is_filled_with_comments(bench, start):
    """Conformance 72."""
    stream = start(end=False, keep_alive=0.005)
    assert [next(stream.body) for _ in range(3)] == [KEEP_ALIVE] * 3
    stream.script.say("hello")
    assert text([past_comments(stream.body)]) == "hello"
    stream.script.end()
    assert run_out(stream.body)[-1] == DONE


def test_comments_keep_no_silent_stream_alive(bench, start):
    """Conformance 73."""
    stream = start("word", end=False, keep_alive=0.005, timeouts=Timeouts(idle=10))
    assert text([past_comments(stream.body)]) == "word"
    assert next(stream.body) == KEEP_ALIVE
    bench.clock.advance(11)
    stream.exchange.look()
    bench.assert_settled()
    *_, last = run_out(stream.body)
    assert value(last)["error"]["code"] == "upstream_timeout"


def test_a_providers_sign_of_life_is_no_event_of_ours(bench, start):
    stream = start(None, "hello", None, None)
    assert [e for e in run_out(stream.body) if not e.startswith(b"data: ")] == []


def test_an_error_after_the_head_went_out_in_silence_is_an_event(bench, start):
    stream = start(end=False, keep_alive=0.005)
    assert next(stream.body) == KEEP_ALIVE
    stream.script.say(InvalidRequest("Ask differently.", param="top_p"))
    *_, last = run_out(stream.body)
    assert value(last)["error"]["message"] == "Ask differently."
    assert bench.row.cost == 0
    bench.assert_nothing_is_held()


# --- a stream that goes wrong -------------------------------------------------


@pytest.mark.parametrize(
    "error", [BackendOverloaded("x"), InvalidRequest("x"), BackendTimeout("x")]
)
def test_what_fails_before_the_head_is_raised(bench, error):
    exchange = bench.exchange()
    stream = bench.stream(exchange, error)
    with pytest.raises(type(error)):
        stream.body.open()
    assert (bench.row.cost, bench.row.outcome) == (0, error.code)
    bench.assert_nothing_is_held()
    assert stream.script.closed.wait(10)


def test_what_breaks_in_mid_stream_is_one_error_event_and_no_done(bench, start):
    """Conformance 69."""
    stream = start("some words", BackendUnavailable("upstream text"))
    events = run_out(stream.body)
    assert value(events[-1]) == {
        "error": {
            "message": BackendUnavailable.wording,
            "type": "api_error",
            "param": None,
            "code": "upstream_error",
        }
    }
    assert text(events[:-1]) == "some words"
    assert DONE not in events
    assert bench.row.cost == PRICE.cost(bench_usage(bench)) > 0
    bench.assert_nothing_is_held()


def test_a_bug_in_mid_stream_is_an_error_event_too(bench, start, caplog, monkeypatch):
    chunk = StreamNormaliser.chunk

    def fail_at_last(normaliser, item):
        if item == "more":
            raise RuntimeError("our own")
        return chunk(normaliser, item)

    monkeypatch.setattr(StreamNormaliser, "chunk", fail_at_last)
    events = run_out(start("some words", "more").body)
    assert value(events[-1])["error"]["code"] == "internal_error"
    assert b"our own" not in b"".join(events)
    assert "our own" in caplog.text
    assert bench.row.outcome == "internal_error"
    bench.assert_nothing_is_held()


def test_text_that_cannot_be_written_ends_the_stream(bench, start):
    events = run_out(start("fine ", "\ud800").body)
    assert text(events) == "fine "
    assert value(events[-1])["error"]["code"] == "upstream_error"
    bench.assert_nothing_is_held()


def test_without_a_thread_to_be_had_nothing_is_kept(bench, monkeypatch):
    exchange = bench.exchange()
    stream = bench.stream(exchange)

    def fail(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            stream.body.open()
    assert (bench.row.cost, bench.row.outcome) == (0, "internal_error")
    bench.assert_nothing_is_held()


@pytest.mark.parametrize(
    ("timeouts", "said"),
    [
        (Timeouts(first_token=5), ()),
        (Timeouts(idle=5), ("some words",)),
        (Timeouts(total=5), ("some words",)),
    ],
)
def test_a_deadline_gives_one_error_event_and_frees_everything_at_once(
    bench, start, timeouts, said
):
    """Conformance 73."""
    stream = start(*said, end=False, keep_alive=0.005, timeouts=timeouts)
    if said:
        assert text([past_comments(stream.body)]) == "some words"
    else:
        assert next(stream.body) == KEEP_ALIVE
    bench.clock.advance(6)
    stream.exchange.look()
    bench.assert_settled()
    assert stream.exchange.cancellation.cancelled
    *rest, last = run_out(stream.body)
    assert value(last)["error"]["code"] == "upstream_timeout"
    assert [event for event in rest if event != KEEP_ALIVE] == []
    assert bool(bench.row.cost) == bool(said)
    stream.script.end()
    assert stream.script.closed.wait(10)


# --- a caller who leaves ------------------------------------------------------


def test_closed_in_mid_stream_it_pays_what_was_handed_over(bench, start):
    """Conformance 78."""
    stream = start("handed ", "read ahead", "and more", end=False)
    assert text([next(stream.body)]) == "handed "
    stream.body.close()
    handed = stream.exchange.meter.delivered()
    assert bench.row.cost == PRICE.cost(handed)
    assert handed.completion_tokens < 5
    assert bench.row.outcome == "caller_left"
    bench.assert_nothing_is_held()
    stream.script.end()
    assert stream.script.closed.wait(10)


def test_closed_before_its_first_item_it_pays_the_prompt(bench, start):
    stream = start("never handed over", end=False)
    stream.body.close()
    assert bench.row.cost == PRICE.cost(Usage(stream.exchange.admission.prompt_tokens, 0))
    bench.assert_nothing_is_held()


def test_closed_twice_it_ends_once(bench, start, caplog):
    caplog.set_level("INFO", "oneai_middleware.access")
    stream = start("hello", end=False)
    next(stream.body)
    for _ in range(3):
        stream.body.close()
    assert len(bench.ledger.entries("alice")) == 1
    assert len(caplog.records) == 1


def test_closed_by_another_thread_a_waiting_reader_comes_back(bench, start):
    stream = start("hello", end=False)
    next(stream.body)
    rest = []
    reader = threading.Thread(target=lambda: rest.extend(stream.body))
    reader.start()
    stream.body.close()
    bench.assert_nothing_is_held()
    reader.join(10)
    assert not reader.is_alive()
    assert DONE not in rest
    assert bench.row.outcome == "caller_left"


def test_closed_by_many_threads_while_it_is_read_it_ends_once(bench, start):
    for _ in range(20):
        stream = start(*["word "] * 50)
        threads = [threading.Thread(target=stream.body.close) for _ in range(4)]
        threads.append(threading.Thread(target=lambda stream=stream: list(stream.body)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert len(bench.ledger.entries("alice")) == 20
    bench.assert_nothing_is_held()


@pytest.mark.parametrize("read", [0, 1, 99])
def test_the_limit_on_writes_ends_with_the_stream(start, line, read):
    stream = start("hello", connection=line)
    assert line.limits == [WRITE_TIMEOUT]
    _ = list(itertools.islice(stream.body, read))
    stream.body.close()
    stream.body.close()
    assert line.limits == [WRITE_TIMEOUT, "as found"]


def test_it_ends_too_with_a_stream_that_never_opens(bench, line):
    stream = bench.stream(bench.exchange(connection=line), BackendOverloaded("busy"))
    with pytest.raises(BackendOverloaded):
        stream.body.open()
    assert line.limits == [WRITE_TIMEOUT, "as found"]


def test_the_hosts_connection_is_left_alone_for_an_answer_in_one_piece(bench, line):
    exchange = bench.exchange(stream=False, connection=line)
    complete(exchange, lambda: whole("all of it"))
    assert line.limits == []


@pytest.mark.parametrize("last", [DONE, b"upstream_error"])
def test_a_last_piece_that_hangs_in_a_send_is_cut_off(bench, start, line, last):
    ends = [] if last == DONE else [BackendUnavailable("x")]
    stream = start("some words", *ends, connection=line)
    while last not in next(stream.body):
        pass
    bench.clock.advance(WRITE_TIMEOUT + 1)
    stream.exchange.look()
    assert line.cuts == 1
    stream.body.close()
    assert bench.row.outcome == ("upstream_error" if ends else "answered")
    bench.assert_nothing_is_held()


def test_after_the_close_there_is_nothing_more(start):
    stream = start("hello", end=False)
    next(stream.body)
    stream.body.close()
    with pytest.raises(StopIteration):
        next(stream.body)


def test_a_caller_seen_to_be_gone_frees_everything_before_the_server_notices(bench, start, line):
    stream = start("some words", end=False, connection=line)
    next(stream.body)
    line.present = False
    stream.exchange.look()
    assert bench.row.outcome == "caller_left"
    assert bench.row.cost == PRICE.cost(stream.exchange.meter.delivered())
    stream.body.close()
    bench.assert_nothing_is_held()
    assert len(bench.ledger.entries("alice")) == 1


def test_a_caller_who_leaves_while_the_first_event_is_awaited(bench, line):
    line.present = False
    exchange = bench.exchange(connection=line)
    stream = bench.stream(exchange)
    threading.Timer(0.01, exchange.look).start()
    with pytest.raises(CallerLeft):
        stream.body.open()
    bench.assert_nothing_is_held()


# --- an answer in one piece ---------------------------------------------------


def whole(text="some words", **fields):
    message = {"role": "assistant", "content": text}
    return Completion(choices=[{"index": 0, "message": message}], **fields)


def complete(exchange, run):
    return json.loads(completion_of(exchange, run, id="chatcmpl-1", created=1, model="bot"))


def test_an_answer_is_settled_before_it_is_handed_over(bench):
    exchange = bench.exchange(stream=False)
    told = {"prompt_tokens": 7, "completion_tokens": 3}
    answer = complete(exchange, lambda: whole(usage=told))
    assert answer["choices"][0]["message"]["content"] == "some words"
    assert (answer["id"], answer["model"], answer["created"]) == ("chatcmpl-1", "bot", 1)
    assert bench.row.cost == PRICE.cost(Usage(7, 3))
    bench.assert_nothing_is_held()


def test_while_it_runs_it_is_watched(bench):
    exchange = bench.exchange(stream=False)
    seen = []
    complete(exchange, lambda: seen.extend(bench.watched) or whole())
    assert seen == [exchange]
    assert bench.watched == []


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (BackendOverloaded("x"), "model_overloaded"),
        (InvalidRequest("x"), "invalid_value"),
        (ValueError("x"), "internal_error"),
        (SystemExit(1), "internal_error"),
    ],
)
def test_an_answer_that_fails_is_raised_and_costs_nothing(bench, error, outcome):
    exchange = bench.exchange(stream=False)

    def run():
        raise error

    with pytest.raises(type(error)):
        complete(exchange, run)
    assert (bench.row.cost, bench.row.outcome) == (0, outcome)
    bench.assert_nothing_is_held()


@pytest.mark.parametrize("answer", [Completion(), Completion(choices=[]), whole("\ud800")])
def test_an_answer_that_cannot_be_given_costs_nothing(bench, answer):
    with pytest.raises(BackendUnavailable):
        complete(bench.exchange(stream=False), lambda: answer)
    assert bench.row.cost == 0
    bench.assert_nothing_is_held()


def test_an_answer_that_comes_too_late_is_none(bench):
    exchange = bench.exchange(stream=False, timeouts=Timeouts(total=5))

    def run():
        bench.clock.advance(6)
        exchange.look()
        bench.assert_settled()
        assert bench.control.calls == 1  # it keeps a thread of the server until it returns
        return whole()

    with pytest.raises(BackendTimeout):
        complete(exchange, run)
    assert (bench.row.cost, bench.row.outcome) == (0, "upstream_timeout")
    bench.assert_nothing_is_held()


def test_a_provider_cancelled_for_a_deadline_is_told_as_the_deadline(bench):
    exchange = bench.exchange(stream=False, timeouts=Timeouts(total=5))

    def run():
        bench.clock.advance(6)
        exchange.look()
        assert exchange.cancellation.cancelled
        raise BackendUnavailable("cancelled")

    with pytest.raises(BackendTimeout):
        complete(exchange, run)


def test_a_caller_who_left_an_answer_in_one_piece_pays_the_prompt(bench, line):
    line.present = False
    exchange = bench.exchange(stream=False, connection=line)

    def run():
        bench.attempt(exchange, [])
        exchange.look()
        bench.assert_settled()
        assert bench.control.calls == 1
        raise BackendUnavailable("cancelled")

    with pytest.raises(CallerLeft):
        complete(exchange, run)
    assert bench.row.cost == PRICE.cost(Usage(exchange.admission.prompt_tokens, 0))
    assert len(bench.ledger.entries("alice")) == 1
    bench.assert_nothing_is_held()


def test_where_the_watch_cannot_start_an_answer_keeps_nothing(bench, monkeypatch):
    exchange = bench.exchange(stream=False)

    def fail(watched):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(bench, "add", fail)
    with pytest.raises(RuntimeError):
        complete(exchange, whole)
    assert bench.row.cost == 0
    bench.assert_nothing_is_held()


def test_a_stream_whose_money_runs_out_is_cut_to_length(bench):
    exchange = bench.exchange()
    call = bench.stream(exchange, "word " * 10**6, include_usage=True)
    call.body.open()
    assert b"word" in next(call.body)
    bench.clock.advance(10)
    exchange.look()
    *events, done = list(call.body)
    finish, closing = (json.loads(event[6:]) for event in events)
    assert finish["choices"][0]["finish_reason"] == "length"
    assert closing["usage"]["completion_tokens"] == bench.row.completion_tokens > 0
    assert done == b"data: [DONE]\n\n"
    call.body.close()
    assert bench.ledger.balance("alice").available == 0
    bench.assert_nothing_is_held()


def test_what_goes_out_before_something_that_cannot_is_paid(bench, start):
    """Events that have come together are billed as one by one."""
    words = ["one ", *["more "] * 40]
    stream = start(*words, "\ud800")
    events = b"".join(run_out(stream.body)).split(b"\n\n")
    said = [event + b"\n\n" for event in events if event]
    assert text(said) == "".join(words)
    assert value(said[-1])["error"]["code"] == "upstream_error"
    assert bench.row.completion_tokens == stream.exchange.meter.delivered().completion_tokens > 40
    bench.assert_nothing_is_held()


def test_what_has_come_by_then_goes_out_together_but_not_too_much_of_it(bench, start, eventually):
    stream = start("first ", *["x" * 100_000] * 10)
    eventually(lambda: len(stream.body._pump._come) == 11)  # ten, and the end
    first, *rest = run_out(stream.body)
    assert text([first]) == "first "
    sizes = [len(piece) for piece in rest]
    assert max(sizes) < 400_000
    assert len(rest) < 10
    assert b"".join(rest).count(b"data: ") == 12  # with the reason to end, and the end


@contextlib.contextmanager
def raising():
    """The scope of a host whose clearing up fails."""
    yield
    raise KeyError("the host's own")


def test_a_hosts_scope_that_raises_takes_no_place_when_a_caller_leaves(bench, start, monkeypatch):
    stream = start("one ", end=False)
    assert text([next(stream.body)]) == "one "
    monkeypatch.setattr(bench.control, "_scope", raising)
    with pytest.raises(KeyError):
        stream.body.close()
    bench.assert_nothing_is_held()


def test_a_hosts_scope_that_raises_takes_no_place_when_no_thread_is_to_be_had(bench, monkeypatch):
    stream = bench.stream(bench.exchange())
    monkeypatch.setattr(bench, "add", lambda watched: 1 / 0)
    monkeypatch.setattr(bench.control, "_scope", raising)
    with pytest.raises(KeyError):
        stream.body.open()
    bench.assert_nothing_is_held()
