"""What a call costs, wherever its provider tells the usage, and when it tells nonsense."""

from __future__ import annotations

from typing import Any

import pytest

ANSWER = "hello there, all is well"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def chunk(content: str | None = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {
        "id": "up",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **fields,
    }


def growing(tokens: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": 7, "completion_tokens": tokens}}


PLACES = {
    "a chunk of its own": [chunk(ANSWER), chunk(finish="stop"), {"choices": [], "usage": USAGE}],
    "a chunk without choices": [chunk(ANSWER), chunk(finish="stop"), {"usage": USAGE}],
    "the finish chunk": [chunk(ANSWER), chunk(finish="stop", usage=USAGE)],
    "the choice": [
        chunk(ANSWER),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]},
    ],
    "the choice and a chunk of its own": [
        chunk(ANSWER),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]},
        {"choices": [], "usage": USAGE},
    ],
    "every chunk, growing": [
        chunk("hello", **growing(1)),
        chunk(" there, all is well", **growing(2)),
        chunk(finish="stop", **growing(3)),
    ],
    "every chunk and one more": [
        chunk("hello", **growing(1)),
        chunk(" there, all is well", **growing(3)),
        chunk(finish="stop"),
        {"choices": [], "usage": USAGE},
    ],
    "x_groq": [chunk(ANSWER), chunk(finish="stop", x_groq={"id": "req", "usage": USAGE})],
    "beside nulls": [chunk(ANSWER, usage=None), chunk(finish="stop", usage=USAGE)],
    "the first chunk alone": [chunk(ANSWER, usage=USAGE), chunk(finish="stop")],
    "a whole answer at the end": [
        chunk(ANSWER),
        {"choices": [{"message": {"content": ANSWER}, "finish_reason": "stop"}], "usage": USAGE},
    ],
}


@pytest.mark.parametrize("place", PLACES)
def test_the_usage_is_found_wherever_it_stands(make_stage: Any, place: str) -> None:
    """Conformance 66."""

    def play(line: Any) -> None:
        line.stream()
        for value in [*PLACES[place], "[DONE]"]:
            line.event(value)

    stage = make_stage(play)
    stage.assert_answered(True)
    shown = stage.assert_answered(True, stream_options={"include_usage": True}).chunks[-1]["usage"]
    assert {name: shown[name] for name in USAGE} == USAGE


NONSENSE: dict[str, Any] = {
    "nothing": None,
    "an empty object": {},
    "a list": [7, 3],
    "a number": 10,
    "a total alone": {"total_tokens": 10},
    "half": {"prompt_tokens": 7},
    "nulls": {"prompt_tokens": None, "completion_tokens": None},
    "text": {"prompt_tokens": "7", "completion_tokens": "3"},
    "fractions": {"prompt_tokens": 7.5, "completion_tokens": 3.5},
    "truths": {"prompt_tokens": True, "completion_tokens": True},
    "less than nothing": {"prompt_tokens": 7, "completion_tokens": -3},
    "a thousand million": {"prompt_tokens": 7, "completion_tokens": 10**9},
    "more than any machine counts": {"prompt_tokens": 10**30, "completion_tokens": 3},
}


def answer(line: Any, usage: Any) -> None:
    """A good answer with any usage."""
    if line.streams:
        line.stream()
        for value in [chunk(ANSWER), chunk(finish="stop", usage=usage), "[DONE]"]:
            line.event(value)
    else:
        line.whole(line.completion(ANSWER, usage=usage))


@pytest.mark.parametrize("name", NONSENSE)
def test_a_usage_that_makes_no_sense_is_estimated_and_flagged(make_stage: Any, name: str) -> None:
    """Conformance 66 and 103."""
    stage = make_stage(lambda line: answer(line, NONSENSE[name]))
    for fields in {"stream": False}, {"stream": True}, SHOWN:
        seen = stage.assert_answered(text=ANSWER, told=None, **fields)
        assert stage.row_of(seen).cost > 0
        shown = seen.chunks[-1].get("usage")
        assert (shown is None) == (fields == {"stream": True})
        assert shown is None or shown["total_tokens"] == stage.row_of(seen).prompt_tokens + (
            stage.row_of(seen).completion_tokens
        )


SHOWN = {"stream": True, "stream_options": {"include_usage": True}}

FIGURES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "zeros": ({"prompt_tokens": 0, "completion_tokens": 0}, (0, 0)),
    "a prompt alone": ({"prompt_tokens": 7, "completion_tokens": 0}, (7, 0)),
    "a wrong total": ({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 99}, (7, 3)),
    "details of null": (
        {**USAGE, "prompt_tokens_details": None, "completion_tokens_details": None},
        (7, 3),
    ),
    "details of another kind": ({**USAGE, "prompt_tokens_details": [1]}, (7, 3)),
    "parts within": (
        {
            **USAGE,
            "prompt_tokens_details": {"cached_tokens": 5},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
        (7, 3),
    ),
    "parts larger than the whole": (
        {
            **USAGE,
            "prompt_cache_hit_tokens": 500,
            "completion_tokens_details": {"reasoning_tokens": 200},
        },
        (7, 3),
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_that_make_sense_are_billed_as_told(make_stage: Any, name: str) -> None:
    """Conformance 66 and 102. A told zero is a zero."""
    usage, told = FIGURES[name]
    stage = make_stage(lambda line: answer(line, usage))
    for fields in {"stream": False}, {"stream": True}, SHOWN:
        stage.assert_answered(text=ANSWER, told=told, **fields)


def test_an_answer_that_broke_costs_no_more_than_was_told_or_handed_over(make_stage: Any) -> None:
    def play(line: Any) -> None:
        line.stream()
        line.say("hello", **growing(1))
        line.say(" there, all is well", **growing(2))

    stage = make_stage(play)
    body, reply = stage.send(True)
    assert b"upstream_error" in reply.read()
    (row,) = stage.gateway.ledger.entries("alice")
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (7, 2, True)
