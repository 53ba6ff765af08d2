"""The official `openai` client of node, unmodified, against the gateway.

What it sees of a provider's bad streams stands beside what its sister in Python sees, in
the files about those.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from oneai_middleware.rate_limiters.memory import MemoryRateLimiter

NINE = (
    *("deepseek-v4-pro", "deepseek-v4-flash", "deepseek-r1", "deepseek-v3"),
    *("qwen-coder", "qwen-max", "kimi", "minimax-m1", "glm-4"),
)
ASKED = {"model": "kimi", "messages": [{"role": "user", "content": "Say this again"}]}


class Client:
    """The client before one app; ``recorder`` sees what it sends."""

    def __init__(self, ask: Callable[..., Any], recorder: Any) -> None:
        self.ask = ask
        self.recorder = recorder


@pytest.fixture
def connect(node: Any, listen: Any, record: Any, secret: str) -> Callable[..., Client]:
    """The client on an app, which listens on a port of its own."""

    def connect(app: Any, *, api_key: str = secret) -> Client:
        recorder = record(app)
        base_url = listen(recorder)

        def ask(door: str, **body: Any) -> Any:
            return node.ask(door, base_url, api_key, **{**ASKED, **body})

        return Client(ask, recorder)

    return connect


def content_of(answer: Any) -> Any:
    return answer["choices"][0]["message"]["content"]


# --- the client's doors ---------------------------------------------------------------


def test_an_answer_comes_whole(make_app: Any, connect: Any) -> None:
    """Conformance 111."""
    client = connect(make_app())
    answer = client.ask("create").answer
    assert content_of(answer) == "Say this again"
    assert (answer["object"], answer["model"]) == ("chat.completion", "kimi")
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 3
    assert client.recorder.attempts == ["POST /oneai/v1/chat/completions"]


def test_a_stream_comes_chunk_by_chunk(make_app: Any, connect: Any) -> None:
    """Conformance 64 and 111."""
    seen = connect(make_app()).ask("stream")
    assert (seen.text, seen.error) == ("Say this again", None)
    assert all(len(chunk["choices"]) == 1 for chunk in seen.chunks)
    assert not [chunk for chunk in seen.chunks if "usage" in chunk]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in seen.chunks}) == 1


def test_usage_comes_last_if_asked_for(make_app: Any, connect: Any) -> None:
    """Conformance 65 and 111."""
    seen = connect(make_app()).ask("stream", stream_options={"include_usage": True})
    *earlier, last = seen.chunks
    assert {chunk["usage"] for chunk in earlier} == {None}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)
    assert seen.text == "Say this again"


def test_the_stream_helper_gathers_the_answer(make_app: Any, connect: Any) -> None:
    """Conformance 111."""
    seen = connect(make_app()).ask("helper", stream_options={"include_usage": True})
    assert content_of(seen.answer) == seen.text == "Say this again"
    assert seen.answer["choices"][0]["finish_reason"] == "stop"
    assert seen.answer["usage"]["completion_tokens"] == 3


def test_the_response_comes_beside_the_answer(make_app: Any, connect: Any) -> None:
    """Conformance 12 and 111."""
    client = connect(make_app())
    seen = client.ask("withResponse")
    assert content_of(seen.answer) == "Say this again"
    assert seen.response["status"] == 200
    assert seen.response["headers"]["x-ratelimit-limit-requests"] == "200"
    assert [seen.response["request_id"]] == client.recorder.ids


@pytest.mark.parametrize("stream", [False, True])
def test_the_bare_response_holds_what_was_sent(make_app: Any, connect: Any, stream: bool) -> None:
    """Conformance 57, 58 and 111."""
    response = connect(make_app()).ask("asResponse", stream=stream).response
    kind = response["headers"]["content-type"]
    if stream:
        assert kind == "text/event-stream; charset=utf-8"
        *events, end = response["text"].removesuffix("\n\n").split("\n\n")
        assert all(json.loads(event.removeprefix("data: ")) for event in events)
        assert end == "data: [DONE]"
    else:
        assert kind == "application/json"
        assert content_of(json.loads(response["text"])) == "Say this again"


def test_the_models_are_listed_and_found_one_by_one(make_app: Any, connect: Any) -> None:
    """Conformance 23, 27 and 111."""
    odd = {"routes": ["zhipu/x"], "input": "1", "output": "1"}
    client = connect(make_app(models={"org/modèle :free": odd, "a%2Fb": odd}))
    models = client.ask("models").answer
    assert tuple(model["id"] for model in models) == (*NINE, "org/modèle :free", "a%2Fb")
    assert [client.ask("model", model=model["id"]).answer for model in models] == models


@pytest.mark.parametrize("door", ["abort", "leave"])
def test_a_caller_who_aborts_frees_provider_and_slot(
    make_app: Any, connect: Any, provider: Any, asking_provider: Any, eventually: Any, door: str
) -> None:
    """Conformance 78 and 111."""

    def respond(turn: Any) -> None:
        turn.start_stream()
        turn.text("one ")
        turn.hold()

    provider.respond = respond
    app = make_app(account={"limits": {"concurrent": 1}}, **asking_provider)
    client = connect(app)
    for number in (1, 2):  # the second finds the only slot free again
        assert client.ask(door, model="bot").text == "one "
        assert eventually(provider.turns[-1].left.is_set)
        eventually(lambda: app.gateway.ledger.balance("alice").held == 0)
        outcomes = [row.outcome for row in app.gateway.ledger.entries("alice")]
        assert outcomes == ["caller_left"] * number


# --- errors -----------------------------------------------------------------------------

ERRORS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, int, str, str | None]]] = {
    "a wrong value": (
        {},
        {"temperature": 2.5},
        ("BadRequestError", 400, "invalid_value", "temperature"),
    ),
    "an unknown model": (
        {},
        {"model": "gpt-4"},
        ("NotFoundError", 404, "model_not_found", "model"),
    ),
    "an empty balance": (
        {"account": {"balance": "0"}},
        {},
        ("APIError", 402, "insufficient_balance", None),
    ),
    "a provider that refuses us": (
        {"echo": {"fail": "misconfigured"}},
        {},
        ("InternalServerError", 503, "provider_unavailable", None),
    ),
}


@pytest.mark.parametrize("door", ["create", "stream", "helper"])
@pytest.mark.parametrize("name", ERRORS)
def test_an_error_that_waiting_cannot_cure_is_raised_after_one_attempt(
    make_app: Any, connect: Any, name: str, door: str
) -> None:
    """Conformance 12, 28, 79, 81, 82 and 111."""
    options, body, expected = ERRORS[name]
    client = connect(make_app(**options))
    error = client.ask(door, max_retries=2, **body).error
    assert (error["class"], error["status"], error["code"], error["param"]) == expected
    assert [error["request_id"]] == client.recorder.ids


def test_a_wrong_key_is_an_authentication_error_after_one_attempt(
    make_app: Any, connect: Any
) -> None:
    """Conformance 15 and 111."""
    client = connect(make_app(), api_key="oneai-sk-wrong")
    for door in ("create", "stream", "models"):
        error = client.ask(door, max_retries=2).error
        assert (error["class"], error["status"]) == ("AuthenticationError", 401)
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert "oneai-sk-wrong" not in error["message"]
    assert len(client.recorder.attempts) == 3


@pytest.mark.parametrize("door", ["create", "stream"])
def test_an_overloaded_model_is_tried_three_times_and_bills_nothing(
    make_app: Any, connect: Any, door: str
) -> None:
    """Conformance 87, 90 and 111."""
    app = make_app(echo={"fail": "overloaded"})
    client = connect(app)
    seen = client.ask(door, max_retries=2)
    assert (seen.error["class"], seen.error["status"]) == ("InternalServerError", 503)
    assert (seen.error["code"], seen.error["retry_after"]) == ("model_overloaded", "1")
    assert seen.error["request_id"] == client.recorder.ids[-1]
    assert client.recorder.retries == ["0", "1", "2"]
    assert seen.waits == [1.0, 1.0]
    balance = app.gateway.ledger.balance("alice")
    assert (balance.spent, balance.held, balance.available) == (0, 0, balance.topped_up)


def test_the_clients_own_retry_passes_once_it_has_waited_as_told(
    make_app: Any, connect: Any, clock: Any
) -> None:
    """Conformance 91, 92 and 111."""
    limiter = MemoryRateLimiter(clock=clock.ns)
    client = connect(make_app(account={"tier": "free"}, rate_limiter=limiter))
    for _ in range(20):
        assert client.ask("create").error is None
    error = client.ask("create").error
    assert (error["class"], error["status"]) == ("RateLimitError", 429)
    assert (error["code"], error["retry_after"]) == ("rate_limit_exceeded", "3")
    client.recorder.on_retry = lambda: clock.advance(3)
    seen = client.ask("stream", max_retries=2)
    assert (seen.text, seen.waits) == ("Say this again", [3.0])
    assert client.recorder.retries[-2:] == ["0", "1"]


# --- over a server of its own process -----------------------------------------------------


def test_the_client_works_over_connections_that_are_kept(
    node: Any, base_url: str, secret: str
) -> None:
    """Conformance 111."""

    def ask(door: str, **body: Any) -> Any:
        seen = node.ask(door, base_url, secret, **{**ASKED, **body})
        assert seen.error is None
        return seen

    for _ in range(3):
        assert content_of(ask("create").answer) == "Say this again"
        assert ask("stream").text == "Say this again"
        assert content_of(ask("helper", model="glm-4").answer) == "Say this again"
        assert len(ask("models").answer) == 10
    assert node.ask("stream", base_url, "oneai-sk-wrong", **ASKED).error["status"] == 401
    assert ask("leave").text == "Say "
    assert ask("create", model="org/modèle :free").answer["model"] == "org/modèle :free"
