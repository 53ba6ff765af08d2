"""What callers see of providers that each do it a little differently."""

import copy
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from oneai_middleware.errors import APIError, BackendUnavailable
from oneai_middleware.protocol import json
from oneai_middleware.protocol.chat import Chunk, Completion
from oneai_middleware.protocol.normalise import StreamNormaliser, normalise_completion
from oneai_middleware.protocol.usage import Usage

USAGE = Usage(10, 5, cached_tokens=4)
OURS = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700, "model": "public"}


def normaliser(include_usage=False):
    return StreamNormaliser("public", "chatcmpl-1", 1700, include_usage)


def sent(*items, include_usage=False):
    """All that a caller gets for ``items`` and a complete end."""
    stream = normaliser(include_usage)
    chunks = [chunk for item in items for chunk in stream.chunk(item)]
    return chunks + stream.finish(USAGE)


def delta(**fields):
    return Chunk(choices=[{"index": 0, "delta": fields, "finish_reason": None}])


def calls(*entries, finish_reason=None):
    return Chunk(
        choices=[
            {"index": 0, "delta": {"tool_calls": list(entries)}, "finish_reason": finish_reason}
        ]
    )


def entry(index, id=None, name=None, arguments=None, **extras):
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": id, "type": "function", "function": function, **extras}


def deltas(chunks):
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def reasons(chunks):
    found = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    return [reason for reason in found if reason is not None]


def entries(chunks):
    return [call for found in deltas(chunks) for call in found.get("tool_calls", [])]


# --- any stream whatsoever ---------------------------------------------------

JUNK = st.sampled_from([None, True, 7, "", "x", [], {}, [None], {"a": None}])
TEXT = st.sampled_from([None, "", "a", "é\n", "\u2028"])
CALL = st.fixed_dictionaries(
    {},
    optional={
        "index": st.sampled_from([0, 1, 5, -1, None, "0", True]),
        "id": st.sampled_from([None, "", "c1", "c2", 3]),
        "type": st.sampled_from([None, "", "function", "custom"]),
        "function": JUNK
        | st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from([None, "", "look", "find", 3]),
                "arguments": st.sampled_from([None, "", '{"a":', "1}", {"a": 1}, [], 3, "\ud800"])
                | st.just({"a": "\ud800"}),
            },
        ),
        "extra_content": JUNK,
    },
)
DELTA = JUNK | st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from([None, "", "assistant", "user"]),
        "content": TEXT | JUNK,
        "reasoning_content": TEXT,
        "tool_calls": JUNK | st.lists(CALL | st.none(), max_size=3),
    },
)
REASON = st.sampled_from(
    [None, "", "null", "stop", "length", "tool_calls", "sensitive", "odd", 7, "network_error"]
)
USAGES = st.sampled_from([None, {}, {"prompt_tokens": 1, "completion_tokens": 2}, 7])
CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "index": st.sampled_from([0, 0, 1, 2, None, "1", -1, False]),
        "delta": DELTA,
        "message": DELTA,
        "finish_reason": REASON,
        "usage": USAGES,
        "logprobs": JUNK,
    },
)
CHUNK = st.fixed_dictionaries(
    {},
    optional={
        "id": JUNK,
        "object": JUNK,
        "created": JUNK,
        "model": JUNK,
        "error": st.none(),
        "usage": USAGES,
        "system_fingerprint": JUNK,
        "x_vendor": JUNK,
        "choices": JUNK | st.lists(CHOICE | st.none(), max_size=3),
    },
).map(Chunk)
ITEMS = st.lists(st.one_of(CHUNK, CHUNK, CHUNK, st.text(), st.just(USAGE), st.none()), max_size=8)


def check_chunks(chunks):
    """What must hold of a stream at any moment."""
    roles, ends = Counter(), Counter()
    opened, named = set(), set()
    for chunk in chunks:
        assert OURS.items() <= chunk.items()
        assert "error" not in chunk
        for choice in chunk["choices"]:
            index = choice["index"]
            assert type(index) is int
            assert "usage" not in choice
            found = choice["delta"]
            assert found.get("role", "assistant") == "assistant"
            assert isinstance(found.get("content"), str | None)
            roles[index] += "role" in found
            ends[index] += choice["finish_reason"] is not None
            assert choice["finish_reason"] != ""
            assert roles[index] == 1
            check_calls(index, found.get("tool_calls", []), opened, named)
    assert all(count <= 1 for count in ends.values())
    return roles, ends


def check_calls(index, calls, opened, named):
    places = [(index, call["index"]) for call in calls]
    assert len(set(places)) == len(places)
    for place, call in zip(places, calls, strict=True):
        assert type(call["index"]) is int
        assert ("id" in call) == ("type" in call) == (place not in opened)
        assert all(call[name] and isinstance(call[name], str) for name in {"id", "type"} & {*call})
        opened.add(place)
        function = call.get("function", {})
        assert isinstance(function.get("arguments", ""), str)
        if "name" in function:
            assert function["name"]
            assert place not in named
            named.add(place)


@given(ITEMS, st.booleans())
def test_whatever_a_provider_streams_the_caller_gets_a_well_formed_stream(items, include_usage):
    """Conformance 60, 61, 62, 64, 65, 77."""
    before = copy.deepcopy(items)
    stream, chunks = normaliser(include_usage), []
    try:
        for item in items:
            chunks += stream.chunk(item)
        *chunks, closing = chunks + stream.finish(USAGE)
    except APIError:
        check_chunks(chunks)
        return
    finally:
        assert items == before
    if include_usage:
        assert closing == {**OURS, "choices": [], "usage": USAGE.as_dict()}
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        chunks.append(closing)
        assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)
    roles, ends = check_chunks(chunks)
    assert roles == ends
    assert set(roles.values()) == {1}


@given(ITEMS)
def test_a_stream_that_is_normalised_twice_is_the_same_stream(items):
    try:
        once = sent(*items)
    except APIError:
        return
    assert sent(*once) == once


@given(st.lists(st.tuples(st.integers(0, 2), st.text()), max_size=8))
def test_no_text_is_lost_or_changed(pieces):
    expected = defaultdict(str)
    for index, text in pieces:
        expected[index] += text
    got = defaultdict(str)
    for chunk in sent(*(Chunk.text(text, index=index) for index, text in pieces)):
        for choice in chunk["choices"]:
            got[choice["index"]] += choice["delta"].get("content", "")
    assert got == (expected or {0: ""})


# --- roles, text, extras -----------------------------------------------------


def test_a_string_becomes_a_whole_stream():
    assert sent("Hello") == [
        {
            **OURS,
            "choices": [
                {
                    "index": 0,
                    "delta": {"role": "assistant", "content": "Hello"},
                    "finish_reason": None,
                }
            ],
        },
        {**OURS, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]


def test_the_role_is_sent_once_for_each_answer_whether_it_is_repeated_or_never_told():
    """Conformance 61."""
    repeated = sent(delta(role="assistant", content="a"), delta(role="assistant", content="b"))
    assert deltas(repeated) == [{"role": "assistant", "content": "a"}, {"content": "b"}, {}]
    both = sent(Chunk.text("a"), Chunk.text("b", index=1))
    assert [found.get("role") for found in deltas(both)] == ["assistant", "assistant", None, None]


def test_unknown_fields_survive_at_every_level():
    """Conformance 52."""
    choice = {"index": 0, "delta": {"content": "a", "reasoning_content": "r"}, "matched_stop": 7}
    groq = {"id": "1", "usage": {"prompt_tokens": 1}}  # the usage comes where it belongs
    chunk = sent(Chunk(system_fingerprint="fp", x_groq=groq, choices=[choice]))[0]
    assert (chunk["system_fingerprint"], chunk["x_groq"]) == ("fp", {"id": "1"})
    assert chunk["choices"][0]["matched_stop"] == 7
    assert chunk["choices"][0]["delta"]["reasoning_content"] == "r"


def test_a_missing_index_is_supplied_by_position():
    chunk = Chunk(choices=[{"delta": {"content": "a"}}, {"delta": {"content": "b"}}])
    assert [choice["index"] for choice in sent(chunk)[0]["choices"]] == [0, 1]


def test_choices_of_null_are_no_choices():
    assert normaliser().chunk(Chunk(choices=None)) == []


def test_a_delta_that_says_nothing_is_not_sent():
    stream = normaliser()
    assert stream.chunk(delta()) != []
    assert stream.chunk(delta()) == []
    assert stream.chunk(delta(role="assistant")) == []


def test_a_whole_message_at_the_end_is_not_repeated_but_its_reason_counts():
    message = {"role": "assistant", "content": "Hello"}
    last = Chunk(
        object="chat.completion",
        choices=[{"index": 0, "message": message, "finish_reason": "length"}],
    )
    chunks = sent(Chunk.text("Hel"), Chunk.text("lo"), last)
    assert "".join(found.get("content", "") for found in deltas(chunks)) == "Hello"
    assert reasons(chunks) == ["length"]


def test_a_whole_message_that_is_all_there_is_becomes_the_delta():
    message = {"role": "assistant", "content": "Hello"}
    chunks = sent(delta(role="assistant", content=""), Chunk(choices=[{"message": message}]))
    assert deltas(chunks) == [{"role": "assistant", "content": ""}, {"content": "Hello"}, {}]


# --- the end -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("sensitive", "content_filter"),
        ("model_context_window_exceeded", "length"),
        ("something_new", "something_new"),
    ],
)
def test_a_finish_reason_is_told_in_the_words_clients_know(told, meant):
    assert reasons(sent("a", Chunk.finish(told))) == [meant]


def test_an_empty_finish_reason_ends_nothing():
    assert reasons(sent(Chunk.finish(""), "a", Chunk.finish("length"))) == ["length"]


def test_only_the_first_finish_reason_of_an_answer_is_sent():
    """Conformance 62."""
    assert reasons(sent("a", Chunk.finish("length"), Chunk.finish("stop"))) == ["length"]


def test_an_answer_without_a_finish_reason_gets_the_one_that_fits():
    assert reasons(sent("a")) == ["stop"]
    assert reasons(sent(calls(entry(0, "c1", "look", "{}")))) == ["tool_calls"]
    assert reasons(sent("a", Chunk.text("b", index=1), Chunk.finish("length"))) == [
        "length",
        "stop",
    ]


def test_a_stream_of_nothing_is_an_empty_answer():
    assert deltas(sent()) == [{"role": "assistant", "content": ""}, {}]
    assert reasons(sent()) == ["stop"]


# --- usage -------------------------------------------------------------------

RAW = {"prompt_tokens": 1, "completion_tokens": 2}
PLACES = [
    pytest.param([Chunk(choices=[], usage=RAW)], id="a chunk of its own"),
    pytest.param([Chunk(choices=[], usage=RAW, system_fingerprint="fp")], id="with a fingerprint"),
    pytest.param([Chunk({**Chunk.finish(), "usage": RAW})], id="the finish chunk"),
    pytest.param(
        [Chunk(choices=[{"delta": {}, "finish_reason": "stop", "usage": RAW}])], id="the choice"
    ),
    pytest.param([Chunk({**Chunk.text("b"), "usage": RAW})] * 2, id="every chunk"),
    pytest.param([USAGE], id="an item"),
    pytest.param([], id="nowhere"),
]


@pytest.mark.parametrize("items", PLACES)
def test_who_did_not_ask_for_usage_never_sees_the_word(items):
    """Conformance 64."""
    chunks = sent("a", *items)
    assert all(chunk["choices"] for chunk in chunks)
    assert b"usage" not in b"".join(map(json.encode, chunks))


@pytest.mark.parametrize("items", PLACES)
def test_who_asked_for_usage_gets_it_once_at_the_end(items):
    """Conformance 65, 66."""
    *chunks, closing = sent("a", *items, include_usage=True)
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert all(chunk["choices"] and "usage" not in chunk["choices"][0] for chunk in chunks)
    assert closing == {**OURS, "choices": [], "usage": USAGE.as_dict()}


def test_a_chunk_without_choices_that_says_something_reaches_only_who_asked_for_usage():
    results = Chunk(choices=[], prompt_filter_results=[{"prompt_index": 0}])
    assert normaliser().chunk(results) == []
    (chunk,) = normaliser(include_usage=True).chunk(results)
    assert chunk == {**OURS, **results, "usage": None}


# --- tool calls --------------------------------------------------------------


def test_a_tool_call_is_introduced_once_and_then_only_continued():
    """Conformance 77."""
    chunks = sent(
        calls(entry(0, "c1", "look", "")),
        calls(entry(0, "c1", "look", '{"a"')),
        calls(entry(0, "", "", ":1")),
        calls(entry(0, None, None, "}")),
        Chunk.finish("stop"),
    )
    assert entries(chunks) == [
        {
            "index": 0,
            "id": "c1",
            "type": "function",
            "function": {"name": "look", "arguments": ""},
        },
        {"index": 0, "function": {"arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ":1"}},
        {"index": 0, "function": {"arguments": "}"}},
    ]
    assert reasons(chunks) == ["tool_calls"]


def test_the_official_clients_helper_assembles_what_was_repaired():
    """Conformance 77."""
    chunks = sent(
        delta(role="assistant", content=None, tool_calls=None),
        calls(entry(0, "c1", "look", "{")),
        calls(entry(0, "c1", "look", '"a"'), entry(0, "", None, ":1")),
        calls(entry(None, "", None, "}"), entry(1, "c2", "find", {"b": 2})),
        Chunk.finish("stop"),
        include_usage=True,
    )
    state = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    completion = state.get_final_completion()
    (choice,) = completion.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "tool_calls")
    assert [
        (call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls
    ] == [("c1", "look", '{"a":1}'), ("c2", "find", '{"b":2}')]
    assert completion.usage.total_tokens == 15


def test_a_continuation_that_says_nothing_is_not_sent():
    stream = normaliser()
    stream.chunk(calls(entry(0, "c1", "look", "{}")))
    assert stream.chunk(calls(entry(0, "c1", "look", None))) == []


def test_missing_indexes_are_supplied_in_the_order_of_the_ids():
    chunks = sent(
        calls(entry(None, "c1", "look", "1")),
        calls(entry(None, "c2", "find", "2")),
        calls(entry(None, "c1", None, "3")),
        calls(entry(None, "c2", None, "4")),
        calls(entry(None, None, None, "5")),
    )
    assert [call["index"] for call in entries(chunks)] == [0, 1, 0, 1, 1]


def test_calls_with_neither_index_nor_id_are_told_apart_by_their_names():
    chunks = sent(calls(entry(None, None, "look", "{}"), entry(None, None, "look", "{}")))
    found = entries(chunks)
    assert [call["index"] for call in found] == [0, 1]
    assert found[0]["id"] != found[1]["id"]


def test_two_entries_of_one_call_travel_in_two_chunks_and_the_end_in_the_last():
    """Conformance 77."""
    first, second = normaliser().chunk(
        calls(
            entry(0, "c1", "look", "{"),
            entry(1, "c2", "find", "{}"),
            entry(0, "c1", "look", "}"),
            finish_reason="stop",
        )
    )
    assert [call["index"] for call in entries([first])] == [0, 1]
    assert entries([second]) == [{"index": 0, "function": {"arguments": "}"}}]
    assert [reasons([chunk]) for chunk in (first, second)] == [[], ["tool_calls"]]


def test_arguments_that_come_as_an_object_become_a_string():
    """Conformance 53."""
    (call,) = entries(sent(calls(entry(0, "c1", "look", {"city": "Köln"}))))
    assert call["function"]["arguments"] == '{"city":"Köln"}'


def test_arguments_that_json_cannot_say_are_the_providers_fault():
    with pytest.raises(BackendUnavailable):
        sent(calls(entry(0, "c1", "look", {"city": "\ud800"})))


def test_a_call_without_an_id_gets_one_and_a_late_name_is_still_sent():
    chunks = sent(calls(entry(0, None, None, "")), calls(entry(0, "c1", "look", "{}")))
    first, second = entries(chunks)
    assert first["id"].startswith("call_")
    assert second == {"index": 0, "function": {"name": "look", "arguments": "{}"}}


def test_a_vendors_own_fields_of_a_call_survive():
    (call,) = entries(sent(calls(entry(0, "c1", "look", "{}", extra_content={"a": 1}))))
    assert call["extra_content"] == {"a": 1}


# --- whole completions -------------------------------------------------------


def whole(raw):
    return normalise_completion(
        Completion(raw), model="public", id="chatcmpl-1", created=1700, usage=USAGE
    )


def test_a_completion_is_ours_and_keeps_what_we_do_not_know():
    """Conformance 50, 51, 52."""
    raw = {
        "id": "theirs",
        "object": "odd",
        "model": "upstream",
        "citations": ["a"],
        "error": None,
        "usage": RAW,
        "choices": [
            {"message": {"content": "a", "reasoning_content": "r"}, "usage": RAW, "flagged": 1}
        ],
    }
    before = copy.deepcopy(raw)
    assert whole(raw) == {
        **OURS,
        "object": "chat.completion",
        "citations": ["a"],
        "usage": USAGE.as_dict(),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a", "reasoning_content": "r"},
                "finish_reason": "stop",
                "logprobs": None,
                "flagged": 1,
            }
        ],
    }
    assert raw == before


def test_the_tool_calls_of_a_completion_are_repaired_like_those_of_a_stream():
    """Conformance 53."""
    message = {
        "role": None,
        "content": None,
        "tool_calls": [
            {"id": "c1", "function": {"name": "look", "arguments": {"a": 1}}},
            {"id": "", "type": "function", "function": {"name": "find", "arguments": None}},
        ],
    }
    (choice,) = whole({"choices": [{"message": message, "finish_reason": "stop"}]})["choices"]
    first, second = choice["message"]["tool_calls"]
    assert first == {
        "id": "c1",
        "type": "function",
        "function": {"name": "look", "arguments": '{"a":1}'},
    }
    assert second["id"].startswith("call_")
    assert second["function"] == {"name": "find", "arguments": "{}"}
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["role"] == "assistant"


@pytest.mark.parametrize("choices", [None, [], [None], {}, "no", [{}], [{"message": None}]])
def test_a_completion_without_an_answer_is_the_providers_fault(choices):
    """Conformance 56."""
    with pytest.raises(BackendUnavailable):
        whole({"choices": choices})


@given(CHUNK)
def test_whatever_a_provider_answers_the_caller_gets_a_well_formed_completion(raw):
    """Conformance 50, 53."""
    try:
        completion = whole(raw)
    except APIError:
        return
    for choice in completion["choices"]:
        assert type(choice["index"]) is int
        assert choice["finish_reason"]
        assert isinstance(choice["message"]["content"], str | None)
        assert choice["message"]["role"] == "assistant"
        for call in choice["message"].get("tool_calls") or []:
            assert call["id"]
            assert call["type"] == "custom" or isinstance(call["function"]["arguments"], str)
