"""What the caller gets of the answers of which kind of provider."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.backends.openai.dialects.answers import Reasoning
from oneai_middleware.backends.openai.dialects.shipped import SHIPPED
from oneai_middleware.protocol.chat import Chunk, Completion

EVERY = sorted(SHIPPED)
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
DONE = "[DONE]"


def piece(finish=None, index=0, **delta):
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def saying(*events):
    """A provider that streams these events and closes."""

    def respond(turn):
        turn.start_stream()
        for event in events:
            turn.event(event)

    return respond


def chunks_of(reply):
    *events, rest = reply.read().split(b"\n\n")
    assert rest == b""
    *chunks, last = [event.removeprefix(b"data: ") for event in events]
    assert last == b"[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def told(reply, field):
    """What all deltas, or the message, say under ``field``."""
    if reply.headers["content-type"] == "application/json":
        return reply.json["choices"][0]["message"].get(field)
    deltas = [choice["delta"] for chunk in chunks_of(reply) for choice in chunk["choices"]]
    return "".join(delta.get(field) or "" for delta in deltas)


# --- reasoning --------------------------------------------------------------------


def thinking(name, text):
    """``text`` as the provider tells its reasoning."""
    field = SHIPPED[name].reasoning or "reasoning_content"
    details = [{"type": "reasoning.text", "id": "r1", "index": 0, "text": text}]
    return {field: details if field == "reasoning_details" else text}


@pytest.mark.parametrize("name", EVERY)
def test_reasoning_in_a_stream_is_told_where_callers_look_for_it(ask_as, provider, name):
    provider.respond = saying(
        piece(role="assistant", content=""),
        piece(**thinking(name, "let me ")),
        piece(content=None, **thinking(name, "think")),
        piece(content="hello"),
        piece(finish="stop"),
        DONE,
    )
    reply = ask_as(name, stream=True)
    assert told(reply, "reasoning_content") == "let me think"
    assert told(reply, "content") == "hello"
    assert b'"reasoning"' not in reply.read()
    assert b"reasoning_details" not in reply.read()


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"alibaba"}))
def test_reasoning_in_one_piece_is_told_where_callers_look_for_it(
    ask_as, provider, completion, name
):
    answer = completion("hello")
    answer["choices"][0]["message"] |= thinking(name, "let me think")
    provider.respond = lambda turn: turn.answer(answer)
    message = ask_as(name).json["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": "hello",
        "reasoning_content": "let me think",
    }


@pytest.mark.parametrize("name", EVERY)
def test_reasoning_is_estimated_once(ask_as, provider, name):
    provider.respond = saying(
        piece(**thinking(name, "let me think ")), piece(content="hello"), piece("stop"), DONE
    )
    ask_as(name, stream=True)
    here = ask_as.gateway.ledger.entries("alice")[-1]
    provider.respond = saying(piece(content="let me think hello"), piece("stop"), DONE)
    ask_as(name, stream=True)
    there = ask_as.gateway.ledger.entries("alice")[-1]
    assert here.estimated
    assert there.estimated
    assert abs(here.completion_tokens - there.completion_tokens) <= 1
    assert here.completion_tokens > 3


def test_a_provider_without_a_dialect_tells_its_reasoning_as_it_likes(ask_as, provider):
    provider.respond = saying(piece(reasoning="hm"), piece(content="hi", finish="stop"), DONE)
    reply = ask_as("generic", stream=True)
    assert told(reply, "reasoning") == "hm"
    assert told(reply, "reasoning_content") == ""


def test_reasoning_told_from_its_beginning_every_time_is_passed_on_once(ask_as, provider):
    provider.respond = saying(
        piece(**thinking("minimax", "let")),
        piece(**thinking("minimax", "let me")),
        piece(**thinking("minimax", "let me")),
        piece(**thinking("minimax", "let me think")),
        piece(content="hello", finish="stop"),
        DONE,
    )
    assert told(ask_as("minimax", stream=True), "reasoning_content") == "let me think"


def moved(field, *tellings, index=0):
    """The reasoning texts that come of what one stream tells under ``field``."""
    reasoning = Reasoning(field)
    chunks = [reasoning.moved(Chunk(piece(index=index, **{field: each}))) for each in tellings]
    return [chunk.choices[0]["delta"].get("reasoning_content", "") for chunk in chunks]


def texts(*words):
    return [{"text": word} for word in words]


def test_texts_that_grow_side_by_side_do_not_mix():
    assert moved("d", texts("a", "x"), texts("ab", "xy"), texts("abc", "xyz")) == ["ax", "by", "cz"]


def test_what_does_not_begin_as_before_is_a_piece_and_so_is_all_that_follows():
    tellings = [texts(word) for word in ("a", "ab", "xy", "xyz", "xyz", "a")]
    assert moved("d", *tellings) == ["a", "b", "xy", "xyz", "xyz", "a"]


def test_one_text_in_pieces_makes_no_pieces_of_another():
    tellings = [texts("a", "x"), texts("b", "xy"), texts("bc", "xyz")]
    assert moved("d", *tellings) == ["ax", "by", "bcz"]


def test_a_text_may_grow_from_nothing_and_stand_still():
    tellings = [texts(word) for word in ("", "le", "le", "", "let", "let me")]
    assert moved("d", *tellings) == ["", "le", "", "", "t", " me"]


def test_pieces_that_look_alike_are_all_told():
    assert moved("d", texts("a"), texts("b"), texts("bb"), texts("b")) == ["a", "b", "bb", "b"]


def test_answers_side_by_side_do_not_mix():
    reasoning = Reasoning("d")
    for index, text, new in [(0, "a", "a"), (1, "a", "a"), (0, "ab", "b"), (1, "ac", "c")]:
        chunk = reasoning.moved(Chunk(piece(index=index, d=texts(text))))
        assert chunk.choices[0]["delta"] == {"reasoning_content": new}


def test_what_has_no_text_stays():
    reasoning = Reasoning("d")
    delta = {"d": [{"text": "a"}, {"data": "…"}, "b"], "content": "c"}
    assert reasoning.moved(Chunk(piece(**delta))).choices[0]["delta"] == {
        "d": [{"data": "…"}, "b"],
        "content": "c",
        "reasoning_content": "a",
    }


def test_a_text_told_under_both_names_is_told_once():
    reasoning = Reasoning("reasoning")
    both = piece(reasoning="a", reasoning_content="a")
    assert reasoning.moved(Chunk(both)).choices[0]["delta"] == {"reasoning_content": "a"}
    old = piece(reasoning=None, reasoning_content="b")
    assert reasoning.moved(Chunk(old)).choices[0]["delta"] == {"reasoning_content": "b"}


odd = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.text(max_size=3),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(["r", "text", "delta", "message", "index"]), below)
    ),
    max_leaves=12,
)


@given(choices=st.lists(odd, max_size=2) | odd, kind=st.sampled_from([Chunk, Completion]))
def test_whatever_a_provider_answers_is_moved_or_left(choices, kind):
    before = kind({"choices": choices, "x": 1})
    shown = json.dumps(before)
    answer = Reasoning("r").moved(before)
    assert type(answer) is kind
    assert json.dumps(before) == shown
    assert len(answer.choices) == len(before.choices)


# --- answers that are asked for as a stream ---------------------------------------


def test_alibaba_is_asked_for_a_stream_and_the_caller_gets_one_piece(ask_as, provider):
    provider.respond = saying(
        piece(role="assistant", reasoning_content="let me "),
        piece(reasoning_content="think"),
        piece(content="hel"),
        piece(content="lo"),
        piece(finish="stop"),
        {"choices": [], "usage": USAGE, "system_fingerprint": "fp"},
        DONE,
    )
    reply = ask_as("alibaba", stream=False, stream_options={"include_usage": False})
    sent = provider.turns[0].json
    assert sent["stream"] is True
    assert sent["stream_options"] == {"include_usage": True}
    answer = reply.json
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "bot"
    assert answer["system_fingerprint"] == "fp"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "hello",
                "reasoning_content": "let me think",
            },
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert {name: answer["usage"][name] for name in USAGE} == USAGE
    row = ask_as.gateway.ledger.entries("alice")[-1]
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (7, 3, False)


def call(index=0, id="", name="", arguments=""):
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": id, "type": "function", "function": function}


@pytest.mark.parametrize("stream", [False, True])
def test_alibabas_empty_names_and_ids_do_not_reach_the_caller(ask_as, provider, stream):
    """Conformance 77."""
    provider.respond = saying(
        piece(role="assistant", content=None, tool_calls=[call(id="c1", name="look_up")]),
        piece(tool_calls=[call(arguments='{"q":')]),
        piece(tool_calls=[call(arguments=' "x"}')]),
        piece(finish="tool_calls"),
        DONE,
    )
    reply = ask_as("alibaba", stream=stream)
    whole = {"name": "look_up", "arguments": '{"q": "x"}'}
    if stream:
        calls = [
            entry
            for chunk in chunks_of(reply)
            for choice in chunk["choices"]
            for entry in choice["delta"].get("tool_calls", ())
        ]
        assert [entry.get("id") for entry in calls] == ["c1", None, None]
        assert "".join(entry["function"]["arguments"] for entry in calls) == whole["arguments"]
        assert [entry["function"].get("name") for entry in calls] == ["look_up", None, None]
    else:
        (only,) = reply.json["choices"][0]["message"]["tool_calls"]
        assert only == {"id": "c1", "type": "function", "function": whole}


def test_a_stream_that_breaks_under_an_answer_in_one_piece_costs_nothing(ask_as, provider):
    provider.respond = saying(piece(content="hel"))
    reply = ask_as("alibaba")
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert ask_as.gateway.ledger.entries("alice")[-1].cost == 0


def test_any_provider_can_be_asked_so(ask_as, provider):
    provider.respond = saying(piece(content="hi", finish="stop"), DONE)
    reply = ask_as("generic", dialect={"folds": True})
    assert told(reply, "content") == "hi"


# --- usage ------------------------------------------------------------------------

PLACES = {
    "an extra chunk": ("openai", [piece("stop"), {"choices": [], "usage": USAGE}]),
    "the finish chunk": ("deepseek", [{**piece("stop"), "usage": USAGE}]),
    "the choice": (
        "moonshot",
        [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]}],
    ),
    "every chunk, growing": (
        "vllm",
        [
            {**piece(content="x"), "usage": {"prompt_tokens": 7, "completion_tokens": 1}},
            {**piece("stop"), "usage": {**USAGE, "completion_tokens": 2}},
            {"choices": [], "usage": USAGE},
        ],
    ),
}


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_each_provider_tells_its_usage_in_a_place_of_its_own(ask_as, provider, place, asked):
    """Conformance 65, 66."""
    name, events = PLACES[place]
    provider.respond = saying(piece(content="hi"), *events, DONE)
    reply = ask_as(name, stream=True, stream_options={"include_usage": asked})
    *before, last = chunks_of(reply)
    if asked:
        assert all(chunk["usage"] is None and chunk["choices"] for chunk in before)
        assert last["choices"] == []
        assert {name: last["usage"][name] for name in USAGE} == USAGE
    else:
        assert b"usage" not in reply.read()
    row = ask_as.gateway.ledger.entries("alice")[-1]
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (7, 3, False)


@pytest.mark.parametrize("name", EVERY)
def test_usage_that_is_told_nowhere_is_estimated(ask_as, provider, name):
    """Conformance 66."""
    provider.respond = saying(piece(content="some words"), piece("stop"), DONE)
    reply = ask_as(name, stream=True, stream_options={"include_usage": True})
    *_, last = chunks_of(reply)
    row = ask_as.gateway.ledger.entries("alice")[-1]
    assert row.estimated
    assert last["usage"]["completion_tokens"] == row.completion_tokens > 0


def test_usage_is_found_where_groq_puts_it(ask_as, provider):
    last = {**piece("stop"), "x_groq": {"id": "req", "usage": USAGE}}
    provider.respond = saying(piece(content="hi"), last, DONE)
    ask_as("generic", stream=True)
    row = ask_as.gateway.ledger.entries("alice")[-1]
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (7, 3, False)


@pytest.mark.parametrize("groq", [None, [], "x", {"usage": None}, {"usage": {"x": 1}}])
def test_what_is_no_usage_there_is_none(groq):
    assert Chunk(choices=[], x_groq=groq).usage is None


# --- the last event of MiniMax ------------------------------------------------------


def test_minimaxs_last_event_repeats_nothing(ask_as, provider):
    whole = {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": "hello",
                    **thinking("minimax", "let me think"),
                },
            }
        ],
        "usage": USAGE,
        "base_resp": {"status_code": 0, "status_msg": ""},
    }
    provider.respond = saying(
        piece(**thinking("minimax", "let me ")),
        piece(**thinking("minimax", "think")),
        {**piece(content="hello"), "base_resp": {"status_code": 0, "status_msg": ""}},
        whole,
        DONE,
    )
    reply = ask_as("minimax", stream=True)
    assert told(reply, "content") == "hello"
    assert told(reply, "reasoning_content") == "let me think"
    assert {chunk["object"] for chunk in chunks_of(reply)} == {"chat.completion.chunk"}
    assert b'"message"' not in reply.read()
    row = ask_as.gateway.ledger.entries("alice")[-1]
    assert (row.prompt_tokens, row.completion_tokens) == (7, 3)
