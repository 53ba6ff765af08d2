"""From bytes to a request: what is checked, with which words, and what passes."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oneai_middleware.errors import InvalidJSON, InvalidRequest
from oneai_middleware.protocol.fields import ROLES, ROUTING_FIELDS, read_chat
from oneai_middleware.protocol.json import STRUCTURAL_LIMIT

USER = {"role": "user", "content": "one two"}
CHAT = {"model": "deepseek-v3", "messages": [USER]}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SEED_MODELS = [
    *("deepseek-v4-pro", "deepseek-v4-flash", "deepseek-r1", "deepseek-v3", "qwen-coder"),
    *("qwen-max", "kimi", "minimax-m1", "glm-4"),
]


def read(**fields):
    return read_chat(json.dumps({**CHAT, **fields}).encode())


def refusal(data):
    """What is said of ``data``: code and param."""
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    with pytest.raises(InvalidRequest) as caught:
        read_chat(data)
    error = caught.value
    assert error.status == 400
    assert error.param is None or f"'{error.param}'" in error.message
    return error.code, error.param


# --- the body as a whole ------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"   ", id="blank"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b'"text"', id="a string"),
        pytest.param(b"null", id="null"),
        pytest.param(b"1", id="a number"),
        pytest.param(b"model=kimi&messages=x", id="a form"),
        pytest.param(b'{"model":', id="cut off"),
        pytest.param(b"\x1f\x8b\x08\x00", id="gzip"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(data):
    """Conformance 30 and 31."""
    assert refusal(data) == ("invalid_json", None)


def with_value(value):
    return b'{"model":"kimi","messages":[{"role":"user","content":"x"}],"x":%b}' % value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b"Infinity", id="Infinity"),
        pytest.param(b"-Infinity", id="minus Infinity"),
        pytest.param(b"1e400", id="a float out of range"),
        pytest.param(b"1" * 5000, id="5,000 digits"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="100,000 arrays"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="100,000 objects"),
        pytest.param(rb'"\ud800"', id="a lone surrogate"),
        pytest.param(rb'"\udfff\ud800"', id="surrogates the wrong way round"),
        pytest.param(b'"\xed\xa0\x80"', id="a surrogate in UTF-8"),
        pytest.param(b'"\xff\xfe"', id="not UTF-8"),
        pytest.param(b'"\xc0\x80"', id="an overlong zero"),
    ],
)
def test_what_json_does_not_have_is_refused_wherever_it_stands(value):
    """Conformance 38, 39 and 40."""
    assert refusal(with_value(value)) == ("invalid_json", None)
    assert refusal(b'{"messages":[%b]}' % value) == ("invalid_json", None)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_byte_order_mark_or_another_encoding_is_refused(encoding):
    """Conformance 40."""
    assert refusal(json.dumps(CHAT).encode(encoding)) == ("invalid_json", None)


@pytest.mark.parametrize("bomb", [b"[],", b"{},", b"0,", b'"",', b"[[[[["])
def test_a_bomb_of_structure_is_refused_before_it_is_parsed(bomb, monkeypatch):
    monkeypatch.setattr("oneai_middleware.protocol.json.decode", lambda data: 1 / 0)
    data = with_value(b"[" + bomb * (STRUCTURAL_LIMIT + 1) + b"0]")
    assert refusal(data) == ("invalid_json", None)


def test_structure_up_to_the_limit_is_read():
    spare = with_value(b"[0]").count(b"[") + with_value(b"").count(b"{") + 4
    values = b"0," * (STRUCTURAL_LIMIT - spare) + b"0"
    assert (
        len(read_chat(with_value(b"[" + values + b"]")).body["x"]) == STRUCTURAL_LIMIT - spare + 1
    )


def test_of_two_fields_of_one_name_the_last_is_checked_and_sent_on():
    data = b'{"model":"a","messages":[],"model":"b","messages":[{"role":"user","content":"x"}]}'
    assert read_chat(data).body == {
        "model": "b",
        "messages": [{"role": "user", "content": "x"}],
    }


# --- required fields ----------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_required_field_must_be_there(name):
    """Conformance 32."""
    without = {key: value for key, value in CHAT.items() if key != name}
    assert refusal(without) == ("missing_required_parameter", name)
    assert refusal({**CHAT, name: None}) == ("missing_required_parameter", name)


def test_the_model_is_missed_first():
    """Conformance 32."""
    assert refusal({}) == ("missing_required_parameter", "model")


# --- one field ----------------------------------------------------------------

WRONG_TYPE, WRONG_VALUE, MISSING = "invalid_type", "invalid_value", "missing_required_parameter"

BAD = [
    ("model", 1, WRONG_TYPE, "model"),
    ("model", ["kimi"], WRONG_TYPE, "model"),
    ("model", "", WRONG_VALUE, "model"),
    # messages, conformance 33 and 34
    ("messages", [], None, "messages"),
    ("messages", "hello", WRONG_TYPE, "messages"),
    ("messages", USER, WRONG_TYPE, "messages"),
    ("messages", 1, WRONG_TYPE, "messages"),
    ("messages", True, WRONG_TYPE, "messages"),
    ("messages", ["hello"], WRONG_TYPE, "messages[0]"),
    ("messages", [USER, None], WRONG_TYPE, "messages[1]"),
    ("messages", [USER, [USER]], WRONG_TYPE, "messages[1]"),
    ("messages", [{"content": "x"}], MISSING, "messages[0].role"),
    ("messages", [USER, {"role": None, "content": "x"}], MISSING, "messages[1].role"),
    ("messages", [USER, USER, {"role": "boss", "content": "x"}], WRONG_VALUE, "messages[2].role"),
    ("messages", [{"role": "", "content": "x"}], WRONG_VALUE, "messages[0].role"),
    ("messages", [{"role": "User", "content": "x"}], WRONG_VALUE, "messages[0].role"),
    ("messages", [{"role": 1, "content": "x"}], WRONG_TYPE, "messages[0].role"),
    ("messages", [{"role": ["user"], "content": "x"}], WRONG_TYPE, "messages[0].role"),
    ("messages", [{"role": "user"}], MISSING, "messages[0].content"),
    ("messages", [{"role": "user", "content": None}], MISSING, "messages[0].content"),
    ("messages", [{"role": "tool"}], MISSING, "messages[0].content"),
    ("messages", [{"role": "user", "content": 1}], WRONG_TYPE, "messages[0].content"),
    ("messages", [{"role": "user", "content": {}}], WRONG_TYPE, "messages[0].content"),
    ("messages", [{"role": "user", "content": ["x"]}], WRONG_TYPE, "messages[0].content[0]"),
    (
        "messages",
        [{"role": "user", "content": [{"type": "text", "text": "x"}, {"text": "x"}]}],
        WRONG_TYPE,
        "messages[0].content[1].type",
    ),
    (
        "messages",
        [{"role": "user", "content": [{"type": 1}]}],
        WRONG_TYPE,
        "messages[0].content[0].type",
    ),
    (
        "messages",
        [{"role": "user", "content": [{"type": "text"}]}],
        WRONG_TYPE,
        "messages[0].content[0].text",
    ),
    (
        "messages",
        [{"role": "user", "content": [{"type": "text", "text": 1}]}],
        WRONG_TYPE,
        "messages[0].content[0].text",
    ),
    ("messages", [{"role": "assistant", "content": 1}], WRONG_TYPE, "messages[0].content"),
    ("messages", [{"role": "assistant", "tool_calls": {}}], WRONG_TYPE, "messages[0].tool_calls"),
    (
        "messages",
        [{"role": "assistant", "tool_calls": [CALL, "x"]}],
        WRONG_TYPE,
        "messages[0].tool_calls[1]",
    ),
    # temperature, conformance 35
    ("temperature", -0.1, WRONG_VALUE, "temperature"),
    ("temperature", 2.1, WRONG_VALUE, "temperature"),
    ("temperature", 10**30, WRONG_VALUE, "temperature"),
    ("temperature", "hot", WRONG_TYPE, "temperature"),
    ("temperature", "1", WRONG_TYPE, "temperature"),
    ("temperature", True, WRONG_TYPE, "temperature"),
    ("temperature", [1], WRONG_TYPE, "temperature"),
    ("top_p", 1.01, WRONG_VALUE, "top_p"),
    ("top_p", -0.01, WRONG_VALUE, "top_p"),
    ("presence_penalty", -2.5, WRONG_VALUE, "presence_penalty"),
    ("frequency_penalty", 2.5, WRONG_VALUE, "frequency_penalty"),
    # max_tokens, conformance 36
    ("max_tokens", 0, WRONG_VALUE, "max_tokens"),
    ("max_tokens", -1, WRONG_VALUE, "max_tokens"),
    ("max_tokens", 2**31, WRONG_VALUE, "max_tokens"),
    ("max_tokens", 10**40, WRONG_VALUE, "max_tokens"),
    ("max_tokens", 1.5, WRONG_TYPE, "max_tokens"),
    ("max_tokens", 10.0, WRONG_TYPE, "max_tokens"),
    ("max_tokens", "10", WRONG_TYPE, "max_tokens"),
    ("max_tokens", True, WRONG_TYPE, "max_tokens"),
    ("max_completion_tokens", 0, WRONG_VALUE, "max_completion_tokens"),
    ("max_completion_tokens", "10", WRONG_TYPE, "max_completion_tokens"),
    ("n", 0, WRONG_VALUE, "n"),
    ("n", -1, WRONG_VALUE, "n"),
    ("n", 129, WRONG_VALUE, "n"),
    ("n", True, WRONG_TYPE, "n"),
    ("n", 1.0, WRONG_TYPE, "n"),
    ("seed", 2**63, WRONG_VALUE, "seed"),
    ("seed", 0.5, WRONG_TYPE, "seed"),
    ("top_logprobs", 21, WRONG_VALUE, "top_logprobs"),
    ("logprobs", 1, WRONG_TYPE, "logprobs"),
    ("logit_bias", [], WRONG_TYPE, "logit_bias"),
    ("stop", 1, WRONG_TYPE, "stop"),
    ("stop", ["a", 1], WRONG_TYPE, "stop"),
    ("stop", {}, WRONG_TYPE, "stop"),
    # stream, conformance 37
    ("stream", "yes", WRONG_TYPE, "stream"),
    ("stream", "true", WRONG_TYPE, "stream"),
    ("stream", 1, WRONG_TYPE, "stream"),
    ("stream", 0, WRONG_TYPE, "stream"),
    ("stream", [], WRONG_TYPE, "stream"),
    ("stream_options", True, WRONG_TYPE, "stream_options"),
    ("stream_options", [], WRONG_TYPE, "stream_options"),
    (
        "stream_options",
        {"include_usage": "yes"},
        WRONG_TYPE,
        "stream_options.include_usage",
    ),
    ("tools", {}, WRONG_TYPE, "tools"),
    ("tools", ["f"], WRONG_TYPE, "tools[0]"),
    ("functions", "f", WRONG_TYPE, "functions"),
    ("tool_choice", 1, WRONG_TYPE, "tool_choice"),
    ("parallel_tool_calls", "no", WRONG_TYPE, "parallel_tool_calls"),
    ("response_format", "json", WRONG_TYPE, "response_format"),
    ("metadata", "x", WRONG_TYPE, "metadata"),
    ("user", 1, WRONG_TYPE, "user"),
]


@pytest.mark.parametrize(("name", "value", "code", "param"), BAD)
def test_a_bad_value_is_refused_by_its_path(name, value, code, param):
    """Conformance 33, 34, 35, 36 and 37."""
    said, where = refusal({**CHAT, name: value})
    assert where == param
    assert code in (said, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("temperature", 2),
        ("temperature", 0.0),
        ("temperature", 1.99),
        ("top_p", 1),
        ("presence_penalty", -2),
        ("frequency_penalty", 2),
        ("max_tokens", 1),
        ("max_completion_tokens", 2**31 - 1),
        ("n", 128),
        ("seed", -(2**63)),
        ("top_logprobs", 0),
        ("logprobs", True),
        ("logit_bias", {"50256": -100}),
        ("stop", "END"),
        ("stop", ["a", "b", "c", "d"]),
        ("tools", []),
        ("tool_choice", "auto"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("parallel_tool_calls", False),
        ("response_format", {"type": "json_object"}),
        ("metadata", {"a": "b"}),
        ("user", ""),
        ("user", "\U0001f600 \u2028"),
    ],
)
def test_a_good_value_passes_as_it_is(name, value):
    """Conformance 35."""
    passed = read(**{name: value}).body[name]
    assert passed == value
    assert type(passed) is type(value)


@pytest.mark.parametrize("role", sorted(ROLES))
def test_every_role_is_known(role):
    """Conformance 47."""
    message = {"role": role, "content": "x"}
    assert read(messages=[message]).messages == [message]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": []},
        {"role": "user", "content": ""},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
        {"role": "user", "content": [{"type": "of the future", "anything": [1]}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": None, "refusal": "no"},
        {"role": "assistant", "content": "x", "reasoning_content": "because"},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "function", "name": "f", "content": "42"},
        {"role": "user", "name": "ann", "content": "x", "unknown": {"a": None}},
    ],
)
def test_messages_of_every_form_pass_untouched(message):
    """Conformance 47 and 48."""
    assert read(messages=[USER, message]).messages == [USER, message]


# --- null and unknown fields --------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("temperature", "max_tokens", "max_completion_tokens", "stream", "stream_options", "n"),
        *("tools", "tool_choice", "stop", "user", "metadata", "logprobs", "unknown"),
    ],
)
def test_null_is_absent(name):
    """Conformance 36, 37 and 45."""
    assert read(**{name: None}).body == CHAT


@pytest.mark.parametrize(
    "value", [1, 1.5, "x", True, [None], {"a": None}, {"type": "enabled"}, [[{"deep": [1]}]]]
)
@pytest.mark.parametrize("name", ["thinking", "enable_thinking", "top_k", "of_the_future", ""])
def test_an_unknown_field_passes_as_it_is(name, value):
    """Conformance 43 and 44."""
    assert read(**{name: value}).body[name] == value


@pytest.mark.parametrize("name", sorted(ROUTING_FIELDS))
def test_a_field_that_other_gateways_obey_is_dropped(name):
    assert read(**{name: "http://evil.example"}).body == CHAT
    assert read(messages=[{**USER, name: "x"}]).messages == [{**USER, name: "x"}]


def test_stream_options_are_ignored_without_a_stream():
    assert "stream_options" not in read(stream_options={"include_usage": True}).body
    assert "stream_options" not in read(stream=False, stream_options={"a": 1}).body
    request = read(stream=True, stream_options={"include_usage": True, "a": 1})
    assert request.body["stream_options"] == {"include_usage": True, "a": 1}
    assert request.include_usage


def test_the_request_knows_what_it_asks():
    request = read(stream=True, n=3, max_tokens=5, max_completion_tokens=7)
    assert (request.model, request.stream, request.n) == ("deepseek-v3", True, 3)
    assert request.max_tokens == 7
    assert (read().stream, read().n, read().max_tokens) == (False, 1, None)
    assert read(max_tokens=5).max_tokens == 5


# --- through the whole app ----------------------------------------------------


@pytest.fixture
def gateway(make_gateway):
    return make_gateway(account={"tier": "enterprise", "prepaid": False, "limits": None})


def chat(send, gateway, headers, body):
    return send(gateway, "POST", "/v1/chat/completions", body, headers)


@pytest.mark.parametrize("model", SEED_MODELS)
@pytest.mark.parametrize("temperature", [0, 2])
def test_every_model_takes_the_whole_range_of_temperatures(
    gateway, send, headers, model, temperature
):
    """Conformance 35."""
    body = {**CHAT, "model": model, "temperature": temperature}
    assert chat(send, gateway, headers, body).status == 200


@pytest.mark.parametrize(
    "body", [b"{", b"null", {}, {**CHAT, "messages": []}, {**CHAT, "stream": True, "n": 0}]
)
def test_a_bad_request_is_answered_in_json_and_consumes_nothing(make_gateway, send, headers, body):
    """Conformance 79, 80 and 99."""
    gateway = make_gateway()
    reply = chat(send, gateway, headers, body)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert not [name for name in reply.headers if name.startswith("x-ratelimit")]
    assert chat(send, gateway, headers, CHAT).headers["x-ratelimit-remaining-requests"] == "199"
    assert len(list(gateway.ledger.entries("alice"))) == 1


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(sorted(ROLES)) | JSON,
        "content": st.text(max_size=20)
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "type": st.sampled_from(["text", "image_url", "file"]) | JSON,
                    "text": st.text(max_size=20) | JSON,
                },
            ),
            max_size=3,
        )
        | JSON,
        "tool_calls": JSON,
        "name": JSON,
    },
)
NAMES = sorted({name for name, *_ in BAD} - {"model", "messages", "n"})
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(SEED_MODELS) | JSON,
        "messages": st.lists(MESSAGE, min_size=1, max_size=3) | JSON,
        "stream": st.booleans() | JSON,
        "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | JSON}) | JSON,
        "n": st.integers(-1, 4) | JSON,
        **{name: st.integers(-3, 3) | JSON for name in NAMES if not name.startswith("stream")},
    },
)


def assert_sound(send, gateway, headers, body):
    """The answer is no 5xx, and afterwards nothing is held and no slot is kept."""
    reply = chat(send, gateway, headers, body)
    if reply.status == 200:
        data = reply.read()
        assert b'"error"' not in data
        if reply.headers["content-type"] != "application/json":
            assert data.endswith(b"data: [DONE]\n\n")
    else:
        assert reply.status in (400, 404, 413)
        assert reply.error["type"] == "invalid_request_error"
    balance = gateway.ledger.balance("alice")
    rows = gateway.ledger.entries("alice")
    assert all(row.outcome == "answered" or row.cost == 0 for row in rows)
    assert balance.held == 0
    assert gateway.ledger.audit() == []
    return reply.status


@pytest.fixture
def one_at_a_time(make_gateway):
    """A gateway on which a kept slot or place would refuse the next call."""
    return make_gateway(
        account={"tier": "enterprise", "balance": "1000000", "limits": {"concurrent": 1}},
        max_calls=1,
    )


@given(data=st.binary(max_size=200))
@example(data=b"\xef\xbb\xbf" + json.dumps(CHAT).encode())
@example(data=json.dumps(CHAT).encode("utf-16"))
def test_any_bytes_as_a_body_are_answered(one_at_a_time, send, headers, data):
    assert assert_sound(send, one_at_a_time, headers, data) == 400
    assert one_at_a_time.ledger.balance("alice").spent == 0


@given(value=JSON)
def test_any_json_as_a_body_is_answered(one_at_a_time, send, headers, value):
    assert assert_sound(send, one_at_a_time, headers, json.dumps(value).encode()) == 400
    assert one_at_a_time.ledger.balance("alice").spent == 0


@given(body=REQUEST)
@example(body=CHAT)
def test_anything_like_a_request_is_answered(one_at_a_time, send, headers, body):
    before = one_at_a_time.ledger.balance("alice").spent
    status = assert_sound(send, one_at_a_time, headers, json.dumps(body).encode())
    assert (one_at_a_time.ledger.balance("alice").spent == before) is (status != 200)


@given(fields=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4), extra=JSON)
def test_a_good_request_with_any_other_field_is_answered(
    one_at_a_time, send, headers, fields, extra
):
    body = {**CHAT, **fields, "of_the_future": extra}
    assert_sound(send, one_at_a_time, headers, json.dumps(body).encode())


@pytest.fixture
def upstream(make_gateway, asking_provider):
    return make_gateway(
        account={"tier": "enterprise", "balance": "1000000", "limits": {"concurrent": 1}},
        **asking_provider,
    )


@given(extra=JSON, stream=st.booleans())
@example(extra=10**4000, stream=False)
@example(extra=1e308, stream=False)
@example(extra="\u2028\x85\0", stream=False)
def test_whatever_is_let_through_reaches_the_provider(
    upstream, provider, send, headers, extra, stream
):
    """Conformance 43."""
    body = {
        **CHAT,
        "model": "bot",
        "stream": stream,
        "x": extra,
        "messages": [{**USER, "y": extra}],
    }
    assert assert_sound(send, upstream, headers, json.dumps(body).encode()) == 200
    sent = provider.turns[-1].json
    assert sent.get("x") == extra
    assert sent["messages"][0].get("y") == extra


@pytest.mark.parametrize("stream", [False, True])
def test_however_deep_a_body_is_nested_nobody_but_the_caller_is_to_blame(
    upstream, provider, send, headers, stream
):
    """Conformance 38."""
    statuses = []
    for depth in (*range(900, 1000, 2), 50_000):  # how deep is too deep differs by Python
        nested = b"[" * depth + b"]" * depth
        data = b'{"model":"bot","stream":%b,"messages":[{"role":"user","content":"x"}],"x":%b}'
        statuses.append(
            assert_sound(send, upstream, headers, data % (b"true" if stream else b"false", nested))
        )
    assert (statuses[0], statuses[-1]) == (200, 400)


def test_a_bomb_is_refused_for_less_than_its_size(one_at_a_time, send, headers):
    for bomb in (b"[" * 10**6, b"[]," * 10**6, b'{"a":' * 10**6):
        assert assert_sound(send, one_at_a_time, headers, with_value(bomb)) == 400


def test_an_error_repeats_nothing_of_the_body():
    for data in (b'{"canary', b'{"model":"canary"', b'["canary"]', with_value(b'"\xffcanary"')):
        with pytest.raises(InvalidJSON) as caught:
            read_chat(data)
        assert "canary" not in caught.value.message
