import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.backends.echo import FAILURES, EchoBackend
from oneai_middleware.errors import BackendOverloaded, BackendUnavailable, ConfigurationError
from oneai_middleware.protocol.chat import ChatRequest, Chunk
from oneai_middleware.protocol.usage import Usage


def request(text="one two three", **fields):
    return ChatRequest({"model": "m", "messages": [{"role": "user", "content": text}], **fields})


def said(items, index=0):
    return "".join(
        choice["delta"].get("content", "")
        for item in items
        if isinstance(item, Chunk)
        for choice in item.choices
        if choice["index"] == index
    )


def reasons(items):
    return [
        choice["finish_reason"]
        for item in items
        if isinstance(item, Chunk)
        for choice in item.choices
        if choice["finish_reason"]
    ]


@given(st.text())
def test_it_says_what_it_was_told(text):
    items = list(EchoBackend().stream(request(text)))
    assert said(items) == text
    assert reasons(items) == ["stop"]


def test_a_word_is_a_chunk_and_a_token():
    items = list(EchoBackend().stream(request("one  two\nthree")))
    assert [said([item]) for item in items[:3]] == ["one  ", "two\n", "three"]
    assert items[-1].completion_tokens == 3
    assert items[-1].prompt_tokens > 0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_it_is_cut_off_at_the_callers_bound(name):
    items = list(EchoBackend().stream(request(**{name: 2})))
    assert said(items) == "one two "
    assert reasons(items) == ["length"]
    assert items[-1].completion_tokens == 2


def test_a_bound_that_is_just_met_cuts_nothing_off():
    assert reasons(EchoBackend().stream(request(max_tokens=3))) == ["stop"]


def test_several_answers_are_given_when_asked_for():
    items = list(EchoBackend().stream(request(n=2)))
    assert said(items, 0) == said(items, 1) == "one two three"
    assert items[-1].completion_tokens == 6


def test_it_says_its_own_text_where_it_has_one():
    assert said(EchoBackend(text="mine").stream(request())) == "mine"


def test_usage_can_be_left_out_or_dictated():
    assert not any(isinstance(item, Usage) for item in EchoBackend(usage=False).stream(request()))
    told = EchoBackend(usage={"prompt_tokens": 5, "completion_tokens": 0})
    assert list(told.stream(request()))[-1] == Usage(5, 0)


@pytest.mark.parametrize("name", FAILURES)
def test_it_fails_as_it_is_told(name):
    with pytest.raises(FAILURES[name]):
        EchoBackend(fail=name).complete(request())


def test_it_fails_after_as_many_words_as_it_is_told():
    items = EchoBackend(fail="overloaded", fail_after=2).stream(request())
    assert said([next(items), next(items)]) == "one two "
    with pytest.raises(BackendOverloaded):
        next(items)


def test_a_failure_after_the_last_word_is_a_failure_all_the_same():
    with pytest.raises(BackendOverloaded):
        list(EchoBackend(fail="overloaded", fail_after=3).stream(request()))


def test_a_wait_ends_when_the_call_is_cancelled():
    asked = request()
    items = EchoBackend(delay=3600).stream(asked)
    next(items)
    threading.Thread(target=asked.cancellation.cancel).start()
    with pytest.raises(BackendUnavailable):
        next(items)


def test_the_whole_answer_is_the_stream_gathered():
    answer = EchoBackend().complete(request())
    assert answer.choices[0]["message"]["content"] == "one two three"
    assert answer.choices[0]["finish_reason"] == "stop"
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("options", [{"fail": "sometimes"}, {"speed": 3}])
def test_a_wrong_option_is_refused(options):
    with pytest.raises(ConfigurationError, match="fail|speed"):
        EchoBackend(**options)
