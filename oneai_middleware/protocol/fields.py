"""From the bytes of a chat request to a :class:`ChatRequest`, checked.

Only what the gateway relies on, or what the API reference promises, is checked:
everything else goes to the provider as the caller wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InvalidJSON, InvalidRequest
from . import json
from .chat import ChatRequest

ROLES = frozenset({"developer", "system", "user", "assistant", "tool", "function"})

ROUTING_FIELDS = frozenset(
    {
        "api_key",
        "api_base",
        "base_url",
        "extra_headers",
        "extra_body",
        "fallbacks",
        "mock_response",
    }
)
"""Top-level fields that other gateways obey as orders where to send a call or with
whose key. They are dropped: where a provider is such a gateway, no caller steers it."""

Check = Callable[[str, Any], None]


def read_chat(data: bytes) -> ChatRequest:
    """The chat request in ``data``.

    Fields that are ``null`` count as absent, as the SDKs mean them.

    :raises InvalidJSON: not a JSON object in UTF-8.
    :raises InvalidRequest: with the path of the offending field as ``param``.
    """
    body = _read_object(data)
    for name in ("model", "messages"):
        if name not in body:
            raise InvalidRequest(
                f"Missing required parameter: '{name}'.",
                param=name,
                code="missing_required_parameter",
            )
    check_fields(body)
    if not body.get("stream"):
        body.pop("stream_options", None)
    if "max_completion_tokens" in body:  # the newer of two names for one thing
        body.pop("max_tokens", None)
    return ChatRequest(body)


def check_fields(body: Mapping[str, Any]) -> None:
    """Check the fields of ``body`` that have a rule of ours.

    :raises InvalidRequest: with the path of the first that breaks it as ``param``.
    """
    for name, value in body.items():
        check = _FIELDS.get(name)
        if check is not None:
            check(name, value)


def _read_object(data: bytes) -> dict[str, Any]:
    if json.is_too_complex(data):
        raise InvalidJSON("The body has too many elements.")
    try:
        body = json.decode(data)
    except json.MalformedJSON:
        raise InvalidJSON("The body is not valid JSON in UTF-8.") from None
    if not isinstance(body, dict):
        raise InvalidJSON("The body must be a JSON object.")
    return {
        name: value
        for name, value in body.items()
        if value is not None and name not in ROUTING_FIELDS
    }


# --- one field --------------------------------------------------------------


def _wrong_type(path: str, expected: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid type for '{path}': expected {expected}.", param=path, code="invalid_type"
    )


def _wrong_value(path: str, expected: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for '{path}': expected {expected}.", param=path, code="invalid_value"
    )


def _number(low: float, high: float) -> Check:
    def check(path: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(path, "a number")
        if not low <= value <= high:
            raise _wrong_value(path, f"a number from {low} to {high}")

    return check


def _integer(low: int, high: int) -> Check:
    def check(path: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(path, "an integer")
        if not low <= value <= high:
            raise _wrong_value(path, f"an integer from {low} to {high}")

    return check


def _is(kind: type, expected: str) -> Check:
    def check(path: str, value: Any) -> None:
        if not isinstance(value, kind):
            raise _wrong_type(path, expected)

    return check


def _name(path: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _wrong_type(path, "a string")
    if not value:
        raise _wrong_value(path, "a string that is not empty")


def _stop(path: str, value: Any) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong_type(path, "a string or an array of strings")


def _choice_of_tool(path: str, value: Any) -> None:
    if not isinstance(value, str | dict):
        raise _wrong_type(path, "a string or an object")


def _objects(path: str, value: Any) -> None:
    if not isinstance(value, list):
        raise _wrong_type(path, "an array of objects")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise _wrong_type(f"{path}[{index}]", "an object")


def _stream_options(path: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise _wrong_type(path, "an object")
    include = value.get("include_usage")
    if include is not None and not isinstance(include, bool):
        raise _wrong_type(f"{path}.include_usage", "a boolean")


# --- messages ---------------------------------------------------------------


def _messages(path: str, value: Any) -> None:
    _objects(path, value)
    if not value:
        raise _wrong_value(path, "an array that is not empty")
    for index, message in enumerate(value):
        if not _is_plain(message):
            _message(f"{path}[{index}]", message)


def _is_plain(message: dict[str, Any]) -> bool:
    """Whether it is as almost all are, and no path need be put together for it."""
    return (
        type(message.get("content")) is str
        and message.get("tool_calls") is None
        and type(role := message.get("role")) is str
        and role in ROLES
    )


def _message(path: str, message: dict[str, Any]) -> None:
    role = message.get("role")
    if role is None:
        raise InvalidRequest(
            f"Missing required parameter: '{path}.role'.",
            param=f"{path}.role",
            code="missing_required_parameter",
        )
    if not isinstance(role, str):
        raise _wrong_type(f"{path}.role", "a string")
    if role not in ROLES:
        raise _wrong_value(f"{path}.role", "one of " + ", ".join(sorted(ROLES)))
    if message.get("tool_calls") is not None:
        _objects(f"{path}.tool_calls", message["tool_calls"])
    _content(f"{path}.content", message.get("content"), optional=role == "assistant")


def _content(path: str, content: Any, *, optional: bool) -> None:
    if content is None:
        if not optional:
            raise InvalidRequest(
                f"Missing required parameter: '{path}'.",
                param=path,
                code="missing_required_parameter",
            )
        return
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise _wrong_type(path, "a string or an array of content parts")
    for index, part in enumerate(content):
        _part(f"{path}[{index}]", part)


def _part(path: str, part: Any) -> None:
    if not isinstance(part, dict):
        raise _wrong_type(path, "an object")
    if not isinstance(part.get("type"), str):
        raise _wrong_type(f"{path}.type", "a string")
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise _wrong_type(f"{path}.text", "a string")


_boolean, _object, _string = (
    _is(bool, "a boolean"),
    _is(dict, "an object"),
    _is(str, "a string"),
)

# Bounds are OpenAI's and hold for every model; what a provider's own are is its
# dialect's affair. The API reference promises a temperature of 0 to 2 everywhere.
_FIELDS: Mapping[str, Check] = {
    "model": _name,
    "messages": _messages,
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "max_tokens": _integer(1, 2**31 - 1),
    "max_completion_tokens": _integer(1, 2**31 - 1),
    "n": _integer(1, 128),
    "seed": _integer(-(2**63), 2**63 - 1),
    "top_logprobs": _integer(0, 20),
    "logprobs": _boolean,
    "logit_bias": _object,
    "stop": _stop,
    "stream": _boolean,
    "stream_options": _stream_options,
    "tools": _objects,
    "tool_choice": _choice_of_tool,
    "parallel_tool_calls": _boolean,
    "functions": _objects,
    "response_format": _object,
    "metadata": _object,
    "user": _string,
}
