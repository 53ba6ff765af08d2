"""One completion out of a stream."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.errors import BackendUnavailable
from oneai_middleware.protocol.chat import Chunk
from oneai_middleware.protocol.gather import gather
from oneai_middleware.protocol.normalise import StreamNormaliser
from oneai_middleware.protocol.usage import Usage


class Source:
    """Items that remember whether they were closed, and may fail at the end."""

    def __init__(self, *items, failure=None):
        self.items = items
        self.failure = failure
        self.closed = 0

    def __iter__(self):
        yield from self.items
        if self.failure is not None:
            raise self.failure

    def close(self):
        self.closed += 1


def choice(**fields):
    return Chunk(choices=[{"index": 0, "delta": {}, "finish_reason": None, **fields}])


def delta(**fields):
    return choice(delta=fields)


def message(*items):
    (found,) = gather(items)["choices"]
    return found["message"]


def test_strings_become_one_answer():
    assert gather(["Hel", None, "lo"]) == {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
    }


def test_an_empty_stream_is_an_answer_without_text():
    (found,) = gather([])["choices"]
    assert found["message"] == {"role": "assistant", "content": ""}
    assert found["finish_reason"] == "stop"


def test_text_reasoning_and_other_strings_are_joined_each_for_itself():
    found = message(
        delta(role="assistant", content=None, reasoning_content="Let "),
        delta(content=None, reasoning_content="me see"),
        delta(content="No", refusal="I "),
        delta(content=".", refusal="won't", reasoning_details=[1]),
        delta(reasoning_details=[2], score=1),
        delta(score=2),
    )
    assert found == {
        "role": "assistant",
        "content": "No.",
        "reasoning_content": "Let me see",
        "refusal": "I won't",
        "reasoning_details": [1, 2],
        "score": 2,
    }


def test_each_answer_is_gathered_by_its_index():
    chunks = [Chunk.text("b", index=1), Chunk.text("a"), Chunk.finish("length", index=1)]
    completion = gather(chunks)
    assert [
        (found["index"], found["message"]["content"], found["finish_reason"])
        for found in completion["choices"]
    ] == [(0, "a", "stop"), (1, "b", "length")]


def test_tool_calls_are_put_together_by_their_index():
    """Conformance 53."""
    (found,) = gather(
        [
            delta(
                tool_calls=[
                    {"index": 1, "id": "c2", "function": {"name": "find", "arguments": "{}"}},
                    {"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"a"'}},
                ]
            ),
            delta(tool_calls=[{"index": 0, "id": "c1", "function": {"arguments": ":1}"}}]),
        ]
    )["choices"]
    assert found["message"]["content"] is None
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "find", "arguments": "{}"}},
    ]


RAW = {"prompt_tokens": 1, "completion_tokens": 2}


@pytest.mark.parametrize(
    "items",
    [
        [Usage(1, 2)],
        [Chunk(choices=[], usage=RAW)],
        [choice(finish_reason="stop", usage=RAW)],
        [Chunk({**Chunk.text("a"), "usage": {**RAW, "completion_tokens": 1}}), Usage(1, 2)],
        [Usage(7, 7), Chunk({**Chunk.finish(), "usage": RAW}), Chunk.text("a")],
    ],
)
def test_the_last_usage_told_is_the_usage(items):
    """Conformance 66."""
    completion = gather(items)
    assert completion.usage == Usage(1, 2)
    assert completion["usage"]["total_tokens"] == 3


def test_usage_that_nobody_told_is_absent():
    assert "usage" not in gather(["a", Chunk(choices=[], usage=None)])
    assert "usage" not in gather(["a", Chunk(choices=[], usage={"prompt_tokens": -1})])


def test_the_fields_beside_the_choices_are_kept():
    """Conformance 52."""
    completion = gather(
        [
            Chunk({**Chunk.text("a"), "id": "theirs", "system_fingerprint": "fp"}),
            Chunk({**Chunk.finish(), "system_fingerprint": None, "citations": ["c"]}),
            choice(matched_stop=7),
        ]
    )
    assert completion["id"] == "theirs"
    assert completion["system_fingerprint"] == "fp"
    assert completion["citations"] == ["c"]
    assert completion["choices"][0]["matched_stop"] == 7


def test_logprobs_are_strung_together():
    (found,) = gather(
        [
            choice(logprobs={"content": [{"token": "a"}], "refusal": None}),
            choice(logprobs=None),
            choice(logprobs={"content": [{"token": "b"}]}),
        ]
    )["choices"]
    assert found["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_the_source_is_closed_at_the_end():
    source = Source("a")
    gather(source)
    assert source.closed == 1


def test_the_source_is_closed_when_it_fails():
    source = Source("a", failure=BackendUnavailable("broke off"))
    with pytest.raises(BackendUnavailable):
        gather(source)
    assert source.closed == 1


PIECES = st.lists(st.tuples(st.integers(0, 2), st.text()), max_size=10)


@given(PIECES)
def test_what_a_stream_says_is_what_its_completion_says(pieces):
    expected = defaultdict(str)
    for index, text in pieces:
        expected[index] += text
    chunks = [Chunk.text(text, index=index) for index, text in pieces]
    stream = StreamNormaliser("public", "chatcmpl-1", 1700, include_usage=True)
    normalised = [found for chunk in chunks for found in stream.chunk(chunk)]
    normalised += stream.finish(Usage(1, 2))
    completion = gather(normalised)
    assert {found["index"]: found["message"]["content"] for found in completion["choices"]} == (
        expected or {0: ""}
    )
    assert completion.usage == Usage(1, 2)
    assert gather(chunks)["choices"] == completion["choices"]
