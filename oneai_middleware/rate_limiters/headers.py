"""What is left of the limits, as the ``x-ratelimit-*`` headers OpenAI sends."""

from __future__ import annotations

import math

from .base import LimitStatus


def limit_headers(status: LimitStatus) -> list[tuple[str, str]]:
    """Limit, remaining and reset of requests and of tokens, per minute.

    A dimension that is unlimited has no headers. On a stream they are the figures
    of its admission.
    """
    headers = []
    for name, limit, remaining, reset in (
        ("requests", status.limit_requests, status.remaining_requests, status.reset_requests),
        ("tokens", status.limit_tokens, status.remaining_tokens, status.reset_tokens),
    ):
        if limit is not None:
            headers += [
                (f"x-ratelimit-limit-{name}", str(limit)),
                (f"x-ratelimit-remaining-{name}", str(max(0, remaining))),
                (f"x-ratelimit-reset-{name}", duration(reset)),
            ]
    return headers


def duration(seconds: float) -> str:
    """Seconds as Go prints a duration: ``12ms``, ``7.66s``, ``1m0s``, ``1h0m0s``.

    Rounded up to a millisecond, so that waiting this long is always enough.
    """
    milliseconds = max(0, math.ceil(seconds * 1000))
    if milliseconds == 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
