"""What a caller may use, as ``/v1/models`` shows it and as chat takes it."""

import json
from urllib.parse import quote

import pytest

from oneai_middleware.secret import new_secret

SEED = [
    # id, context, dollars for a million tokens of input and of output
    ("deepseek-v4-pro", 128_000, "1.00", "4.00"),
    ("deepseek-v4-flash", 128_000, "0.30", "1.20"),
    ("deepseek-r1", 128_000, "0.80", "3.50"),
    ("deepseek-v3", 128_000, "0.50", "2.19"),
    ("qwen-coder", 128_000, "0.40", "1.60"),
    ("qwen-max", 32_000, "0.60", "2.40"),
    ("kimi", 128_000, "0.40", "1.60"),
    ("minimax-m1", 1_000_000, "0.35", "1.40"),
    ("glm-4", 128_000, "0.30", "1.20"),
]
IDS = [id for id, *_ in SEED]
MESSAGES = [{"role": "user", "content": "one two"}]


@pytest.fixture
def ask(send, headers):
    def ask(gateway, path="", secret=None):
        sent = headers if secret is None else {"Authorization": f"Bearer {secret}"}
        return send(gateway, "GET", f"/v1/models{path}", headers=sent)

    return ask


def listed(reply):
    return [model["id"] for model in reply.json["data"]]


# --- the list -----------------------------------------------------------------


def test_the_nine_models_are_listed_in_their_order(make_gateway, ask):
    """Conformance 23."""
    gateway = make_gateway()
    reply = ask(gateway)
    assert (reply.status, reply.json["object"]) == (200, "list")
    assert listed(reply) == IDS
    assert ask(gateway).read() == reply.read()


def test_every_model_says_what_it_is_and_costs(make_gateway, ask):
    """Conformance 24."""
    for model, (id, context, input, output) in zip(
        ask(make_gateway()).json["data"], SEED, strict=True
    ):
        assert (model["id"], model["object"]) == (id, "model")
        assert type(model["created"]) is int
        assert model["created"] > 0
        assert isinstance(model["owned_by"], str)
        assert model["owned_by"]
        assert model["context_length"] == context
        assert model["pricing"] == {"input": input, "output": output}


@pytest.mark.parametrize("id", IDS)
def test_one_model_is_as_in_the_list(make_gateway, ask, id):
    """Conformance 25."""
    gateway = make_gateway()
    reply = ask(gateway, f"/{id}")
    assert reply.status == 200
    assert reply.json == ask(gateway).json["data"][IDS.index(id)]


def test_the_model_that_is_printed_twice_has_its_first_price(make_gateway, ask):
    """Conformance 25."""
    pricing = ask(make_gateway(), "/deepseek-r1").json["pricing"]
    assert pricing == {"input": "0.80", "output": "3.50"}


def test_a_model_nobody_serves_is_not_listed(make_gateway, ask):
    gateway = make_gateway(providers={"deepseek": {"backend": "echo"}})
    assert listed(ask(gateway)) == IDS[:4]
    assert ask(gateway, "/kimi").error["code"] == "model_not_found"


def test_a_gateway_without_models_lists_none(make_gateway, ask):
    reply = ask(make_gateway(providers={}))
    assert (reply.status, reply.json) == (200, {"object": "list", "data": []})


def test_a_removed_model_is_gone_and_an_added_one_comes_last(make_gateway, ask, send, headers):
    gateway = make_gateway(
        models={"kimi": False, "bot": {"routes": ["zhipu/x"], "input": "0", "output": "0"}}
    )
    assert listed(ask(gateway)) == [*(id for id in IDS if id != "kimi"), "bot"]
    assert ask(gateway, "/kimi").status == 404
    body = {"model": "kimi", "messages": MESSAGES}
    assert send(gateway, "POST", "/v1/chat/completions", body, headers).status == 404


# --- who may use what ---------------------------------------------------------


def test_an_account_sees_only_its_own_models(make_gateway, ask, send, secret, headers):
    gateway = make_gateway(account={"models": ["kimi", "deepseek-v3"]})
    assert listed(ask(gateway)) == ["deepseek-v3", "kimi"]
    assert ask(gateway, "/kimi").status == 200
    hidden, unknown = ask(gateway, "/glm-4"), ask(gateway, "/glm-9")
    assert (hidden.status, hidden.error["code"]) == (404, "model_not_found")
    assert hidden.read().replace(b"glm-4", b"glm-9") == unknown.read()


def test_a_key_sees_only_its_own_models(make_gateway, ask):
    gateway = make_gateway(account={"models": ["kimi", "deepseek-v3"]})
    _, secret = gateway.key_store.create("alice", models=frozenset({"kimi", "glm-4"}))
    assert listed(ask(gateway, secret=secret)) == ["kimi"]
    assert ask(gateway, "/glm-4", secret).status == 404


def test_two_accounts_see_different_lists(make_gateway, ask):
    mine, theirs = new_secret(), new_secret()
    gateway = make_gateway(
        accounts={
            "ann": {"keys": [mine], "models": ["kimi"]},
            "ben": {"keys": [theirs], "models": ["glm-4"]},
        }
    )
    assert (listed(ask(gateway, "", mine)), listed(ask(gateway, "", theirs))) == (
        ["kimi"],
        ["glm-4"],
    )


# --- unknown and odd ids ------------------------------------------------------


@pytest.mark.parametrize(
    "id", ["gpt-9", "DEEPSEEK-R1", "deepseek-r1 ", "a/b", "..", "%00", "\u00e9"]
)
def test_an_unknown_model_is_404(make_gateway, ask, send, headers, id):
    """Conformance 26 and 28."""
    gateway = make_gateway()
    body = {"model": id, "messages": MESSAGES}
    for reply in (
        ask(gateway, "/" + quote(id)),
        send(gateway, "POST", "/v1/chat/completions", body, headers),
        send(gateway, "POST", "/v1/chat/completions", {**body, "stream": True}, headers),
    ):
        assert reply.status == 404
        assert reply.error["code"] == "model_not_found"
        assert (reply.error["type"], reply.error["param"]) == ("invalid_request_error", "model")


@pytest.mark.parametrize("id", ["x" * 100_000, "\u202e\x07\n<script>", "\U0001f600" * 100])
def test_an_unknown_id_is_repeated_in_part_and_harmlessly(make_gateway, send, headers, id):
    body = {"model": id, "messages": MESSAGES}
    error = send(make_gateway(), "POST", "/v1/chat/completions", body, headers).error
    assert error["code"] == "model_not_found"
    assert len(error["message"]) < 200
    assert error["message"].isprintable()


ODD = [
    "org/name",
    "org/deep/er",
    "a:b",
    "a b",
    "caf\u00e9",
    "\u6a21\u578b",
    "a+b",
    "100%",
    "?#&",
    "~x",
]


@pytest.mark.parametrize("id", ODD)
def test_an_odd_id_is_found_by_its_encoded_path(make_gateway, ask, send, headers, id):
    """Conformance 27."""
    row = {"routes": ["deepseek/up"], "input": "1", "output": "1"}
    gateway = make_gateway(models={id: row})
    for path in (quote(id, safe=""), quote(id)):
        reply = ask(gateway, f"/{path}")
        assert (reply.status, reply.json["id"]) == (200, id)
        assert ask(gateway, f"/{path}/").status == 200
    body = {"model": id, "messages": MESSAGES}
    assert send(gateway, "POST", "/v1/chat/completions", body, headers).json["model"] == id


# --- the answer's model -------------------------------------------------------


def stream_of(reply):
    lines = [line for line in reply.read().split(b"\n\n") if line]
    assert lines.pop() == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


@pytest.mark.parametrize("id", IDS)
def test_an_answer_names_the_model_that_was_asked_for(make_gateway, send, headers, id):
    """Conformance 29."""
    gateway = make_gateway()
    body = {"model": id, "messages": MESSAGES, "stream_options": {"include_usage": True}}
    reply = send(gateway, "POST", "/v1/chat/completions", body, headers)
    assert reply.json["model"] == id
    chunks = stream_of(
        send(gateway, "POST", "/v1/chat/completions", {**body, "stream": True}, headers)
    )
    assert {chunk["model"] for chunk in chunks} == {id}


def test_the_providers_own_name_is_sent_up_and_never_comes_back(
    make_gateway, asking_provider, provider, send, headers, completion
):
    """Conformance 29."""

    def respond(turn):
        if turn.json["stream"]:
            turn.start_stream()
            turn.text("one", "stop", model="upstream-model")
            turn.event("[DONE]")
        else:
            turn.answer(completion("one", model="upstream-model"))

    provider.respond = respond
    gateway = make_gateway(**asking_provider)
    for stream in (False, True):
        body = {"model": "bot", "messages": MESSAGES, "stream": stream}
        data = send(gateway, "POST", "/v1/chat/completions", body, headers).read()
        assert b"upstream-model" not in data
        assert b'"model":"bot"' in data
        assert provider.turns[-1].json["model"] == "up/bot"
