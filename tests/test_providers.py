"""The `providers` setting: who answers, through which backend, how patiently."""

from __future__ import annotations

import math
from typing import Any

import pytest

from oneai_middleware import ConfigurationError
from oneai_middleware.backends.echo import EchoBackend
from oneai_middleware.backends.function import FunctionBackend
from oneai_middleware.backends.openai import OpenAIBackend
from oneai_middleware.catalog import presets
from oneai_middleware.protocol.chat import Timeouts
from oneai_middleware.providers import Provider, read_providers

BASE = Timeouts(connect=1, first_token=2, idle=3, total=4)


def read(row: Any, name: str = "mine") -> Provider:
    return read_providers({name: row}, BASE)[name]


def refusal(row: Any, name: str = "mine") -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(row, name)
    return str(caught.value)


@pytest.mark.parametrize("name", ["deepseek", "alibaba", "moonshot", "minimax", "zhipu", "openai"])
def test_the_shipped_providers_need_a_key_only(name: str) -> None:
    provider = read({"api_key": "sk-1"}, name)
    assert provider.name == name
    assert isinstance(provider.backend, OpenAIBackend)
    assert provider.timeouts == BASE


@pytest.mark.parametrize("row", [{}, {"api_key": "sk-1"}])
@pytest.mark.parametrize("name", ["vllm", "llamacpp", "ollama"])
def test_servers_of_ones_own_need_nothing(name: str, row: Any) -> None:
    assert isinstance(read(row, name).backend, OpenAIBackend)


@pytest.mark.parametrize("row", [{}, {"api_key": ""}, {"api_key": None}])
@pytest.mark.parametrize("name", ["deepseek", "zhipu", "openai"])
def test_a_shipped_provider_without_a_key_is_told_its_usual_variable(name: str, row: Any) -> None:
    message = refusal(row, name)
    assert message.startswith(f"providers[{name!r}]: give an api_key")
    assert f"env:{presets()[name].key_variable}" in message


@pytest.mark.parametrize("row", [{"api_key": "sk-1"}, {"api_key": ""}, {}])
def test_a_shipped_provider_can_be_asked_at_another_address_where_no_key_may_be_needed(
    provider: Any, row: Any
) -> None:
    deepseek = read({**row, "base_url": provider.url}, "deepseek")
    deepseek.backend.check()
    (turn,) = provider.turns
    assert turn.path == "/v1/models"
    assert ("Authorization" in dict(turn.headers)) is bool(row.get("api_key"))


def test_a_shipped_provider_can_be_played_by_another_backend() -> None:
    assert isinstance(read({"backend": "echo"}, "deepseek").backend, EchoBackend)


def test_a_provider_of_ones_own_needs_an_address_and_no_key() -> None:
    assert isinstance(read({"base_url": "http://127.0.0.1:1/v1"}).backend, OpenAIBackend)
    assert "base_url: an address" in refusal({"api_key": "sk-1"})
    assert "base_url: an address" in refusal({"base_url": "127.0.0.1:1/v1"})


def test_a_provider_can_be_a_function_of_the_host() -> None:
    assert isinstance(read({"backend": lambda request: "hello"}).backend, FunctionBackend)
    assert "unknown option 'text'" in refusal({"backend": lambda request: "hello", "text": "x"})


def test_time_limits_of_its_own_replace_the_general_ones_one_by_one() -> None:
    provider = read({"backend": "echo", "timeouts": {"idle": 30, "total": 0.5}})
    assert provider.timeouts == Timeouts(connect=1, first_token=2, idle=30, total=0.5)


@pytest.mark.parametrize("value", [0, -1, "5", True, None, math.nan, math.inf])
def test_a_time_limit_is_a_number_of_seconds(value: Any) -> None:
    message = refusal({"backend": "echo", "timeouts": {"idle": value}})
    assert message == "providers['mine']['timeouts']: idle is a number of seconds above 0"


@pytest.mark.parametrize("value", [5, "5", None, ["idle"]])
def test_time_limits_are_a_table(value: Any) -> None:
    message = refusal({"backend": "echo", "timeouts": value})
    assert message == "providers['mine']['timeouts']: a table of seconds"


@pytest.mark.parametrize("row", ["sk-1", None, ["echo"], 5])
def test_a_provider_is_a_table(row: Any) -> None:
    assert refusal(row) == "providers['mine']: a table such as {'api_key': 'env:NAME'}"


def test_a_name_with_a_slash_could_not_stand_in_a_route() -> None:
    assert refusal({"backend": "echo"}, "a/b") == "providers['a/b']: a provider's name holds no '/'"


def test_the_callers_table_is_left_as_it_was() -> None:
    row = {"backend": "echo", "timeouts": {"idle": 1}}
    read(row)
    assert row == {"backend": "echo", "timeouts": {"idle": 1}}
