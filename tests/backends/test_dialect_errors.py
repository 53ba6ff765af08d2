"""What the refusals of which kind of provider mean for the caller."""

import json

import pytest

from oneai_middleware.backends.openai.dialects.shipped import SHIPPED

INVALID = (400, "invalid_value")
CONTEXT = (400, "context_length_exceeded")
CONTENT = (400, "content_filter")
ACCOUNT = (503, "provider_unavailable")
BUSY = (503, "model_overloaded")
SLOW = (504, "upstream_timeout")
BROKEN = (502, "upstream_error")


def openai(message="no", type=None, code=None, param=None, **more):
    return {"error": {"message": message, "type": type, "param": param, "code": code, **more}}


def deepseek(message, type="invalid_request_error"):
    return openai(message, type, "invalid_request_error")


def moonshot(type, message="no"):
    return {"error": {"type": type, "message": message}}


def zhipu(code, message="no"):
    return {"error": {"code": str(code), "message": message}}


def minimax(code, message="no"):
    return {"base_resp": {"status_code": code, "status_msg": message}, "choices": None}


def minimax_error(type, message, http_code):
    error = {"type": type, "message": message, "http_code": str(http_code)}
    return {"type": "error", "error": error, "request_id": "06"}


TOO_LONG = "This model's maximum context length is 131072 tokens. However, you requested 131134."

OVERFLOWS = [
    ("deepseek", 400, deepseek(TOO_LONG)),
    (
        *("alibaba", 400),
        openai("Range of input length should be [1, 30720]", "x", "invalid_parameter_error"),
    ),
    (
        *("moonshot", 400),
        moonshot("invalid_request_error", "Your request exceeded model token limit: 262144"),
    ),
    ("minimax", 200, minimax(1039, "token limit")),
    ("minimax", 200, minimax(2013, "invalid params, context window exceeds limit")),
    (
        *("minimax", 400),
        minimax_error("bad_request_error", "invalid params, context window exceeds (2013)", 400),
    ),
    ("zhipu", 400, zhipu(1261, "Prompt exceeds max length")),
    ("openai", 400, openai(TOO_LONG, "invalid_request_error", "context_length_exceeded")),
    ("vllm", 400, openai(TOO_LONG, "BadRequestError", 400)),
    ("vllm", 400, {"object": "error", "message": TOO_LONG, "type": "BadRequestError", "code": 400}),
    ("vllm", 400, openai("However, the model's context length is only 1024 tokens", "x", 400)),
    (
        *("llamacpp", 400),
        openai("the request exceeds it", "exceed_context_size_error", 400, n_ctx=256),
    ),
    ("llamacpp", 500, openai("too many", "exceed_context_size_error", 500, n_ctx=256)),
    ("llamacpp", 200, openai("too many", "exceed_context_size_error", 400, n_ctx=256)),
    ("ollama", 400, openai("prompt too long; exceeded max context length by 5", "api_error")),
    ("generic", 400, openai("prompt is too long: 5 tokens > 4 maximum", "x")),
]

ARREARS = [
    ("deepseek", 402, deepseek("Insufficient Balance", "unknown_error")),
    ("alibaba", 400, openai("Access denied", "Arrearage", "Arrearage")),
    ("alibaba", 403, openai("Access denied", None, "Arrearage")),
    ("moonshot", 429, moonshot("exceeded_current_quota_error")),
    ("minimax", 200, minimax(1008, "insufficient balance")),
    ("minimax", 429, minimax_error("insufficient_balance_error", "no balance (1008)", 429)),
    ("minimax", 500, minimax_error("api_error", "insufficient balance (1008)", 500)),
    ("zhipu", 429, zhipu(1113)),
    ("openai", 429, openai("exceeded", "insufficient_quota", "insufficient_quota")),
    ("openai", 429, openai("exceeded", "insufficient_quota", "credit_balance_exhausted")),
    ("generic", 429, openai("exceeded", "x", "project_spend_limit_exceeded")),
]

ACCOUNTS = [
    ("deepseek", 401, deepseek("Authentication Fails", "authentication_error")),
    ("alibaba", 401, openai("Incorrect API key", "x", "invalid_api_key")),
    ("moonshot", 401, moonshot("invalid_authentication_error")),
    ("moonshot", 404, moonshot("resource_not_found_error")),
    ("minimax", 200, minimax(1004, "login fail")),
    ("minimax", 200, minimax(2049, "invalid api key")),
    ("minimax", 200, minimax(2056, "usage limit")),
    *(("zhipu", 400, zhipu(code)) for code in (1000, 1004, 1110, 1121, 1211, 1220)),
    *(("zhipu", 429, zhipu(code)) for code in (1304, 1308, 1310)),
    ("zhipu", 434, {}),
    ("openai", 404, openai("no such", "invalid_request_error", "model_not_found")),
    ("ollama", 404, openai("model 'x' not found", "api_error")),
    ("vllm", 404, openai("The model `x` does not exist.", "NotFoundError", 404)),
]

MODELS = [
    ("deepseek", 400, deepseek("Model Not Exist")),
    ("alibaba", 404, openai("The model x does not exist", "x", "model_not_found")),
    ("minimax", 200, minimax(2013, "invalid params, model 'x' not found")),
]

WAITS = [
    ("alibaba", 429, openai("You exceeded your quota", "insufficient_quota", "insufficient_quota")),
    ("alibaba", 429, openai("slower", "x", "Throttling.AllocationQuota")),
    ("moonshot", 429, moonshot("rate_limit_reached_error")),
    ("moonshot", 429, moonshot("engine_overloaded_error")),
    *(("minimax", 200, minimax(code)) for code in (1002, 1041, 2045)),
    *(("zhipu", 429, zhipu(code)) for code in (1302, 1303, 1305, 1312)),
    ("deepseek", 503, {}),
    ("openai", 429, openai("slow down", "tokens", "rate_limit_exceeded")),
    ("llamacpp", 503, openai("Loading model", "unavailable_error", 503)),
]

OTHERS = [
    ("alibaba", 400, openai("inspected", "x", "data_inspection_failed"), CONTENT),
    ("alibaba", 400, openai("inspected", "x", "DataInspectionFailed"), CONTENT),
    ("moonshot", 400, moonshot("content_filter"), CONTENT),
    ("minimax", 200, minimax(1026, "input sensitive"), CONTENT),
    ("minimax", 200, minimax(1027, "output sensitive"), CONTENT),
    ("zhipu", 400, zhipu(1301), CONTENT),
    ("alibaba", 400, openai("InternalError.Algo.InvalidParameter", "x", "x"), INVALID),
    ("minimax", 200, minimax(2013, "invalid params"), INVALID),
    ("minimax", 400, minimax_error("bad_request_error", "invalid params (2013)", 400), INVALID),
    ("zhipu", 400, zhipu(1214), INVALID),
    ("llamacpp", 501, openai("no vision here", "not_supported_error", 501), INVALID),
    ("minimax", 200, minimax(1001), SLOW),
    ("alibaba", 500, openai("late", "x", "RequestTimeOut"), SLOW),
    *(("minimax", 200, minimax(code), BROKEN) for code in (1000, 1013, 1024, 1033, 9999)),
    *(("generic", status, openai(), INVALID) for status in (409, 414, 415, 418, 451)),
    ("zhipu", 435, zhipu(1), INVALID),
    ("zhipu", 599, zhipu(1), BROKEN),
    ("generic", 451, openai(code="rate_limit_exceeded"), BUSY),
    ("generic", 418, openai(TOO_LONG), CONTEXT),
    ("generic", 200, minimax(1002), BROKEN),
    ("generic", 429, zhipu(1113), BUSY),
    ("generic", 500, openai("insufficient balance (1008)"), BROKEN),
    ("generic", 400, openai("a stop of (429)"), INVALID),
]


def ids(case):
    name, status, body, *_ = case
    return f"{name}-{status}-{json.dumps(body)[:60]}"


def refusing(status, body, stream):
    """A provider that refuses; one that says 200 in a stream does so in an event."""

    def respond(turn):
        if status == 200 and stream:
            turn.start_stream()
            turn.event(body)
        else:
            turn.answer(body, status)

    return respond


@pytest.fixture
def refused(ask_as, provider):
    """Ask for an answer that the provider refuses, in one piece and as a stream; nothing
    may be charged for it."""

    def refused(name, status, body):
        for stream in (False, True):
            provider.respond = refusing(status, body, stream)
            reply = ask_as(name, stream=stream)
            row = ask_as.gateway.ledger.entries("alice")[-1]
            assert (row.cost, row.outcome) == (0, reply.error["code"])
            assert not ask_as.gateway.ledger.audit()
            yield reply

    return refused


@pytest.mark.parametrize("case", OVERFLOWS, ids=ids)
def test_a_prompt_that_is_too_long_is_told_as_one(refused, case):
    """Conformance 86."""
    for reply in refused(*case):
        assert (reply.status, reply.error["code"]) == CONTEXT
        assert reply.error["param"] == "messages"


@pytest.mark.parametrize("case", ARREARS, ids=ids)
def test_our_unpaid_bill_is_no_callers(refused, case):
    """Conformance 82 and 83."""
    for reply in refused(*case):
        assert (reply.status, reply.error["code"]) == ACCOUNT
        assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("case", ACCOUNTS, ids=ids)
def test_our_key_and_our_models_are_no_callers(refused, case):
    """Conformance 82."""
    for reply in refused(*case):
        assert (reply.status, reply.error["code"]) == ACCOUNT
        assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("case", MODELS, ids=ids)
def test_a_model_that_the_provider_does_not_know_is_our_mistake(refused, case):
    """Conformance 85."""
    for reply in refused(*case):
        assert (reply.status, reply.error["code"]) == ACCOUNT


@pytest.mark.parametrize("case", WAITS, ids=ids)
def test_a_busy_provider_is_worth_another_try(refused, case):
    """Conformance 84."""
    for reply in refused(*case):
        assert (reply.status, reply.error["code"]) == BUSY
        assert reply.headers["retry-after"] == "1"
        assert "x-should-retry" not in reply.headers


@pytest.mark.parametrize("case", OTHERS, ids=ids)
def test_other_refusals_mean_what_they_say(refused, case):
    """Conformance 55."""
    *case, meaning = case
    for reply in refused(*case):
        assert (reply.status, reply.error["code"]) == meaning


# --- where an error stands --------------------------------------------------------


SHAPES = [
    {"error": {"message": "in one line", "code": "1214"}},
    {"code": "1214", "message": "in one line"},
    {"code": 1214, "message": "in one line", "object": "error"},
    {"error": {"message": "in one line", "type": "1214"}},
    {"error": {"message": "in one line (1214)"}},
    {"base_resp": {"status_code": 1214, "status_msg": "in one line"}},
    {"base_resp": {"status_code": "1214", "status_msg": "in one line"}},
]


@pytest.mark.parametrize("status", [200, 429])
@pytest.mark.parametrize("body", SHAPES, ids=json.dumps)
def test_a_sign_is_found_wherever_it_stands(refused, body, status):
    """Conformance 55."""
    for reply in refused("zhipu", status, body):
        assert (reply.status, reply.error["code"]) == INVALID
        assert reply.error["message"].startswith("in one line")


@pytest.mark.parametrize(
    ("body", "meaning"),
    [
        ({"error": "some words"}, BROKEN),
        ({"detail": "some words"}, BROKEN),
        ({"detail": TOO_LONG}, CONTEXT),
        ({"error": {"message": "x", "code": 429}}, BUSY),
        ({"error": {"message": "x", "status": 401}}, ACCOUNT),
        ({"error": {"message": "x", "http_code": "504"}}, SLOW),
        ({"object": "error", "message": "x", "type": "BadRequestError", "code": 400}, INVALID),
        ({"base_resp": {"status_code": 0}}, BROKEN),
        ({"base_resp": "x", "error": {}, "message": "no code"}, BROKEN),
        ({"code": True, "message": ["x"]}, BROKEN),
    ],
)
def test_an_error_under_a_200_is_the_error_it_is(refused, body, meaning):
    """Conformance 55."""
    for reply in refused("generic", 200, body):
        assert (reply.status, reply.error["code"]) == meaning
        assert b"some words" not in reply.read()


def test_the_first_of_a_list_of_complaints_is_told(refused):
    body = {
        "detail": [
            {"loc": ["body", "messages", 0, "role"], "msg": "Input should be a role", "type": "x"},
            {"loc": ["body", "top_p"], "msg": "and more"},
        ]
    }
    for reply in refused("vllm", 422, body):
        assert reply.error["message"] == "Input should be a role"
        assert reply.error["param"] == "messages[0].role"


@pytest.mark.parametrize(
    "complaint", [{}, {"loc": "body"}, {"loc": [None, {"x": 1}], "msg": 5}, {"loc": ["body"]}]
)
def test_a_strange_complaint_is_none_about_a_field(refused, complaint):
    for reply in refused("vllm", 422, {"detail": [complaint]}):
        assert reply.error["message"] == "The provider refused this request."
        assert reply.error["param"] is None


@pytest.mark.parametrize("name", sorted(SHIPPED))
@pytest.mark.parametrize("body", [{"error": {"code": "1301", "message": "no"}}, minimax(1026)])
def test_after_output_a_refusal_is_the_providers_failure(ask_as, provider, name, body):
    """Conformance 69 and 71."""

    def respond(turn):
        turn.start_stream()
        turn.text("some words")
        turn.event(body)

    provider.respond = respond
    reply = ask_as(name, stream=True)
    assert reply.status == 200
    *_, last, end = reply.read().split(b"\n\n")
    assert end == b""
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] == "upstream_error"
    assert ask_as.gateway.ledger.entries("alice")[-1].cost > 0


def test_after_a_mere_role_the_caller_is_still_told_what_is_wrong(ask_as, provider):
    def respond(turn):
        turn.start_stream()
        turn.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        turn.event(openai(TOO_LONG, "BadRequestError", 400))

    provider.respond = respond
    reply = ask_as("vllm", stream=True)
    assert (reply.status, reply.error["code"]) == CONTEXT


def test_the_operator_is_told_the_code(refused, caplog):
    assert list(refused("zhipu", 429, zhipu(1113, "no money in sk-upstream-secret")))
    assert "HTTP 429: 1113: no money in …" in caplog.text
    assert "upstream-secret" not in caplog.text


def test_what_an_operator_knows_better_outdoes_it_all(ask_as, provider):
    causes = {"429": "misconfigured", 1302: "timeout", "insufficient_quota": "overloaded"}
    meanings = [(zhipu(1302), SLOW), (zhipu(1113), ACCOUNT), (openai(code="x"), ACCOUNT)]
    for body, meaning in meanings:
        provider.respond = refusing(429, body, False)
        reply = ask_as("zhipu", dialect={"causes": causes})
        assert (reply.status, reply.error["code"]) == meaning
