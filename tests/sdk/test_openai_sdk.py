"""The official `openai` client, unmodified, against the gateway."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from oneai_middleware.rate_limiters.memory import MemoryRateLimiter

try:  # what the SDK travels on
    import httpx2 as httpx
except ImportError:  # older versions of it
    import httpx

NINE = (
    *("deepseek-v4-pro", "deepseek-v4-flash", "deepseek-r1", "deepseek-v3"),
    *("qwen-coder", "qwen-max", "kimi", "minimax-m1", "glm-4"),
)
HELLO = [{"role": "user", "content": "Say this again"}]

# The samples of the API reference, as they stand there.
COMPLETION = """
from openai import OpenAI
client = OpenAI(
    api_key="oneai-sk-...",
    base_url="https://api.oneai.io/v1"
)
response = client.chat.completions.create(
    model="deepseek-v4-pro",
    messages=[
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Explain quantum computing in simple terms."}
    ],
    temperature=0.7,
    max_tokens=1024
)
print(response.choices[0].message.content)
"""
STREAM = """
stream = client.chat.completions.create(
    model="deepseek-v3",
    messages=[{"role": "user", "content": "Write a haiku about AI"}],
    stream=True
)
for chunk in stream:
    if chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="")
"""


class Client(openai.OpenAI):
    """The SDK's client in this process; ``recorder`` sees what it sends."""

    recorder: Any


@pytest.fixture
def connect(record: Any, secret: str) -> Iterator[Callable[..., Client]]:
    """The SDK's client on an app, without a network in between."""
    opened: list[httpx.Client] = []

    def connect(app: Any, *, base_url: str = "http://test/oneai/v1", **options: Any) -> Client:
        recorder = record(app)
        http_client = httpx.Client(transport=httpx.WSGITransport(app=recorder))
        opened.append(http_client)
        options = {"api_key": secret, **options}
        client = Client(base_url=base_url, http_client=http_client, **options)
        client.recorder = recorder
        return client

    yield connect
    for http_client in opened:
        http_client.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], None]], list[float]]:
    """Let the SDK wait for its retries in a function of the test; how long it waited."""

    def patient(sleep: Callable[[float], None]) -> list[float]:
        waits: list[float] = []

        def pause(seconds: float) -> None:
            waits.append(seconds)
            sleep(seconds)

        clock = SimpleNamespace(sleep=pause, time=lambda: 0.0)
        monkeypatch.setattr("openai._base_client.time", clock)
        return waits

    return patient


def no_wait(seconds: float) -> None:
    """Do not wait."""


# --- the samples ------------------------------------------------------------


@pytest.fixture
def run_samples(
    connect: Any, secret: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[[Any, str], str]:
    """Run a sample with its key and base URL changed and nothing else; what it prints."""

    def run(app: Any, source: str) -> str:
        http_client = connect(app)._client
        monkeypatch.setattr(
            openai, "OpenAI", functools.partial(openai.OpenAI, http_client=http_client)
        )
        source = source.replace("oneai-sk-...", secret)
        source = source.replace("https://api.oneai.io/v1", "http://test/oneai/v1")
        exec(compile(source, "sample", "exec"), {})  # noqa: S102 - our own sample
        monkeypatch.undo()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("model", NINE)
def test_the_references_samples_run_verbatim_on_every_model(
    make_app: Any, run_samples: Any, model: str
) -> None:
    """Conformance 63."""
    sample = (COMPLETION + STREAM).replace("deepseek-v4-pro", model).replace("deepseek-v3", model)
    printed = run_samples(make_app(), sample)
    assert printed == "Explain quantum computing in simple terms.\nWrite a haiku about AI"


def test_the_references_way_to_pass_a_key_works(make_app: Any, run_samples: Any) -> None:
    source = """
import openai
client = openai.OpenAI(
    api_key="oneai-sk-...",
    base_url="https://api.oneai.io/v1"
)
print(len(client.models.list().data))
"""
    assert run_samples(make_app(), source) == "9\n"


@pytest.mark.parametrize("model", NINE)
def test_the_streaming_loop_runs_on_every_model_although_usage_is_asked_for(
    make_app: Any, connect: Any, model: str
) -> None:
    stream = connect(make_app()).chat.completions.create(
        model=model, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "Say this again"
    assert {(c.id, c.created, c.model, c.object) for c in chunks} == {
        (chunks[0].id, chunks[0].created, model, "chat.completion.chunk")
    }
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 3)


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("mount", ["/oneai", ""])
def test_a_base_url_with_and_without_a_trailing_slash_works(
    make_app: Any, connect: Any, mount: str, slash: str
) -> None:
    """Conformance 110."""
    client = connect(make_app(mount=mount), base_url=f"http://test{mount}/v1{slash}")
    assert len(client.models.list().data) == 9
    answer = client.chat.completions.create(model="kimi", messages=HELLO)
    assert answer.choices[0].message.content == "Say this again"
    assert client.recorder.attempts == [
        f"GET {mount}/v1/models",
        f"POST {mount}/v1/chat/completions",
    ]


# --- the client's other doors -------------------------------------------------


def test_the_raw_response_shows_status_headers_and_the_parsed_answer(
    make_app: Any, connect: Any
) -> None:
    """Conformance 111."""
    raw = connect(make_app()).chat.completions.with_raw_response.create(
        model="kimi", messages=HELLO
    )
    assert raw.http_response.status_code == 200
    assert raw.headers["x-ratelimit-limit-requests"] == "200"
    assert raw.parse().choices[0].message.content == "Say this again"
    assert raw.parse()._request_id == raw.headers["x-request-id"]


def test_the_streaming_response_hands_out_the_events_as_lines(make_app: Any, connect: Any) -> None:
    """Conformance 111."""
    create = connect(make_app()).chat.completions.with_streaming_response.create
    with create(model="kimi", messages=HELLO, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_the_stream_helper_gathers_the_answer(make_app: Any, connect: Any) -> None:
    """Conformance 111."""
    with connect(make_app()).chat.completions.stream(
        model="kimi", messages=HELLO, stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Say this again"
    assert final.choices[0].finish_reason == "stop"
    assert final.usage.total_tokens == final.usage.prompt_tokens + 3
    assert "content.delta" in kinds


def test_extra_body_reaches_the_provider_at_the_top_level(
    make_app: Any, connect: Any, provider: Any, asking_provider: Any
) -> None:
    """Conformance 44."""
    connect(make_app(**asking_provider)).chat.completions.create(
        model="bot", messages=HELLO, extra_body={"thinking": {"type": "enabled"}, "top_k": 5}
    )
    sent = provider.turns[0].json
    assert (sent["thinking"], sent["top_k"]) == ({"type": "enabled"}, 5)


def test_nothing_of_the_callers_headers_reaches_the_provider(
    make_app: Any, connect: Any, provider: Any, asking_provider: Any, secret: str
) -> None:
    """Conformance 14."""
    client = connect(make_app(**asking_provider), organization="org-1", project="proj-1")
    client.chat.completions.create(
        model="bot", messages=HELLO, extra_headers={"Cookie": "session=1", "X-Own": "1"}
    )
    sent = {name.lower(): value for name, value in provider.turns[0].headers}
    assert sent["authorization"] == "Bearer sk-upstream-secret"
    assert not {"cookie", "openai-organization", "openai-project", "x-own"} & set(sent)
    assert not [name for name in sent if name.startswith("x-stainless")]
    assert secret not in str(provider.turns[0].headers)


def test_a_stream_that_is_left_early_costs_what_was_read(make_app: Any, connect: Any) -> None:
    app = make_app(echo={"text": "word " * 50})
    with connect(app).chat.completions.create(model="kimi", messages=HELLO, stream=True) as stream:
        next(stream)
    assert app.gateway.ledger.balance("alice").held == 0
    (entry,) = app.gateway.ledger.entries("alice")
    assert (entry.outcome, entry.estimated) == ("caller_left", True)
    assert 0 < entry.completion_tokens < 20


# --- models -----------------------------------------------------------------


def test_the_models_are_listed_and_found_one_by_one(make_app: Any, connect: Any) -> None:
    """Conformance 23."""
    client = connect(make_app())
    models = client.models.list().data
    assert tuple(model.id for model in models) == NINE
    assert {model.object for model in models} == {"model"}
    assert all(isinstance(model.created, int) for model in models)
    assert [client.models.retrieve(model.id) for model in models] == models


@pytest.mark.parametrize("id", ["org/name", "org/deep/name:free", "name with space", "a%2Fb"])
def test_an_id_of_any_characters_can_be_retrieved_and_asked(
    make_app: Any, connect: Any, id: str
) -> None:
    """Conformance 27."""
    model = {"routes": ["deepseek/x"], "input": "1", "output": "1"}
    client = connect(make_app(models={id: model}))
    assert client.models.retrieve(id).id == id
    assert client.chat.completions.create(model=id, messages=HELLO).model == id


# --- errors -----------------------------------------------------------------


def test_a_wrong_key_is_an_authentication_error_after_one_attempt(
    make_app: Any, connect: Any
) -> None:
    """Conformance 15."""
    client = connect(make_app(), api_key="oneai-sk-wrong")
    with pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model="kimi", messages=HELLO)
    assert caught.value.code == "invalid_api_key"
    assert "oneai-sk-wrong" not in str(caught.value)
    assert len(client.recorder.attempts) == 1


def test_an_empty_balance_is_a_402_after_one_attempt(make_app: Any, connect: Any) -> None:
    """Conformance 81."""
    client = connect(make_app(account={"balance": "0"}))
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="kimi", messages=HELLO)
    assert type(caught.value) is openai.APIStatusError
    assert (caught.value.status_code, caught.value.code) == (402, "insufficient_balance")
    assert len(client.recorder.attempts) == 1


def test_an_unknown_model_is_a_not_found_error(make_app: Any, connect: Any) -> None:
    """Conformance 28."""
    client = connect(make_app())
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    assert len(client.recorder.attempts) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_value_is_a_bad_request_error(make_app: Any, connect: Any, stream: bool) -> None:
    """Conformance 79."""
    client = connect(make_app())
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="kimi", messages=HELLO, temperature=2.5, stream=stream)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    assert len(client.recorder.attempts) == 1


def test_endpoints_we_do_not_have_are_not_found_errors(make_app: Any, connect: Any) -> None:
    """Conformance 107."""
    client = connect(make_app())
    calls = [
        lambda: client.completions.create(model="kimi", prompt="hello"),
        lambda: client.embeddings.create(model="kimi", input="hello"),
        lambda: client.responses.create(model="kimi", input="hello"),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "unknown_url"


def test_every_error_carries_the_id_of_its_request(make_app: Any, connect: Any) -> None:
    """Conformance 12."""
    client = connect(make_app())
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    answer = client.chat.completions.create(model="kimi", messages=HELLO)
    assert [caught.value.request_id, answer._request_id] == client.recorder.ids
    assert len(set(client.recorder.ids)) == 2


def test_a_free_key_that_bursts_gets_a_rate_limit_error(make_app: Any, connect: Any) -> None:
    """Conformance 91."""
    client = connect(make_app(account={"tier": "free"}), max_retries=0)
    for _ in range(20):
        client.chat.completions.create(model="kimi", messages=HELLO)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="kimi", messages=HELLO)
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


def test_the_clients_own_retry_passes_once_it_has_waited_as_told(
    make_app: Any, connect: Any, clock: Any, patient: Any
) -> None:
    """Conformance 92."""
    waits = patient(clock.advance)
    limiter = MemoryRateLimiter(clock=clock.ns)
    client = connect(make_app(account={"tier": "free"}, rate_limiter=limiter))
    for _ in range(25):
        client.chat.completions.create(model="kimi", messages=HELLO)
    assert waits == [3.0] * 5
    assert client.recorder.retries.count("1") == 5


def test_a_call_over_the_concurrent_ones_passes_when_one_has_ended_meanwhile(
    make_app: Any, connect: Any, patient: Any
) -> None:
    """Conformance 93."""
    app = make_app(account={"tier": "free"}, echo={"text": "one two", "delay": 60})
    client = connect(app)
    running = [
        client.chat.completions.create(model="kimi", messages=HELLO, stream=True) for _ in range(2)
    ]
    for stream in running:
        next(stream)
    with pytest.raises(openai.RateLimitError) as caught:
        client.with_options(max_retries=0).chat.completions.create(model="kimi", messages=HELLO)
    assert caught.value.code == "concurrency_limit_exceeded"
    waits = patient(lambda seconds: running[0].close())
    with client.chat.completions.create(model="kimi", messages=HELLO, stream=True) as third:
        assert next(third).choices[0].delta.content == "one "
    running[1].close()
    assert waits == [1.0]


@pytest.mark.parametrize("stream", [False, True])
def test_an_overloaded_model_is_tried_three_times_and_bills_nothing(
    make_app: Any, connect: Any, patient: Any, stream: bool
) -> None:
    """Conformance 90."""
    waits = patient(no_wait)
    app = make_app(echo={"fail": "overloaded"})
    client = connect(app)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="kimi", messages=HELLO, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (503, "model_overloaded")
    assert client.recorder.retries == ["0", "1", "2"]
    assert waits == [1.0, 1.0]
    balance = app.gateway.ledger.balance("alice")
    assert (balance.spent, balance.held, balance.available) == (0, 0, balance.topped_up)


def test_a_provider_that_refuses_us_is_asked_once(make_app: Any, connect: Any) -> None:
    """Conformance 82."""
    client = connect(make_app(echo={"fail": "misconfigured"}))
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="kimi", messages=HELLO)
    assert (caught.value.status_code, caught.value.code) == (503, "provider_unavailable")
    assert len(client.recorder.attempts) == 1


# --- over TCP -----------------------------------------------------------------


def test_the_client_works_over_tcp(base_url: str, secret: str) -> None:
    """Conformance 111, in Python."""
    with openai.OpenAI(base_url=base_url, api_key=secret, max_retries=0) as client:
        assert tuple(model.id for model in client.models.list()) == (*NINE, "org/modèle :free")
        assert client.models.retrieve("org/modèle :free").owned_by == "zhipu"
        answer = client.chat.completions.create(model="kimi", messages=HELLO)
        assert answer.choices[0].message.content == "Say this again"
        for _ in range(2):  # the connection is used again
            chunks = client.chat.completions.create(model="kimi", messages=HELLO, stream=True)
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Say this again"
        with client.chat.completions.stream(model="kimi", messages=HELLO) as stream:
            content = stream.get_final_completion().choices[0].message.content
        assert content == "Say this again"
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="kimi", messages=[])


def test_the_async_client_works_over_tcp(base_url: str, secret: str) -> None:
    """Conformance 111, in Python."""

    async def talk() -> None:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=secret, max_retries=0) as client:
            create = client.chat.completions.create
            answers = await asyncio.gather(
                *(create(model=model, messages=HELLO) for model in NINE[:6])
            )
            assert {answer.choices[0].message.content for answer in answers} == {"Say this again"}
            text = ""
            async for chunk in await create(model="kimi", messages=HELLO, stream=True):
                text += chunk.choices[0].delta.content or ""
            assert text == "Say this again"
            async with client.chat.completions.stream(model="kimi", messages=HELLO) as stream:
                final = await stream.get_final_completion()
            assert final.choices[0].message.content == "Say this again"
            raw = await client.chat.completions.with_raw_response.create(
                model="kimi", messages=HELLO
            )
            assert raw.http_response.status_code == 200
            assert raw.parse()._request_id == raw.headers["x-request-id"]
            async with client.chat.completions.with_streaming_response.create(
                model="kimi", messages=HELLO, stream=True
            ) as response:
                lines = [line async for line in response.iter_lines() if line]
            assert lines[-1] == "data: [DONE]"
            assert [model.id async for model in client.models.list()][:9] == list(NINE)
            with pytest.raises(openai.NotFoundError):
                await create(model="gpt-4", messages=HELLO)

    asyncio.run(talk())
