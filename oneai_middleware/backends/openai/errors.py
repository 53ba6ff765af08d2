"""What a provider's refusal means for the caller.

Its 401, 402, 403 and 404 are our operator's affair and become a 503; its own words
reach nobody but in a 400 about the caller's own parameter, and cleaned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import (
    APIError,
    BackendError,
    BackendMisconfigured,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    ContentRefused,
    ContextLengthExceeded,
    InvalidRequest,
)
from ...protocol import json
from .dialects.base import Cause

# Codes and types that mean the same wherever they are used.
_NAMES: Mapping[str, Cause] = {
    "context_length_exceeded": "context",
    "exceed_context_size_error": "context",
    "content_filter": "content",
    "content_policy_violation": "content",
    "data_inspection_failed": "content",
    "invalid_api_key": "misconfigured",
    "account_deactivated": "misconfigured",
    "billing_not_active": "misconfigured",
    "billing_hard_limit_reached": "misconfigured",
    "insufficient_quota": "misconfigured",
    "credit_balance_exhausted": "misconfigured",
    "organization_spend_limit_exceeded": "misconfigured",
    "organization_usage_limit_exceeded": "misconfigured",
    "project_spend_limit_exceeded": "misconfigured",
    "model_not_found": "misconfigured",
    "rate_limit_exceeded": "overloaded",
    "server_is_overloaded": "overloaded",
    "overloaded_error": "overloaded",
}
_STATUSES: Mapping[str, Cause] = {
    "400": "invalid",
    "413": "invalid",
    "422": "invalid",
    "401": "misconfigured",
    "402": "misconfigured",
    "403": "misconfigured",
    "404": "misconfigured",
    "405": "misconfigured",
    "429": "overloaded",
    "503": "overloaded",
    "529": "overloaded",
    "408": "timeout",
    "504": "timeout",
    "500": "unavailable",
    "502": "unavailable",
}
_BACKEND_ERRORS: Mapping[Cause, type[BackendError]] = {
    "misconfigured": BackendMisconfigured,
    "timeout": BackendTimeout,
    "unavailable": BackendUnavailable,
}

# Looked for in texts that say no more than that the request is wrong.
_TEXTS: tuple[tuple[re.Pattern[str], Cause], ...] = (
    (
        re.compile(
            r"max(imum)? (context|model|prompt) length|context length is only|context window"
            r"|context_length_exceeded|exceed_context_size|available context size"
            r"|range of input length|model token limit|prompt is too long",
            re.IGNORECASE,
        ),
        "context",
    ),
    (re.compile(r"content_filter|data_inspection_failed", re.IGNORECASE), "content"),
    (
        # Of the model and nothing else: "the model `x` does not exist", "Model Not Exist".
        re.compile(
            r"\bmodel\b[\s:]{0,2}[\"'`]?[\w./:@-]{0,80}[\"'`]?[\s,]{1,3}"
            r"((does|is|was)\s)?not\s(exist|found)",
            re.IGNORECASE,
        ),
        "misconfigured",
    ),
)
# Bounded, and used on text that is cut before: a caller may choose what a provider echoes.
_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]{0,20}://\S+"
    r"|\b[\w-]{1,63}(\.[\w-]{1,63}){0,7}\.(com|net|org|io|ai|cn|dev|app|cloud|local|internal)\b"
    r"(:\d{1,5})?(/\S*)?"
    r"|\b\d{1,3}(\.\d{1,3}){3}(:\d{1,5})?(/\S*)?",
    re.IGNORECASE,
)
# Keys, and the ids of accounts, of which each has a digit somewhere.
_KEY = re.compile(
    r"\b(sk|key|ak)-[\w-]{6,}"
    r"|\b(org|organization|proj|project|acct|account|user|workspace)[-_](?=[a-z]{0,40}\d)\w{6,}",
    re.IGNORECASE,
)
_LONGEST = 2000
_NUMBER = re.compile(r"\((\d{3,6})\)\W{0,3}\Z")
_PARAM = re.compile(r"[a-z_]\w*(\[\d+\]|\.\w+)*", re.ASCII | re.IGNORECASE)
_SHORTEST = 4


class Refusals:
    """Makes errors of what one provider says when it refuses.

    ``private`` are words that nobody may see, our keys and its address: they are
    removed from whatever is kept of its text. ``causes`` are the signs that are its
    dialect's own, before those that everybody uses.
    """

    def __init__(self, private: Iterable[str], causes: Mapping[str, Cause]) -> None:
        # Words too short to give anything away would remove what they stand in.
        long = sorted((word for word in private if len(word) >= _SHORTEST), key=len, reverse=True)
        self._private = re.compile("|".join(map(re.escape, long)) or "(?!)", re.IGNORECASE)
        self._causes = causes

    def in_reply(self, status: int, headers: Mapping[str, str], body: bytes) -> APIError:
        """The error to raise for a reply with this status, headers and body."""
        try:
            value = json.decode(body)
        except json.MalformedJSON:
            value = None
        retry_after = _seconds(headers.get("retry-after"))
        return self._error(str(status), _fields(value), retry_after)

    def in_answer(self, value: Mapping[str, Any]) -> APIError | None:
        """The error that an object under HTTP 200 holds, if it holds one."""
        bare = "choices" not in value and (
            "detail" in value or ("code" in value and "message" in value)
        )
        if value.get("error") or _failed_result(value) or bare:
            return self._error("200", _fields(value), None)
        return None

    def _error(self, status: str, fields: Mapping[str, Any], retry_after: float | None) -> APIError:
        text = _text(fields.get("message"))
        message = self._cleaned(_cut(text))
        code = _cut(_sign(fields.get("code")))
        said = self._cleaned(f"{code}: {_cut(text)}") if code not in ("", status) else message
        detail = f"HTTP {status}: {said}"
        cause = self._cause(status, fields)
        if cause == "context":
            return ContextLengthExceeded(
                "This prompt is longer than the model's context allows.",
                param="messages",
                detail=detail,
            )
        if cause == "content":
            return ContentRefused("The provider refused this content.", detail=detail)
        if cause == "invalid":
            return InvalidRequest(
                message or "The provider refused this request.",
                param=self._param(fields.get("param")),
                detail=detail,
            )
        if cause == "overloaded":
            return BackendOverloaded(detail, retry_after=retry_after)
        return _BACKEND_ERRORS[cause](detail)

    def _cause(self, status: str, fields: Mapping[str, Any]) -> Cause:
        text = _text(fields.get("message"))
        named = [_sign(fields.get(name)) for name in ("code", "type", "status", "http_code")]
        number = _NUMBER.search(text[-20:])
        own = [*named[:1], number[1] if number else "", *named[1:], status]
        found = (
            _first(self._causes, own)
            or _first(_NAMES, named)
            or _first(_STATUSES, [status, *named])
        )
        if found is None or found == "invalid":
            signs = " ".join([_cut(text), *map(_cut, named[:2])])
            found = next((cause for words, cause in _TEXTS if words.search(signs)), found)
        if found is None:
            return "invalid" if status.startswith("4") else "unavailable"
        return found

    def _param(self, value: Any) -> str | None:
        """``value`` if it is the path of a field and nothing else."""
        path = _text(value)
        if len(path) > 100 or not _PARAM.fullmatch(path) or self._private.search(path):
            return None
        return path

    def _cleaned(self, text: str) -> str:
        """``text`` as one short line without keys and addresses."""
        line = " ".join(text.split())
        for pattern in (self._private, _KEY, _ADDRESS):
            line = pattern.sub("…", line)
        return "".join(char for char in line if char.isprintable())[:300]


# --- where an error stands --------------------------------------------------


def _fields(value: Any) -> Mapping[str, Any]:
    """The error in an object: in a field for it, or the object itself."""
    if not isinstance(value, dict):
        return {}
    if result := _failed_result(value):
        return {"code": result["status_code"], "message": result.get("status_msg")}
    for candidate in (value.get("error"), value.get("detail"), value):
        if isinstance(candidate, dict):
            return candidate
        if isinstance(candidate, str):
            return {"message": candidate}
        if isinstance(candidate, list) and candidate and isinstance(candidate[0], dict):
            return _complaint(candidate[0])
    return {}


def _failed_result(value: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What stands beside an answer, or in its place, and says that there is none."""
    result = value.get("base_resp")
    failed = isinstance(result, dict) and result.get("status_code") not in (None, 0, "0")
    return result if failed else None


def _complaint(first: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first of a list of what is wrong with the fields of a request."""
    place = first.get("loc")
    names = [each for each in place if each != "body"] if isinstance(place, list) else []
    steps = (f"[{each}]" if isinstance(each, int) else f".{each}" for each in names)
    return {"message": first.get("msg"), "param": "".join(steps).removeprefix(".")}


def _first(table: Mapping[str, Cause], signs: Iterable[str]) -> Cause | None:
    return next((table[sign] for sign in signs if sign in table), None)


def _sign(value: Any) -> str:
    """A code, type or status as a string; empty where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return ""
    return str(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _cut(text: str) -> str:
    """The beginning of ``text``, less a word that would be cut in two."""
    if len(text) <= _LONGEST:
        return text
    return " ".join(text[:_LONGEST].split()[:-1])


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0 < seconds < 86_400 else None
