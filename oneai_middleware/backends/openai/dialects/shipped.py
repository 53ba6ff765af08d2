"""The dialects that are shipped, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .base import Cause, Dialect

_PENALTIES = ("presence_penalty", "frequency_penalty")
_SAMPLING = ("temperature", "top_p", *_PENALTIES)
_NO_DEVELOPER = {"developer": "system"}


def _switch(on: Mapping[str, Any], off: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {"on": on, "off": off}


def _meaning(cause: Cause, *signs: object) -> dict[str, Cause]:
    return {str(sign): cause for sign in signs}


_IN_TEMPLATE = _switch(
    on={"chat_template_kwargs": {"enable_thinking": True}},
    off={"chat_template_kwargs": {"enable_thinking": False}},
)
_BY_EFFORT = _switch(on={}, off={"reasoning_effort": "none"})

_GENERIC = Dialect("generic")

_DEEPSEEK = Dialect(
    "deepseek",
    rename={"user": "user_id"},
    length="max_tokens",
    roles=_NO_DEVELOPER,
    thinking=_switch(on={"thinking": {"type": "enabled"}}, off={"thinking": {"type": "disabled"}}),
)

_ALIBABA = Dialect(
    "alibaba",
    # It refuses 2 itself.
    ranges={"temperature": (0, 1.99)},
    length="max_tokens",
    roles=_NO_DEVELOPER,
    thinking=_switch(on={"enable_thinking": True}, off={"enable_thinking": False}),
    # Some of its models think in streams only.
    folds=True,
    causes={
        **_meaning("invalid", "InvalidParameter", "invalid_parameter_error"),
        **_meaning("content", "DataInspectionFailed"),
        **_meaning("misconfigured", "Arrearage", "AccessDenied", "access_denied"),
        # Tokens a minute here, and no money.
        **_meaning("overloaded", "insufficient_quota", "limit_requests"),
        **_meaning("overloaded", "Throttling", "Throttling.RateQuota"),
        **_meaning("overloaded", "Throttling.AllocationQuota"),
        **_meaning("timeout", "RequestTimeOut"),
    },
)

_MOONSHOT = Dialect(
    "moonshot",
    # Its models of today have one value each and refuse any other.
    drop=_SAMPLING,
    length="max_completion_tokens",
    roles=_NO_DEVELOPER,
    causes={
        **_meaning("misconfigured", "exceeded_current_quota_error", "resource_not_found_error"),
        **_meaning("misconfigured", "invalid_authentication_error", "incorrect_api_key_error"),
        **_meaning("overloaded", "rate_limit_reached_error", "engine_overloaded_error"),
    },
)

_MINIMAX = Dialect(
    "minimax",
    drop=(*_PENALTIES, "logit_bias", "tools[].function.strict"),
    values={"tool_choice": ("none", "auto")},
    ranges={"temperature": (0.01, 1), "top_p": (0.01, 1)},
    length="max_completion_tokens",
    roles=_NO_DEVELOPER,
    thinking=_switch(on={"thinking": {"type": "adaptive"}}, off={"thinking": {"type": "disabled"}}),
    # Without it the thoughts stand in the content.
    defaults={"reasoning_split": True},
    reasoning="reasoning_details",
    causes={
        **_meaning("invalid", 1042, 2013, "bad_request_error"),
        **_meaning("context", 1039),
        **_meaning("content", 1026, 1027),
        # Keys, the balance, the plan's allowance.
        **_meaning("misconfigured", 1004, 1008, 2049, 2056, "insufficient_balance_error"),
        **_meaning("overloaded", 1002, 1041, 2045),
        **_meaning("timeout", 1001),
        **_meaning("unavailable", 1000, 1013, 1024, 1033),
    },
)

_ZHIPU = Dialect(
    "zhipu",
    drop=(*_PENALTIES, "logit_bias", "messages[].name", "tools[].function.strict"),
    values={"tool_choice": ("auto",)},
    ranges={"temperature": (0.01, 1), "top_p": (0.01, 0.99)},
    sizes={"user": (6, 128)},
    stops=1,
    greedy={"do_sample": False},
    rename={"user": "user_id"},
    length="max_tokens",
    roles=_NO_DEVELOPER,
    thinking=_switch(on={"thinking": {"type": "enabled"}}, off={"thinking": {"type": "disabled"}}),
    causes={
        **_meaning("invalid", 1210, 1212, 1213, 1214, 1215),
        **_meaning("context", 1261),
        **_meaning("content", 1301),
        # Keys, the account and its money, an unknown model, permissions.
        **_meaning("misconfigured", *range(1000, 1005), *range(1110, 1122), 1211),
        **_meaning("misconfigured", *range(1220, 1223), 434),
        # A day's or a plan's allowance: no short wait helps.
        **_meaning("misconfigured", 1304, 1308, 1310),
        **_meaning("overloaded", 1302, 1303, 1305, 1312),
    },
)

_REASONING = (
    "messages[].reasoning_content",
    "messages[].reasoning",
    "messages[].reasoning_details",
)
_OPENAI_FIXED = (*_SAMPLING, "logit_bias", "logprobs", "top_logprobs")
_OPENAI = Dialect(
    "openai",
    # What others put into an answer, and clients replay.
    drop=_REASONING,
    # Its models that think; the chat models of a line are no such.
    drop_for={"gpt-5*-chat*": (), "gpt-5*": _OPENAI_FIXED, "o[1-9]*": _OPENAI_FIXED},
    length="max_completion_tokens",
    thinking=_BY_EFFORT,
    obfuscation=True,
)

_VLLM = Dialect(
    "vllm",
    rename={"messages[].reasoning_content": "reasoning"},
    roles=_NO_DEVELOPER,
    thinking=_IN_TEMPLATE,
    reasoning="reasoning",
)

_LLAMACPP = Dialect(
    "llamacpp",
    length="max_tokens",
    roles=_NO_DEVELOPER,
    thinking=_IN_TEMPLATE,
    # Something it was not started for.
    causes=_meaning("invalid", "not_supported_error"),
)

_OLLAMA = Dialect(
    "ollama",
    rename={"messages[].reasoning_content": "reasoning"},
    length="max_tokens",
    roles=_NO_DEVELOPER,
    thinking=_BY_EFFORT,
    reasoning="reasoning",
)

SHIPPED: Mapping[str, Dialect] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (
            *(_GENERIC, _DEEPSEEK, _ALIBABA, _MOONSHOT, _MINIMAX, _ZHIPU),
            *(_OPENAI, _VLLM, _LLAMACPP, _OLLAMA),
        )
    }
)
