"""What is left of the limits, in the form OpenAI's clients read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.rate_limiters.base import LimitStatus
from oneai_middleware.rate_limiters.headers import duration, limit_headers

GO = re.compile(r"0s|[1-9]\d{0,2}ms|(?:(\d+)h)?(?:(\d+)m)?(\d+(?:\.\d{1,3})?)s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0001, "1ms"),
        (0.012, "12ms"),
        (0.85, "850ms"),
        (1, "1s"),
        (7.66, "7.66s"),
        (59, "59s"),
        (60, "1m0s"),
        (179.56, "2m59.56s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (3661.5, "1h1m1.5s"),
        (59.9999, "1m0s"),
        (0.9999, "1s"),
    ],
)
def test_a_duration_reads_as_go_prints_it(seconds, text):
    """Conformance 96."""
    assert duration(seconds) == text


@given(st.floats(0, 10**6))
def test_waiting_as_long_as_it_says_is_enough(seconds):
    """Conformance 96."""
    match = GO.fullmatch(duration(seconds))
    assert match
    hours, minutes, rest = match.groups()
    said = (
        float(match[0][:-2]) / 1000
        if match[0].endswith("ms")
        else int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest or 0)
    )
    assert seconds - 1e-6 <= said <= seconds + 0.001 + 1e-6


def test_a_dimension_without_a_limit_has_no_headers():
    assert limit_headers(LimitStatus()) == []
    assert [name for name, _ in limit_headers(LimitStatus(limit_tokens=5))] == [
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
    ]


def test_what_remains_is_never_negative():
    """Conformance 95."""
    headers = dict(limit_headers(LimitStatus(5, -3, 1.0, 7, -1, 2.0)))
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-remaining-tokens"] == "0"
