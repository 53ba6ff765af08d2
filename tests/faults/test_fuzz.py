"""Whatever a provider sends, the caller gets a valid answer or an error, paid rightly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

INPUT, OUTPUT = 1_000, 2_000

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["stop", "tool_calls", "network_error", "assistant", "\ud800", "\u2028"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["index", "delta", "message", "content", "role", "tool_calls", "function", "name"]
                + ["arguments", "id", "type", "finish_reason", "usage", "prompt_tokens", "error"]
                + ["completion_tokens", "choices", "reasoning_content", "base_resp", "status_code"]
                + ["refusal", "x_groq", "code", "logprobs"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def often(usual: Any) -> Any:
    """``usual`` at most times, or anything."""
    return st.one_of(usual, usual, usual, ANYTHING)


TEXT = often(st.text(max_size=8))
FUNCTION = often(st.fixed_dictionaries({}, optional={"name": TEXT, "arguments": TEXT}))
CALL = often(
    st.fixed_dictionaries(
        {}, optional={"index": often(st.integers(0, 3)), "id": TEXT, "function": FUNCTION}
    )
)
SAID = often(
    st.fixed_dictionaries(
        {},
        optional={
            "role": TEXT,
            "content": TEXT,
            "reasoning_content": TEXT,
            "refusal": TEXT,
            "tool_calls": often(st.lists(CALL, max_size=3)),
        },
    )
)
CHOICE = often(
    st.fixed_dictionaries(
        {},
        optional={
            "index": often(st.integers(0, 2)),
            "delta": SAID,
            "message": SAID,
            "finish_reason": often(st.sampled_from([None, "stop", "length", "", "tool_calls"])),
        },
    )
)
USAGE = often(
    st.fixed_dictionaries(
        {"prompt_tokens": st.integers(0, 50), "completion_tokens": st.integers(0, 50)}
    )
)
ANSWER = often(
    st.fixed_dictionaries(
        {"choices": often(st.lists(CHOICE, max_size=3))},
        optional={"usage": USAGE, "id": ANYTHING, "error": ANYTHING, "extra": ANYTHING},
    )
)


def assert_is_valid(stage: Any, seen: Any) -> None:
    row = stage.row_of(seen)
    assert seen.is_over
    assert row.outcome == (seen.code or "answered")
    assert row.cost == row.prompt_tokens * INPUT + row.completion_tokens * OUTPUT
    assert seen.is_done or seen.texts or row.cost == 0
    assert stage.gateway.ledger.balance("alice").held == 0


@pytest.fixture
def stage(make_stage: Any) -> Any:
    """One stage for all examples, whose play changes."""
    return make_stage(lambda line: None, account={"tier": "enterprise"})


@pytest.mark.parametrize("asked", [False, True])
@given(values=st.lists(ANSWER, max_size=5), is_done=st.booleans())
def test_any_events_make_a_valid_stream(
    stage: Any, asked: bool, values: list[Any], is_done: bool
) -> None:
    def play(line: Any) -> None:
        line.stream()
        for value in [*values, *["[DONE]"] * is_done]:
            line.event(value)

    stage.plays["p0"] = play
    assert_is_valid(stage, stage.see(True, stream_options={"include_usage": asked}))


@pytest.mark.parametrize("stream", [False, True])
@given(value=ANSWER, status=st.sampled_from([200, 200, 200, 400, 429, 500]))
def test_any_object_makes_a_valid_answer(stage: Any, stream: bool, value: Any, status: int) -> None:
    stage.plays["p0"] = lambda line: line.whole(value, status=f"{status} So")
    assert_is_valid(stage, stage.see(stream))


# --- bytes --------------------------------------------------------------------------


def reply(kind: str, *parts: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return head.encode() + pieces + b"0\r\n\r\n"


def delta(**fields: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, **fields}]}).encode()


REPLIES = {
    True: reply(
        "text/event-stream",
        delta(delta={"content": "né 你好"}),
        delta(delta={"content": " and more"}),
        delta(delta={}, finish_reason="stop"),
        b"data: [DONE]\n\n",
    ),
    False: reply("application/json", b'{"choices": [{"message": {"content": "hello"}}]}'),
}
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 1000),
        st.integers(0, 3),
        st.sampled_from([b"", b"\n", b"\r\n", b"\0", b"\xff", b":", b"{", b'"', b"9"])
        | st.binary(max_size=3),
    ),
    max_size=3,
)


@pytest.mark.parametrize("stream", [False, True])
@given(changes=CHANGES, cut=st.none() | st.integers(0, 1000))
def test_a_reply_that_was_damaged_on_its_way_is_a_valid_answer_or_an_error(
    stage: Any, stream: bool, changes: list[tuple[int, int, bytes]], cut: int | None
) -> None:
    data = REPLIES[stream]
    for place, length, other in changes:
        place %= len(data)
        data = data[:place] + other + data[place + length :]
    stage.plays["p0"] = lambda line: line.raw(data[:cut])
    assert_is_valid(stage, stage.see(stream))
