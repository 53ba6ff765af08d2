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
    BackendMisconfigured,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    ContentRefused,
    ContextLengthExceeded,
    InvalidRequest,
)
from ...protocol import json

_CONTEXT = re.compile(
    r"maximum context length|range of input length|model token limit|context window"
    r"|exceed_context_size|context_length_exceeded|prompt is too long",
    re.IGNORECASE,
)
_CONTENT = re.compile(r"content_filter|data_inspection_failed", re.IGNORECASE)
_NO_MODEL = re.compile(r"model.{0,80}(not exist|not found)|model_not_found", re.I | re.S)
# Bounded, and used on text that is cut before: a caller may choose what a provider echoes.
_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]{0,20}://\S+|\b[\w-]{1,63}(\.[\w-]{1,63}){1,8}(:\d{1,5})?(/\S*)?",
    re.IGNORECASE,
)
_KEY = re.compile(r"\b(sk|key|ak)-[\w-]{6,}", re.IGNORECASE)
_LONGEST = 2000
_PARAM = re.compile(r"[a-z_]\w*(\[\d+\]|\.\w+)*", re.ASCII | re.IGNORECASE)
_SHORTEST = 4

Private = re.Pattern[str]
"""Finds what nobody may see of our account: its keys and its address."""


def private(words: Iterable[str]) -> Private:
    """A pattern that finds ``words``, less those too short to give anything away."""
    long = sorted((word for word in words if len(word) >= _SHORTEST), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, long)) or "(?!)", re.IGNORECASE)


def error_of(status: int, headers: Mapping[str, str], body: bytes, private: Private) -> APIError:
    """The error to raise for a refusal with this status, headers and body.

    What ``private`` finds is removed from whatever is kept of the text.
    """
    fields = _fields(body)
    return _meaning(status, fields, _seconds(headers.get("retry-after")), private)


def error_in_answer(value: Any, private: Private) -> APIError | None:
    """The error that an object under HTTP 200 holds, if it holds one."""
    if not isinstance(value, dict) or not value.get("error"):
        return None
    error = value["error"]
    fields = error if isinstance(error, dict) else {"message": error}
    status = fields.get("status") or fields.get("code")
    if not isinstance(status, int) or not 400 <= status < 600:
        status = 502
    return _meaning(status, fields, None, private)


def _meaning(
    status: int, fields: Mapping[str, Any], retry_after: float | None, private: Private
) -> APIError:
    message = _cut(_text(fields.get("message")))
    signs = f"{message} {_cut(_text(fields.get('code')))} {_cut(_text(fields.get('type')))}"
    cleaned = _cleaned(message, private)
    detail = f"HTTP {status}: {cleaned}"
    if status in (400, 413, 422):
        if _CONTEXT.search(signs):
            return ContextLengthExceeded(
                "This prompt is longer than the model's context allows.",
                param="messages",
                detail=detail,
            )
        if _CONTENT.search(signs):
            return ContentRefused("The provider refused this content.", detail=detail)
        if _NO_MODEL.search(signs):
            return BackendMisconfigured(detail)
        return InvalidRequest(
            cleaned or "The provider refused this request.",
            param=_param(fields.get("param"), private),
            detail=detail,
        )
    if status in (401, 402, 403, 404, 405):
        return BackendMisconfigured(detail)
    if status in (429, 503, 529):
        return BackendOverloaded(detail, retry_after=retry_after)
    if status in (408, 504):
        return BackendTimeout(detail)
    return BackendUnavailable(detail)


def _fields(body: bytes) -> Mapping[str, Any]:
    """The error object of a body; its place is OpenAI's, FastAPI's or the top."""
    try:
        value = json.decode(body)
    except json.MalformedJSON:
        return {}
    if not isinstance(value, dict):
        return {}
    for candidate in (value.get("error"), value.get("detail"), value):
        if isinstance(candidate, dict):
            return candidate
        if isinstance(candidate, str):
            return {"message": candidate}
    return {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _cut(text: str) -> str:
    """The beginning of ``text``, less a word that would be cut in two."""
    if len(text) <= _LONGEST:
        return text
    return " ".join(text[:_LONGEST].split()[:-1])


def _param(value: Any, private: Private) -> str | None:
    """``value`` if it is the path of a field and nothing else."""
    path = _text(value)
    if len(path) > 100 or not _PARAM.fullmatch(path) or private.search(path):
        return None
    return path


def _cleaned(message: str, private: Private) -> str:
    """``message`` as one short line without keys and addresses."""
    line = " ".join(message.split())
    for pattern in (private, _KEY, _ADDRESS):
        line = pattern.sub("…", line)
    return "".join(char for char in line if char.isprintable())[:300]


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0 < seconds < 86_400 else None
