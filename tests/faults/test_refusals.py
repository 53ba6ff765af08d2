"""Replies by which a provider refuses, and what each means for the caller."""

from __future__ import annotations

import json
from typing import Any

import pytest

BAD, BUSY, LATE, SHUT, WRONG = (
    "upstream_error",
    "model_overloaded",
    "upstream_timeout",
    "provider_unavailable",
    "invalid_value",
)
CODES = {
    BAD: [201, 202, 300, 500, 501, 502, 505, 520, 599],
    BUSY: [429, 503, 529],
    LATE: [408, 504],
    SHUT: [401, 402, 403, 404, 405],
    WRONG: [400, 406, 409, 410, 413, 418, 422, 451],
}
STATUSES = {status: code for code, statuses in CODES.items() for status in statuses}

BODIES = {
    "an error": lambda line: json.dumps({"error": {"message": line.private}}).encode(),
    "an error of text": lambda line: json.dumps({"error": line.private}).encode(),
    "a web page": lambda line: f"<html><title>{line.private}</title>".encode(),
    "plain text": lambda line: line.private.encode(),
    "nothing": lambda line: b"",
    "what is no UTF-8": lambda line: b'{"error": {"message": "\xff\xfe"}}',
    "a list": lambda line: b"[[]]",
    "a good answer": lambda line: json.dumps(line.completion()).encode(),
}

CONTEXT, CONTENT = "context_length_exceeded", "content_filter"
SIGNS: dict[str, list[tuple[int, dict[str, Any], str]]] = {
    "openai": [
        (429, {"error": {"message": "No credit", "code": "insufficient_quota"}}, SHUT),
        (429, {"error": {"message": "Slow down", "code": "rate_limit_exceeded"}}, BUSY),
        (404, {"error": {"message": "Gone", "code": "model_not_found"}}, SHUT),
        (400, {"error": {"message": "Too long", "code": CONTEXT}}, CONTEXT),
        (400, {"error": {"message": "No", "code": "content_filter"}}, CONTENT),
    ],
    "deepseek": [
        (
            402,
            {"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}},
            SHUT,
        ),
        (400, {"error": {"message": "Model Not Exist", "code": "invalid_request_error"}}, SHUT),
        (
            400,
            {"error": {"message": "This model's maximum context length is 131072 tokens."}},
            CONTEXT,
        ),
        (503, {"error": {"message": "Busy"}}, BUSY),
    ],
    "alibaba": [
        (429, {"error": {"message": "Allocated quota", "code": "insufficient_quota"}}, BUSY),
        (429, {"error": {"message": "Rate", "code": "Throttling.RateQuota"}}, BUSY),
        (400, {"error": {"message": "Overdue payment", "code": "Arrearage"}}, SHUT),
        (403, {"error": {"message": "Overdue payment", "code": "Arrearage"}}, SHUT),
        (401, {"error": {"message": "Wrong region", "code": "invalid_api_key"}}, SHUT),
        (
            400,
            {
                "error": {
                    "message": "Range of input length should be [1, 30720]",
                    "code": "invalid_parameter_error",
                }
            },
            CONTEXT,
        ),
        (400, {"error": {"message": "No", "code": "data_inspection_failed"}}, CONTENT),
    ],
    "moonshot": [
        (429, {"error": {"message": "No money", "type": "exceeded_current_quota_error"}}, SHUT),
        (429, {"error": {"message": "Wait", "type": "engine_overloaded_error"}}, BUSY),
        (429, {"error": {"message": "Wait", "type": "rate_limit_reached_error"}}, BUSY),
        (401, {"error": {"message": "Who?", "type": "invalid_authentication_error"}}, SHUT),
        (400, {"error": {"message": "exceeded model token limit: 131072"}}, CONTEXT),
        (400, {"error": {"message": "No", "type": "content_filter"}}, CONTENT),
    ],
    "minimax": [
        (200, {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, SHUT),
        (200, {"base_resp": {"status_code": 1004, "status_msg": "authorise"}}, SHUT),
        (200, {"base_resp": {"status_code": 2049, "status_msg": "invalid key"}}, SHUT),
        (200, {"base_resp": {"status_code": 1002, "status_msg": "rate"}}, BUSY),
        (200, {"base_resp": {"status_code": 1041, "status_msg": "connections"}}, BUSY),
        (200, {"base_resp": {"status_code": 1039, "status_msg": "token limit"}}, CONTEXT),
        (200, {"base_resp": {"status_code": 1026, "status_msg": "sensitive"}}, CONTENT),
        (500, {"error": {"message": "insufficient balance (1008)", "type": "api_error"}}, SHUT),
    ],
    "zhipu": [
        (429, {"error": {"message": "Arrears", "code": "1113"}}, SHUT),
        (401, {"error": {"message": "Key", "code": "1002"}}, SHUT),
        (400, {"error": {"message": "Model", "code": "1211"}}, SHUT),
        (429, {"error": {"message": "Concurrency", "code": "1302"}}, BUSY),
        (429, {"error": {"message": "Busy", "code": "1305"}}, BUSY),
        (400, {"error": {"message": "Prompt", "code": "1261"}}, CONTEXT),
        (400, {"error": {"message": "Unsafe", "code": "1301"}}, CONTENT),
    ],
    "llamacpp": [
        (503, {"error": {"message": "Loading model", "code": 503}}, BUSY),
        (400, {"error": {"message": "Too long", "type": "exceed_context_size_error"}}, CONTEXT),
    ],
}


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_other_than_200_is_told_in_our_own_words_and_free(
    make_stage: Any, status: int
) -> None:
    """Conformance 68, 82, 87, 89 and 90."""
    code = STATUSES[status]

    def play(line: Any) -> None:
        body = list(BODIES.values())[len(stage.lines["p0"]) % len(BODIES)]
        line.whole(body(line), status=f"{status} Sorry")

    stage = make_stage(play)
    for number in range(len(BODIES)):
        stage.assert_failed(number % 2 == 0, code)
    assert stage.asked == [len(BODIES)]


CASES = [(dialect, *sign) for dialect, signs in SIGNS.items() for sign in signs]


@pytest.mark.parametrize(("dialect", "status", "body", "code"), CASES)
def test_a_providers_own_signs_are_understood(
    make_stage: Any, dialect: str, status: int, body: dict[str, Any], code: str
) -> None:
    """Conformance 83, 84, 85 and 86."""
    stage = make_stage(
        lambda line: line.whole(body, status=f"{status} Sorry"), row={"dialect": dialect}
    )
    stage.assert_failed(False, code)
    stage.assert_failed(True, code)


def says_it_all(body: dict[str, Any]) -> bool:
    """Whether the body means what it means under any status."""
    error = body.get("error", {"code": "base_resp"})
    return error.get("code", error.get("type")) not in (None, "invalid_request_error")


@pytest.mark.parametrize(
    ("dialect", "body", "code"),
    [(dialect, body, code) for dialect, _, body, code in CASES if says_it_all(body)],
)
def test_the_same_signs_are_understood_in_a_stream(
    make_stage: Any, dialect: str, body: dict[str, Any], code: str
) -> None:
    """Conformance 68, 71 and 83. After output nothing is the caller's fault any more."""

    def play(line: Any) -> None:
        line.stream()
        if len(stage.lines["p0"]) == 2:
            line.say("half an ")
        line.event(body)

    stage = make_stage(play, row={"dialect": dialect})
    stage.assert_failed(True, code)
    stage.assert_failed(True, BAD if code in (CONTEXT, CONTENT) else code, "half an ")


@pytest.mark.parametrize(("wait", "told"), [(None, "1"), ("7", "7"), ("3600", "60"), ("-1", "1")])
def test_a_busy_provider_says_how_long_to_wait(
    make_stage: Any, wait: str | None, told: str
) -> None:
    """Conformance 87."""
    waits = [] if wait is None else [f"Retry-After: {wait}"]
    stage = make_stage(lambda line: line.whole({}, *waits, status="429 Too Many Requests"))
    for stream in (False, True):
        assert stage.assert_failed(stream, BUSY).headers["retry-after"] == told
