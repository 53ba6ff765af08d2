"""What of a request reaches which kind of provider."""

import copy
import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.backends.openai.dialects.requests import adapt
from oneai_middleware.backends.openai.dialects.settings import read_dialect
from oneai_middleware.backends.openai.dialects.shipped import SHIPPED
from oneai_middleware.catalog import presets, read_shipped
from oneai_middleware.protocol.chat import BOUNDS, text_of
from oneai_middleware.protocol.fields import read_chat

EVERY = sorted(SHIPPED)
NAMES = sorted(presets())


# --- the bound on the output ------------------------------------------------------

LENGTHS = {
    "deepseek": "max_tokens",
    "alibaba": "max_tokens",
    "zhipu": "max_tokens",
    "llamacpp": "max_tokens",
    "ollama": "max_tokens",
    "openai": "max_completion_tokens",
    "moonshot": "max_completion_tokens",
    "minimax": "max_completion_tokens",
    "vllm": None,
    "generic": None,
}


@pytest.mark.parametrize("name", EVERY)
def test_the_bound_on_the_output_goes_by_the_providers_own_name(ask_as, name):
    """Conformance 49."""
    for asked, sent in [
        ({"max_tokens": 9}, {LENGTHS[name] or "max_tokens": 9}),
        ({"max_completion_tokens": 9}, {LENGTHS[name] or "max_completion_tokens": 9}),
        # The explicit one wins.
        ({"max_tokens": 5, "max_completion_tokens": 7}, {LENGTHS[name] or BOUNDS[0]: 7}),
    ]:
        reply = ask_as(name, **asked)
        assert reply.status == 200
        assert {field: ask_as.sent[field] for field in ask_as.sent if field in BOUNDS} == sent
        assert "x-oneai-changed" not in reply.headers


# --- the temperature --------------------------------------------------------------

# As the providers themselves judge.
TAKEN = {
    "deepseek": lambda sent: 0 <= sent <= 2,
    "alibaba": lambda sent: 0 <= sent < 2,
    "moonshot": lambda sent: sent == 1,
    "minimax": lambda sent: 0 < sent <= 1,
    "zhipu": lambda sent: 0 < sent <= 1,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0, 2])
def test_every_shipped_model_takes_every_temperature(
    make_gateway, provider, completion, headers, send, temperature, stream
):
    """Conformance 35."""

    def judge(turn):
        name = turn.path.split("/")[2]
        sent = turn.json.get("temperature")
        if sent is None or TAKEN[name](sent):
            turn.answer(completion("fine"))
        else:
            turn.answer({"error": {"message": f"temperature {sent}"}}, 400)

    provider.respond = judge
    gateway = make_gateway(
        providers={
            name: {"base_url": f"{provider.url}/{name}", "api_key": "sk-1"} for name in TAKEN
        }
    )
    models = list(read_shipped().models)
    assert len(models) == 9
    for model in models:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": temperature,
            "stream": stream,
        }
        reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
        assert (model, reply.status) == (model, 200), reply.read()
        reply.read()


# --- one difference each ----------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
STRICT = {"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}
FIXED = {"temperature": 0.5, "top_p": 0.5, "presence_penalty": 1, "frequency_penalty": 1}
SPLIT = {"reasoning_split": True}


class Case(NamedTuple):
    provider: str
    asked: dict[str, Any]
    sent: dict[str, Any] | None = None
    """What arrives; ``None``: what was asked."""
    changed: str = ""
    dropped: str = ""


CASES = [
    Case("deepseek", {"temperature": 2}),
    Case("deepseek", {"user": "bob"}, {"user_id": "bob"}),
    Case("deepseek", {"user": "bob", "user_id": "robert"}, {"user_id": "robert"}),
    Case("alibaba", {"temperature": 2}, {"temperature": 1.99}, changed="temperature"),
    Case("moonshot", FIXED, {}, dropped=", ".join(FIXED)),
    Case("moonshot", {"temperature": 1, "top_p": 1, "presence_penalty": 0}, {}),
    Case("minimax", {"temperature": 0.3}, {"temperature": 0.3, **SPLIT}),
    Case("minimax", {"temperature": 1.5}, {"temperature": 1, **SPLIT}, changed="temperature"),
    Case(
        "minimax",
        {"temperature": 0, "top_p": 0},
        {"temperature": 0.01, "top_p": 0.01, **SPLIT},
        changed="temperature, top_p",
    ),
    Case(
        "minimax",
        {"presence_penalty": 1, "logit_bias": {"5": 1}},
        SPLIT,
        dropped="presence_penalty, logit_bias",
    ),
    Case(
        "minimax",
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL], **SPLIT},
        dropped="tool_choice",
    ),
    Case(
        "minimax",
        {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [TOOL], "tool_choice": "none", **SPLIT},
    ),
    Case(
        "minimax",
        {"tools": [TOOL, STRICT]},
        {"tools": [TOOL, TOOL], **SPLIT},
        dropped="tools[].function.strict",
    ),
    Case("minimax", {"reasoning_split": False}),
    Case("zhipu", {"temperature": 0}, {"do_sample": False}),
    Case(
        "zhipu",
        {"temperature": 0, "do_sample": True},
        {"temperature": 0.01, "do_sample": True},
        changed="temperature",
    ),
    Case(
        "zhipu",
        {"temperature": 0.001, "top_p": 1},
        {"temperature": 0.01, "top_p": 0.99},
        changed="temperature, top_p",
    ),
    Case(
        "zhipu",
        {"tools": [STRICT], "tool_choice": {"type": "function"}},
        {"tools": [TOOL]},
        dropped="tools[].function.strict, tool_choice",
    ),
    Case("zhipu", {"tools": [TOOL], "tool_choice": "auto"}),
    Case(
        "zhipu",
        {"frequency_penalty": -1, "logit_bias": {"5": 1}},
        {},
        dropped="frequency_penalty, logit_bias",
    ),
    Case("zhipu", {"stop": ["a", "b"]}, {"stop": ["a"]}, changed="stop"),
    Case("zhipu", {"stop": "a"}, {"stop": ["a"]}),
    Case("zhipu", {"user": "bob-27"}, {"user_id": "bob-27"}),
    Case("zhipu", {"user": "bob"}, {}, dropped="user"),
    Case("zhipu", {"user": "b" * 129}, {}, dropped="user"),
    Case("openai", {**FIXED, "stop": ["a", "b"], "user": "bob", "tools": [STRICT]}),
    Case("vllm", {**FIXED, "top_k": 5, "user": "b"}),
    Case("llamacpp", {**FIXED, "min_p": 0.1}),
    Case("ollama", FIXED),
    Case("generic", {**FIXED, "do_sample": True, "user_id": "b", "reasoning_split": False}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.provider}-{'-'.join(case.asked)}")
def test_a_parameter_that_is_not_sent_as_it_is_is_named(ask_as, case):
    reply = ask_as(case.provider, **case.asked)
    assert reply.status == 200
    assert ask_as.sent == (case.asked if case.sent is None else case.sent)
    assert reply.headers.get("x-oneai-changed", "") == case.changed
    assert reply.headers.get("x-oneai-dropped", "") == case.dropped


def test_the_head_of_a_stream_names_them_too(ask_as):
    reply = ask_as("zhipu", stream=True, temperature=2, presence_penalty=1)
    assert ask_as.sent == {"temperature": 1}
    assert reply.headers["x-oneai-changed"] == "temperature"
    assert reply.headers["x-oneai-dropped"] == "presence_penalty"


THINKERS = ["o1", "o3-mini", "o4-mini", "gpt-5", "gpt-5.2-pro", "gpt-5-mini-2025-08-07"]
OTHERS = ["gpt-4o", "gpt-4.1", "gpt-5-chat-latest", "gpt-5.2-chat-latest", "omni-moderation"]


@pytest.mark.parametrize("upstream", THINKERS)
def test_openais_thinking_models_have_no_sampling(ask_as, upstream):
    reply = ask_as("openai", upstream=upstream, **FIXED, logprobs=False, stop="x")
    assert ask_as.sent == {"stop": "x"}
    assert reply.headers["x-oneai-dropped"] == ", ".join(FIXED)


@pytest.mark.parametrize("upstream", OTHERS)
def test_openais_other_models_have(ask_as, upstream):
    ask_as("openai", upstream=upstream, **FIXED)
    assert ask_as.sent == FIXED


# --- messages ---------------------------------------------------------------------

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TURNS = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "bob"},
    {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "42"},
]


@pytest.mark.parametrize("name", ["deepseek", "moonshot", "alibaba", "zhipu", "minimax", "generic"])
def test_reasoning_of_earlier_turns_goes_back_to_who_wants_it(ask_as, name):
    """Conformance 48."""
    assert ask_as(name, messages=TURNS).status == 200
    assert ask_as.sent["messages"][2] == TURNS[2]


@pytest.mark.parametrize("name", ["vllm", "ollama"])
def test_reasoning_of_earlier_turns_goes_back_under_the_providers_own_name(ask_as, name):
    reply = ask_as(name, messages=TURNS)
    rest = {field: value for field, value in TURNS[2].items() if field != "reasoning_content"}
    assert ask_as.sent["messages"] == [*TURNS[:2], {**rest, "reasoning": "hm"}, TURNS[3]]
    assert "x-oneai-dropped" not in reply.headers


def test_openai_is_spared_the_reasoning_of_earlier_turns(ask_as):
    reply = ask_as("openai", messages=TURNS)
    rest = {field: value for field, value in TURNS[2].items() if field != "reasoning_content"}
    assert ask_as.sent["messages"] == [*TURNS[:2], rest, TURNS[3]]
    assert reply.headers["x-oneai-dropped"] == "messages[].reasoning_content"


def test_zhipu_is_spared_names(ask_as):
    reply = ask_as("zhipu", messages=TURNS)
    assert ask_as.sent["messages"][1] == {"role": "user", "content": TURNS[1]["content"]}
    assert reply.headers["x-oneai-dropped"] == "messages[].name"


@pytest.mark.parametrize("name", EVERY)
def test_developers_speak_as_the_system_where_there_are_none(ask_as, name):
    """Conformance 47."""
    reply = ask_as(name, messages=[{"role": "developer", "content": "be kind"}, TURNS[1]])
    role = "developer" if name in ("openai", "generic") else "system"
    assert ask_as.sent["messages"][0] == {"role": role, "content": "be kind"}
    assert "x-oneai-changed" not in reply.headers


@pytest.mark.parametrize("name", EVERY)
def test_nulls_that_an_sdk_replays_are_not_sent(ask_as, name):
    """Conformance 45."""
    nothing = {"refusal": None, "annotations": None, "audio": None, "function_call": None}
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL], **nothing}
    text = {"role": "assistant", "content": "hi", "tool_calls": None, "vendor": {"x": None}}
    assert ask_as(name, messages=[TURNS[0], answer, TURNS[3], text]).status == 200
    assert ask_as.sent["messages"] == [
        TURNS[0],
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        TURNS[3],
        {"role": "assistant", "content": "hi", "vendor": {"x": None}},
    ]


# --- thinking ---------------------------------------------------------------------


def typed(kind):
    return {"thinking": {"type": kind}}


def templated(wish):
    return {"chat_template_kwargs": {"enable_thinking": wish}}


ON = {
    "deepseek": typed("enabled"),
    "zhipu": typed("enabled"),
    "minimax": typed("adaptive"),
    "alibaba": {"enable_thinking": True},
    "vllm": templated(True),
    "llamacpp": templated(True),
    "openai": {},
    "ollama": {},
}
OFF = {
    "deepseek": typed("disabled"),
    "zhipu": typed("disabled"),
    "minimax": typed("disabled"),
    "alibaba": {"enable_thinking": False},
    "vllm": templated(False),
    "llamacpp": templated(False),
    "openai": {"reasoning_effort": "none"},
    "ollama": {"reasoning_effort": "none"},
}
SAID = [
    (typed("enabled"), ON),
    (typed("adaptive"), ON),
    ({"enable_thinking": True}, ON),
    (templated(True), ON),
    (typed("disabled"), OFF),
    ({"enable_thinking": False}, OFF),
    (templated(False), OFF),
    ({"reasoning_effort": "none"}, OFF),
]
UNTOUCHED = ["generic", "moonshot"]


def sent_to(name, body, defaults=None, noted=None):
    """What ``body`` becomes for a provider, less what is not about thinking."""
    request = read_chat(json.dumps({"model": "m", "messages": TURNS[:1], **body}).encode())
    request = request.with_defaults(defaults or {})
    adapted, notes = adapt(SHIPPED[name], request.body, stream=False)
    assert notes == (noted or {})
    ours = {"model", "messages", "stream", "reasoning_split"}
    return {field: value for field, value in adapted.items() if field not in ours}


@pytest.mark.parametrize(("said", "means"), SAID)
@pytest.mark.parametrize("name", ON)
def test_a_wish_about_thinking_is_told_in_the_providers_words(name, said, means):
    """Conformance 44."""
    assert sent_to(name, said) == means[name]


@pytest.mark.parametrize("name", UNTOUCHED)
@pytest.mark.parametrize(("said", "means"), SAID)
def test_who_has_no_known_words_for_thinking_gets_the_callers(name, said, means):
    """Conformance 43, 44."""
    assert sent_to(name, said) == said


@pytest.mark.parametrize("table", [ON, OFF])
@pytest.mark.parametrize("name", ON)
def test_a_providers_own_words_reach_it_over_the_wire(ask_as, name, table):
    """Conformance 44."""
    assert ask_as(name, **table[name], vendor=1).status == 200
    assert ask_as.sent == {**table[name], "vendor": 1, **(SPLIT if name == "minimax" else {})}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "said",
    [
        {"thinking": {"budget_tokens": 5}},
        {"thinking": "enabled"},
        {"thinking": {}},
        {"thinking": {"type": ["enabled"]}},
        {"enable_thinking": "yes"},
        {"enable_thinking": 1},
        {"chat_template_kwargs": {"other": None}},
        {"reasoning_effort": "high"},
        {"thinking_budget": 100},
    ],
)
def test_what_says_neither_on_nor_off_passes_as_it_is(name, said):
    """Conformance 43, 44."""
    assert sent_to(name, said) == said


def test_what_stands_beside_a_wish_survives_it():
    assert sent_to("minimax", {"thinking": {"type": "enabled", "budget_tokens": 5}}) == {
        "thinking": {"type": "adaptive", "budget_tokens": 5}
    }
    assert sent_to("alibaba", {"thinking": {"type": "enabled"}, "thinking_budget": 9}) == {
        "enable_thinking": True,
        "thinking_budget": 9,
    }
    assert sent_to(
        "vllm", {"chat_template_kwargs": {"lang": "en"}, "reasoning_effort": "none"}
    ) == {"chat_template_kwargs": {"lang": "en", "enable_thinking": False}}
    assert sent_to("deepseek", {"enable_thinking": True, "reasoning_effort": "max"}) == {
        "thinking": {"type": "enabled"},
        "reasoning_effort": "max",
    }


BUDGET = {"budget_tokens": 5}
EFFORT = {"reasoning_effort": "high"}


@pytest.mark.parametrize(
    ("name", "said", "sent", "lost"),
    [
        ("openai", {"thinking": {"type": "enabled", **BUDGET}}, {}, "thinking"),
        ("ollama", {"thinking": {"type": "enabled", **BUDGET}}, {}, "thinking"),
        (
            *("openai", {"thinking": {"type": "disabled", **BUDGET}}),
            *({"reasoning_effort": "none"}, "thinking"),
        ),
        (
            *("alibaba", {"thinking": {"type": "enabled", **BUDGET}}),
            *({"enable_thinking": True}, "thinking"),
        ),
        (
            *("deepseek", {"chat_template_kwargs": {"enable_thinking": True, "lang": "en"}}),
            *(typed("enabled"), "chat_template_kwargs"),
        ),
        (
            "openai",
            {**typed("disabled"), **EFFORT},
            {"reasoning_effort": "none"},
            "reasoning_effort",
        ),
        ("openai", {**typed("enabled"), **EFFORT}, EFFORT, None),
        ("openai", {"chat_template_kwargs": {"enable_thinking": True}}, {}, None),
    ],
)
def test_what_means_nothing_in_the_providers_words_is_not_sent_and_the_caller_is_told(
    ask_as, name, said, sent, lost
):
    assert sent_to(name, said, noted={lost: "changed"} if lost else {}) == sent
    reply = ask_as(name, **said)
    assert ask_as.sent == sent
    assert reply.headers.get("x-oneai-changed") == lost


@pytest.mark.parametrize("name", ON)
@pytest.mark.parametrize(("said", "means"), SAID)
def test_what_the_caller_says_of_thinking_outdoes_the_models_default(name, said, means):
    opposite = typed("disabled") if means is ON else typed("enabled")
    assert sent_to(name, said, defaults=opposite) == means[name]


def test_the_caller_decides_whether_r1_thinks(make_gateway, provider, headers, send):
    row = {"base_url": provider.url, "api_key": "sk-1"}
    gateway = make_gateway(providers={"deepseek": row})
    for wish in ({}, {"reasoning_effort": "none"}):
        body = {"model": "deepseek-r1", "messages": TURNS[:1], **wish}
        assert send(gateway, "POST", "/v1/chat/completions", body, headers).status == 200
    assert [turn.json["thinking"]["type"] for turn in provider.turns] == ["enabled", "disabled"]
    assert "reasoning_effort" not in provider.turns[1].json


def test_one_models_default_is_told_to_each_of_its_providers_in_its_words(
    make_gateway, provider, completion, headers, send
):
    def respond(turn):
        busy = "/zhipu/" in turn.path
        turn.answer({"error": {"message": "busy"}}, 503) if busy else turn.answer(completion("hi"))

    provider.respond = respond
    gateway = make_gateway(
        providers={
            name: {"base_url": f"{provider.url}/{name}", "api_key": "sk-1"}
            for name in ("zhipu", "alibaba")
        },
        models={
            "bot": {
                "routes": ["zhipu/glm", "alibaba/qwen"],
                "defaults": {"thinking": {"type": "disabled"}},
                "input": "1",
                "output": "1",
            }
        },
    )
    body = {"model": "bot", "messages": TURNS[:1], "temperature": 2}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    assert reply.status == 200
    first, second = (turn.json for turn in provider.turns)
    assert (first["model"], first["thinking"]) == ("glm", {"type": "disabled"})
    assert (second["model"], second["enable_thinking"]) == ("qwen", False)
    assert "thinking" not in second
    assert reply.headers["x-oneai-changed"] == "temperature"


# --- streams ----------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_every_stream_asks_for_its_usage_and_only_openai_for_padding(ask_as, provider, name):
    """Conformance 67."""
    options = {"include_usage": False, "include_obfuscation": False, "vendor": 1}
    ask_as(name, stream=True, stream_options=options)
    expected = {"include_usage": True, "vendor": 1}
    if name == "openai":
        expected["include_obfuscation"] = False
    assert provider.turns[0].json["stream_options"] == expected


def test_a_provider_that_cannot_tell_its_usage_in_a_stream_is_not_asked(ask_as, provider):
    """Conformance 67."""
    flagged = {"stream_usage": False}
    ask_as("zhipu", dialect=flagged, stream=True, stream_options={"include_usage": True})
    assert "stream_options" not in provider.turns[0].json
    ask_as("zhipu", dialect=flagged, stream=True, stream_options={"vendor": 1})
    assert provider.turns[1].json["stream_options"] == {"vendor": 1}


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"alibaba"}))
def test_an_answer_in_one_piece_has_no_stream_options(ask_as, provider, name):
    ask_as(name, stream_options={"include_usage": True})
    assert provider.turns[0].json["stream"] is False
    assert "stream_options" not in provider.turns[0].json


# --- whatever the body, whatever the dialect ----------------------------------------

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "none"])
values = st.recursive(
    scalars,
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "type", "name", "strict"]), below, max_size=3)
    ),
    max_leaves=6,
)
parts = st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=5)})
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["developer", "system", "user", "assistant", "tool"]),
            "content": st.text(max_size=5) | st.lists(parts, max_size=2),
        },
        optional=dict.fromkeys(("name", "refusal", "tool_calls", "reasoning_content", "x"), values),
    ),
    min_size=1,
    max_size=3,
)
NUMBERS = ["temperature", "top_p", "presence_penalty", "frequency_penalty", "n", "seed"]
WORDS = ["user", "user_id", "tool_choice", "reasoning_effort", "do_sample", "enable_thinking"]
THINGS = ["tools", "stop", "logit_bias", "thinking", "chat_template_kwargs", "stream_options"]
thinking = st.sampled_from([said for said, _ in SAID])
bodies = st.builds(
    lambda body, said: {**body, **said},
    st.fixed_dictionaries(
        {"model": st.sampled_from(["m", "o3", "gpt-5"]), "messages": messages},
        optional={
            **{name: st.floats(-2, 2) | st.integers(-2, 2) | values for name in NUMBERS},
            **{name: values | st.text(max_size=9) for name in WORDS},
            **dict.fromkeys(THINGS, values),
            "tools": st.lists(st.just(STRICT) | values, max_size=2),
            "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=3) | values,
            "max_tokens": st.integers(1, 9),
            "max_completion_tokens": st.integers(1, 9),
        },
    ),
    thinking | st.just({}),
)
fields = st.sampled_from([*NUMBERS, *WORDS, *THINGS[:-1], "max_tokens"])
paths = fields | st.sampled_from(["messages[].name", "messages[].x.a", "tools[].function.strict"])
# Neither the number of answers nor their length is a dialect's to say.
free = fields.filter(lambda name: name not in {"n", *BOUNDS})
droppable = paths.filter(lambda path: path not in BOUNDS)
tables = st.dictionaries(free, scalars, max_size=2)
made = st.builds(
    read_dialect,
    st.fixed_dictionaries(
        {"name": st.sampled_from(EVERY)},
        optional={
            "drop": st.lists(droppable, max_size=3),
            "drop_for": st.dictionaries(
                st.sampled_from(["*", "o?"]), st.lists(droppable, max_size=2), max_size=1
            ),
            "values": st.dictionaries(free, st.lists(values, max_size=2), max_size=2),
            "ranges": st.dictionaries(free, st.just((0.5, 1)), max_size=2),
            "sizes": st.dictionaries(fields, st.just((1, 2)), max_size=2),
            "stops": st.integers(0, 2),
            "greedy": tables,
            "rename": st.dictionaries(paths, free, max_size=2),
            "length": st.sampled_from(["", "max_tokens", "max_completion_tokens"]),
            "roles": st.dictionaries(st.just("developer"), st.just("user"), max_size=1),
            "thinking": st.builds(lambda on, off: {"on": on, "off": off}, tables, tables),
            "defaults": tables,
            "stream_usage": st.booleans(),
            "obfuscation": st.booleans(),
        },
    ),
)


def texts(body):
    return [text_of(message["content"]) for message in body["messages"]]


@given(body=bodies, dialect=st.sampled_from(list(SHIPPED.values())), stream=st.booleans())
def test_adapting_twice_is_adapting_once(body, dialect, stream):
    once, _ = adapt(dialect, body, stream=stream)
    assert adapt(dialect, once, stream=stream)[0] == once


@given(body=bodies, dialect=made, stream=st.booleans())
def test_adapting_keeps_the_callers_body_and_every_word_of_it(body, dialect, stream):
    before = copy.deepcopy(body)
    adapted, notes = adapt(dialect, body, stream=stream)
    assert body == before
    assert texts(adapted) == texts(body)
    assert len(adapted["messages"]) == len(body["messages"])
    assert adapted["model"] == body["model"]
    assert adapted["stream"] is stream
    assert set(notes.values()) <= {"changed", "dropped"}


@given(body=bodies)
def test_the_generic_dialect_leaves_what_it_does_not_know(body):
    adapted, notes = adapt(SHIPPED["generic"], body, stream=False)
    ours = {"messages", "stream", "stream_options"}
    assert notes == {}
    assert {name: value for name, value in adapted.items() if name not in ours} == {
        name: value for name, value in body.items() if name not in ours
    }
