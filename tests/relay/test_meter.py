import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.protocol.chat import Chunk, Completion
from oneai_middleware.protocol.usage import Usage
from oneai_middleware.relay.meter import Meter
from oneai_middleware.tokens import TextCounter


def estimate_text(text):
    counter = TextCounter()
    counter.add(text)
    return counter.tokens


def delta(**fields):
    return Chunk(choices=[{"index": 0, "delta": fields, "finish_reason": None}])


@given(st.lists(st.text(), max_size=20))
def test_what_is_handed_over_is_counted_however_it_is_cut(pieces):
    meter = Meter(5)
    for piece in pieces:
        meter.hand(delta(content=piece))
    assert meter.delivered() == meter.total()
    assert meter.total() == Usage(5, estimate_text("".join(pieces)), estimated=True)
    assert meter.handed_any == any(pieces)


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "some words"},
        {"content": [{"type": "text", "text": "some words"}]},
        {"reasoning_content": "some words"},
        {"reasoning": "some words"},
        {"refusal": "some words"},
        {"tool_calls": [{"function": {"name": "some", "arguments": " words"}}]},
        {"tool_calls": [{"function": {"arguments": "some words"}}, {}, None]},
    ],
)
def test_every_kind_of_text_counts(fields):
    meter = Meter(5)
    meter.hand(delta(**fields))
    assert meter.total().completion_tokens == estimate_text("some words")
    message = {"role": "assistant", **fields}
    whole = Meter(5).of(Completion(choices=[{"message": message}]))
    assert whole == meter.total()


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(),
        Chunk(choices=None),
        Chunk(choices=[{"index": 0}]),
        delta(role="assistant", content=""),
        delta(content=None, tool_calls=None),
        delta(content=5, tool_calls="x"),
    ],
)
def test_a_chunk_without_text_counts_nothing(chunk):
    meter = Meter(5)
    meter.hand(chunk)
    assert not meter.handed_any
    assert meter.total() == Usage(5, 0, estimated=True)


def test_all_answers_of_a_call_are_counted():
    meter = Meter(5)
    choices = [{"index": index, "delta": {"content": "some words"}} for index in range(3)]
    meter.hand(Chunk(choices=choices))
    assert meter.total().completion_tokens == estimate_text("some words" * 3)


def test_what_the_provider_tells_wins_when_the_call_is_complete():
    meter = Meter(5)
    meter.hand(delta(content="a lot of words, really"))
    meter.told(Usage(7, 1))
    meter.told(None)
    assert meter.total() == Usage(7, 1)


def test_cumulative_reports_replace_each_other():
    meter = Meter(5)
    for tokens in (1, 2, 3):
        meter.told(Usage(7, tokens))
    assert meter.total() == Usage(7, 3)


def test_a_told_zero_is_a_zero():
    meter = Meter(5)
    meter.hand(delta(content="a gift"))
    meter.told(Usage(0, 0))
    assert meter.total() == Usage(0, 0)
    whole = Completion(
        choices=[{"message": {"content": "a gift"}}],
        usage={"prompt_tokens": 0, "completion_tokens": 0},
    )
    assert Meter(5).of(whole) == Usage(0, 0)


def test_a_call_that_ends_early_pays_no_more_than_was_handed_over():
    meter = Meter(5)
    meter.hand(delta(content="some words"))
    meter.told(Usage(7, 1_000, cached_tokens=2))
    assert meter.delivered() == Usage(
        7, estimate_text("some words"), cached_tokens=2, estimated=True
    )


def test_a_call_that_ends_early_pays_no_more_than_was_told():
    meter = Meter(5)
    meter.hand(delta(content="a rather long sentence with many words"))
    meter.told(Usage(7, 1))
    assert meter.delivered().completion_tokens == 1


def test_an_absurd_report_is_not_believed():
    completion = Completion(
        choices=[{"message": {"content": "some words"}}],
        usage={"prompt_tokens": -1, "completion_tokens": 10**12},
    )
    assert Meter(5).of(completion) == Usage(5, estimate_text("some words"), estimated=True)


def test_figures_that_a_broken_stream_told_as_placeholders_make_nothing_free():
    meter = Meter(5)
    meter.hand(delta(content="some words"))
    meter.told(Usage(0, 0))
    assert meter.delivered() == Usage(5, estimate_text("some words"), estimated=True)


@pytest.mark.parametrize("told", [2 * 10**7, 5 * 10**8])
def test_more_tokens_than_any_context_holds_are_not_believed(told):
    usage = {"prompt_tokens": told, "completion_tokens": 1}
    completion = Completion(choices=[{"message": {"content": "some words"}}], usage=usage)
    assert Meter(5).of(completion).estimated
